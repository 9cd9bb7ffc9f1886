"""Overhead of the framework on a training step of a stage's classifier.

The product: `experiment.training.fit`, that is Lightning's Trainer, our data module (resident) and `StageModule`.
Against it a bare PyTorch loop with the same network, loss, optimiser, augmentation and batches of the same size from
the same patches, in one process, in turns.

    python benchmarks/stage_step.py --store stores/mine --size 32
    python benchmarks/stage_step.py --device cuda --size 64 --batches 1000 --set network=vgg batch_size=256
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from _training import WARM_UP, Stopwatch, arguments, compare, patches, prepare, wait

from stemcell_lit.classify import networks
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.data.augment import POLICIES, augment_batch, to_float
from stemcell_lit.data.datamodule import PatchDataModule, View
from stemcell_lit.data.splits import make_split
from stemcell_lit.experiment.training import fit
from stemcell_lit.schema import SplitConfig, StageConfig, TrainerConfig

AUGMENT = "turns"


def bare(
    stage: dict[str, Any], data: PatchDataModule, device: str, batches: int, half: bool
) -> float:
    """Seconds of the timed steps of a loop without any framework."""
    network = networks.build(
        stage["network"], len(data.targets), stage["width"], stage["dropout"], 0
    ).to(device)
    parts = [[p for p in network.parameters() if (p.ndim > 1) is big] for big in (True, False)]
    decays = (stage["weight_decay"], 0.0)
    groups = [{"params": p, "weight_decay": d} for p, d in zip(parts, decays, strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=stage["lr"])
    bank, labels = data.bank["train"].to(device), data.labels["train"].to(device)
    draw, random = torch.Generator(device).manual_seed(0), torch.Generator().manual_seed(0)
    start = 0.0
    for step in range(WARM_UP + batches):
        if step == WARM_UP:
            wait(device)
            start = time.perf_counter()
        index = torch.randint(len(bank), (stage["batch_size"],), device=device, generator=draw)
        pixels = augment_batch(to_float(bank[index]), POLICIES[AUGMENT], random)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = network(pixels)
        loss = F.cross_entropy(
            logits.float(), labels[index], label_smoothing=stage["label_smoothing"]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wait(device)
    return time.perf_counter() - start


def main() -> None:
    """Measures and reports."""
    options = arguments(__doc__, batches=200)
    prepare(options)
    chosen = {k: yaml.safe_load(v) for k, v in (x.split("=", 1) for x in options.set)}
    stage = {**asdict(StageConfig()), **chosen}
    if stage["loss"] != "plain" or stage["optimizer"] != "adamw":
        raise SystemExit("the bare loop knows loss=plain and optimizer=adamw alone")
    # the end of the last timed step is the beginning of one more
    steps = WARM_UP + options.batches + 1
    images = steps * stage["batch_size"]
    stage |= {"images": images, "validate_every_images": images}
    trainer = TrainerConfig(
        accelerator="gpu" if options.device == "cuda" else "cpu", precision=options.precision
    )
    with tempfile.TemporaryDirectory() as folder:
        store = patches(options.store, Path(folder))
        data = PatchDataModule(
            store,
            make_split(store, SplitConfig(folds=3)),
            View.of_classes(store.classes),
            batch_size=stage["batch_size"],
            epoch_images=images,  # one epoch: what happens between two is not a part of a step
            augment=AUGMENT,
            patch_size=options.size,
        )
        targets = {name: [name] for name in data.targets}
        counts = [sum(data.counts[name]) for name in data.targets]

        def product(out: Path) -> float:
            watch = Stopwatch(options.device, options.batches)

            class Timed(StageModule):
                def configure_callbacks(self) -> list[Stopwatch]:
                    return [watch]

            module = Timed(stage, "root", targets, counts, data.size)
            fit(module, data, trainer, out, "benchmark", images)
            return watch.seconds

        compare(
            "stage_step_overhead" + ("_cuda" if options.device == "cuda" else ""),
            product,
            lambda: bare(
                stage, data, options.device, options.batches, options.precision == "bf16-mixed"
            ),
            options,
            options.batches * stage["batch_size"],
            batch_size=stage["batch_size"],
            settings=chosen,
            patches="simulated" if options.store is None else Path(options.store).name,
        )


if __name__ == "__main__":
    main()
