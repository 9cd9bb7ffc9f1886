"""Labelled crops on disk: a folder per class, or a CSV that names each file, into a PatchStore."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import DisjointSet

from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import (
    percentile_scaling,
    picture_shape,
    read_picture,
    sample_pixels,
    to_8_bit,
)
from stemcell_lit.movies.resample import resample, scale_between, scaled_shape
from stemcell_lit.movies.suffixes import natural_key
from stemcell_lit.patches.cells import cells
from stemcell_lit.patches.crop_files import CropFiles, folder_rows
from stemcell_lit.patches.labels import UNLABELLED, checked_labels
from stemcell_lit.patches.neighbours import joined_to_neighbours
from stemcell_lit.patches.neighbours import wanted as neighbours_wanted
from stemcell_lit.patches.squares import Squares
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.patches.tables import read_table
from stemcell_lit.settings.patch_keys import ImportCommand, given_columns

# the first one present keeps related crops on one side of a split
GROUP_COLUMNS = ("group", "track", "movie")
SAMPLED_CROPS = 256  # spread over the data set, they fix the intensity scale of 16 bit and float


def import_crops(config: ImportCommand) -> PatchStore:
    """Imports labelled crops. The label or folder `unsure` is left out, and counted.

    The source is a folder. A table, `patches.csv` in it where none is named, has columns `path` (relative to the CSV)
    and `label`, perhaps `group`, `track`, `movie`, `frame`, `time_h`, `x`, `y`. Without one the sub-folders are the
    classes, and theirs are groups. Crops are resampled to `extraction.um_per_px`, where it is given, then cut or padded
    to squares around their centre: of `size`, else as they are where all are equal squares (`patches/squares.py`).

    A track is a track of its movie or group, since trackers number from 1 in each: where a name of a track occurs in
    several, tracks are called MOVIE/TRACK, GROUP/TRACK or, where the table has both, GROUP/MOVIE/TRACK. So with
    `movie` and `track` alone the groups are tracks of movies.

    Equal rows count once. Different files of equal pixels share a group, and so do the groups they were in; crops of
    one gray value throughout tell nothing and are not compared.

    A crop may have no label: an empty one in the table, or one that `unlabelled` names. `near` joins it to the group of
    labelled ones that it lies by; without, it needs a group where labelled ones have theirs. `movies` are the fields
    that crops are from: their other cells become patches without a label (`patches/cells.py`).

    Raises:
        UserError: nothing to import, an unreadable image, crops of several types, a table that contradicts
            itself or can be read in more than one way.
    """
    source, group, wanted_um = Path(config.source), config.group, config.extraction.um_per_px
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected a folder of labelled crops")
    if wanted_um is not None and config.um_per_px is None:
        raise UserError(
            f"extraction.um_per_px={wanted_um}: crops do not tell the size of their pixels; give um_per_px, too"
        )
    found = Path(config.table) if config.table is not None else table_in(source)
    if found is not None:
        rows, base = _from_table(found, config), found.parent
    else:
        if given_columns(config.columns):
            raise UserError(
                f"columns=: {source} has no table; expected a patches.csv, or leave it out"
            )
        rows, base = folder_rows(source), source
        if group is not None and group not in rows:
            raise UserError(
                f"group={group}: {source} has no table with that column; expected a patches.csv, or leave it out"
            )
    group = group or next((c for c in GROUP_COLUMNS if c in rows), None)
    names, rows, unsure = checked_labels(
        rows, config.classes, found or source, config.without, config.unlabelled
    )
    _check_near(rows, group, config, found or source)
    if len(unsure):
        warnings.warn(
            f"{found or source}: {len(unsure)} crops are labelled unsure and left out", stacklevel=2
        )
    paths = rows["path"].tolist()
    reader = CropReader(base, paths, config.channel, config.plane)
    scale = scale_between(config.um_per_px, wanted_um)
    pixels, squares = _read_all(reader, base, paths, config.size, scale)
    for sentence in squares.notices(rows["label"].tolist()):
        warnings.warn(f"{found or source}: {sentence}", stacklevel=2)

    # Where nothing says what belongs together each crop is a group of its own, and the user is told.
    alone = [f"crop-{i}" for i in range(len(rows))]
    named = rows[group] if group is not None else [""] * len(rows)
    manifest = pd.DataFrame({"label": rows["label"], "source": rows["path"]})
    manifest["group"] = [f"{group}-{v}" if v else a for v, a in zip(named, alone, strict=True)]
    manifest["track"] = rows.get("track", "")
    for column in ("y", "x", "frame", "time_h"):
        if column in rows:
            manifest[column] = rows[column]
    if neighbours_wanted(config.near):
        manifest["field"] = rows.get("movie", "")
        if config.movies is not None:
            of = set(rows["movie"]) if "movie" in rows else set()
            more, cut = cells(config, of, squares.size, scale, reader.scaling)
            manifest = pd.concat([manifest, more], ignore_index=True)
            pixels = np.concatenate([pixels, cut])
        manifest["group"], keep, said = joined_to_neighbours(manifest, config.near, found or source)
        warnings.warn(said, stacklevel=2)
        manifest, pixels = manifest[keep].drop(columns="field").reset_index(drop=True), pixels[keep]
    manifest["group"] = _joined(manifest, pixels, found or source)
    made_by: dict[str, Any] = {
        "command": "import",
        "source": source.name,
        "table": found.name if found else None,
        "split_by": group
        or "crop (no group, track or movie is known: related crops may leak between splits)",
        "hours_per_frame": config.hours_per_frame,
        "unsure": len(unsure),
        "scaling": list(reader.scaling),
        **squares.describe(),
        "channel": config.channel,
        "plane": config.plane,
    }
    if neighbours_wanted(config.near):
        made_by |= {
            "near": asdict(config.near),
            "movies_of_cells": config.movies and Path(config.movies).name,
        }
    return PatchStore.write(
        config.store,
        pixels,
        manifest,
        classes=names,
        um_per_px=config.um_per_px if wanted_um is None else wanted_um,
        unsure=unsure[["label"]].assign(source=unsure["path"]),
        made_by=made_by,
        inputs=[source, found, config.movies],
    )


def _check_near(rows: pd.DataFrame, group: str | None, config: ImportCommand, where: Path) -> None:
    """Refuses crops without a label of which nothing says whether they show what labelled ones show."""
    join, lacks = neighbours_wanted(config.near), {"frame", "x", "y"} - set(rows)
    if config.movies is not None and not join:
        raise UserError(
            f"movies={config.movies}: cells near labelled crops must go with their groups; give near=, such as "
            "near={frames:6,px:40}"
        )
    if join and lacks:
        raise UserError(
            f"{where}: near= needs the columns frame, x and y, found no {' and no '.join(sorted(lacks))}; add them, or "
            "leave near= out"
        )
    bare = int((rows[group] == "").sum()) if group is not None else 0
    if bare and not join:
        raise UserError(
            f"{where}: {bare} crops without a label have no {group}, and nothing says whether they show what labelled "
            f"ones show; fill in {group}, or give near={{frames:6,px:40}} to join them to labelled ones that near"
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


def _from_table(path: Path, config: ImportCommand) -> pd.DataFrame:
    """What a table says of each crop, typed, each file once."""
    group, hours_per_frame = config.group, config.hours_per_frame
    needed = ["path", "label", *([group] if group else [])]
    known = [*GROUP_COLUMNS, "frame", "time_h", "x", "y"]
    bare = ["label", "group", "track", *([group] if group else [])]
    table = read_table(path, needed, known, bare=bare, columns=given_columns(config.columns))
    rows = table.rows[[c for c in table.rows if c not in ("frame", "time_h", "x", "y")]].copy()
    rows["path"] = CropFiles(path.parent, path).find_all(rows)
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
    some = rows[rows["track"] != ""]  # a crop without a label may have none
    if len(some[["track", *within]].drop_duplicates()) == some["track"].nunique():
        return rows["track"].tolist()
    every = rows[[*within, "track"]].itertuples(index=False)
    return ["/".join(n for n in names if n) if names[-1] else "" for names in every]


class CropReader:
    """Crops as 8 bit, on one intensity scale for all: 8 bit as stored, others between two percentiles of them all.

    Attributes:
        scaling: the stored intensities that become 0 and 255.

    `paths` are all crops of the data set, below `base`.

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

    def shape(self, name: str) -> tuple[int, int]:
        """(height, width) in px, from its header.

        Raises:
            UserError: not readable.
        """
        return picture_shape(self._base / name, channel=self._channel, plane=self._plane)

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
    reader: CropReader, base: Path, paths: Sequence[str], wanted: int | None, scale: float
) -> tuple[np.ndarray, Squares]:
    """uint8 (crops, size, size), resampled and made square, and how."""
    shapes = np.array([scaled_shape(reader.shape(name), scale) for name in paths])
    squares = Squares.of(shapes, wanted)
    pixels = np.empty((len(paths), squares.size, squares.size), np.uint8)
    for i, name in enumerate(paths):
        crop = resample(reader.read(name), scale)
        if crop.shape != tuple(shapes[i]):
            raise UserError(
                f"{base / name}: is {crop.shape[0]} x {crop.shape[1]} px, its header says {shapes[i][0]} x "
                f"{shapes[i][1]}; it is damaged: export it again"
            )
        pixels[i] = squares.make(crop)
    return pixels, squares


def _joined(manifest: pd.DataFrame, pixels: np.ndarray, where: Path) -> list[str]:
    """The groups, those with a picture in common made one under the name that sorts first."""
    groups = manifest["group"].tolist()
    files, labels = manifest["source"].tolist(), manifest["label"].tolist()
    first: dict[bytes, int] = {}
    sets = DisjointSet(groups)
    pairs: list[tuple[int, int]] = []
    blank = 0
    for i, crop in enumerate(pixels):
        if crop.min() == crop.max():
            blank += 1
            continue
        other = first.setdefault(hashlib.sha256(crop.tobytes()).digest(), i)
        if other != i:
            pairs.append((other, i))
            sets.merge(groups[other], groups[i])
    if blank:
        warnings.warn(
            f"{where}: {blank} crops are of one gray value throughout; look whether they show anything",
            stacklevel=3,
        )
    if not pairs:
        return groups
    a, b = pairs[0]
    joined = [of_one for of_one in sets.subsets() if len(of_one) > 1]
    said = f"{len(pairs)} crops have the pixels of another file, such as {files[b]} those of {files[a]}"
    if joined:
        said += f"; {sum(map(len, joined))} groups are joined by that into {len(joined)}"
    warnings.warn(f"{where}: {said}", stacklevel=3)
    differ = [(a, b) for a, b in pairs if len({labels[a], labels[b], UNLABELLED}) > 2]
    if differ:
        (a, b), count = differ[0], len(differ)
        warnings.warn(
            f"{where}: {count} of them are labelled differently, such as {files[a]} {labels[a]!r} and {files[b]} "
            f"{labels[b]!r}; remove the wrong ones",
            stacklevel=3,
        )
    names = {group: min(of_one, key=natural_key) for of_one in joined for group in of_one}
    return [names.get(group, group) for group in groups]
