"""Tables of `predict`: colonies, shares over time, and a summary of the classes; of one movie and of many."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from stemcell_lit.base import formats as form
from stemcell_lit.base.spreadsheets import as_text, to_csv
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.movies.tracks import Tracks
from stemcell_lit.predict.finished import RECORD
from stemcell_lit.predict.found import Found, MappedMovie, Values

_TEXTS = form.listing(form.text(65_536))
_ABOUT = form.record(
    {
        "movie": form.record({"path": form.text(), "notices": _TEXTS}),
        "frames": form.whole(1),
        "tracks": form.whole(),
        "um_per_px": form.record({"movie": form.UM_PER_PX}),
        "hours_per_frame": form.maybe(form.number()),
        "domain": form.maybe(_TEXTS),
        "notices": _TEXTS,
    }
)

_OVERVIEW = [
    *("movie", "status", "path", "frames", "tracks", "um_per_px", "hours_per_frame"),
    *("domain", "notices"),
]

COLONIES, SHARES, CLASSES = "colonies.csv", "shares.csv", "classes.csv"


def colonies(
    tracks: Tracks, found: Found, model: TrainedHierarchy, values: Values, movie: MappedMovie
) -> pd.DataFrame:
    """A row per colony and frame: where, how large, its class with its probability, and the share of each value."""
    classes = model.hierarchy.classes
    table = tracks.table[["track", "frame", "y", "x", "area_px", "area_um2", "cut"]].copy()
    table.insert(2, "time_h", movie.hours[table["frame"]])
    where = list(zip(table["frame"], tracks.table["label"], strict=True))
    p = _rows(found.mean_p, where, len(classes))
    best = _rows(found.best, where, len(classes)).argmax(1)
    if model.hierarchy.temporal == "path":
        names = table["track"].astype(str).to_numpy()
        p, best = model.hierarchy.constrain(
            p, table["time_h"].to_numpy(), names, table["frame"].to_numpy()
        )
        p = model.calibrated(p)
    counts = _rows(found.counts, where, values.last)
    parts = counts / counts.sum(1, keepdims=True).clip(1)
    table["frame"] = movie.numbers[table["frame"]]
    table["class"] = np.array(classes)[best] if len(best) else ""
    table["probability"] = p[np.arange(len(best)), best]
    table["unsure"] = table["probability"] < (values.of_colonies or 0.0)
    for i, name in enumerate(values.names):
        table[f"share/{name}"] = parts[:, i]
    return table.sort_values(["track", "frame"], ignore_index=True)


def _rows(each: list[np.ndarray], where: list[tuple[int, int]], width: int) -> np.ndarray:
    """Of each (frame, label) its row, float64 (colonies, width)."""
    return np.array([each[f][n] for f, n in where], float).reshape(len(where), width)


def shares(found: Found, names: list[str], movie: MappedMovie, pixels: int) -> pd.DataFrame:
    """A row per frame: share of the frame in colonies, and of each value in those, NaN without any."""
    counts = np.stack([c.sum(0) for c in found.counts]).astype(float)
    inside = counts.sum(1)
    with np.errstate(invalid="ignore"):
        parts = counts / inside[:, None]
    return pd.DataFrame(
        {
            "frame": movie.numbers,
            "time_h": movie.hours,
            "colonies": inside / pixels,
            **{f"share/{c}": parts[:, i] for i, c in enumerate(names)},
        }
    )


def classes(
    name: str,
    found: Found,
    names: list[str],
    table: pd.DataFrame,
    over_time: pd.DataFrame,
    movie: MappedMovie,
) -> pd.DataFrame:
    """A row per value of the map.

    `frames` in which it is seen; its mean area a frame, over all frames that are mapped; `colonies`, tracks that are of
    it in a frame or more, unsure ones counted as unsure alone; its mean share of the colonies' area, over the frames
    that show colonies.
    """
    counts = np.stack([c.sum(0) for c in found.counts]).astype(float)
    um2 = np.nan if movie.um_per_px is None else movie.um_per_px**2
    of = table["class"].where(~table["unsure"], names[-1])
    tracks = table["track"].groupby(of).nunique()
    return pd.DataFrame(
        {
            "movie": name,
            "class": names,
            "frames": (counts > 0).sum(0),
            "mean_area_px": counts.mean(0),
            "mean_area_um2": counts.mean(0) * um2,
            "colonies": [int(tracks.get(n, 0)) for n in names],
            "mean_share": [over_time[f"share/{n}"].mean() for n in names],
        }
    )


def joined(folders: Mapping[str, Path], file: str) -> str:
    """The tables of many movies below each other, as CSV, with the movie in the first column.

    Args:
        folders: name of a movie -> folder of its results.
        file: which of the tables; all have the same columns.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for k, (name, folder) in enumerate(folders.items()):
        head, *rows = _lines(folder / file)
        own = head[0] == "movie"  # the table names its movie itself
        if k == 0:
            writer.writerow(head if own else ["movie", *head])
        writer.writerows(row if own else [as_text(name), *row] for row in rows)
    return stream.getvalue()


def _lines(file: Path) -> Iterable[list[str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        yield from csv.reader(stream)


def overview(folders: Mapping[str, Path], failed: Mapping[str, str]) -> str:
    """A row per movie, as CSV: whether it is mapped, and what was said of it.

    `domain` is `as in training`, what is unlike it, or empty where the model knows nothing of that.

    Args:
        folders: name of a mapped movie -> folder of its results.
        failed: path of another -> why it is not mapped.
    """
    rows = []
    for name, folder in folders.items():
        about = form.read_json(folder / RECORD, _ABOUT, "map it again")
        strange = about["domain"]
        rows.append(
            {
                "movie": name,
                "status": "mapped",
                "path": about["movie"]["path"],
                "frames": about["frames"],
                "tracks": about["tracks"],
                "um_per_px": about["um_per_px"]["movie"],
                "hours_per_frame": about["hours_per_frame"],
                "domain": "" if strange is None else "; ".join(strange) or "as in training",
                "notices": "; ".join([*about["movie"]["notices"], *about["notices"]]),
            }
        )
    rows += [
        {"movie": path, "status": "not mapped", "path": path, "notices": why}
        for path, why in failed.items()
    ]
    table = pd.DataFrame(rows, columns=_OVERVIEW).astype({"frames": "Int64", "tracks": "Int64"})
    return to_csv(table, "%.6g")
