"""What looks on while a network trains: progress, interrupts, curves."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.plugins.environments import SLURMEnvironment

from stemcell_lit.base.progress import LINE_S, PROGRESS_ENV, SILENT_S, write_progress
from stemcell_lit.base.terminal import printable

POLL_S = 0.1  # between two looks for the second signal


class CheckpointOnSignal(pl.Callback):
    """Writes a checkpoint after the batch in which a signal came, and ends the process.

    Heeded while training: SIGTERM (Ctrl-C at the launcher, a job that Slurm pre-empts) and SIGUSR1 and SIGUSR2 where
    somebody waits for them already (submitit, which then queues the job again). A handler that acted at once, as
    Lightning's and submitit's do, would save a batch half done, and each rank another one.

    After the checkpoint SIGTERM ends the process with status 143, as shells report it, but under Slurm only a second
    one does: a job that ends by itself within its GraceTime has ended for good, and one that waits to be killed is
    queued again. A user signal goes on to the handler that was there, on the first rank.

    Args:
        file: the checkpoint, from which the next attempt resumes.
    """

    def __init__(self, file: Path):
        self.file = file
        self.received: list[int] = []
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over, from Lightning too, whose handler waits for the other ranks at once."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            handler = signal.getsignal(number)
            if number == signal.SIGTERM or callable(handler):
                self.before[number] = handler
                signal.signal(number, self._note)
        if trainer.received_sigterm:  # before this line
            self.received.append(signal.SIGTERM)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves and ends, if a signal came to any rank."""
        # Lightning cannot go on from behind the last batch and before what follows it; the next batch can wait.
        if trainer.is_last_batch or trainer.should_stop:
            return
        number = self._agreed(trainer)
        if not number:
            return
        trainer.save_checkpoint(self.file)
        handler = self.before.get(number)
        line = f"{signal.Signals(number).name}: checkpoint at {int(pl_module.images_seen)} images"  # type: ignore[arg-type]
        if trainer.is_global_zero:
            print(line, file=sys.stderr, flush=True)
        while number == signal.SIGTERM and SLURMEnvironment.detect() and len(self.received) < 2:
            time.sleep(POLL_S)
        self._release()
        if number != signal.SIGTERM:
            if trainer.is_global_zero and callable(handler):
                handler(number, None)  # does not return where it queues the job again
            raise SystemExit(0)  # another status could end the first rank before it has
        raise SystemExit(128 + number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the signals back."""
        self._release()

    def deliver(self) -> None:
        """After the training: a signal that came with its last batches does what it would have done."""
        if self.received:
            signal.raise_signal(self.received[-1])

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gives the signals back."""
        self._release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def _agreed(self, trainer: pl.Trainer) -> int:
        """The signal that came to any rank, 0 for none."""
        number = self.received[-1] if self.received else 0
        if trainer.world_size == 1:
            return number
        both = torch.tensor([number])  # on the CPU: gloo, which the GPU does not wait for
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
        return int(both)

    def _release(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


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


class CurveKeeper(Callback):
    """Keeps what a module logs at each validation, by images seen; survives a resume with the checkpoint."""

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Takes a point, after the module has logged."""
        if not trainer.sanity_checking:
            point = {k: float(v) for k, v in trainer.callback_metrics.items()}
            self.curve.append({"images": int(module.images_seen), **dict(sorted(point.items()))})

    def state_dict(self) -> dict[str, Any]:
        """The curve."""
        return {"curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self.curve = list(state_dict["curve"])
