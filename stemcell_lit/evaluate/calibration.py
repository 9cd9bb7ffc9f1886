"""How sure a classifier may be: its temperature, and below which probability it had better say that it is unsure."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from stemcell_lit.evaluate.metrics import calibration_error

LEAST = 1e-6  # no probability is zero in a logarithm
COLDEST, HOTTEST = 0.1, 10.0


def tempered(p: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities whose logarithms are divided by a temperature (Guo et al. 2017, section 4.2); 1 leaves them.

    Args:
        p: (..., classes), rows sum to 1.
        temperature: above 0; above 1 makes them less sure.

    Returns:
        (..., classes), rows sum to 1, in the same order of size.
    """
    if temperature == 1:
        return p
    made: np.ndarray = softmax(np.log(np.maximum(p, LEAST)) / temperature, axis=-1)
    return made


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log p of the true class, every patch counted the same.

    Args:
        p: (patches, classes).
        y: (patches,) true positions.
    """
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], LEAST)).mean())


def fit_temperature(p: np.ndarray, y: np.ndarray) -> float:
    """The temperature of least log loss, 0.1 to 10; every patch counts the same, whatever its class.

    Where no patch has its top probability at another class than its own, nothing tells how sure is too sure, and
    the temperature is not lowered below 1.

    Args:
        p: (patches, classes) of patches that the classifier did not learn from.
        y: (patches,) true positions.

    Returns:
        1 where there is no patch.
    """
    if not len(y):
        return 1.0
    ends = (np.log(COLDEST), np.log(HOTTEST))
    found = minimize_scalar(
        lambda t: log_loss(tempered(p, float(np.exp(t))), y), bounds=ends, method="bounded"
    )
    temperature = float(np.exp(found.x))
    return max(temperature, 1.0) if (p.argmax(1) == y).all() else temperature


def unsure_threshold(top: np.ndarray, right: np.ndarray, error: float) -> float | None:
    """The smallest threshold above which at most so many calls are wrong.

    Args:
        top: (patches,) the largest probability of each.
        right: (patches,) whether it was called rightly.
        error: share of wrong calls, 0 to 1, among those of at least the threshold.

    Returns:
        0 where none is needed, halfway between two neighbours otherwise; None where even the surest calls are wrong
        more often, or there are none.
    """
    if not len(top):
        return None
    values, place = np.unique(top, return_inverse=True)
    wrong = np.bincount(place, weights=~np.asarray(right, bool), minlength=len(values))
    count = np.bincount(place, minlength=len(values))
    # of patches with at least each value
    share = np.cumsum(wrong[::-1])[::-1] / np.cumsum(count[::-1])[::-1]
    good = np.flatnonzero(share <= error)
    if not len(good):
        return None
    first = int(good[0])
    return 0.0 if first == 0 else float((values[first - 1] + values[first]) / 2)


@dataclass(frozen=True)
class Calibration:
    """How probabilities and truth of some patches agree.

    Attributes:
        patches: how many.
        ece: expected calibration error, see `metrics.calibration_error`.
        log_loss: see `log_loss`.
        brier: mean squared distance of the probabilities from the truth, summed over classes, 0 to 2 (Brier 1950).
    """

    patches: int
    ece: float
    log_loss: float
    brier: float

    @classmethod
    def of(cls, p: np.ndarray, y: np.ndarray, called: np.ndarray) -> Calibration:
        """Of probabilities (patches, classes), true and called positions (patches,), at least one."""
        truth = np.eye(p.shape[1])[y]
        brier = float(((p - truth) ** 2).sum(1).mean())
        ece = calibration_error(np.minimum(p.max(1), 1.0), called == y)
        return cls(len(y), ece, log_loss(p, y), brier)

    def plain(self) -> dict[str, float]:
        """For a JSON file."""
        return asdict(self)
