"""What the two benchmarks of a training step share: patches, a stopwatch, alternating runs."""

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
from _common import report

from stemcell_lit.data.extraction import extract
from stemcell_lit.data.patches import PatchStore
from stemcell_lit.data.simulate import simulate
from stemcell_lit.experiment.training import quiet
from stemcell_lit.schema import ExtractionConfig, SimulationConfig

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
    return parser.parse_args()


def patches(store: str | None, folder: Path) -> PatchStore:
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


class Stopwatch(pl.Callback):
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


def compare(
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


def prepare(options: argparse.Namespace) -> None:
    """Threads, and silence."""
    quiet()
    torch.set_num_threads(options.threads)
