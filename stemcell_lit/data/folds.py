"""Which fold tests which group, so that no fold trains without a class that two groups hold.

A class whose groups all lie in one fold is missing from the training part of that fold. What is asked of an assignment:

- every fold tests a group;
- a class that two or more groups hold has groups in two folds or more, so that every training part has it;
- where a part of the training groups is to validate, in every fold some group can: each of its classes is in another
  training group as well.

If folds are divided, what holds goes on to hold: each training part only grows. So where no number of folds up to the
usual one does, a larger one may.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

STEPS = 4_000  # of a search: about a second; a table of a few dozen groups takes as many as it has groups


class GroupTable:
    """How many patches of each class each group holds.

    Args:
        labels: (patches,) the class of each.
        groups: (patches,) the group of each.

    Attributes:
        codes: int64 (patches,) which group each is in, by its place in the sorted names.
        counts: float64 (groups, classes), only classes that occur.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray):
        names, self.codes = np.unique(groups, return_inverse=True)
        classes, of = np.unique(labels, return_inverse=True)
        self.counts = np.zeros((len(names), len(classes)))
        np.add.at(self.counts, (self.codes, of), 1)
        self.holds = self.counts > 0
        self._shared = (
            self.holds.sum(0) >= 2
        )  # a class of one group is trained or tested, never both

    def fold_of(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """int64 (groups,): the fold that tests each, from (training, held out) positions of all folds."""
        found = np.full(len(self.counts), -1)
        for fold, (_, held) in enumerate(parts):
            found[self.codes[held]] = fold
        return found

    def parts(self, fold_of: np.ndarray, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Every fold as (training, held out) positions, sorted."""
        of_row = fold_of[self.codes]
        return [(np.flatnonzero(of_row != f), np.flatnonzero(of_row == f)) for f in range(folds)]

    def fits(self, fold_of: np.ndarray, folds: int, validate: bool) -> bool:
        """Whether an assignment is as asked for above; with `validate`, with groups that can validate."""
        for fold in range(folds):
            tested = fold_of == fold
            trained = self.holds[~tested]
            if not tested.any() or not trained.any(0)[self._shared].all():
                return False
            if validate and not can_validate(trained).any():
                return False
        return True

    def search(self, folds: int, seed: int, validate: bool) -> np.ndarray | None:
        """An assignment that fits; None where there is none, or none was found in `STEPS` steps.

        Groups of classes that few groups hold come first, and each goes where it leaves the classes spread most evenly
        over the folds; where that leads nowhere, it is taken back.

        Returns:
            int64 (groups,): the fold that tests each.
        """
        count = len(self.counts)
        # each group a fold of its own divides every other assignment: where that does not fit, none does
        if count < folds or not self.fits(np.arange(count), count, validate):
            return None
        holders = self.holds.sum(0)
        rarest = np.where(self.holds, holders, count + 1).min(1)
        order = np.lexsort((np.random.default_rng(seed).permutation(count), rarest))
        fold_of = np.full(count, -1)
        ways: list[Iterator[int]] = [iter(self._ways(fold_of, order[0], folds))]
        for _ in range(STEPS):
            at = order[len(ways) - 1]
            fold_of[at] = fold = next(ways[-1], -1)
            if fold < 0:  # none of its ways leads on
                ways.pop()
                if not ways:
                    return None
            elif len(ways) == count:
                if self.fits(fold_of, folds, validate):
                    return fold_of
            elif self._goes_on(fold_of, at, folds):
                ways.append(iter(self._ways(fold_of, order[len(ways)], folds)))
        return None

    def _ways(self, fold_of: np.ndarray, group: int, folds: int) -> list[int]:
        """The folds, that first where this group leaves the classes spread most evenly."""
        holders, own = self.holds.sum(0), self.holds[group]
        few = own & (holders <= folds)
        inside = np.stack([self.counts[fold_of == f].sum(0) for f in range(folds)])
        keys = []
        for fold in range(folds):
            then = inside.copy()
            then[fold] += self.counts[group]
            uneven = float((then / self.counts.sum(0)).std(0).mean().round(9))
            keys.append((int((inside[fold, few] > 0).sum()), uneven, inside[fold].sum(), fold))
        return [key[-1] for key in sorted(keys)]

    def _goes_on(self, fold_of: np.ndarray, group: int, folds: int) -> bool:
        """Whether the rest may still be assigned: enough groups for the empty folds, no class whole in one fold."""
        left = fold_of < 0
        if folds - len(np.unique(fold_of[~left])) > left.sum():
            return False
        for c in np.flatnonzero(self.holds[group] & self._shared):
            of = fold_of[self.holds[:, c]]
            if (of >= 0).all() and len(np.unique(of)) < 2:
                return False
        return True


def can_validate(holds: np.ndarray) -> np.ndarray:
    """Bool (groups,): which training groups are the last of no class.

    Args:
        holds: bool (groups, classes).
    """
    alone = holds.sum(0) < 2
    free: np.ndarray = ~(holds & alone).any(1) & (len(holds) > 1)
    return free
