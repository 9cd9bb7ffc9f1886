"""Published networks to compare with: DCGAN, and a pair of networks per class."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stemcell_lit.gan.layers import _initialise, levels, widths


class DCGenerator(nn.Module):
    """The generator of DCGAN: transposed 4x4 convolutions, batch norm, ReLU, tanh.

    Args:
        classes: number of classes, whose embedding joins the latent; 0: it knows of no class.
        image_size: px, a power of two of at least 8.
        latent: width of the latent; also the attribute `inputs`.
        channels: from 4x4 up to half the size, see `widths`.
        embedding: width of the class embedding.
    """

    def __init__(
        self,
        classes: int,
        image_size: int,
        *,
        latent: int = 100,
        channels: Sequence[int] = (128, 96, 80),
        embedding: int = 32,
    ):
        super().__init__()
        width = widths(channels, levels(image_size) - 1)
        self.inputs, self.width = latent, width[0]
        self.embedding = nn.Embedding(classes, embedding) if classes else None
        # a transposed convolution of a 1x1 image
        self.start = nn.Linear(latent + (embedding if classes else 0), 16 * width[0], bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(width[0]), nn.ReLU()]
        for a, b in itertools.pairwise(width):
            layers.append(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(b), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(width[-1], 1, 4, stride=2, padding=1))
        self.blocks = nn.Sequential(*layers)
        _initialise(self, "dcgan")

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """(batch, inputs) standard normal and (batch,) int64 -> (batch, 1, size, size) in [-1, 1]."""
        if self.embedding is not None:
            latent = torch.cat([latent, self.embedding(label)], dim=1)
        x = self.start(latent).unflatten(1, (4, 4, self.width)).permute(0, 3, 1, 2)
        return torch.tanh(self.blocks(x).float()).contiguous()


class PerClass(nn.Module):
    """A network for each class, in their order, behind the interface of one for all: an image goes to its own."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.inputs = getattr(networks[0], "inputs", None)
        self.normalised = getattr(networks[0], "normalised", False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """(batch, ...) and (batch,) int64 -> what the networks make, in the order of the batch."""
        rows = [(label == c).nonzero().flatten() for c in range(len(self.networks))]
        made = [
            network(x[row], torch.zeros_like(row))
            for network, row in zip(self.networks, rows, strict=True)
            if len(row)
        ]
        return torch.cat(made)[torch.cat(rows).argsort()]
