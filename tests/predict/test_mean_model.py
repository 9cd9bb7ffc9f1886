"""Maps of a model that is the mean of several networks, at a temperature."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stemcell_lit.classify.stacked import Stacked
from stemcell_lit.predict.dense import why_not
from stemcell_lit.predict.mapper import Mapper
from tests.predict.test_predict import CLASSES, make_model, make_stage, noise, without_neighbours


def networks(network="small"):
    first, second = (make_stage(network, CLASSES) for _ in range(2))
    for parameter in second.network.parameters():
        parameter.data *= 1.1
    return first, second


def test_windows_of_a_mean_share_features_and_equal_windows_cut_out():
    parts = [without_neighbours(part) for part in networks()]
    model = make_model(um_per_px=None, stage=Stacked(parts, [0.25, 0.75]))
    frame = noise(96, 80)
    shared, exact = (Mapper(model, frame.shape, exact=exact) for exact in (False, True))
    assert shared.shared == ["root"] and not shared.exact
    p = shared.probabilities(frame)
    np.testing.assert_allclose(p, exact.probabilities(frame), atol=1e-4)
    each = [
        Mapper(make_model(um_per_px=None, stage=part), frame.shape).probabilities(frame)
        for part in parts
    ]
    np.testing.assert_allclose(p, 0.25 * each[0] + 0.75 * each[1], atol=1e-5)


def test_each_network_of_a_mean_is_adjusted_to_windows_cut_out():
    model = make_model(um_per_px=None, stage=Stacked(networks(), [0.5, 0.5]))
    frames = [noise(256, 256, seed=seed) for seed in range(2)]
    mapper = Mapper(model, (256, 256))
    cut = Mapper(model, (256, 256), exact=True).probabilities(frames[1])
    before = np.abs(mapper.probabilities(frames[1]) - cut).mean()
    mapper.adjust([(frames[0], float("nan"), np.ones(mapper.grid, bool))])
    assert np.abs(mapper.probabilities(frames[1]) - cut).mean() < before


def test_a_mean_of_networks_for_patches_of_two_sizes_is_cut_out():
    small, large = networks()
    small.image_size = 16
    assert "several sizes" in why_not(Stacked([small, large], [0.5, 0.5]))


@pytest.mark.parametrize("temporal", ["none", "prior"])
def test_maps_have_the_temperature_of_the_model(temporal):
    model = make_model(um_per_px=None, temporal=temporal, stage=networks()[0])
    frame = noise(64, 64)
    plain = Mapper(model, frame.shape, exact=True).probabilities(frame, 3.0)
    hot = replace(model, temperature=3.0)
    found = Mapper(hot, frame.shape, exact=True).probabilities(frame, 3.0)
    np.testing.assert_allclose(found, hot.calibrated(plain), atol=1e-5)
    assert np.abs(found - plain).max() > 0.01


def test_maps_before_a_path_are_not_at_the_temperature_that_was_fitted_behind_it():
    model = make_model(um_per_px=None, temporal="path", stage=networks()[0])
    frame = noise(64, 64)
    plain, hot = (
        Mapper(replace(model, temperature=t), frame.shape).probabilities(frame) for t in (1.0, 3.0)
    )
    np.testing.assert_array_equal(plain, hot)
