"""What cutting labelled patches from movies promises. The movies are drawn by hand, so every label is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from stemcell_lit.data.extraction import extract
from stemcell_lit.data.patches import COLUMNS
from stemcell_lit.data.simulate import CLASSES
from stemcell_lit.errors import UserError
from stemcell_lit.schema import ExtractionConfig

SIZE = 16
SETTINGS = ExtractionConfig(patch_size=SIZE, patches_per_movie=60)


def _draw(folder, maps, colonies=None, **changes):
    """A folder as `simulate` writes it, one movie per class map (frames, height, width)."""
    folder.mkdir()
    movies = []
    for i, classes in enumerate(maps):
        rng = np.random.default_rng(i)
        name = f"movie_{i:02d}"
        frames = rng.integers(0, 256, classes.shape).astype(np.uint8)
        ids = (classes > 1).astype(np.uint16) * 3 if colonies is None else colonies[i]
        for kind, stack in (("", frames), ("_classes", classes), ("_colonies", ids)):
            path = folder / f"{name}{kind}.tif"
            tifffile.imwrite(path, stack, photometric="minisblack", compression="zlib")
        files = {k: f"{name}_{k}.tif" for k in ("classes", "colonies")}
        movies.append({"name": name, "frames": f"{name}.tif", **files})
        movies[-1]["shape"] = list(classes.shape)
    manifest = {
        "format": 1,
        "classes": list(CLASSES),
        "um_per_px": 1.5,
        "hours_per_frame": 6.0,
        "movies": movies,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _edit(folder, change):
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


@pytest.fixture
def halves():
    """Three frames: left dense, right spread, the lowest fifth bare."""
    classes = np.full((3, 100, 120), 2, np.uint8)
    classes[:, :, 60:] = 3
    classes[:, 80:] = 0
    return classes


def _windows(store, maps):
    for row in store.manifest.itertuples():
        top, left = int(row.y - SIZE / 2), int(row.x - SIZE / 2)
        stack = maps[int(row.group[-2:])]
        yield row, stack[row.frame, top : top + SIZE, left : left + SIZE]


def test_label_purity_and_foreground_hold_for_every_patch(tmp_path, halves):
    store = extract(_draw(tmp_path / "in", [halves]), tmp_path / "out", SETTINGS)
    assert set(store.manifest["label"]) == {"dense", "spread"}
    for row, window in _windows(store, [halves]):
        counts = np.bincount(window.ravel(), minlength=5)
        assert counts[1:].sum() >= 0.5 * SIZE**2
        assert row.foreground == pytest.approx(counts[1:].sum() / SIZE**2)
        assert CLASSES[counts[1:].argmax()] == row.label
        assert counts.max(initial=0, where=np.arange(5) > 0) >= 0.7 * counts[1:].sum()


def test_pixels_are_cut_where_the_manifest_says(tmp_path, halves):
    source = _draw(tmp_path / "in", [halves])
    store = extract(source, tmp_path / "out", SETTINGS)
    frames = tifffile.imread(source / "movie_00.tif")
    for (row, window), patch in zip(_windows(store, [frames]), store.pixels, strict=True):
        assert (window == patch).all()
        assert row.time_h == row.frame * 6.0
        assert (row.group, row.source, row.origin) == ("movie_00", "movie_00.tif", "real")
    assert set(store.manifest) == set(COLUMNS)
    assert store.info["um_per_px"] == 1.5
    assert store.classes == list(CLASSES)


def test_unsure_patches_are_left_out_and_counted(tmp_path):
    stripes = np.zeros((2, 80, 80), np.uint8)
    stripes[0, :, ::2], stripes[0, :, 1::2] = 2, 3  # half and half everywhere
    stripes[1] = 4
    store = extract(_draw(tmp_path / "in", [stripes]), tmp_path / "out", SETTINGS)
    assert set(store.manifest["frame"]) == {1}
    assert store.info["made_by"]["unsure"] > 5


def test_small_debris_on_bare_ground_makes_a_debris_patch(tmp_path):
    spot = np.zeros((1, 60, 60), np.uint8)
    spot[0, 27:33, 27:33] = 1  # 36 of 256 pixels: over an eighth
    store = extract(_draw(tmp_path / "in", [spot]), tmp_path / "out", SETTINGS)
    assert set(store.manifest["label"]) == {"debris"}
    assert (store.manifest["foreground"] >= 1 / 8).all()
    assert (store.manifest["track"] == "").all()


def test_little_debris_on_cells_leaves_them_their_label(tmp_path):
    classes = np.full((1, 60, 60), 2, np.uint8)
    classes[0, 28:32, 28:32] = 1
    store = extract(_draw(tmp_path / "in", [classes]), tmp_path / "out", SETTINGS)
    assert set(store.manifest["label"]) == {"dense"}


def test_patches_of_a_frame_share_at_most_half(tmp_path, halves):
    store = extract(_draw(tmp_path / "in", [halves]), tmp_path / "out", SETTINGS)
    for _, rows in store.manifest.groupby("frame"):
        corners = rows[["y", "x"]].to_numpy()
        for i in range(len(corners)):
            gap = np.clip(SIZE - np.abs(corners[i + 1 :] - corners[i]), 0, None)
            assert (gap.prod(1) <= SIZE**2 / 2).all()


def test_tracks_name_movie_and_colony(tmp_path, halves):
    ids = np.zeros(halves.shape, np.uint16)
    ids[:, :, :60], ids[:, :, 60:] = 1, 2
    source = _draw(tmp_path / "in", [halves, halves], colonies=[ids, ids])
    store = extract(source, tmp_path / "out", SETTINGS)
    tracks = store.manifest.groupby("track")["label"].agg(set).to_dict()
    assert tracks == {
        f"movie_0{i}/c{j}": {label} for i in (0, 1) for j, label in ((1, "dense"), (2, "spread"))
    }


def test_same_seed_same_store_and_another_seed_another(tmp_path, halves):
    source = _draw(tmp_path / "in", [halves])
    hashes = [
        extract(source, tmp_path / f"out{i}", replace(SETTINGS, seed=seed)).content_hash
        for i, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_movie_gives_more_patches_than_asked(tmp_path, halves):
    source = _draw(tmp_path / "in", [halves, halves])
    store = extract(source, tmp_path / "out", replace(SETTINGS, patches_per_movie=7))
    assert store.manifest["group"].value_counts().to_dict() == {"movie_00": 7, "movie_01": 7}


@pytest.mark.parametrize("name", ["../x.tif", "/etc/passwd", "C:\\x.tif", "a/../../x.tif"])
@pytest.mark.parametrize("key", ["frames", "classes", "colonies"])
def test_a_path_out_of_the_folder_is_refused(tmp_path, halves, key, name):
    source = _draw(tmp_path / "in", [halves])
    _edit(source, lambda m: m["movies"][0].update({key: name}))
    with pytest.raises(UserError, match="expected one inside"):
        extract(source, tmp_path / "out", SETTINGS)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other_shape(path):
    tifffile.imwrite(path, np.zeros((3, 50, 50), np.uint8), photometric="minisblack")


def _fewer_frames(path):
    tifffile.imwrite(path, np.zeros((2, 100, 120), np.uint8), photometric="minisblack")


def _unknown_class(path):
    tifffile.imwrite(path, np.full((3, 100, 120), 9, np.uint8), photometric="minisblack")


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("manifest.json", lambda p: p.unlink(), "no manifest.json in it, expected"),
        ("manifest.json", _truncate, "found no readable JSON"),
        ("manifest.json", lambda p: p.write_text("[]"), "found format None, expected 1"),
        ("manifest.json", lambda p: p.write_text('{"format": 2}'), "found format 2, expected 1"),
        ("movie_00.tif", lambda p: p.unlink(), "no such file"),
        ("movie_00.tif", lambda p: p.write_bytes(b"not a TIFF"), "found no readable TIFF"),
        ("movie_00.tif", _truncate, r"found \(2, 100, 120\).*expected \(3, 100, 120\)"),
        ("movie_00_classes.tif", _truncate, "make"),
        ("movie_00_classes.tif", _other_shape, r"found \(3, 50, 50\).*expected \(3, 100, 120\)"),
        ("movie_00_classes.tif", _fewer_frames, r"found \(2, 100, 120\)"),
        ("movie_00_classes.tif", _unknown_class, "found class 9 in frame 0, expected 0 to 4"),
        ("movie_00_colonies.tif", _other_shape, r"found \(3, 50, 50\)"),
    ],
)
def test_bad_input_is_a_sentence_naming_the_file_and_nothing_is_written(
    tmp_path, halves, file, damage, message
):
    source = _draw(tmp_path / "in", [halves])
    damage(source / file)
    with pytest.raises(UserError, match=message) as error:
        extract(source, tmp_path / "out", SETTINGS)
    assert file in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("patch_size", 101), ("patch_size", 0), ("purity", 1.5), ("foreground", 0.0), ("seed", -1)],
)
def test_a_setting_out_of_range_is_a_sentence_naming_it(tmp_path, halves, key, value):
    source = _draw(tmp_path / "in", [halves])
    with pytest.raises(UserError, match=rf"{key}.*{value}"):
        extract(source, tmp_path / "out", replace(SETTINGS, **{key: value}))


def test_no_patch_at_all_is_a_sentence(tmp_path):
    source = _draw(tmp_path / "in", [np.zeros((1, 40, 40), np.uint8)])
    with pytest.raises(UserError, match="expected at least one"):
        extract(source, tmp_path / "out", SETTINGS)
