"""The same picture gives the same gray values as a crop and as a frame of a movie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from stemcell_lit.errors import UserError
from tests.movies.picture_files import RAMP, luma, paletted, png
from tests.patches.commands import import_crops, import_tiles

SIDE = 16
RNG = np.random.default_rng(1)
# both ends of 8 bit are there, so that a scale taken from the values would be seen
FIRST, SECOND = (RNG.permutation(256).reshape(SIDE, SIDE).astype(np.uint8) for _ in range(2))
GREEN = RAMP * np.array([[0], [1], [0]], np.uint16)


def colours(gray: np.ndarray) -> np.ndarray:
    return np.dstack([gray, 255 - gray, gray.T])


def _tiff(**options) -> Callable[[Path, np.ndarray], None]:
    return lambda file, array: tifffile.imwrite(file, array, **options)


def write_clear(file: Path, gray: np.ndarray) -> None:
    Image.fromarray(np.dstack([gray, gray])).save(file)


# (suffix, how a gray picture is written, what it must be read as)
READ = {
    "gray png": (".png", lambda f, g: Image.fromarray(g).save(f), lambda g: g),
    "gray bmp": (".bmp", lambda f, g: Image.fromarray(g).save(f), lambda g: g),
    "gray tiff": (".tif", _tiff(compression="lzw", predictor=True), lambda g: g),
    "white is zero": (".tif", _tiff(photometric="miniswhite"), lambda g: 255 - g),
    "inverted table tiff": (
        ".tif",
        _tiff(photometric="palette", colormap=RAMP[:, ::-1]),
        lambda g: 255 - g,
    ),
    "inverted table png": (
        ".png",
        lambda f, g: paletted(RAMP.T[::-1] >> 8, g).save(f),
        lambda g: 255 - g,
    ),
    "inverted table bmp": (
        ".bmp",
        lambda f, g: paletted(RAMP.T[::-1] >> 8, g).save(f),
        lambda g: 255 - g,
    ),
    "colour png": (
        ".png",
        lambda f, g: Image.fromarray(colours(g)).save(f),
        lambda g: luma(colours(g)),
    ),
    "colour tiff": (
        ".tif",
        lambda f, g: tifffile.imwrite(f, colours(g), photometric="rgb"),
        lambda g: luma(colours(g)),
    ),
    "opaque alpha": (
        ".png",
        lambda f, g: Image.fromarray(g).convert("LA").save(f),
        lambda g: g,
    ),
    "4 bit png": (".png", lambda f, g: f.write_bytes(png(g >> 4, 4, 0)), lambda g: (g >> 4) * 17),
    "4 bit tiff": (
        ".tif",
        lambda f, g: tifffile.imwrite(f, g >> 4, bitspersample=4),
        lambda g: (g >> 4) * 17,
    ),
    "1 bit png": (".png", lambda f, g: f.write_bytes(png(g >> 7, 1, 0)), lambda g: (g >> 7) * 255),
}
REFUSED = {
    "green table tiff": (".tif", _tiff(photometric="palette", colormap=GREEN), "colour table"),
    "green table png": (".png", lambda f, g: paletted(GREEN.T >> 8, g).save(f), "colour table"),
    "green table bmp": (".bmp", lambda f, g: paletted(GREEN.T >> 8, g).save(f), "colour table"),
    "clear alpha png": (".png", write_clear, "transparent"),
    "clear alpha tiff": (".tif", write_clear, "transparent"),
    "cmyk jpeg": (
        ".jpg",
        lambda f, g: Image.fromarray(g).convert("CMYK").save(f),
        "CMYK colours",
    ),
    "cmyk tiff": (
        ".tif",
        lambda f, g: Image.fromarray(g).convert("CMYK").save(f),
        "CMYK colours",
    ),
}


def as_crops(folder: Path, suffix: str, write: Callable) -> np.ndarray:
    """Both pictures through a folder of classes, (2, height, width)."""
    for label, gray in (("a", FIRST), ("b", SECOND)):
        (folder / "crops" / label).mkdir(parents=True)
        write(folder / "crops" / label / f"0{suffix}", gray)
    return import_crops(folder / "crops", folder / "from_crops").pixels


def as_frames(folder: Path, suffix: str, write: Callable) -> np.ndarray:
    """Both pictures through a folder of frames and a table of tiles that cover them."""
    (folder / "movie").mkdir()
    for number, gray in enumerate((FIRST, SECOND)):
        write(folder / "movie" / f"t{number}{suffix}", gray)
    rows = [{"frame": t, "y": 0, "x": 0, "size": SIDE, "label": "ab"[t]} for t in range(2)]
    pd.DataFrame(rows).to_csv(folder / "tiles.csv", index=False)
    store = import_tiles(
        folder / "movie", folder / "tiles.csv", folder / "from_tiles", blocks=1, hours_per_frame=1.0
    )
    return store.pixels


@pytest.mark.parametrize("name", READ)
def test_a_crop_and_a_frame_have_the_same_gray_values(tmp_path, name):
    suffix, write, read = READ[name]
    expected = np.stack([read(FIRST), read(SECOND)]).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(as_crops(tmp_path, suffix, write)), expected)
    np.testing.assert_array_equal(np.asarray(as_frames(tmp_path, suffix, write)), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_as_a_crop_is_refused_as_a_frame(tmp_path, name):
    suffix, write, reason = REFUSED[name]
    for way, store in ((as_crops, "from_crops"), (as_frames, "from_tiles")):
        with pytest.raises(UserError, match=reason):
            way(tmp_path, suffix, write)
        assert not (tmp_path / store).exists()


def test_16_bit_crops_and_frames_share_one_scale(tmp_path):
    """16 bit in gray, in colour of equal samples, as PNG and as TIFF: the same 8-bit patches."""

    def deep(gray: np.ndarray) -> np.ndarray:
        return gray.astype(np.uint16) * 150 + 1000

    ways: dict[str, Callable] = {
        ".tif": lambda f, g: tifffile.imwrite(f, deep(g), byteorder=">"),
        ".png": lambda f, g: f.write_bytes(imagecodecs.png_encode(np.dstack([deep(g)] * 3))),
    }
    found = []
    for suffix, write in ways.items():
        for way in (as_crops, as_frames):
            folder = tmp_path / f"{suffix}{way.__name__}"
            folder.mkdir()
            found.append(np.array(way(folder, suffix, write)))
            shutil.rmtree(folder)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    assert found[0].min() == 0 and found[0].max() == 255
    order = np.argsort(FIRST.ravel())
    assert (np.diff(found[0][0].ravel()[order].astype(int)) >= 0).all()
