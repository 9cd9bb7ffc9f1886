"""Where the networks of a model run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from stemcell_lit.classify.stacked import Stacked, Stage
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.errors import UserError


def chosen_device(name: str) -> torch.device:
    """The device of a setting: auto, cpu or cuda.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError(
            "device=cuda: PyTorch finds no GPU here; give device=cpu, or install a PyTorch that was built for your GPU"
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def move(stages: Iterable[Stage], device: torch.device) -> None:
    """Puts the networks of stages onto a device; classical stages always run on the CPU."""
    for stage in stages:
        if isinstance(stage, Stacked):
            move(stage.parts, device)
        elif isinstance(stage, StageModule):
            stage.to(device)


@contextmanager
def computing(device: torch.device, threads: int = 0) -> Iterator[None]:
    """Runs networks with so many threads, 0: as they are, and on a GPU with the precision that a CPU has."""
    before = torch.get_num_threads()
    # or convolutions would round to ten bits, and answers differ from those on a CPU by a thousandth and more
    exact = torch.backends.cudnn.allow_tf32
    try:
        if threads:
            torch.set_num_threads(threads)
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.allow_tf32 = exact
