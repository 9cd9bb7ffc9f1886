"""Classifier networks for gray patches."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from stemcell_lit.errors import UserError


def _block(inputs: int, outputs: int, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def small(outputs: int, width: int = 16, dropout: float = 0.2, channels: int = 1) -> nn.Module:
    """Six 3x3 convolutions, 0.3 M weights at width 16, 8 MMAC a 32x32 patch.

    The first convolution keeps full resolution: a stride there loses the texture that tells the classes apart.

    Args:
        outputs: number of targets.
        width: channels of the first block; doubled at each halving.
        dropout: share of features dropped before the last layer.
        channels: views of a patch, such as scales.
    """
    w = width
    return nn.Sequential(
        _block(channels, w),
        nn.MaxPool2d(2),
        _block(w, 2 * w),
        _block(2 * w, 2 * w),
        nn.MaxPool2d(2),
        _block(2 * w, 4 * w),
        _block(4 * w, 4 * w),
        nn.MaxPool2d(2),
        _block(4 * w, 8 * w),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8 * w, outputs),
    )


def valid(outputs: int, width: int = 16, dropout: float = 0.2, channels: int = 1) -> nn.Module:
    """Five 3x3 convolutions without padding, 2 MMAC a 32x32 patch; for patches of 30 px and more.

    No feature depends on what lies behind a patch's border, so that the windows of a whole frame share their features
    exactly (`predict`); in exchange a patch's outer pixels count less.

    Args:
        outputs: number of targets.
        width: channels of the first block; doubled at each halving.
        dropout: share of features dropped before the last layer.
        channels: views of a patch, such as scales.
    """
    w = width
    return nn.Sequential(
        _block(channels, w, 0),
        nn.MaxPool2d(2),
        _block(w, 2 * w, 0),
        _block(2 * w, 2 * w, 0),
        nn.MaxPool2d(2),
        _block(2 * w, 4 * w, 0),
        _block(4 * w, 8 * w, 0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8 * w, outputs),
    )


def vgg(outputs: int, width: int = 64, dropout: float = 0.5, channels: int = 1) -> nn.Module:
    """VGG-19 with batch normalisation, the paper's reference (Simonyan and Zisserman 2015).

    The classifier is one hidden layer on the pooled features, since patches are far smaller than ImageNet's.

    Args:
        outputs: number of targets.
        width: channels of the first block (64 in the original).
        dropout: share of features dropped before each linear layer.
        channels: views of a patch, such as scales.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for repeats, factor in ((2, 1), (2, 2), (4, 4), (4, 8), (4, 8)):
        for _ in range(repeats):
            layers.append(_block(inputs, factor * width))
            inputs = factor * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(inputs, inputs),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(inputs, outputs),
    )


class NetworkEnsemble(nn.Module):
    """Networks of one kind and different first weights, whose probabilities are averaged.

    After Lakshminarayanan et al. 2017 (Simple and scalable predictive uncertainty estimation), but for the batches,
    which all members see alike.

    Args:
        members: networks with the same number of outputs.
    """

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def each(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of every member, (members, batch, outputs)."""
        return torch.stack([member(pixels) for member in self.members])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Log of the members' mean probabilities, (batch, outputs): softmax gives the mean back."""
        log_p = self.each(pixels).float().log_softmax(-1)
        return log_p.logsumexp(0) - math.log(len(self.members))


def heads(network: nn.Module) -> list[nn.Linear]:
    """The last linear layer of a network, or of every member of an ensemble."""
    parts = network.members if isinstance(network, NetworkEnsemble) else [network]
    return [[m for m in part.modules() if isinstance(m, nn.Linear)][-1] for part in parts]


NETWORKS: dict[str, Callable[..., nn.Module]] = {"small": small, "valid": valid, "vgg": vgg}
LEAST_SIZE = {"valid": 30}  # px of a patch; below, nothing is left for the last convolution


def build(
    name: str,
    outputs: int,
    width: int,
    dropout: float,
    seed: int,
    members: int = 1,
    channels: int = 1,
) -> nn.Module:
    """Builds a network, or an ensemble of several, with weights that depend on `seed` alone.

    Weights lie in channels-last order: training `small` is 1.4 times as fast for it on a CPU core.

    Raises:
        UserError: no network of that name, or no member.
    """
    if members < 1:
        raise UserError(f"stage.members={members}: expected 1 or more")
    if name not in NETWORKS:
        raise UserError(f"stage.network={name}: expected one of {', '.join(NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = [
            NETWORKS[name](outputs, width=width, dropout=dropout, channels=channels)
            for _ in range(members)
        ]
    network = made[0] if members == 1 else NetworkEnsemble(made)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
