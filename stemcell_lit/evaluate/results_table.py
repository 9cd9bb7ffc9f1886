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
    Intervals,
    detectable,
    least_p,
    paired_bootstrap,
    paired_permutation,
    values,
)

COLUMNS = (
    *("method", "metric", "class", "mean", "low", "high"),
    *("delta", "delta_low", "delta_high", "p", "mde", "verdict"),
)

SMALL = 0.02  # a difference below it counts as none: the gain that the paper claims


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


def small(low: float, high: float, margin: float = SMALL) -> str:
    """What an interval rules out, in words; empty: nothing.

    "Not shown" may mean that the data are few, or that there is little to be shown. With the whole interval inside two
    points the latter is shown (equivalence, after Schuirmann 1987; by the 95 % interval instead of his 90 %).

    Args:
        low: lower end of the difference's interval, -1 to 1.
        high: upper end.
        margin: of a difference that counts, 0 to 1.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high >= margin:
        return ""
    told = f"{100 * margin:g} points"
    return f"no difference of {told}" if low > -margin else f"no gain of {told} or more"


def claim(low: float, high: float, p: float, margin: float = SMALL) -> str:
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

    Where it is neither shown nor worse it ends in what the interval rules out, see `small`, or else in `not shown`.

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
    word = verdict_of(low, high, p, margin)
    word = (small(low, high) if word == "not shown" else "") or word
    return f"{told}, 95 % interval {points(low)} to {points(high)}: {word}"


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
        Columns `COLUMNS`; `class` is empty for the macro rows over all classes; `mde` is the smallest gain that would
        have been shown with a probability of 80 %, NaN where none would.
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
                row["at"] = (i, j)
                rows.append(row)
    table = pd.DataFrame(rows)
    table["level"] = np.nan
    kinds = [table["class"] == "", table["class"].isin(list(classes))]
    asked = table["method"] == primary
    for family in (a & b for a in (*kinds, ~kinds[0] & ~kinds[1]) for b in (asked, ~asked)):
        table.loc[family, "p"] = holm(table.loc[family, "p"])
        table.loc[family, "level"] = _levels(
            table.loc[family, "p"], table["method"][family].to_list()
        )
    possible = least_p(_groups_that_differ(counts[baseline], inside), resamples)
    table["mde"] = [
        _smallest(differences[row["method"]], row["level"], row["at"], possible)
        if row["method"] in differences
        else np.nan
        for row in table.to_dict("records")
    ]
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


def _levels(adjusted: ArrayLike, methods: Sequence[Any]) -> np.ndarray:
    """What each raw p value must lie below: alpha over those of its family that are not shown (Holm).

    All of its own method count as not shown: TPR and F1 of a method rise and fall together, so that one that needs the
    other to be shown first is no easier.

    Args:
        adjusted: (n,) p values of a family.
        methods: (n,) what each is of.
    """
    p, of = np.asarray(adjusted, np.float64), list(methods)
    shown = p < ALPHA
    others = [sum(s for s, other in zip(shown, of, strict=True) if other != own) for own in of]
    left = (~np.isnan(p)).sum() - np.array(others, np.int64)
    levels: np.ndarray = ALPHA / np.maximum(left, 1)
    return levels


def _groups_that_differ(counts: np.ndarray, subsets: Sequence[Sequence[int]]) -> np.ndarray:
    """(2, 1 + classes + subsets) groups in which TPR and F1 of two methods can differ.

    TPR of a class: groups with patches of it. F1: all with patches, since calls of the class count wherever they are.
    """
    holds = counts.sum((0, 3)) > 0  # (groups, classes)
    within = [holds[:, list(inside)].any(1).sum() for inside in subsets]
    tpr = [holds.any(1).sum(), *holds.sum(0), *within]
    return np.array([tpr, [tpr[0]] * len(tpr)])


def _smallest(gain: Intervals, level: float, at: tuple[int, int], possible: np.ndarray) -> float:
    """The smallest gain that would have been shown; NaN where no p value can be small enough."""
    reachable = possible[at] < level
    return float(detectable(gain, level if reachable else 0.0)[at])


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
        A row for each pair and metric: method, other, metric, delta, delta_low, delta_high, p, mde, verdict.
    """
    rows: list[dict[str, Any]] = []
    gains: list[tuple[Intervals, np.ndarray]] = []
    for method, other in pairs:
        two = {name: counts[name] for name in (method, other)}
        gain = paired_bootstrap(two, other, resamples=resamples, seed=seed)[1][method]
        p = paired_permutation(counts[method], counts[other], resamples=resamples, seed=seed)
        gains += [(gain, least_p(_groups_that_differ(counts[other], ()), resamples))] * len(METRICS)
        for i, metric in enumerate(METRICS):
            ends = (gain.mean[i, 0], gain.low[i, 0], gain.high[i, 0], p[i, 0])
            names = ("delta", "delta_low", "delta_high", "p")
            told = {"method": method, "other": other, "metric": metric}
            rows.append(told | dict(zip(names, map(float, ends), strict=True)))
    adjusted = holm([row["p"] for row in rows])
    levels = _levels(adjusted, [(row["method"], row["other"]) for row in rows])
    for k, (row, p) in enumerate(zip(rows, adjusted, strict=True)):
        row["p"] = float(p)
        gain, possible = gains[k]
        row["mde"] = _smallest(gain, levels[k], (k % len(METRICS), 0), possible)
        limits = (row["delta"], row["delta_low"], row["delta_high"], row["p"])
        row["verdict"] = verdict(*limits, metric=row["metric"].upper())
    columns = ["method", "other", "metric", *COLUMNS[COLUMNS.index("delta") :]]
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
