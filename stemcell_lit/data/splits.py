"""Who trains, who validates, who tests: by group, stratified by class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from stemcell_lit.data.folds import GroupTable, can_validate
from stemcell_lit.data.thinning import Thinned, classes_to_thin, thin, told, track_units
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.group_keys import SplitConfig


@dataclass(frozen=True)
class Split:
    """Row numbers of a store, sorted; no row is in two parts.

    Attributes:
        train: rows that may be learned from.
        val: rows of the held-out part of the training groups: for choosing, never for the result.
        test: rows of the result.
        kind: grouped or leaky.
        unlabelled: rows that may be learned from without a class: of training groups whose labels `labelled_fraction`
            hides; patches without a label, see `_unlabelled`.
        thinned: what `thin_ratio` made of classes of `train`, by name; rows that it drops are in no part.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    kind: str = "grouped"
    unlabelled: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    thinned: Mapping[str, Thinned] = field(default_factory=dict)

    def groups(self, store: PatchStore, part: str) -> list[str]:
        """Sorted names of the groups in `train`, `val` or `test`."""
        return sorted(store.manifest["group"].iloc[getattr(self, part)].unique())

    def units(self, store: PatchStore, part: str) -> set[str]:
        """What must not be on both sides: groups, or under the leaky split single patches."""
        if self.kind == "leaky":
            return {f"patch-{row}" for row in getattr(self, part)}
        return set(self.groups(store, part))


class CannotSplit(UserError):
    """A split that the data do not allow.

    Attributes:
        what: the sentence without its remedy.
        kind: what it is about, `fold`, `folds` or `validation`, by which a remedy is looked for.
    """

    def __init__(self, what: str, remedy: str, kind: str = "folds"):
        super().__init__(f"{what}; {remedy}")
        self.what, self.kind = what, kind


FEW_GROUPS = 20  # below, five folds would leave a handful of groups to each test part
MOST_FOLDS = 10  # that are taken, or proposed, of their own accord

Parts = list[tuple[np.ndarray, np.ndarray]]  # every fold as (training, held out) positions


def fold_count(store: PatchStore, config: SplitConfig) -> int:
    """Number of folds: as given, else 5, or 3 where there are fewer than 20 groups.

    Of its own accord it is smaller where there are fewer groups, and larger, up to `MOST_FOLDS`, where only then every
    training part has each class of two groups or more and groups that can validate.

    Raises:
        UserError: it is not given, and the groups cannot be divided.
    """
    return len(_all_folds(store, config)) if config.folds is None else config.folds


def fold_note(store: PatchStore, config: SplitConfig) -> str | None:
    """Why the number of folds is not the usual one, in a sentence; None where it is, or was given."""
    usual, found = _usual(store), fold_count(store, config)
    if config.folds is not None or found == usual:
        return None
    if found < usual:
        return f"{found} folds instead of {usual}: there are no more groups"
    return (
        f"{found} folds instead of {usual}: with fewer, some fold would train without a class, or none of its groups "
        "could validate"
    )


def _usual(store: PatchStore) -> int:
    return 5 if store.manifest["group"][store.labelled].nunique() >= FEW_GROUPS else 3


def make_split(store: PatchStore, config: SplitConfig) -> Split:
    """One fold of a stratified k-fold over groups (movies, fields, tracks).

    Every labelled row is tested in exactly one fold. Where two groups or more hold a class, no fold tests them all, if
    any assignment of groups to folds can do that (`data/folds.py`). Inside the training groups, `validation_share` of
    the patches is set aside, again by group, never the last training group of a class; `labelled_fraction` then keeps
    part of the remaining groups, the same classes present. Last, `thin_ratio` drops tracks of rare classes from what is
    left to learn from, labelled and hidden each for itself (`data/thinning.py`). Patches without a label change nothing
    in this, and are not thinned.

    Raises:
        UserError: fewer groups than folds, a fold that does not exist, no group that can validate, or a class to thin
            that is none.
    """
    check(config, "split.")
    parts = _all_folds(store, config)
    if not 0 <= config.fold < len(parts):
        raise CannotSplit(
            f"split.fold={config.fold}: expected 0 to {len(parts) - 1} (split.folds={len(parts)})",
            "give one of these",
            "fold",
        )
    rows, labels, groups = _known(store, config)
    rest, test = parts[config.fold]
    train, val = rest, rest[:0]
    if config.validation_share > 0:
        inner, held = _validation(labels[rest], groups[rest], config, store)
        train, val = rest[inner], rest[held]
    hidden = train[:0]
    if config.labelled_fraction < 1:
        known = _labelled(labels, groups, train, config)
        hidden, train = np.setdiff1d(train, known), known
    thinned: Mapping[str, Thinned] = {}
    if config.thin_ratio is not None:
        of = {name: store.classes.index(name) for name in classes_to_thin(store, config)}
        units, key = track_units(store, config.kind)[rows], [config.seed, config.fold, 9]
        before, classes, ratio = train, list(of.values()), config.thin_ratio
        train, hidden = (thin(part, labels, units, classes, ratio, key) for part in (train, hidden))
        thinned = told(before, train, labels, units, of)
    train, val, test, hidden = (np.sort(rows[part]) for part in (train, val, test, hidden))
    return Split(train, val, test, config.kind, _unlabelled(store, val, test, hidden), thinned)


def _known(store: PatchStore, config: SplitConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that have a label, sorted, their classes, and what each must stay together with.

    That is its group, or under the leaky split nothing: int64 numbers in the order of the names, since a split depends
    on that order, and numbers are sorted far quicker than texts.
    """
    rows = np.flatnonzero(store.labelled)
    if config.kind == "leaky":  # the paper's split: each frame on its own
        units = np.unique(np.array([f"patch-{i}" for i in rows]), return_inverse=True)[1]
    else:
        names = store.manifest["group"].iloc[rows]
        units = pd.factorize(names, sort=True)[0].astype(np.int64)
    return rows, store.labels_of(rows), units


def _unlabelled(
    store: PatchStore, val: np.ndarray, test: np.ndarray, hidden: np.ndarray
) -> np.ndarray:
    """Rows to learn from without a class: hidden ones, and those without a label whose group is not held out.

    A group that holds no labelled patch trains in every fold. Import joins patches near a labelled one to its group
    (`near=`), so that none of them shows what is held out. Whatever the kind of split, whole groups are meant.
    """
    group = store.manifest["group"]
    held = set(group.iloc[val]) | set(group.iloc[test])
    free = ~store.labelled & ~group.isin(held).to_numpy()
    return np.union1d(hidden, np.flatnonzero(free))


def _all_folds(store: PatchStore, config: SplitConfig) -> Parts:
    """The stratified folds, or where these leave a class without training groups, others that do not.

    Where no assignment does, the stratified ones of the usual number: planning says which class is in the way.
    """
    _, labels, groups = _known(store, config)
    table = GroupTable(labels, groups)
    found, largest = len(table.counts), int(np.unique(labels, return_counts=True)[1].max())
    if config.folds is not None:
        numbers = [config.folds]
    else:
        first = max(2, min(_usual(store), found, largest))
        numbers = list(range(first, max(first, min(found, largest, MOST_FOLDS)) + 1))
    if found < numbers[0]:
        many = f"{found} {'group' if found == 1 else 'groups'}"
        raise CannotSplit(
            f"{store.path}: {many} cannot make {numbers[0]} folds",
            f"give split.folds={max(found, 2)} or less, or import with another group column",
        )
    for validate in (True, False) if config.validation_share > 0 else (False,):
        for folds in numbers:
            parts = _folds(labels, groups, folds, config.seed, store)
            if table.fits(table.fold_of(parts), folds, validate):
                return parts
            other = table.search(folds, config.seed, validate)
            if other is not None:
                return table.parts(other, folds)
    return _folds(labels, groups, numbers[0], config.seed, store)


def whole_split(store: PatchStore, config: SplitConfig) -> Split:
    """All labelled groups train, but for the validation share; none is tested, and nothing is thinned.

    Raises:
        UserError: no group that can validate.
    """
    check(config, "split.")
    rows, labels, groups = _known(store, config)
    train, val = rows, rows[:0]
    if config.validation_share > 0:
        inner, held = _validation(labels, groups, config, store)
        train, val = np.sort(rows[inner]), np.sort(rows[held])
    return Split(train, val, rows[:0], config.kind, _unlabelled(store, val, rows[:0], rows[:0]))


def _validation(
    labels: np.ndarray, groups: np.ndarray, config: SplitConfig, store: PatchStore
) -> tuple[np.ndarray, np.ndarray]:
    """Which of a fold's training patches train and which validate, as positions.

    The splitter knows nothing of a class that one or two groups hold. Of its parts the first is taken that leaves every
    class a training group; where none does, the part of which most remains when such groups are given back; where
    nothing remains, the smallest group that is the last of no class.
    """
    folds = max(2, round(1 / config.validation_share))
    # A part needs a group and, stratified, a member of the largest class.
    folds = min(folds, len(set(groups)), int(np.unique(labels, return_counts=True)[1].max()))
    where = f"{store.path}: fold {config.fold}"
    if folds < 2:
        only = "one training group" if len(set(groups)) < 2 else "one training patch a class"
        raise CannotSplit(f"{where} has {only}", "give split.validation_share=0", "validation")
    parts = _folds(labels, groups, folds, config.seed, store)
    classes = set(labels)
    for inner, held in parts:
        if set(labels[inner]) == classes:
            return inner, held
    best = (parts[0][0], parts[0][1][:0])
    for inner, held in parts:
        lost = list(classes - set(labels[inner]))
        back = np.isin(groups[held], groups[held][np.isin(labels[held], lost)])
        if (~back).sum() > len(best[1]):
            best = np.union1d(inner, held[back]), held[~back]
    if len(best[1]):
        return best
    table = GroupTable(labels, groups)
    free = np.flatnonzero(can_validate(table.holds))
    if not len(free):
        raise CannotSplit(
            f"{where}: each of its training groups is the last of a class, none can validate",
            "give split.validation_share=0",
            "validation",
        )
    alone = table.codes == free[np.argmin(table.counts[free].sum(1))]
    return np.flatnonzero(~alone), np.flatnonzero(alone)


def _folds(
    labels: np.ndarray, groups: np.ndarray, folds: int, seed: int, store: PatchStore
) -> Parts:
    """Stratified folds."""
    # Where each row is a group of its own, grouping is no constraint, and the plain splitter is much quicker.
    single = len(set(groups)) == len(groups)
    kind = StratifiedKFold if single else StratifiedGroupKFold
    with warnings.catch_warnings():
        # A class with fewer members than folds is missing from some folds: the report shows it per class.
        warnings.filterwarnings("ignore", message="The least populated class")
        try:
            splitter = kind(n_splits=folds, shuffle=True, random_state=seed)
            return list(splitter.split(np.zeros(len(labels)), labels, None if single else groups))
        except ValueError as error:
            most = int(np.unique(labels, return_counts=True)[1].max())
            many = "1 patch" if most == 1 else f"{most} patches"
            raise CannotSplit(
                f"{store.path}: {many} of the largest class cannot make {folds} folds",
                f"give split.folds={most} or less" if most > 1 else "label more patches",
            ) from error


def _labelled(
    labels: np.ndarray, groups: np.ndarray, train: np.ndarray, config: SplitConfig
) -> np.ndarray:
    """Whole groups in a seeded order until the fraction is reached, each class's first group first."""
    rng = np.random.default_rng([config.seed, config.fold, 7])
    order = rng.permutation(sorted(set(groups[train])))
    wanted = config.labelled_fraction * len(train)
    chosen: list[int] = []
    for label in np.unique(labels[train]):  # no class may vanish, whatever the fraction
        holders = set(groups[train][labels[train] == label])
        if not holders & set(chosen):
            chosen.append(next(g for g in order if g in holders))
    sizes = np.bincount(groups[train])
    have = int(sizes[chosen].sum())
    for g in order:
        if have >= wanted:
            break
        if g not in chosen:
            chosen.append(g)
            have += sizes[g]
    return train[np.isin(groups[train], chosen)]
