"""What simulated movies promise."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest
import tifffile

from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.entropy import ENTROPY_SHARES, entropy_shares
from stemcell_lit.patches.extraction import extract
from stemcell_lit.settings.group_keys import ExtractionConfig, SimulationConfig
from stemcell_lit.simulate.culture import Culture
from stemcell_lit.simulate.movie import CLASSES, DEBRIS, DENSE, DIFFERENTIATED, SPREAD
from stemcell_lit.simulate.write import simulate

TINY = SimulationConfig(movies=2, frames=6, size=224, um_per_px=2.0, threads=1, seed=3)


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulate") / "movies"
    simulate(TINY, folder)
    return folder


def _hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def _read(folder, movie, kind=""):
    return tifffile.imread(folder / f"movie_{movie:02d}{kind}.tif")


def test_same_config_gives_same_bytes_whatever_the_number_of_processes(tmp_path):
    config = dataclasses.replace(TINY, size=64, frames=2)
    simulate(config, tmp_path / "one")
    simulate(dataclasses.replace(config, threads=2), tmp_path / "two")
    assert _hashes(tmp_path / "one") == _hashes(tmp_path / "two")


def test_another_seed_gives_other_movies(tmp_path):
    config = dataclasses.replace(TINY, size=64, frames=1, movies=1)
    simulate(config, tmp_path / "a")
    simulate(dataclasses.replace(config, seed=4), tmp_path / "b")
    assert (_read(tmp_path / "a", 0) != _read(tmp_path / "b", 0)).mean() > 0.5


def test_folder_holds_what_the_manifest_says(movies):
    manifest = json.loads((movies / "manifest.json").read_text())
    assert manifest["classes"] == list(CLASSES)
    assert manifest["hours_per_frame"] == TINY.hours / TINY.frames
    named = {m[k] for m in manifest["movies"] for k in ("frames", "classes", "colonies")}
    assert {p.name for p in movies.glob("[!.]*")} == named | {"manifest.json"}
    assert "threads" not in manifest["config"]


def test_maps_have_the_frames_shape_and_known_classes(movies):
    for i in range(TINY.movies):
        frames, classes = _read(movies, i), _read(movies, i, "_classes")
        colonies = _read(movies, i, "_colonies")
        assert frames.shape == classes.shape == colonies.shape == (6, 224, 224)
        assert (frames.dtype, classes.dtype, colonies.dtype) == (np.uint8, np.uint8, np.uint16)
        assert classes.max() <= len(CLASSES)
        assert (colonies[(classes == 0)] == 0).all()
        assert (colonies[classes >= DENSE] > 0).all()


def test_frames_carry_pixel_size_and_interval(movies):
    with tifffile.TiffFile(movies / "movie_00.tif") as tiff:
        assert tiff.is_ome
        assert 'PhysicalSizeX="2.0"' in tiff.ome_metadata
        assert 'TimeIncrement="16.0"' in tiff.ome_metadata
        assert tiff.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE


def test_every_movie_shows_every_class(movies):
    for i in range(TINY.movies):
        assert set(np.unique(_read(movies, i, "_classes"))) >= {DEBRIS, DENSE, SPREAD} | {
            DIFFERENTIATED
        }


def test_no_place_goes_back_from_spread_or_differentiated(movies):
    for i in range(TINY.movies):
        highest = np.zeros((224, 224), int)
        for frame in _read(movies, i, "_classes"):
            cells = frame >= DENSE  # debris may lie above, the rim may sway
            assert (frame[cells] >= highest[cells]).all()
            highest = np.maximum(highest, np.where(cells, frame, 0))


def test_a_place_keeps_its_colony(movies):
    colonies = _read(movies, 0, "_colonies").astype(int)
    for one, other in itertools.pairwise(colonies):
        both = (one > 0) & (other > 0)
        assert (one[both] == other[both]).all()


def test_colonies_grow(movies):
    inside = (_read(movies, 0, "_colonies") > 0).mean((1, 2))
    assert inside[-1] > 1.5 * inside[0]


def test_neighbouring_frames_are_more_alike_than_distant_ones_and_other_movies(tmp_path):
    config = dataclasses.replace(TINY, frames=12, hours=24.0, size=160)  # a frame every 2 h
    simulate(config, tmp_path / "movies")
    a, b = (_read(tmp_path / "movies", i).astype(float) for i in range(2))

    def alike(x, y):
        return np.corrcoef(x.ravel(), y.ravel())[0, 1]

    near = np.mean([alike(a[i], a[i + 1]) for i in range(11)])
    far = np.mean([alike(a[i], a[i + 8]) for i in range(4)])
    other = np.mean([alike(a[i], b[i]) for i in range(12)])
    assert near > far + 0.1
    assert near > other + 0.2


@pytest.fixture(scope="module")
def growing():
    """Cells of one movie every half hour of a day, all states taken as dense: only divisions change them."""
    culture = Culture(dataclasses.replace(TINY, size=400), np.random.default_rng([TINY.seed, 0, 0]))
    look = np.zeros(culture.shape, np.float32)
    return [culture.living(24 + 0.5 * step, look) for step in range(48)]


def test_cells_persist_and_move_less_than_their_own_size_in_half_an_hour(growing):
    inside = 2.0 * np.array([20, 380])  # um: cells may leave the field, not vanish in it
    for one, other in itertools.pairwise(growing):
        middle = ((one.at > inside[0]) & (one.at < inside[1])).all(1)
        assert np.isin(one.id[middle], other.id).mean() > 0.98
        _, i, j = np.intersect1d(one.id, other.id, return_indices=True)
        step = np.hypot(*(one.at[i] - other.at[j]).T)
        assert 0 < np.median(step) < 1.5  # um
        assert np.quantile(step, 0.99) < 0.5 * one.pitch.mean()


def test_divisions_increase_the_count_by_the_growth_of_the_colonies(growing):
    counts = np.array([len(cells.id) for cells in growing])
    assert (
        1.25 < counts[-1] / counts[0] < 2.0
    )  # doubling in 31 to 40 h, slowing; some leave the field
    assert all(cells.dividing.any() for cells in growing[::6])
    assert np.mean([cells.dividing.mean() for cells in growing]) < 0.05


def test_a_cell_is_born_beside_a_dividing_one(growing):
    seen = set(growing[0].id)
    apart = []
    for cells in growing[1:]:
        for k in np.flatnonzero(~np.isin(cells.id, list(seen)) & cells.dividing):
            others = cells.dividing.copy()
            others[k] = False
            if others.any():
                apart.append(np.hypot(*(cells.at[others] - cells.at[k]).T).min())
        seen |= set(cells.id)
    assert len(apart) > 5
    assert np.median(apart) < 1.2 * growing[0].pitch.mean()


def test_movies_differ_in_culture_and_in_imaging(tmp_path):
    config = dataclasses.replace(TINY, movies=4, frames=2, size=160)
    simulate(config, tmp_path / "movies")
    manifest = json.loads((tmp_path / "movies" / "manifest.json").read_text())
    conditions = [movie["condition"] for movie in manifest["movies"]]
    for key in ("doubling_h", "pitch", "shift_h", "gain", "level", "focus_um", "electrons"):
        assert len({c[key] for c in conditions}) == 4
    ground = []
    for i in range(4):
        frames, classes = _read(tmp_path / "movies", i), _read(tmp_path / "movies", i, "_classes")
        ground.append([np.median(f[c == 0]) for f, c in zip(frames, classes, strict=True)])
    assert np.ptp(ground, axis=0).min() > 3  # gray levels between movies
    assert np.ptp(ground, axis=1).max() > 1  # the light drifts within one


def test_entropies_of_the_classes_are_near_the_published_ones(tmp_path):
    # Coarse, on 28 frames; benchmarks/simulation.py holds 0.10 on whole sets.
    config = SimulationConfig(movies=7, frames=4, hours=112.0, threads=1, seed=20)
    simulate(config, tmp_path / "movies")
    store = extract(tmp_path / "movies", tmp_path / "store", ExtractionConfig())
    found = entropy_shares(store.pixels, store.labels, store.classes)
    for name, target in ENTROPY_SHARES.items():
        assert np.abs(np.subtract(found[name], target)).max() < 0.15, name


def test_empty_ground_is_even_and_debris_outshines_it(movies):
    for i in range(TINY.movies):
        frame, classes = _read(movies, i)[0], _read(movies, i, "_classes")[0]
        ground = np.median(frame[classes == 0])
        assert 80 < ground < 150
        assert np.quantile(frame[classes == DEBRIS], 0.75) > 1.3 * ground


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("size", 32), ("movies", 0), ("um_per_px", 0.0), ("hours", -1.0)),
        *(("threads", 1025), ("seed", 2**31)),
    ],
)
def test_a_number_out_of_range_is_a_sentence_naming_it(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"simulation\.{key}={value}: expected"):
        simulate(dataclasses.replace(TINY, **{key: value}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("stemcell_lit.simulate.write._write_stack", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate(TINY, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
