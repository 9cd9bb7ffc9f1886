"""Labelled crops on disk: a folder per class, or a CSV that names each file, into a PatchStore."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import percentile_scaling, read_picture, sample_pixels, to_8_bit
from stemcell_lit.movies.resample import resample, scale_between
from stemcell_lit.movies.suffixes import natural_key
from stemcell_lit.patches.crop_files import CropFiles, folder_rows
from stemcell_lit.patches.labels import checked_labels
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.patches.tables import read_table

# the first one present keeps related crops on one side of a split
GROUP_COLUMNS = ("group", "track", "movie")
SAMPLED_CROPS = 256  # spread over the data set, they fix the intensity scale of 16 bit and float


def import_crops(
    source: str | Path,
    store: str | Path,
    *,
    table: str | Path | None = None,
    group: str | None = None,
    size: int | None = None,
    um_per_px: float | None = None,
    hours_per_frame: float | None = None,
    classes: Sequence[str] | None = None,
    patch_um_per_px: float | None = None,
    channel: str | None = None,
    plane: int | None = None,
) -> PatchStore:
    """Imports labelled crops. The label or folder `unsure` is left out, and counted.

    A track is a track of its movie or group, since trackers number from 1 in each: where a name of a track occurs in
    several, tracks are called MOVIE/TRACK, GROUP/TRACK or, where the table has both, GROUP/MOVIE/TRACK. So with
    `movie` and `track` alone the groups are tracks of movies.

    Equal rows count once. Different files of equal pixels share a group, and so do the groups they were in; crops of
    one gray value throughout tell nothing and are not compared.

    Args:
        source: the folder. Without a table its sub-folders are the classes, and theirs are groups.
        store: the PatchStore to make.
        table: CSV with columns `path` (relative to the CSV) and `label`, perhaps `group`, `track`, `movie`, `frame`,
            `time_h`, `x`, `y`. None: `patches.csv` in the source where there is one.
        group: the column whose crops must stay on one side of a split. None: the first of group, track, movie.
        size: height and width in pixels of the stored patches: larger crops are cut around their centre. None: all
            crops must agree.
        um_per_px: size of a pixel in micrometres.
        hours_per_frame: turns `frame` into hours where the table has no `time_h`.
        classes: the classes and their order. None: alphabetical.
        patch_um_per_px: size of a pixel of the patches: crops are resampled to it before they are cut. None: as is.
        channel: which channel of files that hold several.
        plane: which focal plane of files that hold several, from 0.

    Raises:
        UserError: nothing to import, an unreadable image, crops of several sizes or types, a table that contradicts
            itself or can be read in more than one way.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected a folder of labelled crops")
    if patch_um_per_px is not None and um_per_px is None:
        raise UserError(
            f"extraction.um_per_px={patch_um_per_px}: crops do not tell the size of their pixels; give um_per_px, too"
        )
    found = Path(table) if table is not None else table_in(source)
    if found is not None:
        rows, base = _from_table(found, group, hours_per_frame), found.parent
    else:
        rows, base = folder_rows(source), source
        if group is not None and group not in rows:
            raise UserError(
                f"group={group}: {source} has no table with that column; expected a patches.csv, or leave it out"
            )
    group = group or next((c for c in GROUP_COLUMNS if c in rows), None)
    names, rows, unsure = checked_labels(rows, classes, found or source)
    if len(unsure):
        warnings.warn(
            f"{found or source}: {len(unsure)} crops are labelled unsure and left out", stacklevel=2
        )
    paths = rows["path"].tolist()
    reader = CropReader(base, paths, channel, plane)
    pixels = _read_all(reader, base, paths, size, scale_between(um_per_px, patch_um_per_px))

    manifest = pd.DataFrame({"label": rows["label"], "source": rows["path"]})
    if group is None:
        # Nothing says what belongs together: each crop is a group of its own, and the user is told.
        manifest["group"] = [f"crop-{i}" for i in range(len(rows))]
    else:
        manifest["group"] = [f"{group}-{value}" for value in rows[group]]
    manifest["group"] = _joined(manifest, pixels, found or source)
    manifest["track"] = rows.get("track", "")
    for column in ("y", "x", "frame", "time_h"):
        if column in rows:
            manifest[column] = rows[column]
    made_by: dict[str, Any] = {
        "command": "import",
        "source": source.name,
        "table": found.name if found else None,
        "split_by": group
        or "crop (no group, track or movie is known: related crops may leak between splits)",
        "hours_per_frame": hours_per_frame,
        "unsure": len(unsure),
        "scaling": list(reader.scaling),
        "channel": channel,
        "plane": plane,
    }
    return PatchStore.write(
        store,
        pixels,
        manifest,
        classes=names,
        um_per_px=um_per_px if patch_um_per_px is None else patch_um_per_px,
        unsure=unsure[["label"]].assign(source=unsure["path"]),
        made_by=made_by,
        inputs=[source, found],
    )


def table_in(folder: Path) -> Path | None:
    """The patches.csv of a folder of crops, in any case; None where there is none.

    Raises:
        UserError: there are several.
    """
    found = [f for f in folder.iterdir() if f.name.casefold() == "patches.csv"]
    if len(found) > 1:
        raise UserError(
            f"{folder}: found {' and '.join(sorted(f.name for f in found))}, expected one; give table="
        )
    return found[0] if found else None


def _from_table(path: Path, group: str | None, hours_per_frame: float | None) -> pd.DataFrame:
    """What a table says of each crop, typed, each file once."""
    needed = ["path", "label", *([group] if group else [])]
    table = read_table(path, needed, [*GROUP_COLUMNS, "frame", "time_h", "x", "y"])
    rows = table.rows[[c for c in table.rows if c not in ("frame", "time_h", "x", "y")]].copy()
    files = CropFiles(path.parent, path)
    rows["path"] = [
        files.find(name, int(line)) for name, line in zip(rows["path"], rows["line"], strict=True)
    ]
    files.say_renamed()
    for column in ("x", "y"):
        if column in table.rows:
            rows[column] = table.numbers(column)
    if "frame" in table.rows:
        rows["frame"] = table.whole("frame")
    if "time_h" in table.rows:
        rows["time_h"] = table.numbers("time_h", least=0)
    elif "frame" in rows and hours_per_frame is not None:
        rows["time_h"] = rows["frame"] * hours_per_frame
    if "track" in rows:
        rows["track"] = track_names(rows)
    return table.once(rows, ["path"], "crop")


def track_names(rows: pd.DataFrame) -> list[str]:
    """Names of tracks that are one over all movies and groups; see `import_crops`.

    Args:
        rows: text columns `track` and perhaps `movie` and `group`.
    """
    within = [c for c in ("group", "movie") if c in rows]
    if len(rows[["track", *within]].drop_duplicates()) == rows["track"].nunique():
        return rows["track"].tolist()
    return ["/".join(names) for names in rows[[*within, "track"]].itertuples(index=False)]


class CropReader:
    """Crops as 8 bit, on one intensity scale for all: 8 bit as stored, others between two percentiles of them all.

    Attributes:
        scaling: the stored intensities that become 0 and 255.

    Args:
        base: the folder that the paths start from.
        paths: all crops of the data set.
        channel: which of several channels.
        plane: which of several focal planes.

    Raises:
        UserError: a crop that is looked at cannot be read, or is of another type than the first.
    """

    def __init__(
        self,
        base: Path,
        paths: Sequence[str],
        channel: str | None = None,
        plane: int | None = None,
    ):
        self._base, self._first = base, paths[0]
        self._channel, self._plane = channel, plane
        self._kind: np.dtype | None = None
        self.scaling = (0.0, 255.0)
        if self._raw(paths[0]).dtype != np.uint8:
            at = np.unique(np.linspace(0, len(paths) - 1, SAMPLED_CROPS).round().astype(int))
            self.scaling = percentile_scaling([sample_pixels(self._raw(paths[i])) for i in at])

    def read(self, name: str) -> np.ndarray:
        """uint8 (height, width).

        Raises:
            UserError: not readable, or of another type than the first crop.
        """
        return to_8_bit(self._raw(name), self.scaling)

    def _raw(self, name: str) -> np.ndarray:
        raw = read_picture(self._base / name, channel=self._channel, plane=self._plane)
        self._kind = self._kind or raw.dtype
        if raw.dtype != self._kind:
            raise UserError(
                f"{self._base / name}: found {raw.dtype}, expected {self._kind} as in {self._first}; crops of "
                "different types have no common intensity scale: export all with the same settings"
            )
        return raw


def _read_all(
    reader: CropReader, base: Path, paths: Sequence[str], size: int | None, scale: float
) -> np.ndarray:
    """uint8 (crops, height, width): resampled, cut, and all of one size."""
    pixels: np.ndarray | None = None
    for i, name in enumerate(paths):
        file = base / name
        crop = resample(reader.read(name), scale)
        if size is not None:
            crop = _centre(crop, size, file)
        height, width = crop.shape
        if pixels is None:
            if height != width:
                raise UserError(
                    f"{file}: is {height} x {width} px, expected a square; give size=N to cut squares"
                )
            pixels = np.empty((len(paths), height, width), np.uint8)
        if crop.shape != pixels.shape[1:]:
            raise UserError(
                f"{file}: is {height} x {width} px, the crops before it {pixels.shape[1]} x {pixels.shape[2]}; "
                "give size=N to cut all to one size"
            )
        pixels[i] = crop
    assert pixels is not None
    return pixels


def _joined(manifest: pd.DataFrame, pixels: np.ndarray, where: Path) -> list[str]:
    """The groups, those with a picture in common made one under the name that sorts first."""
    groups = manifest["group"].tolist()
    files, labels = manifest["source"].tolist(), manifest["label"].tolist()
    first: dict[bytes, int] = {}
    parent: dict[str, str] = {}
    pairs: list[tuple[int, int]] = []
    blank = 0
    for i, crop in enumerate(pixels):
        if crop.min() == crop.max():
            blank += 1
            continue
        other = first.setdefault(hashlib.sha256(crop.tobytes()).digest(), i)
        if other != i:
            pairs.append((other, i))
            _unite(parent, groups[other], groups[i])
    if blank:
        warnings.warn(
            f"{where}: {blank} crops are of one gray value throughout; look whether they show anything",
            stacklevel=3,
        )
    if not pairs:
        return groups
    a, b = pairs[0]
    joined = len({*parent})
    said = f"{len(pairs)} crops have the pixels of another file, such as {files[b]} those of {files[a]}"
    if joined:
        said += (
            f"; {joined} groups are joined by that into {len({_head(parent, g) for g in parent})}"
        )
    warnings.warn(f"{where}: {said}", stacklevel=3)
    if against := next(((a, b) for a, b in pairs if labels[a] != labels[b]), None):
        a, b = against
        count = sum(labels[a] != labels[b] for a, b in pairs)
        warnings.warn(
            f"{where}: {count} of them are labelled differently, such as {files[a]} {labels[a]!r} and {files[b]} "
            f"{labels[b]!r}; remove the wrong ones",
            stacklevel=3,
        )
    return [_head(parent, g) for g in groups]


def _head(parent: dict[str, str], name: str) -> str:
    while (up := parent.get(name, name)) != name:
        name = up
    return name


def _unite(parent: dict[str, str], a: str, b: str) -> None:
    """Makes two groups one; its name is the one that sorts first."""
    if a != b:
        a, b = sorted((_head(parent, a), _head(parent, b)), key=natural_key)
        parent.setdefault(a, a)
        parent[b] = a


def _centre(crop: np.ndarray, size: int, file: Path) -> np.ndarray:
    height, width = crop.shape
    if height < size or width < size:
        raise UserError(
            f"{file}: is {height} x {width} px, smaller than size={size}; give a smaller size"
        )
    y, x = (height - size) // 2, (width - size) // 2
    return crop[y : y + size, x : x + size]
