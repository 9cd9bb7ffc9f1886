"""Devices of this machine, shared out among jobs."""

from __future__ import annotations

import os
import socket

from stemcell_lit.errors import UserError

# What would make a job believe that it is a rank of its parent's group. Lightning takes any
# SLURM_NTASKS for a cluster of its own, and a seed set by the parent would go before the job's.
FOREIGN = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
)


FOREIGN_PREFIXES = ("SLURM_", "TORCHELASTIC_", "JSM_")


def default_slots(
    accelerator: str = "auto", devices_per_job: int = 1, slots: int | None = None
) -> list[dict[str, str]]:
    """The places of this machine where a job can run, each as the environment that points to it.

    The cores that this process may use are divided among all processes of all slots.

    Args:
        accelerator: auto (GPUs where there are any) | gpu or cuda | cpu.
        devices_per_job: GPUs of a slot; on a CPU the number of processes that share a slot.
        slots: how many; None: as many as there are devices for. More of them than that share GPUs.

    Raises:
        UserError: an unknown accelerator, or fewer GPUs than one job needs.
    """
    if devices_per_job < 1 or (slots is not None and slots < 1):
        raise UserError(f"slots={slots} and devices={devices_per_job}: each must be at least 1")
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(f"accelerator {accelerator!r}: expected auto, cpu or gpu")
    gpus = [] if accelerator == "cpu" else _visible_gpus()
    cores = _cores()
    if accelerator == "cpu" or (accelerator == "auto" and not gpus):
        places = [""] * (slots or max(1, cores // devices_per_job))  # no GPU is visible to them
    else:
        groups = [
            ",".join(gpus[i : i + devices_per_job])
            for i in range(0, len(gpus) - devices_per_job + 1, devices_per_job)
        ]
        if not groups:
            raise UserError(
                f"devices={devices_per_job}, but this machine shows {len(gpus)} GPUs; ask for "
                "fewer devices, or for accelerator=cpu"
            )
        places = [groups[i % len(groups)] for i in range(slots or len(groups))]
    threads = str(max(1, cores // (len(places) * devices_per_job)))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "STEMCELL_LIT_THREADS")
    return [{"CUDA_VISIBLE_DEVICES": place, **dict.fromkeys(names, threads)} for place in places]


def clean_environment() -> dict[str, str]:
    """This process's environment without its place in a process group."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)
    }
    return kept | {"PYTHONUNBUFFERED": "1"}  # the log shows what happens now, and all after a kill


def _cores() -> int:
    """Cores that this process may use, which a scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _visible_gpus() -> list[str]:
    import torch  # here: the launcher on a CPU does not need it

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
