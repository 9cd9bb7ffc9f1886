"""What the benchmarks of a training step share: patches, the product's training, bare steps between its own.

Whole runs, one after the other, differ by ten percent on a machine that does anything else. So the two take turns
inside one training, some steps each, and every pair of blocks gives a ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pytorch_lightning as pl
import torch
import yaml
from _common import report

from stemcell_lit.data.datamodule import PatchDataModule, Scope
from stemcell_lit.data.splits import make_split
from stemcell_lit.experiment.training import fit, quiet
from stemcell_lit.patches.extraction import extract
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import (
    ExtractionConfig,
    SimulationConfig,
    SplitConfig,
    TrainerConfig,
)
from stemcell_lit.simulate.write import simulate

WARM_UP = 3  # pairs of blocks before the first that counts


def arguments(about: str | None, block: int, pairs: int = 60) -> argparse.Namespace:
    """Command line of a benchmark of steps; `block` is the number of steps that one of the two takes in turn."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--store", help="a PatchStore; without one patches are simulated")
    parser.add_argument("--size", type=int, default=32, help="px of the patches")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true", help="of the trainer, such as bf16-mixed")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument(
        "--block", type=int, default=block, help="steps in turn; on a GPU 50 or more"
    )
    parser.add_argument("--pairs", type=int, default=pairs, help="pairs of blocks")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings")
    parser.add_argument("--save", action="store_true", help="keep the figure")
    options = parser.parse_args()
    options.set = {k: yaml.safe_load(v) for k, v in (x.split("=", 1) for x in options.set)}
    return options


def open_patches(store: str | None, folder: Path) -> PatchStore:
    """The store named, or simulated patches: 6 movies, four classes."""
    if store:
        return PatchStore.open(store)
    settings = SimulationConfig(movies=6, frames=4, size=320)
    simulate(settings, folder / "movies")
    extract(folder / "movies", folder / "store", ExtractionConfig(patches_per_movie=60))
    return PatchStore.open(folder / "store")


def data_module(
    patches: PatchStore, size: int, batch: int, images: int, augment: str
) -> PatchDataModule:
    """Batches of a fold's training patches.

    Args:
        patches: the store.
        size: px.
        batch: patches of a batch.
        images: of an epoch; one epoch is best, as what happens between two is not a part of a step.
        augment: policy.
    """
    return PatchDataModule(
        patches,
        make_split(patches, SplitConfig(folds=3)),
        Scope.of_classes(patches.classes),
        batch_size=batch,
        epoch_images=images,
        augment=augment,
        patch_size=size,
    )


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class _Turns(pl.Callback):
    """Takes the time of blocks of the product's steps, with a block of bare steps after each.

    A block of the product lasts from the end of the bare steps before it, and holds all that Lightning does around its
    steps.
    """

    def __init__(self, device: str, block: int, bare: Iterator[None]):
        self.device, self.block, self.bare = device, block, bare
        self.step, self.start = 0, 0.0
        self.pairs: list[tuple[float, float]] = []  # seconds (product, bare)

    def _now(self) -> float:
        wait(self.device)
        return time.perf_counter()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """The product's next step begins; perhaps it is the bare loop's turn."""
        if self.step and self.step % self.block == 0:
            middle = self._now()
            for _ in range(self.block):
                next(self.bare)
            end = self._now()
            self.pairs.append((middle - self.start, end - middle))
            self.start = end
        self.step += 1


def measure(
    name: str,
    kind: type[pl.LightningModule],
    settings: dict[str, Any],
    module_arguments: Callable[[PatchDataModule], tuple[Any, ...]],
    bare: Callable[[PatchDataModule], Iterator[None]],
    options: argparse.Namespace,
    augment: str,
) -> None:
    """Trains a module as the product does, a bare loop in turns with it, and reports the overhead in percent.

    The figure is the median of the ratios of neighbouring blocks, its spread their quartiles.

    Args:
        name: of the figure.
        kind: class of the product's module.
        settings: of the module; its budget is set here, in place.
        module_arguments: those of `kind`, given the data.
        bare: given the data, makes a step without the framework at each turn.
        options: the command line.
        augment: policy of the data.
    """
    quiet()
    torch.set_num_threads(options.threads)
    batch = settings["batch_size"]
    images = ((options.pairs + WARM_UP) * options.block + 1) * batch
    settings |= {"images": images, "validate_every_images": images}
    trainer = TrainerConfig(
        accelerator="gpu" if options.device == "cuda" else "cpu", precision=options.precision
    )
    with tempfile.TemporaryDirectory() as folder:
        store = open_patches(options.store, Path(folder))
        data = data_module(store, options.size, batch, images, augment)
        turns = _Turns(options.device, options.block, bare(data))

        class Timed(kind):  # type: ignore[misc,valid-type]
            def configure_callbacks(self) -> list[pl.Callback]:
                return [turns]

        out = Path(folder) / "out"
        fit(Timed(*module_arguments(data)), data, trainer, out, "benchmark", images)
    pairs = turns.pairs[WARM_UP:]
    overheads = [100 * (ours / plain - 1) for ours, plain in pairs]
    low, middle, high = statistics.quantiles(overheads, n=4)
    ours, plain = (statistics.median(side) for side in zip(*pairs, strict=True))
    report(
        name + ("_cuda" if options.device == "cuda" else ""),
        round(middle, 2),
        "% slower than a bare PyTorch loop",
        "<= 5",
        [round(low, 2), round(high, 2)],
        options.save,
        images_per_s={
            "product": round(options.block * batch / ours),
            "bare": round(options.block * batch / plain),
        },
        device=torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        threads=options.threads,
        size_px=options.size,
        precision=options.precision,
        block=options.block,
        pairs=len(pairs),
        batch_size=batch,
        settings=options.set,
        patches="simulated" if options.store is None else Path(options.store).name,
    )
