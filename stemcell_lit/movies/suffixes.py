"""Names of files: which are pictures, which are maps, and their natural order."""

from __future__ import annotations

import re
from pathlib import Path

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# Files of microscopes' makers -> the package that reads them
VENDOR_SUFFIXES = {
    ".nd2": "bioio-nd2",
    ".czi": "bioio-czi",
    ".lif": "bioio-lif",
    ".vsi": "bioio-bioformats",
}
# Pictures and films that are not read, and are told when they lie among those that are
_OTHER_SUFFIXES = (
    *(".gif", ".webp", ".avi", ".mp4", ".mov", ".mkv", ".jp2", ".dcm", ".svs", ".zarr", ".h5"),
    *(".hdf5", ".nd2", ".czi", ".lif", ".vsi", ".oib", ".oif", ".lsm", ".stk", ".ims", ".npy"),
    *(".heic", ".dng"),
)
# What lies beside a movie under its name: class maps, colony numbers
MAPS = ("_classes", "_colonies")


def bare_name(path: Path) -> str:
    """A movie's name without its suffixes: `a.ome.tif` and `a.tif` are both `a`."""
    name = path.name
    known = (*TIFF_SUFFIXES, *IMAGE_SUFFIXES, *VENDOR_SUFFIXES)
    if path.suffix.lower() in known and not path.is_dir():
        name = path.stem
        if name.lower().endswith(".ome"):
            name = name[:-4]
    return name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which `t2` comes before `t10`; zero padding only breaks ties."""
    # not \d, which also matches signs such as superscripts that int() refuses
    parts = re.split(r"([0-9]+)", name)
    key = [(0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts if p]
    return [*key, (-1, 0, name)]


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder that may be frames, in natural order; hidden ones are left out."""
    return sorted(
        (
            f
            for f in folder.iterdir()
            if f.suffix.lower() in TIFF_SUFFIXES + IMAGE_SUFFIXES
            and not f.name.startswith(".")
            and f.is_file()
        ),
        key=lambda f: natural_key(f.name),
    )


def not_read(folder: Path) -> str:
    """A sentence on the pictures and films of a folder that are of a type that is not read; empty where none is."""
    other = [
        f
        for f in folder.iterdir()
        if f.suffix.lower() in _OTHER_SUFFIXES and not f.name.startswith(".")
    ]
    if not other:
        return ""
    kinds = ", ".join(sorted({f.suffix.lower() for f in other}))
    return f"{len(other)} files of types that are not read ({kinds}) are left out, such as {min(other).name}"
