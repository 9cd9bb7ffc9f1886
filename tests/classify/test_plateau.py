import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemcell_lit.classify.plateau import best, cycle_ends, gained, goes_on, refined_loss


@given(st.integers(1, 10**6), st.integers(1, 10**7))
def test_cycles_double_what_was_seen_and_end_at_the_most(first, most):
    ends = cycle_ends(first, most)
    assert ends[-1] == most and ends == sorted(set(ends))
    assert all(b in (2 * a, 2 * a + 1) for a, b in itertools.pairwise(ends))
    assert len(ends) == 1 or ends[0] >= first
    assert ends[0] // 2 < first  # no shorter first cycle was possible


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(60, int), np.ones(30, int), np.full(10, 2)]
    logits = 2.0 * np.eye(3)[labels] + rng.normal(size=(100, 3))
    return logits, labels


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_the_loss_does_not_depend_on_how_sure_a_network_is(answers):
    logits, labels = answers
    losses = [refined_loss(softmax(f * logits), labels) for f in (0.5, 1, 2, 4)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-4)


def test_the_loss_rises_where_the_classes_are_told_apart_less_well(answers):
    logits, labels = answers
    worse = logits + np.random.default_rng(1).normal(0, 2, logits.shape)
    assert refined_loss(softmax(worse), labels) > 1.2 * refined_loss(softmax(logits), labels)


def test_every_class_weighs_the_same_in_the_loss(answers):
    logits, labels = answers
    p = softmax(logits)
    twice = np.r_[np.arange(100), np.flatnonzero(labels == 0)]
    assert refined_loss(p[twice], labels[twice]) == pytest.approx(refined_loss(p, labels))


def test_a_network_that_knows_nothing_has_the_entropy_of_equal_classes_and_certain_mistakes_are_finite():
    labels = np.array([0, 0, 0, 1, 2])
    assert refined_loss(np.full((5, 3), 1 / 3), labels) == pytest.approx(math.log(3))
    assert refined_loss(np.eye(3)[[1, 1, 1, 2, 0]], labels) < 5
    assert math.isnan(refined_loss(np.empty((0, 3)), labels[:0]))


def test_another_cycle_follows_only_a_gain():
    assert goes_on([], 0.02) and goes_on([0.5], 0.02)
    assert goes_on([0.5, 0.48], 0.02)
    assert not goes_on([0.5, 0.495], 0.02)
    assert not goes_on([0.5, 0.4, 0.45], 0.02)
    assert best([0.5, 0.4, 0.45]) == 1


def test_classes_that_are_told_apart_without_a_mistake_leave_nothing_to_gain():
    labels = np.arange(90) % 3
    losses = [refined_loss(softmax(f * np.eye(3)[labels]), labels) for f in (1, 2, 6)]
    assert losses[1] < losses[0] / 2  # it falls all the same
    assert not goes_on(losses[:2], 0.02) and not goes_on(losses, 0.02)
    assert not goes_on([0.0, 0.0], 0.02)


def test_a_gain_is_told_only_where_two_losses_tell_it():
    assert gained([0.5, 0.4], 0.02) and not gained([0.5, 0.6], 0.02)
    assert not any(gained(losses, 0.02) for losses in ([], [0.5], [None, None]))


def test_without_validation_all_cycles_are_trained_and_the_last_is_kept():
    assert goes_on([None, None, None], 0.02)
    assert best([None, None, None]) == 2
