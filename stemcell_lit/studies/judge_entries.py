"""An entry of `judge`: a generator with a selection on a fold, and what a classifier learns from its patches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stemcell_lit.base import formats as form
from stemcell_lit.base.artifacts import Recipe
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import confusion
from stemcell_lit.experiment.forms import ACCURACY
from stemcell_lit.experiment.generator_quality import (
    class_grid,
    grid_file,
    measure,
    read_quality,
    write_quality,
)
from stemcell_lit.experiment.generators import (
    GeneratedPatches,
    TrainedGenerator,
    generator_facts,
    reference_of,
)
from stemcell_lit.experiment.plan import plan
from stemcell_lit.experiment.trial import Trial
from stemcell_lit.gan.encoder import train_classifier
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import JudgeCommand, RunCommand
from stemcell_lit.settings.keys import own_keys
from stemcell_lit.settings.own import name_of
from stemcell_lit.settings.quoting import override, split
from stemcell_lit.settings.roles import determining

FORMAT = 1  # of judge.json


REAL = ("real, as they are", "real, balanced")  # the floors of the accuracy score


SAMPLERS = dict(zip(REAL, ("shuffle", "balanced"), strict=True))


PARTS = {"val": "validation groups", "test": "test groups, for reporting only"}


Confusions = dict[str, list[list[list[int]]]]  # part -> seed -> rows true, columns predicted


@dataclass(frozen=True)
class Entry(Recipe):
    """A row of the table on one fold, and how what is known of it is made.

    Its folder holds quality.json, accuracy.json (confusion matrices on validation and on test patches), facts.json
    and grids/.
    """

    kind: ClassVar[str] = "judged"
    name: str  # `tiny`, or with a selection `tiny+confidence`
    gan: str  # name in conf/gan, or the path of a file
    select: str  # likewise, of conf/select
    fold: int  # of the split
    trial: Trial  # its settings and data
    seeds: tuple[int, ...]  # of the accuracy's classifier
    per_class: int  # generated patches that it learns

    def key(self) -> dict[str, Any]:
        """Everything that determines what is judged."""
        select = self.trial.config.select
        return {
            "format": FORMAT,
            "generator": TrainedGenerator(self.trial).key(),
            "test": self.trial.split.test.tolist(),
            "select": determining(select) if select.filters else None,
            "stage": determining(self.trial.config.stage),
            "augment": self.trial.config.data.augment,
            "seeds": self.seeds,
            "per_class": self.per_class,
        }

    @property
    def done(self) -> bool:
        """Whether its numbers are there."""
        return self.trial.artifacts.locate(self).is_dir()

    def make(self, folder: Path) -> None:
        """Trains the generator, draws from it, and measures and learns what is drawn."""
        trial = self.trial
        generator = trial.artifacts.get(TrainedGenerator(trial))
        wanted = dict.fromkeys(trial.store.classes, self.per_class)
        drawn = trial.artifacts.get(GeneratedPatches(trial, generator, wanted))
        store = PatchStore.open(drawn / "store")
        if trial.config.select.filters:  # other patches than the generator's own quality.json is of
            self._measure(store, folder)
        else:
            read_quality(generator)
            shutil.copy(generator / "quality.json", folder / "quality.json")
            (folder / "grids").mkdir()
            for file in (generator / "grids").glob("class_*.png"):
                shutil.copy(file, folder / "grids" / file.name)
        _write_json(folder / "facts.json", _facts(generator, store))
        found = _accuracy(trial, store.pixels, store.labels, self.seeds, "balanced")
        _write_json(folder / "accuracy.json", found)

    def _measure(self, store: PatchStore, folder: Path) -> None:
        """The quality of generated patches and their grids."""
        config, reference = self.trial.config.quality, reference_of(self.trial)
        assert reference is not None  # plan asks for a validation share
        made = [store.pixels[store.labels == i] for i in range(len(store.classes))]
        made = [np.asarray(m[: config.final_samples]) for m in made]
        write_quality(
            measure(reference, made, config), reference.encoder.name, folder / "quality.json"
        )
        for name, patches in zip(reference.classes, made, strict=True):
            class_grid(reference, name, patches, folder / "grids" / grid_file(name))


@dataclass(frozen=True)
class RealAccuracy(Recipe):
    """The same classifier's confusion matrices after training on the real training patches, in accuracy.json."""

    kind: ClassVar[str] = "judged-real"
    entry: Entry  # whose fold and settings
    sampler: str  # of `SAMPLERS`

    def key(self) -> dict[str, Any]:
        """What an entry's accuracy is determined by, but for its generator."""
        key = self.entry.key()
        return {
            **{k: key[k] for k in ("format", "test", "stage", "augment", "seeds")},
            **{k: key["generator"][k] for k in ("data", "train", "val", "size", "threads")},
            "sampler": self.sampler,
        }

    def make(self, folder: Path) -> None:
        """Trains and tests."""
        trial, train = self.entry.trial, self.entry.trial.train
        found = _accuracy(trial, train.pixels, train.labels, self.entry.seeds, self.sampler)
        _write_json(folder / "accuracy.json", found)


def entries_of(
    config: JudgeCommand, overrides: list[str], typed_run: Callable[[list[str]], RunCommand]
) -> list[Entry]:
    """Every generator x selection x fold, with one budget for all.

    Raises:
        UserError: nothing to judge, settings or folds that do not fit.
    """
    if not config.gans or not config.selects or not config.folds or not config.seeds:
        raise UserError("judge: expected at least one of each of gans, selects, folds and seeds")
    if config.trainer.devices > 1:
        raise UserError(
            f"trainer.devices={config.trainer.devices}: judge trains on one device a job"
        )
    if config.split.validation_share <= 0:
        raise UserError(
            f"split.validation_share={config.split.validation_share}: generators are judged on validation groups, "
            "expected a share above 0"
        )
    base = _base(overrides)
    base += [
        "hierarchy=flat",
        override("out", config.out),
        override("artifacts", config.artifacts or Path(config.out) / "artifacts"),
    ]
    given = any(key == "gan.images" for key, _ in split(overrides))
    images = config.images or (config.gan.images if given else None)
    names: list[tuple[str, str, int]] = []
    configs: list[RunCommand] = []
    for gan in config.gans:
        for select in config.selects:
            one = typed_run([*base, override("gan", gan), override("select", select)])
            images = images or one.gan.images  # the first's, where none is given
            one = replace(one, gan=replace(one.gan, images=images))
            for fold in config.folds:
                names.append((gan, select, fold))
                configs.append(replace(one, split=replace(one.split, fold=fold)))
    entries: list[Entry] = []
    for (gan, select, fold), (trial,) in zip(names, plan(configs, generator=True), strict=True):
        per_class = config.per_class or max(trial.train.counts.values())
        named, filtered = name_of("gan", gan), name_of("select", select)
        name = named if filtered == "none" else f"{named}+{filtered}"
        entries.append(Entry(name, gan, select, fold, trial, tuple(config.seeds), per_class))
    return entries


def _base(overrides: Sequence[str]) -> list[str]:
    """The user's settings that every trial gets."""
    own = own_keys("judge")
    pairs = zip(overrides, split(overrides), strict=True)
    return [word for word, (key, _) in pairs if key not in own]


def real_accuracy(entry: Entry) -> dict[str, Confusions]:
    """What `RealAccuracy` found, two ways of showing the real patches."""
    folders = {
        name: entry.trial.artifacts.get(RealAccuracy(entry, sampler))
        for name, sampler in SAMPLERS.items()
    }
    return {name: _read(f / "accuracy.json", ACCURACY) for name, f in folders.items()}


def _facts(generator: Path, store: PatchStore) -> dict[str, Any]:
    """What is known of a generator and of the patches drawn from it."""
    about, made_by = generator_facts(generator), store.info["made_by"]
    names = ("hash", "images", "images_trained", "metric", "chosen", "alarm")
    return {
        **{k: about.get(k) for k in names},
        **{k: made_by.get(k) for k in ("filters", "acceptance", "missing")},
        "patches": {c: int((store.labels == i).sum()) for i, c in enumerate(store.classes)},
    }


def _accuracy(
    trial: Trial, pixels: np.ndarray, labels: np.ndarray, seeds: Sequence[int], sampler: str
) -> Confusions:
    """Trains the flat classifier on some patches and tests it on held-out real ones, a matrix a part and seed."""
    classes, config = trial.store.classes, trial.config
    parts = {
        name: (part.pixels, part.labels)
        for name, part in (("val", trial.val), ("test", trial.test))
    }
    found: Confusions = {name: [] for name in PARTS}
    for seed in seeds:
        module = train_classifier(
            np.asarray(pixels),
            labels,
            classes,
            asdict(config.stage),
            seed=seed,
            sampler=sampler,
            augment=config.data.augment,
            accelerator=config.trainer.accelerator,
        )
        for name, (held, truth) in parts.items():
            predicted = module.probabilities(held).argmax(1)
            found[name].append(confusion(truth, predicted, classes).tolist())
    return found


def _read(file: Path, expected: form.Form) -> Any:
    return form.read_json(file, expected, f"delete {file.parent} and judge again")


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
