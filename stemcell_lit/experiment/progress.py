"""Progress of a training in images, with a rate and the time left."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl

SILENT_S = 5.0  # shorter work shows nothing
LINE_S = 15.0  # between two lines where the output is no terminal


class ImagesProgress(pl.Callback):
    """One line: what is trained, images seen of the budget, images/s, time left.

    Args:
        title: what is being trained.
        budget: images.
    """

    def __init__(self, title: str, budget: int):
        self.title, self.budget = title, budget
        self.start = self.last = 0.0
        self.first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes where this run begins, for the rate."""
        self.start = self.last = time.monotonic()
        self.first = int(pl_module.images_seen)  # type: ignore[arg-type]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Shows the line now and then."""
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if (
            trainer.global_rank
            or now - self.start < SILENT_S
            or now - self.last < (0.5 if terminal else LINE_S)
        ):
            return
        self.last = now
        seen = int(pl_module.images_seen)  # type: ignore[arg-type]
        rate = (seen - self.first) / (now - self.start)
        left = max(0, self.budget - seen) / max(rate, 1e-9)
        line = f"{self.title}: {seen:,} of {self.budget:,} images, {rate:,.0f} images/s, {left / 60:.1f} min left"
        print(
            f"\r\033[K{line}" if terminal else line,
            end="" if terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clears the line of a terminal."""
        if sys.stderr.isatty() and not trainer.global_rank:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
