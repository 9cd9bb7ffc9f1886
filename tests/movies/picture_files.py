"""Picture files for tests: read by the route of their suffix, and written byte by byte."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from stemcell_lit.errors import UserError
from stemcell_lit.movies.pictures import image_layout, image_values, page_layout, page_values

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (19, 23), np.uint8)
DEEP = RNG.integers(0, 65536, (19, 23), np.uint16)
RGB = RNG.integers(0, 256, (19, 23, 3), np.uint8)
RAMP = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))  # a gray colour table of a TIFF
TIFF = (".tif", ".tiff")
# First row and column, and their steps, of each pass of an interlaced PNG
_ADAM7 = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
]
_WEIGHTS = np.array([299, 587, 114])


def read(file: Path, page: int = 0, **how) -> np.ndarray:
    """The values by the route of the file's suffix; the layout must have told their shape and type."""
    if file.suffix in TIFF:
        with tifffile.TiffFile(file) as tiff:
            found = tiff.pages[page]
            layout = page_layout(found, str(file), **how)
            values = page_values(found.asarray(), found, str(file), **how)
    else:
        layout = image_layout(file, **how)
        values = image_values(file, **how)
    assert (values.shape, values.dtype) == (layout.shape, layout.dtype)
    assert values.flags.c_contiguous and values.dtype.isnative
    return values


def refused(file: Path, reason: str, **how) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        read(file, **how)
    assert str(file) in str(caught.value)


def same(file: Path, expected: np.ndarray, **how) -> None:
    values = read(file, **how)
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(values, expected)


def luma(rgb: np.ndarray) -> np.ndarray:
    return ((rgb.astype(np.int64) @ _WEIGHTS + 500) // 1000).astype(rgb.dtype)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    array: np.ndarray,
    bits: int,
    colour: int,
    extra: bytes = b"",
    after: bytes = b"",
    size: tuple[int, int] | None = None,
    interlaced: bool = False,
) -> bytes:
    """A PNG of samples as stored: (height, width[, samples]) of uint8 or uint16."""
    width, height = size or (array.shape[1], array.shape[0])
    rows = b""
    for top, left, down, right in _ADAM7 if interlaced else [(0, 0, 1, 1)]:
        part = array[top::down, left::right]
        if part.size == 0:
            continue
        part = part.reshape(len(part), -1)
        each = ((part[..., None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)
        packed = np.packbits(each.reshape(len(part), -1), axis=1)
        rows += np.pad(packed, ((0, 0), (1, 0))).tobytes()  # no filter
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + after
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def raw_tiff(file: Path, data: bytes, shape: tuple[int, int], **tags) -> None:
    """A TIFF of one strip whose tags are exactly these; numbers name them as t274=6."""
    entries = {256: shape[1], 257: shape[0], 259: 1, 262: 1, 277: 1, 258: 8, 278: shape[0]}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    entries |= {273: 8, 279: len(data)}
    start = 8 + len(data) + len(data) % 2
    after = start + 2 + 12 * len(entries) + 4
    table, rest = b"", b""
    for tag in sorted(entries):
        values = np.atleast_1d(entries[tag])
        kind, packed = (4, values.astype("<u4").tobytes()) if tag in (273, 279) else (3, b"")
        packed = packed or values.astype("<u2").tobytes()
        if len(packed) > 4:
            rest += packed
            packed = struct.pack("<I", after + len(rest) - len(packed))
        table += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    data += b"\0" * (len(data) % 2)
    directory = struct.pack("<H", len(entries)) + table + bytes(4) + rest
    file.write_bytes(struct.pack("<2sHI", b"II", 42, start) + data + directory)


def bmp_with_alpha(rgba: np.ndarray) -> bytes:
    """A BMP of 32 bits with masks (a BITMAPV4HEADER); without masks its fourth byte is no alpha."""
    height, width = rgba.shape[:2]
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, rgba.size, 0, 0, 0, 0)
    head += struct.pack("<4I", 0xFF, 0xFF00, 0xFF0000, 0xFF000000) + b"BGRs" + bytes(48)
    return struct.pack("<2sIHHI", b"BM", 122 + rgba.size, 0, 0, 122) + head + rgba[::-1].tobytes()


def paletted(colours: np.ndarray, indices: np.ndarray = GRAY) -> Image.Image:
    image = Image.fromarray(indices).convert("P")
    image.putpalette(np.asarray(colours, np.uint8).tobytes())
    return image
