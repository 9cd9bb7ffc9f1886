"""Classifier networks for gray patches: ours, those of MONAI and a user's own, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stemcell_lit.classify import monai_networks, user_network
from stemcell_lit.errors import UserError
from stemcell_lit.settings import network_names


def _block(inputs: int, outputs: int, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def small(outputs: int, width: int = 16, dropout: float = 0.2, channels: int = 1) -> nn.Module:
    """Six 3x3 convolutions, 0.14 M weights at width 16, 8 MMAC a 32x32 patch.

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


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, Deep residual learning for image recognition).

    The last normalisation begins at 0, so that a block begins as its shortcut (Goyal et al. 2017).

    Args:
        inputs: channels.
        outputs: channels; where they differ from the inputs the shortcut is a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        last = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(
            *_block(inputs, outputs), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), last
        )
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, outputs, height, width) of (batch, inputs, height, width)."""
        return F.relu(self.shortcut(x) + self.body(x))


def residual(outputs: int, width: int = 16, dropout: float = 0.2, channels: int = 1) -> nn.Module:
    """A residual network of eleven 3x3 convolutions, 0.7 M weights at width 16, 21 MMAC a 32x32 patch.

    One convolution at full resolution, then one block at a half, two at a quarter and two at an eighth of it.

    Args:
        outputs: number of targets.
        width: channels of the first convolution; doubled at each halving.
        dropout: share of features dropped before the last layer.
        channels: views of a patch, such as scales.
    """
    w = width
    return nn.Sequential(
        _block(channels, w),
        nn.MaxPool2d(2),
        Residual(w, 2 * w),
        nn.MaxPool2d(2),
        Residual(2 * w, 4 * w),
        Residual(4 * w, 4 * w),
        nn.MaxPool2d(2),
        Residual(4 * w, 8 * w),
        Residual(8 * w, 8 * w),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8 * w, outputs),
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


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "small": small,
    "valid": valid,
    "vgg": vgg,
    "residual": residual,
}
LEAST_PARTS = 5  # fewer, and the longest chain among them is taken apart
MOST_SIZE = 512  # px: a network that pools its features takes any larger patch, too


def maker(name: str, allow_module: str | None = None) -> Callable[..., nn.Module]:
    """What builds a network: a callable of outputs, width, dropout and channels.

    Args:
        name: a value of `stage.network`.
        allow_module: `package.attribute` of a user's own network that may be imported. It comes from the user's
            settings, never from a file: what a file names would run as soon as the file is read.

    Raises:
        UserError: no network of that name, or one of the user's own that is not allowed.
    """
    own = network_names.own_module(name)
    if own is not None:
        user_network.check_allowed(own, allow_module)
        return user_network.maker(own)
    if name in network_names.MONAI:
        return monai_networks.maker(name)
    if name not in NETWORKS:
        raise UserError(f"stage.network={name}: expected one of {network_names.TOLD}")
    return NETWORKS[name]


def build(
    name: str,
    outputs: int,
    width: int,
    dropout: float,
    seed: int,
    members: int = 1,
    channels: int = 1,
    allow_module: str | None = None,
) -> nn.Module:
    """Builds a network, or an ensemble of several, with weights that depend on `seed` alone.

    Weights lie in channels-last order: training `small` is 1.4 times as fast for it on a CPU core.

    Raises:
        UserError: as `maker`, or no member.
    """
    if members < 1:
        raise UserError(f"stage.members={members}: expected 1 or more")
    make = maker(name, allow_module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = [
            make(outputs, width=width, dropout=dropout, channels=channels) for _ in range(members)
        ]
    network = made[0] if members == 1 else NetworkEnsemble(made)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def members_of(network: nn.Module) -> list[nn.Module]:
    """The members of an ensemble, or the network itself."""
    return list(network.members) if isinstance(network, NetworkEnsemble) else [network]


def heads(network: nn.Module, outputs: int) -> list[nn.Linear]:
    """The last linear layer of a network, or of every member of an ensemble.

    Raises:
        UserError: a network of the user's own without a linear layer of that many outputs.
    """
    found = []
    for part in members_of(network):
        linear = [
            m for m in part.modules() if isinstance(m, nn.Linear) and m.out_features == outputs
        ]
        if not linear:
            raise UserError(
                f"stage.network: {type(part).__name__} has no linear layer of {outputs} outputs, by which its last "
                "layer is known; end it in one, or leave out stage.weights, stage.freeze, stage.layer_decay and "
                "stage.retrain_head"
            )
        found.append(linear[-1])
    return found


def parts(network: nn.Module, head: nn.Linear) -> list[list[nn.Parameter]]:
    """A network's weights from its input to its head, in the parts that `stage.freeze` and `layer_decay` count.

    Parts are its children that hold weights, in their order. Where these are fewer than five, the largest chain
    (`nn.Sequential`) among them is taken apart. A normalisation belongs to the part before it, the head is the last.

    Args:
        network: one member.
        head: its last layer.
    """

    def weights(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    found = [m for m in network.children() if weights(m)]
    while sum(any(p.ndim > 1 for p in m.parameters()) for m in found) < LEAST_PARTS:
        chains = [m for m in found if isinstance(m, nn.Sequential) or len(found) == 1]
        chains = [m for m in chains if any(weights(c) for c in m.children())]
        if not chains:
            break
        largest = max(chains, key=weights)
        at = found.index(largest)
        found[at : at + 1] = [c for c in largest.children() if weights(c)]
    last = {id(p) for p in head.parameters()}
    given: set[int] = set(last)
    made: list[list[nn.Parameter]] = []
    for module in found:
        own = [p for p in module.parameters() if id(p) not in given]
        given |= {id(p) for p in own}
        if own and made and all(p.ndim <= 1 for p in own):
            made[-1] += own
        elif own:
            made.append(own)
    loose = [p for p in network.parameters() if id(p) not in given]  # of the network itself
    if loose:
        made[:1] = [loose + (made[0] if made else [])]
    return [*made, list(head.parameters())]


def freeze(network: nn.Module, kept: str, outputs: int) -> None:
    """Marks weights that are not to be learned.

    Args:
        network: a network or an ensemble.
        kept: `none`, `stem` (the first part), `body` (all but the head), see `parts`.
        outputs: number of targets.
    """
    if kept == "none":
        return
    for member, head in zip(members_of(network), heads(network, outputs), strict=True):
        found = parts(member, head)
        for p in [p for part in (found[:1] if kept == "stem" else found[:-1]) for p in part]:
            p.requires_grad_(False)


def rate_groups(
    network: nn.Module, weight_decay: float, layer_decay: float, outputs: int
) -> list[dict[str, Any]]:
    """What is learned of a network in groups for an optimiser; normalisation and biases are not decayed.

    Args:
        network: a network or an ensemble.
        weight_decay: of all else.
        layer_decay: rate of a part over that of the part behind it (Howard and Ruder 2018 call it discriminative
            fine-tuning); a group's `scale` is what its rate is multiplied by, 1 for the head.
        outputs: number of targets.
    """
    scaled = [(list(network.parameters()), 1.0)]
    if layer_decay < 1:
        scaled = []
        for member, head in zip(members_of(network), heads(network, outputs), strict=True):
            found = parts(member, head)
            scaled += [(part, layer_decay ** (len(found) - 1 - i)) for i, part in enumerate(found)]
    groups = []
    for part, scale in scaled:
        learned = [p for p in part if p.requires_grad]
        for params, decay in (
            ([p for p in learned if p.ndim > 1], weight_decay),
            ([p for p in learned if p.ndim <= 1], 0.0),
        ):
            groups.append({"params": params, "weight_decay": decay, "scale": scale})
    return [g for g in groups if g["params"]] if layer_decay < 1 else groups


@torch.inference_mode()
def check_size(network: nn.Module, name: str, outputs: int, channels: int, size: int) -> None:
    """Refuses patches that a network cannot take, by showing it one.

    Args:
        network: as `build` made it.
        name: a value of `stage.network`.
        outputs: number of targets.
        channels: views of a patch.
        size: height and width of the patches, px.

    Raises:
        UserError: names the least size that it takes, or what it answered.
    """
    member, device = members_of(network)[0], next(network.parameters()).device
    training = member.training

    def answer(side: int) -> torch.Tensor | str:
        try:
            found: torch.Tensor = member(torch.zeros(1, channels, side, side, device=device))
            return found
        except Exception as error:  # a network may fail as it likes
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    own = network_names.own_module(name) is not None
    with torch.random.fork_rng(devices=[]):
        member.eval()
        found = answer(size if own else min(size, MOST_SIZE))
        least = size
        while isinstance(found, str) and least < MOST_SIZE:
            least += 1
            if not isinstance(answer(least), str):
                raise UserError(
                    f"stage.network={name}: patches of {size} px leave nothing for its last layers, expected {least} "
                    "or more; give a larger data.patch_size, or stage.network=small"
                )
        member.train(training)
    if isinstance(found, str):
        raise UserError(f"stage.network={name}: cannot take patches of {size} px ({found})")
    shape = tuple(getattr(found, "shape", ()))
    if shape != (1, outputs):
        raise UserError(
            f"stage.network={name}: answers a patch with a {type(found).__name__} of shape {list(shape)}, expected "
            f"logits of shape [1, {outputs}]"
        )
