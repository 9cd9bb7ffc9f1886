"""What cannot work in a trial, found by planning it: settings, sizes, folds, classes without patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.networks import heads
from stemcell_lit.classify.pretrained import start_from
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.data.mixing import check_places, generated_quota
from stemcell_lit.data.splits import CannotSplit, Split, fold_count, make_split
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.classic import extractor_of
from stemcell_lit.experiment.trial import (
    SimulatedStore,
    Trial,
    artifacts_of,
    check_batches,
    check_pseudo,
    check_real,
    check_unlabelled,
    chooses,
    needs_generator,
    open_store,
    with_settings,
)
from stemcell_lit.gan.camera import STRENGTHS
from stemcell_lit.gan.families import make_module
from stemcell_lit.patches.store import COLUMNS, PatchStore, reduce_pixels
from stemcell_lit.settings.command_keys import RunCommand
from stemcell_lit.settings.network_names import own_module

SPLIT = ("fold", "folds", "validation", "class")  # kinds that a change of the split may mend

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Something that cannot work.

    Attributes:
        kind: what it is about, by which a remedy is looked for; `settings` has its own in the sentence, and for
            `alone`, a class of one group, no split is one.
        what: a sentence.
        method: of the trial; empty where every method has it.
        label: the class that it is about, where it is about one.
    """

    kind: str
    what: str
    method: str = ""
    label: str = ""


def check_folders(config: RunCommand) -> None:
    """Refuses a file where a folder of results is, or is to be; to be called before the work.

    Raises:
        UserError: names it.
    """
    out = Path(config.out)
    inside = [out / "trials", out / "logs", *([] if config.artifacts else [out / "artifacts"])]
    for key, folder, places in (("out", config.out, inside), ("artifacts", config.artifacts, [])):
        given = Path(folder) if folder else None
        for place in [given, *given.parents, *places] if given else []:
            if place.exists() and not place.is_dir():
                also = "move it away, or " if place in places else ""
                raise UserError(f"{key}={folder}: {place} is a file; {also}give a folder")


class Planner:
    """Looks through trials for what cannot work; what several of them share is looked at once.

    Args:
        generator: each trains a generator.
        here: they run on this machine.
        make: simulate movies that are not there yet; otherwise what is known of them beforehand stands for them.
    """

    def __init__(self, *, generator: bool = False, here: bool = True, make: bool = False):
        self.generator, self.here, self.make = generator, here, make
        self.expected: set[str] = set()  # stores that stand for movies not simulated yet
        self._known: dict[str, Any] = {}

    def _once(self, key: str, look: Callable[[], T]) -> T:
        """What `look` says, or raised, the first time."""
        if key not in self._known:
            try:
                self._known[key] = look()
            except UserError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, UserError):
            raise found
        made: T = found
        return made

    # --- parts of a trial --------------------------------------------------------------------------------------------

    def store(self, config: RunCommand) -> PatchStore:
        """Its patches, or what is known of those not simulated yet."""
        key = str(config.data.store or SimulatedStore(config.data).key())
        return self._once(f"store {key}", lambda: self._open(config, key))

    def _open(self, config: RunCommand, key: str) -> PatchStore:
        if config.data.store is None and not self.make:
            artifacts = artifacts_of(config)
            if not artifacts.locate(SimulatedStore(config.data)).is_dir():
                self.expected.add(key)
                return _expected(config)
        return open_store(config, artifacts_of(config))

    def split(self, config: RunCommand) -> Split:
        """Its split."""
        store = self.store(config)
        key = f"split {config.data.store} {store.classes} {config.split}"
        return self._once(key, lambda: make_split(store, config.split))

    def fold_count(self, config: RunCommand) -> int:
        """How many folds it has."""
        store = self.store(config)
        key = f"folds {config.data.store} {store.classes} {replace(config.split, fold=0)}"
        return self._once(key, lambda: fold_count(store, config.split))

    def folds(self, config: RunCommand, every: bool) -> list[RunCommand]:
        """The configuration on each of its folds, or as it is."""
        if not every:
            return [config]
        count = self.fold_count(config)
        return [replace(config, split=replace(config.split, fold=f)) for f in range(count)]

    def trial(self, config: RunCommand) -> Trial:
        """A planned trial."""
        store = self.store(config)
        hierarchy = self.hierarchy(config)
        return Trial(config, store, self.split(config), artifacts_of(config), hierarchy)

    def hierarchy(self, config: RunCommand) -> Hierarchy:
        """Its tree over the classes of its patches; times are not learned yet."""
        classes = self.store(config).classes
        return Hierarchy.build(
            classes, config.hierarchy, config.temporal, flat=not config.method.tree
        )

    # --- what is wrong -----------------------------------------------------------------------------------------------

    def problems(self, configs: Sequence[RunCommand], every_fold: bool) -> Iterator[Problem]:
        """What cannot work, the quickly found first; the same thing once for each method that it meets."""
        every = [c for config in configs for c in [config, *_choices(config)]]
        for config in every:
            found = list(self._settings(config))
            yield from found
            if found:
                continue
            for one in self.folds(config, every_fold):
                yield from self._rows(one)

    def _settings(self, config: RunCommand) -> Iterator[Problem]:
        """Of the settings alone, whatever the fold."""
        store, method = self.store(config), config.method.name
        size = config.data.patch_size or store.size
        made = needs_generator(config) or self.generator
        checks: list[tuple[str, Callable[[], Any]]] = [
            ("settings", lambda: check_batches(config)),
            ("settings", lambda: self._place(config)),
            ("settings", lambda: check_real(config)),
            ("settings", lambda: check_places(config.mix)),
            ("settings", lambda: generated_quota({}, config.mix)),
            ("hierarchy", lambda: self.hierarchy(config)),
            ("size", lambda: reduce_pixels(store.pixels[:0], config.data.patch_size)),
        ]
        classes, channels = store.classes, len(store.scales)
        if "network" in config.method.learners:
            key = f"stage {config.stage} {classes} {size} {channels}"
            checks.append(
                ("settings", lambda: self._once(key, lambda: _build_stage(config, store)))
            )
        if "classic" in config.method.learners:
            of = f"features {config.classic.features} {config.classic.weights} {store.size} {channels}"
            checks.append(
                ("settings", lambda: self._once(of, lambda: extractor_of(config.classic, store)))
            )
        if made:
            gan = f"gan {config.gan} {classes} {size}"
            checks.append(("size", lambda: self._once(gan, lambda: _build_gan(config, store))))
            if channels > 1:
                yield Problem(
                    "scales",
                    f"generators make patches at one scale, and {store.path} has them at scales {store.scales}",
                    method,
                )
        if len(classes) < 2:
            yield Problem(
                "settings", f"{store.path}: one class alone, {classes}; label at least two"
            )
        wrong_size = False
        for kind, check in checks:
            if wrong_size and kind in ("size", "settings"):
                continue  # what is built of patches of a wrong size says the same again
            try:
                check()
            except UserError as error:
                wrong_size |= kind == "size"
                yield Problem(kind, str(error), method)
        if config.split.validation_share <= 0:
            if chooses(config) and config.method.learners:
                who = f"method={method}" if config.method.always else "tune=true"
                yield Problem(
                    "tune", f"{who} chooses on validation patches, and there are none", method
                )
            if made and set(config.select.filters) - {"critic"}:
                yield Problem(
                    "select",
                    f"select.filters={list(config.select.filters)} needs validation patches, and there are none",
                    method,
                )

    def _place(self, config: RunCommand) -> None:
        if self.here and config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
            raise UserError(
                "trainer.accelerator=gpu: no GPU is visible here; give trainer.accelerator=cpu"
            )
        check_folders(config)

    def _rows(self, config: RunCommand) -> Iterator[Problem]:
        """Of one fold."""
        store, method = self.store(config), config.method.name
        known = config.data.store is not None or self.make or not self.expected
        try:
            split = self.split(config)
        except CannotSplit as error:
            yield Problem(error.kind, error.what)
            return
        except UserError as error:
            yield Problem("settings", str(error))
            return
        if not known:
            return
        trial = self.trial(config)
        if trial.finished:
            return
        where = f"fold {config.split.fold} of {self.fold_count(config)}"
        if not len(split.test):
            yield Problem("folds", f"{where}: no patches to test")
        try:
            check_pseudo(trial)
        except UserError as error:
            yield Problem("pseudo", str(error), method)
        if needs_generator(config) or self.generator:
            try:
                check_unlabelled(trial)
            except UserError as error:
                yield Problem("settings", str(error), method)
        key = f"fit {config.data.store} {store.classes} {config.split} {config.hierarchy} {config.temporal}"
        key += f" {config.method.tree}"
        train = trial.train.facts
        try:
            hierarchy = self._once(key, lambda: trial.hierarchy.fit(**train))
        except UserError as error:
            yield Problem("times", str(error), method)
            return
        if not (config.method.learners or self.generator):
            return
        learned = np.isin(np.arange(len(store.classes)), train["labels"])
        for i in np.flatnonzero(~learned):
            of = store.manifest["group"][store.manifest["label"] == store.classes[i]]
            held = len(of) if config.split.kind == "leaky" else of.nunique()
            kind = "class" if held > 1 else "alone"
            yield Problem(kind, _why_not(store, int(i), where), label=store.classes[i])
        names = np.array(store.classes)[train["labels"]]
        for node in hierarchy.nodes if learned.all() else []:
            inside = node.scope.learns_at(train["times"])
            for target, members in node.targets.items():
                if not (np.isin(names, members) & inside).any():
                    first, last = node.window
                    yield Problem(
                        "window",
                        f"{where}: stage {node.name} learns in hours {first:g} to {last:g}, and {target} has no "
                        "training patches then",
                        method,
                    )
            seen = int(
                (np.isin(names, [c for m in node.targets.values() for c in m]) & inside).sum()
            )
            if seen < config.trainer.devices:
                yield Problem(
                    "settings",
                    f"{where}: stage {node.name} has {seen} training patches for trainer.devices="
                    f"{config.trainer.devices}; give fewer devices",
                    method,
                )

    def with_store(self, config: RunCommand, store: PatchStore) -> Planner:
        """Another planner, for which the store holds something else."""
        other = Planner(generator=self.generator, here=self.here, make=self.make)
        other._known[f"store {config.data.store}"] = store
        return other


def _choices(config: RunCommand) -> list[RunCommand]:
    """What tuning would try in its place."""
    if not (chooses(config) and config.method.learners):
        return []
    return [with_settings(config, choice) for choice in config.method.choices]


def _why_not(store: PatchStore, label: int, where: str) -> str:
    name = store.classes[label]
    groups = sorted(set(store.manifest["group"][store.manifest["label"] == name]))
    if not groups:
        return f"{store.path}: no patches of {name}"
    if len(groups) == 1:
        return f"{where}: {name} is in one group alone, {groups[0]}, and that is tested; none are left to learn from"
    told = ", ".join(groups[:3]) + (", ..." if len(groups) > 3 else "")
    return f"{where}: no training patches of {name}, its {len(groups)} groups ({told}) are held out or unlabelled"


def _build_stage(config: RunCommand, store: PatchStore) -> None:
    """Makes a stage as it will be, and asks it for all that a name stands for."""
    k, size = len(store.classes), config.data.patch_size or store.size
    groups = {c: [c] for c in store.classes}
    stage = dict(vars(config.stage))
    if stage["freeze"] != "none" and not stage["weights"]:
        raise UserError(
            f"stage.freeze={stage['freeze']}: keeps random weights as they are; give stage.weights=, or leave it out"
        )
    network = stage["network"]
    module = StageModule(
        stage, "root", groups, [1] * k, size, 0, len(store.scales), own_module(network)
    )
    if stage["weights"]:
        start_from(module.network, network, stage["weights"], k)
    if stage["feature_dose"] and not stage["refit_head"]:
        raise UserError(
            f"stage.feature_dose={stage['feature_dose']:g}: the last layer alone learns from generated features; give "
            "stage.refit_head=true, or leave it out"
        )
    if stage["retrain_head"] or stage["refit_head"]:
        heads(module.network, k)
    module.loss(torch.zeros(1, k), torch.zeros(1, dtype=torch.int64))
    module.learning_rate(0.5)
    module.configure_optimizers()


def _build_gan(config: RunCommand, store: PatchStore) -> None:
    size = config.data.patch_size or store.size
    camera = None if config.gan.camera == "none" else [0.0] * len(STRENGTHS)  # any will do
    make_module(dict(vars(config.gan)), store.classes, size, camera=camera)


def _expected(config: RunCommand) -> PatchStore:
    """What is known of movies before they are simulated: that they hold every class at every time."""
    from stemcell_lit.simulate.movie import CLASSES

    movies = config.data.simulation.movies
    if movies < 2:
        raise UserError(
            f"data.simulation.movies={movies}: expected at least 2, to train and to test"
        )
    rows = pd.DataFrame(
        [
            {"label": c, "group": f"movie_{m:02d}", "frame": frame, "time_h": float(frame)}
            for m in range(movies)
            for frame in range(8)
            for c in CLASSES
        ]
    )
    return in_memory(
        Path("simulated movies"),
        rows,
        CLASSES,
        config.data.extraction.patch_size,
        config.data.extraction.scales,
    )


def in_memory(
    path: Path, rows: pd.DataFrame, classes: Sequence[str], size: int, scales: Sequence[int]
) -> PatchStore:
    """A store for planning, from its manifest alone: its pixels are all 0."""
    info: Mapping[str, Any] = {"classes": list(classes), "scales": list(scales), "content_hash": ""}
    views = () if len(scales) == 1 else (len(scales),)
    pixels = np.broadcast_to(np.zeros((), np.uint8), (len(rows), *views, size, size))
    for column, default in COLUMNS.items():
        if column not in rows:
            rows[column] = default
    return PatchStore(path, pixels, rows, dict(info))
