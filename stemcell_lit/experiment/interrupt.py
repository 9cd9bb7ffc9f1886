"""A signal that ends a training: a checkpoint first, between two batches and on all ranks together."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

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
