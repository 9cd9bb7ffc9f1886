"""Overhead of the framework on a training step of a stage's classifier.

The product: `experiment.training.fit`, that is Lightning's Trainer, our data module (resident) and `StageModule`.
Against it a bare PyTorch loop with the same network, loss, optimiser, augmentation and batches of the same size from
the same patches, in one process, in turns.

    python benchmarks/stage_step.py --store stores/mine --size 32
    python benchmarks/stage_step.py --device cuda --size 64 --block 100 --set network=vgg batch_size=256
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from _training import arguments, measure

from stemcell_lit.classify import networks
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.data.augment import POLICIES, augment_batch, to_float
from stemcell_lit.data.datamodule import PatchDataModule
from stemcell_lit.settings.group_keys import StageConfig

AUGMENT = "turns"


def bare(
    stage: dict[str, Any],
    data: PatchDataModule,
    device: str,
    half: bool,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network,
) -> Iterator[None]:
    """A step of a loop without any framework at each turn; `wrap` is what compiles the network."""
    network = networks.build(
        stage["network"], len(data.targets), stage["width"], stage["dropout"], 0
    ).to(device)
    parts = [[p for p in network.parameters() if (p.ndim > 1) is big] for big in (True, False)]
    decays = (stage["weight_decay"], 0.0)
    groups = [{"params": p, "weight_decay": d} for p, d in zip(parts, decays, strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=stage["lr"])
    shown = wrap(network)
    bank, labels = data.bank["train"].to(device), data.labels["train"].to(device)
    draw, random = torch.Generator(device).manual_seed(0), torch.Generator().manual_seed(0)
    while True:
        index = torch.randint(len(bank), (stage["batch_size"],), device=device, generator=draw)
        pixels = augment_batch(to_float(bank[index]), POLICIES[AUGMENT], random)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = shown(pixels)
        loss = F.cross_entropy(
            logits.float(), labels[index], label_smoothing=stage["label_smoothing"]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def module_arguments(stage: dict[str, Any], data: PatchDataModule) -> tuple[Any, ...]:
    """Those of `StageModule`: a flat network."""
    targets = {name: [name] for name in data.targets}
    counts = [sum(data.counts[name]) for name in data.targets]
    return stage, "root", targets, counts, data.size


def main() -> None:
    """Measures and reports."""
    options = arguments(__doc__, block=20)
    stage = {**asdict(StageConfig()), **options.set}
    if stage["loss"] != "plain" or stage["optimizer"] != "adamw":
        raise SystemExit("the bare loop knows loss=plain and optimizer=adamw alone")
    half = options.precision == "bf16-mixed"
    measure(
        "stage_step_overhead",
        StageModule,
        stage,
        lambda data: module_arguments(stage, data),
        lambda data: bare(stage, data, options.device, half),
        options,
        augment=AUGMENT,
    )


if __name__ == "__main__":
    main()
