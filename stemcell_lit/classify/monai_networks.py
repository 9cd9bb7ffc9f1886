"""Two-dimensional classifiers of MONAI by name, such as `monai/DenseNet121`.

MONAI is the extra `monai` of this package and is imported only where one of its networks is asked for, since that takes
seconds.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stemcell_lit.errors import UserError

# MONAI's downloads of ImageNet weights; torch's own convention: the SHA-256 begins with the digits in the name
IMAGENET = {
    "DenseNet121": "densenet121-a639ec97.pth",
    "DenseNet169": "densenet169-b2777c0a.pth",
    "DenseNet201": "densenet201-c1103571.pth",
    "EfficientNetBN-b0": "efficientnet-b0-355c32eb.pth",
    "EfficientNetBN-b1": "efficientnet-b1-f1951068.pth",
    "EfficientNetBN-b2": "efficientnet-b2-8bb594d6.pth",
    "EfficientNetBN-b3": "efficientnet-b3-5fb5a3c3.pth",
    "EfficientNetBN-b4": "efficientnet-b4-6ed6700e.pth",
    "EfficientNetBN-b5": "efficientnet-b5-b6417697.pth",
    "EfficientNetBN-b6": "efficientnet-b6-c76e70fd.pth",
    "EfficientNetBN-b7": "efficientnet-b7-dcc49843.pth",
    "SENet154": "senet154-c7b49a05.pth",
    "SEResNet50": "se_resnet50-ce0d4300.pth",
    "SEResNet101": "se_resnet101-7e38fcc6.pth",
    "SEResNeXt50": "se_resnext50_32x4d-a260b3a4.pth",
    "SEResNeXt101": "se_resnext101_32x4d-3b2fe3d8.pth",
}


class DroppedLinear(nn.Linear):
    """A linear layer that drops a share of its inputs while it learns; its weights have the names of a plain one.

    Args:
        like: layer whose weights it takes.
        dropout: share of inputs dropped.
    """

    def __init__(self, like: nn.Linear, dropout: float):
        super().__init__(like.in_features, like.out_features, device="meta")
        self.weight, self.bias, self.dropout = like.weight, like.bias, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, outputs) of (batch, inputs)."""
        return F.linear(F.dropout(x, self.dropout, self.training), self.weight, self.bias)


def maker(name: str) -> Callable[..., nn.Module]:
    """What builds one of MONAI's classifiers at its published size; `width` does not change it.

    Its own dropout is left out for `dropout` before the last layer, as in this project's networks.

    Args:
        name: `monai/` and a name of `settings.network_names.MONAI`.

    Raises:
        UserError: MONAI is not installed.
    """
    nets = _nets(name)

    def build(outputs: int, width: int, dropout: float, channels: int) -> nn.Module:
        network = _make(nets, name.removeprefix("monai/"), outputs, channels)
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        at, head = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
        place, _, attribute = at.rpartition(".")
        setattr(network.get_submodule(place), attribute, DroppedLinear(head, dropout))
        return network

    return build


def imagenet_file(name: str) -> Path:
    """Where MONAI's ImageNet weights of a network lie on this machine; they are fetched if they are not there.

    Raises:
        UserError: there are none for this network, or they are not here and cannot be fetched.
    """
    short = name.removeprefix("monai/")
    if short not in IMAGENET:
        have = ", ".join(f"monai/{n}" for n in IMAGENET)
        raise UserError(
            f"stage.weights=imagenet: there are none for stage.network={name}; expected one of {have}, or a file of "
            "weights"
        )
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / IMAGENET[short]
    if not file.is_file():
        try:
            _make(_nets(name), short, 1000, 3, pretrained=True)
        except Exception as error:  # of the network, of the disk, of the file
            raise UserError(
                f"stage.weights=imagenet: {file.name} is not in {folder} and could not be fetched "
                f"({type(error).__name__}: {' '.join(str(error).split())[:120]}); fetch it on another machine and put "
                "it there, or give a file of weights"
            ) from error
    return file


def imagenet_state(name: str) -> dict[str, torch.Tensor]:
    """MONAI's ImageNet weights of a network under MONAI's names, for three channels and 1,000 classes.

    MONAI leaves out in silence what does not fit; here that is refused: what is not in the file would have the same
    random weights twice. The last layer, which nobody needs, may be left out.

    Raises:
        UserError: as `imagenet_file`, or a file that does not hold every other layer.
    """
    file, short, states = imagenet_file(name), name.removeprefix("monai/"), []
    with torch.random.fork_rng(devices=[]):
        for pretrained in (True, False):
            torch.manual_seed(0)
            try:
                made = _make(_nets(name), short, 1000, 3, pretrained=pretrained)
            except Exception as error:
                raise UserError(
                    f"{file}: not readable as weights of {name} ({type(error).__name__}: "
                    f"{' '.join(str(error).split())[:120]}); delete it and fetch it again"
                ) from error
            states.append(made.state_dict())
    last = [n for n, m in made.named_modules() if isinstance(m, nn.Linear)][-1]
    for layer, value in states[0].items():
        same = value.is_floating_point() and torch.equal(value, states[1][layer])
        if same and not layer.startswith(f"{last}."):
            raise UserError(f"{file}: holds no {layer} of {name}; delete it and fetch it again")
    return states[0]


@functools.cache
def _nets(name: str) -> Any:
    """MONAI's module of networks."""
    try:
        with (
            warnings.catch_warnings()
        ):  # it sets a way of its own to show warnings; ours comes back
            from monai.networks import nets
    except ImportError as error:
        raise UserError(
            f"stage.network={name}: MONAI is not installed; install the extra `monai` of this package (pip install "
            "'stemcell-lit[monai]'), or choose small, valid, vgg or residual"
        ) from error
    return nets


def _make(nets: Any, short: str, outputs: int, channels: int, **more: Any) -> nn.Module:
    kind, _, variant = short.partition("-")
    if kind.startswith("ResNet"):
        # without bias where a normalisation follows: so are the weights that others share
        made: nn.Module = getattr(nets, kind.lower())(
            spatial_dims=2,
            n_input_channels=channels,
            num_classes=outputs,
            bias_downsample=False,
            **more,
        )
        return made
    if kind.startswith("DenseNet"):
        made = getattr(nets, kind)(2, channels, outputs, **more)
        return made
    if kind.startswith("EfficientNet"):
        made = nets.EfficientNetBN(
            f"efficientnet-{variant}",
            spatial_dims=2,
            in_channels=channels,
            num_classes=outputs,
            pretrained=more.get("pretrained", False),
        )
        return made
    made = getattr(nets, kind)(spatial_dims=2, in_channels=channels, num_classes=outputs, **more)
    return made
