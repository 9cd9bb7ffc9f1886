"""Generators of a trial's fold and the patches drawn from them, made once and shared as artifacts."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch

from stemcell_lit.base import formats as form
from stemcell_lit.base.artifacts import Recipe, key_hash
from stemcell_lit.base.files import check_target, finite
from stemcell_lit.base.ranks import first_rank
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.data.datamodule import PatchDataModule, Scope
from stemcell_lit.data.mixing import generated_quota, share_out
from stemcell_lit.errors import UserError
from stemcell_lit.experiment import callbacks, generator_quality
from stemcell_lit.experiment.encoders import encoder_of
from stemcell_lit.experiment.training import fit
from stemcell_lit.experiment.trial import FORMAT, Trial, check_unlabelled, rows_hash
from stemcell_lit.gan.alarms import GANDiverged
from stemcell_lit.gan.best_snapshot import QualityWatch, keep_best
from stemcell_lit.gan.camera import estimate, strengths_in
from stemcell_lit.gan.encoder import FILE as ENCODER
from stemcell_lit.gan.encoder import Encoder
from stemcell_lit.gan.families import make_module
from stemcell_lit.gan.generative import GenerativeModule
from stemcell_lit.gan.modes import Modes
from stemcell_lit.gan.patch_filters import make_filters
from stemcell_lit.gan.quality import Reference
from stemcell_lit.gan.synthesis import synthesize
from stemcell_lit.gan.trained import load_generator
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import GenerateCommand
from stemcell_lit.settings.compose import without_generated
from stemcell_lit.settings.gan_keys import QualityConfig, SelectConfig
from stemcell_lit.settings.roles import determining

CHECKPOINT = "generator.ckpt"


def reference_of(trial: Trial, encoder: Encoder | None = None) -> Reference | None:
    """What this fold's generators are compared with: its training and validation patches, never a test patch.

    None where nothing is set aside for validation. `encoder` is that of the trial where none is given.
    """
    if not len(trial.split.val):
        return None
    return Reference.draw(
        trial.store.classes,
        (trial.train.pixels, trial.train.labels),
        (trial.val.pixels, trial.val.labels),
        encoder or encoder_of(trial),
        trial.config.quality.most,
        turns=trial.config.gan.turns,
    )


def modes_of(
    trial: Trial, encoder: Encoder | None = None
) -> tuple[np.ndarray | None, list[list[float]] | None]:
    """Modes of the classes, found among this fold's training patches: (patches of the store,) int64, and their shares.

    None and None where every class is one. Test patches have no mode (-1). `encoder` as in `reference_of`.
    """
    gan = trial.config.gan
    if gan.modes <= 1:
        return None, None
    encoder = encoder or encoder_of(trial)
    features = encoder.features(trial.train.pixels)
    modes = Modes.fit(
        features,
        trial.train.labels,
        trial.store.classes,
        most=gan.modes,
        patches=gan.mode_patches,
    )
    if max(map(len, modes.shares)) == 1:
        return None, None
    found = np.full(len(trial.store), -1, np.int64)
    found[trial.split.train] = modes.of(features, trial.train.labels)
    found[trial.split.val] = modes.of(encoder.features(trial.val.pixels), trial.val.labels)
    return found, modes.shares


def with_shuffled_labels(trial: Trial) -> Trial:
    """The trial as a generator sees it that shall know nothing of the classes.

    Labels change places among its training patches, and among its validation patches; test patches keep theirs.
    """
    store, manifest = trial.store, trial.store.manifest.copy()
    rng = np.random.default_rng([trial.config.generator_seed, 17])
    labels = manifest["label"].to_numpy().copy()
    for rows in (trial.split.train, trial.split.val):
        labels[rows] = rng.permutation(labels[rows])
    manifest["label"] = labels
    other = {"content_hash": key_hash({"shuffled": store.content_hash, "labels": labels.tolist()})}
    return replace(
        trial, store=PatchStore(store.path, store.pixels, manifest, {**store.info, **other})
    )


@dataclass(frozen=True)
class TrainedGenerator(Recipe):
    """The generator of a trial's fold, trained on its training groups.

    Its folder has generator.ckpt, generator.json (what it has seen, how it was chosen), quality.json, encoder.pt and
    grids/. The snapshot kept is the best by `quality.choose`, see `gan/best_snapshot`. An alarm ends the training; the
    best snapshot before it is then used, and the alarm is recorded in generator.json.

    Attributes:
        trial: whose.
        shuffled: it learns from shuffled labels.
    """

    kind: ClassVar[str] = "generator"
    resumable: ClassVar[bool] = True
    together: ClassVar[bool] = True
    trial: Trial
    shuffled: bool = False

    def key(self) -> dict[str, Any]:
        """Training and validation patches, settings, seed.

        Raises:
            UserError: patches at several scales, or none without a label where these are asked for.
        """
        trial, config, store = self.trial, self.trial.config, self.trial.store
        if len(store.scales) > 1:
            raise UserError(
                f"{store.path}: has patches at scales {store.scales}, and generators make patches at one scale; take "
                f"methods without generated patches ({', '.join(without_generated())}), or a store with "
                "extraction.scales=[1]"
            )
        check_unlabelled(trial)
        return {
            "data": store.content_hash,
            "train": rows_hash(trial.split.train),
            "val": rows_hash(trial.split.val),
            "size": trial.size,
            "gan": determining(config.gan),
            "quality": determining(config.quality),
            "seed": config.generator_seed,
            **determining(config.trainer),
            **({"labels": "shuffled"} if self.shuffled else {}),
            **({"unlabelled": rows_hash(trial.split.unlabelled)} if config.gan.unlabelled else {}),
        }

    def make(self, folder: Path) -> None:
        """Trains it, chooses its snapshot and measures that.

        Raises:
            UserError: an alarm before any good snapshot.
        """
        trial, config = self.trial, self.trial.config
        encoder = encoder_of(trial) if self.shuffled else None  # of the true labels
        trial = with_shuffled_labels(trial) if self.shuffled else trial
        reference = reference_of(trial, encoder)  # here: all ranks of a job come to this together
        modes, shares = modes_of(trial, encoder)
        torch.manual_seed(config.generator_seed)
        data = self._data(trial, modes)
        classes, seed = trial.store.classes, config.generator_seed
        noisy = config.gan.camera != "none"
        camera = estimate(trial.train.pixels) if noisy else None
        module = make_module(asdict(config.gan), classes, trial.size, seed, shares, camera)
        watch = QualityWatch(reference, config.quality, folder) if reference else None
        curve = callbacks.CurveKeeper()
        alarm = self._fit(module, data, folder, [curve, watch] if watch else [curve])
        chosen = keep_best(watch, folder, alarm)
        if not first_rank():
            return
        if chosen["alarm"]:
            warnings.warn(f"{self._title}: {chosen['alarm']}", stacklevel=2)
        generator = load_generator(folder / CHECKPOINT)
        about = {
            "format": FORMAT,
            "hash": key_hash(self.key()),
            "classes": classes,
            "seen_groups": sorted(_seen(trial)),
            "um_per_px": trial.um_per_px,
            "images": int(generator.images_seen),
            "images_trained": int(module.images_seen),
            "modes": dict(zip(classes, shares, strict=True)) if shares else None,
            "camera": strengths_in(generator.generator_ema),
            "curve": curve.curve,
            **chosen,
        }
        if reference is not None:
            _show(generator, reference, config.quality, folder)
        _write_facts(folder, about)
        # Only now, and the checkpoint first: cut off before, the same call comes to the same snapshot.
        for file in (folder / "last.ckpt", *folder.glob("best-*.ckpt*")):
            file.unlink(missing_ok=True)

    @property
    def _title(self) -> str:
        seed = self.trial.config.generator_seed
        return f"generator of fold {self.trial.config.split.fold}" + (
            f", seed {seed}" if seed else ""
        )

    def _data(self, trial: Trial, modes: np.ndarray | None) -> PatchDataModule:
        config = trial.config
        return PatchDataModule(
            trial.store,
            trial.split,
            Scope.of_classes(trial.store.classes),
            modes=modes,
            unlabelled=config.gan.unlabelled,
            epoch_images=config.gan.validate_every_images,
            batch_size=config.gan.batch_size,
            augment="none",  # the generator's module turns and shifts by itself
            patch_size=trial.size,
            seed=config.generator_seed,
            min_class_patches=config.data.min_class_patches,
        )

    def _fit(
        self,
        module: GenerativeModule,
        data: PatchDataModule,
        folder: Path,
        callbacks: list[pl.Callback],
    ) -> GANDiverged | None:
        """Trains it and writes its checkpoint, or returns the alarm that ended the training."""
        config = self.trial.config
        try:
            trainer = fit(
                module,
                data,
                config.trainer,
                folder,
                self._title,
                config.gan.images,
                self.trial.wandb_run,
                callbacks,
            )
            trainer.save_checkpoint(folder / CHECKPOINT, weights_only=True)
        except GANDiverged as error:
            return error
        return None


def _seen(trial: Trial) -> set[str]:
    """Groups that the generator of a trial learns from."""
    units = trial.split.units(trial.store, "train")
    if trial.config.gan.unlabelled:
        units |= trial.split.units(trial.store, "unlabelled")
    return units


def _show(
    generator: GenerativeModule,
    reference: Reference,
    quality: QualityConfig,
    folder: Path,
) -> None:
    reference.encoder.save(folder / ENCODER)
    generator_quality.show_generator(generator, reference, quality, folder)


_FACTS = form.versioned(
    FORMAT,
    form.record(
        {
            "hash": form.HASH,
            "classes": form.CLASSES,
            "seen_groups": form.listing(form.text()),
            "um_per_px": form.UM_PER_PX,
            "images": form.whole(),
            "images_trained": form.whole(),
            "curve": form.CURVE,
        },
        {
            "modes": form.maybe(form.mapping(form.listing(form.number(0, 1), most=1000))),
            "camera": form.maybe(form.mapping(form.number(0, 1))),
            "metric": form.maybe(form.text()),
            "alarm": form.maybe(form.text()),
        },
    ),
)


def _write_facts(folder: Path, about: Mapping[str, Any]) -> None:
    text = json.dumps(finite(about), indent=1, allow_nan=False)
    (folder / "generator.json").write_text(text + "\n", encoding="utf-8")


def generator_facts(folder: Path) -> dict[str, Any]:
    """What generator.json says of the generator in a folder.

    Raises:
        UserError: none there, or not one that can be read.
    """
    facts: dict[str, Any] = form.read_json(
        folder / "generator.json", _FACTS, "`stemcell-lit train task=gan` makes it again"
    )
    return facts


# --- patches drawn from one -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratedPatches(Recipe):
    """So many generated patches per class, selected by `select`: a store in `store`.

    Attributes:
        trial: whose selection and seed.
        generator: folder of a trained generator.
        wanted: class -> patches.
    """

    kind: ClassVar[str] = "generated"
    trial: Trial
    generator: Path
    wanted: Mapping[str, int]

    def key(self) -> dict[str, Any]:
        """The generator, how many, the seed, the selection."""
        config = self.trial.config
        return {
            "generator": generator_facts(self.generator)["hash"],
            "per_class": dict(self.wanted),
            "seed": config.generator_seed,
            "select": determining(config.select) if config.select.filters else None,
        }

    def make(self, folder: Path) -> None:
        """Draws them."""
        config, about = self.trial.config, generator_facts(self.generator)
        _synthesize(
            self.generator / CHECKPOINT,
            about,
            self.wanted,
            folder / "store",
            config.generator_seed,
            config.select,
        )


def make_generated(trial: Trial, hierarchy: Hierarchy) -> dict[str, Path] | None:
    """Generated patches enough for every stage of this trial, or None where its mix wants none.

    Returns:
        `path`, the folder of their generator, and `generated`, their store.
    """
    source = trial.config.mix.source
    wanted = _pool(trial, hierarchy)
    if source == "repeated" or not any(wanted.values()):
        return None
    generator = trial.artifacts.get(TrainedGenerator(trial, source == "shuffled"))
    generated = trial.artifacts.get(GeneratedPatches(trial, generator, wanted))
    return {"path": generator, "generated": generated / "store"}


def _pool(trial: Trial, hierarchy: Hierarchy) -> dict[str, int]:
    """Generated patches per class that the hungriest stage asks for."""
    labels, times = (trial.train.manifest[c].to_numpy() for c in ("label", "time_h"))
    most = dict.fromkeys(trial.store.classes, 0)
    for node in hierarchy.nodes:
        inside = node.scope.learns_at(times)
        real = {
            group: int((np.isin(labels, members) & inside).sum())
            for group, members in node.targets.items()
        }
        for group, n in generated_quota(real, trial.config.mix).items():
            members = node.targets[group]
            for c, part in zip(members, share_out(n, [n] * len(members)), strict=True):
                most[c] = max(most[c], part)
    return most


def generate(config: GenerateCommand) -> PatchStore:
    """Writes a store of generated patches, equally many per class, with their provenance.

    Raises:
        UserError: no generator there, or something of the user's in the way.
    """
    checkpoint = Path(config.checkpoint)
    check_target(config.store, "store", inputs=[checkpoint])
    about = checkpoint.with_name("generator.json")
    for file in (checkpoint, about):
        if not os.path.lexists(file):
            raise UserError(
                f"{file}: no such file; `stemcell-lit train task=gan` makes and names one"
            )
    facts = generator_facts(checkpoint.parent)
    return _synthesize(
        checkpoint,
        facts,
        dict.fromkeys(facts["classes"], config.per_class),
        Path(config.store),
        config.seed,
        config.select,
        config.batch_size,
    )


def _synthesize(
    checkpoint: Path,
    about: Mapping[str, Any],
    wanted: Mapping[str, int],
    store: Path,
    seed: int,
    select: SelectConfig,
    batch_size: int = 256,
) -> PatchStore:
    module = load_generator(checkpoint)
    if module.classes != about["classes"]:
        raise UserError(
            f"{checkpoint}: a generator of {module.classes[:20]}, generator.json says {about['classes'][:20]}; train "
            "it again"
        )
    file = checkpoint.with_name(ENCODER)
    encoder = Encoder.load(file) if select.filters and file.is_file() else None
    return synthesize(
        module,
        wanted,
        store,
        seed=seed,
        generator_hash=about["hash"],
        seen_groups=about["seen_groups"],
        um_per_px=about["um_per_px"],
        filters=make_filters(select, encoder, seed),
        draws=select.draws,
        batch_size=batch_size,
        inputs=[checkpoint],
    )
