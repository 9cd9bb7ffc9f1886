"""Temperature and threshold are those of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stemcell_lit.evaluate.calibration import (
    Calibration,
    fit_temperature,
    log_loss,
    tempered,
    unsure_threshold,
)


def surer(p, factor):
    q = p**factor
    return q / q.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def honest():
    """Probabilities that are right as often as they say."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.6] * 4, 4000)
    y = (p.cumsum(1) > rng.random(len(p))[:, None]).argmax(1)
    return p, y


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_what_made_probabilities_too_sure_or_not_sure_enough(honest, factor):
    p, y = honest
    assert fit_temperature(surer(p, factor), y) == pytest.approx(factor, rel=0.1)


def test_the_temperature_lowers_log_loss_and_calibration_error(honest):
    p, y = honest
    q = surer(p, 2.5)
    cooled = tempered(q, fit_temperature(q, y))
    before, after = (Calibration.of(x, y, x.argmax(1)) for x in (q, cooled))
    assert after.log_loss < before.log_loss and after.ece < before.ece / 3
    assert after.brier < before.brier and before.patches == len(y)


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(np.float64, (5, 3), elements=st.floats(1e-4, 1)),
    st.floats(0.1, 10),
)
def test_a_temperature_changes_no_order_of_classes(raw, temperature):
    p = raw / raw.sum(1, keepdims=True)
    q = tempered(p, temperature)
    np.testing.assert_allclose(q.sum(1), 1)
    top = np.take_along_axis(q, p.argmax(1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(top, q.max(1))
    assert tempered(p, 1.0) is p


def test_without_a_mistake_nothing_becomes_surer():
    p = np.array([[0.6, 0.4], [0.3, 0.7]])
    assert fit_temperature(p, np.array([0, 1])) == 1.0
    assert fit_temperature(p[:0], np.empty(0, int)) == 1.0


def test_log_loss_and_brier_are_those_of_their_formulas():
    p, y = np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 0])
    assert log_loss(p, y) == pytest.approx(-(np.log(0.5) + np.log(0.25)) / 2)
    found = Calibration.of(p, y, p.argmax(1))
    assert found.brier == pytest.approx((0.5 + 2 * 0.75**2) / 2)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.3, 0.5, 0.7, 0.9]), st.booleans()), min_size=1),
    st.floats(0, 0.6),
)
def test_the_threshold_is_the_smallest_that_keeps_the_error(patches, error):
    top, right = (np.array(part) for part in zip(*patches, strict=True))
    found = unsure_threshold(top, right, error)
    by_hand = [
        t
        for t in sorted(set(top))
        if not right[top >= t].size or (~right[top >= t]).mean() <= error
    ]
    if found is None:
        assert not by_hand
        return
    assert (top >= found).sum() == (top >= by_hand[0]).sum()
    assert (~right[top >= found]).mean() <= error
    assert (found == 0) == ((~right).mean() <= error)


def test_no_patch_gives_no_threshold():
    assert unsure_threshold(np.empty(0), np.empty(0, bool), 0.05) is None
