"""The moving average of a generator's weights, which makes the patches: its update, its statistics, its samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from stemcell_lit.base.drawing import draw_grid
from stemcell_lit.data.augment import to_uint8
from stemcell_lit.gan.conditions import Conditions
from stemcell_lit.gan.config import FIXED, seed_of
from stemcell_lit.gan.layers import CHUNK, Measured

_PER_CLASS = 32  # fixed latents a class, for the grid and for diversity


_GRID_COLUMNS = 16


_REFRESH_BATCHES, _REFRESH_BATCH = 4, 256  # images that batch-norm statistics are measured on


def ema_decay(images: int, seen: int, halflife: float, rampup: float) -> float:
    """Share of the averaged weights that one update keeps, 0.5^(images / half-life).

    Args:
        images: images of this batch, over all devices.
        seen: images seen, this batch among them.
        halflife: images after which an old weight counts half.
        rampup: the half-life is at most this share of `seen` (as in StyleGAN2-ADA), so that the
            first, bad weights are forgotten; 0: no ramp.
    """
    if rampup:
        halflife = min(halflife, rampup * seen)
    return float(0.5 ** (images / max(halflife, 1e-8)))


def _spread(turn: Tensor) -> Tensor:
    """Places between 0 and 1 for turns 0, 1, 2 ...: any few that follow each other lie evenly (golden ratio)."""
    return ((turn.double() + 0.5) * 0.6180339887498949 % 1).float()


def mean_distance(pixels: Tensor, label: Tensor, classes: int) -> Tensor:
    """Mean Euclidean distance between two images of a class, over all pairs.

    Args:
        pixels: (n, 1, h, w).
        label: (n,) int64.
        classes: number of classes.

    Returns:
        (classes,), NaN for a class with fewer than two images.
    """
    flat = pixels.detach().float().flatten(1)
    each = [flat[label == c] for c in range(classes)]
    return torch.stack(
        [torch.pdist(x).mean() if len(x) > 1 else flat.new_tensor(float("nan")) for x in each]
    )


class Averaged:
    """The averaged generator of a training; its random numbers follow from seeds alone.

    The network and the conditions are parts of the module that trains, which moves and saves them.

    `network` is the copy of the generator that is averaged into, in evaluation mode.

    Attributes:
        inputs: how many numbers make an image.
        stale: whether batch-norm statistics and the like are those of earlier weights.
    """

    def __init__(
        self,
        network: nn.Module,
        conditions: Conditions,
        gan: dict[str, Any],
        classes: list[str],
        image_size: int,
        seed: int,
    ):
        self.network, self.conditions, self.gan = network, conditions, gan
        self.classes, self.image_size, self.seed = classes, image_size, seed
        self.inputs = int(cast(int, network.inputs))
        self.stale = True

    @property
    def device(self) -> torch.device:
        """Where it samples."""
        return self.conditions.first.device

    @torch.no_grad()
    def follow(self, generator: nn.Module, images: int, seen: int) -> None:
        """Moves the averaged weights towards the current ones; `images` and `seen` as for `ema_decay`."""
        decay = ema_decay(images, seen, self.gan["ema_halflife_images"], self.gan["ema_rampup"])
        torch._foreach_lerp_(
            list(self.network.parameters()), list(generator.parameters()), weight=1 - decay
        )
        self.stale = True

    @torch.no_grad()
    def refresh(self) -> None:
        """Measures what follows from the averaged weights, batch-norm statistics above all, unless it is up to date.

        Averaged weights make other activations than the current ones do: with copied statistics a
        classifier trained on the samples lost 3 to 7 points of TPR (four generators). They follow
        from the weights alone, by fixed latents and equally many of each class, as in a training
        batch.
        """
        if not self.stale:
            return
        self.stale = False
        self._measure_norms()
        draw = torch.Generator().manual_seed(seed_of(self.seed, FIXED, 4))
        for part in self.network.modules():
            if isinstance(part, Measured):
                part.measure(draw, self._modes())

    def _modes(self) -> Tensor:
        """(_REFRESH_BATCH,) int64: modes at their shares, equally many of each class."""
        turn = torch.arange(_REFRESH_BATCH, device=self.device)
        return self.conditions.at(turn % len(self.classes), _spread(turn // len(self.classes)))

    def _measure_norms(self) -> None:
        norms = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)]
        if not norms:
            return
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the batches that follow
        draw, mode = torch.Generator().manual_seed(seed_of(self.seed, FIXED, 2)), self._modes()
        self.network.train()
        for _ in range(_REFRESH_BATCHES):
            latent = torch.randn((_REFRESH_BATCH, self.inputs), generator=draw)
            self.network(latent.to(self.device), mode)
        self.network.eval()

    @torch.no_grad()
    def sample(self, labels: Tensor, seed: int, batch_size: int = 256) -> np.ndarray:
        """Draws patches from the averaged generator, in float32; modes of a class by their shares.

        Args:
            labels: (n,) int64, positions in `classes`.
            seed: of the latents, which are drawn on the CPU: the same on every device.
            batch_size: patches at a time.

        Returns:
            uint8 (n, image_size, image_size).
        """
        self.refresh()
        draw = torch.Generator().manual_seed(seed)
        made = np.empty((len(labels), self.image_size, self.image_size), np.uint8)
        for start in range(0, len(labels), batch_size):
            label = labels[start : start + batch_size]
            latent = torch.randn((len(label), self.inputs), generator=draw)
            place = torch.rand(len(label), generator=draw)
            mode = self.conditions.at(label.to(self.device), place.to(self.device))
            images = self.network(latent.to(self.device), mode)
            made[start : start + len(label)] = to_uint8(images)
        return made

    @torch.no_grad()
    def fixed_samples(self) -> tuple[Tensor, Tensor]:
        """The same latents at every validation, `_PER_CLASS` a class; classes in order."""
        self.refresh()
        label = torch.arange(len(self.classes)).repeat_interleave(_PER_CLASS)
        draw = torch.Generator().manual_seed(seed_of(self.seed, FIXED, 1))
        shape = (len(label), self.inputs)
        latent = torch.randn(shape, generator=draw).to(self.device)
        label = label.to(self.device)
        mode = self.conditions.at(label, _spread(torch.arange(len(label), device=self.device)))
        parts = zip(latent.split(256), mode.split(256), strict=True)
        return torch.cat([self.network(z, y) for z, y in parts]), label

    def save_grid(self, path: str | Path, made: Tensor | None = None) -> None:
        """Writes `fixed_samples`, or `made`, which are they: a row a class, its name at the left."""
        made = self.fixed_samples()[0] if made is None else made
        rows = to_uint8(made).reshape(
            len(self.classes), _PER_CLASS, self.image_size, self.image_size
        )
        draw_grid(rows[:, :_GRID_COLUMNS], self.classes, path)


class SeededAverage(Averaged):
    """An average that gives every patch random numbers of its own: N + N patches are the 2N, bit for bit.

    The network makes `CHUNK` patches at a time, the last ones beside others that are thrown away: the bits of a sum
    depend on the size of a batch, and those of a patch here on its own numbers and place alone.
    """

    @torch.no_grad()
    def sample(
        self, labels: Tensor, seed: int, batch_size: int = 256, first: int = 0
    ) -> np.ndarray:
        """Draws patches, in float32; modes of a class by their shares.

        Args:
            labels: (n,) int64, positions in `classes`.
            seed: of the patches, which are numbered.
            batch_size: changes nothing.
            first: number of the first one. Patches N, N + 1, ... are the same whether asked for alone or with those
                before.

        Returns:
            uint8 (n, image_size, image_size).
        """
        self.refresh()
        before = first % CHUNK  # a patch keeps its place in the network's batch
        count = before + len(labels) if len(labels) else 0
        places = torch.arange(math.ceil(count / CHUNK) * CHUNK) - before
        whole = labels[places.clamp(0, len(labels) - 1)]
        made = np.empty((len(whole), self.image_size, self.image_size), np.uint8)
        for start in range(0, len(whole), CHUNK):
            latent, place = self._numbers(first - before + start, seed)
            label = whole[start : start + CHUNK].to(self.device)
            mode = self.conditions.at(label, place.to(self.device))
            made[start : start + CHUNK] = to_uint8(self.network(latent.to(self.device), mode))
        return made[before:count] if count else made

    def _numbers(self, first: int, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs (CHUNK, inputs) and places (CHUNK,) for `Conditions.at` of patches, drawn on the CPU."""
        latent, place = torch.empty(CHUNK, self.inputs), torch.empty(CHUNK)
        for i in range(CHUNK):
            draw = torch.Generator().manual_seed(seed_of(seed, first + i))
            latent[i] = torch.randn(self.inputs, generator=draw)
            place[i] = torch.rand((), generator=draw)
        return latent, place
