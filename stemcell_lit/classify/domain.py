"""What the pixels of a model's training patches look like, so that others of another look are not classified unsaid.

A network answers to every picture, also to one that is blurred, inverted or of another magnification. A few simple
features tell such pictures from those that it learned from; nothing here judges whether its answers are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemcell_lit.base import formats as form

QUANTILES = (1, 5, 25, 50, 75, 95, 99)  # in percent

MOST_PATCHES = 4096  # that are looked at: the 1 % quantile then rests on forty

LEAST_PATCHES = 20  # fewer have no median to speak of

FLAT = 1.0  # gray values; patches of less contrast have no texture


@dataclass(frozen=True)
class Feature:
    """A number of a patch, in words.

    Attributes:
        what: it is.
        more: how patches look that have more of it.
        less: how those look that have less.
        slack: a difference that says nothing, where the training patches are all alike.
    """

    what: str
    more: str
    less: str
    slack: float


FEATURES = {
    "brightness": Feature("mean gray value", "brighter", "darker", 2.0),
    "contrast": Feature("deviation of gray values", "more contrast", "less contrast", 1.0),
    "clipped": Feature("share of pixels at 0 or 255", "over-exposed", "less clipped", 0.01),
    "skew": Feature(
        "skewness of gray values",
        "brighter spots, or inverted contrast",
        "darker spots, or inverted contrast",
        0.1,
    ),
    "fine": Feature(
        "difference of neighbouring pixels",
        "sharper, noisier, or another um/px",
        "blurred, or another um/px",
        0.005,
    ),
    "coarse": Feature("difference of pixels 4 px apart", "finer parts", "larger parts", 0.02),
}

_QUANTILES = form.listing(form.number(), len(QUANTILES), len(QUANTILES))
ABOUT = form.record(
    {
        "patches": form.whole(1),
        "quantiles": form.record(dict.fromkeys(FEATURES, _QUANTILES), more=False),
    },
    more=False,
)


@dataclass(frozen=True)
class Domain:
    """Quantiles of simple features of patches.

    Attributes:
        patches: how many were looked at.
        quantiles: feature -> its values at `QUANTILES` percent of the patches, rising.
    """

    patches: int
    quantiles: Mapping[str, list[float]]

    @classmethod
    def of(cls, pixels: np.ndarray) -> Domain:
        """Of patches as a model sees them.

        Args:
            pixels: uint8 (patches, [scales,] size, size), at least one; of more than `MOST_PATCHES` some, spread
                evenly; of several scales the first, the finest, is looked at.
        """
        found = features(_some(pixels))
        points = {n: np.percentile(v, QUANTILES).round(6).tolist() for n, v in found.items()}
        return cls(min(len(pixels), MOST_PATCHES), points)

    def notices(self, pixels: np.ndarray) -> list[str]:
        """In which features patches are unlike those of this domain, in words; empty where they are like them.

        A feature is named where its median over the patches lies outside the 5 % to 95 % range of this domain, or the
        middle half of the patches wholly below or above the middle half of this domain. Classes may be mixed otherwise
        than in training, which alone rarely moves either so far; docs/predict.md says how often.

        Args:
            pixels: as for `of`; nothing is said of fewer than `LEAST_PATCHES`.
        """
        if len(pixels) < LEAST_PATCHES:
            return []
        said = []
        for name, values in features(_some(pixels)).items():
            feature = FEATURES[name]
            known = dict(zip(QUANTILES, self.quantiles[name], strict=True))
            low, median, high = np.percentile(values, (25, 50, 75)).tolist()
            below = median < known[5] - feature.slack or high < known[25] - feature.slack
            above = median > known[95] + feature.slack or low > known[75] + feature.slack
            if below or above:
                said.append(
                    f"{feature.more if above else feature.less} ({feature.what} {low:.3g} to {high:.3g} in the middle "
                    f"half, in training {known[25]:.3g} to {known[75]:.3g})"
                )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "patches": self.patches,
            "quantiles": {n: list(q) for n, q in self.quantiles.items()},
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Domain:
        """What `to_dict` gave, of the form `ABOUT`."""
        return cls(plain["patches"], plain["quantiles"])


def features(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Simple features of patches, name -> float64 (patches,), see `FEATURES`.

    The differences are mean squares over twice the variance: 1 for pixels that know nothing of each other, 0 for a
    smooth patch, whatever its contrast. They, and the skewness, are 0 for a patch that is flat.

    Args:
        pixels: uint8 (patches, [scales,] size, size).
    """
    x = (pixels if pixels.ndim == 3 else pixels[:, 0]).astype(np.float32)
    clipped = ((x == 0) | (x == 255)).mean((1, 2))
    mean = x.mean((1, 2))
    x -= mean[:, None, None]
    variance = (x**2).mean((1, 2))
    scale = np.where(variance < FLAT**2, np.inf, variance)
    found = {
        "brightness": mean,
        "contrast": np.sqrt(variance),
        "clipped": clipped,
        "skew": (x**3).mean((1, 2)) / scale**1.5,
        "fine": _differences(x, 1) / scale,
        "coarse": _differences(x, min(4, x.shape[-1] // 2)) / scale,
    }
    return {name: values.astype(np.float64) for name, values in found.items()}


def _differences(x: np.ndarray, step: int) -> np.ndarray:
    """Half the mean square of the differences of pixels `step` apart, down and across."""
    down, across = x[:, step:] - x[:, :-step], x[:, :, step:] - x[:, :, :-step]
    halves: np.ndarray = ((down**2).mean((1, 2)) + (across**2).mean((1, 2))) / 4
    return halves


def _some(pixels: np.ndarray) -> np.ndarray:
    """At most `MOST_PATCHES` of them, spread evenly."""
    if len(pixels) <= MOST_PATCHES:
        return pixels
    some: np.ndarray = pixels[np.linspace(0, len(pixels) - 1, MOST_PATCHES).round().astype(int)]
    return some
