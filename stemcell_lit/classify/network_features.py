"""Features by the body of a network whose weights stay as they are: what its last layer would be shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stemcell_lit.base.weights import build
from stemcell_lit.classify import networks
from stemcell_lit.classify.pretrained import IMAGENET, start_from, weights_hash
from stemcell_lit.data.augment import to_float, turn_square
from stemcell_lit.errors import UserError
from stemcell_lit.settings.group_keys import StageConfig
from stemcell_lit.settings.network_names import own_module

OUTPUTS = 2  # of the last layer, which nobody asks
BATCH = 256  # patches at once
# of ImageNet's pictures in 0 to 1, the mean over red, green and blue: what networks trained on them are used to
IMAGENET_MEAN, IMAGENET_SD = 0.449, 0.226


class NetworkFeatures:
    """The input of a network's last layer, the mean over a patch's eight turns and flips.

    So a turned patch has the same features, and what learns from them needs no turned copies.

    Args:
        name: a value of `classic.features` that is no `classical`.
        channels: views of a patch.
        key: what determines the features, beside the weights of `network`.
        network: as `networks.build` makes it, with its weights.
    """

    def __init__(self, name: str, channels: int, key: Mapping[str, Any], network: nn.Module):
        self.name, self.channels, self._key = name, channels, dict(key)
        self.network = network.eval().requires_grad_(False)
        self._head = networks.heads(network, OUTPUTS)[0]

    @classmethod
    def begin(cls, name: str, weights: str | None, channels: int, size: int) -> NetworkFeatures:
        """With the weights that a user's settings name.

        Args:
            name: of the network.
            weights: a file, `imagenet`, or None: a network of the user's own, which brings its own.
            channels: views of a patch.
            size: height and width of the patches, px.

        Raises:
            UserError: no such network or weights, or patches that it cannot take.
        """
        own = own_module(name)
        if weights is None and own is None:
            raise UserError(
                f"classic.features={name}: a network with random weights says little; give classic.weights= (a file of "
                "weights, or imagenet)"
            )
        network = _made(name, channels, own)
        networks.check_size(network, name, OUTPUTS, channels, size)
        key: dict[str, Any] = {"network": name, "colour": weights == IMAGENET}
        if weights is not None:
            key["weights"] = weights_hash(name, weights)
            key["colour"] = start_from(network, name, weights, OUTPUTS)
        return cls(name, channels, key, network)

    @classmethod
    def of_content(
        cls,
        about: Mapping[str, Any],
        state: Mapping[str, torch.Tensor],
        channels: int,
        file: Path,
        remedy: str,
        allow_module: str | None,
    ) -> NetworkFeatures:
        """From the key and weights in a file of a stage.

        Args:
            about: the key.
            state: weights by name.
            channels: views of a patch.
            file: for the sentence.
            remedy: what to do.
            allow_module: a network of the user's own that it may ask for.

        Raises:
            UserError: weights of another network, or one of the user's own that is not allowed.
        """
        name = about["network"]
        try:
            networks.maker(name, allow_module)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        network = build(
            lambda: _made(name, channels, allow_module), state, file, "network of features", remedy
        )
        return cls(name, channels, about, network)

    @property
    def key(self) -> dict[str, Any]:
        """The network's name, the hash of the file of its weights, and whether it is used to colour pictures."""
        return self._key

    def names(self, views: int) -> tuple[str, ...]:
        """`network/0` and so on, whatever the views: it sees them together."""
        return tuple(f"network/{i}" for i in range(self._head.in_features))

    @torch.inference_mode()
    def __call__(
        self, pixels: np.ndarray, shown: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Features of patches.

        Args:
            pixels: uint8 (patches, [views,] size, size).
            shown: is told now and then how many patches are done.

        Returns:
            float32 (patches, features).
        """
        seen: list[torch.Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        out = np.empty((len(pixels), self._head.in_features), np.float32)
        try:
            for start in range(0, len(pixels), BATCH):
                images = self._scaled(torch.from_numpy(np.array(pixels[start : start + BATCH])))
                seen.clear()
                for side in range(8):
                    self.network(turn_square(images, torch.full((len(images),), side)))
                out[start : start + BATCH] = torch.stack(seen).mean(0).flatten(1).numpy()
                if shown is not None:
                    shown(min(start + BATCH, len(pixels)))
        finally:
            hook.remove()
        return np.nan_to_num(out)

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """-1 to 1 as all networks here are shown, or as ImageNet's are."""
        images = to_float(pixels)
        if self._key["colour"]:
            images = ((images + 1) / 2 - IMAGENET_MEAN) / IMAGENET_SD
        return images


def _made(name: str, channels: int, allow_module: str | None) -> nn.Module:
    return networks.build(name, OUTPUTS, StageConfig().width, 0.0, 0, 1, channels, allow_module)
