"""Progress of a training in images, with a rate and the time left."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from stemcell_lit.experiment.launch import PROGRESS_ENV, write_progress
from stemcell_lit.settings.quoting import printable

SILENT_S = 5.0  # shorter work shows nothing
LINE_S = 15.0  # between two lines where the output is no terminal
NOTE_S = 1.0  # between two notes for the launcher
RATE_S = 60.0  # the rate is that of the last minute: a machine that slept or got busy soon counts no longer


class ImagesProgress(pl.Callback):
    """One line: what is trained, images seen of the budget, images/s, time left.

    A job of a sweep also notes its rate in the file that the launcher has named, once a second at most.

    Args:
        title: what is being trained.
        budget: images.
    """

    def __init__(self, title: str, budget: int):
        self.title, self.budget = title, budget
        self.start = self.last = self.noted = 0.0
        self.marks: deque[tuple[float, int]] = deque()  # time and images, the oldest first
        self.file = os.environ.get(PROGRESS_ENV)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes where this run begins, for the rate."""
        self.start = self.last = self.noted = time.monotonic()
        self.marks = deque([(self.start, int(pl_module.images_seen))])  # type: ignore[arg-type]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Shows the line now and then."""
        if trainer.global_rank:
            return
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        note = self.file and now - self.noted >= NOTE_S
        line_due = now - self.start >= SILENT_S and now - self.last >= (0.5 if terminal else LINE_S)
        if not note and not line_due:
            return
        seen = int(pl_module.images_seen)  # type: ignore[arg-type]
        while len(self.marks) > 1 and now - self.marks[1][0] >= RATE_S:
            self.marks.popleft()
        since, before = self.marks[0]
        rate = (seen - before) / (now - since)
        self.marks.append((now, seen))
        if note and self.file:
            self.noted = now
            write_progress(self.file, seen, rate)
        if not line_due:
            return
        self.last = now
        left = max(0, self.budget - seen) / max(rate, 1e-9)
        how_far = f"{seen:,} of {self.budget:,} images"
        line = f"{printable(self.title)}: {how_far}, {rate:,.0f} images/s, {left / 60:.1f} min left"
        print(
            f"\r\033[K{line}" if terminal else line,
            end="" if terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clears the line of a terminal, and the note."""
        if self.file and not trainer.global_rank:
            Path(self.file).unlink(missing_ok=True)
        if sys.stderr.isatty() and not trainer.global_rank:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
