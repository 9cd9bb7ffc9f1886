"""Any folder and any table end in a store or in one message, soon, and with the input as it was."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from PIL import Image

from stemcell_lit.errors import UserError
from stemcell_lit.patches.importing import import_patches
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import ExtractionConfig
from stemcell_lit.settings.patch_keys import ImportCommand
from tests.cases.harness import snapshot

TIME_LIMIT = 20  # seconds an import of a few small files; most take a hundredth
QUICK = settings(
    max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)

# names that mean something to the program, and any others
NAMES = st.one_of(
    st.sampled_from(
        [
            "dense",
            "Dense",
            "dense ",
            "spread",
            "unsure",
            "NA",
            ".hidden",
            "@eaDir",
            "__MACOSX",
            "a=1",
            "Pos0",
            "früh",
        ]
    ),
    st.from_regex(r"\A(img|m|pos)?_?[stzcw]?[0-9]{1,4}(h|min)?(_classes)?\Z"),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
        lambda name: name not in (".", "..") and len(name.encode()) < 200
    ),
)
SHAPES = st.sampled_from(
    [(16, 16), (16, 16), (24, 16), (3, 16, 16), (2, 3, 16, 16), (16, 16, 3), (1, 1)]
)
TYPES = st.sampled_from(["u1", "u1", "u2", "i2", "f4", ">u2", "b1"])
CELLS = st.one_of(
    st.sampled_from(
        [
            "",
            "a",
            "b",
            "unsure",
            "NA",
            "0",
            "1",
            "3.0",
            "0.7",
            "-1",
            "inf",
            "nan",
            "1e99",
            "1,5",
            "(px)",
        ]
    ),
    st.text(max_size=8),
)
HEADERS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "path",
                "label",
                "group",
                "track",
                "movie",
                "frame",
                "time_h",
                "y",
                "x",
                "size",
                "coverage",
                "",
            ]
        ),
        st.text(max_size=6),
    ),
    max_size=8,
)


def picture(path: Path, shape: tuple[int, ...], kind: str, seed: int) -> None:
    """A picture, or several, in a file named so; what the format cannot hold becomes 8-bit gray."""
    pixels = np.random.default_rng(seed).integers(0, 200, shape).astype(kind)
    if path.suffix.lower() in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels)
        return
    try:
        Image.fromarray(pixels).save(path, format="PNG")
    except (TypeError, ValueError, OSError):
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(path, format="PNG")


@st.composite
def content(draw):
    """What makes a file: a picture, junk, or a table."""
    kind = draw(st.sampled_from(["picture"] * 5 + ["junk", "table", "link"]))
    if kind == "picture":
        suffix = draw(st.sampled_from([".png", ".png", ".tif", ".TIF", ".ome.tif"]))
        return kind, suffix, (draw(SHAPES), draw(TYPES), draw(st.integers(0, 3)))
    if kind == "junk":
        return (
            kind,
            draw(st.sampled_from([".png", ".tif", ".txt", "", ".csv"])),
            draw(st.binary(max_size=40)),
        )
    if kind == "link":
        return (
            kind,
            draw(st.sampled_from(["", ".png"])),
            draw(st.sampled_from(["..", ".", "gone.png"])),
        )
    return kind, ".csv", draw(table())


@st.composite
def table(draw):
    """The bytes of a CSV, right in most of its form."""
    header = draw(HEADERS)
    delimiter = draw(st.sampled_from([",", ",", ";", "\t"]))
    rows = draw(
        st.lists(st.lists(CELLS, min_size=len(header), max_size=len(header) + 1), max_size=6)
    )
    text = "\n".join(delimiter.join(row) for row in [header, *rows])
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))


def write(path: Path, made) -> None:
    kind, suffix, body = made
    path = path.with_name(path.name[:60] + suffix)
    if path.exists() or path.is_symlink():
        return
    if kind == "picture":
        picture(path, *body)
    elif kind == "link":
        path.symlink_to(body)
    else:
        path.write_bytes(body)


TREES = st.dictionaries(
    NAMES,
    st.one_of(
        content(),
        st.dictionaries(
            NAMES, st.one_of(content(), st.dictionaries(NAMES, content(), max_size=2)), max_size=4
        ),
    ),
    max_size=4,
)


def grow(folder: Path, tree) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, inside in tree.items():
        if isinstance(inside, dict):
            if not (folder / name).exists() and not (folder / name).is_symlink():
                grow(folder / name, inside)
        else:
            write(folder / name, inside)


def holds(folder: Path, **words) -> None:
    """An import ends in a whole store or a message, in time, and leaves the rest as it was."""
    out = folder / "store"
    before = snapshot(folder, out)
    began = time.monotonic()
    config = ImportCommand(
        source=str(folder / "in"),
        store=str(out),
        extraction=ExtractionConfig(patch_size=8, places="grid"),
        **words,
    )
    try:
        import_patches(config)
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        assert not out.exists()
    else:
        PatchStore.open(out)
    assert time.monotonic() - began < TIME_LIMIT
    assert snapshot(folder, out) == before


@pytest.mark.filterwarnings("ignore")
@QUICK
@given(tree=TREES, classes=st.sampled_from([None, ["one", "two"]]))
def test_any_folder_is_read_or_refused(tree, classes):
    with TemporaryDirectory() as name:
        grow(Path(name) / "in", tree)
        holds(Path(name), classes=classes)


@pytest.mark.filterwarnings("ignore")
@QUICK
@given(body=table())
def test_any_table_of_crops_is_read_or_refused(body):
    with TemporaryDirectory() as name:
        for i in range(3):
            path = Path(name) / "in" / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            picture(path, (16, 16), "u1", i)
        (Path(name) / "in" / "patches.csv").write_bytes(body)
        holds(Path(name))


@pytest.mark.filterwarnings("ignore")
@QUICK
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS, CELLS), min_size=1, max_size=4),
    places=st.lists(
        st.sampled_from(["0", "1", "8", "1.0", "", "x", "1e9"]), min_size=4, max_size=4
    ),
)
def test_any_table_of_tiles_is_read_or_refused(rows, places):
    with TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        tifffile.imwrite(
            folder / "movie.tif", np.zeros((2, 16, 16), np.uint8), photometric="minisblack"
        )
        lines = [
            ",".join(["0", "0", "0", "8", "a"]),
            *(",".join(cell.replace("\n", " ") for cell in row) for row in rows),
            ",".join([*places, "b"]),
        ]
        text = "\n".join(["frame,y,x,size,label", *lines])
        (folder / "tiles.csv").write_text(text, encoding="utf-8", errors="replace")
        holds(Path(name), table=str(folder / "tiles.csv"))
