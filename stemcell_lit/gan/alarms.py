"""Alarms that end a generator's training: a loss that is not a number, a class that collapsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stemcell_lit.errors import UserError


class GANDiverged(UserError):
    """The training went wrong for good: a loss is not a number, or a class has collapsed."""


@dataclass(frozen=True)
class Words:
    """What alarms say of a family of generators."""

    name: str  # such as `the GAN`
    calmer: str  # what to do where losses grow without end
    varied: str  # where a class has collapsed
    freer: str  # where training patches are repeated


class Alarms:
    """Looks at a training's losses and at the diversity of what it makes.

    Attributes:
        low_checks: for each class how many validations in a row found it collapsed.
    """

    def __init__(self, gan: dict[str, Any], classes: list[str], words: Words):
        self.gan, self.classes, self.words = gan, classes, words
        self.low_checks = [0] * len(classes)

    def check_losses(self, images: int, losses: Mapping[str, Tensor]) -> None:
        """Looks at the last losses, by whose they are, after so many images.

        Raises:
            GANDiverged: one of them is not a finite number.
        """
        if not bool(torch.isfinite(torch.stack(list(losses.values()))).all()):
            told = " and ".join(f"{float(loss)} ({of})" for of, loss in losses.items())
            raise GANDiverged(
                f"{self.words.name} diverged: after {images} images its losses are {told}, expected finite numbers. "
                f"{self.words.calmer}; check that the patches hold no constant images"
            )

    def check_diversity(self, images: int, ratio: list[float]) -> None:
        """Looks at the diversity found at a validation; to be called at every one.

        Args:
            images: seen so far.
            ratio: for each class the distance between two generated patches over that between two real ones.

        Raises:
            GANDiverged: a class was below `gan.collapse_below` at `gan.collapse_checks` validations in a row.
        """
        least, checks = self.gan["collapse_below"], self.gan["collapse_checks"]
        for i, value in enumerate(ratio):
            self.low_checks[i] = self.low_checks[i] + 1 if value < least else 0
        bad = [
            f"{self.classes[i]} {ratio[i]:.2f}"
            for i, n in enumerate(self.low_checks)
            if n >= checks
        ]
        if bad:
            raise GANDiverged(
                f"{self.words.name} collapsed: after {images} images two patches made of a class "
                f"differ by this share of what two real ones differ by: {', '.join(bad)}; "
                f"expected at least {least} within {checks} validations. "
                f"{self.words.varied}"
            )
