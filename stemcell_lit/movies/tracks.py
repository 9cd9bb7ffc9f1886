"""Colonies followed from frame to frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import _centres, label_colonies

MIN_OVERLAP = 0.1  # share of the smaller of two colonies that they must have in common

TABLE_COLUMNS = {
    "frame": np.int64,
    "track": np.int64,  # from 1, unique in the movie
    "label": np.int64,  # in `label_colonies` of that frame's mask
    "area_px": np.int64,
    "area_um2": np.float64,  # NaN where the pixel size is unknown
    "y": np.float64,  # centre of mass, px
    "x": np.float64,
    "cut": np.bool_,  # touches the border of the frame: its true area is larger
}


EVENT_COLUMNS = {
    "frame": np.int64,  # in which it is seen first
    "kind": object,  # merge | split
    "track": np.int64,  # the one that ends (merge) or begins (split)
    "other": np.int64,  # the one that it joins or comes from
}


@dataclass(frozen=True)
class Tracks:
    """Colonies over time."""

    table: pd.DataFrame  # a row per colony and frame, columns as in `TABLE_COLUMNS`
    events: pd.DataFrame  # a row per merge or split, columns as in `EVENT_COLUMNS`
    _ids: list[np.ndarray] = field(repr=False)

    def paint(self, labels: np.ndarray, frame: int) -> np.ndarray:
        """Labels of a frame replaced by the numbers of their tracks, int32 (height, width)."""
        painted: np.ndarray = self._ids[frame][labels]
        return painted


def track(masks: Iterable[np.ndarray], *, um_per_px: float | None = None) -> Tracks:
    """Links colonies over frames by overlap.

    Two colonies of consecutive frames are linked if they share at least `MIN_OVERLAP` of the
    smaller one. Of all links the largest overlaps continue a track, each colony in at most one;
    what is left tells merges (a colony of the frame before ends in one that is another's
    continuation) and splits (a new colony lies where a track that goes on was). A colony that
    vanishes without merging is looked for at its last place for one more frame.

    Args:
        masks: per frame, bool (height, width), or integers numbering its colonies. Only two frames
            are held at a time, so that a generator over a large movie works.
        um_per_px: size of a pixel in micrometres, for areas.

    Raises:
        UserError: the masks differ in shape.
    """
    rows: list[dict[str, np.ndarray]] = []
    events: list[tuple[int, str, int, int]] = []
    ids: list[np.ndarray] = []
    before: np.ndarray | None = None  # numbers of the tracks at their last places
    missing: set[int] = set()  # tracks that the last frame did not show
    created = 0
    for number, mask in enumerate(masks):
        labels = label_colonies(mask) if mask.dtype == bool else mask.astype(np.int32, copy=False)
        if before is not None and labels.shape != before.shape:
            raise UserError(
                f"the mask of frame {number} is {labels.shape}, those before it {before.shape}; "
                "expected masks of one movie"
            )
        area = np.bincount(labels.ravel())
        owner = np.zeros(len(area), np.int32)  # label -> track
        found: list[tuple[int, int]] = []  # (track, label), the largest overlap first
        if before is not None:
            found = _links(before, labels, area)
        continued: set[int] = set()
        for old, label in found:
            if old not in continued and owner[label] == 0:
                owner[label] = old
                continued.add(old)
        fresh = np.flatnonzero((area > 0) & (owner == 0))
        fresh = fresh[fresh > 0]
        began = dict(zip(fresh.tolist(), range(created + 1, created + 1 + len(fresh)), strict=True))
        owner[fresh] = list(began.values())
        created += len(fresh)
        ended: set[int] = set()
        explained: set[int] = set()
        for old, label in found:
            if label in began and label not in explained:
                # its overlap went to another colony, or it would be that track's continuation
                events.append((number, "split", began[label], old))
                explained.add(label)
            elif old not in continued and old not in ended and old not in missing:
                events.append((number, "merge", old, int(owner[label])))
                ended.add(old)
        ids.append(owner)
        rows.append(_rows(number, labels, area, owner, um_per_px))
        now = owner[labels]
        if before is not None:
            missing = set(np.unique(before).tolist()) - {0} - continued - ended - missing
            if missing:
                ghost = np.isin(before, list(missing)) & (now == 0)
                now[ghost] = before[ghost]
        before = now
    table = pd.DataFrame(
        {n: np.concatenate([[], *(r[n] for r in rows)]).astype(t) for n, t in TABLE_COLUMNS.items()}
    )
    log = pd.DataFrame(events, columns=list(EVENT_COLUMNS)).astype(EVENT_COLUMNS)
    return Tracks(table, log, ids)


def _links(before: np.ndarray, labels: np.ndarray, area: np.ndarray) -> list[tuple[int, int]]:
    """(track, label) pairs that share enough, by falling overlap, ties by age of the track."""
    both = (before > 0) & (labels > 0)
    width = np.int64(len(area))
    keys, shared = np.unique(
        before[both].astype(np.int64) * width + labels[both], return_counts=True
    )
    old, new = keys // width, keys % width
    sizes = np.bincount(before.ravel())
    enough = shared >= MIN_OVERLAP * np.minimum(sizes[old], area[new])
    old, new, shared = old[enough], new[enough], shared[enough]
    order = np.lexsort((new, old, -shared))
    return list(zip(old[order].tolist(), new[order].tolist(), strict=True))


def _rows(
    number: int,
    labels: np.ndarray,
    area: np.ndarray,
    owner: np.ndarray,
    um_per_px: float | None,
) -> dict[str, np.ndarray]:
    """The columns of the table for one frame."""
    present = np.flatnonzero(area)
    present = present[present > 0]
    y, x = _centres(labels, area)[:, present]
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return {
        "frame": np.full(len(present), number),
        "track": owner[present],
        "label": present,
        "area_px": area[present],
        "area_um2": area[present] * (np.nan if um_per_px is None else um_per_px**2),
        "y": y,
        "x": x,
        "cut": np.isin(present, border),
    }
