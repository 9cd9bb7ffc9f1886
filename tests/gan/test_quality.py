import numpy as np
import pytest

from stemcell_lit.gan.quality import entropy, entropy_intersection, memorisation, nearest_distance


def test_entropy_of_known_images():
    constant = np.full((16, 16), 7, np.uint8)
    halves = np.repeat([0, 200], 128).reshape(16, 16).astype(np.uint8)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    quarters = np.repeat([10, 20, 30, 40], 64).reshape(16, 16).astype(np.uint8)
    found = entropy(np.stack([constant, halves, every, quarters]))
    assert found == pytest.approx([0, 1, 8, 2])


def test_entropy_is_blind_to_order_and_contrast():
    random = np.random.default_rng(0)
    image = random.integers(0, 128, (1, 16, 16)).astype(np.uint8)
    shuffled = random.permutation(image.ravel()).reshape(image.shape)
    assert entropy(shuffled) == pytest.approx(entropy(image))
    assert entropy(image + 100) == pytest.approx(entropy(image))


def images_of(levels, n, seed):
    """Images of so many gray levels, about log2(levels) bits."""
    return np.random.default_rng(seed).integers(0, levels, (n, 32, 32)).astype(np.uint8)


def test_entropy_intersection_of_identical_and_disjoint_sets():
    few, many = images_of(4, 40, 0), images_of(64, 40, 1)
    assert entropy_intersection(few, few) == pytest.approx((1, 0))
    assert entropy_intersection(few, many) == pytest.approx((0, 0))
    mixed = np.concatenate([few[:20], many[:20]])
    score, _ = entropy_intersection(mixed, few[:20], draws=200)
    assert 0.3 < score < 0.6  # half of the draws can be matched
    assert entropy_intersection(mixed, few, seed=1) == entropy_intersection(mixed, few, seed=1)


def test_nearest_distance_equals_brute_force():
    random = np.random.default_rng(0)
    query, reference = random.normal(size=(700, 5)), random.normal(size=(40, 5))
    brute = np.linalg.norm(query[:, None] - reference[None], axis=2).min(1)
    assert nearest_distance(query, reference) == pytest.approx(brute)


def test_copies_are_memorised_and_fresh_images_are_not():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (120, 8, 8)).astype(np.uint8)
    images = coarse.repeat(4, 1).repeat(4, 2)
    train, held_out, fresh = images[:40], images[40:80], images[80:]
    turned = np.rot90(train, 1, (1, 2))[:, :, ::-1]
    assert memorisation(train, held_out, turned) == pytest.approx(0, abs=1e-6)
    assert memorisation(train, held_out, fresh) == pytest.approx(1, abs=0.15)
