"""Rare classes made rarer still in what is learned from: how a method does where a class has few patches.

A class is thinned by whole tracks, since patches of one track are near-duplicates: half the patches of every track are
worth nearly all of them. Of a track that is dropped, the patches of the thinned class go and those of other classes
stay: a cell in mitosis passes through several classes, and these keep their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import SplitConfig
from stemcell_lit.settings.words import nearest

RAREST = 2  # classes that are thinned where none are named


@dataclass(frozen=True)
class Thinned:
    """What became of a class in the patches that are learned from.

    Attributes:
        patches: that stay.
        patches_before: that there were.
        tracks: that keep their patches of this class.
        tracks_before: that had some.
        ratio: reached, patches of the largest class that is not thinned for each patch of this one.
    """

    patches: int
    patches_before: int
    tracks: int
    tracks_before: int
    ratio: float


def classes_to_thin(store: PatchStore, config: SplitConfig) -> list[str]:
    """Names of the classes to thin, in the store's order: those given, else its rarest two, never its largest.

    Raises:
        UserError: a class that the store does not have, or all that it has.
    """
    names, given = list(store.classes), config.thin_classes
    if given is None:
        counts = store.manifest["label"].value_counts().reindex(names, fill_value=0).to_numpy()
        order = np.argsort(counts, kind="stable")[:-1]
        return [names[i] for i in sorted(order[:RAREST])]
    for name in given:
        if name not in names:
            near = nearest(name, names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"split.thin_classes=[{','.join(given)}]: {store.path} has no class {name}, expected some of "
                f"{', '.join(names)}{hint}"
            )
    if len(set(given)) == len(names):
        raise UserError(
            f"split.thin_classes=[{','.join(given)}]: all classes of {store.path}; leave out the one that the others "
            "are rare against"
        )
    return [name for name in names if name in given]


def track_units(store: PatchStore, kind: str) -> np.ndarray:
    """int64 (patches,): what of each patch stays or goes together.

    That is its track; where it has none, all such patches of its group; under the leaky split itself alone.
    """
    if kind == "leaky":
        return np.arange(len(store.manifest))
    codes: np.ndarray = store.manifest.groupby(["group", "track"], sort=True).ngroup().to_numpy()
    return codes


def thin(
    rows: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray,
    thinned: list[int],
    ratio: float,
    key: list[int],
) -> np.ndarray:
    """The rows of a part that stay.

    The part's units are put into one random order. Of each thinned class the first units of that order stay which bring
    the ratio of the largest other class to it nearest to the one that is asked for, one at least. So a larger ratio
    keeps a part of what a smaller one keeps, and what stays of a class does not depend on which others are thinned.

    Args:
        rows: (n,) int64 positions in `labels` and `units`.
        labels: class of each patch.
        units: of each patch, see `track_units`.
        thinned: classes to thin.
        ratio: of the largest class that is not thinned to each that is, 1 or more; a class that is rarer stays whole.
        key: of the random order.

    Returns:
        (m,) int64, in the order of `rows`.
    """
    of, unit = labels[rows], units[rows]
    others = of[~np.isin(of, thinned)]
    if not len(others):
        return rows
    wanted = np.bincount(others).max() / ratio
    order = np.random.default_rng(key).permutation(np.unique(unit))
    place = np.empty(units.max() + 1, np.int64)
    place[order] = np.arange(len(order))
    keep = np.ones(len(rows), bool)
    for label in thinned:
        inside = np.flatnonzero(of == label)
        if not len(inside):
            continue
        places, counts = np.unique(place[unit[inside]], return_counts=True)
        after = np.cumsum(counts)  # patches of this class with the first 1, 2, ... of its units
        last = places[np.argmin(np.abs(np.log(after / wanted)))]
        keep[inside] = place[unit[inside]] <= last
    return rows[keep]


def told(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray,
    thinned: dict[str, int],
) -> dict[str, Thinned]:
    """What became of each class that is thinned and occurs; arguments as of `thin`, `thinned` by name."""
    of = labels[after]
    others = of[~np.isin(of, list(thinned.values()))]
    found = {}
    for name, label in thinned.items():
        was, stays = before[labels[before] == label], after[of == label]
        if len(was) and len(others):
            tracks, tracks_before = (len(np.unique(units[rows])) for rows in (stays, was))
            ratio = round(int(np.bincount(others).max()) / len(stays), 2)
            found[name] = Thinned(len(stays), len(was), tracks, tracks_before, ratio)
    return found
