"""Trained stages of a cell, made once and shared as artifacts; the parts of a stage's training."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemcell_lit.base import formats as form
from stemcell_lit.base.checkpoints import read_whole
from stemcell_lit.base.files import write_whole
from stemcell_lit.classify.hierarchy import Node
from stemcell_lit.classify.pseudo import pseudo_balance
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import load_stage, save_weights
from stemcell_lit.data.datamodule import PatchDataModule
from stemcell_lit.data.patches import PatchStore, reduce_pixels
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.artifacts import Ranks, finite, first_rank
from stemcell_lit.experiment.cell import Cell, rows_hash
from stemcell_lit.experiment.forms import PHASE, STAGE
from stemcell_lit.experiment.training import fit
from stemcell_lit.settings.meaning import determining
from stemcell_lit.settings.quoting import printable


def make_stage(
    cell: Cell, node: Node, generated: PatchStore | None, board: Any = None
) -> tuple[StageModule, dict[str, Any], Path]:
    """A trained stage of this cell, or the same one from the artifacts, what is known of its training, and its file.

    Every stage has the whole budget: one that sees only part of the patches has fewer to learn from, not less to learn.
    """
    config, store = cell.config, cell.store
    key = stage_key(cell, node, generated)
    stage = key["stage"]
    phases = phases_of(stage)

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
            place = folder / phase.name
            title = f"stage {node.name}" + (f", {phase.name}" if phase.name else "")
            finished = _finished(place, title)  # a killed run goes on behind it
            if finished is not None:
                module, about = finished
            else:
                fit(module, data, config.trainer, place, title, phase.images, board)
                about = {"images": module.images_seen, "curve": module.curve}
                if phase.name and first_rank():
                    write_whole(place / "phase.json", json.dumps(finite(about)))
                    save_weights(module, place / "phase.ckpt")
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
        (folder / "stage.json").write_text(json.dumps(finite(about)) + "\n", encoding="utf-8")

    folder = cell.artifacts.get_or_make("stage", key, make, resumable=True, together=True)
    about = form.read_json(folder / "stage.json", STAGE, f"delete {folder} and run again")
    return load_stage(folder / "stage.ckpt"), about, folder / "stage.ckpt"


def _finished(place: Path, title: str) -> tuple[StageModule, dict[str, Any]] | None:
    """A phase that an earlier run finished and what is known of it, the same on all ranks; None: it is to do."""
    ranks, file = Ranks(), place / "phase.ckpt"
    text = None
    if ranks.first and file.is_file():
        try:
            read_whole(file)
            about = form.read_json(place / "phase.json", PHASE, f"delete {place}")
            text = json.dumps(about)
        except (OSError, ValueError, UserError) as error:
            print(printable(f"{file}: broken ({error}); {title} begins again"), file=sys.stderr)
            file.unlink()
    text = ranks.share(text)
    return None if text is None else (load_stage(file), json.loads(text))


def stage_key(cell: Cell, node: Node, generated: PatchStore | None) -> dict[str, Any]:
    """Everything that determines a trained stage."""
    config, store = cell.config, cell.store
    stage = determining(config.stage)
    return {
        "data": store.content_hash,
        "train": rows_hash(cell.split.train),
        "val": rows_hash(cell.split.val),
        "node": {
            "name": node.name,
            "groups": [[name, *members] for name, members in node.targets.items()],  # in this order
            "window": [str(v) for v in node.window],
        },
        "unlabelled": rows_hash(cell.split.unlabelled) if stage["pseudo_rounds"] else None,
        "generated": generated.content_hash if generated else None,
        "mix": determining(config.mix) if generated else None,
        "stage": stage,
        "size": config.data.patch_size,
        "augment": config.data.augment,
        "pixels": config.data.pixels,
        "seed": config.seed,
        **determining(config.trainer),
    }


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


def phases_of(stage: Mapping[str, Any]) -> list[Phase]:
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


def _pseudo_labels(cell: Cell, module: StageModule) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unlabelled patches and what the network so far calls them, to balance the classes."""
    rows = cell.split.unlabelled
    size = cell.config.data.patch_size or cell.store.size
    p = module.cpu().probabilities(reduce_pixels(cell.store.pixels[rows], size))
    labels = cell.store.manifest["label"].to_numpy()[cell.split.train]
    counts = [int((labels == c).sum()) for c in module.groups]
    chosen, called = pseudo_balance(p, counts, cell.config.stage.pseudo_confidence)
    return rows[chosen], called
