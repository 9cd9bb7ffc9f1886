"""Groups that a split keeps together: what they are worth, and blocks of a field that has no better ones."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import pandas as pd

LEAST = 6.0  # groups in effect that three folds and a validation part can do with
LEAST_OF_CLASS = 3.0  # to be learned, to choose and to be tested
_SIDES = 3  # sides of a patch that a block's side needs: a quarter of the places then lie wholly inside one


def effective(groups: Iterable[str]) -> float:
    """How many groups of equal size tell as much: 1 / sum of squared shares; 0 of none.

    573 of 628 patches in one group leave 1.2 of 14: whatever the split, one part has nearly all.
    """
    counts = pd.Series(list(groups), dtype=object).value_counts().to_numpy(np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum()) if len(counts) else 0.0


def told(groups: Iterable[str]) -> str:
    """The number of groups, and what they are worth, in words."""
    counts = pd.Series(list(groups), dtype=object).value_counts()
    many = "1 group" if len(counts) == 1 else f"{len(counts)} groups"
    largest = f"{counts.iloc[0]} of {counts.sum()} patches in the largest"
    return f"{many}, worth {effective(groups):.1f} of equal size ({largest})"


def thin_classes(labels: pd.Series, groups: pd.Series) -> list[str]:
    """A sentence for each class that too few groups hold to be learned and tested apart."""
    said = []
    for label, of in groups.groupby(labels):
        if effective(of) < LEAST_OF_CLASS:
            said.append(
                f"{label} is in {told(of)}: label it in more groups, or its scores mean little"
            )
    return said


class Blocks:
    """A frame cut into blocks of rows and columns, as many as asked for at most, none too small for its patches.

    Args:
        shape: (height, width) of the frame, px.
        size: height and width of a patch, px.
        most: blocks.

    Attributes:
        rows, columns: of blocks.
    """

    def __init__(self, shape: tuple[int, int], size: int, most: int):
        self.shape, self.size = shape, size
        down, across = (max(1, side // (_SIDES * size)) for side in shape)
        fits = [
            (r, c) for r, c in product(range(1, down + 1), range(1, across + 1)) if r * c <= most
        ]
        self.rows, self.columns = max(fits, key=lambda rc: (rc[0] * rc[1], -abs(rc[0] - rc[1])))

    def __len__(self) -> int:
        return self.rows * self.columns

    def inside(self) -> np.ndarray:
        """Bool (height - size + 1, width - size + 1): upper left corners of patches wholly inside one block."""
        whole = []
        for side, count in zip(self.shape, (self.rows, self.columns), strict=True):
            first = np.arange(side - self.size + 1)
            whole.append(first * count // side == (first + self.size - 1) * count // side)
        both: np.ndarray = whole[0][:, None] & whole[1][None, :]
        return both

    def name(self, top: int, left: int) -> str:
        """Of the block that a patch with this corner lies in."""
        height, width = self.shape
        return f"block-{top * self.rows // height}-{left * self.columns // width}"
