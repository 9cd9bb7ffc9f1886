"""From intervals and p values to what the table says: differences, Holm's adjustment, claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stemcell_lit.evaluate.intervals import (
    ALPHA,
    METRICS,
    paired_bootstrap,
    paired_permutation,
    values,
)

COLUMNS = (
    *("method", "metric", "class", "mean", "low", "high"),
    *("delta", "delta_low", "delta_high", "p", "verdict"),
)


def holm(pvalues: ArrayLike) -> np.ndarray:
    """P values adjusted for their number after Holm (1979): step down, family-wise error kept.

    Args:
        pvalues: (n,) raw p values; NaN stays NaN and does not count.

    Returns:
        (n,) adjusted, 0 to 1, never below the raw ones.
    """
    raw = np.asarray(pvalues, np.float64)
    adjusted = np.full(raw.shape, np.nan)
    known = np.flatnonzero(~np.isnan(raw))
    order = known[np.argsort(raw[known], kind="stable")]
    steps = raw[order] * (len(order) - np.arange(len(order)))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted


def verdict_of(low: float, high: float, p: float, margin: float = 0.0) -> str:
    """One of `shown`, `not shown`, `worse`.

    Args:
        low: lower end of the difference's interval, -1 to 1.
        high: upper end.
        p: adjusted p value of no difference.
        margin: what the gain must exceed, 0 to 1.

    Returns:
        `shown` if the whole interval lies above the margin and p is below 0.05, `worse` if it lies
        below zero and p is below 0.05, else `not shown`, also where interval or p are unknown.
    """
    if not (math.isfinite(low) and math.isfinite(high) and p < ALPHA):
        return "not shown"
    if low > margin:
        return "shown"
    return "worse" if high < 0 else "not shown"


def claim(low: float, high: float, p: float, margin: float = 0.02) -> str:
    """Does the interval speak for a gain of at least `margin`: `yes`, `no` or `not shown`.

    `no` needs the whole interval below the margin: a gain that large is then ruled out.
    """
    if verdict_of(low, high, p, margin) == "shown":
        return "yes"
    return "no" if math.isfinite(high) and high < margin else "not shown"


def verdict(
    delta: float, low: float, high: float, p: float, margin: float = 0.0, metric: str = "TPR"
) -> str:
    """The difference in a sentence: `+3.1 points TPR, 95 % interval +1.2 to +5.0: shown`.

    Args:
        delta: difference to the baseline, -1 to 1.
        low: lower end of its interval.
        high: upper end.
        p: adjusted p value.
        margin: what the gain must exceed.
        metric: its name.
    """
    if not math.isfinite(delta):
        return f"no {metric}: the class was never tested: not shown"
    told = f"{points(delta)} points {metric}"
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{told}, too few groups for an interval: not shown"
    return (
        f"{told}, 95 % interval {points(low)} to {points(high)}: {verdict_of(low, high, p, margin)}"
    )


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign: 0.031 is `+3.1`."""
    return f"{100 * share + 0.0:+.1f}".replace("-0.0", "+0.0")


def compare(
    counts: Mapping[str, np.ndarray],
    baseline: str,
    classes: Sequence[str],
    *,
    primary: str | None = None,
    subsets: Mapping[str, Sequence[str]] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The table: every method, metric and class with interval, difference, p value and verdict.

    P values are adjusted after Holm in families: macro scores, class scores and scores of subsets, each
    of the primary method and of all others. The question asked beforehand thus does not become harder by
    every method that runs beside it.

    Args:
        counts: per method (seeds, groups, classes, classes).
        baseline: the method to compare with; its own differences stay empty.
        classes: class names in their fixed order.
        primary: the method of the question asked before any result was seen; None: none was.
        subsets: name -> classes; their macro scores are rows of class `macro/<name>`.
        resamples: draws of groups, and most swaps of the permutation test.
        seed: of both.

    Returns:
        Columns `COLUMNS`; `class` is empty for the macro rows over all classes.
    """
    subsets = subsets or {}
    inside = [[list(classes).index(c) for c in members] for members in subsets.values()]
    levels, differences = paired_bootstrap(
        counts, baseline, subsets=inside, resamples=resamples, seed=seed
    )
    tests = {
        name: paired_permutation(
            counts[name], counts[baseline], subsets=inside, resamples=resamples, seed=seed
        )
        for name in differences
    }
    labels = ["", *classes, *(f"macro/{name}" for name in subsets)]
    rows = []
    for name, level in levels.items():
        for i, metric in enumerate(METRICS):
            for j, label in enumerate(labels):
                row: dict[str, Any] = {"method": name, "metric": metric, "class": label}
                row |= {end: getattr(level, end)[i, j] for end in ("mean", "low", "high")}
                gain = differences.get(name)
                row["delta"] = gain.mean[i, j] if gain else np.nan
                row["delta_low"] = gain.low[i, j] if gain else np.nan
                row["delta_high"] = gain.high[i, j] if gain else np.nan
                row["p"] = tests[name][i, j] if gain else np.nan
                rows.append(row)
    table = pd.DataFrame(rows)
    kinds = [table["class"] == "", table["class"].isin(list(classes))]
    asked = table["method"] == primary
    for family in (a & b for a in (*kinds, ~kinds[0] & ~kinds[1]) for b in (asked, ~asked)):
        table.loc[family, "p"] = holm(table.loc[family, "p"])
    table["verdict"] = [
        "baseline"
        if row["method"] == baseline
        else verdict(
            row["delta"],
            row["delta_low"],
            row["delta_high"],
            row["p"],
            metric=row["metric"].upper(),
        )
        for row in table.to_dict("records")
    ]
    return table[list(COLUMNS)]


def contrasts(
    counts: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Macro TPR and F1 of one method against another, for pairs that were fixed before any result.

    P values are adjusted after Holm over all rows.

    Args:
        counts: per method (seeds, groups, classes, classes).
        pairs: (method, the other).
        resamples: draws of groups, and most swaps of the permutation test.
        seed: of both.

    Returns:
        A row for each pair and metric: method, other, metric, delta, delta_low, delta_high, p, verdict.
    """
    rows: list[dict[str, Any]] = []
    for method, other in pairs:
        two = {name: counts[name] for name in (method, other)}
        gain = paired_bootstrap(two, other, resamples=resamples, seed=seed)[1][method]
        p = paired_permutation(counts[method], counts[other], resamples=resamples, seed=seed)
        for i, metric in enumerate(METRICS):
            ends = (gain.mean[i, 0], gain.low[i, 0], gain.high[i, 0], p[i, 0])
            names = ("delta", "delta_low", "delta_high", "p")
            told = {"method": method, "other": other, "metric": metric}
            rows.append(told | dict(zip(names, map(float, ends), strict=True)))
    adjusted = holm([row["p"] for row in rows])
    for row, p in zip(rows, adjusted, strict=True):
        row["p"] = float(p)
        limits = (row["delta"], row["delta_low"], row["delta_high"], row["p"])
        row["verdict"] = verdict(*limits, metric=row["metric"].upper())
    columns = ["method", "other", "metric", "delta", "delta_low", "delta_high", "p", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def effect_sizes(counts: Mapping[str, np.ndarray], baseline: str) -> dict[str, np.ndarray]:
    """How large a gain is beside its own scatter over folds and seeds: Cohen's d_z, mean over standard deviation.

    Unlike an interval it does not shrink with the number of folds and seeds. Folds share most of their training
    patches, so it describes and tests nothing. With few patches of a class in a fold its scatter is mostly theirs.

    Args:
        counts: per method (trials, classes, classes), a confusion matrix for each fold and seed, rows true, in the same
            order for all.
        baseline: the method to compare with.

    Returns:
        Per other method (2,): of macro TPR and F1; NaN for one trial, or where all differ alike.
    """
    base = values(counts[baseline])[..., 0]
    sizes = {}
    for name, array in counts.items():
        if name == baseline:
            continue
        gain = values(array)[..., 0] - base
        spread = gain.std(0, ddof=1) if len(gain) > 1 else np.zeros(2)
        sizes[name] = np.where(spread > 1e-12, gain.mean(0) / np.maximum(spread, 1e-12), np.nan)
    return sizes
