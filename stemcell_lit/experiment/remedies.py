"""Changes of settings that may help where a plan does not hold; `plan` tries each before it is proposed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from stemcell_lit.data.splits import fold_count
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.commands import RunCommand
from stemcell_lit.settings.compose import without_generated
from stemcell_lit.settings.conf import conf_dir
from stemcell_lit.settings.groups import HierarchyConfig, MixConfig, SelectConfig, TemporalConfig

# An override as it is typed, and what it does to a configuration; None: the trial is left out.
Change = tuple[str, Callable[[RunCommand], RunCommand | None]]

MOST_FOLDS = 10
SEEDS = range(1, 6)


def changes_of(
    kind: str,
    configs: Sequence[RunCommand],
    store: PatchStore,
    every_fold: bool,
    table: str | None,
) -> Iterator[Change]:
    """What may mend a problem of this kind, the least change first.

    Args:
        kind: of the problem, see `plan.Problem`.
        configs: of all trials.
        store: their patches.
        every_fold: whether each stands for all its folds.
        table: the baseline of a table of methods, None where there is none.
    """
    if kind in ("fold", "folds", "validation", "class"):
        yield from _splits(configs[0], store, every_fold)
    if kind == "hierarchy":
        yield from _hierarchies()
    if kind == "times" and table is None:
        yield "temporal=none", lambda c: replace(c, temporal=TemporalConfig())
    if kind == "window":
        yield from _splits(configs[0], store, every_fold)
        yield "temporal=prior", lambda c: replace(c, temporal=replace(c.temporal, kind="prior"))
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
    files = sorted((conf_dir() / "hierarchy").glob("*.yaml"), key=lambda f: f.stem == "flat")
    for file in files:
        merged = OmegaConf.merge(OmegaConf.structured(HierarchyConfig), OmegaConf.load(file))
        found: Any = OmegaConf.to_object(merged)
        yield (
            f"hierarchy={file.stem}",
            lambda c, found=found: replace(c, hierarchy=replace(found, hard=c.hierarchy.hard)),  # type: ignore[misc]
        )
