"""Generator and critic: class-conditional, at any size of 8, 16, 32, 64 ... pixels.

`network="modulated"`, ours: a generator with conditional batch norm (de Vries et al. 2017,
arXiv:1707.00683; used for GANs by Miyato and Koyama 2018) against a critic without norms.
`network="style"`: a style-based generator (`gan/style_network`) against the same critic.
`network="dcgan"`, the references: transposed and strided convolutions after DCGAN (Radford et al.
2015, arXiv:1511.06434).

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

from stemcell_lit.gan.kernels import modulated_norm
from stemcell_lit.gan.layers import (
    SLOPE,
    CriticBlock,
    Modulation,
    NormBlock,
    StridedBlock,
    _initialise,
    levels,
    widths,
)
from stemcell_lit.gan.references import DCGenerator, PerClass
from stemcell_lit.gan.style_network import StyleGenerator

# Channels of the generator from 4x4 up and of the critic from full size down, for 32 px; `widths`
# fits them to other sizes. Chosen by multiplications of both, forward, per patch, see docs/generators.md.
SIZES: dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "tiny": {
        "modulated": ((96, 64, 48, 32), (32, 64, 96, 128)),
        "style": ((80, 56, 32, 16), (32, 64, 96, 128)),
        "dcgan": ((128, 96, 80), (32, 64, 128)),
    },
    "small": {
        "modulated": ((256, 208, 160, 120), (80, 160, 208, 256)),
        "style": ((256, 192, 104, 60), (80, 160, 208, 256)),
        "dcgan": ((416, 320, 256), (80, 160, 320)),
    },
    "base": {
        "modulated": ((768, 640, 512, 384), (256, 512, 640, 768)),
        "style": ((768, 576, 336, 200), (256, 512, 640, 768)),
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
    """

    def __init__(
        self,
        classes: int,
        image_size: int,
        *,
        latent: int = 64,
        channels: Sequence[int] = (96, 64, 48, 32),
        embedding: int = 32,
    ):
        super().__init__()
        count = levels(image_size)
        width = widths(channels, count)
        self.latent, self.image_size, self.width = latent, image_size, width[0]
        self.inputs = latent + image_size**2
        condition = latent + embedding
        self.embedding = nn.Embedding(classes, embedding)
        self.start = nn.Linear(condition, 16 * width[0])
        pairs = itertools.pairwise(width)
        self.blocks = nn.ModuleList(NormBlock(a, b, condition) for a, b in pairs)
        self.last_norm = nn.BatchNorm2d(width[-1], affine=False)
        self.last_modulate = Modulation(condition, width[-1])
        self.to_pixels = nn.Conv2d(width[-1], 1, 3, padding=1)
        _initialise(self, "orthogonal")

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
        x = modulated_norm(x, self.last_norm, *self.last_modulate(condition, x.dtype))
        return torch.tanh(self.to_pixels(x).float()).contiguous()


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
        network: `modulated`, `style`, which is the same here, or `dcgan`. `modulated` sums its 2x2 features over the
            image and has no batch norm, `dcgan` has a weight for each of its 4x4.
        norm: whether a critic of `dcgan` has batch norm.
        head: how the class enters: `projection` (its embedding times the features is a part of the
            score), `auxiliary` (the score ignores it, a classifier stands beside) or `none`.
    """

    def __init__(
        self,
        classes: int,
        image_size: int,
        *,
        channels: Sequence[int] = (32, 64, 96, 128),
        network: str = "modulated",
        norm: bool = True,
        head: str = "projection",
    ):
        super().__init__()
        self.flat = network == "dcgan"
        self.normalised = self.flat and norm
        count = levels(image_size) - self.flat
        width = [1, *reversed(widths(list(reversed(channels)), count))]
        pairs = itertools.pairwise(width)
        self.blocks = nn.ModuleList(
            StridedBlock(a, b, self.normalised and a > 1) if self.flat else CriticBlock(a, b)
            for a, b in pairs
        )
        features = width[-1] * (16 if self.flat else 1)
        self.score = nn.Linear(features, 1)
        self.embedding: nn.Module | None = None
        self.classify: nn.Module | None = None
        if head == "projection":
            self.embedding = nn.Embedding(classes, features)
        elif head == "auxiliary":
            self.classify = nn.Linear(features, classes)
        _initialise(self, "dcgan" if self.normalised else "he")
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
            features = x.flatten(1) if self.flat else F.leaky_relu(x, SLOPE).sum(dim=(2, 3))
            score: Tensor = self.score(features).squeeze(1)
            if self.embedding is not None:
                score = score + (self.embedding(label) * features).sum(dim=1)
            if classify and self.classify is not None:
                return score, self.classify(features)
            return score


def build_pair(
    gan: Mapping[str, Any], classes: int, image_size: int
) -> tuple[nn.Module, nn.Module]:
    """Generator and critic for the settings, a `GANConfig` as a mapping, a number of classes and a size in px.

    WGAN-GP's penalty is of each patch alone, so a critic under it has no batch norm, as published.
    """
    network, separate = gan["network"], gan["condition"] == "separate"
    sized = SIZES[gan["size"]][network]
    common: dict[str, Any] = {
        "latent": gan["latent"],
        "channels": gan["channels"] or sized[0],
        "embedding": gan["embedding"],
    }

    def generator() -> nn.Module:
        if network == "modulated":
            return Generator(1 if separate else classes, image_size, **common)
        if network == "style":
            kept = gan["truncation"]
            return StyleGenerator(1 if separate else classes, image_size, truncation=kept, **common)
        return DCGenerator(0 if separate else classes, image_size, **common)

    def critic(head: str) -> Critic:
        channels = gan["critic_channels"] or sized[1]
        norm = not gan["gp"]
        return Critic(classes, image_size, channels=channels, network=network, norm=norm, head=head)

    if separate:
        generators = [generator() for _ in range(classes)]
        return PerClass(generators), PerClass([critic("none") for _ in generators])
    return generator(), critic(gan["condition"])
