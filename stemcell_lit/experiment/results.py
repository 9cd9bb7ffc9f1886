"""Finished trials as they lie in a folder, and which of them can be compared.

Everything is read from `trials/*/result.json` and their `predictions.parquet`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from stemcell_lit.base import formats as form
from stemcell_lit.base.arrays import read_table
from stemcell_lit.base.terminal import shell_word
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.intervals import group_counts
from stemcell_lit.experiment.forms import RESULT
from stemcell_lit.experiment.same import equal_ones, read_left_out, said_equal
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import RunCommand, typed
from stemcell_lit.settings.group_keys import MethodConfig
from stemcell_lit.settings.keys import role_of
from stemcell_lit.settings.quoting import command_line, literal, override
from stemcell_lit.settings.roles import Role

Row = Mapping[str, Any]  # of the table

CLAIM = 0.02  # the paper's gain in TPR and F1
TITLES = {"tpr": "TPR", "f1": "F1"}


@dataclass
class Result:
    """A finished trial.

    Attributes:
        folder: where it lies.
        info: the content of its result.json.
        method: its row of the table: the method's name, and what tells it from others of that name.
    """

    folder: Path
    info: dict[str, Any]
    method: str

    @property
    def fold(self) -> int:
        """Which fold was tested."""
        return int(self.info["fold"])

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.info["seed"])

    @property
    def about(self) -> MethodConfig:
        """What its method is; of one with other settings than its name says, no parts."""
        told = self.info["config"].get("method", {})
        known = {f.name: told[f.name] for f in fields(MethodConfig) if f.name in told}
        about = MethodConfig(**known)
        if self.method != self.info["method"]:
            return replace(about, parts=None, claimed=False)
        lacks = [part for part in about.parts or () if part in self._absent]
        if not lacks:
            return about
        words = " and ".join("the tree" if part == "tree" else part for part in lacks)
        parts = [part for part in about.parts or () if part not in lacks]
        return replace(
            about, parts=parts, claimed=False, about=f"{about.about}; here without {words}"
        )

    @property
    def _absent(self) -> set[str]:
        """Parts that no method has on these data: a tree of one node is none, nor is a constraint that is `none`."""
        stages, kind = self.info.get("stages"), self.info.get("temporal", {}).get("kind")
        one = stages is not None and len(stages) < 2
        return {name for name, absent in (("tree", one), ("time", kind == "none")) if absent}

    @property
    def classes(self) -> list[str]:
        """Class names in their fixed order."""
        return list(self.info["classes"])

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """A row per test patch: patch (row of the store), group, label, predicted, p/<class>."""
        file = self.folder / "predictions.parquet"
        needed = {"patch": "whole", **dict.fromkeys(("group", "label", "predicted"), "text")}
        needed |= {f"p/{name}": "number" for name in self.classes}
        again = f"remove {self.folder} and run that trial again"
        table = read_table(file, needed, again)
        for column in ("label", "predicted"):
            strange = sorted(set(table[column]) - set(self.classes))
            if strange:
                raise UserError(
                    f"{file}: column {column} holds {form.shown(strange[0])}, expected one of {self.classes[:20]}; "
                    f"{again}"
                )
        p = table[[name for name in needed if name.startswith("p/")]].to_numpy(np.float64)
        if not bool(np.all((p >= 0) & (p <= 1 + 1e-4))) or bool((table["patch"] < 0).any()):
            raise UserError(
                f"{file}: expected probabilities from 0 to 1 and numbers of patches from 0; {again}"
            )
        return table


@dataclass
class Results:
    """Trials that can be compared, and what was left out.

    Attributes:
        out: the folder of results.
        baseline: what the others are compared with.
        methods: rows of the table, the baseline first, the most complete last.
        trials: of these methods, every method with the same folds and seeds.
        notes: what was left out, in sentences.
    """

    out: Path
    baseline: str
    methods: list[str]
    trials: list[Result]
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Class names in their fixed order."""
        return self.trials[0].classes

    @property
    def full(self) -> str | None:
        """The method of the claim: the paper's where it ran, else the last; None: only baseline."""
        return self.claimed or (self.methods[-1] if len(self.methods) > 1 else None)

    @property
    def claimed(self) -> str | None:
        """The paper's whole method where it ran and is not the baseline; the claim was made of it beforehand."""
        return next((m for m in self.methods[1:] if self.about(m).claimed), None)

    def about(self, method: str) -> MethodConfig:
        """What a row of the table is."""
        return self.of(method)[0].about

    @property
    def validated(self) -> dict[str, tuple[float, float]]:
        """Method -> macro F1 and TPR on validation patches, the mean over its trials; where each of them has both."""
        found = {}
        for method in self.methods:
            told = [trial.info.get("validation") or {} for trial in self.of(method)]
            pairs = [(one.get("macro/f1"), one.get("macro/tpr")) for one in told]
            if None not in [value for pair in pairs for value in pair]:
                f1, tpr = np.mean(np.array(pairs, np.float64), 0).tolist()
                found[method] = (f1, tpr)
        return found

    @property
    def best_without_generated(self) -> str | None:
        """Of the methods without generated patches or features the one of highest macro F1, then TPR, on validation.

        None where a trial of every such method has no validation patches.
        """
        found = {
            method: pair
            for method, pair in self.validated.items()
            if "features" not in (self.about(method).parts or ())
            and not any(trial.info.get("generator") for trial in self.of(method))
        }
        return max(found, key=found.__getitem__) if found else None

    @property
    def seeds(self) -> list[int]:
        """Seeds that every method has."""
        return sorted({trial.seed for trial in self.trials})

    @property
    def folds(self) -> list[int]:
        """Folds that every method has."""
        return sorted({trial.fold for trial in self.trials})

    @cached_property
    def groups(self) -> list[str]:
        """Names of all tested groups."""
        return sorted(
            {str(g) for trial in self.trials for g in trial.predictions["group"].unique()}
        )

    @property
    def subsets(self) -> dict[str, list[str]]:
        """Named subsets of the classes, of the hierarchy's file, that have scores of their own."""
        given = self.trials[0].info["config"].get("hierarchy", {}).get("subsets") or {}
        return {str(k): list(v) for k, v in given.items() if set(v) <= set(self.classes)}

    @property
    def leaky(self) -> bool:
        """Whether near-duplicates are on both sides of the split, on purpose."""
        return bool(self.trials[0].info["split"]["kind"] == "leaky")

    @property
    def simulated(self) -> bool:
        """Whether patches come from the simulation."""
        return any(trial.info["data"].get("simulated") for trial in self.trials)

    def of(self, method: str) -> list[Result]:
        """Its trials by seed, then fold."""
        return sorted(
            (trial for trial in self.trials if trial.method == method),
            key=lambda c: (c.seed, c.fold),
        )

    def tested(self, method: str) -> pd.DataFrame:
        """Its test patches of all folds and seeds, with columns `seed` and `fold`."""
        parts = [c.predictions.assign(seed=c.seed, fold=c.fold) for c in self.of(method)]
        return pd.concat(parts, ignore_index=True)

    def counts(self, method: str) -> np.ndarray:
        """int64 (seeds, groups, classes, classes): confusion counts, rows true."""
        tested = self.tested(method)
        return np.stack(
            [
                group_counts(
                    *(part[column].to_numpy() for column in ("label", "predicted", "group")),
                    classes=self.classes,
                    groups=self.groups,
                )
                for part in (tested[tested["seed"] == seed] for seed in self.seeds)
            ]
        )

    def real(self) -> PatchStore:
        """The patches of these results.

        Raises:
            UserError: the store has moved, or changed since the runs.
        """
        info = self.trials[0].info
        path = Path(info["store"])
        # a relative path was written from where the run was started, perhaps above `out`
        places = [path, *(place / path for place in (self.out, *self.out.resolve().parents))]
        store = PatchStore.open(next((p for p in places if p.exists()), path))
        if store.content_hash != info["data"]["content_hash"]:
            raise UserError(f"{store.path}: has changed since the runs")
        return store

    def generated(self) -> tuple[Result, PatchStore] | None:
        """A trial with generated patches, of the full method where it has some, and these patches.

        Raises:
            UserError: the store has moved.
        """
        trials = [
            trial
            for trial in self.trials
            if trial.info.get("generator")
            and trial.info["config"].get("mix", {}).get("source") != "shuffled"
        ]
        if not trials:
            return None
        trial = min(trials, key=lambda c: (c.method != self.full, c.seed, c.fold))
        return trial, PatchStore.open(self.out / trial.info["generator"]["generated"])


def collect(out: str | Path) -> list[Result]:
    """Every finished trial in a folder of results, see `together`.

    Args:
        out: the folder of results; trials lie in its `trials/`.

    Returns:
        Trials by method, seed and fold.

    Raises:
        UserError: no trials, a trial that cannot be read, or trials on different data.
    """
    out = Path(out)
    folders = sorted(p for p in (out / "trials").glob("*") if p.is_dir() and p.name[0] != ".")
    if not folders:
        raise UserError(
            f"{out}: no results in {out / 'trials'}; make them with "
            f"`{command_line('reproduce', {'out': out})}`, or one with `{command_line('run', {'out': out})}`"
        )
    trials = [Result(folder, read_result(folder / "result.json"), "") for folder in folders]
    return together(trials)


def together(trials: Sequence[Result]) -> list[Result]:
    """Trials of one table, named and in order.

    Trials of one method with other settings (a sweep over them) become methods of their own, named
    by what tells them apart, such as `flat_gan [mix.amount=1000]`.

    Raises:
        UserError: trials on different data, or two of the same method, fold and seed.
    """
    first = trials[0]
    for trial in trials[1:]:
        for name, found, expected in (
            ("classes", trial.classes, first.classes),
            ("data", trial.info["data"]["content_hash"], first.info["data"]["content_hash"]),
            ("split", trial.info["split"]["kind"], first.info["split"]["kind"]),
        ):
            if found != expected:
                raise UserError(
                    f"{trial.folder} and {first.folder} have different {name} "
                    f"({_short(found)}, {_short(expected)}) and cannot stand in one "
                    "table; keep each in an out= of its own"
                )
    _name_methods(trials)
    seen: dict[tuple[str, int, int], Result] = {}
    for trial in trials:
        other = seen.setdefault((trial.method, trial.fold, trial.seed), trial)
        if other is not trial:
            raise UserError(
                f"{trial.folder} and {other.folder} are both {trial.method}, fold {trial.fold}, "
                f"seed {trial.seed}; remove one of them"
            )
    return sorted(trials, key=lambda c: (c.about.rank, c.method, c.seed, c.fold))


def read_result(file: Path) -> dict[str, Any]:
    """The content of a trial's result.json.

    Raises:
        UserError: not there, not readable, or of another format.
    """
    again = f"remove {file.parent} and run that trial again"
    if not os.path.lexists(file):
        raise UserError(f"{file}: no such file, the trial is not finished; {again}")
    info: dict[str, Any] = form.read_json(file, RESULT, again)
    return info


def _name_methods(trials: Sequence[Result]) -> None:
    """Gives every trial its row: the method's name, with settings where one name has several."""
    for name in {trial.info["method"] for trial in trials}:
        same = [trial for trial in trials if trial.info["method"] == name]
        settings = [
            {k: v for k, v in flatten(c.info["config"]).items() if role_of(k) is Role.RESULT}
            | _weights(c)
            for c in same
        ]
        keys = sorted(set().union(*settings))
        differ = [k for k in keys if len({as_override(s.get(k)) for s in settings}) > 1]
        for trial, setting in zip(same, settings, strict=True):
            told = ", ".join(f"{k}={as_override(setting.get(k))}" for k in differ)
            trial.method = f"{name} [{told}]" if told else name


def _weights(trial: Result) -> dict[str, Any]:
    """What a trial's networks began with: the name of the file, and the first digits of its hash."""
    found = {}
    for group, name in (("stage", "weights"), ("classic", "features_weights")):
        path = trial.info["config"].get(group, {}).get("weights")
        digits = trial.info.get("outside", {}).get(name, "")[:8]
        if path and digits:
            found[f"{group}.weights"] = f"{Path(path).name}@{digits}"
    return found


def comparable(trials: Sequence[Result], baseline: str) -> Results:
    """What of the trials can be compared: for every method the same folds and seeds.

    A method without a single seed that has every fold is left out, where the baseline has one: a table that was
    stopped halfway must not take the folds from all the others.

    Raises:
        UserError: the baseline has no trials, or nothing is common to all methods.
    """
    out = trials[0].folder.parent.parent
    names = list(dict.fromkeys(trial.method for trial in trials))
    several = [m for m in names if m.startswith(f"{baseline} [")]
    if several:
        raise UserError(
            f"{out}: the baseline's results are of several settings, {several}; give new ones a folder of their own "
            f"(out=..., artifacts={out}/artifacts keeps what was trained), move the old ones out of {out}/trials, or "
            f"choose one with {shell_word(override('baseline', several[0]))}"
        )
    if baseline not in names:
        raise UserError(
            f"{out}: no results of the baseline {baseline!r}, only of {names}; run it with "
            f"`{command_line('run', {'out': out, 'method': baseline})}`, or choose another with baseline="
        )
    have = {m: {(c.seed, c.fold) for c in trials if c.method == m} for m in names}
    everything = set().union(*have.values())
    folds = {fold for _, fold in everything}
    complete = {m: {s for s, _ in have[m] if all((s, f) in have[m] for f in folds)} for m in names}
    notes = []
    for m in [m for m in names if complete[baseline] and not complete[m] & complete[baseline]]:
        names.remove(m)
        notes.append(
            f"{m} has {len(have.pop(m))} of {len(everything)} trials and is left out. Run the same command again to "
            "fill them in."
        )
    everything = set().union(*have.values())
    common = set.intersection(*have.values())
    whole = {seed for seed, _ in common if all((seed, fold) in common for fold in folds)}
    kept = {pair for pair in common if pair[0] in whole} if whole else common
    if not kept:
        raise UserError(
            f"{out}: no fold and seed that all methods have ({names}); finish the sweep, the same "
            "command goes on where it stopped"
        )
    if kept != everything:
        gone = [f"seed {s} fold {f}" for s, f in sorted(everything - kept)]
        lacking = sorted(m for m in names if have[m] != everything)
        notes.append(
            f"Not finished: {', '.join(lacking)} lack some folds or seeds, so {', '.join(gone)} "
            "are left out for all methods. Run the same command again to fill them in."
        )
    if not whole:
        notes.append("No seed has every fold yet: not every patch has been tested.")
    same = _equal(trials, names, baseline)
    names = [name for name in names if name not in same]
    notes += [*same.values(), *read_left_out(out)]
    order = [baseline, *(name for name in names if name != baseline)]
    chosen = [c for c in trials if c.method in names and (c.seed, c.fold) in kept]
    trained = [stage for c in chosen for stage in c.info.get("stages") or [] if "capped" in stage]
    capped = sum(stage["capped"] for stage in trained)
    if capped:
        notes.append(
            f"{capped} of {len(trained)} networks still gained on validation patches at the most images that they may "
            "see (stage.images); with more they may do better."
        )
    return Results(out, baseline, order, chosen, notes)


def _equal(trials: Sequence[Result], names: Sequence[str], baseline: str) -> dict[str, str]:
    """Methods that came to the same settings as another on these data: name -> a sentence."""
    first = {name: next(trial for trial in trials if trial.method == name) for name in names}
    configs = {}
    for name in sorted(names, key=lambda m: (m != baseline, first[m].about.rank)):
        told = first[name].info["config"]
        if {f.name for f in fields(RunCommand)} <= set(told):  # else too little is known of it
            with suppress(UserError):
                config: RunCommand = typed(OmegaConf.create(told))
                # the content, wherever it lay
                outside = first[name].info.get("outside", {})
                config.stage.weights = outside.get("weights") or config.stage.weights
                config.classic.weights = outside.get("features_weights") or config.classic.weights
                configs[name] = config
    same = equal_ones(configs, first[baseline].classes)
    return {a: said_equal(a, b, configs[a].hierarchy.name) for a, b in same.items()}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def as_override(value: Any) -> str:
    """A setting's value as it is shown and compared; programs write it by `settings.quoting.override`."""
    return literal(value, quoted=False)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def rows_of(table: pd.DataFrame) -> dict[tuple[str, str, str], Row]:
    """The table's rows by method, metric and class (empty: macro)."""
    rows: Any = table.to_dict("records")
    return {(row["method"], row["metric"], row["class"]): row for row in rows}
