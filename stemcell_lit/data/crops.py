"""Labelled crops on disk: a folder per class, or a CSV that names each file, into a PatchStore."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from stemcell_lit.data.patches import PatchStore
from stemcell_lit.data.resample import resample, scale_between
from stemcell_lit.errors import UserError

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
UNSURE = "unsure"  # not a class: left out of stores, and counted
GROUP_COLUMNS = (
    "group",
    "track",
    "movie",
)  # the first one present keeps related crops on one side of a split


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
) -> PatchStore:
    """Imports labelled crops. The label or folder `unsure` is left out, and counted.

    Args:
        source: the folder. Without a table its sub-folders are the classes.
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

    Raises:
        UserError: nothing to import, an unreadable image, crops of several sizes, a column missing.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected a folder of labelled crops")
    if table is None and (source / "patches.csv").is_file():
        table = source / "patches.csv"
    if table is not None:
        rows = read_table(Path(table), ["path", "label", *([group] if group else [])])
    else:
        rows = _from_folders(source)
    group = group or next((c for c in GROUP_COLUMNS if c in rows), None)
    names, rows, unsure = checked_labels(rows, classes, Path(table) if table else source)
    base = Path(table).parent if table else source
    if patch_um_per_px is not None and um_per_px is None:
        raise UserError(
            f"extraction.um_per_px={patch_um_per_px}: crops do not tell the size of their pixels; give um_per_px, too"
        )
    scale = scale_between(um_per_px, patch_um_per_px)
    pixels = _read_all(base, rows["path"].tolist(), size, scale)

    manifest = pd.DataFrame({"label": rows["label"], "source": rows["path"]})
    if group is None:
        # Nothing says what belongs together: each crop is a group of its own, and the user is told.
        manifest["group"] = [f"crop-{i}" for i in range(len(rows))]
    else:
        manifest["group"] = [f"{group}-{value}" for value in rows[group]]
    manifest["track"] = rows["track"].astype(str) if "track" in rows else ""
    for column in ("y", "x"):
        if column in rows:
            manifest[column] = _numbers(rows, column, table)
    if "frame" in rows:
        manifest["frame"] = _numbers(rows, "frame", table)
    if "time_h" in rows:
        manifest["time_h"] = _numbers(rows, "time_h", table)
    elif "frame" in rows and hours_per_frame is not None:
        manifest["time_h"] = _numbers(rows, "frame", table) * hours_per_frame
    made_by = {
        "command": "import",
        "source": source.name,
        "table": Path(table).name if table else None,
        "split_by": group
        or "crop (no group, track or movie is known: related crops may leak between splits)",
        "hours_per_frame": hours_per_frame,
        "unsure": len(unsure),
    }
    return PatchStore.write(
        store,
        pixels,
        manifest,
        classes=names,
        um_per_px=um_per_px if patch_um_per_px is None else patch_um_per_px,
        unsure=unsure[["label"]].assign(source=unsure["path"]),
        made_by=made_by,
        inputs=[source, table],
    )


def checked_labels(
    rows: pd.DataFrame, classes: Sequence[str] | None, where: Path
) -> tuple[list[str], pd.DataFrame, pd.DataFrame]:
    """Classes in their order, the rows that have one, and those that are labelled `unsure`.

    Raises:
        UserError: a label that is not among the given classes, a class without rows, or no labelled row.
    """
    doubtful = (rows["label"] == UNSURE).to_numpy()
    sure = rows[~doubtful].reset_index(drop=True)
    labels = sorted(sure["label"].unique())
    if not labels:
        raise UserError(
            f"{where}: all of its {len(rows)} patches are {UNSURE}; expected labelled ones"
        )
    names = list(classes) if classes else labels
    if len(set(names)) != len(names) or UNSURE in names:
        raise UserError(f"classes={names}: expected each class once, and none called {UNSURE}")
    strange = [name for name in labels if name not in names]
    if strange:
        raise UserError(
            f"{where}: found the label {strange[0]!r}, expected one of classes={names} or {UNSURE}; correct the label, "
            "remove those patches, or name the class"
        )
    absent = [name for name in names if name not in labels]
    if absent:
        raise UserError(
            f"{where}: no patch is labelled {absent[0]!r}; found {labels}; leave it out of classes="
        )
    return names, sure, rows[doubtful].reset_index(drop=True)


def _from_folders(source: Path) -> pd.DataFrame:
    rows = [
        {"path": file.relative_to(source).as_posix(), "label": folder.name}
        for folder in sorted(p for p in source.iterdir() if p.is_dir())
        for file in sorted(folder.iterdir(), key=_natural)
        if file.suffix.lower() in SUFFIXES
    ]
    if not rows:
        raise UserError(
            f"{source}: found neither patches.csv nor a sub-folder with images; expected a folder per class "
            f"holding {', '.join(SUFFIXES)} files, or a CSV with columns path and label"
        )
    return pd.DataFrame(rows)


def read_table(table: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV that has at least these columns, every row of them filled in.

    Raises:
        UserError: unreadable, a column missing, no rows, or an empty cell.
    """
    try:
        text = ("label", "path", "group", "track", "movie")
        rows = pd.read_csv(table, dtype=dict.fromkeys(text, str))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{table}: not a readable CSV ({reason}); expected columns {', '.join(columns)}"
        ) from error
    missing = [c for c in columns if c not in rows]
    if missing:
        raise UserError(
            f"{table}: column {missing[0]!r} is missing, found {list(rows.columns)}; expected {', '.join(columns)}"
        )
    if rows.empty:
        raise UserError(f"{table}: no rows; expected one per patch")
    used = [*columns, *(c for c in GROUP_COLUMNS if c in rows)]
    empty = rows[used].isna().any(axis=1)
    if empty.any():
        line = int(np.flatnonzero(empty)[0]) + 2
        column = next(c for c in used if pd.isna(rows[c].iloc[line - 2]))
        raise UserError(f"{table}: line {line} has no {column}; fill it in or remove the line")
    return rows


def _numbers(rows: pd.DataFrame, column: str, table: Any) -> pd.Series:
    values = pd.to_numeric(rows[column], errors="coerce")
    if values.isna().any():
        line = int(np.flatnonzero(values.isna())[0])
        raise UserError(
            f"{table}: line {line + 2}, column {column}: found {rows[column].iloc[line]!r}, expected a number"
        )
    return values


def _read_all(base: Path, paths: Sequence[str], size: int | None, scale: float) -> np.ndarray:
    root = base.resolve()
    pixels: np.ndarray | None = None
    for i, name in enumerate(paths):
        file = base / name
        if not file.resolve().is_relative_to(root):
            raise UserError(
                f"{file}: lies outside {base}; paths must stay inside the source folder"
            )
        crop = resample(read_crop(file), scale)
        if size is not None:
            crop = _centre(crop, size, file)
        if pixels is None:
            if crop.shape[0] != crop.shape[1]:
                raise UserError(
                    f"{file}: is {crop.shape[0]} x {crop.shape[1]} px, expected a square; give size=N to cut squares"
                )
            pixels = np.empty((len(paths), *crop.shape), np.uint8)
        if crop.shape != pixels.shape[1:]:
            raise UserError(
                f"{file}: is {crop.shape[0]} x {crop.shape[1]} px, the crops before it {pixels.shape[1]} x "
                f"{pixels.shape[2]}; give size=N to cut all to one size"
            )
        pixels[i] = crop
    if pixels is None:
        raise UserError(f"{base}: no crops of the wanted classes; see classes=[...]")
    return pixels


def read_crop(file: Path) -> np.ndarray:
    """Reads one gray 8-bit image as uint8 (height, width); colours become gray.

    Raises:
        UserError: not readable, or more than 8 bits a pixel (its scaling would be a guess per crop).
    """
    try:
        with Image.open(file) as image:
            if image.mode in ("I;16", "I", "F", "I;16B"):
                raise UserError(
                    f"{file}: {image.mode} pixels, expected 8 bit; scale the movie as a whole, not crop by crop"
                )
            return np.asarray(image.convert("L"))
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file, named in the table; correct its path") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{file}: not a readable image ({error}); remove or replace it") from error


def _centre(crop: np.ndarray, size: int, file: Path) -> np.ndarray:
    height, width = crop.shape
    if height < size or width < size:
        raise UserError(
            f"{file}: is {height} x {width} px, smaller than size={size}; give a smaller size"
        )
    y, x = (height - size) // 2, (width - size) // 2
    return crop[y : y + size, x : x + size]


def _natural(path: Path) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
