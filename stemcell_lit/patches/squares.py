"""Crops of any height and width as squares of one size, at one scale: cut or padded around their centre.

Nothing is stretched: a cell that is twice as large stays twice as large. What a crop lacks is filled with the median of
its own outermost pixels, its background. Padding shows how large a crop was drawn, and with that perhaps the class:
where the shares of padding differ between classes this is said, with a smaller size at which they do so less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemcell_lit.patches.labels import UNLABELLED

STEP = (
    32  # px: sizes that are chosen are multiples, so that the default data.patch_size divides them
)
WHOLE = 0.75  # share of the crops that must lie whole in a size that is chosen
CUE = 0.1  # difference of classes in their mean share of padding, from which it is told
SMALLEST = 16  # px that are proposed


@dataclass(frozen=True)
class Squares:
    """How crops become squares.

    Attributes:
        size: px.
        shapes: int (crops, 2), height and width of each in px.
        chosen: whether the size was chosen here, not given.
    """

    size: int
    shapes: np.ndarray
    chosen: bool

    @classmethod
    def of(cls, shapes: np.ndarray, size: int | None) -> Squares:
        """Of a given size; else as they are, where all are equal squares; else the smallest that holds most crops.

        Args:
            shapes: int (crops, 2), height and width of each in px.
            size: px; None: it is chosen.
        """
        if size is not None:
            return cls(size, shapes, False)
        if (shapes == shapes[0, 0]).all():
            return cls(int(shapes[0, 0]), shapes, False)
        side = float(np.quantile(shapes.max(1), WHOLE, method="inverted_cdf"))
        return cls(int(-(-side // STEP) * STEP), shapes, True)

    @property
    def padding(self) -> np.ndarray:
        """float64 (crops,): which share of each square is padding, 0 to 1."""
        shares: np.ndarray = 1 - np.minimum(self.shapes, self.size).prod(1) / self.size**2
        return shares

    def make(self, crop: np.ndarray) -> np.ndarray:
        """uint8 (size, size) of a crop (height, width)."""
        for axis, side in enumerate(crop.shape):
            if side > self.size:
                first = (side - self.size) // 2
                crop = crop[(slice(None),) * axis + (slice(first, first + self.size),)]
        lacks = self.size - np.array(crop.shape)
        if not lacks.any():
            return crop
        edge = np.concatenate([crop[0], crop[-1], crop[1:-1, 0], crop[1:-1, -1]])
        around = [(int(n // 2), int(n - n // 2)) for n in lacks]
        return np.pad(crop, around, constant_values=np.rint(np.median(edge)).astype(np.uint8))

    def notices(self, labels: Sequence[str]) -> list[str]:
        """What was done, and whether it may give a class away, a sentence each.

        Args:
            labels: the class of each crop, `UNLABELLED` where it has none.
        """
        padding, cut = self.padding, (self.shapes > self.size).any(1)
        if not (padding.any() or self.chosen):
            return []
        low, high = self.shapes.min(0), self.shapes.max(0)
        said = (
            f"crops of {low[0]} to {high[0]} x {low[1]} to {high[1]} px (height x width) become squares of {self.size} "
            f"px around their centre: {int((padding > 0).sum())} of {len(padding)} padded with the median of their "
            f"outermost pixels, {int(cut.sum())} cut"
        )
        if self.chosen:
            said += (
                f"; {self.size} is the smallest multiple of {STEP} px that holds three quarters of them whole; size= "
                "takes another"
            )
        found = [said]
        of_class = self._of_class(labels)
        least, most = (f(of_class, key=lambda c: of_class[c]) for f in (min, max))
        if of_class[most] - of_class[least] >= CUE:
            found.append(
                f"padding fills {of_class[most]:.0%} of the squares of {most} and {of_class[least]:.0%} of {least}: a "
                "network may tell these by how tightly the crops were drawn, not by what they show; "
                + self._smaller(labels)
            )
        return found

    def _of_class(self, labels: Sequence[str]) -> dict[str, float]:
        """Class -> mean share of padding."""
        padding, of = self.padding, np.array(labels)
        return {c: float(padding[of == c].mean()) for c in dict.fromkeys(labels) if c != UNLABELLED}

    def _smaller(self, labels: Sequence[str]) -> str:
        """A smaller size at which classes differ less, or what else can be done."""
        for size in range((self.size - 1) // 8 * 8, SMALLEST - 1, -8):
            shares = Squares(size, self.shapes, False)._of_class(labels).values()
            if max(shares) - min(shares) < CUE:
                return (
                    f"compare with size={size}, where it fills {min(shares):.0%} to {max(shares):.0%} of each class's "
                    f"squares (data.patch_size={size} then)"
                )
        return "export crops of one size around each cell, if you can"

    def describe(self) -> dict[str, Any]:
        """What a store records of it, nothing where crops are as they were."""
        padding = self.padding
        if (self.shapes == self.size).all():
            return {}
        return {
            "squares": {
                "size": self.size,
                "padded": int((padding > 0).sum()),
                "cut": int((self.shapes > self.size).any(1).sum()),
                "padding": "median of the outermost pixels",
            }
        }
