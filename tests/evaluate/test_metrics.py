"""TPR, F1 and calibration: one definition, pinned to scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import (
    calibration_error,
    confusion,
    reliability,
    scores,
    stage_metrics,
)

CLASSES = ["debris", "dense", "spread", "differentiated"]


def draw(seed: int, n: int = 200, absent: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.choice(CLASSES, n, p=[0.1, 0.5, 0.3, 0.1])
    predicted = np.where(rng.random(n) < 0.6, true, rng.choice(CLASSES, n))
    if absent:
        true[true == absent] = "dense"
    return true, predicted


def test_tpr_is_recall_by_hand():
    # three dense, one of them found; two spread, both found
    found = scores(
        ["dense", "dense", "dense", "spread", "spread"],
        ["dense", "spread", "spread", "spread", "spread"],
        ["dense", "spread"],
    )
    assert found["tpr/dense"] == pytest.approx(1 / 3)
    assert found["tpr/spread"] == 1.0
    assert found["macro/tpr"] == pytest.approx(2 / 3)
    assert found["f1/dense"] == pytest.approx(2 / 4)
    assert found["f1/spread"] == pytest.approx(4 / 6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_scores_are_those_of_scikit_learn(seed):
    true, predicted = draw(seed)
    found = scores(true, predicted, CLASSES)
    keys = {"labels": CLASSES, "zero_division": 0}
    for kind, reference in (("tpr", recall_score), ("f1", f1_score)):
        each = reference(true, predicted, average=None, **keys)
        assert [found[f"{kind}/{name}"] for name in CLASSES] == pytest.approx(list(each))
        assert found[f"macro/{kind}"] == pytest.approx(
            reference(true, predicted, average="macro", **keys)
        )
    assert (
        confusion(true, predicted, CLASSES) == confusion_matrix(true, predicted, labels=CLASSES)
    ).all()


def test_class_absent_from_the_truth_is_nan_and_left_out_of_the_macro():
    true, predicted = draw(3, absent="debris")
    assert (predicted == "debris").any(), "the case that torchmetrics' own macro counts as 0"
    found = scores(true, predicted, CLASSES)
    rest = [name for name in CLASSES if name != "debris"]
    for kind, reference in (("tpr", recall_score), ("f1", f1_score)):
        assert math.isnan(found[f"{kind}/debris"])
        each = reference(true, predicted, labels=CLASSES, average=None, zero_division=0)
        assert found[f"macro/{kind}"] == pytest.approx(each[1:].mean())
        assert [found[f"{kind}/{name}"] for name in rest] == pytest.approx(list(each[1:]))


@pytest.mark.parametrize("absent", [None, "debris", "differentiated"])
@pytest.mark.parametrize("as_logits", [True, False])
def test_stage_metrics_equal_scores(absent, as_logits):
    true, predicted = draw(5, absent=absent)
    place = {name: i for i, name in enumerate(CLASSES)}
    y = torch.tensor([place[name] for name in true])
    p = torch.tensor([place[name] for name in predicted])
    if as_logits:
        p = torch.nn.functional.one_hot(p, len(CLASSES)).float() * 3 - 1
    metrics = stage_metrics(CLASSES).clone(prefix="val/")
    for start in range(0, len(y), 32):
        metrics.update(p[start : start + 32], y[start : start + 32])
    found = {key: float(value) for key, value in metrics.compute().items()}
    expected = {f"val/{k}": v for k, v in scores(true, predicted, CLASSES).items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-6, nan_ok=True), key


def test_stage_metrics_of_two_splits_do_not_mix_and_reset():
    metrics = stage_metrics(["a", "b"])
    train, val = metrics.clone(prefix="train/"), metrics.clone(prefix="val/")
    train.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    val.update(torch.tensor([1, 0]), torch.tensor([0, 1]))
    assert float(train.compute()["train/macro/tpr"]) == 1
    assert float(val.compute()["val/macro/tpr"]) == 0
    val.reset()
    val.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert float(val.compute()["val/macro/f1"]) == 1
    assert (
        float(train.forward(torch.tensor([0, 0]), torch.tensor([0, 1]))["train/macro/tpr"]) == 0.5
    )


def test_a_dot_in_a_class_name_is_allowed():
    metrics = stage_metrics(["stage 1.5", "other"])
    metrics.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert float(metrics.compute()["tpr/stage 1_5"]) == 1


def test_unknown_labels_are_named():
    with pytest.raises(UserError, match="blob"):
        scores(["dense", "blob"], ["dense", "dense"], CLASSES)
    with pytest.raises(UserError, match="7"):
        scores([7], [0], CLASSES)
    with pytest.raises(UserError, match="2 true labels but 1"):
        scores(["dense", "dense"], ["dense"], CLASSES)


def test_calibration_error_by_hand():
    # ten patches called at 0.95, six of them right: the gap is 0.35
    assert calibration_error([0.95] * 10, [1] * 6 + [0] * 4) == pytest.approx(0.35)
    # half of the patches at 0.8 with 80 % right (gap 0), half at 0.6 with 20 % right (gap 0.4)
    confidence = [0.81] * 10 + [0.61] * 10
    correct = [1] * 8 + [0] * 2 + [1] * 2 + [0] * 8
    assert calibration_error(confidence, correct) == pytest.approx((0.01 + 0.41) / 2)
    assert math.isnan(calibration_error([], []))


def test_certain_predictions_fall_into_the_last_bin():
    _, share, count = reliability([1.0, 1.0], [True, False], bins=10)
    assert count[-1] == 2 and share[-1] == 0.5 and count.sum() == 2
