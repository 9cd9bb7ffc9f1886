"""From every way to labels to a store, a trained trial and a class map, in small; several scales included."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from stemcell_lit import __main__ as cli
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.data.augment import POLICIES, albumentations_policy, augment_batch
from stemcell_lit.experiment.trial import prepare
from stemcell_lit.patches.store import PatchStore, reduce_pixels
from stemcell_lit.predict.mapper import Mapper
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store

SIZE = 16


def write_movie(path, classes, seed=0):
    """Dense is fine-grained, spread coarse; both over a gray ground."""
    rng = np.random.default_rng(seed)
    shape = classes.shape
    fine = rng.normal(150, 50, shape)
    coarse = np.kron(
        rng.normal(90, 50, (shape[0], shape[1] // 8, shape[2] // 8)), np.ones((1, 8, 8))
    )
    frames = np.where(classes == 1, fine, np.where(classes == 2, coarse, 120))
    metadata = {"axes": "TYX", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    metadata |= {"TimeIncrement": 2.0, "TimeIncrementUnit": "h"}
    pixels = frames.clip(0, 255).astype(np.uint8)
    tifffile.imwrite(path, pixels, ome=True, photometric="minisblack", metadata=metadata)
    tifffile.imwrite(path.with_name(f"{path.stem}_classes.tif"), classes, photometric="minisblack")
    return pixels


@pytest.fixture
def movies(tmp_path):
    """Four movies of two frames, 96 x 96 px, half dense and half spread."""
    folder = tmp_path / "movies"
    folder.mkdir()
    for i in range(4):
        classes = np.ones((2, 96, 96), np.uint8)
        classes[:, :, 48:] = 2
        write_movie(folder / f"m{i}.tif", classes if i % 2 else classes[:, :, ::-1], i)
    return folder


def main(*args):
    cli.main([str(a) for a in args])


@pytest.mark.parametrize("scales", ["[1]", "[1,2,4]"])
def test_from_movies_with_class_maps_to_a_class_map(tmp_path, movies, capsys, scales):
    store, out = tmp_path / "store", tmp_path / "res"
    main(
        *("import", f"source={movies}", f"store={store}", "classes=[dense,spread]"),
        *(f"extraction.scales={scales}", f"extraction.patch_size={SIZE}", "extraction.purity=0.9"),
    )
    assert "unsure: " in capsys.readouterr().out
    train = [
        "profile=smoke",
        "hierarchy=flat",
        "trainer=cpu",
        "logger=disabled",
        "split.folds=2",
        f"out={out}",
    ]
    main("run", *train, f"data.store={store}", "data.patch_size=8", "stage.images=400")
    trial = next((out / "trials").iterdir())
    model = TrainedHierarchy.load(trial / "model")
    views = len(json.loads(scales))
    assert list(model.scales) == json.loads(scales) and model.image_size == 8
    assert next(model.stages["root"].network.parameters()).shape[1] == views
    main("evaluate", f"checkpoint={trial / 'model'}", f"store={store}", f"out={tmp_path / 'eval'}")
    main(
        *("predict", f"movie={movies / 'm0.tif'}", f"checkpoint={trial / 'model'}"),
        *(f"out={tmp_path / 'maps'}", "colonies=none", "stride=8"),
    )
    record = json.loads((tmp_path / "maps" / "predict.json").read_text())
    assert record["exact"] == (views > 1)
    assert any("cut out" in n for n in record["notices"]) == (views > 1)
    # the windows of predict are the patches of the store: the same view, the same answer
    rows = PatchStore.open(store).manifest.query("group == 'm0' and frame == 0")
    with tifffile.TiffFile(movies / "m0.tif") as tiff:
        frame = tiff.pages[0].asarray()
    mapper = Mapper(model, frame.shape, 1.0, 2, exact=True)
    p = mapper.probabilities(frame)
    some = rows[(rows["y"] % 2 == 0) & (rows["x"] % 2 == 0)]
    assert len(some) > 3
    pixels = PatchStore.open(store).pixels[some.index.to_numpy()]
    expected = model.network_probabilities(pixels, np.full(len(some), np.nan))
    y, x = ((some[c].to_numpy() - SIZE / 2).astype(int) // 2 for c in ("y", "x"))
    # a view reduced twice is rounded twice: one gray level, at a border mirrored at another pixel
    assert np.abs(p[y, x] - expected).max() < (0.05 if views > 1 else 1e-5)


def test_generators_refuse_several_scales_and_say_what_works(tmp_path, movies, capsys):
    store = tmp_path / "store"
    cut = [f"extraction.patch_size={SIZE}", "extraction.scales=[1,2]"]
    main("import", f"source={movies}", f"store={store}", "classes=[dense,spread]", *cut)
    with pytest.raises(SystemExit) as end:
        main(
            *(
                "run",
                "profile=smoke",
                "hierarchy=flat",
                "trainer=cpu",
                "logger=disabled",
                "method=flat_gan",
                "mix=ratio",
                "mix.amount=1",
            ),
            *("split.folds=2", f"data.store={store}", "data.patch_size=8", f"out={tmp_path / 'r'}"),
        )
    said = capsys.readouterr().err
    assert end.value.code == 2 and "generators make patches at one scale" in said
    assert "time_only" in said


def test_a_model_refuses_a_store_of_other_scales(tmp_path, movies, capsys):
    for name, scales in (("one", "[1]"), ("two", "[1,2]")):
        main(
            *("import", f"source={movies}", f"store={tmp_path / name}", "classes=[dense,spread]"),
            *(f"extraction.patch_size={SIZE}", f"extraction.scales={scales}"),
        )
    main(
        *(
            "run",
            "profile=smoke",
            "hierarchy=flat",
            "trainer=cpu",
            "logger=disabled",
            "split.folds=2",
        ),
        *(f"data.store={tmp_path / 'one'}", "data.patch_size=8", f"out={tmp_path / 'res'}"),
    )
    model = next((tmp_path / "res" / "trials").iterdir()) / "model"
    with pytest.raises(SystemExit):
        main(
            "evaluate", f"checkpoint={model}", f"store={tmp_path / 'two'}", f"out={tmp_path / 'e'}"
        )
    assert "scales [1, 2], the model learned from [1]" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_a_trial_is_named_by_the_content_of_its_store(tmp_path):
    """Another store in the same folder of results must not find the first one's result."""
    names = []
    for seed in (0, 0, 1):
        make_store(tmp_path / "store", seed=seed)
        args = [f"data.store={tmp_path / 'store'}", f"out={tmp_path / 'res'}", "hierarchy=flat"]
        names.append(prepare(typed(compose("run", args))).name)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("policy", ["turns", "strong"])
def test_augmentation_treats_all_scales_of_a_patch_alike(policy):
    """Equal views stay equal; and not because nothing was done."""
    patch = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), np.uint8)
    batch = torch.from_numpy(patch).float().div(127.5).sub(1).expand(6, 3, SIZE, SIZE)
    done = augment_batch(batch, POLICIES[policy], torch.Generator().manual_seed(0))
    assert (done == done[:, :1]).all() and not torch.equal(done[0], done[1])
    pipeline = albumentations_policy(POLICIES[policy], SIZE, 0)
    stack = np.repeat(patch[:, :, None], 3, 2)
    images = [pipeline(image=stack)["image"] for _ in range(6)]
    assert all((image == image[:, :, :1]).all() for image in images)
    assert any((image != stack).any() for image in images)


def test_loader_processes_serve_all_scales(tmp_path, movies):
    main(
        *("import", f"source={movies}", f"store={tmp_path / 's'}", "classes=[dense,spread]"),
        *(f"extraction.patch_size={SIZE}", "extraction.scales=[1,2]"),
    )
    from stemcell_lit.data.datamodule import PatchDataModule, Scope
    from stemcell_lit.data.splits import make_split
    from stemcell_lit.settings.group_keys import SplitConfig

    store = PatchStore.open(tmp_path / "s")
    split = make_split(store, SplitConfig(folds=2))
    for pixels in ("resident", "workers"):
        data = PatchDataModule(
            store,
            split,
            Scope.of_classes(store.classes),
            pixels=pixels,
            augment="none",
            patch_size=8,
        )
        batch = next(iter(data.train_dataloader()))
        assert batch["pixels"].shape[1:] == (2, 8, 8) and data.channels == 2 and data.size == 8
        bank = reduce_pixels(store.pixels[data.rows["train"]], 8)
        first = np.rint((batch["pixels"][0].numpy() + 1) * 127.5).astype(np.uint8)
        assert (bank == first).all((1, 2, 3)).any()


def test_tiles_of_several_movies_are_told_apart_by_a_column(tmp_path, movies, capsys):
    rows = [
        {"movie": f"m{i}.tif", "frame": 1, "y": 8, "x": x, "size": 16, "label": label}
        for i in range(2)
        for x, label in ((0, "a"), (40, "b"), (80, "unsure"))
    ]
    table = tmp_path / "tiles.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    main("import", f"source={movies}", f"table={table}", f"store={tmp_path / 's'}")
    assert "unsure: 2 places" in capsys.readouterr().out
    store = PatchStore.open(tmp_path / "s")
    assert store.manifest["group"].tolist() == ["m0", "m0", "m1", "m1"]
    for row, patch in zip(store.manifest.itertuples(), store.pixels, strict=True):
        frame = tifffile.imread(movies / f"{row.group}.tif")[1]
        assert (frame[8:24, int(row.x) - 8 : int(row.x) + 8] == patch).all()
    assert (store.unsure["x"] == 88).all() and set(store.unsure["group"]) == {"m0", "m1"}
    # no column of coverage, but the size of a pixel: the foreground comes from the colonies
    assert store.manifest["foreground"].between(0, 1).all()


def test_tiles_at_another_pixel_size_several_scales_and_each_nth_frame(tmp_path, movies):
    movie = movies / "m0.tif"
    rows = [
        {"frame": t, "y": 8, "x": x, "size": 32, "coverage": 0.5, "label": "ab"[x > 20]}
        for t in (0, 1)
        for x in (0, 10, 30, 64)
    ]
    table = tmp_path / "tiles.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    main(
        *("import", f"source={movie}", f"table={table}", f"store={tmp_path / 's'}"),
        *("extraction.um_per_px=2", "extraction.scales=[1,2]", "extraction.every=2"),
    )
    store = PatchStore.open(tmp_path / "s")
    assert store.pixels.shape == (4, 2, 16, 16) and set(store.manifest["frame"]) == {0}
    frame = tifffile.imread(movie)[0].astype(float)
    for row, views in zip(store.manifest.itertuples(), store.pixels, strict=True):
        left = int(row.x) - 16
        mean = frame[8:40, left : left + 32].reshape(16, 2, 16, 2).mean((1, 3))
        assert np.abs(views[0] - mean).max() <= 0.5
        if left == 30:  # the wide view lies inside the frame, but for 8 rows above
            wide = frame[:56, 14:78].reshape(14, 4, 16, 4).mean((1, 3))
            assert np.abs(views[1][2:] - wide).max() <= 1
    assert store.info["um_per_px"] == 2.0


def test_crops_are_resampled_to_a_given_pixel_size(tmp_path):
    from PIL import Image

    fine = np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)
    for label in ("a", "b"):
        (tmp_path / "crops" / label).mkdir(parents=True)
        Image.fromarray(fine).save(tmp_path / "crops" / label / "0.png")
    args = [f"source={tmp_path / 'crops'}", f"store={tmp_path / 's'}", "extraction.um_per_px=1.5"]
    with pytest.raises(SystemExit):
        main("import", *args)
    main("import", *args, "um_per_px=0.5")
    store = PatchStore.open(tmp_path / "s")
    mean = fine.reshape(8, 3, 8, 3).mean((1, 3))
    assert store.info["um_per_px"] == 1.5 and np.abs(store.pixels - mean).max() <= 0.5


@pytest.mark.parametrize(
    ("classes", "tree"),
    [
        (["differentiated", "debris", "dense", "spread"], "colony"),
        (["background", "sparse", "intermediate", "dense"], "density"),
        (["debris", "dense"], None),
    ],
)
def test_the_next_command_names_a_tree_over_exactly_these_classes_or_says_what_is_left_out(
    tmp_path, capsys, classes, tree
):
    for i, name in enumerate(classes):
        (tmp_path / "crops" / name).mkdir(parents=True)
        noise = np.random.default_rng(i).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(noise).save(tmp_path / "crops" / name / "a.png")
    main("import", f"source={tmp_path / 'crops'}", f"store={tmp_path / 'store'}")
    said = capsys.readouterr().out
    assert f"hierarchy={tree or 'flat'} " in said
    assert ("are left out" in said) == (tree is None)
