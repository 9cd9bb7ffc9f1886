"""The training of any network to its budget, and process set-up before training."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.metadata
import logging
import math
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment

from stemcell_lit.base.checkpoints import PART, WholeCheckpoints, check_resumable
from stemcell_lit.base.ranks import Ranks, first_rank
from stemcell_lit.base.terminal import printable
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.data.datamodule import PatchDataModule
from stemcell_lit.errors import UserError
from stemcell_lit.experiment import tracking
from stemcell_lit.experiment.callbacks import CheckpointOnSignal, ImagesProgress
from stemcell_lit.settings.group_keys import TrainerConfig

if TYPE_CHECKING:
    from wandb import Run

# glibc's malloc.h: what may lie free at the heap's end, what is taken for it at once, from what size on memory is not
# the heap's (at most 32 MiB can be set)
_KEEP = {-1: 2**31 - 1, -2: 2**28, -3: 2**25}


def fit(
    module: pl.LightningModule,
    data: PatchDataModule,
    trainer: TrainerConfig,
    folder: Path,
    title: str,
    images: int,
    wandb_run: Run | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Trains a module to its budget of images, from the last checkpoint in `folder` where there is a usable one."""
    per_epoch = sum(data.batches().quotas)
    every = max(1, round(_validate_every(module) / per_epoch))
    checkpoint = ModelCheckpoint(
        folder,
        filename="last",
        every_n_epochs=every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    interrupt = CheckpointOnSignal(folder / "last.ckpt")
    # A GAN leaves one network's parameters unused in each backward pass; plain ddp raises then.
    ddp = "ddp" if module.automatic_optimization else "ddp_find_unused_parameters_true"
    # Its own re-queueing stays off: it saves in the middle of a batch, and submitit queues the job again.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    lightning = pl.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        strategy=ddp if trainer.devices > 1 else "auto",
        precision=trainer.precision,  # type: ignore[arg-type]
        max_epochs=math.ceil(images / per_epoch)
        + 1,  # the module stops by itself when its budget is spent
        check_val_every_n_epoch=every,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, checkpoint, interrupt, ImagesProgress(title, images)],
        plugins=[WholeCheckpoints(), *slurm],
        logger=tracking.lightning_logger(wandb_run, title),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=20,
    )
    last = _usable(folder / "last.ckpt", module, callbacks, title)
    lightning.fit(module, data, ckpt_path=last, weights_only=True)
    interrupt.deliver()
    return lightning


def _usable(
    file: Path, module: pl.LightningModule, callbacks: Sequence[pl.Callback], title: str
) -> str | None:
    """The checkpoint to go on from, the same on all ranks; None: the training begins at its beginning.

    A broken one goes, with a line that says so: what was trained is lost, what is trained anew is the same.
    """
    ranks = Ranks()
    if not ranks.first:
        return ranks.share(None)
    found = None
    for part in file.parent.glob(f"*{PART}"):  # of a run that was killed while it wrote
        part.unlink()
    if file.is_file():
        try:
            check_resumable(file, module, callbacks)
            found = str(file)
        except ValueError as error:
            print(
                printable(f"{file}: broken checkpoint ({error}); {title} begins again"),
                file=sys.stderr,
            )
            file.unlink()
    return ranks.share(found)


def _validate_every(module: pl.LightningModule) -> int:
    plan = module.stage if isinstance(module, StageModule) else module.hparams["gan"]
    return int(plan["validate_every_images"])


def join_ranks(trainer: TrainerConfig) -> bool:
    """Joins the other ranks of this trial, where it has any, before they share artifacts.

    Returns:
        True on the first rank, which alone writes and logs.

    Raises:
        UserError: several devices, but nobody started the ranks. (Lightning would start them by running the same
            command again, each waiting for the artifact that the first one makes.)
    """
    if trainer.devices <= 1:
        return True
    slurm = SLURMEnvironment.detect()
    if slurm and SLURMEnvironment(auto_requeue=False).world_size() != trainer.devices:
        raise UserError(
            f"trainer.devices={trainer.devices}, but Slurm has started {os.environ['SLURM_NTASKS']} tasks; a job needs "
            "one node with a task per device (hydra.launcher.nodes=1, tasks_per_node=${trainer.devices})"
        )
    if not slurm and "RANK" not in os.environ:
        raise UserError(
            f"trainer.devices={trainer.devices}: a single command has one process; use `run -m` or `reproduce`, which "
            "start one per device"
        )
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        where: dict[str, Any] = {}
        if slurm:
            srun = SLURMEnvironment(auto_requeue=False)
            if os.environ.get("SLURM_NNODES") == "1" and platform.system() == "Linux":
                os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # node names need not resolve
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            address, port = srun.main_address, srun.main_port  # sets MASTER_ADDR and MASTER_PORT
            where = {
                "init_method": f"tcp://{address}:{port}",
                "rank": srun.global_rank(),
                "world_size": srun.world_size(),
            }
        torch.distributed.init_process_group(backend, timeout=timedelta(hours=24), **where)
        atexit.register(_leave_ranks)
    return first_rank()


def _leave_ranks() -> None:
    """Ends the group before the interpreter does: its threads may else abort a process that has done its work."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def use_cpu(trainer: TrainerConfig) -> None:
    """Lets torch use as many CPU threads as the configuration says, and keep the memory that a step frees."""
    torch.set_num_threads(trainer.threads or os.cpu_count() or 1)
    keep_memory()


def keep_memory() -> None:
    """Lets glibc keep the memory that is freed for what is taken next; does nothing with another C library.

    Every step takes and frees the same tensors. By default glibc gives large ones back to the system, which hands out
    each of their pages anew, zeroed, at the next step.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError):  # a C library without this setting
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in _KEEP.items():
            mallopt(option, size)


def quiet() -> None:
    """Silences what Lightning says of things that are meant."""
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # every rank validates on all patches
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*GPU available but not used.*")
    warnings.filterwarnings("ignore", ".*`isinstance.treespec, LeafSpec.`.*")


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    names = [
        "stemcell-lit",
        "torch",
        "pytorch-lightning",
        "torchmetrics",
        "albumentations",
        "numpy",
        "scikit-learn",
    ]
    return {
        "python": platform.python_version(),
        **{n: importlib.metadata.version(n) for n in names},
    }
