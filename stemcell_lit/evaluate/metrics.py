"""One definition of TPR, F1 and calibration, for arrays after a run and for Lightning modules.

TPR (true positive rate) of a class is its recall: of the patches that truly belong to it, the share
that was called so, the diagonal of a rows-are-true confusion matrix over its row sums. (Over column
sums it would be precision.) F1 is 2 TP / (2 TP + FP + FN).

A class without a single true patch has no TPR and no F1: both are NaN, and the macro mean leaves it
out. A fold that lacks a rare class is thus not punished for it, nor rewarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from stemcell_lit.errors import UserError


def positions(labels: ArrayLike, classes: Sequence[str]) -> np.ndarray:
    """Where each label stands in `classes`.

    Args:
        labels: (n,) class names, or integers that are positions already.
        classes: class names in their fixed order.

    Returns:
        (n,) int64, 0 to len(classes) - 1.

    Raises:
        UserError: a label that is not among the classes.
    """
    names = np.asarray(labels)
    if names.size == 0:
        return np.zeros(0, np.int64)
    if np.issubdtype(names.dtype, np.integer):
        wrong = names[(names < 0) | (names >= len(classes))]
        if wrong.size:
            raise UserError(
                f"label {wrong[0]} is not a position in the {len(classes)} classes {list(classes)}"
            )
        return names.astype(np.int64)
    place = {name: i for i, name in enumerate(classes)}
    distinct, inverse = np.unique(names.astype(str), return_inverse=True)
    unknown = [str(name) for name in distinct if name not in place]
    if unknown:
        raise UserError(f"labels {unknown} are not among the classes {list(classes)}")
    return np.array([place[str(name)] for name in distinct], np.int64)[inverse.reshape(-1)]


def confusion(true: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> np.ndarray:
    """Counts patches by true and predicted class.

    Args:
        true: (n,) class names, or positions in `classes`.
        predicted: (n,) the same.
        classes: class names in their fixed order.

    Returns:
        int64 (classes, classes): rows are true, columns predicted.

    Raises:
        UserError: a label that is not among the classes, or two lengths.
    """
    rows, columns = positions(true, classes), positions(predicted, classes)
    if len(rows) != len(columns):
        raise UserError(f"{len(rows)} true labels but {len(columns)} predicted ones")
    k = len(classes)
    return np.bincount(rows * k + columns, minlength=k * k).reshape(k, k)


def rates(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TPR and F1 of every class from confusion matrices.

    Args:
        matrix: (..., classes, classes) counts or weights, rows true.

    Returns:
        TPR and F1, each (..., classes), 0 to 1; NaN where a class has no true patch.
    """
    matrix = np.asarray(matrix, np.float64)
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    truth, called = matrix.sum(-1), matrix.sum(-2)
    absent = truth == 0
    tpr = np.where(absent, np.nan, hit / np.where(absent, 1.0, truth))
    f1 = np.where(absent, np.nan, 2 * hit / np.where(absent, 1.0, truth + called))
    return tpr, f1


def macro(values: np.ndarray) -> np.ndarray:
    """Mean over the classes (last axis) that have a value; NaN where none has."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def scores_of(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """`scores` from a confusion matrix (classes, classes), rows true."""
    tpr, f1 = rates(matrix)
    result = {"macro/tpr": float(macro(tpr)), "macro/f1": float(macro(f1))}
    result |= {f"tpr/{name}": float(value) for name, value in zip(classes, tpr, strict=True)}
    result |= {f"f1/{name}": float(value) for name, value in zip(classes, f1, strict=True)}
    return result


def scores(true: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """Macro and per-class TPR (recall) and F1.

    Equal to scikit-learn's `recall_score` and `f1_score` with `labels=classes, zero_division=0`
    wherever every class occurs among the true labels. A class that does not is NaN here and left
    out of the macro mean (scikit-learn would count it as 0).

    Args:
        true: (n,) class names, or positions in `classes`.
        predicted: (n,) the same.
        classes: class names in their fixed order.

    Returns:
        `macro/tpr`, `macro/f1`, and for every class `tpr/<class>` and `f1/<class>`; 0 to 1 or NaN.

    Raises:
        UserError: a label that is not among the classes.
    """
    return scores_of(confusion(true, predicted, classes), classes)


class _Score(Metric):
    """TPR or F1 of one class, or of all (macro), from a running confusion matrix.

    All of a collection hold the same state, so torchmetrics updates one of them and shares it
    (compute groups).
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    matrix: Tensor

    def __init__(self, classes: int, kind: str, position: int | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.classes, self.kind, self.position = classes, kind, position
        self.add_state(
            "matrix", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum"
        )

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Counts a batch.

        Args:
            predicted: (batch, classes) logits or probabilities, or (batch,) positions.
            true: (batch,) positions.
        """
        if predicted.ndim == 2:
            predicted = predicted.argmax(1)
        k = self.classes
        self.matrix += torch.bincount(true * k + predicted, minlength=k * k).reshape(k, k)

    def compute(self) -> Tensor:
        """A float32 scalar, NaN for a class without true patches."""
        matrix = self.matrix.float()
        truth, called = matrix.sum(1), matrix.sum(0)
        below = truth if self.kind == "tpr" else (truth + called) / 2
        values = torch.where(truth > 0, matrix.diagonal() / below, torch.nan)
        return values.nanmean() if self.position is None else values[self.position]


def stage_metrics(groups: Sequence[str]) -> MetricCollection:
    """Macro and per-class TPR (recall) and F1 for a module; clone per split with a prefix.

    The same numbers under the same names as `scores`. Only a dot in a name becomes `_`, for torch
    allows no dot in the name of a submodule::

        metrics = stage_metrics(["debris", "cells"])
        self.val_metrics = metrics.clone(prefix="val/")
        self.val_metrics.update(logits, positions)
        self.log_dict(self.val_metrics)  # val/macro/tpr, val/tpr/debris, ...

    Args:
        groups: names of what the stage tells apart, in their fixed order.

    Returns:
        A collection; its `update` takes (batch, groups) logits or (batch,) positions, then (batch,)
        true positions. Summed over ranks.
    """
    parts: dict[str, Metric] = {}
    for kind in ("tpr", "f1"):
        parts[f"macro/{kind}"] = _Score(len(groups), kind, None)
        for position, name in enumerate(groups):
            parts[f"{kind}/{name}".replace(".", "_")] = _Score(len(groups), kind, position)
    return MetricCollection(parts, compute_groups=[list(parts)])  # type: ignore[arg-type]


def reliability(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often the classifier is right, by how sure it was.

    Args:
        confidence: (n,) probability of the predicted class, 0 to 1.
        correct: (n,) whether the prediction was right.
        bins: of equal width over 0 to 1.

    Returns:
        Mean confidence, share correct (both NaN in an empty bin) and patches, each (bins,).
    """
    sure = np.asarray(confidence, np.float64)
    right = np.asarray(correct, np.float64)
    place = np.clip((sure * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    empty = np.where(count > 0, count, np.nan)
    return (
        np.bincount(place, weights=sure, minlength=bins) / empty,
        np.bincount(place, weights=right, minlength=bins) / empty,
        count,
    )


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and share correct.

    The bins' gaps are weighted by their patches:
    Guo et al. 2017, "On calibration of modern neural networks", equation 3, with 15 bins as there.

    Args:
        confidence: (n,) probability of the predicted class, 0 to 1.
        correct: (n,) whether the prediction was right.
        bins: of equal width over 0 to 1.

    Returns:
        0 (calibrated) to 1; NaN without patches.
    """
    sure, right, count = reliability(confidence, correct, bins)
    if count.sum() == 0:
        return float("nan")
    return float(np.nansum(np.abs(sure - right) * count) / count.sum())
