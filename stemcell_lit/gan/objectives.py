"""Losses, penalties, shifts and turns: pure functions of tensors.

Every random choice is drawn from a generator that the caller gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("non_saturating", "relativistic", "wasserstein")


def critic_loss(name: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the critic minimises.

    * non_saturating (Goodfellow et al. 2014): E softplus(-real) + E softplus(fake)
    * relativistic (pairing; Jolicoeur-Martineau 2018, arXiv:1807.00734; R3GAN, arXiv:2501.05441):
      E softplus(-(real - fake)), each real patch against a generated one of its own class
    * wasserstein (Arjovsky et al. 2017, arXiv:1701.07875): E fake - E real; needs
      `interpolated_penalty`

    Args:
        name: one of `LOSSES`.
        real: (batch,) logits of real patches.
        fake: (batch,) logits of generated patches; for `relativistic` paired with `real`.
    """
    if name == "non_saturating":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if name == "relativistic":
        return F.softplus(fake - real).mean()
    if name == "wasserstein":
        return fake.mean() - real.mean()
    raise ValueError(f"loss {name!r}, expected one of {LOSSES}")


def generator_loss(name: str, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """What the generator minimises.

    wasserstein: -E fake; non_saturating: E softplus(-fake); relativistic: E softplus(-(fake - real)).

    Args:
        name: one of `LOSSES`.
        fake: (batch,) logits of generated patches.
        real: (batch,) logits of real patches, only for `relativistic`, paired with `fake`.
    """
    if name == "wasserstein":
        return -fake.mean()
    if name == "non_saturating":
        return F.softplus(-fake).mean()
    if name == "relativistic":
        if real is None:
            raise ValueError("the relativistic loss compares with the logits of real patches")
        return F.softplus(real - fake).mean()
    raise ValueError(f"loss {name!r}, expected one of {LOSSES}")


def gradient_penalty(
    critic: Callable[[Tensor, Tensor], Tensor], pixels: Tensor, label: Tensor
) -> Tensor:
    """Half the mean squared norm of the critic's gradient at `pixels`, E |grad|^2 / 2.

    On real patches it is R1, on generated ones R2 (Mescheder et al. 2018, arXiv:1801.04406).
    Float32 throughout: a squared gradient loses too much in bfloat16.

    Args:
        critic: (pixels, label) -> (batch,) logits.
        pixels: (batch, 1, height, width).
        label: (batch,) int64.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        at = pixels.detach().float().requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(at, label).sum(), at, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


def interpolated_penalty(
    critic: Callable[[Tensor, Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    label: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """E (|grad| - 1)^2 at random points between a real and a generated patch of one class.

    WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028). Float32 throughout.

    Args:
        critic: (pixels, label) -> (batch,) scores.
        real: (batch, 1, height, width).
        fake: generated ones, of the same classes.
        label: (batch,) int64.
        generator: on the device of the patches.
    """
    with torch.autocast(real.device.type, enabled=False):
        real, fake = real.detach().float(), fake.detach().float()
        at = torch.lerp(real, fake, _uniform(real, generator)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(at, label).sum(), at, create_graph=True)
        penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return penalty


def scheduled(end: float, progress: float) -> float:
    """From 1 to `end` by half a cosine (R3GAN, arXiv:2501.05441), then `end`; `progress` 1 ends the burn-in."""
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """(batch, 1, 1, 1) in [0, 1)."""
    return torch.rand((len(like), 1, 1, 1), generator=generator, device=like.device)


def translate(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts each image by up to an eighth of its side; the border pixels are repeated.

    DiffAugment (Zhao et al. 2020, arXiv:2006.10738): differentiable. The critic must see real and generated patches
    through it alike, else the generator learns it: pass both in one batch, or each once. DiffAugment fills with zeros,
    which is mid-gray here: an edge that no micrograph has. No cutout: it leaks into samples on small sets.

    Args:
        pixels: (batch, 1, height, width).
        generator: on the device of `pixels`.
    """
    batch, channels, height, width = pixels.shape
    for dim, side in ((2, height), (3, width)):
        reach = round(side / 8)
        shift = torch.randint(
            -reach, reach + 1, (batch, 1), generator=generator, device=pixels.device
        )
        source = (torch.arange(side, device=pixels.device)[None] - shift).clamp(0, side - 1)
        source = source[:, None, :, None] if dim == 2 else source[:, None, None, :]
        pixels = pixels.gather(dim, source.expand(batch, channels, height, width))
    return pixels


def random_turn(
    pixels: Tensor, generator: torch.Generator, turns: str = "square"
) -> tuple[Tensor, Tensor]:
    """A random turn or flip of each image.

    For real patches: none of them changes a label. What a turned patch does not show, its corners, is 0 here, and must
    be hidden alike in the generated patch beside it: then the generator learns whole patches from parts (AmbientGAN,
    Bora et al. 2018, ICLR). Filled by reflection, the corners would be learned too. Half of the patches stay whole, for
    else hardly any corner is seen.

    Args:
        pixels: (batch, 1, side, side), in [-1, 1].
        generator: on the device of `pixels`.
        turns: `square` (one of the eight of the square, D4) or `any` (then half of them also by any angle, see
            `rotate`).

    Returns:
        The turned images, and (batch, 1, side, side) from 0, hidden, to 1, shown; both on the device of `pixels`.
    """
    choice = torch.randint(0, 8, (len(pixels), 1, 1, 1), generator=generator, device=pixels.device)
    pixels = torch.where((choice & 1).bool(), pixels.flip(2), pixels)
    pixels = torch.where((choice & 2).bool(), pixels.flip(3), pixels)
    pixels = torch.where((choice & 4).bool(), pixels.transpose(2, 3), pixels)
    shown = torch.ones_like(pixels)
    if turns == "square":
        return pixels, shown
    order = torch.randperm(len(pixels), generator=generator, device=pixels.device)
    some = order[: (len(pixels) + 1) // 2]
    angle = (_uniform(pixels[some], generator).flatten() - 0.5) * (math.pi / 2)
    shown[some] = inside(angle, pixels.shape[-1])
    turned = rotate(pixels[some], angle).clamp(-1, 1) * shown[some]
    return pixels.index_copy(0, some, turned), shown


def inside(angle: Tensor, side: int) -> Tensor:
    """What of the square of an image shows the image after `rotate`.

    Args:
        angle: (batch,) radians, clockwise.
        side: in pixels.

    Returns:
        (batch, 1, side, side): 1 within the turned border, 0 beyond it, in between on the pixels that it cuts.
    """
    at = torch.arange(side, device=angle.device) - (side - 1) / 2
    x, y = at[None, None, :], at[None, :, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    from_centre = torch.maximum((cos * x + sin * y).abs(), (cos * y - sin * x).abs())
    return (side / 2 + 0.5 - from_centre).clamp(0, 1)[:, None]


def rotate(pixels: Tensor, angle: Tensor) -> Tensor:
    """Turns each image about its centre by up to 45 degrees and keeps its texture.

    Three shears (Paeth 1986, A fast algorithm for general raster rotation), each a shift of every row or column by
    its phase in the Fourier domain: unlike with an interpolation between pixels no frequency is damped, and noise
    keeps its strength. A critic would see the difference, and a generator learn it. What lies beyond the border is
    the image's reflection.

    Args:
        pixels: (batch, 1, side, side), side a multiple of 4.
        angle: (batch,) radians, clockwise, at most pi / 4 either way.

    Returns:
        (batch, 1, side, side); edges may overshoot the range of `pixels` a little.
    """
    side = pixels.shape[-1]
    pad = side // 4  # a corner comes from 0.71 side off the centre
    whole = F.pad(pixels, (pad, pad, pad, pad), mode="reflect")[:, 0]
    size = whole.shape[-1]
    place = torch.arange(size, device=pixels.device) - (size - 1) / 2
    frequency = -2 * math.pi * torch.fft.rfftfreq(size, device=pixels.device)
    each = torch.outer(place, frequency)  # row or column, frequency

    def phases(slope: Tensor) -> Tensor:
        turned = slope[:, None, None] * each
        return torch.complex(turned.cos(), turned.sin())

    def shear(x: Tensor, phase: Tensor) -> Tensor:
        moved: Tensor = torch.fft.irfft(torch.fft.rfft(x) * phase, n=size)
        return moved

    rows, columns = phases(-(angle / 2).tan()), phases(angle.sin())
    whole = shear(whole, rows).transpose(1, 2)
    whole = shear(whole, columns).transpose(1, 2)
    whole = shear(whole, rows)
    return whole[:, None, pad : pad + side, pad : pad + side].contiguous()
