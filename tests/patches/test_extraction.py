"""What cutting labelled patches from movies promises. The movies are drawn by hand, so every label is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from stemcell_lit.errors import UserError
from stemcell_lit.patches.extraction import extract
from stemcell_lit.patches.store import COLUMNS
from stemcell_lit.settings.group_keys import ExtractionConfig
from stemcell_lit.simulate.movie import CLASSES

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
        ("manifest.json", _truncate, "not readable as JSON"),
        ("manifest.json", lambda p: p.write_text("[]"), "expected a mapping"),
        (
            "manifest.json",
            lambda p: p.write_text('{"format": 2}'),
            "format 2, this version reads 1",
        ),
        ("movie_00.tif", lambda p: p.unlink(), "no such file"),
        ("movie_00.tif", lambda p: p.write_bytes(b"not a TIFF"), "not a whole TIFF file"),
        ("movie_00.tif", _truncate, "truncated or damaged"),
        ("movie_00_classes.tif", _truncate, "truncated or damaged"),
        ("movie_00_classes.tif", _other_shape, r"found \(3, 50, 50\).*expected \(3, 100, 120\)"),
        ("movie_00_classes.tif", _fewer_frames, r"found 2 maps for the 3 frames"),
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


# --- a lab's own movies ---------------------------------------------------------------------------


def _movie(path, frames, um=1.0, hours=2.0):
    metadata = {"axes": "TYX", "PhysicalSizeX": um, "PhysicalSizeY": um}
    metadata |= {"TimeIncrement": hours, "TimeIncrementUnit": "h"}
    tifffile.imwrite(path, frames, ome=True, photometric="minisblack", metadata=metadata)
    return path


def _maps(path, classes):
    tifffile.imwrite(path, classes, photometric="minisblack", compression="zlib")
    return path


def _noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


NAMES = ["dense", "spread"]


@pytest.fixture
def map_of_two():
    """Two frames of 64 x 160 px: left dense, right spread, the lowest quarter bare."""
    classes = np.ones((2, 64, 160), np.uint8)
    classes[:, :, 80:] = 2
    classes[:, 48:] = 0
    return classes


@pytest.mark.parametrize("how", ["beside", "folder of both", "table", "table folder", "frames"])
def test_maps_are_found_by_the_names_that_the_docs_give(tmp_path, map_of_two, how):
    frames, table = _noise(map_of_two.shape), None
    source = tmp_path / "a.ome.tif"
    if how == "frames":
        source = tmp_path / "a"
        for folder, stack in ((source, frames), (tmp_path / "a_classes", map_of_two)):
            folder.mkdir()
            for i, image in enumerate(stack):
                tifffile.imwrite(folder / f"t{i}.tif", image)
    else:
        _movie(source, frames)
        name = "labels.tif" if how == "table" else "a_classes.tif"
        (tmp_path / "maps").mkdir()
        table = _maps(tmp_path / ("maps" if "table" in how else "") / name, map_of_two)
        table = {"table": table, "table folder": table.parent}.get(how)
        source = tmp_path if how == "folder of both" else source
    store = extract(source, tmp_path / "s", SETTINGS, table=table, classes=NAMES)
    assert set(store.manifest["label"]) == set(NAMES)
    for row, patch in zip(store.manifest.itertuples(), store.pixels, strict=True):
        top, left = int(row.y - SIZE / 2), int(row.x - SIZE / 2)
        assert (frames[row.frame, top : top + SIZE, left : left + SIZE] == patch).all()
        assert row.group == "a" and row.track == "a/c1"  # dense and spread touch: one colony


def test_a_grid_gives_every_place_its_stride_apart(tmp_path, map_of_two):
    source = _movie(tmp_path / "a.tif", _noise(map_of_two.shape))
    _maps(tmp_path / "a_classes.tif", map_of_two)
    grid = replace(SETTINGS, places="grid", stride=8, patches_per_movie=None, foreground=1.0)
    store = extract(source, tmp_path / "s", grid, classes=NAMES)
    found = {(r.frame, r.y - 8, r.x - 8) for r in store.manifest.itertuples()}
    # tops whose 16 px stay above the bare quarter; of the lefts, 72 straddles the classes half and half
    lefts = set(range(0, 145, 8)) - {72}
    assert found == {(f, y, x) for f in (0, 1) for y in (0, 8, 16, 24, 32) for x in lefts}
    assert set(store.unsure["x"]) == {80.0} and set(store.unsure["label"]) == {"unsure"}
    assert store.info["made_by"]["unsure"] == len(store.unsure) == 10
    every = extract(source, tmp_path / "s", replace(grid, every=2), classes=NAMES)
    assert set(every.manifest["frame"]) == {0} and len(every) == len(store) // 2


def test_movies_of_different_pixel_size_end_up_equal(tmp_path, map_of_two):
    """The same scene at 1 and at 0.5 um/px gives the same patches at 1 um/px."""
    coarse = _noise(map_of_two.shape)
    fine, fine_map = (np.kron(a, np.ones((1, 2, 2), np.uint8)) for a in (coarse, map_of_two))
    for name, um, frames, maps in (("a", 1.0, coarse, map_of_two), ("b", 0.5, fine, fine_map)):
        _movie(tmp_path / f"{name}.tif", frames, um)
        _maps(tmp_path / f"{name}_classes.tif", maps)
    grid = replace(SETTINGS, places="grid", patches_per_movie=None)
    with pytest.raises(UserError, match=r"different um/px \(a.tif 1, b.tif 0.5\)"):
        extract(tmp_path, tmp_path / "s", grid, classes=NAMES)
    store = extract(tmp_path, tmp_path / "s", replace(grid, um_per_px=1.0), classes=NAMES)
    parts = [store.manifest["group"] == name for name in "ab"]
    assert (store.pixels[parts[0]] == store.pixels[parts[1]]).all() and parts[0].sum() > 10
    assert (2 * store.manifest["x"][parts[0]].to_numpy() == store.manifest["x"][parts[1]]).all()
    assert store.info["um_per_px"] == 1.0
    assert {d["um_per_px"] for d in store.info["made_by"]["movies"]} == {1.0, 0.5}


def test_a_movie_without_pixel_size_cannot_be_resampled(tmp_path, map_of_two):
    tifffile.imwrite(tmp_path / "a.tif", _noise(map_of_two.shape))
    _maps(tmp_path / "a_classes.tif", map_of_two)
    wanted = replace(SETTINGS, um_per_px=2.0)
    with pytest.raises(UserError, match="a.tif: does not tell the size of a pixel.*give um_per_px"):
        extract(tmp_path / "a.tif", tmp_path / "s", wanted, classes=NAMES)
    assert not (tmp_path / "s").exists()


def test_a_16_bit_movie_is_scaled_as_a_whole_and_that_is_recorded(tmp_path, map_of_two):
    deep = _noise(map_of_two.shape).astype(np.uint16) * 8 + 100
    _movie(tmp_path / "a.tif", deep)
    _maps(tmp_path / "a_classes.tif", map_of_two)
    store = extract(tmp_path, tmp_path / "s", SETTINGS, classes=NAMES)
    low, high = store.info["made_by"]["movies"][0]["scaling"]
    row = store.manifest.iloc[0]
    top, left = int(row["y"] - SIZE / 2), int(row["x"] - SIZE / 2)
    raw = deep[row["frame"], top : top + SIZE, left : left + SIZE].astype(float)
    expected = np.clip((raw - low) / (high - low), 0, 1) * 255
    assert np.abs(store.pixels[0] - expected).max() <= 0.51


def test_colonies_are_linked_over_time_where_nobody_numbered_them(tmp_path):
    maps = np.zeros((3, 64, 120), np.uint8)
    for t in range(3):
        maps[t, 4:40, 4 + 4 * t : 40 + 4 * t] = 1
        maps[t, 20:60, 76:116] = 2
    _movie(tmp_path / "a.tif", _noise(maps.shape))
    _maps(tmp_path / "a_classes.tif", maps)
    store = extract(tmp_path, tmp_path / "s", SETTINGS, classes=NAMES)
    tracks = store.manifest.groupby("track")
    assert tracks["label"].agg(set).to_dict() == {"a/c1": {"dense"}, "a/c2": {"spread"}}
    assert tracks["frame"].nunique().min() == 3


def test_patches_of_a_single_movie_lie_in_one_block_of_columns(tmp_path, map_of_two):
    _movie(tmp_path / "a.tif", _noise(map_of_two.shape))
    _maps(tmp_path / "a_classes.tif", map_of_two)
    store = extract(tmp_path, tmp_path / "s", SETTINGS, classes=NAMES, blocks=4)
    block = store.manifest["group"].str[-1].astype(int)
    x = store.manifest["x"]
    assert ((x - SIZE / 2 >= 40 * block) & (x + SIZE / 2 <= 40 * (block + 1))).all()
    assert store.manifest["group"].nunique() == 4
    with pytest.raises(UserError, match="lay in two of blocks=16"):
        extract(tmp_path, tmp_path / "t", SETTINGS, classes=NAMES, blocks=16)


def test_views_are_concentric_averaged_and_mirrored_at_the_border(tmp_path, map_of_two):
    frames = _noise(map_of_two.shape)
    _movie(tmp_path / "a.tif", frames)
    _maps(tmp_path / "a_classes.tif", map_of_two)
    settings = replace(SETTINGS, scales=[1, 2, 4], places="grid", patches_per_movie=None)
    store = extract(tmp_path, tmp_path / "s", settings, classes=NAMES)
    single = extract(tmp_path, tmp_path / "t", replace(settings, scales=[1]), classes=NAMES)
    assert store.pixels.shape == (len(single), 3, SIZE, SIZE) and store.scales == [1, 2, 4]
    assert (store.finest == single.pixels).all() and single.pixels.ndim == 3
    wide = np.pad(frames, ((0, 0), (32, 32), (32, 32)), mode="reflect")
    for row, views in zip(store.manifest.itertuples(), store.pixels, strict=True):
        for k, view in zip((1, 2, 4), views, strict=True):
            half = k * SIZE // 2
            y, x = int(row.y) + 32, int(row.x) + 32
            window = wide[row.frame, y - half : y + half, x - half : x + half]
            mean = window.reshape(SIZE, k, SIZE, k).mean((1, 3))
            assert np.abs(view - mean).max() <= 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scales": [2, 4]}, "from 1 up"),
        ({"scales": [1, 4, 2]}, "from 1 up"),
        ({"scales": []}, "from 1 up"),
        ({"scales": [1, 2], "patch_size": 15}, "expected an even size"),
        ({"places": "spiral"}, "expected one of random"),
        ({"stride": 0}, "expected 1 or more"),
        ({"every": 0}, "expected 1 or more"),
        ({"um_per_px": -1.0}, "expected above 0"),
        ({"debris_weight": 0}, "expected 1 or more"),
        ({"patches_per_movie": 0}, "expected 1 or more"),
    ],
)
def test_more_settings_out_of_range(tmp_path, map_of_two, change, says):
    _movie(tmp_path / "a.tif", _noise(map_of_two.shape))
    _maps(tmp_path / "a_classes.tif", map_of_two)
    with pytest.raises(UserError, match=says):
        extract(tmp_path, tmp_path / "s", replace(SETTINGS, **change), classes=NAMES)
    assert not (tmp_path / "s").exists()


def test_a_movie_without_maps_is_left_out_with_a_notice(tmp_path, map_of_two):
    for name in "ab":
        _movie(tmp_path / f"{name}.tif", _noise(map_of_two.shape))
    _maps(tmp_path / "b_classes.tif", map_of_two)
    with pytest.warns(UserWarning, match="1 of 2 movies have no class maps.*a.tif"):
        store = extract(tmp_path, tmp_path / "s", SETTINGS, classes=NAMES)
    assert set(store.manifest["group"]) == {"b"}


def test_debris_weighs_as_much_as_told(tmp_path):
    spot = np.zeros((1, 60, 60), np.uint8)
    spot[0, 27:33, 27:33] = 1  # 36 of 256 pixels
    _movie(tmp_path / "a.tif", _noise(spot.shape))
    _maps(tmp_path / "a_classes.tif", spot)
    assert len(extract(tmp_path, tmp_path / "s", SETTINGS, classes=["debris", "b"]))
    with pytest.raises(UserError, match="expected at least one"):
        plain = replace(SETTINGS, debris_weight=1)
        extract(tmp_path, tmp_path / "s", plain, classes=["debris", "b"])
