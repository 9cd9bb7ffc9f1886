"""The cut in time between early and late classes: where it lies, and which side speaks at an hour."""

from __future__ import annotations

import numpy as np

EVER = (-np.inf, np.inf)  # both sides speak at every hour


def fit_window(
    only_early: np.ndarray, only_late: np.ndarray, quantile: float, margin_h: float
) -> tuple[float, float]:
    """When late classes begin and when early ones end, from training patches.

    Args:
        only_early: (patches,) hours of the classes that only the early side has, finite.
        only_late: (patches,) hours of those that only the late side has, finite.
        quantile: share of such patches that may lie outside, 0 to 0.5.
        margin_h: hours added to both ends.

    Returns:
        (first hour of late, last hour of early); both the same hour, halfway, where the two do not overlap; `EVER`
        where one side has no patch to tell by.
    """
    if len(only_early) == 0 or len(only_late) == 0:
        return EVER
    late_from = float(np.quantile(only_late, quantile)) - margin_h
    early_until = float(np.quantile(only_early, 1 - quantile)) + margin_h
    if late_from > early_until:  # they do not overlap: one cut halfway
        late_from = early_until = (late_from + early_until) / 2
    return late_from, early_until


def late_share(window: tuple[float, float], times: np.ndarray) -> np.ndarray:
    """(patches,) weight of the late side, 0 to 1: a step at the cut, a ramp where the windows overlap.

    Patches of unknown time ask both sides equally.

    Args:
        window: as `fit_window` returns it.
        times: (patches,) hours, NaN where unknown.
    """
    late_from, early_until = window
    if not np.isfinite(late_from) or not np.isfinite(early_until):
        return np.full(len(times), 0.5)
    if early_until <= late_from:
        share = (times >= late_from).astype(np.float64)
    else:
        share = np.clip((times - late_from) / (early_until - late_from), 0, 1)
    return np.where(np.isfinite(times), share, 0.5)
