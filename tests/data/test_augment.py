import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.data.augment import (
    POLICIES,
    albumentations_policy,
    augment_batch,
    to_float,
    to_uint8,
    turn_square,
)


def images(n=16, size=16):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_eight_turns_are_the_eight_symmetries_of_the_square():
    one = images(1).repeat(8, 1, 1, 1)
    turned = turn_square(one, torch.arange(8)).numpy()[:, 0]
    square = one[0, 0].numpy()
    expected = [np.rot90(m, k) for m in (square, square.T) for k in range(4)]
    assert len({t.tobytes() for t in turned}) == 8
    assert {t.tobytes() for t in turned} == {np.ascontiguousarray(e).tobytes() for e in expected}


@pytest.mark.parametrize("name", list(POLICIES))
def test_policies_keep_shape_and_range_and_repeat_with_the_seed(name):
    x = images()
    first = augment_batch(x, POLICIES[name], seeded(3))
    assert first.shape == x.shape and first.abs().max() <= 1
    assert torch.equal(first, augment_batch(x, POLICIES[name], seeded(3)))
    if name != "none":
        assert not torch.equal(first, augment_batch(x, POLICIES[name], seeded(4)))
        assert not torch.equal(first[0], first[1])


def test_no_policy_leaves_pixels_alone():
    assert torch.equal(augment_batch(images(), POLICIES["none"], seeded()), images())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_turns_only_move_pixels_before_light_changes(seed):
    from dataclasses import replace

    x = images(4)
    out = augment_batch(x, replace(POLICIES["turns"], light=0.0), seeded(seed))
    assert torch.equal(out.flatten(1).sort(1).values, x.flatten(1).sort(1).values)


@pytest.mark.parametrize("name", ["turns", "strong"])
def test_both_ways_apply_the_same_policy(name):
    """The distributions of brightness, contrast and difference agree between device and albumentations."""
    rng = np.random.default_rng(0)
    patch = np.clip(rng.normal(120, 30, (16, 16)), 0, 255).astype(np.uint8)
    n = 1500
    pipeline = albumentations_policy(POLICIES[name], 16, seed=1)
    cpu = np.stack([pipeline(image=patch[:, :, None])["image"][:, :, 0] for _ in range(n)])
    batch = to_float(torch.from_numpy(patch)[None]).repeat(n, 1, 1, 1)
    device = to_uint8(augment_batch(batch, POLICIES[name], seeded()))
    for statistic in (lambda x: x.mean((1, 2)), lambda x: x.std((1, 2))):
        a, b = statistic(cpu.astype(float)), statistic(device.astype(float))
        assert abs(a.mean() - b.mean()) < 2.5
        assert abs(a.std() - b.std()) < 2.5
    # a patch turned eight ways: both reach each corner from each corner
    assert len({x.tobytes() for x in cpu}) > 8 and len({x.tobytes() for x in device}) > 8


def test_albumentations_repeats_with_its_seed():
    patch = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    a, b = (albumentations_policy(POLICIES["strong"], 16, seed=5) for _ in range(2))
    assert all((a(image=patch)["image"] == b(image=patch)["image"]).all() for _ in range(5))


def test_uint8_and_float_are_inverse():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert (to_uint8(to_float(pixels)) == pixels.numpy()).all()
