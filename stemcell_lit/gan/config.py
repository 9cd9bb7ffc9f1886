"""What the settings of a generator mean: checks, seeds and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from stemcell_lit.errors import UserError
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.group_keys import GANConfig

FIXED = 2**31  # seed stream of the fixed latents, apart from every training stream


def seed_of(*parts: int) -> int:
    """A 63-bit seed that depends on every part; streams of different parts are independent."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
