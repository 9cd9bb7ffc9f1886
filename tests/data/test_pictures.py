"""One reader: the same picture gives the same values, whatever file it comes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from stemcell_lit.data.pictures import image_layout, image_values, page_layout, page_values
from stemcell_lit.errors import UserError

GRAY = np.random.default_rng(0).integers(0, 256, (9, 13), np.uint8)


def tiff_values(file: Path, **how) -> np.ndarray:
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        layout = page_layout(page, str(file), **how)
        values = page_values(page.asarray(), page, str(file), **how)
    assert (values.shape, values.dtype) == (layout.shape, layout.dtype)
    return values


def png_values(file: Path, **how) -> np.ndarray:
    layout = image_layout(file, **how)
    values = image_values(file, **how)
    assert (values.shape, values.dtype) == (layout.shape, layout.dtype)
    return values


def test_white_is_zero_is_turned_round(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 255 - GRAY, photometric="miniswhite")
    np.testing.assert_array_equal(tiff_values(tmp_path / "a.tif"), GRAY)


def test_gray_png_is_as_stored(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    np.testing.assert_array_equal(png_values(tmp_path / "a.png"), GRAY)


def test_cmyk_is_refused(tmp_path):
    Image.fromarray(GRAY).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: CMYK colours"):
        image_values(tmp_path / "a.jpg")
