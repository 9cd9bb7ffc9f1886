"""One cell of the table: a method on a fold with a seed, from patches to result.json."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment

from stemcell_lit.classify.hierarchy import Hierarchy, Node
from stemcell_lit.classify.pseudo import pseudo_balance
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import TrainedHierarchy, load_stage, save_weights
from stemcell_lit.data.datamodule import PatchDataModule, View
from stemcell_lit.data.mixing import generated_quota, share_out
from stemcell_lit.data.patches import PatchStore, reduce_pixels, whole_or_absent, write_whole
from stemcell_lit.data.splits import Split, make_split
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import confusion, scores
from stemcell_lit.experiment import gallery, tracking
from stemcell_lit.experiment.artifacts import ArtifactStore, key_hash
from stemcell_lit.experiment.interrupt import CheckpointOnSignal
from stemcell_lit.experiment.progress import ImagesProgress
from stemcell_lit.gan.encoder import FILE as ENCODER
from stemcell_lit.gan.encoder import Encoder, encoder_key, first_rank, get_encoder
from stemcell_lit.gan.module import GANDiverged, GANModule
from stemcell_lit.gan.quality import Reference
from stemcell_lit.gan.synthesis import load_generator, make_filters, synthesize
from stemcell_lit.gan.watch import QualityWatch, settle
from stemcell_lit.schema import (
    EvaluateCommand,
    GenerateCommand,
    RunCommand,
    SelectConfig,
    TrainCommand,
    TrainerConfig,
)

FORMAT = 1  # of result.json, and of what a cell's hash means
RESULT = "result.json"
PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Cell:
    """A cell before it runs: its resolved settings, data and name.

    Attributes:
        config: resolved and typed.
        store: real patches.
        split: of `store`.
        artifacts: where generators, generated patches and stages are shared.
        hierarchy: built, not fitted.
    """

    config: RunCommand
    store: PatchStore
    split: Split
    artifacts: ArtifactStore
    hierarchy: Hierarchy

    @property
    def hash(self) -> str:
        """Of everything that determines the result; where it runs and logs does not."""
        return key_hash(
            {"format": FORMAT, "content": self.store.content_hash, **relevant(self.config)}
        )

    @property
    def name(self) -> str:
        """method-fold-seed-hash, such as `flat_gan-f0-s1-3fa2b1c4`."""
        c = self.config
        return f"{c.method.name}-f{c.split.fold}-s{c.seed}-{self.hash[:8]}"

    @property
    def folder(self) -> Path:
        """Where its result lies."""
        return Path(self.config.out) / "cells" / self.name

    @property
    def finished(self) -> bool:
        """True if its result is there."""
        return (self.folder / RESULT).is_file()


def relevant(config: RunCommand) -> dict[str, Any]:
    """The settings that may change a result: all but where it is computed, stored and logged."""
    plain = asdict(config)
    for key in ("out", "artifacts", "logger"):
        plain.pop(key, None)
    plain["data"] = {
        k: v
        for k, v in plain["data"].items()
        if k not in ("store", "simulation", "extraction", "workers", "min_class_patches")
    }
    plain["hierarchy"].pop("subsets")  # rows of the report
    if not (config.tune and config.method.choices):
        plain |= {"tune": False, "tune_seed": 0, "method": {**plain["method"], "choices": []}}
    if config.mix.recipe == "real":
        plain["mix"]["amount"] = 0
        if not config.tune:  # what is tried may mix
            plain |= {"gan": None, "quality": None, "select": None, "generator_seed": 0}
    # Precision, and the number of devices and threads, change the order of sums and so the last digits.
    plain["trainer"] = {k: plain["trainer"][k] for k in ("precision", "devices", "threads")}
    return {k: plain[k] for k in asdict(RunCommand()) if k in plain}


def prepare(config: RunCommand) -> Cell:
    """Opens the data, makes the split and builds the hierarchy; trains nothing.

    Raises:
        UserError: settings or data that do not fit together.
    """
    _check_batches(config)
    artifacts = ArtifactStore(config.artifacts or Path(config.out) / "artifacts")
    store = open_store(config, artifacts)
    split = make_split(store, config.split)
    hierarchy = Hierarchy.build(
        store.classes, config.hierarchy, config.temporal, flat=not config.method.tree
    )
    cell = Cell(config, store, split, artifacts, hierarchy)
    _check_pseudo(cell)
    return cell


def open_store(config: RunCommand, artifacts: ArtifactStore) -> PatchStore:
    """The named store, or the embedded default: simulated movies and the patches cut from them, made once."""
    if config.data.store is not None:
        return PatchStore.open(config.data.store)
    from stemcell_lit.data.extraction import extract
    from stemcell_lit.data.simulate import simulate

    simulation, extraction = config.data.simulation, config.data.extraction

    def make(folder: Path) -> None:
        simulate(simulation, folder / "movies")
        extract(folder / "movies", folder / "store", extraction)

    key = {
        "simulation": {k: v for k, v in asdict(simulation).items() if k != "threads"},
        "extraction": asdict(extraction),
    }
    return PatchStore.open(artifacts.get_or_make("simulation", key, make) / "store")


def run(config: RunCommand) -> Path:
    """Makes one cell and returns its folder; a finished one is returned at once.

    The folder holds result.json, predictions.parquet (a row per test patch) and model/ (the trained hierarchy).

    Raises:
        UserError: settings or data that do not fit together.
    """
    quiet()
    first = _join_ranks(config.trainer)
    cell = prepare(config)
    if cell.finished:
        return cell.folder
    start = time.monotonic()
    set_threads(config.trainer)
    beginning = {
        "format": FORMAT,
        "hash": cell.hash,
        "method": config.method.name,
        "fold": config.split.fold,
        "seed": config.seed,
        "classes": cell.store.classes,
        "data": _data_facts(cell),
        "temporal": {"kind": cell.hierarchy.temporal},
        "config": asdict(config),
    }
    with tracking.wandb_run(beginning, config.logger, Path(config.out), first=first) as board:
        chosen, tuning = choose(cell)
        model, trained, generator = _train(chosen, board)
        table, result = evaluate(model, cell.store, cell.split.test)
        result = {
            **beginning,
            **result,
            "validation": validation_scores(model, cell),
            "tuning": tuning,
            "stages": [_with_test_confusion(about, model, cell) for about in trained],
            "generator": generator
            and {
                **{k: os.path.relpath(v, config.out) for k, v in generator.items()},
                "curve": _generator_facts(generator["path"])["curve"],
            },
            "generator_quality": gallery.told(generator),
            "store": str(cell.store.path),
            "split": {
                "kind": cell.split.kind,
                **{part: cell.split.groups(cell.store, part) for part in ("train", "val", "test")},
            },
            "temporal": {
                "kind": model.hierarchy.temporal,
                "windows": model.hierarchy.to_dict()["windows"],
                "strength": model.hierarchy.strength,
            },
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "seconds": round(time.monotonic() - start, 1),
        }
        result["data"]["generated"] = _generated_counts(trained)
        if not first:
            return cell.folder
        with whole_or_absent(cell.folder) as folder:
            (folder / "model").mkdir()
            model.save(folder / "model")
            table.to_parquet(folder / PREDICTIONS, index=False)
            text = json.dumps(_finite(result), indent=1, allow_nan=False)
            (folder / RESULT).write_text(text + "\n", encoding="utf-8")
        tracking.log_result(board, _finite(result), table, Path(config.out), cell.store)
    return cell.folder


def _train(
    cell: Cell, board: Any = None
) -> tuple[TrainedHierarchy, list[dict[str, Any]], dict[str, Path] | None]:
    """The trained hierarchy of a cell, what is known of its stages' training, and its generator."""
    hierarchy = cell.hierarchy.fit(**_facts(cell, cell.split.train))
    stages, trained, generator = {}, [], None
    if cell.config.method.network:
        generator = make_generated(cell, hierarchy, board)
        generated = PatchStore.open(generator["generated"]) if generator else None
        for node in hierarchy.nodes:
            module, about, _ = make_stage(cell, node, generated, board)
            stages[node.name] = module
            trained.append(about)
    size = cell.config.data.patch_size or cell.store.size
    um = cell.store.info["um_per_px"]
    um = um * cell.store.size / size if um else None
    model = TrainedHierarchy(hierarchy, stages, size, um, cell.store.scales)
    facts = _facts(cell, cell.split.val)
    if len(cell.split.val) and cell.config.method.network:
        p = model.network_probabilities(cell.store.pixels[cell.split.val], facts["times"])
        model.hierarchy = hierarchy.tune(p, **facts)
    return model, trained, generator


# --- choosing on validation patches -----------------------------------------------------------------------------------

CHOOSABLE = ("stage.", "mix.", "temporal.", "hierarchy.leaves", "data.augment")


def choose(cell: Cell) -> tuple[Cell, dict[str, Any] | None]:
    """The cell with the settings of its method that do best on the fold's validation patches.

    Every choice is trained with `tune_seed`, whatever the cell's own seed, so that all seeds of a fold share one choice
    and its trainings. Best is the highest macro F1, then TPR, then the first in the list. Test patches have no say.

    Returns:
        the cell to train, and for result.json all that was tried with its validation scores; the cell itself and None
        where nothing is to be chosen.

    Raises:
        UserError: no validation patches, or a choice that is no legal setting.
    """
    config = cell.config
    if not config.tune or not config.method.choices or not config.method.network:
        return cell, None
    if len(cell.split.val) == 0:
        raise UserError(
            "tune=true chooses on validation patches, and there are none; give split.validation_share"
        )
    tried = []
    for choice in config.method.choices:
        other = prepare(replace(with_settings(config, choice), seed=config.tune_seed))
        found = validation_scores(_train(other)[0], other)
        tried.append({"settings": dict(choice), **found})
    best = max(range(len(tried)), key=lambda i: (tried[i]["macro/f1"], tried[i]["macro/tpr"], -i))
    taken = dict(config.method.choices[best])
    return prepare(with_settings(config, taken)), {
        "by": "macro/f1 on validation patches",
        "seed": config.tune_seed,
        "tried": tried,
        "taken": taken,
    }


def with_settings(config: RunCommand, settings: Mapping[str, Any]) -> RunCommand:
    """A copy of the configuration with some keys set, such as {"stage.lr": 0.001}.

    Raises:
        UserError: a key that does not exist or may not be chosen, or a value of the wrong type.
    """
    copy = OmegaConf.structured(config)
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
    return found


def validation_scores(model: TrainedHierarchy, cell: Cell) -> dict[str, float]:
    """Macro and per-class TPR and F1 on the validation patches; empty where there are none."""
    rows = cell.split.val
    if len(rows) == 0:
        return {}
    _, predicted = model.predict(cell.store.pixels[rows], cell.store.manifest.iloc[rows])
    return scores(cell.store.labels[rows], predicted, cell.store.classes)


def finished(config: Any) -> bool:
    """Whether a composed configuration's cell has its result; asked by sweeps before they start a process."""
    try:
        return prepare(typed(config)).finished
    except UserError:
        return False  # its own process says what is wrong, and the other cells go on


def validation_f1(folder: Path) -> float | None:
    """What a search maximises: a finished cell's macro F1 on its validation patches, never on a test patch.

    None where nobody has written the result yet (another rank will), or where there was no validation patch.
    """
    file = folder / RESULT
    if not file.is_file():
        return None
    found = (json.loads(file.read_text(encoding="utf-8")).get("validation") or {}).get("macro/f1")
    return None if found is None else float(found)


def returned(config: Any) -> float | None:
    """What the job of a composed configuration returned, asked by sweeps when it is done or was skipped as done."""
    return validation_f1(prepare(typed(config)).folder)


def _join_ranks(trainer: TrainerConfig) -> bool:
    """Joins the other ranks of this cell, where it has any, before they share artifacts.

    Returns:
        True on the first rank, which alone writes and logs.

    Raises:
        UserError: several devices, but nobody started the ranks. (Lightning would start them by running the same
            command again, each waiting for the artifact that the first one makes.)
    """
    if trainer.devices <= 1:
        return True
    slurm = SLURMEnvironment.detect()
    if slurm and SLURMEnvironment(auto_requeue=False).world_size() != trainer.devices:
        raise UserError(
            f"trainer.devices={trainer.devices}, but Slurm has started {os.environ['SLURM_NTASKS']} tasks; a job needs "
            "one node with a task per device (hydra.launcher.nodes=1, tasks_per_node=${trainer.devices})"
        )
    if not slurm and "RANK" not in os.environ:
        raise UserError(
            f"trainer.devices={trainer.devices}: a single command has one process; use `run -m` or `reproduce`, which "
            "start one per device"
        )
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        where: dict[str, Any] = {}
        if slurm:
            srun = SLURMEnvironment(auto_requeue=False)
            if os.environ.get("SLURM_NNODES") == "1" and platform.system() == "Linux":
                os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # node names need not resolve
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            address, port = srun.main_address, srun.main_port  # sets MASTER_ADDR and MASTER_PORT
            where = {
                "init_method": f"tcp://{address}:{port}",
                "rank": srun.global_rank(),
                "world_size": srun.world_size(),
            }
        torch.distributed.init_process_group(backend, timeout=timedelta(hours=24), **where)
    return first_rank()


def _check_batches(config: RunCommand) -> None:
    """Refuses a batch that the devices cannot share equally."""
    sizes = {"stage": config.stage.batch_size}
    if config.mix.recipe != "real":
        sizes["gan"] = config.gan.batch_size
    for group, size in sizes.items():
        if size % config.trainer.devices:
            raise UserError(
                f"{group}.batch_size={size} is the batch over all devices, and trainer.devices="
                f"{config.trainer.devices} does not divide it; give a multiple"
            )


def evaluate(
    model: TrainedHierarchy, store: PatchStore, rows: np.ndarray
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions and scores of a trained hierarchy on rows of a store.

    Returns:
        the table of predictions.parquet; classes, metrics and confusion of result.json.

    Raises:
        UserError: the store has other classes.
    """
    classes = model.hierarchy.classes
    if set(store.classes) != set(classes):
        raise UserError(
            f"{store.path}: has classes {store.classes}, the model {classes}; they must be the same"
        )
    if list(model.scales) != store.scales:
        raise UserError(
            f"{store.path}: has patches at scales {store.scales}, the model learned from {list(model.scales)}; import "
            "the movies again with the model's extraction.scales"
        )
    manifest = store.manifest.iloc[rows]
    p, predicted = model.predict(store.pixels[rows], manifest)
    table = pd.DataFrame(
        {
            "patch": rows,
            **{c: manifest[c].to_numpy() for c in ("group", "track", "time_h", "frame", "label")},
            "predicted": np.array(classes)[predicted],
            **{f"p/{c}": p[:, i].astype(np.float32) for i, c in enumerate(classes)},
        }
    )
    truth = table["label"].to_numpy()
    return table, {
        "classes": classes,
        "metrics": scores(truth, table["predicted"].to_numpy(), classes),
        "confusion": confusion(truth, table["predicted"].to_numpy(), classes).tolist(),
    }


# --- the generator ----------------------------------------------------------------------------------------------------


def generator_key(cell: Cell) -> dict[str, Any]:
    """Everything that determines the generator of this cell's fold."""
    config, store = cell.config, cell.store
    if len(store.scales) > 1:
        raise UserError(
            f"{store.path}: has patches at scales {store.scales}, and generators make patches at one scale; take "
            "methods without generated patches (flat, flat_sampler, flat_weighted, hierarchy, temporal, time_only), "
            "or a store with extraction.scales=[1]"
        )
    return {
        "data": store.content_hash,
        "train": _rows_hash(cell.split.train),
        "val": _rows_hash(cell.split.val),
        "size": config.data.patch_size or store.size,
        "gan": asdict(config.gan),
        "quality": asdict(config.quality),
        "seed": config.generator_seed,
        "precision": config.trainer.precision,
        "devices": config.trainer.devices,
        "threads": config.trainer.threads,
    }


def part_of(cell: Cell, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Real patches of `train`, `val` or `test` at this cell's size, uint8 (n, size, size), and labels (n,)."""
    rows = getattr(cell.split, part)
    return (
        reduce_pixels(cell.store.pixels[rows], cell.config.data.patch_size),
        cell.store.labels[rows],
    )


def encoder_of(cell: Cell) -> Encoder:
    """The encoder of this fold's training patches, trained or taken from the artifacts."""
    config = cell.config
    pixels, labels = part_of(cell, "train")
    key = encoder_key(
        cell.store.content_hash,
        _rows_hash(cell.split.train),
        pixels.shape[1],
        config.quality.encoder_images,
        config.trainer.threads,
    )
    return get_encoder(
        cell.artifacts, key, pixels, labels, cell.store.classes, config.trainer.accelerator
    )


def reference_of(cell: Cell) -> Reference | None:
    """What this fold's generators are compared with: its training and validation patches, never a test patch.

    None where nothing is set aside for validation.
    """
    if not len(cell.split.val):
        return None
    return Reference.draw(
        cell.store.classes,
        part_of(cell, "train"),
        part_of(cell, "val"),
        encoder_of(cell),
        cell.config.quality.most,
    )


def make_generator(cell: Cell, board: Any = None) -> Path:
    """The generator of this cell's fold, trained on its training groups or taken from the artifacts.

    The snapshot kept is the best by `quality.choose`, see `gan/watch`. An alarm ends the training; the best
    snapshot before it is then used, and generator.json tells.

    Returns:
        a folder with generator.ckpt, generator.json (what it has seen, how it was chosen), quality.json, encoder.pt
        and grids/.

    Raises:
        UserError: an alarm before any good snapshot.
    """
    config, store = cell.config, cell.store
    key = generator_key(cell)
    gan, size = key["gan"], key["size"]

    def make(folder: Path) -> None:
        reference = reference_of(cell)  # here: all ranks of a job come to this together
        torch.manual_seed(config.generator_seed)
        data = PatchDataModule(
            store,
            cell.split,
            View.of_classes(store.classes),
            epoch_images=gan["validate_every_images"],
            batch_size=gan["batch_size"],
            augment="none",  # the generator's module augments by itself, differentiably
            patch_size=size,
            seed=config.generator_seed,
            min_class_patches=config.data.min_class_patches,
        )
        module = GANModule(gan, store.classes, size, config.generator_seed)
        title = f"generator of fold {config.split.fold}"
        watch = QualityWatch(reference, config.quality, folder) if reference else None
        curve = tracking.CurveKeeper()
        alarm = None
        try:
            trainer = fit(
                module,
                data,
                config.trainer,
                folder,
                title,
                gan["images"],
                board,
                callbacks=[curve, watch] if watch else [curve],
            )
            trainer.save_checkpoint(folder / "generator.ckpt", weights_only=True)
        except GANDiverged as error:
            alarm = error
        chosen = settle(watch, folder, alarm)
        if not first_rank():
            return
        if chosen["alarm"]:
            warnings.warn(f"{title}: {chosen['alarm']}", stacklevel=2)
        um = store.info["um_per_px"]
        generator = load_generator(folder / "generator.ckpt")
        about = {
            "format": FORMAT,
            "hash": key_hash(key),
            "classes": store.classes,
            "seen_groups": sorted(cell.split.units(store, "train")),
            "um_per_px": um * store.size / size if um else None,
            "images": int(generator.images_seen),
            "images_trained": int(module.images_seen),
            "curve": curve.curve,
            **chosen,
        }
        if reference is not None:
            reference.encoder.save(folder / ENCODER)  # type: ignore[attr-defined]
            gallery.show_generator(generator, reference, config.quality, folder)
        text = json.dumps(_finite(about), indent=1, allow_nan=False)
        (folder / "generator.json").write_text(text + "\n", encoding="utf-8")
        # Only now, and the checkpoint first: cut off before, the same call comes to the same snapshot.
        for file in (folder / "last.ckpt", *folder.glob("best-*.ckpt*")):
            file.unlink(missing_ok=True)

    return cell.artifacts.get_or_make("generator", key, make, resumable=True, together=True)


def make_generated(cell: Cell, hierarchy: Hierarchy, board: Any = None) -> dict[str, Path] | None:
    """Generated patches enough for every stage of this cell, or None where the recipe wants none."""
    wanted = _pool(cell, hierarchy)
    if not any(wanted.values()):
        return None
    generator = make_generator(cell, board)
    return {"path": generator, "generated": draw_patches(cell, generator, wanted)}


def draw_patches(cell: Cell, generator: Path, wanted: Mapping[str, int]) -> Path:
    """A store of so many generated patches per class, selected by `select`, from a generator's folder."""
    about = _generator_facts(generator)
    select = cell.config.select
    key = {
        "generator": about["hash"],
        "per_class": dict(wanted),
        "seed": cell.config.generator_seed,
        "select": asdict(select) if select.filters else None,
    }

    def make(folder: Path) -> None:
        _synthesize(
            generator / "generator.ckpt",
            about,
            wanted,
            folder / "store",
            cell.config.generator_seed,
            select,
        )

    return cell.artifacts.get_or_make("generated", key, make) / "store"


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
        filters=make_filters(select, module, encoder, seed),
        draws=select.draws,
        batch_size=batch_size,
    )


def _generator_facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "generator.json").read_text(encoding="utf-8"))
    return facts


def _pool(cell: Cell, hierarchy: Hierarchy) -> dict[str, int]:
    """Generated patches per class that the hungriest stage asks for."""
    labels = cell.store.manifest["label"].to_numpy()[cell.split.train]
    times = cell.store.manifest["time_h"].to_numpy()[cell.split.train]
    most = dict.fromkeys(cell.store.classes, 0)
    for node in hierarchy.nodes:
        inside = node.view.learns_at(times)
        real = {
            group: int((np.isin(labels, members) & inside).sum())
            for group, members in node.targets.items()
        }
        for group, n in generated_quota(real, cell.config.mix).items():
            members = node.targets[group]
            for c, part in zip(members, share_out(n, [n] * len(members)), strict=True):
                most[c] = max(most[c], part)
    return most


# --- stages -----------------------------------------------------------------------------------------------------------


def make_stage(
    cell: Cell, node: Node, generated: PatchStore | None, board: Any = None
) -> tuple[StageModule, dict[str, Any], Path]:
    """A trained stage of this cell, or the same one from the artifacts, what is known of its training, and its file.

    A stage that sees only part of the patches gets that part of the budget, but at least half of it.
    """
    config, store = cell.config, cell.store
    stage = asdict(config.stage)
    share = np.isin(store.manifest["label"].to_numpy()[cell.split.train], node.classes).mean()
    stage["images"] = round(stage["images"] * max(0.5, float(share)))
    phases = _phases(stage)
    key = {
        "data": store.content_hash,
        "train": _rows_hash(cell.split.train),
        "val": _rows_hash(cell.split.val),
        "node": {
            "name": node.name,
            "groups": node.targets,
            "window": [str(v) for v in node.window],
        },
        "unlabelled": _rows_hash(cell.split.unlabelled) if stage["pseudo_rounds"] else None,
        "generated": generated.content_hash if generated else None,
        "mix": asdict(config.mix) if generated else None,
        "stage": stage,
        "size": config.data.patch_size,
        "augment": config.data.augment,
        "pixels": config.data.pixels,
        "seed": config.seed,
        "precision": config.trainer.precision,
        "devices": config.trainer.devices,
        "threads": config.trainer.threads,
    }

    def make(folder: Path) -> None:
        before: StageModule | None = None
        seen, curve, pseudo = 0, [], None
        for i, phase in enumerate(phases):
            if before is not None and phase.pseudo:
                pseudo = _pseudo_labels(cell, before)
            data = PatchDataModule(
                store,
                cell.split,
                node.view,
                generated=generated,
                pseudo=pseudo,
                mix=config.mix,
                sampler=phase.sampler,
                batch_size=stage["batch_size"],
                augment=config.data.augment,
                pixels=config.data.pixels,
                workers=config.data.workers,
                patch_size=config.data.patch_size,
                seed=config.seed + 100_003 * i,  # the order of batches, another one in each phase
            )
            counts = torch.bincount(data.labels["train"], minlength=len(data.targets)).tolist()
            torch.manual_seed(config.seed + i)
            plan = {**stage, "images": phase.images}
            module = StageModule(
                plan, node.name, node.targets, counts, data.size, config.seed, data.channels
            )
            if before is not None:
                module.load_state_dict(before.state_dict())
            if phase.head:
                module.retrain_head(phase.images, config.seed)
            place, done = folder / phase.name, folder / phase.name / "phase.ckpt"
            if done.is_file():  # a killed run goes on behind it
                module = load_stage(done)
                about = json.loads((place / "phase.json").read_text(encoding="utf-8"))
            else:
                title = f"stage {node.name}" + (f", {phase.name}" if phase.name else "")
                fit(module, data, config.trainer, place, title, phase.images, board)
                about = {"images": module.images_seen, "curve": module.curve}
                if phase.name and first_rank():
                    write_whole(place / "phase.json", json.dumps(about))
                    part = place / "phase.part"
                    save_weights(module, part)
                    part.replace(done)
            curve += [{**point, "images": seen + point["images"]} for point in about["curve"]]
            seen, before = seen + about["images"], module
        assert before is not None
        if not first_rank():
            return
        save_weights(before, folder / "stage.ckpt")
        for phase in phases:
            (folder / "last.ckpt").unlink(missing_ok=True)
            if phase.name:
                shutil.rmtree(folder / phase.name, ignore_errors=True)
        about = {
            "node": node.name,
            "groups": list(node.targets),
            "images": seen,
            "train": {g: list(n) for g, n in data.counts.items()},
            "pseudo": 0 if pseudo is None else len(pseudo[0]),
            "curve": curve,
        }
        (folder / "stage.json").write_text(json.dumps(_finite(about)) + "\n", encoding="utf-8")

    folder = cell.artifacts.get_or_make("stage", key, make, resumable=True, together=True)
    about = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    return load_stage(folder / "stage.ckpt"), about, folder / "stage.ckpt"


@dataclass(frozen=True)
class Phase:
    """A part of a stage's training.

    Attributes:
        name: of its folder; empty where the training has one part.
        images: budget.
        sampler: shuffle or balanced.
        head: a new last layer alone is trained (cRT).
        pseudo: unlabelled patches join, with what the network so far says of them.
    """

    name: str
    images: int
    sampler: str
    head: bool = False
    pseudo: bool = False


def _phases(stage: Mapping[str, Any]) -> list[Phase]:
    """The parts of a stage's training; their budgets sum to the stage's.

    Raises:
        UserError: a share or a number that cannot be.
    """
    share, rounds, images = stage["retrain_head"], stage["pseudo_rounds"], stage["images"]
    if not 0 <= share < 1:
        raise UserError(f"stage.retrain_head={share}: expected 0 or more, less than 1")
    if rounds < 0:
        raise UserError(f"stage.pseudo_rounds={rounds}: expected 0 or more")
    if not share and not rounds:
        return [Phase("", images, stage["sampler"])]
    head = round(share * images)
    ends = [round((images - head) * i / (rounds + 1)) for i in range(rounds + 2)]
    parts = [
        Phase(f"round-{i}", ends[i + 1] - ends[i], stage["sampler"], pseudo=i > 0)
        for i in range(rounds + 1)
    ]
    return parts + ([Phase("head", head, "balanced", head=True)] if head else [])


def _check_pseudo(cell: Cell) -> None:
    if not cell.config.stage.pseudo_rounds:
        return
    if cell.config.method.tree:
        raise UserError(
            "stage.pseudo_rounds: a stage of a tree cannot tell which unlabelled patches are of its classes; give "
            "method=flat_pseudo or another without a tree"
        )
    if len(cell.split.unlabelled) == 0:
        raise UserError(
            "stage.pseudo_rounds: takes training patches without labels, and split.labelled_fraction="
            f"{cell.config.split.labelled_fraction:g} leaves none; give less than 1, or leave this method out"
        )


def _pseudo_labels(cell: Cell, module: StageModule) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unlabelled patches and what the network so far calls them, to balance the classes."""
    rows = cell.split.unlabelled
    size = cell.config.data.patch_size or cell.store.size
    p = module.cpu().probabilities(reduce_pixels(cell.store.pixels[rows], size))
    labels = cell.store.manifest["label"].to_numpy()[cell.split.train]
    counts = [int((labels == c).sum()) for c in module.groups]
    chosen, called = pseudo_balance(p, counts, cell.config.stage.pseudo_confidence)
    return rows[chosen], called


# --- shared -----------------------------------------------------------------------------------------------------------


def fit(
    module: pl.LightningModule,
    data: PatchDataModule,
    trainer: TrainerConfig,
    folder: Path,
    title: str,
    images: int,
    board: Any = None,
    callbacks: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Trains a module to its budget of images, from the last checkpoint in `folder` where there is one."""
    per_epoch = sum(data.batches().quotas)
    every = max(1, round(_validate_every(module) / per_epoch))
    checkpoint = ModelCheckpoint(
        folder,
        filename="last",
        every_n_epochs=every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    interrupt = CheckpointOnSignal(folder / "last.ckpt")
    # A GAN leaves one network's parameters unused in each backward pass; plain ddp raises then.
    ddp = "ddp" if module.automatic_optimization else "ddp_find_unused_parameters_true"
    lightning = pl.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        strategy=ddp if trainer.devices > 1 else "auto",
        precision=trainer.precision,  # type: ignore[arg-type]
        max_epochs=math.ceil(images / per_epoch)
        + 1,  # the module stops by itself when its budget is spent
        check_val_every_n_epoch=every,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, checkpoint, interrupt, ImagesProgress(title, images)],
        # Its own re-queueing stays off: it saves in the middle of a batch, and submitit queues the job again.
        plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
        logger=tracking.lightning_logger(board, title),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=20,
    )
    last = folder / "last.ckpt"
    lightning.fit(module, data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    interrupt.deliver()
    return lightning


def _validate_every(module: pl.LightningModule) -> int:
    plan = module.stage if isinstance(module, StageModule) else module.hparams["gan"]
    return int(plan["validate_every_images"])  # type: ignore[index,call-overload]


def set_threads(trainer: TrainerConfig) -> None:
    """Lets torch use as many CPU threads as the configuration says."""
    torch.set_num_threads(trainer.threads or os.cpu_count() or 1)


def quiet() -> None:
    """Silences what Lightning says of things that are meant."""
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # every rank validates on all patches
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*GPU available but not used.*")
    warnings.filterwarnings("ignore", ".*`isinstance.treespec, LeafSpec.`.*")


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    names = [
        "stemcell-lit",
        "torch",
        "pytorch-lightning",
        "torchmetrics",
        "albumentations",
        "numpy",
        "scikit-learn",
    ]
    return {
        "python": platform.python_version(),
        **{n: importlib.metadata.version(n) for n in names},
    }


def typed(config: Any, kind: type = RunCommand) -> Any:
    """A composed configuration as its dataclass, every key set.

    Raises:
        UserError: a key that must be given was not.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]}= is missing; see `stemcell-lit --help` for an example")
    merged = OmegaConf.merge(OmegaConf.structured(kind), config)
    return OmegaConf.to_object(merged)


def _facts(cell: Cell, rows: np.ndarray) -> dict[str, np.ndarray]:
    manifest = cell.store.manifest.iloc[rows]
    return {
        "labels": cell.store.labels[rows],
        "times": manifest["time_h"].to_numpy(),
        "tracks": manifest["track"].to_numpy(),
        "frames": manifest["frame"].to_numpy(),
    }


def _data_facts(cell: Cell) -> dict[str, Any]:
    labels = cell.store.manifest["label"].to_numpy()
    return {
        "unlabelled": len(cell.split.unlabelled),
        "store": str(cell.store.path),
        "content_hash": cell.store.content_hash,
        "simulated": cell.store.info["made_by"].get("origin") == "simulated",
        "real": {c: int((labels[cell.split.train] == c).sum()) for c in cell.store.classes},
        "val": {c: int((labels[cell.split.val] == c).sum()) for c in cell.store.classes},
        "test": {c: int((labels[cell.split.test] == c).sum()) for c in cell.store.classes},
    }


def _generated_counts(trained: list[dict[str, Any]]) -> dict[str, int]:
    """Generated patches per stage and group."""
    return {f"{about['node']}/{g}": n[1] for about in trained for g, n in about["train"].items()}


def _with_test_confusion(
    about: dict[str, Any], model: TrainedHierarchy, cell: Cell
) -> dict[str, Any]:
    """Adds the stage's own confusion matrix on the test patches that belong to it."""
    stage = model.stages[about["node"]]
    node = next(n for n in model.hierarchy.nodes if n.name == about["node"])
    target = {c: i for i, members in enumerate(node.targets.values()) for c in members}
    test = cell.store.manifest.iloc[cell.split.test]
    inside = test["label"].isin(list(target)).to_numpy() & node.view.learns_at(
        test["time_h"].to_numpy()
    )
    rows = cell.split.test[inside]
    found = stage.probabilities(reduce_pixels(cell.store.pixels[rows], model.image_size)).argmax(1)
    truth = test["label"][inside].map(target).to_numpy(np.int64)
    return {**about, "confusion": confusion(truth, found, list(node.targets)).tolist()}


def _rows_hash(rows: np.ndarray) -> str:
    return key_hash({"rows": rows.tolist()})


def _finite(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- the other commands on the same parts -----------------------------------------------------------------------------


def train(config: TrainCommand) -> Path:
    """Trains one module of a cell and returns its file.

    Raises:
        UserError: an unknown task or node.
    """
    quiet()
    _join_ranks(config.trainer)
    cell = prepare(config)
    set_threads(config.trainer)
    if config.task == "gan":
        return make_generator(cell) / "generator.ckpt"
    if config.task != "stage":
        raise UserError(f"task={config.task}: expected gan or stage")
    hierarchy = cell.hierarchy.fit(**_facts(cell, cell.split.train))
    node = next((n for n in hierarchy.nodes if n.name == config.node), None)
    if node is None:
        raise UserError(f"node={config.node}: expected one of {[n.name for n in hierarchy.nodes]}")
    generator = make_generated(cell, hierarchy)
    return make_stage(cell, node, PatchStore.open(generator["generated"]) if generator else None)[2]


def generate(config: GenerateCommand) -> PatchStore:
    """Writes a store of generated patches, equally many per class, with their provenance.

    Raises:
        UserError: no generator there.
    """
    checkpoint = Path(config.checkpoint)
    about = checkpoint.with_name("generator.json")
    for file in (checkpoint, about):
        if not file.is_file():
            raise UserError(
                f"{file}: no such file; `stemcell-lit train task=gan` makes and names one"
            )
    facts = json.loads(about.read_text(encoding="utf-8"))
    return _synthesize(
        checkpoint,
        facts,
        dict.fromkeys(facts["classes"], config.per_class),
        Path(config.store),
        config.seed,
        config.select,
        config.batch_size,
    )


def evaluate_store(config: EvaluateCommand) -> Path:
    """Classifies every patch of a store with a cell's trained hierarchy; writes result.json and predictions.parquet.

    Raises:
        UserError: no trained hierarchy there, or a store of other classes.
    """
    store, model = PatchStore.open(config.store), TrainedHierarchy.load(config.checkpoint)
    table, result = evaluate(model, store, np.arange(len(store)))
    out = Path(config.out)
    if (out / "cells").exists():
        raise UserError(f"{out}: holds the results of a run; give another out=")
    with whole_or_absent(out) as folder:
        table.to_parquet(folder / PREDICTIONS, index=False)
        text = json.dumps(_finite({"format": FORMAT, **result, "versions": versions()}), indent=1)
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")
    return out / RESULT
