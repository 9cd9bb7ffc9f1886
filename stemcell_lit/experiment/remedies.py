"""Changes of settings with which a plan that does not hold would: looked for, tried, and told in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.data.splits import MOST_FOLDS, fold_count
from stemcell_lit.experiment.problems import SPLIT, Planner, in_memory
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import RunCommand
from stemcell_lit.settings.compose import hierarchies, without_generated
from stemcell_lit.settings.gan_keys import SelectConfig
from stemcell_lit.settings.group_keys import MixConfig, TemporalConfig
from stemcell_lit.settings.quoting import override

# An override as it is typed, and what it does to a configuration; None: the trial is left out.
Change = tuple[str, Callable[[RunCommand], RunCommand | None]]

SEEDS = range(1, 6)
MOST_STEPS = 4  # changes that a remedy may take together


@dataclass(frozen=True)
class Remedies:
    """Looks for changes with which a plan holds; each is proposed only after the same plan was made with it.

    Attributes:
        planner: of the plan that does not hold.
        every_fold: whether each configuration stands for all its folds.
        baseline: the method that a table cannot do without, None where there is no table.
    """

    planner: Planner
    every_fold: bool
    baseline: str | None

    def remedy(self, configs: Sequence[RunCommand]) -> str | None:
        """Changes with which the same plan holds, in words that can be followed; None: none was found."""
        taken, configs, holds = self._search(configs)
        if holds:
            return " ".join(taken)
        first = list(self.planner.problems(configs, self.every_fold))
        lost = sorted({p.label for p in first if p.label})
        stores = {str(c.data.store) for c in configs}
        if not lost or len(stores) > 1 or configs[0].data.store is None:
            return None
        store, said = self.planner.store(configs[0]), []
        rest = store.manifest["label"].isin(lost).to_numpy()
        names = ", ".join(lost)
        more = self._spread(configs, lost)
        also = f", then {' '.join(taken)}" if taken else ""
        if more:
            said.append(
                f"label patches of {names} in at least {more} groups and import again{also}"
            )
        if len(store.classes) - len(lost) > 1:
            without = replace(
                self, planner=self.planner.with_store(configs[0], _part_of(store, ~rest, lost))
            )
            then, _, holds = without._search(configs)
            if holds:
                last = {w.split("=")[0]: w for w in [*taken, *then]}  # the later choice of a key
                also = f", then {' '.join(last.values())}" if last else ""
                how = f"take {names} out of the source and import again"
                if store.info.get("made_by", {}).get("command") == "import":
                    how = f"import again with {override('without', lost)}"
                said.append(how + also)
        return ", or ".join(said) or None

    def _search(
        self, configs: Sequence[RunCommand]
    ) -> tuple[list[str], Sequence[RunCommand], bool]:
        """Overrides that mend what they can, the trials with them, and whether nothing is left in the way."""
        taken: list[str] = []
        solved: set[str] = set()
        for _ in range(MOST_STEPS):
            first = next(self.planner.problems(configs, self.every_fold), None)
            if first is None:
                return taken, configs, True
            if first.kind == "settings":
                break
            kinds = set(SPLIT) if first.kind in SPLIT else {first.kind}
            solved |= kinds
            for words, change in self._changes(first.kind, configs):
                changed = [c for c in map(change, configs) if c is not None]
                left = (p.kind for p in self.planner.problems(changed, self.every_fold))
                if not any(kind in solved or kind == "settings" for kind in left):
                    taken.append(words)
                    configs = changed
                    break
            else:
                break
        return taken, configs, False

    def _changes(self, kind: str, configs: Sequence[RunCommand]) -> Iterator[Change]:
        yield from _changes_of(
            kind, configs, self.planner.store(configs[0]), self.every_fold, self.baseline
        )
        if self.baseline is None or kind in SPLIT:
            return
        bad = {p.method for p in self.planner.problems(configs, self.every_fold) if p.kind == kind}
        good = [m for m in dict.fromkeys(c.method.name for c in configs) if m not in bad]
        if self.baseline in good and "" not in bad:
            yield (
                f"methods=[{','.join(good)}]",
                lambda config: config if config.method.name in good else None,
            )

    def _spread(self, configs: Sequence[RunCommand], lost: Sequence[str]) -> int | None:
        """In how many groups classes must be that the plan holds, wherever these groups are."""
        store = self.planner.store(configs[0])
        groups = sorted(set(store.manifest["group"]))
        holders = {c: set(store.manifest["group"][store.manifest["label"] == c]) for c in lost}
        if not all(holders.values()):
            return None
        random = np.random.default_rng(0)
        for count in range(2, len(groups) + 1):
            for _ in range(6):
                extra = []
                for c in lost:
                    others = random.permutation([g for g in groups if g not in holders[c]])
                    rows = store.manifest[store.manifest["label"] == c]
                    each = rows.iloc[: max(1, len(rows) // len(holders[c]))]
                    extra += [
                        each.assign(group=g) for g in others[: max(0, count - len(holders[c]))]
                    ]
                fuller = _part_of(store, np.ones(len(store), bool), (), extra)
                other = self.planner.with_store(configs[0], fuller)
                if next(other.problems(configs, self.every_fold), None) is not None:
                    break
            else:
                return count
        return None


def _changes_of(
    kind: str,
    configs: Sequence[RunCommand],
    store: PatchStore,
    every_fold: bool,
    table: str | None,
) -> Iterator[Change]:
    """What may mend a problem of this kind, the least change first.

    Args:
        kind: of the problem, see `problems.Problem`.
        configs: of all trials.
        store: their patches.
        every_fold: whether each stands for all its folds.
        table: the baseline of a table of methods, None where there is none.
    """
    if kind in SPLIT:
        yield from _splits(configs[0], store, every_fold)
    if kind == "hierarchy":
        yield from _hierarchies()
    if kind == "times" and table is None:
        yield "temporal=none", lambda c: replace(c, temporal=TemporalConfig())
    if kind == "window":
        yield from _splits(configs[0], store, every_fold)
        if table is None:
            yield "temporal=prior", lambda c: replace(c, temporal=replace(c.temporal, kind="prior"))
        else:
            yield (
                "hierarchy.temporal=prior",
                lambda c: replace(c, hierarchy=replace(c.hierarchy, temporal="prior")),
            )
    if kind == "size":
        fits = [s for s in range(store.size, 7, -1) if store.size % s == 0]
        wanted = min((c.data.patch_size or store.size for c in configs), default=32)
        for size in sorted(fits, key=lambda s: (abs(s - wanted), s)):
            yield (
                f"data.patch_size={size}",
                lambda c, size=size: replace(c, data=replace(c.data, patch_size=size)),  # type: ignore[misc]
            )
    if kind == "scales" and table is None:
        yield (
            "method=flat mix=real (or another without generated patches: "
            f"{', '.join(m for m in without_generated() if m != 'flat')})",
            lambda c: replace(c, mix=MixConfig()),
        )
    if kind == "select":
        yield "select=none", lambda c: replace(c, select=SelectConfig())
    if kind == "tune":
        yield "tune=false", lambda c: replace(c, tune=False)
    if kind in ("select", "tune"):
        yield _split(validation_share=0.15)


def _split(**values: Any) -> Change:
    words = " ".join(f"split.{k}={v}" for k, v in values.items())
    return words, lambda c: replace(c, split=replace(c.split, **values))


def _splits(config: RunCommand, store: PatchStore, every_fold: bool) -> Iterator[Change]:
    """Other folds, the nearest number first; without validation; other seeds."""
    have = fold_count(store, config.split)
    most = min(MOST_FOLDS, store.manifest["group"].nunique(), len(store))
    counts = sorted((n for n in range(2, most + 1) if n != have), key=lambda n: (abs(n - have), n))
    if not every_fold and config.split.fold >= have:
        yield _split(fold=have - 1)
    for folds in counts:
        yield _split(folds=folds)
    if config.split.labelled_fraction < 1:
        yield _split(labelled_fraction=1.0)
    if config.split.thin_ratio is not None:
        yield "split.thin_ratio=null", _split(thin_ratio=None)[1]
    for seed in SEEDS:
        yield _split(seed=config.split.seed + seed)
    if config.split.validation_share > 0:
        yield _split(validation_share=0)
        for folds in counts:
            yield _split(folds=folds, validation_share=0)
    for folds in counts:
        for seed in SEEDS:
            yield _split(folds=folds, seed=config.split.seed + seed)


def _hierarchies() -> Iterator[Change]:
    """The trees in conf/, the flat one last."""
    for name, found in hierarchies().items():
        yield (
            f"hierarchy={name}",
            lambda c, found=found: replace(c, hierarchy=replace(found, hard=c.hierarchy.hard)),  # type: ignore[misc]
        )


def _part_of(
    store: PatchStore,
    rows: np.ndarray,
    without: Sequence[str],
    more: Sequence[pd.DataFrame] = (),
) -> PatchStore:
    """Some rows of a store and others, for planning: no pixels are read."""
    manifest = pd.concat([store.manifest[rows], *more], ignore_index=True)
    classes = [c for c in store.classes if c not in without]
    return in_memory(store.path, manifest, classes, store.size, store.scales)
