"""Patches without a label that show what a labelled one shows: they belong to its group, whatever else they are."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from stemcell_lit.errors import UserError
from stemcell_lit.patches.labels import UNLABELLED
from stemcell_lit.settings.patch_keys import NearConfig


def wanted(near: NearConfig) -> bool:
    """Whether neighbours are to be joined.

    Raises:
        UserError: one of the two distances alone.
    """
    if (near.frames is None) != (near.px is None):
        raise UserError(
            f"near={{frames:{near.frames},px:{near.px}}}: expected both, such as near={{frames:6,px:40}}"
        )
    return near.px is not None


def near_groups(rows: pd.DataFrame, frames: int, px: float) -> list[set[str]]:
    """Of each patch the groups of labelled patches within so many frames and so many px, both included.

    Args:
        rows: a row a patch: `label`, `group`, `field` (patches of different fields are never near), `frame`, and the
            centre `x`, `y` in px.
        frames: between two patches, at most.
        px: between their centres, at most.

    Returns:
        A set a row; empty for labelled patches.
    """
    found: list[set[str]] = [set() for _ in range(len(rows))]
    groups, frame = rows["group"].to_numpy(), rows["frame"].to_numpy()
    centres, bare = rows[["y", "x"]].to_numpy(float), (rows["label"] == UNLABELLED).to_numpy()
    field = rows["field"].to_numpy()
    for name in dict.fromkeys(field):
        of = np.flatnonzero(field == name)
        known, other = of[~bare[of]], of[bare[of]]
        if not len(known) or not len(other):
            continue
        tree = cKDTree(centres[known])
        for row, close in zip(other, tree.query_ball_point(centres[other], px), strict=True):
            close = known[close]
            found[row] = set(groups[close[np.abs(frame[close] - frame[row]) <= frames]])
    return found


def joined_to_neighbours(
    rows: pd.DataFrame, near: NearConfig, where: Path
) -> tuple[list[str], np.ndarray, str]:
    """Groups in which patches without a label are with the labelled ones that they are near.

    A group without a labelled patch that is near one group with such goes there as a whole. What is near several, one
    of which may be held out while another trains, cannot be on the right side of every split: it is left out. So is a
    patch without a label that its own group keeps with labelled ones, where it is near those of another group.

    Args:
        rows: as in `near_groups`.
        near: both distances.
        where: begins messages.

    Returns:
        The group of each row, which rows stay (bool), and what was done, in a sentence.
    """
    assert near.frames is not None and near.px is not None
    bare = (rows["label"] == UNLABELLED).to_numpy()
    groups = rows["group"].tolist()
    labelled = {group for group, without in zip(groups, bare, strict=True) if not without}
    close = near_groups(rows, near.frames, near.px)
    of_group: dict[str, set[str]] = defaultdict(set)
    for group, found in zip(groups, close, strict=True):
        if group not in labelled:
            of_group[group] |= found
    keep, joined = np.ones(len(rows), bool), 0
    for i in np.flatnonzero(bare):
        group = groups[i]
        others = close[i] - {group} if group in labelled else of_group[group]
        if len(others) == 1 and group not in labelled:
            groups[i], joined = next(iter(others)), joined + 1
        elif others:
            keep[i] = False
    return (
        groups,
        keep,
        f"{where}: of {int(bare.sum())} patches without a label {joined} lie within {near.frames} frames and "
        f"{near.px:g} px of labelled ones of one group, and join it; {int((~keep).sum())} lie near two groups or more, "
        "and are left out",
    )
