import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage as ndi

from stemcell_lit.base.formats import fits
from stemcell_lit.classify.domain import ABOUT, FEATURES, QUANTILES, Domain, features


def cells(n=200, seed=0, size=32):
    """Patches with bright spots on a gray ground, of changing number and contrast."""
    rng = np.random.default_rng(seed)
    spots = np.zeros((n, size, size))
    for patch in spots:
        places = rng.integers(0, size, (int(rng.integers(4, 14)), 2))
        patch[tuple(places.T)] = rng.uniform(600, 1200)
    picture = 90 + ndi.gaussian_filter(spots, (0, 1, 1)) + rng.normal(0, 4, spots.shape)
    return np.rint(picture).clip(0, 255).astype(np.uint8)


def test_patches_of_the_same_kind_are_not_called_strange():
    assert Domain.of(cells(seed=1)).notices(cells(seed=2)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: np.rint(ndi.gaussian_filter(x.astype(float), (0, 2, 2))), "blurred"),
        (lambda x: 255 - x, "inverted contrast"),
        (lambda x: x // 2, "darker"),
        (lambda x: np.minimum(x * 3.0, 255), "over-exposed"),
        (lambda x: np.repeat(np.repeat(x[:, :16, :16], 2, 1), 2, 2), "another um/px"),
    ],
)
def test_blur_inversion_gain_and_scale_are_named(change, says):
    strange = change(cells(seed=2)).astype(np.uint8)
    found = Domain.of(cells(seed=1)).notices(strange)
    assert any(says in sentence for sentence in found), found


def test_nothing_is_said_of_too_few_patches():
    assert Domain.of(cells()).notices(255 - cells(10)) == []


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, min_side=8, max_side=12)),
    st.booleans(),
)
def test_any_patches_have_a_domain_that_reads_back_and_holds_themselves(pixels, scales):
    pixels = pixels[:, :8, :8]
    domain = Domain.of(np.stack([pixels, pixels], 1) if scales else pixels)
    plain = json.loads(json.dumps(domain.to_dict()))
    fits(ABOUT, plain, "model.json", "again")
    assert Domain.from_dict(plain) == domain and set(domain.quantiles) == set(FEATURES)
    for points in domain.quantiles.values():
        assert len(points) == len(QUANTILES) and points == sorted(points)
    assert domain.notices(np.repeat(pixels, 20, 0)) == []


def test_the_differences_do_not_depend_on_contrast():
    x = cells(20).astype(float)
    weaker = np.rint(128 + (x - 128) * 0.5).astype(np.uint8)
    one, other = features(cells(20)), features(weaker)
    np.testing.assert_allclose(one["fine"], other["fine"], rtol=0.1)
    np.testing.assert_allclose(one["coarse"], other["coarse"], rtol=0.1)
    assert (other["contrast"] < 0.6 * one["contrast"]).all()
