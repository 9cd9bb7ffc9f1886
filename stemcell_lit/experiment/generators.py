"""Generators of a cell's fold and the patches drawn from them, made once and shared as artifacts."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemcell_lit.base import formats as form
from stemcell_lit.base.files import check_target
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.data.datamodule import PatchDataModule, View
from stemcell_lit.data.mixing import generated_quota, share_out
from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError
from stemcell_lit.experiment import gallery, tracking
from stemcell_lit.experiment.artifacts import finite, first_rank, key_hash
from stemcell_lit.experiment.cell import FORMAT, Cell, part_of, rows_hash
from stemcell_lit.experiment.training import fit
from stemcell_lit.gan.encoder import FILE as ENCODER
from stemcell_lit.gan.encoder import Encoder, encoder_key, get_encoder
from stemcell_lit.gan.modes import Modes
from stemcell_lit.gan.module import GANDiverged, GANModule
from stemcell_lit.gan.quality import Reference
from stemcell_lit.gan.synthesis import Ensemble, load_generator, make_filters, synthesize
from stemcell_lit.gan.watch import QualityWatch, settle
from stemcell_lit.schema import GenerateCommand, SelectConfig
from stemcell_lit.settings.compose import without_generated
from stemcell_lit.settings.meaning import determining

CHECKPOINT = "generator.ckpt"


def generator_key(cell: Cell) -> dict[str, Any]:
    """Everything that determines the generator of this cell's fold."""
    config, store = cell.config, cell.store
    if len(store.scales) > 1:
        raise UserError(
            f"{store.path}: has patches at scales {store.scales}, and generators make patches at one scale; take "
            f"methods without generated patches ({', '.join(without_generated())}), or a store with "
            "extraction.scales=[1]"
        )
    return {
        "data": store.content_hash,
        "train": rows_hash(cell.split.train),
        "val": rows_hash(cell.split.val),
        "size": config.data.patch_size or store.size,
        "gan": determining(config.gan),
        "quality": determining(config.quality),
        "seed": config.generator_seed,
        **determining(config.trainer),
        **({"generators": config.generators} if config.generators > 1 else {}),
    }


def encoder_of(cell: Cell) -> Encoder:
    """The encoder of this fold's training patches, trained or taken from the artifacts."""
    config = cell.config
    pixels, labels = part_of(cell, "train")
    key = encoder_key(
        cell.store.content_hash,
        rows_hash(cell.split.train),
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
        turns=cell.config.gan.turns,
    )


def modes_of(cell: Cell) -> tuple[np.ndarray | None, list[list[float]] | None]:
    """Modes of the classes, found among this fold's training patches: (patches of the store,) int64, and their shares.

    None and None where every class is one. Test patches have no mode (-1).
    """
    gan = cell.config.gan
    if gan.modes <= 1:
        return None, None
    encoder = encoder_of(cell)
    parts = {part: part_of(cell, part) for part in ("train", "val")}
    pixels, labels = parts["train"]
    modes = Modes.fit(
        encoder.features(pixels),
        labels,
        cell.store.classes,
        most=gan.modes,
        patches=gan.mode_patches,
    )
    if max(map(len, modes.shares)) == 1:
        return None, None
    found = np.full(len(cell.store), -1, np.int64)
    for part, (pixels, labels) in parts.items():
        found[getattr(cell.split, part)] = modes.of(encoder.features(pixels), labels)
    return found, modes.shares


def make_generator(cell: Cell, board: Any = None) -> Path:
    """The generator of this cell's fold, trained on its training groups or taken from the artifacts.

    The snapshot kept is the best by `quality.choose`, see `gan/watch`. An alarm ends the training; the best
    snapshot before it is then used, and generator.json tells. With `generators` above 1: those of so many seeds,
    which are artifacts of their own, together.

    Returns:
        a folder with generator.ckpt (and generator-1.ckpt and so on), generator.json (what it has seen, how it was
        chosen), quality.json, encoder.pt and grids/.

    Raises:
        UserError: an alarm before any good snapshot.
    """
    if cell.config.generators > 1:
        return _make_ensemble(cell, board)
    config, store = cell.config, cell.store
    key = generator_key(cell)
    gan, size = key["gan"], key["size"]

    def make(folder: Path) -> None:
        reference = reference_of(cell)  # here: all ranks of a job come to this together
        modes, shares = modes_of(cell)
        torch.manual_seed(config.generator_seed)
        data = PatchDataModule(
            store,
            cell.split,
            View.of_classes(store.classes),
            modes=modes,
            epoch_images=gan["validate_every_images"],
            batch_size=gan["batch_size"],
            augment="none",  # the generator's module augments by itself, differentiably
            patch_size=size,
            seed=config.generator_seed,
            min_class_patches=config.data.min_class_patches,
        )
        module = GANModule(gan, store.classes, size, config.generator_seed, shares)
        title = f"generator of fold {config.split.fold}"
        title += f", seed {config.generator_seed}" if config.generator_seed else ""
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
            trainer.save_checkpoint(folder / CHECKPOINT, weights_only=True)
        except GANDiverged as error:
            alarm = error
        chosen = settle(watch, folder, alarm)
        if not first_rank():
            return
        if chosen["alarm"]:
            warnings.warn(f"{title}: {chosen['alarm']}", stacklevel=2)
        um = store.info["um_per_px"]
        generator = load_generator(folder / CHECKPOINT)
        about = {
            "format": FORMAT,
            "hash": key_hash(key),
            "classes": store.classes,
            "seen_groups": sorted(cell.split.units(store, "train")),
            "um_per_px": um * store.size / size if um else None,
            "images": int(generator.images_seen),
            "images_trained": int(module.images_seen),
            "modes": dict(zip(store.classes, shares, strict=True)) if shares else None,
            "curve": curve.curve,
            **chosen,
        }
        if reference is not None:
            reference.encoder.save(folder / ENCODER)  # type: ignore[attr-defined]
            gallery.show_generator(generator, reference, config.quality, folder)
        _write_facts(folder, about)
        # Only now, and the checkpoint first: cut off before, the same call comes to the same snapshot.
        for file in (folder / "last.ckpt", *folder.glob("best-*.ckpt*")):
            file.unlink(missing_ok=True)

    return cell.artifacts.get_or_make("generator", key, make, resumable=True, together=True)


def _make_ensemble(cell: Cell, board: Any) -> Path:
    config, key = cell.config, generator_key(cell)
    seeds = range(config.generator_seed, config.generator_seed + config.generators)

    def make(folder: Path) -> None:
        alone = [
            replace(cell, config=replace(config, generators=1, generator_seed=s)) for s in seeds
        ]
        members = [make_generator(c, None if i else board) for i, c in enumerate(alone)]
        reference = reference_of(cell)  # by all ranks together, as the members
        if not first_rank():
            return
        facts = [generator_facts(m) for m in members]
        for member, file in zip(members, _checkpoints(folder, len(members)), strict=True):
            shutil.copy(member / CHECKPOINT, file)
        alarms = [
            f"seed {s}: {f['alarm']}" for s, f in zip(seeds, facts, strict=True) if f["alarm"]
        ]
        about = {
            **facts[0],
            "hash": key_hash(key),
            "images": sum(f["images"] for f in facts),
            "images_trained": sum(f["images_trained"] for f in facts),
            "chosen": [f["chosen"] for f in facts],
            "alarm": "; ".join(alarms) or None,
            "members": [f["hash"] for f in facts],
        }
        if reference is not None:
            reference.encoder.save(folder / ENCODER)  # type: ignore[attr-defined]
            gallery.show_generator(
                _load(folder / CHECKPOINT, about), reference, config.quality, folder
            )
            for file in (members[0] / "grids").glob("images_*.png"):
                shutil.copy(file, folder / "grids" / file.name)
        _write_facts(folder, about)

    return cell.artifacts.get_or_make("generator", key, make, together=True)


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
            "members": form.listing(form.HASH, least=1, most=1000),
            "metric": form.maybe(form.text()),
            "alarm": form.maybe(form.text()),
        },
    ),
)


def _write_facts(folder: Path, about: Mapping[str, Any]) -> None:
    text = json.dumps(finite(about), indent=1, allow_nan=False)
    (folder / "generator.json").write_text(text + "\n", encoding="utf-8")


def _checkpoints(folder: Path, count: int) -> list[Path]:
    """The files of so many generators in a folder, the first one's alone as where there is but one."""
    first = folder / CHECKPOINT
    return [first, *(first.with_stem(f"{first.stem}-{i}") for i in range(1, count))]


def _load(checkpoint: Path, about: Mapping[str, Any]) -> GANModule | Ensemble:
    """The generator of a checkpoint, with the others where generator.json beside it tells of several."""
    if "members" not in about:
        return load_generator(checkpoint)
    files = _checkpoints(checkpoint.parent, len(about["members"]))
    try:
        return Ensemble([load_generator(f) for f in files])
    except ValueError as error:
        raise UserError(f"{checkpoint.parent}: {error}; train them again") from error


def generator_facts(folder: Path) -> dict[str, Any]:
    """What generator.json says of the generator in a folder.

    Raises:
        UserError: none there, or not one that can be read.
    """
    facts: dict[str, Any] = form.read_json(
        folder / "generator.json", _FACTS, "`stemcell-lit train task=gan` makes it again"
    )
    return facts


# --- patches drawn from one -------------------------------------------------------------------------------------------


def make_generated(cell: Cell, hierarchy: Hierarchy, board: Any = None) -> dict[str, Path] | None:
    """Generated patches enough for every stage of this cell, or None where the recipe wants none."""
    wanted = _pool(cell, hierarchy)
    if not any(wanted.values()):
        return None
    generator = make_generator(cell, board)
    return {"path": generator, "generated": draw_patches(cell, generator, wanted)}


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


def draw_patches(cell: Cell, generator: Path, wanted: Mapping[str, int]) -> Path:
    """A store of so many generated patches per class, selected by `select`, from a generator's folder."""
    about = generator_facts(generator)
    select = cell.config.select
    key = {
        "generator": about["hash"],
        "per_class": dict(wanted),
        "seed": cell.config.generator_seed,
        "select": determining(select) if select.filters else None,
    }

    def make(folder: Path) -> None:
        _synthesize(
            generator / CHECKPOINT,
            about,
            wanted,
            folder / "store",
            cell.config.generator_seed,
            select,
        )

    return cell.artifacts.get_or_make("generated", key, make) / "store"


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
    module = _load(checkpoint, about)
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
        filters=make_filters(select, module, encoder, seed),
        draws=select.draws,
        batch_size=batch_size,
        inputs=[checkpoint],
    )
