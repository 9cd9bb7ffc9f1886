"""Labelled tiles of one time-lapse: frames and a CSV that says where each tile lies and what it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stemcell_lit.data.crops import read_table
from stemcell_lit.data.frames import open_frames
from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError

COLUMNS = ("frame", "y", "x", "size", "label")
BLOCKS = 10  # columns of tiles on one side of a split; a field of view has no better groups


def is_tiles(table: Path) -> bool:
    """Whether a CSV names places in frames rather than files."""
    if not table.is_file():
        raise UserError(f"{table}: no such file; expected a CSV of crops or of tiles")
    with table.open(encoding="utf-8") as stream:
        header = stream.readline().strip().split(",")
    return set(COLUMNS) <= set(header) and "path" not in header


def import_tiles(
    movie: str | Path,
    table: str | Path,
    store: str | Path,
    *,
    um_per_px: float | None = None,
    hours_per_frame: float | None = None,
    blocks: int = BLOCKS,
) -> PatchStore:
    """Cuts the tiles of a table out of a movie, frame by frame.

    One field of view gives no independent groups. The nearest to it are blocks of columns: tiles of one block stay
    on one side of a split over the whole time, so no place is both trained on and tested. A track is a place.

    Args:
        movie: a time-lapse that `open_frames` reads.
        table: CSV with `frame` (from 0), `y`, `x` (upper left corner, px), `size` (px, the same in all rows), `label`.
        store: the PatchStore to make.
        um_per_px: size of a pixel in micrometres; None: the movie's own, where it says.
        hours_per_frame: None: the movie's own.
        blocks: how many groups of equally many columns of pixels.

    Raises:
        UserError: a tile outside its frame, sizes that differ, or an unreadable movie or table.
    """
    movie, table = Path(movie), Path(table)
    rows = read_table(table, COLUMNS)
    for column in ("frame", "y", "x", "size"):
        if not pd.api.types.is_integer_dtype(rows[column]):
            raise UserError(
                f"{table}: column {column} holds {rows[column].dtype} values, expected whole numbers"
            )
    sizes = rows["size"].unique()
    if len(sizes) != 1:
        raise UserError(f"{table}: tiles of {sorted(sizes.tolist())} px; expected one size")
    size = int(sizes[0])
    with open_frames(movie, um_per_px=um_per_px, hours_per_frame=hours_per_frame) as frames:
        height, width = frames.shape[-2:]
        bad = (
            (rows["frame"] < 0)
            | (rows["frame"] >= len(frames))
            | (rows["y"] < 0)
            | (rows["x"] < 0)
            | (rows["y"] + size > height)
            | (rows["x"] + size > width)
        )
        if bad.any():
            line = int(np.flatnonzero(bad)[0])
            r = rows.iloc[line]
            raise UserError(
                f"{table}: line {line + 2}: tile at y {r['y']}, x {r['x']} of frame {r['frame']} with {size} px lies "
                f"outside {movie.name} ({len(frames)} frames of {height} x {width} px)"
            )
        pixels = np.empty((len(rows), size, size), np.uint8)
        for frame, tiles in rows.groupby("frame"):
            image = frames.read(int(frame))  # type: ignore[call-overload,arg-type]
            for i, y, x in zip(tiles.index, tiles["y"], tiles["x"], strict=True):
                pixels[i] = image[y : y + size, x : x + size]
        um, hours = frames.um_per_px, frames.hours_per_frame
    block = (rows["x"] + size // 2) * blocks // width
    manifest = pd.DataFrame(
        {
            "label": rows["label"].astype(str),
            "group": [f"columns-{b}" for b in block],
            "track": [f"y{y}-x{x}" for y, x in zip(rows["y"], rows["x"], strict=True)],
            "frame": rows["frame"],
            "time_h": rows["frame"] * hours if hours else np.nan,
            "y": rows["y"] + size / 2,
            "x": rows["x"] + size / 2,
            "source": movie.name,
            **({"foreground": rows["coverage"].astype(float)} if "coverage" in rows else {}),
        }
    )
    made_by = {
        "command": "import",
        "source": movie.name,
        "table": table.name,
        "split_by": f"block of columns ({blocks} over the width of the frame)",
        "hours_per_frame": hours,
    }
    names = sorted(manifest["label"].unique())
    return PatchStore.write(store, pixels, manifest, classes=names, um_per_px=um, made_by=made_by)
