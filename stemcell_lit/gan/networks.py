"""Generator and critic: class-conditional, at any size of 8, 16, 32, 64 ... pixels.

`network="modulated"`, ours, in two forms. `norm="batch"`: a generator with conditional batch norm
(de Vries et al. 2017, arXiv:1707.00683; used for GANs by Miyato and Koyama 2018) against a critic
without norms, or with spectral norm (Miyato et al. 2018, arXiv:1802.05957). `norm="none"`: residual
networks without any normalisation, after R3GAN (Huang et al. 2024, arXiv:2501.05441), which need
the penalties R1 and R2. `network="dcgan"`, the references: transposed and strided convolutions
after DCGAN (Radford et al. 2015, arXiv:1511.06434).

The class reaches the critic by projection (Miyato and Koyama 2018, arXiv:1802.05637), by an
auxiliary classifier (AC-GAN, Odena et al. 2016, arXiv:1610.09585), or not at all: then every class
has a pair of its own. `build_pair` makes any of them from the settings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemcell_lit.errors import UserError
from stemcell_lit.gan.kernels import modulated_norm
from stemcell_lit.gan.layers import (
    _SLOPE,
    SpectralEmbedding,
    SpectralLinear,
    UpsampleConv,
    _CriticBlock,
    _initialise,
    _Modulation,
    _NormBlock,
    _pixels,
    _ResidualBlock,
    _StridedBlock,
    levels,
    widths,
)
from stemcell_lit.gan.references import DCGenerator, PerClass

NETWORKS = ("modulated", "dcgan")


CONDITIONS = ("projection", "auxiliary", "separate")


NORMS = ("batch", "none")


# Channels of the generator from 4x4 up and of the critic from full size down, for 32 px; `widths`
# fits them to other sizes. Chosen by multiplications of both, forward, per patch, see docs/generators.md.
SIZES: dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "tiny": {
        "batch": ((96, 64, 48, 32), (32, 64, 96, 128)),
        "none": ((96, 64, 48, 32), (32, 64, 96, 128)),
        "dcgan": ((128, 96, 80), (32, 64, 128)),
    },
    "small": {
        "batch": ((256, 208, 160, 120), (80, 160, 208, 256)),
        "none": ((176, 144, 112, 80), (56, 104, 144, 176)),
        "dcgan": ((416, 320, 256), (80, 160, 320)),
    },
    "base": {
        "batch": ((768, 640, 512, 384), (256, 512, 640, 768)),
        "none": ((512, 448, 352, 256), (176, 352, 448, 512)),
        "dcgan": ((1280, 1024, 768), (256, 512, 1024)),
    },
}


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
        shared_levels: so many of the coarsest resolutions do not see the class, so that rare
            classes learn them from all (UTLO, Khorram et al. 2024, arXiv:2402.17065); they also
            make an image of their own, see `forward`. 0: none.
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
        shared_levels: int = 0,
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
        self.shared_levels = shared_levels
        if shared_levels:
            coarse = width[shared_levels - 1]
            self.coarse_norm = nn.BatchNorm2d(coarse) if norm == "batch" else nn.Identity()
            self.coarse_pixels = nn.Conv2d(coarse, 1, 3, padding=1)
        _initialise(self, norm)

    def forward(
        self, latent: Tensor, label: Tensor, coarse: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draws images.

        Args:
            latent: (batch, inputs), standard normal.
            label: (batch,) int64.
            coarse: also return the image of the shared levels, which no class has entered.

        Returns:
            (batch, 1, image_size, image_size) float32 in [-1, 1]; with `coarse` a pair of it and
            (batch, 1, s, s), s = 2^(shared_levels + 1).
        """
        latent, pixels = latent.split([self.latent, self.image_size**2], dim=1)
        noise = [pixels.view(-1, 1, self.image_size, self.image_size)]
        for _ in self.blocks[1:]:  # the mean of four has half their standard deviation
            noise.append(F.avg_pool2d(noise[-1], 2) * 2)
        embedded = self.embedding(label)
        conditioned = torch.cat([latent, embedded], dim=1)
        free = (
            torch.cat([latent, torch.zeros_like(embedded)], dim=1) if self.shared_levels else None
        )
        small = None
        condition = conditioned if free is None else free
        # rows of (4, 4, channels) seen as an image are in channels-last order, which the
        # convolutions keep: it is faster
        x = self.start(condition).unflatten(1, (4, 4, self.width)).permute(0, 3, 1, 2)
        for level, block in enumerate(self.blocks, start=1):
            if free is not None and level == self.shared_levels:
                condition = conditioned
                if coarse:
                    slope = 0.0 if self.norm == "batch" else _SLOPE
                    small = _pixels(F.leaky_relu(self.coarse_norm(x), slope), self.coarse_pixels)
            x = block(x, condition, noise.pop())
        scale, shift = self.last_modulate(condition, x.dtype)
        if isinstance(self.last_norm, nn.BatchNorm2d):
            x = modulated_norm(x, self.last_norm, scale, shift)
        else:
            x = F.leaky_relu(torch.addcmul(x + shift, x, scale), _SLOPE)
        image = _pixels(x, self.to_pixels)
        return image if small is None else (image, small)


class Critic(nn.Module):
    """How real an image looks, and how well it fits its class.

    Attributes:
        normalised: it has batch norm, so real and generated images must come in batches of their
            own.

    Args:
        classes: number of classes.
        image_size: px, a power of two of at least 8.
        channels: from full size down; for other sizes the coarse end is kept and the fine end
            fitted, see `widths`.
        norm: modulated: `batch` (plain blocks) or `none` (residual blocks), both without batch
            norm; dcgan: whether it has batch norm.
        spectral: spectral norm on every weight.
        network: out of `NETWORKS`. `modulated` sums its 2x2 features over the image, `dcgan` has a
            weight for each of its 4x4.
        head: how the class enters: `projection` (its embedding times the features is a part of the
            score), `auxiliary` (the score ignores it, a classifier stands beside) or `none`.
    """

    def __init__(
        self,
        classes: int,
        image_size: int,
        *,
        channels: Sequence[int] = (32, 64, 96, 128),
        norm: str = "batch",
        spectral: bool = True,
        network: str = "modulated",
        head: str = "projection",
    ):
        super().__init__()
        self.flat = network == "dcgan"
        self.normalised = self.flat and norm == "batch"
        count = levels(image_size) - self.flat
        width = [1, *reversed(widths(list(reversed(channels)), count))]
        pairs = itertools.pairwise(width)
        self.blocks = nn.ModuleList(
            _StridedBlock(a, b, self.normalised and a > 1, spectral)
            if self.flat
            else _CriticBlock(a, b, norm, spectral)
            for a, b in pairs
        )
        features = width[-1] * (16 if self.flat else 1)
        linear = SpectralLinear if spectral else nn.Linear
        self.score = linear(features, 1)
        self.embedding: nn.Module | None = None
        self.classify: nn.Module | None = None
        if head == "projection":
            self.embedding = (SpectralEmbedding if spectral else nn.Embedding)(classes, features)
        elif head == "auxiliary":
            self.classify = linear(features, classes)
        _initialise(self, "dcgan" if self.normalised else "batch" if spectral else "none")
        if self.embedding is not None:  # scores start near 1
            nn.init.normal_(self.embedding.weight, std=features**-0.5)

    def forward(
        self, pixels: Tensor, label: Tensor, classify: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores images.

        Args:
            pixels: (batch, 1, image_size, image_size) in [-1, 1].
            label: (batch,) int64.
            classify: also return the auxiliary classifier's logits.

        Returns:
            (batch,) float32 logits, high for real, with `classify` a pair of them and (batch,
            classes); the heads run in float32 whatever the precision of the rest.
        """
        x = pixels
        for block in self.blocks:
            x = block(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            features = x.flatten(1) if self.flat else F.leaky_relu(x, _SLOPE).sum(dim=(2, 3))
            score: Tensor = self.score(features).squeeze(1)
            if self.embedding is not None:
                score = score + (self.embedding(label) * features).sum(dim=1)
            if classify and self.classify is not None:
                return score, self.classify(features)
            return score


def build_pair(
    gan: Mapping[str, Any], classes: int, image_size: int
) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    """The networks that the settings ask for.

    Args:
        gan: a `GANConfig` as a mapping.
        classes: number of classes.
        image_size: px.

    Returns:
        Generator, critic, and the critic of the shared levels' images where there are such levels.

    Raises:
        UserError: settings that do not fit together.
    """
    modulated, norm = gan["network"] == "modulated", gan["norm"]
    sized = SIZES[gan["size"]][norm if modulated else "dcgan"]
    channels, critic_channels = gan["channels"] or sized[0], gan["critic_channels"] or sized[1]
    separate, shared = gan["condition"] == "separate", gan["shared_levels"]
    most = levels(image_size) - 1
    if shared and (not modulated or separate or not 2 <= shared <= most):
        raise UserError(
            f"gan.shared_levels={shared} at {image_size} px: expected 0, or 2 to {most} with "
            "gan.network=modulated and gan.condition other than separate"
        )

    def generator() -> nn.Module:
        common: dict[str, Any] = {
            "latent": gan["latent"],
            "channels": channels,
            "embedding": gan["embedding"],
        }
        if modulated:
            known = 1 if separate else classes
            return Generator(known, image_size, norm=norm, shared_levels=shared, **common)
        return DCGenerator(0 if separate else classes, image_size, **common)

    def critic(size: int, head: str) -> Critic:
        return Critic(
            classes,
            size,
            channels=critic_channels,
            norm=norm,
            spectral=gan["spectral"],
            network=gan["network"],
            head=head,
        )

    if separate:
        generators = [generator() for _ in range(classes)]
        return (
            PerClass(generators),
            PerClass([critic(image_size, "none") for _ in generators]),
            None,
        )
    pair = generator(), critic(image_size, gan["condition"])
    return *pair, critic(2 ** (shared + 1), "none") if shared else None


def count_macs(network: nn.Module, *inputs: Tensor) -> int:
    """Multiplications of the convolutions and linear layers in one forward pass, per image.

    Args:
        network: a generator or a critic; of a `PerClass` the labels given choose what is counted.
        *inputs: its inputs, a batch of any size.
    """
    total = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        nonlocal total
        if isinstance(layer, UpsampleConv):  # 4 taps of its 4x4 kernel fall on each pixel made
            total += made[0].numel() * 4 * layer.in_channels
        elif isinstance(layer, nn.ConvTranspose2d):
            total += given[0][0].numel() * layer.weight[0].numel()
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
