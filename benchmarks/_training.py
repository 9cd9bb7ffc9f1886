"""What the two benchmarks of a training step share: patches, the product's training, a stopwatch, alternating runs."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pytorch_lightning as pl
import torch
import yaml
from _common import report

from stemcell_lit.data.datamodule import PatchDataModule, View
from stemcell_lit.data.extraction import extract
from stemcell_lit.data.patches import PatchStore
from stemcell_lit.data.simulate import simulate
from stemcell_lit.data.splits import make_split
from stemcell_lit.experiment.training import fit, quiet
from stemcell_lit.schema import ExtractionConfig, SimulationConfig, SplitConfig, TrainerConfig

WARM_UP = 10  # steps before the clock starts


def arguments(about: str | None, batches: int) -> argparse.Namespace:
    """Command line of both benchmarks."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--store", help="a PatchStore; without one patches are simulated")
    parser.add_argument("--size", type=int, default=32, help="px of the patches")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true", help="of the trainer, such as bf16-mixed")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--batches", type=int, default=batches, help="steps timed in each run")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings")
    parser.add_argument("--save", action="store_true", help="keep the figure")
    options = parser.parse_args()
    options.set = {k: yaml.safe_load(v) for k, v in (x.split("=", 1) for x in options.set)}
    return options


def _patches(store: str | None, folder: Path) -> PatchStore:
    """The store named, or simulated patches: 6 movies, four classes."""
    if store:
        return PatchStore.open(store)
    settings = SimulationConfig(movies=6, frames=4, size=320)
    simulate(settings, folder / "movies")
    extract(folder / "movies", folder / "store", ExtractionConfig(patches_per_movie=60))
    return PatchStore.open(folder / "store")


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class _Stopwatch(pl.Callback):
    """Seconds from the start of step `WARM_UP` to the end of step `WARM_UP` + batches."""

    def __init__(self, device: str, batches: int):
        self.device, self.batches = device, batches
        self.step, self.start, self.seconds = 0, 0.0, float("nan")

    def tick(self) -> None:
        """Call it before each step, and once after the last."""
        if self.step in (WARM_UP, WARM_UP + self.batches):
            wait(self.device)
            now = time.perf_counter()
            if self.step == WARM_UP:
                self.start = now
            else:
                self.seconds = now - self.start
        self.step += 1

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """A step begins; the one that follows the last ends the clock."""
        self.tick()


def measure(
    name: str,
    kind: type[pl.LightningModule],
    settings: dict[str, Any],
    module_arguments: Callable[[PatchDataModule], tuple[Any, ...]],
    bare: Callable[[PatchDataModule], float],
    options: argparse.Namespace,
    augment: str,
) -> None:
    """Trains a module as the product does and a bare loop, in turns, and reports the overhead.

    Args:
        name: of the figure.
        kind: class of the product's module.
        settings: of the module; its budget is set here, in place.
        module_arguments: those of `kind`, given the data.
        bare: seconds of the timed steps without the framework, given the data.
        options: the command line.
        augment: policy of the data.
    """
    quiet()
    torch.set_num_threads(options.threads)
    # the end of the last timed step is the beginning of one more
    images = (WARM_UP + options.batches + 1) * settings["batch_size"]
    settings |= {"images": images, "validate_every_images": images}
    trainer = TrainerConfig(
        accelerator="gpu" if options.device == "cuda" else "cpu", precision=options.precision
    )
    with tempfile.TemporaryDirectory() as folder:
        store = _patches(options.store, Path(folder))
        data = PatchDataModule(
            store,
            make_split(store, SplitConfig(folds=3)),
            View.of_classes(store.classes),
            batch_size=settings["batch_size"],
            epoch_images=images,  # one epoch: what happens between two is not a part of a step
            augment=augment,
            patch_size=options.size,
        )

        def product(out: Path) -> float:
            watch = _Stopwatch(options.device, options.batches)

            class Timed(kind):  # type: ignore[misc,valid-type]
                def configure_callbacks(self) -> list[pl.Callback]:
                    return [watch]

            fit(Timed(*module_arguments(data)), data, trainer, out, "benchmark", images)
            return watch.seconds

        _compare(
            name + ("_cuda" if options.device == "cuda" else ""),
            product,
            lambda: bare(data),
            options,
            options.batches * settings["batch_size"],
            batch_size=settings["batch_size"],
            settings=options.set,
            patches="simulated" if options.store is None else Path(options.store).name,
        )


def _compare(
    name: str,
    product: Callable[[Path], float],
    bare: Callable[[], float],
    options: argparse.Namespace,
    images: int,
    **extra: Any,
) -> None:
    """Alternates both, prints the product's overhead in percent.

    The median over the rounds of each round's ratio: what else the machine does hits both alike.

    Args:
        name: of the figure.
        product: seconds of the timed steps, given a folder to work in.
        bare: the same without the framework.
        options: the command line.
        images: patches in the timed steps.
        **extra: what else belongs to the figure.
    """
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.rounds + 1):
            # turns about, so that neither always follows the other's heat
            first_bare = i % 2 == 0
            ours = float("nan") if first_bare else product(Path(folder) / str(i))
            plain = bare()
            ours = product(Path(folder) / str(i)) if first_bare else ours
            print(
                f"round {i}: product {ours:.3f} s, bare {plain:.3f} s, {100 * (ours / plain - 1):+.1f} %",
                file=sys.stderr,
            )
            if i:  # the first round fills caches
                rounds.append((ours, plain))
    overheads = [100 * (ours / plain - 1) for ours, plain in rounds]
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    report(
        name,
        round(statistics.median(overheads), 2),
        "% slower than a bare PyTorch loop",
        "<= 5",
        [round(min(overheads), 2), round(max(overheads), 2)],
        options.save,
        images_per_s={
            "product": round(images / statistics.median(o for o, _ in rounds)),
            "bare": round(images / statistics.median(b for _, b in rounds)),
        },
        device=device,
        threads=options.threads,
        size_px=options.size,
        precision=options.precision,
        steps=options.batches,
        rounds=options.rounds,
        **extra,
    )
