import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from stemcell_lit.evaluate.entropy import entropy, entropy_intersection
from stemcell_lit.gan.distances import (
    ball_radius,
    frechet,
    kid,
    nearest,
    nearest_training,
    precision_recall,
)
from stemcell_lit.gan.quality import Reference, quality


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


def test_nearest_equals_brute_force():
    random = np.random.default_rng(0)
    query, reference = random.normal(size=(700, 5)), random.normal(size=(9000, 5))
    brute = [np.linalg.norm(q - reference, axis=1).min() for q in query]
    assert nearest(query, reference)[0] == pytest.approx(brute)


def coarse_images(n, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 8, 8)).astype(np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def blobs(n, seed=0, side=32):
    """Smooth patches, dark at the border: they look the same however they are turned and turned back."""
    noise = np.random.default_rng(seed).normal(size=(n, side, side))
    smooth = gaussian_filter(noise, (0, 2, 2))
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    smooth *= np.exp(-(((x**2 + y**2) / (side / 3) ** 2) ** 2))
    return np.clip(128 + 120 * smooth / np.abs(smooth).max(), 0, 255).astype(np.uint8)


def tilted(pixels, degrees):
    spline = scipy.ndimage.rotate(pixels.astype(float), degrees, (1, 2), reshape=False, cval=128)
    return np.clip(spline, 0, 255).astype(np.uint8)


def ratio(train, held_out, generated, turns="square"):
    """Memorisation of a class, through a reference."""
    label = np.zeros(len(train), np.int64)
    reference = Reference(["a"], train, label, held_out, label[: len(held_out)], Pixels(), turns)
    return quality(reference, [generated])["memorisation"][""]["value"]


def test_copies_are_memorised_and_fresh_images_are_not():
    images = coarse_images(120)
    train, held_out, fresh = images[:40], images[40:80], images[80:]
    turned = np.rot90(train, 1, (1, 2))[:, :, ::-1]
    assert ratio(train, held_out, turned) == pytest.approx(0, abs=1e-6)
    assert ratio(train, held_out, fresh) == pytest.approx(1, abs=0.15)


def test_copies_at_any_angle_are_memorised_where_the_generator_was_shown_any_angle():
    images = blobs(120)
    train, held_out, fresh = images[:40], images[40:80], images[80:]
    copies = tilted(train[:, :, ::-1], 37)
    assert ratio(train, held_out, copies, "any") < 0.4
    assert ratio(train, held_out, copies, "any") < 0.6 * ratio(train, held_out, copies)
    assert ratio(train, held_out, fresh, "any") == pytest.approx(1, abs=0.15)


def test_copies_at_any_angle_are_memorised_though_their_corners_are_new():
    random = np.random.default_rng(0)
    smooth = gaussian_filter(random.normal(size=(120, 64, 64)), (0, 2.5, 2.5))
    wide = np.clip(128 + 180 * smooth / np.abs(smooth).max(), 0, 255).astype(np.uint8)
    train, held_out, fresh = np.split(wide[:, 16:48, 16:48], 3)
    copies = {angle: tilted(wide[:40], angle)[:, 16:48, 16:48] for angle in (37, 45)}
    assert (
        ratio(train, held_out, copies[45], "any") < 0.1
    )  # of the angles at which copies are looked for
    assert ratio(train, held_out, copies[37], "any") < 0.5  # as far from them as can be
    assert ratio(train, held_out, fresh, "any") == pytest.approx(1, abs=0.15)


def test_the_nearest_training_patch_at_any_angle_is_shown_as_it_was_tilted():
    train = blobs(20)
    copies = tilted(train[[3, 0, 19]], 30)
    found = nearest_training(copies, train, "any").astype(float)
    assert np.abs(found - copies).mean() < 3
    square = nearest_training(copies, train).astype(float)
    assert np.abs(found - copies).mean() < 0.5 * np.abs(square - copies).mean()


def test_the_nearest_training_patch_is_found_in_its_turn():
    train = coarse_images(20)
    noise = np.random.default_rng(1).integers(0, 3, (5, 32, 32)).astype(np.uint8)
    copies = np.minimum(np.rot90(train[[3, 0, 19, 7, 7]], 3, (1, 2)), 250) + noise
    found = nearest_training(copies, train)
    assert np.array_equal(found, np.rot90(train[[3, 0, 19, 7, 7]], 3, (1, 2)))


# --- on features


def normal(n, d=6, shift=0.0, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


class Flat(torch.nn.Module):
    """Features for torchmetrics: the pixels of an image (n, 1, 4, 4)."""

    num_features = 16

    def forward(self, x):
        return x.flatten(1)


@pytest.fixture(scope="module")
def pictures():
    draw = torch.Generator().manual_seed(0)
    real = torch.randn((60, 1, 4, 4), generator=draw)
    return real, real[:50].flip(0) * 1.3 + 0.4 * torch.randn((50, 1, 4, 4), generator=draw)


def test_kid_equals_torchmetrics(pictures):
    real, made = (x[:50] for x in pictures)
    metric = KernelInceptionDistance(feature=Flat(), subsets=2, subset_size=50, normalize=True)
    for x, is_real in ((real, True), (made, False)):
        metric.update(x, real=is_real)
    expected = float(metric.compute()[0])  # a subset of all: every draw is the same
    flat = [x.flatten(1).numpy() for x in (real, made)]
    assert kid(*flat) == pytest.approx(expected, rel=1e-4)


def test_frechet_equals_torchmetrics(pictures):
    real, made = pictures
    metric = FrechetInceptionDistance(
        feature=Flat(), normalize=True, input_img_size=(1, 4, 4)
    ).set_dtype(torch.float64)
    for x, is_real in ((real, True), (made, False)):
        metric.update(x.double(), real=is_real)
    flat = [x.flatten(1).numpy() for x in (real, made)]
    assert frechet(*flat) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_frechet_of_gaussians_has_a_closed_form():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(20000, 3)), random.normal(size=(20000, 3))
    a, b = np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 0.5])
    shift = np.array([1.0, 0.0, -2.0])
    expected = (shift**2).sum() + ((a - b) ** 2).sum()  # diagonal covariances a^2 and b^2
    assert frechet(first * a, second * b + shift) == pytest.approx(expected, rel=0.03)


def test_frechet_of_fewer_patches_than_features_is_finite_and_zero_for_itself():
    few = normal(5, 40)
    assert frechet(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet(few, few + 1) == pytest.approx(40)


def test_kid_is_unbiased_for_small_sets():
    scores = [kid(normal(6, seed=s), normal(6, seed=1000 + s)) for s in range(600)]
    error = np.std(scores) / np.sqrt(len(scores))
    assert abs(np.mean(scores)) < 3 * error
    assert min(scores) < 0  # and so single values lie on both sides
    assert kid(normal(200), normal(200, shift=0.5, seed=1)) > 10 * error


def test_identical_sets_are_perfect_and_disjoint_ones_hopeless():
    real = normal(60)
    same = precision_recall(real, real)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert same["density"] >= 1
    assert precision_recall(real, real + 100) == dict.fromkeys(same, 0)


def test_precision_falls_with_outliers_and_recall_with_missing_modes():
    left, right = normal(60, shift=-20), normal(60, shift=20, seed=1)
    both = np.concatenate([left, right])
    one_mode = precision_recall(both, normal(120, shift=-20, seed=2))
    assert one_mode["precision"] > 0.8
    assert one_mode["recall"] == pytest.approx(0.5, abs=0.1)
    assert one_mode["coverage"] <= 0.5
    outliers = precision_recall(
        both, np.concatenate([normal(60, shift=-20, seed=3), normal(60, shift=0, seed=4) * 9])
    )
    assert outliers["precision"] < 0.6


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_shares_stay_within_their_range(seed, neighbours):
    found = precision_recall(normal(9, seed=seed), normal(7, seed=seed + 1, scale=2), neighbours)
    assert all(0 <= found[k] <= 1 for k in ("precision", "recall", "coverage"))
    assert found["density"] >= 0


def test_ball_radius_leaves_the_point_itself_out():
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert ball_radius(line, 1).tolist() == [1, 1, 2, 4]
    assert ball_radius(line, 2).tolist() == [3, 2, 3, 6]
    assert ball_radius(line, 99).tolist() == [7, 6, 4, 7]


# --- everything together


class Pixels:
    """An encoder that shows means over 4 x 4 blocks."""

    name = "abc123"

    def features(self, pixels):
        n, side = len(pixels), pixels.shape[1] // 4
        blocks = pixels.reshape(n, side, 4, side, 4).mean((2, 4)) / 64
        return blocks.reshape(n, -1).astype(np.float32)


def stripes(n, seed):
    """Smooth images whose gray levels and places vary."""
    random = np.random.default_rng(seed)
    wave = np.sin(np.arange(32)[None] / random.uniform(2, 6, (n, 1)) + random.uniform(0, 6, (n, 1)))
    image = 128 + 90 * wave[:, :, None] * np.ones((1, 1, 32)) + random.normal(0, 8, (n, 32, 32))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def reference():
    label = np.repeat([0, 1], 60)
    train = np.concatenate([stripes(60, 0), stripes(60, 1).transpose(0, 2, 1)])
    held = np.concatenate([stripes(30, 2), stripes(4, 3).transpose(0, 2, 1)])
    held_label = np.repeat([0, 1], [30, 4])
    return Reference(["rows", "columns"], train, label, held, held_label, Pixels())


def fresh(seed=5, n=60):
    return [stripes(n, seed), stripes(n, seed + 1).transpose(0, 2, 1)]


def shuffled(images):
    random = np.random.default_rng(0)
    flat = [random.permutation(image.ravel()).reshape(image.shape) for image in images]
    return np.stack(flat)


def test_every_number_stands_beside_its_floor(reference):
    found = quality(reference, fresh())
    on_features = {"kid", "frechet", "precision", "recall", "density", "coverage"}
    assert {f"{m}/encoder=abc123" for m in on_features} <= set(found)
    assert {"entropy/intersection", "entropy/wasserstein", "memorisation"} <= set(found)
    for metric, of in found.items():
        assert set(of) == ({"", "rows"}), metric  # four held-out columns say nothing
        for value in of.values():
            assert set(value) == {"value", "std", "floor", "floor_std"}
            assert all(np.isfinite(v) for v in value.values())
    for metric in ("kid/encoder=abc123", "frechet/encoder=abc123"):
        whole = found[metric][""]
        assert whole["value"] < 2.5 * max(whole["floor"], 0.05)  # as good as real ones
    assert found["memorisation"][""]["value"] == pytest.approx(1, abs=0.35)
    assert quality(reference, fresh()) == found


def test_entropy_is_blind_to_shuffled_pixels_and_kid_is_not(reference):
    good = quality(reference, fresh())
    bad = quality(reference, [shuffled(images) for images in fresh()])
    for metric in ("entropy/intersection", "entropy/wasserstein"):
        assert bad[metric][""] == pytest.approx(good[metric][""])
    name = "kid/encoder=abc123"
    assert bad[name][""]["value"] > 5 * max(good[name][""]["value"], bad[name][""]["floor"])
    assert bad["recall/encoder=abc123"][""]["value"] < 0.1  # (gray ones lie inside many real balls)


def test_copies_of_the_training_set_score_as_real_but_are_memorised(reference):
    copies = [reference.train[reference.train_label == i] for i in (0, 1)]
    found = quality(reference, copies)
    name = "kid/encoder=abc123"
    assert found[name][""]["value"] < 3 * max(found[name][""]["floor"], 0.05)
    assert found["memorisation"][""]["value"] == pytest.approx(0, abs=1e-6)
    assert found["memorisation"]["rows"]["value"] == pytest.approx(0, abs=1e-6)


def test_a_large_reference_is_cut_to_a_bound():
    label = np.repeat([0, 1], [50, 3])
    side = (coarse_images(53), label)
    drawn = Reference.draw(["a", "b"], side, side, Pixels(), most=10)
    assert np.bincount(drawn.train_label).tolist() == [10, 3]
    assert len(drawn.held_out) == 13


def test_a_class_of_which_nothing_is_held_out_counts_nowhere(reference):
    rows = reference.held_label == 0
    reference = Reference(
        reference.classes,
        reference.train,
        reference.train_label,
        reference.held_out[rows],
        reference.held_label[rows],
        Pixels(),
    )
    made = [reference.pixels("train")[0], reference.pixels("train")[1]]
    found = quality(reference, made)
    assert all(set(values) == {"", "rows"} for values in found.values())
    assert all(np.isfinite(v["value"]) for values in found.values() for v in values.values())
