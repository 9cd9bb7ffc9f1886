"""Small pictures, movies and tables that the cases are made of."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

SIDE = 64  # px of a frame
MAPS = "classes=[one,two] blocks=1 extraction.patch_size=16 extraction.places=grid"


def frame(left: float, right: float | None = None, dtype: Any = np.uint8) -> np.ndarray:
    """A frame whose left half holds one gray value and its right half another."""
    image = np.full((SIDE, SIDE), left, dtype)
    if right is not None:
        image[:, SIDE // 2 :] = right
    return image


def save(path: Path, image: np.ndarray) -> None:
    """Writes a picture by its suffix, 8-bit gray or colour; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".tif", ".tiff"):
        tifffile.imwrite(path, image, photometric="rgb" if image.ndim == 3 else "minisblack")
    else:
        Image.fromarray(image).save(path, quality=98)


def tiles(
    path: Path, frames: Sequence[Any], early: Sequence[Any], more: dict[str, Sequence] | None = None
) -> None:
    """A table of two tiles a frame, left and right, labelled early or late."""
    more = more or {}
    lines = [",".join(["frame,y,x,size,label", *more])]
    for i, n in enumerate(frames):
        for x in (0, 48):
            label = "early" if n in early else "late"
            lines.append(",".join([f"{n},0,{x},16,{label}", *(str(v[i]) for v in more.values())]))
    path.write_text("\n".join(lines) + "\n")


def textures(number: int, side: int = 16, seed: int = 0) -> np.ndarray:
    """Crops of noise, uint8, no two alike."""
    return np.random.default_rng(seed).integers(0, 256, (number, side, side), np.uint8)


def class_folders(folder: Path, names: Sequence[str], each: int = 4) -> None:
    """A folder per class of crops that are all different."""
    for k, name in enumerate(names):
        for i, crop in enumerate(textures(each, seed=k + 1)):
            save(folder / name / f"{i}.png", crop)


def halves(shape: tuple[int, int] = (SIDE, SIDE), left: int = 1, right: int = 2) -> np.ndarray:
    """A class map: its left half one class, its right half another."""
    image = np.full(shape, left, np.uint8)
    image[:, shape[1] // 2 :] = right
    return image


def png(path: Path, samples: np.ndarray, bits: int, kind: int) -> None:
    """A PNG of any depth, as Pillow cannot write it.

    Args:
        path: the file.
        samples: (height, width) or (height, width, samples), whole numbers below 2**bits.
        bits: of a sample: 1, 2, 4, 8, 16.
        kind: colour type: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA.
    """
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in flat]
    else:
        per = 8 // bits
        packed = np.zeros((height, -(-flat.shape[1] // per)), np.uint8)
        for k in range(per):
            part = flat[:, k::per]
            packed[:, : part.shape[1]] |= (part << (8 - bits * (k + 1))).astype(np.uint8)
        lines = [row.tobytes() for row in packed]

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))
        + chunk(b"IEND", b"")
    )


def crop_table(path: Path, header: str, lines: Sequence[str], encoding: str = "utf-8") -> None:
    """A table beside crops `0.png`, `1.png` ..., one for each of its lines and all different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for i, crop in enumerate(textures(len(lines))):
        save(path.parent / f"{i}.png", crop)
    path.write_bytes("\n".join([header, *lines, ""]).encode(encoding))
