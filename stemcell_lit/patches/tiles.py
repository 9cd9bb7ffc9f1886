"""Labelled tiles of time-lapses: frames and a CSV that says where each tile lies and what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import classifier_of, foreground
from stemcell_lit.movies.frames import Frames, Movie, open_frames
from stemcell_lit.movies.resample import resample, scaled_shape
from stemcell_lit.movies.suffixes import bare_name
from stemcell_lit.patches.column_names import find_columns
from stemcell_lit.patches.extraction import (
    check_extraction,
    one_size,
    patch_scale,
    say_views_cross_columns,
)
from stemcell_lit.patches.labelled import Select, movies_in
from stemcell_lit.patches.labels import checked_labels
from stemcell_lit.patches.store import PatchStore, ViewCutter, check_scales
from stemcell_lit.patches.tables import column_names, read_table
from stemcell_lit.settings.colony_keys import ColoniesConfig
from stemcell_lit.settings.patch_keys import ImportCommand, given_columns

COLUMNS = ("frame", "y", "x", "size", "label")


def is_tiles(table: Path, columns: Mapping[str, str | None]) -> bool:
    """Whether a CSV names places in frames rather than files; `columns` as in `read_table`."""
    if not table.is_file():
        raise UserError(f"{table}: no such file; expected a CSV of crops or of tiles")
    names = column_names(table)
    own = {n: theirs for n, theirs in columns.items() if n in (*COLUMNS, "path")}
    called = {*names, *find_columns(names, (*COLUMNS, "path"), own, str(table)).places}
    return set(COLUMNS) <= called and "path" not in called


def import_tiles(config: ImportCommand, table: Path) -> PatchStore:
    """Cuts the tiles of a table out of a movie, or of several, frame by frame.

    The source is a time-lapse that `open_frames` reads, or a folder of them, which the table tells apart. One field of
    view gives no independent groups. The nearest to it are blocks of columns: tiles of one block stay on one side of a
    split over the whole time, so no place is both trained on and tested. Several movies are groups themselves. A track
    is a place. Of `extraction`, `um_per_px`, `scales` and `every` are used: tiles are resampled, get wider views, and
    only those of each n-th frame are taken.

    Args:
        config: as the user gave it.
        table: CSV with `frame` (as the names of the files number it, else from 0), `y`, `x` (upper left corner, px),
            `size` (px, the same in all rows), `label`; perhaps `coverage` (share of foreground, which is else measured
            where the pixel size is known), `time_h` (hours; before what the movie tells), `movie` (its name, or a file
            name with or without suffix). The label `unsure` is left out, and counted; tiles without one join.

    Raises:
        UserError: a tile outside its frame, sizes that differ, or an unreadable movie or table.
    """
    movie, extraction, blocks = Path(config.source), config.extraction, config.blocks
    check_extraction(extraction)
    read = read_table(
        table,
        COLUMNS,
        ["coverage", "movie", "time_h"],
        bare=["label"],
        columns=given_columns(config.columns),
    )
    rows = read.rows.copy()
    for column in ("frame", "y", "x", "size"):
        rows[column] = read.whole(column)
    sizes = rows["size"].unique()
    if len(sizes) != 1 or sizes[0] < 8:
        raise UserError(
            f"{table}: tiles of {sorted(sizes.tolist())} px; expected one size, at least 8"
        )
    if "coverage" in rows:
        rows["coverage"] = read.numbers("coverage", 0, 1)
    if "time_h" in rows:
        rows["time_h"] = read.numbers("time_h", 0)
        of_frame = [c for c in ("movie", "frame") if c in rows]
        other = rows.groupby(of_frame)["time_h"].transform("first") != rows["time_h"]
        if other.any():
            r = rows[other].iloc[0]
            raise UserError(
                f"{table}: line {r['line']}: found time_h {r['time_h']:g} of frame {r['frame']}, and another above; "
                "expected one time a frame; correct it"
            )
    place = [c for c in ("movie", "frame", "y", "x") if c in rows]
    rows = read.once(rows, place, "tile")
    names, rows, unsure = checked_labels(
        rows, config.classes, table, config.without, config.unlabelled
    )
    select = Select(config.channel, config.plane, config.position)
    movies = _movies(movie, rows, table, select)
    alone = len(set(movies.values())) == 1
    parts, pixels, left_out, described = [], [], [], []
    found: dict[float | None, str] = {}
    for known in dict.fromkeys(movies.values()):
        mine, doubtful = (
            part
            if alone
            else part[part["movie"].isin([n for n, m in movies.items() if m == known])]
            for part in (rows, unsure)
        )
        with open_frames(
            known,
            um_per_px=config.um_per_px,
            hours_per_frame=config.hours_per_frame,
            channel=select.channel,
            plane=select.plane,
        ) as frames:
            scale, um = patch_scale(frames, extraction.um_per_px)
            found.setdefault(um, known.name)
            for part in (mine, doubtful):
                _check_places(part, frames, table)
            used = frames.numbers[frames.each(extraction.every)]
            mine, doubtful = (part[part["frame"].isin(used)] for part in (mine, doubtful))
            size = round(int(sizes[0]) * scale)
            check_scales(extraction.scales, size)
            mine = mine if alone else mine.sort_values("frame", kind="stable")
            cut, inside = _cut(frames, mine, scale, size, extraction.scales, config.colonies)
            pixels.append(cut)
            parts.append(_manifest(mine, frames, alone, blocks, inside))
            left_out.append(_manifest(doubtful, frames, alone, blocks, None))
            described.append(frames.describe())
    if not sum(len(p) for p in pixels):
        raise UserError(
            f"{table}: no tile lies in each {extraction.every}. frame; lower extraction.every"
        )
    one_size(found)
    if alone:
        say_views_cross_columns(extraction)
    made_by = {
        "command": "import",
        "source": movie.name,
        "table": table.name,
        "movies": described,
        "every": extraction.every,
        "unsure": len(unsure),
        "split_by": "movie"
        if not alone
        else f"block of columns ({blocks} over the width of the frame)",
    }
    return PatchStore.write(
        config.store,
        np.concatenate(pixels),
        pd.concat(parts, ignore_index=True),
        classes=names,
        um_per_px=next(iter(found)),
        scales=extraction.scales,
        unsure=pd.concat(left_out, ignore_index=True),
        made_by=made_by,
        inputs=[movie, table],
    )


def _movies(source: Path, rows: pd.DataFrame, table: Path, select: Select) -> dict[str, Movie]:
    """What the table calls a movie -> the movie; one entry where it does not tell movies apart."""
    there = movies_in(source, select)
    names = ", ".join(m.name for m in there[:12]) or "none"
    if "movie" not in rows:
        if len(there) != 1:
            raise UserError(
                f"{table}: has no column movie, and {source} holds {len(there)} movies ({names}); add the column, or "
                "give one movie as source or position="
            )
        return {"": there[0]}
    known: dict[str, list[Movie]] = {}
    for movie in there:
        alone = movie.path.name if movie.position is None else movie.name
        for name in dict.fromkeys((movie.name, alone, bare_name(movie.path))):
            known.setdefault(name, []).append(movie)
    wanted = list(dict.fromkeys(rows["movie"]))
    missing = [name for name in wanted if len(known.get(name, [])) != 1]
    if missing:
        raise UserError(
            f"{table}: names the movie {missing[0]!r}; {source} holds {names}; correct the column movie"
        )
    return {name: known[name][0] for name in wanted}


def _check_places(rows: pd.DataFrame, frames: Frames, table: Path) -> None:
    height, width = frames.shape[-2:]
    absent = ~rows["frame"].isin(frames.numbers)
    if absent.any():
        r = rows[absent].iloc[0]
        span = f"numbered {frames.numbers[0]} to {frames.numbers[-1]}"
        span += " by the names of its files" if frames.named else ""
        raise UserError(
            f"{table}: line {r['line']}: frame {r['frame']} is not there: {frames.name} has {len(frames)} frames, "
            f"{span}; correct the column frame"
        )
    bad = (
        (rows["y"] < 0)
        | (rows["x"] < 0)
        | (rows["y"] + rows["size"] > height)
        | (rows["x"] + rows["size"] > width)
    )
    if bad.any():
        r = rows[bad].iloc[0]
        raise UserError(
            f"{table}: line {r['line']}: tile at y {r['y']}, x {r['x']} of frame {r['frame']} with {r['size']} px lies "
            f"outside {frames.path.name} ({len(frames)} frames of {height} x {width} px)"
        )


def _cut(
    frames: Frames,
    rows: pd.DataFrame,
    scale: float,
    size: int,
    scales: Sequence[int],
    colonies: ColoniesConfig,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels of the tiles, and their shares of foreground where these are wanted."""
    views = () if len(scales) == 1 else (len(scales),)
    pixels = np.empty((len(rows), *views, size, size), np.uint8)
    inside, classifier = None, None
    if "coverage" not in rows and frames.um_per_px is not None:
        inside, classifier = np.empty(len(rows)), classifier_of(colonies)
    most = np.array(scaled_shape(frames.shape[1:], scale)) - size
    number = rows["frame"].to_numpy()
    corners = rows[["y", "x"]].to_numpy()
    for frame in np.unique(number):
        mine = np.flatnonzero(number == frame)
        at = frames.index_of(int(frame))
        assert at is not None  # `_check_places` has looked
        image = frames.read(at)
        # a corner between two pixels of the resampled frame goes to the nearer one
        top, left = np.minimum(np.rint(corners[mine] * scale).astype(int), most).T
        pixels[mine] = ViewCutter(resample(image, scale), size, scales).cut(top, left)
        if inside is not None:
            mask = foreground(image, colonies, frames.um_per_px, classifier=classifier)
            side = int(rows["size"].iloc[0])
            for i in mine:
                y, x = corners[i]
                inside[i] = mask[y : y + side, x : x + side].mean()
    return pixels, inside


def _manifest(
    rows: pd.DataFrame, frames: Frames, alone: bool, blocks: int, inside: np.ndarray | None
) -> pd.DataFrame:
    half, width, name = rows["size"] // 2, frames.shape[2], frames.name
    at = np.searchsorted(frames.numbers, rows["frame"])
    prefix = "" if alone else f"{name}/"
    columns: dict[str, Any] = {
        "label": rows["label"].astype(str),
        "group": [f"columns-{b}" for b in (rows["x"] + half) * blocks // width] if alone else name,
        "track": [f"{prefix}y{y}-x{x}" for y, x in zip(rows["y"], rows["x"], strict=True)],
        "frame": rows["frame"],
        "time_h": rows["time_h"]
        if "time_h" in rows
        else np.nan
        if frames.hours is None
        else frames.hours[at],
        "y": rows["y"] + rows["size"] / 2,
        "x": rows["x"] + rows["size"] / 2,
        "source": frames.path.name,
    }
    if "coverage" in rows:
        columns["foreground"] = rows["coverage"].astype(float)
    elif inside is not None:
        columns["foreground"] = inside
    return pd.DataFrame(columns)
