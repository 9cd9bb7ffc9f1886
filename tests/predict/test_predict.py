import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from stemcell_lit import __main__ as cli
from stemcell_lit.classify.classic import ClassicStage
from stemcell_lit.classify.features import features
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.commands import settings_of
from stemcell_lit.data.augment import to_float
from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import foreground
from stemcell_lit.movies.frames import Frames, open_frames
from stemcell_lit.patches.store import reduce_pixels
from stemcell_lit.predict import dense
from stemcell_lit.predict.command import predict
from stemcell_lit.predict.dense import DenseStage, usable_stride
from stemcell_lit.predict.mapper import Mapper
from stemcell_lit.settings.colony_keys import ColoniesConfig
from stemcell_lit.settings.command_keys import PredictCommand
from stemcell_lit.settings.group_keys import (
    ClassicConfig,
    HierarchyConfig,
    StageConfig,
    TemporalConfig,
)

CLASSES = ["dark", "bright"]
NONE = ColoniesConfig(method="none")


def make_stage(network="small", groups=("a", "b", "c"), width=4, turns=False):
    """Random weights and, so that folding them is put to the test, random normalisation."""
    settings = asdict(StageConfig(network=network, width=width, turns=turns))
    stage = StageModule(settings, "root", {g: [g] for g in groups}, [1] * len(groups), 32).eval()
    generator = torch.Generator().manual_seed(1)
    for layer in stage.network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.3, 0.3, generator=generator)
            layer.running_var.uniform_(0.3, 1.5, generator=generator)
            layer.weight.data.fill_(1)  # a residual block begins with 0
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data *= 2.5  # or deep random networks answer the same to everything
    return stage


def without_neighbours(stage):
    """Leaves only the middle of each kernel: no pixel sees another, so padding plays no part."""
    for layer in stage.network.modules():
        if isinstance(layer, nn.Conv2d):
            middle = 4 * layer.weight.data[:, :, 1:2, 1:2]
            layer.weight.data.zero_()[:, :, 1:2, 1:2] = middle
    return stage


def bright_or_dark():
    """Tells whether a window's mean brightness above half is more than a quarter of the rest."""
    stage = make_stage(groups=CLASSES)
    for layer in stage.network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.zero_()[0, 0, 1, 1] = 1.0
        elif isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.zero_()
            layer.running_var.fill_(1 - layer.eps)
        elif isinstance(layer, nn.Linear):
            layer.weight.data.zero_()[:, 0] = torch.tensor([-9.0, 9.0])
            layer.bias.data = torch.tensor([4.5, -4.5])
    return stage


def make_model(um_per_px=2.0, temporal="none", moves=None, stage=None):
    config = HierarchyConfig(moves=moves)
    hierarchy = Hierarchy.build(CLASSES, config, TemporalConfig(kind=temporal), flat=True)
    labels = np.array([0, 0, 1, 1, 0, 1])
    hours, frames = np.arange(6.0), np.arange(6)
    hierarchy = hierarchy.fit(labels, hours, np.array(["t1"] * 4 + ["t2"] * 2), frames)
    return TrainedHierarchy(hierarchy, {"root": stage or bright_or_dark()}, 32, um_per_px)


def noise(*shape, seed=0):
    coarse = np.random.default_rng(seed).normal(120, 50, [-(-s // 4) for s in shape])
    for axis in range(len(shape)):
        coarse = np.repeat(coarse, 4, axis)
    return coarse[tuple(slice(s) for s in shape)].clip(0, 255).astype(np.uint8)


def movie_of(path, frames, um=1.0, hours=2.0):
    metadata = {"axes": "TYX"}
    if um:
        metadata |= {"PhysicalSizeX": um, "PhysicalSizeXUnit": "µm"}
        metadata |= {"PhysicalSizeY": um, "PhysicalSizeYUnit": "µm"}
    if hours:
        metadata |= {"TimeIncrement": hours, "TimeIncrementUnit": "h"}
    tifffile.imwrite(path, np.asarray(frames), ome=True, metadata=metadata)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    make_model().save(folder)
    return folder


@pytest.fixture
def movie(tmp_path):
    """Dark, then the left half bright, then bright: 96 x 128 px at 1 um, half the model's pixels."""
    frames = np.full((3, 96, 128), 40, np.uint8)
    frames[1, :, :64] = 240
    frames[2] = 240
    return movie_of(tmp_path / "movie.ome.tif", frames)


def run(movie, checkpoint, out, **more):
    more.setdefault("colonies", NONE)
    command = PredictCommand(
        movie=str(movie), checkpoint=str(checkpoint), out=str(out), threads=1, **more
    )
    return predict(command)


def cut(image, stage, stride):
    windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32))[::stride, ::stride]
    return stage.probabilities(windows.reshape(-1, 32, 32)).reshape(*windows.shape[:2], -1)


@pytest.mark.parametrize("tile", [1, 24, 512])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_shared_features_equal_windows_cut_out_where_padding_plays_no_part(
    stride, tile, monkeypatch
):
    monkeypatch.setattr(dense, "TILE_PX", tile)
    stage, image = without_neighbours(make_stage()), noise(77, 91)
    expected = cut(image, stage, stride)
    found = DenseStage(stage, 32, stride).probabilities(image, np.ones(expected.shape[:2], bool))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected.std(axis=(0, 1)).max() > 0.01  # windows do differ


@pytest.mark.parametrize(("network", "pool"), [("small", 8), ("vgg", 32), ("residual", 8)])
def test_padding_behind_a_windows_border_is_the_only_difference(network, pool, monkeypatch):
    """A window cut out together with what lies around it agrees with the shared features."""
    monkeypatch.setattr(dense, "TILE_PX", 32)
    stage = make_stage(network, width=2)
    shared = DenseStage(stage, 32, pool)
    around = shared.halo * pool
    image = noise(32 + 2 * around + pool, 32 + 2 * around + 2 * pool)
    count = tuple((side - 32) // pool + 1 for side in image.shape)
    found = shared.probabilities(image, np.ones(count, bool))
    layers = dense._leaves(stage.network)
    at = [isinstance(layer, nn.AdaptiveAvgPool2d) for layer in layers].index(True)
    body, head = nn.Sequential(*layers[:at]), nn.Sequential(*layers[at + 1 :])
    for y, x in ((around, around), (around + pool, around + 2 * pool)):
        wide = image[y - around : y + 32 + around, x - around : x + 32 + around]
        with torch.inference_mode():
            features = body(to_float(torch.from_numpy(wide.copy())[None]))
            middle = features[:, :, shared.halo : -shared.halo, shared.halo : -shared.halo]
            expected = torch.softmax(head(middle.mean((2, 3))), 1)[0].numpy()
        np.testing.assert_allclose(found[y // pool, x // pool], expected, atol=1e-5)


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("stride", [2, 4, 8, 12])
def test_without_padding_shared_features_are_windows_cut_out(stride, turns, monkeypatch):
    monkeypatch.setattr(dense, "TILE_PX", 40)  # several tiles
    stage, image = make_stage("valid", turns=turns), noise(101, 118)
    expected = cut(image, stage, stride)
    shared = DenseStage(stage, 32, stride)
    found = shared.probabilities(image, np.ones(expected.shape[:2], bool))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    turned = cut(image, make_stage("valid", turns=not turns), stride)
    assert np.abs(turned - expected).max() > 0.01  # the mean over turns is another answer
    assert expected.std((0, 1)).min() > 0.02  # not the same answer everywhere


def test_a_network_without_padding_says_how_small_a_patch_may_be():
    with pytest.raises(UserError, match="=valid: patches of 16 px leave nothing .* expected 30 or"):
        StageModule(
            asdict(StageConfig(network="valid")), "root", {"a": ["a"], "b": ["b"]}, [1, 1], 16
        )
    stage = make_stage("valid")
    assert stage(torch.zeros(2, 1, 30, 30)).shape == (2, 3)


def test_a_frame_of_one_window_is_that_window():
    stage, image = make_stage(), noise(32, 32)
    found = DenseStage(stage, 32, 8).probabilities(image, np.ones((1, 1), bool))
    np.testing.assert_allclose(found[0, 0], stage.probabilities(image[None])[0], atol=1e-5)


def test_exact_is_what_cutting_and_reducing_patches_gives():
    model, frame = make_model(um_per_px=2.0, stage=make_stage(groups=CLASSES)), noise(128, 96)
    mapper = Mapper(model, (128, 96), 1.0, 16, exact=True)
    patches = np.lib.stride_tricks.sliding_window_view(frame, (64, 64))[::16, ::16]
    expected = model.network_probabilities(
        reduce_pixels(patches.reshape(-1, 64, 64), 32), np.zeros(15)
    )
    assert mapper.grid == (5, 3)
    np.testing.assert_allclose(mapper.probabilities(frame).reshape(15, -1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("stride", "pool", "expected"),
    [
        (16, 8, 16),
        (19, 8, 16),
        (21, 8, 24),
        (8, 8, 8),
        (5, 8, 4),
        (1, 8, 1),
        (0.2, 8, 1),
        (3, 1, 3),
    ],
)
def test_the_nearest_stride_that_the_pools_allow_is_taken(stride, pool, expected):
    assert usable_stride(stride, pool) == expected


def test_maps_have_the_movies_shape_and_order(tmp_path, movie, checkpoint):
    out = run(movie, checkpoint, tmp_path / "out")
    with tifffile.TiffFile(out / "classes.ome.tif") as tiff:
        maps, xml, axes = tiff.asarray(), tiff.ome_metadata, tiff.series[0].axes
    assert maps.shape == (3, 96, 128) and maps.dtype == np.uint8 and axes == "TYX"
    assert (maps[0] == 1).all() and (maps[2] == 2).all()
    # windows change their mind where half of them is bright, to a stride
    assert (maps[1, :, :48] == 2).all() and (maps[1, :, 80:] == 1).all()
    assert 'PhysicalSizeX="1.0"' in xml and 'TimeIncrement="2.0"' in xml
    assert "0 background; 1 dark; 2 bright" in xml
    names = {
        "classes.ome.tif",
        "overlay.png",
        "colonies.csv",
        "shares.csv",
        "classes.csv",
        "shares.png",
        "predict.json",
    }
    assert {p.name for p in out.glob("[!.]*")} == names
    for name in ("overlay.png", "shares.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 100


def test_shares_sum_to_1_and_agree_with_the_maps(tmp_path, movie, checkpoint):
    out = run(movie, checkpoint, tmp_path / "out", start_h=10.0)
    shares, colonies = pd.read_csv(out / "shares.csv"), pd.read_csv(out / "colonies.csv")
    maps = tifffile.imread(out / "classes.ome.tif")
    names = [f"share/{c}" for c in CLASSES]
    for table in (shares, colonies):
        np.testing.assert_allclose(table[names].sum(axis=1), 1, atol=1e-6)
        assert table["time_h"].tolist() == [10, 12, 14]
    np.testing.assert_allclose(shares["share/bright"], (maps == 2).mean((1, 2)), atol=1e-6)
    assert colonies["area_um2"].tolist() == [96 * 128] * 3
    assert colonies["class"].tolist()[::2] == ["dark", "bright"]


def test_background_lies_outside_the_colonies(tmp_path, checkpoint):
    y, x = np.mgrid[:120, :120]
    frames = np.full((2, 120, 120), 100.0)
    for i in range(2):
        for cy, cx in ((30, 30 + 4 * i), (85, 80)):
            frames[i] += 120 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 60)
    frames = frames.astype(np.uint8)
    movie = movie_of(tmp_path / "movie.ome.tif", frames)
    out = run(movie, checkpoint, tmp_path / "out", colonies=ColoniesConfig())
    maps = tifffile.imread(out / "classes.ome.tif")
    for frame, found in zip(frames, maps, strict=True):
        mask = foreground(frame, ColoniesConfig(), 1.0)
        assert 0.02 < mask.mean() < 0.5
        np.testing.assert_array_equal(found > 0, mask)
    colonies = pd.read_csv(out / "colonies.csv")
    assert colonies["track"].tolist() == [1, 1, 2, 2] and colonies["frame"].tolist() == [0, 1, 0, 1]
    assert colonies["area_px"].sum() == (maps > 0).sum()
    np.testing.assert_allclose(colonies[[f"share/{c}" for c in CLASSES]].sum(axis=1), 1, atol=1e-5)


def test_a_movie_without_colonies_is_background_throughout(tmp_path, checkpoint):
    movie = movie_of(tmp_path / "movie.ome.tif", np.full((2, 80, 80), 100, np.uint8))
    out = run(movie, checkpoint, tmp_path / "out", colonies=ColoniesConfig())
    assert not tifffile.imread(out / "classes.ome.tif").any()
    assert len(pd.read_csv(out / "colonies.csv")) == 0
    assert (pd.read_csv(out / "shares.csv")["colonies"] == 0).all()


def test_a_path_decides_the_classes_of_colonies(tmp_path, checkpoint):
    frames = np.full((4, 96, 96), 240, np.uint8)
    frames[0], frames[2] = 40, 185  # frame 2 alone looks dark, but bright may not turn dark
    movie = movie_of(tmp_path / "movie.ome.tif", frames)
    model = make_model(temporal="path", moves={"dark": ["bright"], "bright": []})
    model.save(checkpoint)
    with pytest.warns(UserWarning, match="not to the maps"):
        out = run(movie, checkpoint, tmp_path / "out")
    found = pd.read_csv(out / "colonies.csv")
    assert found["class"].tolist() == ["dark", "bright", "bright", "bright"]
    assert (tifffile.imread(out / "classes.ome.tif")[2] == 1).all()


def test_the_same_maps_give_the_same_file(tmp_path, checkpoint):
    make_model().save(checkpoint)
    movie = movie_of(tmp_path / "movie.ome.tif", noise(2, 96, 128))
    one, other = (run(movie, checkpoint, tmp_path / name) / "classes.ome.tif" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_a_prior_speaks_by_the_time_of_the_frame(tmp_path):
    model, frame = make_model(temporal="prior"), np.full((64, 64), 178, np.uint8)
    mapper = Mapper(model, frame.shape, 1.0)
    early, late, never = (float(mapper.probabilities(frame, h)[0, 0, 1]) for h in (0, 3, np.nan))
    assert early < never < late


def test_the_deviation_from_windows_cut_out_is_measured(tmp_path, checkpoint):
    make_model(stage=make_stage(groups=CLASSES)).save(checkpoint)
    movie = movie_of(tmp_path / "movie.ome.tif", noise(2, 96, 128))
    out = run(movie, checkpoint, tmp_path / "a", adjust=0)
    found = json.loads((out / "predict.json").read_text())["deviation"]
    assert found["windows"] == 2 * 15
    assert 0 < found["mean_abs_probability"] <= found["max_abs_probability"] <= 1
    exact = run(movie, checkpoint, tmp_path / "b", exact=True)
    assert json.loads((exact / "predict.json").read_text())["deviation"] is None


def test_adjusting_brings_the_shared_features_nearer_to_windows_cut_out(tmp_path, checkpoint):
    make_model(stage=make_stage(groups=CLASSES)).save(checkpoint)
    movie = movie_of(tmp_path / "movie.ome.tif", noise(4, 160, 176))
    found = []
    for adjust in (0, 1024):
        out = run(movie, checkpoint, tmp_path / f"out{adjust}", adjust=adjust)
        record = json.loads((out / "predict.json").read_text())
        found.append(record["deviation"]["mean_abs_probability"])
    assert found[1] < found[0]


def test_the_same_movie_gives_the_same_maps(tmp_path, movie, checkpoint):
    make_model(stage=make_stage(groups=CLASSES)).save(checkpoint)
    noisy = movie_of(tmp_path / "noisy.ome.tif", noise(2, 80, 96))
    one, two = (run(noisy, checkpoint, tmp_path / name) for name in "ab")
    for name in ("colonies.csv", "shares.csv", "predict.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    maps = [tifffile.imread(folder / "classes.ome.tif") for folder in (one, two)]
    np.testing.assert_array_equal(*maps)


def test_outputs_are_whole_or_absent(tmp_path, checkpoint):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(noise(80, 80, seed=i)).save(folder / f"t{i}.png")
    before = set(tmp_path.iterdir())
    whole = (folder / "t2.png").read_bytes()
    (folder / "t2.png").write_bytes(whole[: len(whole) // 2])
    args = [
        f"movie={folder}",
        f"checkpoint={checkpoint}",
        f"out={tmp_path / 'out'}",
        "colonies=none",
        "um_per_px=2",
    ]
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", *args])
    assert end.value.code == 2 and set(tmp_path.iterdir()) == before
    (folder / "t2.png").write_bytes(whole)
    cli.main(["predict", *args])
    kept = (tmp_path / "out" / "shares.csv").read_bytes()
    (folder / "t2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit):
        cli.main(["predict", *args])
    assert (tmp_path / "out" / "shares.csv").read_bytes() == kept
    assert set(tmp_path.iterdir()) == before | {tmp_path / "out"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["movie=nowhere.tif"], "nowhere.tif: no such file or folder"),
        (["checkpoint=nowhere"], "model.json: no such file; expected the `model` folder"),
        (["out=full"], "full: holds notes.txt, which is no part of a result of predict"),
        (["out=."], ".: is or contains the folder in which you work"),
        (["um_per_px=0.5"], "24 x 32 at the model's 2 um/px; expected at least 32 x 32"),
        (["um_per_px=-1"], "um_per_px=-1.0: expected above 0"),
        (["stride=0"], "stride=0: expected 1 or more"),
        (["adjust=-1"], "adjust=-1: expected 0 or more"),
        (["every=0"], "every=0: expected 1 or more"),
        (["panels=0"], "panels=0: expected 1 or more"),
        (["start_h=nan"], "start_h=nan: expected a finite number"),
        (["colonies=forest"], "colonies=forest needs annotated frames; give colonies.forest.movie"),
        (["colonies.method=magic"], "colonies.method=magic: expected one of contrast"),
        (["colonies=magic"], "contrast"),
        (["stride=wide"], "stride"),
    ],
)
def test_a_users_mistake_gets_one_message_and_leaves_nothing(
    args, says, tmp_path, movie, checkpoint, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    given = ["movie=movie.ome.tif", "checkpoint=model", "out=out"]
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", *given, *args])
    lines = capsys.readouterr().err.splitlines(keepends=True)
    message = "".join(line for line in lines if not line.startswith("predict: "))  # what it does
    assert end.value.code == 2 and "Traceback" not in message
    assert says in message, message
    assert message.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_each_nth_frame_is_mapped_and_keeps_its_number_and_time(tmp_path, checkpoint):
    frames = np.full((7, 96, 128), 40, np.uint8)
    frames[3:] = 240
    movie = movie_of(tmp_path / "m.ome.tif", frames, hours=2.0)
    out = run(movie, checkpoint, tmp_path / "out", every=3)
    with tifffile.TiffFile(out / "classes.ome.tif") as tiff:
        maps = tiff.asarray()
    assert maps.shape == (3, 96, 128) and [set(np.unique(m)) for m in maps] == [{1}, {2}, {2}]
    with open_frames(out / "classes.ome.tif") as written:
        assert written.hours_per_frame == pytest.approx(6.0) and written.um_per_px == 1.0
    shares, colonies = (pd.read_csv(out / f"{n}.csv") for n in ("shares", "colonies"))
    assert shares["frame"].tolist() == colonies["frame"].tolist() == [0, 3, 6]
    assert shares["time_h"].tolist() == colonies["time_h"].tolist() == [0, 6, 12]
    assert colonies["track"].nunique() == 1 and colonies["class"].tolist()[1:] == ["bright"] * 2
    assert json.loads((out / "predict.json").read_text())["every"] == 3


def test_no_frame_but_those_mapped_is_read_and_none_is_kept(tmp_path, checkpoint, monkeypatch):
    movie = movie_of(tmp_path / "m.ome.tif", noise(9, 64, 64))
    read, real = [], Frames.raw
    monkeypatch.setattr(Frames, "raw", lambda self, i: read.append(i) or real(self, i))
    run(movie, checkpoint, tmp_path / "out", every=4, adjust=0, panels=1)
    assert set(read) == {0, 4, 8} and len(read) == 3


def test_a_forest_finds_colonies_from_annotated_frames(tmp_path, checkpoint):
    from tests.movies.test_colonies import cells, f1, write_annotated

    colonies = write_annotated(tmp_path)
    frame, truth = cells(seed=7)
    movie = movie_of(tmp_path / "m.ome.tif", np.rint(255 * frame[None]).astype(np.uint8), um=1.6)
    out = run(movie, checkpoint, tmp_path / "out", colonies=colonies)
    maps = tifffile.imread(out / "classes.ome.tif").reshape(truth.shape)
    assert f1(maps > 0, truth) > 0.95
    record = json.loads((out / "predict.json").read_text())
    assert record["colonies"]["forest"]["movie"] == str(tmp_path / "few.tif")


def test_a_movie_without_its_pixel_size_is_refused_where_the_model_has_one(tmp_path, checkpoint):
    movie = tmp_path / "plain.tif"
    tifffile.imwrite(movie, noise(2, 64, 64))
    with pytest.raises(UserError, match=r"plain.tif does not tell the size of a pixel.*um_per_px"):
        run(movie, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(movie, checkpoint, tmp_path / "out", um_per_px=1.0)


def test_a_model_without_its_pixel_size_takes_movies_to_have_the_pixels_of_its_stored_patches(
    tmp_path, movie
):
    folder = tmp_path / "other"
    folder.mkdir()
    replace(make_model(um_per_px=None), reduced=2.0).save(folder)
    with pytest.warns(UserWarning, match=r"the patches that it learned from, 64 x 64 px each"):
        run(movie, folder, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert record["um_per_px"] == {"movie": 1.0, "model": None}
    assert record["windows"] == [3, 5] and record["stride_px"] == 16  # 48 x 64 px at half size


def test_a_model_with_classical_features_maps_windows_cut_out_and_says_so(tmp_path, movie):
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    pixels = (rng.normal(0, 8, (24, 32, 32)) + np.array([50, 220])[labels, None, None]).clip(0, 255)
    pixels = pixels.astype(np.uint8)
    x, settings = features(pixels), ClassicConfig()
    stage = ClassicStage.fit(x, labels, labels, CLASSES, settings, node="root", image_size=32)
    model = make_model(um_per_px=1.0, stage=stage)
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="classical features are measured window by window"):
        out = run(movie, tmp_path / "model", tmp_path / "out", stride=32)
    record = json.loads((out / "predict.json").read_text())
    assert record["exact"] and record["deviation"] is None
    found = tifffile.imread(out / "classes.ome.tif")
    frames = tifffile.imread(movie)
    for frame, classes in zip(frames, found, strict=True):
        p = cut(frame, model.stages["root"], 32)
        expected = np.repeat(np.repeat(p.argmax(2) + 1, 32, 0), 32, 1)
        np.testing.assert_array_equal(classes, expected)


def test_annotate_import_and_predict_find_the_same_colonies_by_default():
    words = {
        "annotate": ["source=m", "out=o"],
        "import": ["source=m", "store=s"],
        "predict": ["movie=m", "checkpoint=c", "out=o"],
    }
    found = [settings_of(command, given).colonies for command, given in words.items()]
    assert found[0] == found[1] == found[2] and found[0].name == "colony"


def test_a_movie_is_put_on_the_scale_of_the_crops_that_the_model_learned_from(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    replace(make_model(), scaling=(1000.0, 3550.0)).save(folder)
    assert TrainedHierarchy.load(folder).scaling == (1000.0, 3550.0)
    dim = np.full((2, 64, 64), 1400, np.uint16)  # 40 of 255 on that scale, a constant on its own
    dim[1, :, :32] = 3400
    movie = movie_of(tmp_path / "film.ome.tif", dim)
    with pytest.warns(
        UserWarning, match="intensities 1000 to 3550 of film.ome.tif become 0 to 255"
    ):
        scaled = run(movie, folder, tmp_path / "a")
    eight = movie_of(tmp_path / "eight.ome.tif", ((dim - 1000.0) / 10).astype(np.uint8))
    make_model().save(tmp_path)
    plain = run(eight, tmp_path, tmp_path / "b")
    maps = [tifffile.imread(out / "classes.ome.tif") for out in (scaled, plain)]
    assert np.array_equal(*maps)
    other = movie_of(tmp_path / "other.ome.tif", (dim // 100).astype(np.uint16))
    with pytest.raises(UserError, match="lie outside those of the crops"):
        run(other, folder, tmp_path / "c")
    with pytest.warns(UserWarning, match="is 8 bit: its values are taken as they are"):
        run(eight, folder, tmp_path / "d")
