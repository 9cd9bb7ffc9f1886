"""What a lab's disk holds when things went wrong: one message, status 2, and nothing half-written."""

import json
import shutil
import struct

import numpy as np
import pandas as pd
import pytest
import tifffile
from omegaconf import OmegaConf
from PIL import Image

from stemcell_lit import __main__ as cli
from stemcell_lit import commands
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store
from tests.predict.test_predict import make_model, noise

SHAPE = (4, 64, 96)


def stack(path, frames=None, **more):
    frames = noise(*SHAPE) if frames is None else frames
    tifffile.imwrite(path, frames, photometric="minisblack", **more)
    return path


def folder(path, frames, suffix=".png"):
    path.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"t{i}{suffix}")
    return path


def cut_short(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def damaged_strip(path, compression):
    """Whole as a file, but the data of frame 2 is overwritten."""
    stack(path, compression=compression, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[2]
        at, count = page.dataoffsets[0], page.databytecounts[0]
    raw = bytearray(path.read_bytes())
    raw[at : at + count] = b"\x55" * count
    path.write_bytes(raw)
    return path


def strip_beyond_the_end(path):
    stack(path, compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[1].tags["StripOffsets"]
        at, size = tag.offset + 8, path.stat().st_size
    raw = bytearray(path.read_bytes())
    raw[at : at + 4] = struct.pack("<I", size + 1000)
    path.write_bytes(raw)
    return path


def with_nan(path):
    frames = noise(*SHAPE).astype(np.float32)
    frames[2, 3, 4] = np.nan
    return stack(path, frames)


def mixed_sizes(path):
    frames = list(noise(*SHAPE))
    return folder(path, [*frames, frames[0][:50]])


def mixed_types(path):
    made = folder(path, noise(*SHAPE))
    Image.fromarray(noise(*SHAPE)[0].astype(np.uint16)).save(made / "t9.png")
    return made


def pages_of_two_sizes(path):
    with tifffile.TiffWriter(path) as writer:
        for frame in (noise(64, 96), noise(50, 96)):
            writer.write(frame, metadata=None, photometric="minisblack")
    return path


def two_channels(path):
    return stack(path, noise(8, 64, 96).reshape(4, 2, 64, 96), imagej=True)


BAD_MOVIES = {
    "absent": (lambda p: p, "no such file"),
    "empty file": (lambda p: p.touch() or p, "empty"),
    "text": (lambda p: p.write_text("I am no TIFF") and p, "not a whole TIFF"),
    "truncated": (lambda p: cut_short(stack(p)), "truncated"),
    "truncated lzw": (lambda p: cut_short(stack(p, compression="lzw")), "truncated"),
    "truncated jpeg": (lambda p: cut_short(stack(p, compression="jpeg")), "truncated"),
    "damaged zlib": (lambda p: damaged_strip(p, "zlib"), "frame 2: cannot be decoded"),
    "damaged jpeg": (lambda p: damaged_strip(p, "jpeg"), "frame 2: cannot be decoded"),
    "strip gone": (strip_beyond_the_end, "frame 1"),
    "NaN": (with_nan, "frame 2: 1 of 6144 pixels are NaN"),
    "pages of two sizes": (pages_of_two_sizes, "different shapes"),
    "channels": (two_channels, "one channel"),
    "complex": (lambda p: stack(p, noise(*SHAPE).astype(np.complex64)), "complex64"),
    "too small": (lambda p: stack(p, noise(4, 12, 12)), ""),
    "empty folder": (lambda p: p.with_suffix("").mkdir() or p.with_suffix(""), ""),
    "mixed sizes": (lambda p: mixed_sizes(p.with_suffix("")), "t4.png: found uint8 50 x 96"),
    "mixed types": (lambda p: mixed_types(p.with_suffix("")), "t9.png: found uint16"),
}


@pytest.fixture(scope="module")
def bases():
    return {
        name: compose(name, []) for name in ("predict", "annotate", "import", "evaluate", "run")
    }


@pytest.fixture
def place(tmp_path, monkeypatch, bases):
    """A folder with a model. Hydra's half second a call is spared: its own tests are elsewhere."""

    def compose(name, overrides):
        return OmegaConf.merge(bases[name], OmegaConf.from_dotlist(overrides))

    monkeypatch.setattr(commands, "compose", compose)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    make_model(um_per_px=1.0).save(tmp_path / "model")
    return tmp_path


def refused(args, says, place, capsys):
    """The one line said; status 2; the disk as before."""
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in args])
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line and not line.startswith(("note: ", "predict: "))]
    assert end.value.code == 2 and len(errors) == 1, lines
    assert errors[0].startswith(f"stemcell-lit {args[0]}: ") and says in errors[0], errors
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*")} == before
    return errors[0]


def command(name, movie, place):
    """A command that would work on a good movie."""
    if name == "predict":
        model = ["checkpoint=model", "um_per_px=1", "hours_per_frame=1"]
        return ["predict", f"movie={movie}", *model, "out=out", "colonies=none"]
    if name == "annotate":
        cut = ["um_per_px=1.6", "size=16", "foreground=0.01", "kind=movie"]
        return ["annotate", f"source={movie}", "out=out", "classes=[a,b]", *cut]
    if name == "import tiles":
        rows = [
            {"frame": t, "y": 0, "x": x, "size": 16, "label": "ab"[x > 0]}
            for t in range(4)
            for x in (0, 48)
        ]
        pd.DataFrame(rows).to_csv(place / "tiles.csv", index=False)
        return ["import", f"source={movie}", "table=tiles.csv", "store=out"]
    maps = np.ones(SHAPE, np.uint8)
    maps[:, :, 48:] = 2
    stack(place / "labels.tif", maps)
    cut = ["extraction.patch_size=16", "blocks=2"]
    return ["import", f"source={movie}", "table=labels.tif", "classes=[a,b]", "store=out", *cut]


@pytest.mark.parametrize("name", ["predict", "annotate", "import tiles", "import maps"])
@pytest.mark.parametrize("kind", list(BAD_MOVIES))
def test_a_bad_movie_gets_one_message_and_leaves_nothing(place, capsys, kind, name):
    make, says = BAD_MOVIES[kind]
    movie = make(place / "movie.tif").relative_to(place)
    said = refused(command(name, movie, place), says, place, capsys)
    assert "movie" in said or "t4.png" in said


@pytest.mark.parametrize("name", ["predict", "import tiles", "import maps"])
def test_the_same_commands_work_on_a_good_movie(place, capsys, name):
    cli.main(command(name, stack(place / "movie.tif").relative_to(place), place))
    assert (place / "out").is_dir()


def tiles(**change):
    rows = {"frame": [0, 1], "y": [0, 8], "x": [0, 16], "size": [16, 16], "label": ["a", "b"]}
    rows |= change
    return pd.DataFrame({k: v for k, v in rows.items() if v is not None}).to_csv(index=False)


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("", [], "is empty; expected columns"),
        ("\x00\x01", [], "no such column"),
        (tiles(label=None), [], "'label' is missing"),
        (tiles(frame=None), [], "'frame' is missing"),
        (tiles(frame=[0, 4]), [], "line 3: frame 4 is not there"),
        (tiles(x=[0, 90]), [], "line 3: tile at y 8, x 90"),
        (tiles(y=[-1, 0]), [], "line 2, column y"),
        (tiles(size=[16, 18]), [], "expected one size"),
        (tiles(size=[0, 0]), [], "at least 8"),
        (tiles(size=["big", "big"]), [], "line 2, column size"),
        (tiles(coverage=["much", "little"]), [], "line 2, column coverage"),
        (tiles(label=["unsure"] * 2), [], "all of its 2 patches are unsure"),
        (tiles(), ["classes=[a,c]"], "found the label 'b', expected one of classes=['a', 'c']"),
        (tiles(), ["classes=[a,b,c]"], "no patch is labelled 'c'"),
        (tiles(movie=["movie.tif", "other.tif"]), [], "names the movie 'other.tif'"),
        (tiles(), ["extraction.every=0"], "extraction.every=0: expected 1 or more"),
        (tiles(frame=[1, 1]), ["extraction.every=2"], "no tile lies in each 2. frame"),
        (tiles(), ["extraction.um_per_px=2"], "does not tell the size of a pixel"),
        (tiles(), ["extraction.scales=[2]"], "from 1 up"),
        (tiles(), ["blocks=0"], "blocks=0: expected 1 or more"),
    ],
)
def test_a_bad_table_of_tiles(place, capsys, text, more, says):
    stack(place / "movie.tif")
    (place / "tiles.csv").write_text(text)
    args = ["import", "source=movie.tif", "table=tiles.csv", "store=out", *more]
    if says == "no such column":
        says = "tiles.csv"
    refused(args, says, place, capsys)


def value(n):
    maps = np.ones(SHAPE, np.uint8)
    maps[3, 5, 5] = n
    return maps


BAD_MAPS = {
    "another size": (lambda p: stack(p, np.ones((4, 60, 96), np.uint8)), "found (4, 60, 96)"),
    "fewer frames": (
        lambda p: stack(p, np.ones((3, 64, 96), np.uint8)),
        "found 3 maps for the 4 frames",
    ),
    "unknown value": (lambda p: stack(p, value(7)), "found class 7 in frame 3, expected 0 to 2"),
    "negative": (lambda p: stack(p, value(0).astype(np.int16) - 1), "found class -1 in frame 3"),
    "float": (lambda p: stack(p, value(1).astype(np.float32)), "found float32, expected a label"),
    "colours": (
        lambda p: tifffile.imwrite(p, np.ones((*SHAPE, 3), np.uint8), photometric="rgb") or p,
        "found colours, expected a label image",
    ),
    "empty file": (lambda p: p.touch() or p, "empty"),
    "truncated": (lambda p: cut_short(stack(p, value(1))), "truncated"),
    "damaged": (lambda p: damaged_strip(p, "zlib"), "frame 2: cannot be decoded"),
    "bare": (lambda p: stack(p, np.zeros(SHAPE, np.uint8)), "expected at least one"),
}


@pytest.mark.parametrize("kind", list(BAD_MAPS))
@pytest.mark.parametrize("beside", [True, False])
def test_bad_class_maps(place, capsys, kind, beside):
    make, says = BAD_MAPS[kind]
    stack(place / "movie.tif")
    name = "movie_classes.tif" if beside else "labels.tif"
    make(place / name)
    args = ["import", "source=movie.tif", "store=out", "extraction.patch_size=16", "blocks=2"]
    args += ["classes=[a,b]", *([] if beside else [f"table={name}"])]
    if kind == "damaged":
        args[-1 if beside else -2] = f"classes={[f'c{i}' for i in range(255)]}".replace("'", "")
    refused(args, says, place, capsys)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["table=labels.tif"], "classes= is missing"),
        (["table=labels.tif", "classes=[a,a]"], "expected each class once"),
        (["table=labels.tif", "classes=[a,unsure]"], "none called unsure"),
        (["table=nowhere.tif", "classes=[a,b]"], "nowhere.tif: no such file"),
        (["table=nowhere.csv"], "nowhere.csv: no such file"),
        ([], "movie.tif: has no labels; expected movie_classes.tif"),
    ],
)
def test_class_maps_that_are_not_named_or_not_there(place, capsys, args, says):
    stack(place / "movie.tif")
    stack(place / "labels.tif", value(1))
    refused(["import", "source=movie.tif", "store=out", *args], says, place, capsys)


def break_store(path, kind):
    if kind == "absent":
        shutil.rmtree(path)
    elif kind == "truncated pixels":
        cut_short(path / "pixels.npy")
    elif kind == "empty pixels":
        (path / "pixels.npy").write_bytes(b"")
    elif kind == "pickled pixels":
        np.save(path / "pixels.npy", np.array([{}], object), allow_pickle=True)
    elif kind == "truncated manifest":
        cut_short(path / "manifest.parquet")
    elif kind == "no manifest":
        (path / "manifest.parquet").unlink()
    elif kind == "a list":
        (path / "store.json").write_text("[]")
    elif kind == "half a record":
        cut_short(path / "store.json")
    elif kind == "lacks size":
        info = json.loads((path / "store.json").read_text())
        del info["size"]
        (path / "store.json").write_text(json.dumps(info))
    elif kind == "other shape":
        np.save(path / "pixels.npy", np.zeros((3, 16, 16), np.uint8))
    elif kind == "other type":
        pixels = np.load(path / "pixels.npy")
        np.save(path / "pixels.npy", pixels.astype(np.float32))


@pytest.mark.parametrize("name", ["evaluate", "run", "annotate"])
@pytest.mark.parametrize(
    "kind",
    [
        *("absent", "truncated pixels", "empty pixels", "pickled pixels", "truncated manifest"),
        *("no manifest", "a list", "half a record", "lacks size", "other shape", "other type"),
    ],
)
def test_a_broken_store(place, capsys, kind, name):
    make_store(place / "store")
    break_store(place / "store", kind)
    args = {
        "evaluate": ["evaluate", "checkpoint=model", "store=store", "out=out"],
        "run": ["run", "data.store=store", "out=out", "logger.wandb=disabled"],
        "annotate": ["annotate", "source=store", "kind=store", "out=out"],
    }[name]
    refused(args, "store", place, capsys)


@pytest.mark.parametrize("name", ["evaluate", "predict"])
@pytest.mark.parametrize("kind", ["absent", "a list", "half a record", "no weights", "cut weights"])
def test_a_broken_model(place, capsys, kind, name):
    make_store(place / "store")
    stack(place / "movie.tif")
    model = place / "model"
    if kind == "absent":
        shutil.rmtree(model)
    elif kind == "a list":
        (model / "model.json").write_text("[]")
    elif kind == "half a record":
        cut_short(model / "model.json")
    elif kind == "no weights":
        (model / "stage-0.safetensors").unlink()
    else:
        cut_short(model / "stage-0.safetensors")
    more = ["store=store"] if name == "evaluate" else ["movie=movie.tif", "um_per_px=1"]
    refused([name, "checkpoint=model", "out=out", *more], "model", place, capsys)


def test_a_store_of_other_classes_is_refused(place, capsys):
    make_store(place / "store")
    args = ["evaluate", "checkpoint=model", "store=store", "out=out"]
    refused(args, "they must be the same", place, capsys)
