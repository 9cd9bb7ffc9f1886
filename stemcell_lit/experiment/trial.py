"""A trial of the table, a method on a fold with a seed, before it runs: its settings, data, name and hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stemcell_lit.base.artifacts import ArtifactStore, Recipe, key_hash
from stemcell_lit.base.names import safe_name
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.pretrained import weights_hash
from stemcell_lit.classify.user_network import source_hash
from stemcell_lit.data.splits import Split, make_split
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore, reduce_pixels
from stemcell_lit.settings.command_keys import RunCommand
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.group_keys import DataConfig
from stemcell_lit.settings.network_names import own_module
from stemcell_lit.settings.roles import determining

if TYPE_CHECKING:
    from wandb import Run

FORMAT = 1  # of result.json
SETTINGS_VERSION = 3  # bump when identical settings would now give a different result
RESULT = "result.json"
CHOOSABLE = ("stage.", "classic.", "mix.", "temporal.", "hierarchy.leaves", "data.augment")
KEPT_BYTES = 128 << 20  # of a part's patches: 131,072 of 32 px; a process has few parts


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a store: its patches as a network sees them, and what is known of them.

    Attributes:
        store: real patches.
        rows: (n,) int64.
        size: px, see `reduce_pixels`; None: as they are.
    """

    store: PatchStore
    rows: np.ndarray
    size: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (n, [scales,] size, size), not to be written into.

        Read and reduced at the first use and then kept, up to `KEPT_BYTES`; more is read anew at each use, since the
        store may be larger than the memory.
        """
        kept: np.ndarray | None = self.__dict__.get("_pixels")
        if kept is None:
            kept = reduce_pixels(self.store.pixels[self.rows], self.size)
            if kept.nbytes <= KEPT_BYTES:
                self.__dict__["_pixels"] = kept
        return kept

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """A row a patch."""
        return self.store.manifest.iloc[self.rows]

    @cached_property
    def labels(self) -> np.ndarray:
        """(n,) int64 positions in the store's classes; patches without a label are refused, see `labels_of`."""
        return self.store.labels_of(self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """Patches of each class."""
        counts = np.bincount(self.labels, minlength=len(self.store.classes)).tolist()
        return dict(zip(self.store.classes, counts, strict=True))

    @property
    def facts(self) -> dict[str, np.ndarray]:
        """What a hierarchy is fitted on and tuned by: labels, times, tracks and frames, each (n,)."""
        return {
            "labels": self.labels,
            "times": self.manifest["time_h"].to_numpy(),
            "tracks": self.manifest["track"].to_numpy(),
            "frames": self.manifest["frame"].to_numpy(),
        }


@dataclass(frozen=True)
class Trial:
    """A trial before it runs: its resolved settings, data and name.

    Attributes:
        config: resolved and typed.
        store: real patches.
        split: of `store`.
        artifacts: where generators, generated patches and stages are shared.
        hierarchy: built, not fitted.
        wandb_run: the W&B run that its trainings show themselves in; no part of what the trial is.
    """

    config: RunCommand
    store: PatchStore
    split: Split
    artifacts: ArtifactStore
    hierarchy: Hierarchy
    wandb_run: Run | None = field(default=None, repr=False, compare=False)

    @cached_property
    def train(self) -> Part:
        """Patches that may be learned from."""
        return self._part(self.split.train)

    @cached_property
    def val(self) -> Part:
        """Patches for choosing, never for the result."""
        return self._part(self.split.val)

    @cached_property
    def test(self) -> Part:
        """Patches of the result."""
        return self._part(self.split.test)

    @cached_property
    def unlabelled(self) -> Part:
        """Patches to learn from whose labels are hidden, or that have none; never of a group that is held out."""
        return self._part(self.split.unlabelled)

    def _part(self, rows: np.ndarray) -> Part:
        return Part(self.store, rows, self.config.data.patch_size)

    @property
    def size(self) -> int:
        """Height and width of its patches, px."""
        return self.config.data.patch_size or self.store.size

    @property
    def um_per_px(self) -> float | None:
        """Of its patches, None where unknown."""
        return self.um_per_px_at(self.size)

    def um_per_px_at(self, size: int) -> float | None:
        """Of its patches reduced to a size, None where unknown."""
        um = self.store.info["um_per_px"]
        return um * self.store.size / size if um else None

    def seen(self, part: Part) -> Part:
        """A part as its trained hierarchy takes it: a classical stage looks at patches as they are stored."""
        return replace(part, size=None) if "classic" in self.config.method.learners else part

    @property
    def hash(self) -> str:
        """Of everything that determines the result; where it runs and logs does not."""
        return key_hash(
            {
                "format": SETTINGS_VERSION,
                "content": self.store.content_hash,
                **relevant(self.config),
                **self.outside,
                **self._tried,
            }
        )

    @property
    def _tried(self) -> dict[str, Any]:
        """`outside` of those choices of tuning that name weights or a network."""
        config = self.config
        named = {"stage.weights", "stage.network", "classic.weights", "classic.features"}
        tried = [with_settings(config, c) for c in config.method.choices if chooses(config)]
        found = [
            replace(self, config=other).outside
            for other, c in zip(tried, config.method.choices, strict=False)
            if named & set(c)
        ]
        return {"tried": found} if any(found) else {}

    @cached_property
    def outside(self) -> dict[str, str]:
        """SHA-256 of what settings only name and what makes another result: weights to begin with, a user's network.

        Raises:
            UserError: it is not there.
        """
        learners, found = self.config.method.learners, {}
        stage, classic = self.config.stage, self.config.classic
        for network, weights, learner, prefix in (
            (stage.network, stage.weights, "network", ""),
            (classic.features, classic.weights, "classic", "features_"),
        ):
            if learner not in learners or network == "classical":
                continue
            if weights:
                found[f"{prefix}weights"] = weights_hash(network, weights)
            own = own_module(network)
            if own:
                found[f"{prefix}module"] = source_hash(own)
        return found

    @property
    def name(self) -> str:
        """method-fold-seed-hash, such as `flat_gan-f0-s1-3fa2b1c4`."""
        c = self.config
        return f"{safe_name(c.method.name)}-f{c.split.fold}-s{c.seed}-{self.hash[:8]}"

    @property
    def folder(self) -> Path:
        """Where its result lies."""
        return Path(self.config.out) / "trials" / self.name

    @property
    def finished(self) -> bool:
        """True if its result is there."""
        return (self.folder / RESULT).is_file()


def relevant(config: RunCommand) -> dict[str, Any]:
    """The settings that may change this trial's result."""
    plain = determining(config)
    learners = config.method.learners
    if "classic" not in learners:
        del plain["classic"]
    if learners == ("classic",):
        plain["stage"] = None
        plain["data"] |= {"patch_size": None, "augment": "", "pixels": ""}
    if config.method.always:
        plain["tune"] = False
    if not chooses(config):
        plain |= {"tune": False, "tune_seed": 0, "method": {**plain["method"], "choices": []}}
        plain["method"].pop("by", None)
    if config.split.thin_ratio is None:
        plain["split"].pop("thin_classes", None)
    if config.mix.recipe == "real":
        plain["mix"]["amount"] = 0
        if not (config.tune or chooses(config)):  # what is tried may mix
            plain |= {"gan": None, "quality": None, "select": None}
            plain["generator_seed"] = 0
    return {f.name: plain[f.name] for f in fields(RunCommand) if f.name in plain}


def prepare(config: RunCommand) -> Trial:
    """Opens the data, makes the split and builds the hierarchy; trains nothing.

    Raises:
        UserError: settings or data that do not fit together.
    """
    check_batches(config)
    artifacts = artifacts_of(config)
    store = open_store(config, artifacts)
    split = make_split(store, config.split)
    hierarchy = Hierarchy.build(
        store.classes, config.hierarchy, config.temporal, flat=not config.method.tree
    )
    trial = Trial(config, store, split, artifacts, hierarchy)
    check_pseudo(trial)
    if needs_generator(config):
        check_unlabelled(trial)
    return trial


def open_store(config: RunCommand, artifacts: ArtifactStore) -> PatchStore:
    """The named store, or the embedded default: simulated movies and the patches cut from them, made once."""
    if config.data.store is not None:
        return PatchStore.open(config.data.store)
    return PatchStore.open(artifacts.get(SimulatedStore(config.data)) / "store")


@dataclass(frozen=True)
class SimulatedStore(Recipe):
    """The embedded default's simulated movies and the patches cut from them, in `movies` and `store`."""

    kind: ClassVar[str] = "simulation"
    data: DataConfig

    def key(self) -> dict[str, Any]:
        """Settings of the simulation and of the patches."""
        return {
            "simulation": determining(self.data.simulation),
            "extraction": determining(self.data.extraction),
        }

    def make(self, folder: Path) -> None:
        """Simulates and cuts."""
        from stemcell_lit.patches.extraction import extract
        from stemcell_lit.simulate.write import simulate

        simulate(self.data.simulation, folder / "movies")
        extract(folder / "movies", folder / "store", self.data.extraction)


def with_settings(config: RunCommand, settings: Mapping[str, Any]) -> RunCommand:
    """A copy of the configuration with some keys set, such as {"stage.lr": 0.001}.

    Raises:
        UserError: a key that does not exist or may not be chosen, or a value of the wrong type.
    """
    if not isinstance(settings, Mapping):
        raise UserError(
            f"method.choices: found {settings!r:.60}, expected settings such as {{stage.lr: 0.001}}"
        )
    # a path is text: OmegaConf would evaluate ${...} in it
    pathless = replace(
        config,
        out="-",
        artifacts=None,
        data=replace(config.data, store=None),
        stage=replace(config.stage, weights=None),
        classic=replace(config.classic, weights=None),
    )
    copy = OmegaConf.structured(pathless)
    for key, value in settings.items():
        if not str(key).startswith(CHOOSABLE):
            raise UserError(
                f"method.choices: {key} cannot be chosen; expected keys of {', '.join(CHOOSABLE)}"
            )
        try:
            OmegaConf.update(copy, key, value, force_add=False)
        except OmegaConfBaseException as error:
            raise UserError(
                f"method.choices: {key}={value}: {str(error).splitlines()[0]}"
            ) from error
    found = OmegaConf.to_object(copy)
    assert isinstance(found, RunCommand)
    check(found)
    data = replace(found.data, store=config.data.store)
    if "stage.weights" not in settings:
        found.stage.weights = config.stage.weights
    if "classic.weights" not in settings:
        found.classic.weights = config.classic.weights
    return replace(found, out=config.out, artifacts=config.artifacts, data=data)


def chooses(config: RunCommand) -> bool:
    """Whether a trial chooses among the settings of its method, on validation patches."""
    return (config.tune or config.method.always) and bool(config.method.choices)


def needs_generator(config: RunCommand) -> bool:
    """Whether a trial trains on generated patches."""
    mix = config.mix
    return mix.recipe != "real" and mix.source != "repeated" and "network" in config.method.learners


def artifacts_of(config: RunCommand) -> ArtifactStore:
    """Where a trial's generators, generated patches and stages are shared."""
    return ArtifactStore(config.artifacts or Path(config.out) / "artifacts")


def check_batches(config: RunCommand) -> None:
    """Refuses a batch that the devices cannot share equally."""
    sizes = {"stage": config.stage.batch_size}
    if needs_generator(config):
        sizes["gan"] = config.gan.batch_size
    for group, size in sizes.items():
        if size % config.trainer.devices:
            raise UserError(
                f"{group}.batch_size={size} is the batch over all devices, and trainer.devices="
                f"{config.trainer.devices} does not divide it; give a multiple"
            )


def check_real(config: RunCommand) -> None:
    """Refuses generated patches where nothing would learn from them."""
    if config.method.learner == "classic" and config.mix.recipe != "real":
        raise UserError(
            f"method={config.method.name} learns from real patches alone, found mix.recipe={config.mix.recipe}; "
            "give mix=real, or a method with a network"
        )


def check_pseudo(trial: Trial) -> None:
    """Refuses pseudo-labels where no patch is without a label, or a tree asks for them."""
    if not trial.config.stage.pseudo_rounds or "network" not in trial.config.method.learners:
        return
    if trial.config.method.tree:
        raise UserError(
            "stage.pseudo_rounds: a stage of a tree cannot tell which unlabelled patches are of its classes; give "
            "method=flat_pseudo or another without a tree"
        )
    if len(trial.split.unlabelled) == 0:
        raise UserError(
            "stage.pseudo_rounds: takes training patches without labels, and split.labelled_fraction="
            f"{trial.config.split.labelled_fraction:g} leaves none; give less than 1, a store with such patches, or "
            "leave this method out"
        )


def check_unlabelled(trial: Trial) -> None:
    """Refuses a generator that shall learn from patches without a label where there are none."""
    if trial.config.gan.unlabelled and not len(trial.split.unlabelled):
        raise UserError(
            f"gan.unlabelled=true: {trial.store.path} has no patch without a label in the training groups of fold "
            f"{trial.config.split.fold}, and split.labelled_fraction={trial.config.split.labelled_fraction:g} hides "
            "none; import some (docs/import.md), give a fraction below 1, or leave it out"
        )


def rows_hash(rows: np.ndarray) -> str:
    """What stands for rows of the store in a key."""
    return key_hash({"rows": rows.tolist()})
