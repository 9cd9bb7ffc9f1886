"""Layers and blocks of the networks: doubling and halving of the size, modulation by the condition, noise."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemcell_lit.errors import UserError
from stemcell_lit.gan.kernels import add_noise, downsample_conv, modulated_norm, upsample_conv

SLOPE = 0.2  # of leaky ReLU, the value of DCGAN

CHUNK = 32  # patches that a network makes at once where bits count, whatever number is asked for


def levels(image_size: int) -> int:
    """Number of resolutions from 4x4 to full size: 4 for 32 px, 5 for 64 px.

    Raises:
        UserError: not a power of two of at least 8.
    """
    if image_size < 8 or image_size & (image_size - 1):
        raise UserError(
            f"patches of {image_size} px: the generator doubles its size from 4 px, so it makes "
            "8, 16, 32, 64 ... px; "
            "set data.patch_size to one of these"
        )
    return int(math.log2(image_size)) - 1


def widths(channels: Sequence[int], count: int) -> list[int]:
    """Fits a list of channels, coarsest first, to `count` resolutions.

    A missing finer resolution gets half the channels of the one before it (at least 8), which keeps
    the cost of doubling the size near a factor of two; surplus finer ones are dropped.
    """
    fitted = [int(c) for c in channels[:count]]
    while len(fitted) < count:
        fitted.append(max(8, fitted[-1] // 2))
    return fitted


class UpsampleConv(nn.Conv2d):
    """A 3x3 convolution behind nearest upsampling by two, see `upsample_conv`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return upsample_conv(input, weight, bias)


class DownsampleConv(nn.Conv2d):
    """A 4x4 convolution that halves the size, see `downsample_conv`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return downsample_conv(input, weight, bias)


class Measured(nn.Module):
    """A network that keeps numbers that follow from its weights, measured anew before patches are drawn from others."""

    @abstractmethod
    def measure(self, draw: torch.Generator, mode: Tensor) -> None:
        """Measures them.

        Args:
            draw: of the latents, on the CPU.
            mode: (n,) int64, conditions as they occur, on the device of the network.
        """


class Modulation(nn.Module):
    """Scale and shift of every channel by the condition: x * (1 + a(c)) + b(c)."""

    def __init__(self, condition: int, channels: int):
        super().__init__()
        self.affine = nn.Linear(condition, 2 * channels)

    def forward(self, condition: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(batch, condition) -> a and b, both (batch, channels, 1, 1)."""
        scale, shift = self.affine(condition).to(dtype)[:, :, None, None].chunk(2, dim=1)
        return scale, shift


class _Noise(nn.Module):
    """Adds noise, one strength a channel: texture and camera noise need no latent of their own."""

    def __init__(self, channels: int):
        super().__init__()
        self.strength = nn.Parameter(torch.full((1, channels, 1, 1), 0.1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return add_noise(x, self.strength.to(x.dtype), noise.to(x.dtype))


class NormBlock(nn.Module):
    """Conditional batch norm, ReLU, doubling of the size, noise."""

    def __init__(self, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs, affine=False)
        self.modulate = Modulation(condition, inputs)
        # the next batch norm removes a bias
        self.up = UpsampleConv(inputs, outputs, 3, padding=1, bias=False)
        self.noise = _Noise(outputs)

    def forward(self, x: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        """(n, inputs, h, w), (n, embedding) and (n, 1, 2h, 2w) to (n, outputs, 2h, 2w)."""
        x = modulated_norm(x, self.norm, *self.modulate(condition, x.dtype))
        made: Tensor = self.noise(self.up(x), noise)
        return made


class CriticBlock(nn.Module):
    """Halving of the size, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.down = DownsampleConv(inputs, outputs, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / 2, w / 2)."""
        return F.leaky_relu(self.down(x), SLOPE)


class StridedBlock(nn.Module):
    """Halving of the size after DCGAN: a strided convolution, batch norm where asked, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: bool):
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / 2, w / 2)."""
        x = self.down(x)
        return F.leaky_relu(x if self.norm is None else self.norm(x), SLOPE)


def _initialise(network: nn.Module, how: str) -> None:
    """Starting weights: `orthogonal`, `he`, or `dcgan`: normal with standard deviation 0.02, as its authors have it.

    The modulation starts small, so that every image is at first shaped by the start layer alone.
    """
    for layer in network.modules():
        if how == "dcgan" and isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if how == "dcgan":
                nn.init.normal_(layer.weight, std=0.02)
            elif how == "orthogonal":
                nn.init.orthogonal_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, a=SLOPE)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in network.modules():
        if isinstance(layer, Modulation):
            nn.init.normal_(layer.affine.weight, std=0.05)
