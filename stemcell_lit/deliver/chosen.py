"""What of a folder of results is delivered: the method, and the trials that its model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from omegaconf import OmegaConf

from stemcell_lit.base.artifacts import ArtifactStore
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.data.splits import Split, make_split
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.results import Result, Results, collect, comparable
from stemcell_lit.experiment.trial import Part
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.report.advice import chosen as best
from stemcell_lit.settings.command_keys import DeliverCommand, RunCommand, typed


@dataclass(frozen=True)
class Chosen:
    """A method of a folder of results and its trials.

    Attributes:
        results: of the folder, as its table has them.
        method: row of the table.
        validation: macro F1 and TPR on validation patches of the methods that it was chosen from; empty where it was
            named.
        trials: whose networks are delivered, by seed, then fold.
        store: their patches.
        allow_module: a network of the user's own that they may ask for.
    """

    results: Results
    method: str
    validation: Mapping[str, tuple[float, float]]
    trials: list[Result]
    store: PatchStore
    allow_module: str | None = None

    @cached_property
    def config(self) -> RunCommand:
        """Settings of the first trial, its paths as they are now."""
        return self.settings(self.trials[0])

    def settings(self, trial: Result) -> RunCommand:
        """Of a trial, its paths as they are now."""
        told = dict(trial.info["config"])
        # a path is text: OmegaConf would evaluate ${...} in it
        artifacts = told.pop("artifacts", None)
        told["out"] = "-"
        told["data"] = {**told.get("data", {}), "store": None}
        weights = {}
        for group in ("stage", "classic"):
            told[group] = dict(told.get(group, {}))
            weights[group] = told[group].pop("weights", None)
        found: RunCommand = typed(OmegaConf.create(told))
        found.stage.weights, found.classic.weights = weights["stage"], weights["classic"]
        there = artifacts is not None and Path(artifacts).is_dir()
        return replace(
            found,
            out=str(self.results.out),
            artifacts=str(artifacts) if there else str(self.results.out / "artifacts"),
            data=replace(found.data, store=str(self.store.path)),
        )

    @property
    def artifacts(self) -> ArtifactStore:
        """Where features and networks of these results are shared."""
        return ArtifactStore(str(self.config.artifacts))

    @property
    def learners(self) -> tuple[str, ...]:
        """Of network and classic, what stands in a node."""
        return tuple(self.config.method.learners)

    def split(self, fold: int) -> Split:
        """Of a fold, as its trials had it.

        Raises:
            UserError: this version splits otherwise.
        """
        trial = next(t for t in self.trials if t.fold == fold)
        made = make_split(self.store, replace(self.config.split, fold=fold))
        for part in ("train", "val", "test"):
            told = trial.info["split"].get(part)
            if told is not None and made.groups(self.store, part) != list(told):
                raise UserError(
                    f"{trial.folder}: its groups for {part} are others than this version would choose; run the trials "
                    "again"
                )
        return made

    def part(self, split: Split, name: str) -> Part:
        """Patches of a part of a split, as a model of the method takes them."""
        size = None if "classic" in self.learners else self.config.data.patch_size
        return Part(self.store, getattr(split, name), size)

    def load(self, trial: Result) -> TrainedHierarchy:
        """The model of a trial."""
        return TrainedHierarchy.load(trial.folder / "model", self.allow_module)


def choose(config: DeliverCommand) -> Chosen:
    """The method that is named, or the best on validation patches, and its trials.

    Equal ones are decided by the order of the table. Test patches have no say.

    Raises:
        UserError: no results, no such method, or nothing to choose by.
    """
    out = Path(config.out)
    if (out / "sweep.json").is_file() and not (out / "trials").is_dir():
        raise UserError(
            f"{out}: holds a sweep, a table for each of its values; give the folder of one of them as out="
        )
    trials = collect(out)
    names = list(dict.fromkeys(trial.method for trial in trials))
    baseline = config.baseline or ("flat" if "flat" in names else names[0])
    results = comparable(trials, baseline)
    seeing = [m for m in results.methods if results.about(m).learners]
    validation: Mapping[str, tuple[float, float]] = {}
    if config.method is None:
        if not seeing:
            raise UserError(
                f"{out}: {results.methods} look at no picture, so there is nothing to deliver; run another method"
            )
        validation = {m: pair for m, pair in results.validated.items() if m in seeing}
        if not validation:
            raise UserError(
                f"{out}: no method has scores on validation patches to choose by (split.validation_share was 0?); "
                f"give method=, one of {seeing}"
            )
        method = best(validation) or next(iter(validation))
    else:
        method = config.method
        if method not in results.methods:
            told = "".join(f" {note}" for note in results.notes)
            raise UserError(f"method={method}: {out} has {results.methods} to deliver.{told}")
        if method not in seeing:
            raise UserError(
                f"method={method}: the clock alone looks at no picture, so there is nothing to deliver; give one of "
                f"{seeing}"
            )
    # trained again, it is the number of seeds that is limited, not what is known of the method
    found = results.of(method)[: None if config.refit else config.members]
    return Chosen(results, method, validation, found, results.real(), config.allow_module)
