"""Trains the same four modules on the ranks that it finds: `python -m tests.experiment.ranks STORE OUT`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from stemcell_lit.classify.stage import StageModule
from stemcell_lit.data.datamodule import PatchDataModule, Scope
from stemcell_lit.data.splits import make_split
from stemcell_lit.experiment.training import fit, join_ranks, quiet
from stemcell_lit.gan.module import GANModule
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import MixConfig, SplitConfig, StageConfig, TrainerConfig
from tests.gan.helpers import TINY

SEED = 3


class Recorded:
    """A module that notes which patches it sees in each step, by the sum of their pixels."""

    def training_step(self, batch, index):
        sums = batch["pixels"].double().sum((1, 2, 3))
        self.steps.append([round(float(s), 6) for s in sums])
        return super().training_step(batch, index)


class RecordedStage(Recorded, StageModule):
    steps: list


class RecordedGAN(Recorded, GANModule):
    steps: list


def without_batch_norm(network: nn.Module) -> None:
    """Group norm instead, which does not depend on who else is in the batch."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, nn.GroupNorm(1, child.num_features))
        else:
            without_batch_norm(child)


def train(store: PatchStore, out: Path, devices: int, kind: str) -> dict:
    torch.manual_seed(SEED)
    scope, split = (
        Scope.of_classes(store.classes),
        make_split(store, SplitConfig(folds=2, validation_share=0.3)),
    )
    plain, placed = kind == "plain", kind == "places"
    mix = MixConfig("share", 0.5, weight=0.5, finish=0.25, source="repeated")
    data = PatchDataModule(
        store,
        split,
        scope,
        batch_size=24,
        epoch_images=96 if kind == "gan" else None,
        augment="turns" if kind == "stage" else "none",
        seed=SEED,
        **({"mix": mix, "images": 768, "sampler": "balanced"} if placed else {}),
    )
    if kind == "gan":
        gan = {**TINY, "batch_size": 24, "images": 192, "validate_every_images": 96}
        module = RecordedGAN(gan, store.classes, data.size, SEED)
        images = 192
    else:
        images = {"plain": 384, "places": 768}.get(kind, 4800)
        stage = StageConfig(width=8, batch_size=24, images=images, validate_every_images=images)
        if plain:
            stage.dropout, stage.optimizer, stage.lr = 0.0, "sgd", 0.02
        counts = [sum(data.counts[g]) for g in scope.groups]
        module = RecordedStage(asdict(stage), "root", scope.groups, counts, data.size, SEED)
        if plain:
            without_batch_norm(module.network)
    module.steps = []
    fit(module, data, TrainerConfig("cpu", devices), out / kind, kind, images)
    if placed:
        module.measure_statistics(data.real_batches(module.device))
    return {
        "steps": module.steps,
        "images": module.images_seen,
        "weights": [p.detach().flatten().tolist()[:200] for p in module.parameters()],
        "statistics": [b.flatten().tolist() for b in module.network.buffers()] if placed else None,
        "curve": getattr(module, "curve", None),
    }


def main(store: str, out: str) -> None:
    quiet()
    torch.set_num_threads(1)
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    join_ranks(TrainerConfig("cpu", devices))
    folder = Path(out) / f"of{devices}"
    kinds = ("plain", "stage", "places", "gan")
    told = {k: train(PatchStore.open(store), folder, devices, k) for k in kinds}
    (folder / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
