"""What keeping freed memory (`experiment.training.keep_memory`) saves of a training step of the generator.

Processes that keep it and processes that do as glibc does take turns; each trains on one core as the product does.

    python benchmarks/step_memory.py [--store stores/mine] [--size 64] [--pairs 5] [--save]
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from _common import report
from _training import arguments, data_module, open_patches

from stemcell_lit.experiment.training import fit, keep_memory, quiet
from stemcell_lit.gan.config import check_config
from stemcell_lit.gan.module import GANModule
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import TrainerConfig

WAY = "STEP_MEMORY_WAY"  # set for a process that trains: one of WAYS
WAYS = ("default", "kept")
WARM_UP = 8  # steps before the first that counts


class _Clock(pl.Callback):
    """Seconds and new pages of the steps after the warm-up."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == WARM_UP:
            self.start, self.pages = time.perf_counter(), _pages()

    def on_train_batch_end(self, *_: Any) -> None:
        self.end = time.perf_counter()


def _pages() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def train(store: str, size: int, steps: int, settings: dict[str, Any]) -> dict[str, float]:
    """Trains a generator in this process.

    Returns:
        Milliseconds and new pages a step, and the peak of memory in MiB.
    """
    quiet()
    torch.set_num_threads(1)
    if os.environ[WAY] == "kept":
        keep_memory()
    gan = check_config(settings)
    images = (WARM_UP + steps) * gan["batch_size"]
    gan |= {"images": images, "validate_every_images": images}
    data = data_module(PatchStore.open(store), size, gan["batch_size"], images, "none")
    clock = _Clock()

    class Timed(GANModule):
        def configure_callbacks(self) -> list[pl.Callback]:
            return [clock]

    with tempfile.TemporaryDirectory() as folder:
        module = Timed(gan, list(data.targets), data.size)
        fit(module, data, TrainerConfig(accelerator="cpu"), Path(folder), "benchmark", images)
    return {
        "ms": 1000 * (clock.end - clock.start) / steps,
        "pages": (_pages() - clock.pages) / steps,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measures and reports; in a process that trains: trains and prints."""
    options = arguments(__doc__, block=100, pairs=5)
    if WAY in os.environ:
        print(json.dumps(train(options.store, options.size, options.block, options.set)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        store = str(open_patches(options.store, Path(folder)).path)
        words = [sys.executable, *sys.argv, f"--store={store}"]
        for _ in range(options.pairs):
            for way in WAYS:
                env = os.environ | {WAY: way}
                done = subprocess.run(words, env=env, check=True, capture_output=True, text=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
    ratios = [a["ms"] / b["ms"] for a, b in zip(*found.values(), strict=True)]
    report(
        "step_memory",
        round(statistics.median(ratios), 3),
        "times faster than with glibc's own way",
        ">= 1",
        [round(min(ratios), 3), round(max(ratios), 3)],
        options.save,
        **{
            way: {k: round(statistics.median(x[k] for x in runs), 1) for k in runs[0]}
            for way, runs in found.items()
        },
        size_px=options.size,
        steps=options.block,
        pairs=options.pairs,
        settings=options.set,
        patches="simulated" if options.store is None else Path(options.store).name,
    )


if __name__ == "__main__":
    main()
