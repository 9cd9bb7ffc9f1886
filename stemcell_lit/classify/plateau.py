"""How long a stage is trained: in cycles that each double what it has seen, until validation no longer gains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

_LEAST_P = 1e-12  # no logarithm of zero
_NOTHING = 1e-4  # nats: classes are told apart without a mistake, and a share of what is left means nothing
_TEMPERATURES = (math.log(0.05), math.log(20.0))  # of their logarithm


def cycle_ends(first: int, most: int) -> list[int]:
    """Images seen at the end of each cycle: halves of `most`, down to the last that is not below `first`.

    Every cycle but the first is as long as all before it, so that one cycle too many costs no more than what was
    needed (as the restarts of Loshchilov and Hutter 2017, SGDR, with factor 2).

    Args:
        first: images of the shortest first cycle.
        most: images over all cycles.
    """
    ends = [most]
    while ends[0] // 2 >= max(1, first):
        ends.insert(0, ends[0] // 2)
    return ends


def refined_loss(p: np.ndarray, labels: np.ndarray) -> float:
    """Cross-entropy of probabilities after the one temperature that suits them best; every class weighs the same.

    The temperature takes away how sure a network is, which training drives up long after its ranking of the classes
    has settled (Berta, Holzmueller, Jordan and Bach 2025, Rethinking early stopping: refine, then calibrate).

    Args:
        p: (patches, classes), 0 to 1.
        labels: (patches,) positions.

    Returns:
        nats a patch; NaN without patches.
    """
    if len(labels) == 0:
        return math.nan
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.sum()
    log_p = np.log(np.maximum(p.astype(np.float64), _LEAST_P))
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(log_p / math.exp(log_temperature), axis=1)
        return float(-(weights * scaled[rows, labels]).sum())

    found = minimize_scalar(loss, bounds=_TEMPERATURES, method="bounded")
    return min(float(found.fun), loss(0.0))


def goes_on(losses: Sequence[float | None], gain: float) -> bool:
    """Whether another cycle is worth its images: the last one brought the loss down by a share of `gain` or more.

    Args:
        losses: validation loss after each cycle so far; None where nothing validates, and then all cycles are trained.
        gain: 0 to 1.
    """
    return sum(loss is not None for loss in losses) < 2 or gained(losses, gain)


def gained(losses: Sequence[float | None], gain: float) -> bool:
    """Whether the last cycle brought the loss down by a share of `gain` or more; False where nothing tells.

    Below `_NOTHING` there is nothing to gain: the loss of classes that are told apart without a mistake falls for ever.
    """
    known = [loss for loss in losses if loss is not None]
    least = min(known[:-1], default=0.0)
    return least > _NOTHING and known[-1] <= (1 - gain) * least


def best(losses: Sequence[float | None]) -> int:
    """The cycle of least loss, the last one where nothing validates."""
    known = [loss for loss in losses if loss is not None]
    return known.index(min(known)) if known else len(losses) - 1
