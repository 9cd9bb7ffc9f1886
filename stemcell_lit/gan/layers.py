"""Layers and blocks of the networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemcell_lit.errors import UserError
from stemcell_lit.gan.kernels import add_noise, downsample_conv, modulated_norm, upsample_conv

_SLOPE = 0.2  # of leaky ReLU, the value of DCGAN and of R3GAN


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

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) -> (batch, out, 2h, 2w)."""
        return upsample_conv(x, self.weight, self.bias)


class _Spectral:
    """Mixin that divides a weight by its largest singular value, one power iteration a pass.

    Own code rather than torch's parametrisation, because that runs the iteration in bfloat16 under
    autocast.
    """

    weight: Any
    left: Tensor
    training: bool

    def _start(self, layer: nn.Module) -> None:
        layer.register_buffer("left", F.normalize(torch.randn(self.weight.shape[0]), dim=0))

    def normal_weight(self) -> Tensor:
        """The weight with spectral norm 1, float32."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1).float()
            with torch.no_grad():
                right = F.normalize(matrix.t() @ self.left, dim=0, eps=1e-12)
                left = F.normalize(matrix @ right, dim=0, eps=1e-12)
                if self.training:
                    self.left.copy_(left)
            weight: Tensor = self.weight / (left @ (matrix @ right))
            return weight


class SpectralConv2d(nn.Conv2d, _Spectral):
    """`nn.Conv2d` with spectral norm."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) -> (batch, out, h', w')."""
        made: Tensor = self._conv_forward(x, self.normal_weight(), self.bias)
        return made


class DownsampleConv(nn.Conv2d):
    """A 4x4 convolution that halves the size, see `downsample_conv`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return downsample_conv(input, weight, bias)


class SpectralDownsampleConv(SpectralConv2d):
    """`DownsampleConv` with spectral norm."""

    _conv_forward = DownsampleConv._conv_forward


class SpectralLinear(nn.Linear, _Spectral):
    """`nn.Linear` with spectral norm."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in) -> (batch, out)."""
        return F.linear(x, self.normal_weight(), self.bias)


class SpectralEmbedding(nn.Embedding, _Spectral):
    """`nn.Embedding` with spectral norm."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch,) int64 -> (batch, width)."""
        return F.embedding(x, self.normal_weight())


class _Modulation(nn.Module):
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


class _NormBlock(nn.Module):
    """Conditional batch norm, ReLU, doubling of the size, noise."""

    def __init__(self, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs, affine=False)
        self.modulate = _Modulation(condition, inputs)
        self.up = UpsampleConv(inputs, outputs, bias=False)  # the next batch norm removes a bias
        self.noise = _Noise(outputs)

    def forward(self, x: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        x = modulated_norm(x, self.norm, *self.modulate(condition, x.dtype))
        made: Tensor = self.noise(self.up(x), noise)
        return made


class _ResidualBlock(nn.Module):
    """Doubling of the size, noise, then a residual branch that the condition modulates; no norm."""

    def __init__(self, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.up = UpsampleConv(inputs, outputs)
        self.noise = _Noise(outputs)
        self.modulate = _Modulation(condition, outputs)
        self.branch = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        x = self.noise(self.up(x), noise)
        scale, shift = self.modulate(condition, x.dtype)
        made: Tensor = x + self.branch(F.leaky_relu(torch.addcmul(x + shift, x, scale), _SLOPE))
        return made


def _pixels(x: Tensor, to_pixels: nn.Module) -> Tensor:
    return torch.tanh(to_pixels(x).float()).contiguous()


class _CriticBlock(nn.Module):
    """Halving of the size; in the residual family a branch follows."""

    def __init__(self, inputs: int, outputs: int, norm: str, spectral: bool):
        super().__init__()
        conv = SpectralConv2d if spectral else nn.Conv2d
        down = SpectralDownsampleConv if spectral else DownsampleConv
        self.down = down(inputs, outputs, 4, stride=2, padding=1)
        self.branch = conv(outputs, outputs, 3, padding=1) if norm == "none" else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        if self.branch is None:
            return F.leaky_relu(x, _SLOPE)
        made: Tensor = x + self.branch(F.leaky_relu(x, _SLOPE))
        return made


class _StridedBlock(nn.Module):
    """Halving of the size after DCGAN: a strided convolution, batch norm where asked, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: bool, spectral: bool):
        super().__init__()
        conv = SpectralConv2d if spectral else nn.Conv2d
        self.down = conv(inputs, outputs, 4, stride=2, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return F.leaky_relu(x if self.norm is None else self.norm(x), _SLOPE)


def _initialise(network: nn.Module, norm: str) -> None:
    """Starting weights: orthogonal under a norm; else He, residual branches at zero (Fixup).

    `dcgan`: normal with the standard deviation 0.02, as its authors have it. The modulation starts
    small, so that every image is at first shaped by the start layer alone.
    """
    for layer in network.modules():
        if norm == "dcgan" and isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if norm == "dcgan":
                nn.init.normal_(layer.weight, std=0.02)
            elif norm == "batch":
                nn.init.orthogonal_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in network.modules():
        if isinstance(layer, _Modulation):
            nn.init.normal_(layer.affine.weight, std=0.05)
        branch = getattr(layer, "branch", None)
        if isinstance(branch, nn.Conv2d) and not isinstance(branch, _Spectral):
            nn.init.zeros_(branch.weight)  # a spectral norm of zero cannot be divided by
