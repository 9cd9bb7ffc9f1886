"""The network of a rectified flow, a small U-Net, and the generator that follows its velocity.

On a straight way from a patch x (t = 0) to noise n (t = 1), x_t = (1 - t) x + t n, the velocity is n - x (rectified
flow: Liu et al. 2023, arXiv:2209.03003). The network learns its mean at a place and a time. Who follows it from noise
back to t = 0 ends at a patch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemcell_lit.data.augment import to_uint8
from stemcell_lit.gan.camera import STRENGTHS, Camera, missing
from stemcell_lit.gan.layers import CHUNK, Measured, Modulation, levels, widths

# Channels from 4x4 up, for 32 px; `widths` fits them to other sizes. A step costs three forward passes, see
# docs/generators.md.
SIZES: dict[str, tuple[int, ...]] = {
    "tiny": (128, 80, 40, 16),
    "small": (320, 208, 128, 64),
    "base": (640, 512, 384, 224),
}

_MEASURED = 128  # patches in which the noise that they lack is found

_TIMES = 32  # frequencies that tell the time

_CONDITION = 4  # times the width of the embedding: what the blocks are told of time and class


def shifted(u: Tensor, shift: float) -> Tensor:
    """Times from 0 to 1, moved: below 1 towards the patches, above 1 towards the noise (Esser et al. 2024)."""
    return shift * u / (1 + (shift - 1) * u)


class UNet(nn.Module):
    """The velocity at a place and a time, given the class and the mode inside it, or nothing (the null condition).

    A block on the way down and one on the way up at each resolution from full size to 4x4, joined across; attention at
    4x4. Group norm, so that an answer depends on its own patch alone. It answers 0 at first.

    Attributes:
        null: the condition that says nothing.

    Args:
        class_of: the class of each condition, see `Conditions`.
        image_size: px, a power of two of at least 8.
        channels: from 4x4 up, see `widths`.
        embedding: width of the class embedding.
    """

    class_of: Tensor

    def __init__(
        self, class_of: Sequence[int], image_size: int, *, channels: Sequence[int], embedding: int
    ):
        super().__init__()
        width = widths(channels, levels(image_size))
        self.null = len(class_of)
        classes = max(class_of) + 1
        self.register_buffer("class_of", torch.tensor([*class_of, classes]), persistent=False)
        inner = _CONDITION * embedding
        self.classes = nn.Embedding(classes + 1, embedding)
        self.modes = nn.Embedding(len(class_of) + 1, embedding) if len(class_of) > classes else None
        self.of_class = nn.Linear(embedding, inner)
        self.of_time = nn.Sequential(
            nn.Linear(2 * _TIMES, inner), nn.SiLU(), nn.Linear(inner, inner)
        )
        self.start = nn.Conv2d(1, width[-1], 3, padding=1)
        fine = list(reversed(width))  # full size first
        self.down = nn.ModuleList(
            _Block(a, b, inner) for a, b in zip([fine[0], *fine], fine, strict=False)
        )
        self.attention = _Attention(width[0])
        self.up = nn.ModuleList(
            _Block(2 * b if i == 0 else a + b, b, inner)
            for i, (a, b) in enumerate(zip([width[0], *width], width, strict=False))
        )
        self.last_norm = _norm(width[-1])
        self.to_pixels = nn.Conv2d(width[-1], 1, 3, padding=1)
        if self.modes is not None:  # they tell their class apart only as training asks for it
            nn.init.zeros_(self.modes.weight)
        nn.init.zeros_(self.to_pixels.weight)

    def forward(self, pixels: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """The velocity, from patches towards noise.

        Args:
            pixels: (batch, 1, image_size, image_size), at their times.
            time: (batch,) from 0, a patch, to 1, noise.
            condition: (batch,) int64, `null` where nothing is known.

        Returns:
            (batch, 1, image_size, image_size) float32.
        """
        given = self.classes(self.class_of[condition])
        if self.modes is not None:
            given = given + self.modes(condition)
        told = F.silu(self.of_time(_waves(time)) + self.of_class(given))
        x, kept = self.start(pixels), []
        for i, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if i else x, told)
            kept.append(x)
        x = self.attention(x)
        for i, block in enumerate(self.up):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") if i else x
            x = block(torch.cat([x, kept.pop()], dim=1), told)
        velocity: Tensor = self.to_pixels(F.silu(self.last_norm(x))).float()
        return velocity.contiguous()


def _waves(time: Tensor) -> Tensor:
    """(batch,) -> (batch, 2 * _TIMES): sines and cosines of 1 to 1000 radians a unit of time."""
    rates = torch.logspace(0, 3, _TIMES, device=time.device)
    angle = time.float()[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


class _Block(nn.Module):
    """Two convolutions beside the way straight on; time and class modulate what is between them."""

    def __init__(self, inputs: int, outputs: int, told: int):
        super().__init__()
        self.first_norm, self.second_norm = _norm(inputs), _norm(outputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulate = Modulation(told, outputs)
        self.straight = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.second.weight)  # at first the block passes on what it gets

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(n, inputs, h, w) and (n, told) -> (n, outputs, h, w)."""
        h = self.second_norm(self.first(F.silu(self.first_norm(x))))
        scale, shift = self.modulate(told, h.dtype)
        made: Tensor = self.straight(x) + self.second(F.silu(h * (1 + scale) + shift))
        return made


class _Attention(nn.Module):
    """Each place looks at all others, with one head, beside the way straight on."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.asked = nn.Conv2d(channels, 3 * channels, 1)
        self.answer = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.answer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""
        q, k, v = self.asked(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape_as(x)
        made: Tensor = x + self.answer(seen)
        return made


def follow(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, shift: float = 1.0
) -> Tensor:
    """Euler's way from noise (t = 1) to patches (t = 0).

    Args:
        velocity: (pixels, (batch,) times) -> the velocity there.
        noise: (batch, 1, height, width).
        steps: of it, equally long before `shifted`.
        shift: of the times.
    """
    times = shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()
    x = noise
    for now, then in itertools.pairwise(times):
        time = torch.full((len(x),), now, dtype=x.dtype, device=x.device)
        x = x + (then - now) * velocity(x, time)
    return x


class FlowGenerator(Measured):
    """Noise and condition to a patch, by following a network's velocity; as deep as it has steps.

    It makes `CHUNK` patches at a time, the last ones beside made-up others: the bits of a sum depend on the size of a
    batch, and those of a patch here on its own input and place alone.

    Attributes:
        inputs: numbers that make a patch beside its condition: a noise pixel for each pixel, and one more for the
            camera's, where it has one.
        network: the velocity.

    Args:
        network: the velocity.
        image_size: in px.
        steps: of Euler's method.
        shift: see `shifted`.
        guidance: how many times the way from the null condition's velocity to the condition's is gone; 1: no guidance.
        interval: first and last time with guidance: only the middle of the way profits (Kynkäänniemi et al. 2024,
            arXiv:2404.07724).
        camera: strengths of the noise in real patches, see `gan/camera`. The network has learned some of that noise;
            what its patches lack is added to them. None: nothing is.
    """

    def __init__(
        self,
        network: UNet,
        image_size: int,
        *,
        steps: int,
        shift: float = 1.0,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        camera: Sequence[float] | None = None,
    ):
        super().__init__()
        self.network, self.image_size = network, image_size
        self.pixels, self.strengths = image_size**2, camera
        self.camera = None if camera is None else Camera([0.0] * len(STRENGTHS))
        self.inputs = self.pixels * (1 if camera is None else 2)
        self.steps, self.shift, self.guidance, self.interval = steps, shift, guidance, interval

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Makes patches.

        Args:
            latent: (batch, inputs), standard normal.
            label: (batch,) int64, conditions.

        Returns:
            (batch, 1, image_size, image_size) float32 in [-1, 1].
        """
        if self.camera is None:
            return self._clean(latent, label)
        latent, noise = latent.split(self.pixels, dim=1)
        clean = self._clean(latent, label)
        seen: Tensor = self.camera(clean, noise.view(clean.shape))
        return seen

    @torch.no_grad()
    def measure(self, draw: torch.Generator, mode: Tensor) -> None:
        """Finds what the network's patches lack of the camera's noise."""
        if self.camera is None or self.strengths is None:
            return
        mode = mode[:_MEASURED]
        latent = torch.randn((len(mode), self.pixels), generator=draw).to(mode.device)
        self.camera.take(missing(self.strengths, to_uint8(self._clean(latent, mode))))

    def _clean(self, latent: Tensor, label: Tensor) -> Tensor:
        extra = -len(latent) % CHUNK
        latent = F.pad(latent, (0, 0, 0, extra))
        label = F.pad(label, (0, extra))
        size = (-1, 1, self.image_size, self.image_size)
        made = [
            follow(self._towards(y), z.view(size), self.steps, self.shift)
            for z, y in zip(latent.split(CHUNK), label.split(CHUNK), strict=True)
        ]
        whole = torch.cat(made) if made else latent.view(size)
        return whole[: len(whole) - extra].clamp(-1, 1)

    def _towards(self, label: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The guided velocity (Ho and Salimans 2022, arXiv:2207.12598)."""
        null, (least, most) = torch.full_like(label, self.network.null), self.interval

        def velocity(pixels: Tensor, time: Tensor) -> Tensor:
            given: Tensor = self.network(pixels, time, label)
            if self.guidance == 1 or not least <= float(time[0]) <= most:
                return given
            plain: Tensor = self.network(pixels, time, null)
            return plain + self.guidance * (given - plain)

        return velocity


def build_flow(
    gan: Mapping[str, Any],
    class_of: Sequence[int],
    image_size: int,
    camera: Sequence[float] | None = None,
) -> FlowGenerator:
    """The generator for the settings, a `GANConfig` as a mapping; `class_of` and `image_size` as for `UNet`.

    `camera` is as for `FlowGenerator`.
    """
    channels = gan["channels"] or SIZES[gan["size"]]
    network = UNet(class_of, image_size, channels=channels, embedding=gan["embedding"])
    return FlowGenerator(
        network,
        image_size,
        steps=gan["steps"],
        shift=gan["time_shift"],
        guidance=gan["guidance"],
        interval=(gan["guidance_from"], gan["guidance_to"]),
        camera=camera,
    )
