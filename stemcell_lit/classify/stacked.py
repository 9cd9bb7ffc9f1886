"""What may stand in a node of the tree, and several of them averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.optimize import minimize_scalar

LEAST = 1e-6  # no probability is zero in a logarithm


class Stage(Protocol):
    """One node of the hierarchy: it tells its groups apart.

    Attributes:
        groups: in the order of its answers.
        image_size: height and width in pixels that it looks at; larger patches are reduced to it.
        channels: views of a patch.
    """

    groups: list[str]
    image_size: int
    channels: int

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """(patches, groups) of uint8 patches (patches, [views,] size, size)."""
        ...


class Stacked:
    """The weighted mean of what several stages say of the same groups.

    Args:
        parts: each as large as it likes; `image_size` is that of the largest.
        weights: of each, sum 1.
    """

    def __init__(self, parts: Sequence[Stage], weights: Sequence[float]):
        self.parts, self.weights = list(parts), [float(w) for w in weights]
        self.groups = list(parts[0].groups)
        self.image_size = max(part.image_size for part in parts)
        self.channels = parts[0].channels

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Of patches as large as `image_size`."""
        found = [part.probabilities(pixels) for part in self.parts]
        mean: np.ndarray = np.tensordot(self.weights, np.stack(found).astype(np.float64), 1)
        return mean


def fitted_weight(first: np.ndarray, second: np.ndarray, y: np.ndarray) -> float:
    """The weight of the first of two, 0 to 1, at which their mean has the least log loss; half where no patch tells.

    Args:
        first: (patches, groups) probabilities.
        second: of the same.
        y: (patches,) true positions.
    """
    if not len(y):
        return 0.5
    a, b = (p[np.arange(len(y)), y] for p in (first, second))

    def loss(weight: float) -> float:
        return -float(np.log(np.maximum(weight * a + (1 - weight) * b, LEAST)).mean())

    return float(minimize_scalar(loss, bounds=(0, 1), method="bounded").x)
