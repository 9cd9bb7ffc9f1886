"""Generator and critic: class-conditional, small, at any size of 8, 16, 32, 64 ... pixels.

Two families share one configuration. `norm="batch"`: a generator with conditional batch norm (de
Vries et al. 2017, arXiv:1707.00683; used for GANs by Miyato and Koyama 2018) against a projection
critic (Miyato and Koyama 2018, arXiv:1802.05637) with spectral norm (Miyato et al. 2018,
arXiv:1802.05957). `norm="none"`: residual networks without any normalisation, after R3GAN (Huang et
al. 2024, arXiv:2501.05441), which need the penalties R1 and R2 instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemcell_lit.errors import UserError

NORMS = ("batch", "none")
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


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Nearest upsampling by two, then a 3x3 convolution with padding 1, in one step.

    Neighbouring pixels of the upsampled image are equal, so the two together are one transposed
    convolution whose 4x4
    kernel is the 3x3 kernel summed over a 2x2 window: the same numbers for 4/9 of the
        multiplications, and no upsampled
    copy in memory (on one CPU core 2 to 4 times as fast).

    Args:
        x: (batch, channels in, height, width).
        weight: (channels out, channels in, 3, 3).
        bias: (channels out,).

    Returns:
        (batch, channels out, 2 height, 2 width).
    """
    kernel = weight.flip(2, 3).transpose(0, 1)
    kernel = F.pad(kernel, (0, 1, 0, 0)) + F.pad(kernel, (1, 0, 0, 0))
    kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


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
            return self.weight / (left @ (matrix @ right))


class SpectralConv2d(nn.Conv2d, _Spectral):
    """`nn.Conv2d` with spectral norm."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) -> (batch, out, h', w')."""
        return self._conv_forward(x, self.normal_weight(), self.bias)


class SpectralLinear(nn.Linear, _Spectral):
    """`nn.Linear` with spectral norm."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in) -> (batch, out)."""
        return F.linear(x, self.normal_weight(), self.bias)


class SpectralEmbedding(nn.Embedding, _Spectral):
    """`nn.Embedding` with spectral norm."""

    def __init__(self, *args, **kwargs):
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

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.affine(condition).to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(x + shift, x, scale)


class _Noise(nn.Module):
    """Adds noise, one strength a channel: texture and camera noise need no latent of their own."""

    def __init__(self, channels: int):
        super().__init__()
        self.strength = nn.Parameter(torch.full((1, channels, 1, 1), 0.1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return torch.addcmul(x, self.strength.to(x.dtype), noise.to(x.dtype))


class _NormBlock(nn.Module):
    """Conditional batch norm, ReLU, doubling of the size, noise."""

    def __init__(self, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs, affine=False)
        self.modulate = _Modulation(condition, inputs)
        self.up = UpsampleConv(inputs, outputs, bias=False)  # the next batch norm removes a bias
        self.noise = _Noise(outputs)

    def forward(self, x: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        return self.noise(self.up(F.relu(self.modulate(self.norm(x), condition))), noise)


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
        return x + self.branch(F.leaky_relu(self.modulate(x, condition), _SLOPE))


class Generator(nn.Module):
    """Latent and class to an image; both enter at every resolution, and so does noise.

    The noise (after StyleGAN, Karras et al. 2019, arXiv:1812.04948) is one image at full size,
    averaged down for the coarser resolutions and scaled back to variance 1. It is a part of the
    input, so that an image depends on its input alone.

    Attributes:
        inputs: numbers that make an image beside its class: the latent, then a noise pixel for each
            pixel.

    Args:
        classes: number of classes.
        image_size: px, a power of two of at least 8.
        latent: width of the latent proper.
        channels: from 4x4 up, see `widths`.
        embedding: width of the class embedding.
        norm: `batch` or `none`.
    """

    def __init__(
        self,
        classes: int,
        image_size: int,
        *,
        latent: int = 64,
        channels: Sequence[int] = (96, 64, 48, 32),
        embedding: int = 32,
        norm: str = "batch",
    ):
        super().__init__()
        count = levels(image_size)
        width = widths(channels, count)
        self.latent, self.image_size, self.norm, self.width = latent, image_size, norm, width[0]
        self.inputs = latent + image_size**2
        condition = latent + embedding
        self.embedding = nn.Embedding(classes, embedding)
        self.start = nn.Linear(condition, 16 * width[0])
        block = {"batch": _NormBlock, "none": _ResidualBlock}[norm]
        pairs = itertools.pairwise(width)
        self.blocks = nn.ModuleList(block(a, b, condition) for a, b in pairs)
        self.last_norm = (
            nn.BatchNorm2d(width[-1], affine=False) if norm == "batch" else nn.Identity()
        )
        self.last_modulate = _Modulation(condition, width[-1])
        self.to_pixels = nn.Conv2d(width[-1], 1, 3, padding=1)
        _initialise(self, norm)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Draws images.

        Args:
            latent: (batch, inputs), standard normal.
            label: (batch,) int64.

        Returns:
            (batch, 1, image_size, image_size) float32 in [-1, 1].
        """
        latent, pixels = latent.split([self.latent, self.image_size**2], dim=1)
        noise = [pixels.view(-1, 1, self.image_size, self.image_size)]
        for _ in self.blocks[1:]:  # the mean of four has half their standard deviation
            noise.append(F.avg_pool2d(noise[-1], 2) * 2)
        condition = torch.cat([latent, self.embedding(label)], dim=1)
        # rows of (4, 4, channels) seen as an image are in channels-last order, which the
        # convolutions keep: it is faster
        x = self.start(condition).unflatten(1, (4, 4, self.width)).permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x, condition, noise.pop())
        x = self.last_modulate(self.last_norm(x), condition)
        x = F.relu(x) if self.norm == "batch" else F.leaky_relu(x, _SLOPE)
        return torch.tanh(self.to_pixels(x).float()).contiguous()


class _CriticBlock(nn.Module):
    """Halving of the size; in the residual family a branch follows."""

    def __init__(self, inputs: int, outputs: int, norm: str, spectral: bool):
        super().__init__()
        conv = SpectralConv2d if spectral else nn.Conv2d
        self.down = conv(inputs, outputs, 4, stride=2, padding=1)
        self.branch = conv(outputs, outputs, 3, padding=1) if norm == "none" else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x).contiguous(memory_format=torch.channels_last)
        if self.branch is None:
            return F.leaky_relu(x, _SLOPE)
        return x + self.branch(F.leaky_relu(x, _SLOPE))


class Critic(nn.Module):
    """Projection critic: how real an image looks, and how well it fits its class.

    Args:
        classes: number of classes.
        image_size: px, a power of two of at least 8.
        channels: from full size down; for other sizes the coarse end is kept and the fine end
            fitted, see `widths`.
        norm: `batch` (plain blocks) or `none` (residual blocks); the critic itself has no batch
            norm.
        spectral: spectral norm on every weight.
    """

    def __init__(
        self,
        classes: int,
        image_size: int,
        *,
        channels: Sequence[int] = (32, 64, 96, 128),
        norm: str = "batch",
        spectral: bool = True,
    ):
        super().__init__()
        width = [1, *reversed(widths(list(reversed(channels)), levels(image_size)))]
        pairs = itertools.pairwise(width)
        self.blocks = nn.ModuleList(_CriticBlock(a, b, norm, spectral) for a, b in pairs)
        self.score = (SpectralLinear if spectral else nn.Linear)(width[-1], 1)
        self.embedding = (SpectralEmbedding if spectral else nn.Embedding)(classes, width[-1])
        _initialise(self, "batch" if spectral else "none")
        nn.init.normal_(self.embedding.weight, std=width[-1] ** -0.5)  # scores start near 1

    def forward(self, pixels: Tensor, label: Tensor) -> Tensor:
        """Scores images.

        Args:
            pixels: (batch, 1, image_size, image_size) in [-1, 1].
            label: (batch,) int64.

        Returns:
            (batch,) float32 logits, high for real; the head runs in float32 whatever the precision
            of the rest.
        """
        x = pixels
        for block in self.blocks:
            x = block(x)
        with torch.autocast(x.device.type, enabled=False):
            features = F.leaky_relu(x.float(), _SLOPE).sum(dim=(2, 3))
            return self.score(features).squeeze(1) + (self.embedding(label) * features).sum(dim=1)


def _initialise(network: nn.Module, norm: str) -> None:
    """Starting weights: orthogonal under a norm; else He, residual branches at zero (Fixup).

    The modulation starts small, so that every image is at first shaped by the start layer alone.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if norm == "batch":
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


def count_macs(network: nn.Module, *inputs: Tensor) -> int:
    """Multiplications of the convolutions and linear layers in one forward pass, per image.

    Args:
        network: a `Generator` or `Critic`.
        *inputs: its inputs, a batch of any size.
    """
    total = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        nonlocal total
        if isinstance(layer, UpsampleConv):  # 4 taps of its 4x4 kernel fall on each pixel made
            total += made[0].numel() * 4 * layer.in_channels
        elif isinstance(layer, nn.Conv2d):
            total += made[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += layer.weight.numel()

    handles = [layer.register_forward_hook(count) for layer in network.modules()]
    training = network.training
    network.eval()  # counting must not move running statistics
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return total
