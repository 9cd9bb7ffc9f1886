"""What the settings of a generator mean: checks, seeds and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from stemcell_lit.errors import UserError
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.gan_keys import GANConfig

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
    """Completes a `GANConfig` given as a mapping, and checks it; what it returns loads under `weights_only=True`.

    Raises:
        UserError: a key or a value that is not legal.
    """
    legal = {f.name for f in fields(GANConfig)}
    unknown = sorted(set(gan) - legal)
    if unknown:
        raise UserError(f"gan: unknown keys {unknown}, expected some of {sorted(legal)}")
    typed: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(GANConfig), dict(gan)))
    check(typed, "gan.")
    return asdict(typed)
