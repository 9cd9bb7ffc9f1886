"""What the fused forms of `gan/kernels.py` save of a training step of the generator and its critic.

Two loops, the bare one of `gan_step.py`, take turns in one process: one with the forms of the product, one with the
layers that they stand for. A compiler or a GPU uses the layers themselves.

    python benchmarks/gan_kernels.py [--store stores/mine] [--size 64] [--pairs 30] [--set size=tiny] [--save]
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from _common import report
from _training import WARM_UP, arguments, data_module, open_patches
from gan_step import bare
from torch import Tensor, nn

from stemcell_lit.experiment.training import keep_memory
from stemcell_lit.gan import networks
from stemcell_lit.gan.config import check_config


def _upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


def _downsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, stride=2, padding=1)


def _modulated_norm(x: Tensor, norm: nn.BatchNorm2d, scale: Tensor, shift: Tensor) -> Tensor:
    return F.relu(norm(x) * (1 + scale) + shift)


def _add_noise(x: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    return x + strength * noise


LAYERS = {
    "upsample_conv": _upsample_conv,
    "downsample_conv": _downsample_conv,
    "modulated_norm": _modulated_norm,
    "add_noise": _add_noise,
}


def main() -> None:
    """Measures and reports."""
    options = arguments(__doc__, block=8, pairs=30)  # a penalty in each block
    if options.device != "cpu":
        raise SystemExit("the fused forms are for the CPU")
    torch.set_num_threads(options.threads)
    keep_memory()
    gan = check_config(options.set)
    with tempfile.TemporaryDirectory() as folder:
        store = open_patches(options.store, Path(folder))
        data = data_module(store, options.size, gan["batch_size"], gan["batch_size"], "none")
        data.setup("fit")
        ways = {
            "layers": mock.patch.multiple(networks, **LAYERS),
            "fused": contextlib.nullcontext(),
        }
        loops = {way: bare(gan, data, "cpu") for way in ways}
        pairs = [
            [_seconds(loops[way], using, options.block) for way, using in ways.items()]
            for _ in range(WARM_UP + options.pairs)
        ][WARM_UP:]
    ratios = [layers / fused for layers, fused in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    report(
        "gan_kernels",
        round(middle, 3),
        "times faster than layer by layer",
        ">= 1",
        [round(low, 3), round(high, 3)],
        options.save,
        ms_per_step={
            way: round(1000 * statistics.median(side) / options.block, 1)
            for way, side in zip(ways, zip(*pairs, strict=True), strict=True)
        },
        threads=options.threads,
        size_px=options.size,
        block=options.block,
        pairs=options.pairs,
        batch_size=gan["batch_size"],
        settings=options.set,
        patches="simulated" if options.store is None else Path(options.store).name,
    )


def _seconds(
    loop: Iterator[None], using: contextlib.AbstractContextManager[object], steps: int
) -> float:
    with using:
        start = time.process_time()
        for _ in range(steps):
            next(loop)
        return time.process_time() - start


if __name__ == "__main__":
    main()
