"""The last layer alone: what it sees, features drawn after that, and its training again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stemcell_lit.classify.head import ClassGaussians, filling, head_inputs, refit_head
from stemcell_lit.classify.networks import heads
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.errors import UserError
from stemcell_lit.settings.group_keys import StageConfig
from tests.conftest import CLASSES

GROUPS = {c: [c] for c in CLASSES}


def module(**changes):
    plan = {**StageConfig().__dict__, "width": 4, "batch_size": 16, **changes}
    return StageModule(plan, "root", GROUPS, [4, 20, 16, 8], 16, seed=1)


def weights(stage):
    return {name: value.clone() for name, value in stage.state_dict().items()}


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("turns", [False, True])
def test_the_last_layer_on_its_inputs_answers_as_the_network_does(store, members, turns):
    stage, pixels = module(members=members, turns=turns), store.pixels[:7]
    seen = head_inputs(stage, pixels)
    assert seen.shape == (members, 8 if turns else 1, 7, 32) and stage.training
    layers = heads(stage.network, len(CLASSES))
    with torch.no_grad():
        logits = [h(torch.from_numpy(x)) for h, x in zip(layers, seen, strict=True)]
    p = torch.stack(logits).softmax(-1).mean((0, 1)).numpy()
    np.testing.assert_allclose(p, stage.probabilities(pixels), atol=1e-5)


def test_a_network_that_does_something_behind_its_last_layer_is_refused(store):
    stage = module()
    stage.network.append(nn.Softmax(1))
    with pytest.raises(UserError, match=r"stage\.refit_head: .*behind its last linear layer"):
        head_inputs(stage, store.pixels[:3])


def clouds(counts, width=4, seed=0):
    """Features of classes far apart in a row, each with a spread of its own."""
    rng = np.random.default_rng(seed)
    parts = [5.0 * c + rng.normal(0, 1 + c, (n, width)) for c, n in enumerate(counts)]
    return np.concatenate(parts).astype(np.float32), np.repeat(np.arange(len(counts)), counts)


def test_drawn_features_have_the_mean_of_their_class_and_the_spread_of_it_and_its_nearest():
    x, y = clouds([400, 400, 400, 1, 400])
    found, labels = ClassGaussians.fit(x, y, 5).draw([4000] * 5, [0])
    for c, near in ((0, (0, 1, 2)), (3, (2, 4)), (4, (4, 2))):
        drawn = found[labels == c]
        np.testing.assert_allclose(drawn.mean(0), x[y == c].mean(0), atol=0.3)
        variance = np.mean([(1 + n) ** 2 for n in near])
        assert drawn.var(0).mean() == pytest.approx(variance, rel=0.15)


def test_a_class_with_many_patches_borrows_little_from_one_with_few():
    x, y = clouds([2000, 10, 10])
    found, labels = ClassGaussians.fit(x, y, 3).draw([4000, 4000, 0], [0])
    assert found[labels == 0].var(0).mean() == pytest.approx(1, rel=0.2)
    assert found[labels == 1].var(0).mean() == pytest.approx(1, rel=0.2)  # nearly all is borrowed


def test_features_that_are_never_below_zero_are_drawn_so():
    x, y = clouds([50, 20])
    drawn, _ = ClassGaussians.fit(np.abs(x), y, 2).draw([500, 500], [0])
    assert drawn.min() >= 0 and ClassGaussians.fit(x, y, 2).draw([500, 0], [0])[0].min() < 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=3, max_size=3), st.integers(0, 9))
def test_fewer_draws_are_the_first_of_more_whatever_the_others_get(wanted, seed):
    gaussians = ClassGaussians.fit(*clouds([30, 5, 1]), 3)
    most, of = gaussians.draw([40] * 3, [seed])
    found, labels = gaussians.draw(wanted, [seed])
    assert np.bincount(labels, minlength=3).tolist() == wanted and np.isfinite(found).all()
    for c, n in enumerate(wanted):
        np.testing.assert_allclose(found[labels == c], most[of == c][:n], rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(1, 500), min_size=2), st.floats(0, 3))
def test_a_dose_of_one_fills_every_class_to_the_largest(counts, dose):
    assert {n + m for n, m in zip(counts, filling(counts, 1), strict=True)} == {max(counts)}
    filled = zip(counts, filling(counts, dose), strict=True)
    assert all(abs(m - dose * (max(counts) - n)) <= 0.5 for n, m in filled)


@pytest.mark.parametrize("dose", [0, 2])
def test_the_last_layer_alone_learns_on_and_always_alike(store, dose):
    def refitted():
        stage = module()
        first = weights(stage)
        features = head_inputs(stage, store.pixels)
        made = refit_head(stage, features, store.labels, dose=dose, images=640, seed=3)
        return first, weights(stage), made

    before, after, made = refitted()
    assert made == filling(np.bincount(store.labels).tolist(), dose)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"network.{k}" for k in ("12.weight", "12.bias")}
    again = refitted()[1]
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_balanced_features_make_a_last_layer_know_rare_classes(store):
    stage = module(lr=0.01, turns=False)
    x, y = clouds([4, 60, 30, 8], width=32)
    head = heads(stage.network, 4)[0]

    def likelihoods():
        with torch.no_grad():
            own = head(torch.from_numpy(x)).log_softmax(1)[range(len(y)), y]
        return [float(own[y == c].mean()) for c in range(4)]

    before = likelihoods()
    refit_head(stage, x[None, None], y, dose=1, images=6400, seed=0)
    assert min(likelihoods()) > min(before) + 0.5
