"""The table of methods on the page: rows in groups, and the small pictures of their differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.evaluate.intervals import METRICS
from stemcell_lit.evaluate.metrics import confusion
from stemcell_lit.evaluate.results_table import effect_sizes
from stemcell_lit.experiment.results import CLAIM, TITLES, Results, Row, rows_of
from stemcell_lit.report.numbers import interval, signed_points, verdict_word

GROUPS = {
    "reference": "Reference",
    "imbalance": "One network, otherwise trained, most against imbalance",
    "classic": "Classical features",
    "generated": "Generated patches",
    "tree": "A tree",
    "time": "Time",
    "full": "The paper's full method",
}

MARKS = {"shown": "✓", "worse": "▼", "not shown": "?", "baseline": ""}
WIDTH, HEIGHT = 132, 16  # of a bar, px


def marked(word: str) -> str:
    """A verdict with its mark, so that it can be told without its colour."""
    return f"{MARKS.get(word, '≈')} {word}".strip()


def scored(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row with its verdict: the word, with a mark, and as a class of CSS."""
    word = verdict_word(row)
    return {**row, "word": word, "marked": marked(word), "css": word.replace(" ", "-")}


def group_of(results: Results, method: str) -> str:
    """Which group of the table a method stands in, one of `GROUPS`, from what its trials are."""
    trial, about = results.of(method)[0], results.about(method)
    if method == results.baseline or about.learner == "clock":
        return "reference"
    if about.claimed:
        return "full"
    if about.learner in ("classic", "stacked"):
        return "classic"
    if trial.info.get("generator"):
        return "generated"
    if (trial.info.get("temporal") or {}).get("kind", "none") != "none":
        return "time"
    return "tree" if len(trial.info.get("stages") or []) > 1 else "imbalance"


@dataclass(frozen=True)
class Scale:
    """From differences to pixels, the same for all bars of a table.

    Attributes:
        low: the difference at the left edge, below 0.
        high: at the right edge, above 0.
    """

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where a difference stands, in px, 4 from the edges at most; never outside."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(4 + share * (WIDTH - 8), 1)


def scale_of(rows: Sequence[Row]) -> Scale:
    """A scale that holds all intervals, but not that of a method far behind, which would squeeze the others."""
    known = [row for row in rows if math.isfinite(row["delta"])]
    usual = sorted(abs(row["delta"]) for row in known)
    most = 4 * max(0.05, usual[len(usual) // 2]) if usual else 0.05
    near = [row for row in known if row["delta"] > -most] or known
    ends = [v for row in near for v in (row["delta"], row["delta_low"], row["delta_high"])]
    ends = [v for v in ends if math.isfinite(v)]
    low, high = min([-CLAIM, *ends]), max([2 * CLAIM, *ends])
    pad = 0.04 * (high - low)
    return Scale(low - pad, high + pad)


def bar(row: Row, scale: Scale) -> dict[str, Any]:
    """What the picture of a difference is drawn from, in px, and what it says in words."""
    delta, low, high = (float(row[c]) for c in ("delta", "delta_low", "delta_high"))
    known = math.isfinite(low) and math.isfinite(high)
    told = f"{signed_points(delta)} points {TITLES[str(row['metric'])]}"
    return {
        "zero": scale.at(0),
        "claim": scale.at(CLAIM),
        "dot": scale.at(delta) if math.isfinite(delta) else None,
        "ends": (scale.at(low), scale.at(high)) if known else None,
        "cut": math.isfinite(delta) and delta < scale.low,
        "filled": verdict_word(row) in ("shown", "worse"),
        "words": f"{told}, interval {interval(low, high, True)}"
        if known
        else f"{told}, no interval",
    }


def part_rows(parts: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each pair of `contrasts`, with its scores and bars."""
    records: Any = parts.to_dict("records")
    scales = {m: scale_of([row for row in records if row["metric"] == m]) for m in METRICS}
    told = []
    for _, pair in parts.groupby(["part", "where", "method", "other"], sort=False):
        scores = {row["metric"]: scored(row) for row in pair.to_dict("records")}
        bars = {metric: bar(row, scales[metric]) for metric, row in scores.items()}
        told.append({**pair.iloc[0], "scores": scores, "bars": bars})
    return told


def method_groups(
    results: Results, table: pd.DataFrame, use: str | None
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Title of each group that has methods, and its rows.

    Args:
        results: the trials.
        table: of `compare`.
        use: the method that the report recommends.
    """
    rows = rows_of(table)
    validated = results.validated
    sizes = effect_sizes(matrices(results), results.baseline)
    scales = {
        metric: scale_of([rows[m, metric, ""] for m in results.methods[1:]]) for metric in METRICS
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in GROUPS}
    for method in results.methods:
        scores = {metric: scored(rows[method, metric, ""]) for metric in METRICS}
        found[group_of(results, method)].append(
            {
                "name": method,
                "about": results.about(method).about or "",
                "baseline": method == results.baseline,
                "use": method == use,
                "validation": validated.get(method, (math.nan, math.nan)),
                "effect": dict(zip(METRICS, sizes.get(method, [math.nan] * 2), strict=True)),
                "scores": scores,
                "bars": {metric: bar(scores[metric], scales[metric]) for metric in METRICS},
            }
        )
    return [(title, found[name]) for name, title in GROUPS.items() if found[name]]


def matrices(results: Results) -> dict[str, np.ndarray]:
    """Per method (trials, classes, classes): a confusion matrix for each seed and fold, in one order for all."""
    return {
        method: np.stack(
            [
                confusion(c.predictions["label"], c.predictions["predicted"], results.classes)
                for c in results.of(method)
            ]
        )
        for method in results.methods
    }


def confusion_tables(
    results: Results, counts: Mapping[str, np.ndarray], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of the confusion matrix of each method: the share of each true class, and the number of calls."""
    told = []
    for method in dict.fromkeys(methods):
        matrix = counts[method].sum((0, 1))
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        rows = [
            {
                "true": name,
                "cells": [
                    {"share": float(s), "calls": int(n), "right": i == j}
                    for j, (s, n) in enumerate(zip(share[i], matrix[i], strict=True))
                ],
            }
            for i, name in enumerate(results.classes)
        ]
        told.append({"method": method, "rows": rows})
    return told
