"""What the settings of a generator mean: checks, seeds, precision, and the numbers that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemcell_lit.errors import UserError
from stemcell_lit.settings.bounds import check
from stemcell_lit.settings.groups import GANConfig

_REAL_PER_CLASS = 64  # held-out patches a class that diversity is compared with


_FIXED = 2**31  # seed stream of the fixed latents, apart from every training stream


class GANDiverged(UserError):
    """The training went wrong for good: a loss is not a number, or a class has collapsed."""


def seed_of(*parts: int) -> int:
    """A 63-bit seed that depends on every part; streams of different parts are independent."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def ema_decay(images: int, seen: int, halflife: float, rampup: float) -> float:
    """Share of the averaged weights that one update keeps, 0.5^(images / half-life).

    Args:
        images: images of this batch, over all devices.
        seen: images seen, this batch among them.
        halflife: images after which an old weight counts half.
        rampup: the half-life is at most this share of `seen` (as in StyleGAN2-ADA), so that the
            first, bad weights are forgotten; 0: no ramp.
    """
    if rampup:
        halflife = min(halflife, rampup * seen)
    return float(0.5 ** (images / max(halflife, 1e-8)))


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, rather than emulating it slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in tests)
    return False


def check_config(gan: Mapping[str, Any]) -> dict[str, Any]:
    """Completes a `GANConfig` given as a mapping, and checks it.

    Returns:
        Plain values only, so that a checkpoint which holds them loads under `weights_only=True`.

    Raises:
        UserError: a key or a value that is not legal.
    """
    defaults = asdict(GANConfig())
    unknown = sorted(set(gan) - set(defaults))
    if unknown:
        raise UserError(f"gan: unknown keys {unknown}, expected some of {sorted(defaults)}")
    plain: dict[str, Any] = {}
    for key, default in defaults.items():
        value = gan.get(key, default)
        kind = type(default)
        if kind is list:  # of channels where the default is empty
            item = type(default[0]) if default else int
            plain[key] = [item(v) for v in value]
        else:
            plain[key] = kind(value)
    check(GANConfig(**plain), "gan.")
    return plain


def spread(turn: Tensor) -> Tensor:
    """Places between 0 and 1 for turns 0, 1, 2 ...: any few that follow each other lie evenly (golden ratio)."""
    return ((turn.double() + 0.5) * 0.6180339887498949 % 1).float()


def mean_distance(pixels: Tensor, label: Tensor, classes: int) -> Tensor:
    """Mean Euclidean distance between two images of a class, over all pairs.

    Args:
        pixels: (n, 1, h, w).
        label: (n,) int64.
        classes: number of classes.

    Returns:
        (classes,), NaN for a class with fewer than two images.
    """
    flat = pixels.detach().float().flatten(1)
    each = [flat[label == c] for c in range(classes)]
    return torch.stack(
        [torch.pdist(x).mean() if len(x) > 1 else flat.new_tensor(float("nan")) for x in each]
    )


def _macro(scores: Tensor, counts: Tensor) -> Tensor:
    """Mean over the classes present of each class's mean."""
    present = counts > 0
    return (scores[present] / counts[present]).mean() if present.any() else scores.new_tensor(0.0)


def _first(pixels: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """At most `_REAL_PER_CLASS` images of each class."""
    keep = torch.cat([(label == c).nonzero().flatten()[:_REAL_PER_CLASS] for c in range(classes)])
    return pixels[keep], label[keep]
