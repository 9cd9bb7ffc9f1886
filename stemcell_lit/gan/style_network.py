"""A style-based generator: what makes a patch enters as scales of the channels of every convolution.

After StyleGAN (Karras et al. 2019, arXiv:1812.04948) and its second version (Karras et al. 2020, arXiv:1912.04958): a
mapping network turns latent and condition into a style; each convolution's weights are scaled by it and normed again
(demodulation), so that no norm looks at the batch; each layer has noise of its own; every resolution adds to the
image; towards its mean a style may be truncated when patches are drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemcell_lit.gan.kernels import upsample_conv
from stemcell_lit.gan.layers import SLOPE, Measured, _initialise, _Noise, levels, widths

_MEASURED = 1024  # latents that the mean style of a condition is taken over
_GAIN = 2**0.5  # of a leaky ReLU, which loses half of the variance


def modulated_conv(
    x: Tensor, weight: Tensor, scale: Tensor, *, up: bool = False, gain: float = 1.0
) -> Tensor:
    """A 3x3 convolution whose weights are scaled by each image's style and then normed.

    The weights of an image are w' = s_i w_oik / sqrt(sum_ik (s_i w_oik)^2 + 1e-8), i the channel in, o the channel
    out, k the place in the kernel (arXiv:1912.04958, equations 1 and 3): inputs of variance 1 give outputs of variance
    1. As s scales the inputs and the root the outputs, all images share one convolution.

    Args:
        x: (batch, inputs, height, width).
        weight: (outputs, inputs, 3, 3).
        scale: (batch, inputs), s, of the type of `weight`.
        up: double the size by nearest neighbours before the convolution.
        gain: the outputs are multiplied by it.

    Returns:
        (batch, outputs, height, width), with `up` twice as high and wide.
    """
    scaled = x * scale.to(x.dtype)[:, :, None, None]
    made = upsample_conv(scaled, weight) if up else F.conv2d(scaled, weight, padding=1)
    with torch.autocast(x.device.type, enabled=False):  # squares lose too much in bfloat16
        energy = scale.square() @ weight.square().sum((2, 3)).T
        factor = gain * (energy + 1e-8).rsqrt()
    return made * factor.to(made.dtype)[:, :, None, None]


class Mapping(Measured):
    """Latent and condition to a style; both are normed to mean square 1 first.

    Args:
        conditions: number of conditions.
        latent: width of the latent, and of the style.
        embedding: width of the condition's embedding.
    """

    mean: Tensor  # (conditions, latent), the mean style of each, once measured

    def __init__(self, conditions: int, latent: int, embedding: int):
        super().__init__()
        self.embedding = nn.Embedding(conditions, embedding)
        self.layers = nn.Sequential(
            nn.Linear(latent + embedding, latent),
            nn.LeakyReLU(SLOPE),
            nn.Linear(latent, latent),
            nn.LeakyReLU(SLOPE),
        )
        self.register_buffer("mean", torch.zeros(conditions, latent))

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """(batch, latent) standard normal and (batch,) int64 -> (batch, latent)."""
        given = torch.cat([_unit(latent), _unit(self.embedding(label))], dim=1)
        style: Tensor = self.layers(given)
        return style

    @torch.no_grad()
    def measure(self, draw: torch.Generator, mode: Tensor) -> None:
        """Takes the mean style of each condition, over the same latents."""
        latent = torch.randn((_MEASURED, self.mean.shape[1]), generator=draw).to(self.mean.device)
        for condition in range(len(self.mean)):
            label = torch.full((_MEASURED,), condition, device=self.mean.device)
            self.mean[condition] = self(latent, label).mean(0)


def _unit(x: Tensor) -> Tensor:
    """Rows of mean square 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class _Styled(nn.Module):
    """What scales the channels of an image: 1 + a(style)."""

    def __init__(self, style: int, channels: int):
        super().__init__()
        self.affine = nn.Linear(style, channels)

    def forward(self, style: Tensor) -> Tensor:
        """(batch, style) -> (batch, channels)."""
        scale: Tensor = 1 + self.affine(style).float()
        return scale


class StyleLayer(nn.Module):
    """A modulated convolution, noise, leaky ReLU; `up` doubles the size."""

    def __init__(self, inputs: int, outputs: int, style: int, *, up: bool):
        super().__init__()
        self.up = up
        self.scale = _Styled(style, inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) * (9 * inputs) ** -0.5)
        self.noise = _Noise(outputs)
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """(n, inputs, h, w), (n, style) and noise (n, 1, h', w') to (n, outputs, h', w')."""
        x = modulated_conv(x, self.weight, self.scale(style), up=self.up, gain=_GAIN)
        x = self.noise(x, noise)
        return F.leaky_relu_(x + self.bias.to(x.dtype), SLOPE)


class _ToPixels(nn.Module):
    """A resolution's part of the image: a modulated 1x1 convolution, which keeps how strong its inputs are."""

    def __init__(self, inputs: int, style: int):
        super().__init__()
        self.scale = _Styled(style, inputs)
        self.weight = nn.Parameter(torch.randn(inputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(n, inputs, h, w) and (n, style) to (n, 1, h, w) float32."""
        each = (self.scale(style) * self.weight).to(x.dtype)
        pixels = torch.einsum("nchw,nc->nhw", x, each).float()
        return (pixels + self.bias)[:, None]


class StyleGenerator(nn.Module):
    """Latent, noise and condition to an image, see the module.

    Two layers a resolution, one at 4x4, which begins with a learned constant. Left out of what is published: weights
    scaled while running (equalised rates), a slower mapping network of eight layers, mixed styles and the penalty on
    path lengths, all made for a thousand times these budgets; upsampling is by nearest neighbours instead of a
    smoothing kernel.

    Attributes:
        inputs: numbers that make an image beside its condition: the latent, then the noise of each layer, coarsest
            first.

    Args:
        conditions: number of classes, or of modes.
        image_size: px, a power of two of at least 8.
        latent: width of the latent proper, and of the style.
        channels: from 4x4 up, see `widths`.
        embedding: width of the condition's embedding.
        truncation: where patches are drawn (in evaluation mode), how much of a style's distance from its condition's
            mean is kept; 1: all, 0: every patch has the mean style.
    """

    def __init__(
        self,
        conditions: int,
        image_size: int,
        *,
        latent: int = 64,
        channels: Sequence[int] = (80, 64, 40, 20),
        embedding: int = 32,
        truncation: float = 1.0,
    ):
        super().__init__()
        count = levels(image_size)
        width = widths(channels, count)
        self.latent, self.truncation = latent, truncation
        self.mapping = Mapping(conditions, latent, embedding)
        self.start = nn.Parameter(torch.randn(4, 4, width[0]))
        layers, self.sides = [StyleLayer(width[0], width[0], latent, up=False)], [4]
        for i, (a, b) in enumerate(itertools.pairwise(width)):
            layers += [StyleLayer(a, b, latent, up=True), StyleLayer(b, b, latent, up=False)]
            self.sides += [8 << i, 8 << i]
        self.layers = nn.ModuleList(layers)
        self.to_pixels = nn.ModuleList(_ToPixels(w, latent) for w in width)
        self.inputs = latent + sum(side**2 for side in self.sides)
        _initialise(self, "he")
        for layer in self.modules():
            if isinstance(layer, _Styled):  # scales of a standard deviation near a half
                nn.init.normal_(layer.affine.weight, std=0.5 * latent**-0.5)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Draws images.

        Args:
            latent: (batch, inputs), standard normal.
            label: (batch,) int64, conditions.

        Returns:
            (batch, 1, image_size, image_size) float32 in [-1, 1].
        """
        latent, *noise = latent.split([self.latent, *(side**2 for side in self.sides)], dim=1)
        style = self.mapping(latent, label)
        if self.truncation != 1 and not self.training:
            style = torch.lerp(self.mapping.mean[label], style, self.truncation)
        # rows of (4, 4, channels) seen as an image are in channels-last order, which convolutions keep: it is faster
        x = self.start.expand(len(latent), -1, -1, -1).permute(0, 3, 1, 2)
        image: Tensor | None = None
        for i, (layer, pixels) in enumerate(zip(self.layers, noise, strict=True)):
            side = self.sides[i]
            x = layer(x, style, pixels.view(-1, 1, side, side))
            if i % 2 == 0:  # the last layer of its resolution
                part = self.to_pixels[i // 2](x, style)
                image = part if image is None else part + _doubled(image)
        assert image is not None
        return torch.tanh(image).contiguous()


def _doubled(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
