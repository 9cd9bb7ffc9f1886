"""Named augmentation policies, each in two forms that do the same: per batch on the device, per patch on the CPU.

- none: nothing.
- turns: the eight turns and flips of the square, brightness and contrast +-10 %. Cells have no up; nothing is
  interpolated, since that blurs the texture which tells the classes apart.
- strong: turns, brightness and contrast +-25 %, shifts to 12 % of the size, a gray square of a quarter of the side.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network when imported


@dataclass(frozen=True)
class Policy:
    """Strengths, as shares of the full range or of the size."""

    turns: bool = False
    light: float = 0.0  # brightness and contrast, share
    shift: float = 0.0  # largest translation, share of the size, the edge mirrored
    hole: float = 0.0  # side of the grey square, share of the size


POLICIES = {
    "none": Policy(),
    "turns": Policy(turns=True, light=0.10),
    "strong": Policy(turns=True, light=0.25, shift=0.12, hole=0.25),
}


def turn_square(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Applies one of the eight symmetries of the square to each image.

    Args:
        images: (batch, channels, size, size).
        which: (batch,) int64, 0 to 7; bit 2 transposes, bit 1 flips rows, bit 0 flips columns.
    """
    pick = which.view(-1, 1, 1, 1)
    images = torch.where(pick & 4 > 0, images.transpose(2, 3), images)
    images = torch.where(pick & 2 > 0, images.flip(2), images)
    return torch.where(pick & 1 > 0, images.flip(3), images)


def augment_batch(images: torch.Tensor, policy: Policy, random: torch.Generator) -> torch.Tensor:
    """Augments a batch on its device, every image by its own draw.

    Args:
        images: float (batch, scales, size, size), range -1 to 1; all scales of a patch are treated alike.
        policy: one of `POLICIES`.
        random: a CPU generator: the draws are the same on every device.
    """
    batch, _, size, _ = images.shape
    device = images.device

    def uniform(low: float, high: float) -> torch.Tensor:
        draws = torch.rand(batch, generator=random) * (high - low) + low
        return draws.to(device).view(-1, 1, 1, 1)

    if policy.turns:
        images = turn_square(images, torch.randint(0, 8, (batch,), generator=random).to(device))
    if policy.shift > 0:
        images = _shift(images, round(policy.shift * size), random)
    if policy.light > 0:
        gain, offset = (
            uniform(1 - policy.light, 1 + policy.light),
            uniform(-policy.light, policy.light),
        )
        # in 0 to 1, as albumentations has it: gray x gain + offset
        images = ((images + 1) * gain + 2 * offset - 1).clamp(-1, 1)
    if policy.hole > 0:
        side = round(policy.hole * size)
        top, left = (uniform(0, size - side).round() for _ in range(2))
        line = torch.arange(size, device=device)
        rows, columns = line.view(1, 1, -1, 1), line.view(1, 1, 1, -1)
        inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        images = images.masked_fill(inside, 0.0)
    return images


def _shift(images: torch.Tensor, most: int, random: torch.Generator) -> torch.Tensor:
    batch, channels, size, _ = images.shape
    padded = torch.nn.functional.pad(images, [most] * 4, mode="reflect")
    start = torch.randint(0, 2 * most + 1, (2, batch), generator=random).to(images.device)
    line = torch.arange(size, device=images.device)
    rows, columns = start[0].view(-1, 1) + line, start[1].view(-1, 1) + line
    which = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


def albumentations_policy(policy: Policy, size: int, seed: int) -> Any:
    """The same policy as an albumentations pipeline on uint8 (height, width, scales) patches.

    Args:
        policy: one of `POLICIES`.
        size: height and width in pixels.
        seed: of its own random state; give each loader process another one.
    """
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)  # threads inside loader processes fight for the cores
    steps: list[Any] = []
    if policy.turns:
        steps.append(A.D4(p=1))
    if policy.shift > 0:
        most = policy.shift
        steps.append(
            A.Affine(
                translate_percent=(-most, most),
                border_mode=cv2.BORDER_REFLECT_101,
                interpolation=0,
                p=1,
            )
        )
    if policy.light > 0:
        strength = policy.light
        steps.append(
            A.RandomBrightnessContrast(brightness_limit=strength, contrast_limit=strength, p=1)
        )
    if policy.hole > 0:
        side = round(policy.hole * size)
        steps.append(
            A.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=(side, side),
                hole_width_range=(side, side),
                fill=128,
                p=1,
            )
        )
    return A.Compose(steps, seed=seed)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Float (batch, 1, height, width) in -1 to 1 into uint8 (batch, height, width)."""
    return (
        ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().squeeze(1).cpu().numpy()
    )


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """Uint8 (batch, height, width) into float (batch, 1, height, width) in -1 to 1; a dimension of scales stays."""
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    return pixels.float().div_(127.5).sub_(1)
