"""What the settings of a generator mean: checks, seeds and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


# Settings that only some networks know; all others are every family's.
_PAIR = (
    "condition latent critic_channels loss r1 r2 gp penalty_every critic_steps translate critic_lr"
)
_FLOW = "steps hidden_share guidance guidance_from guidance_to time_shift"


def only_for(gan: Mapping[str, Any], networks: Sequence[str]) -> None:
    """Refuses the settings of another family than the one that has these networks, and its own settings there.

    Args:
        gan: a complete `GANConfig` as a mapping.
        networks: of `gan.network`, one family's.

    Raises:
        UserError: which setting, and what it is for.
    """
    kind, other = "a GAN", "a rectified flow"
    if "unet" in networks:
        kind, other = other, kind
    if gan["network"] not in networks:
        raise UserError(
            f"gan.network={gan['network']} makes {other}, expected {kind} "
            f"({' or '.join(f'gan.network={n}' for n in networks)})"
        )
    usual = asdict(GANConfig())
    foreign = (_PAIR if "unet" in networks else _FLOW).split()
    shared = {"hidden_share"} if gan["unlabelled"] else set()
    for key in (k for k in foreign if gan[k] != usual[k] and k not in shared):
        raise UserError(
            f"gan.{key}={gan[key]}: a setting of {other}, and gan.network={gan['network']} makes {kind}; leave it out"
        )
    if gan["truncation"] != usual["truncation"] and gan["network"] != "style":
        raise UserError(
            f"gan.truncation={gan['truncation']}: a setting of gan.network=style, and gan.network={gan['network']} has "
            "no styles; leave it out"
        )
