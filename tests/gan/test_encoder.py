from dataclasses import asdict

import numpy as np
import pytest
import torch

from stemcell_lit.errors import UserError
from stemcell_lit.gan.encoder import Encoder, train_classifier
from stemcell_lit.settings.group_keys import StageConfig
from tests.gan.helpers import CLASSES, batch_of

STAGE = asdict(StageConfig(width=4, batch_size=30, images=1800))


def patches(seed, n=90):
    batch = batch_of(seed, n)
    pixels = ((batch["pixels"][:, 0].numpy() + 1) * 127.5).round().astype(np.uint8)
    return pixels, batch["label"].numpy()


@pytest.fixture(scope="module")
def encoder():
    return Encoder.fit(*patches(0), CLASSES, images=1800, name="abc123", stage=STAGE)


def test_the_classifier_learns_and_is_deterministic():
    before = torch.get_rng_state()
    one, two = (train_classifier(*patches(0), CLASSES, STAGE, seed=1) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    pixels, label = patches(1)
    p = one.probabilities(pixels)
    # turned in training, rows and columns are one to it; flat patches are not
    flat = label == 2
    assert (p[flat].argmax(1) == 2).mean() > 0.9
    assert (p[~flat].argmax(1) != 2).mean() > 0.9
    assert np.array_equal(p, two.probabilities(pixels))
    other = train_classifier(*patches(0), CLASSES, STAGE, seed=2)
    assert not np.array_equal(p, other.probabilities(pixels))
    assert one.images_seen == 1800


def test_balanced_sampling_shows_a_rare_class_as_often():
    pixels = np.repeat(patches(0)[0][:1], 44, 0)  # one picture under two names: 40 and 4 times
    label = np.repeat([0, 2], [40, 4])
    found = {
        sampler: train_classifier(
            pixels, label, CLASSES, STAGE, seed=0, sampler=sampler, augment="none"
        ).probabilities(pixels[:1])[0]
        for sampler in ("balanced", "shuffle")
    }
    assert found["balanced"][2] == pytest.approx(0.5, abs=0.15)
    assert found["shuffle"][2] == pytest.approx(4 / 44, abs=0.07)


def test_features_of_training_patches_have_unit_variance(encoder):
    features = encoder.features(patches(0)[0])
    assert features.shape == (90, 32)
    assert np.allclose(features.mean(0), 0, atol=1e-4)
    assert features.var(0).mean() == pytest.approx(1, rel=1e-3)
    assert encoder.features(patches(0)[0][:0]).shape == (0, 32)
    np.testing.assert_allclose(encoder.training["features"], features, atol=1e-5)
    assert np.array_equal(encoder.training["label"], patches(0)[1])


def test_features_tell_classes_apart(encoder):
    features, label = encoder.features(patches(1)[0]), patches(1)[1]
    centre = {c: features[label == c].mean(0) for c in (0, 2)}
    spread = max(features[label == c].std(0).mean() for c in (0, 2))
    assert np.linalg.norm(centre[0] - centre[2]) > 5 * spread


def test_what_is_saved_is_what_is_loaded(encoder, tmp_path):
    encoder.save(tmp_path / "e.pt")
    again = Encoder.load(tmp_path / "e.pt")
    pixels = patches(2)[0]
    assert again.name == "abc123" and again.classes == CLASSES
    assert np.array_equal(again.features(pixels), encoder.features(pixels))
    assert np.array_equal(again.probabilities(pixels), encoder.probabilities(pixels))
    assert all(np.array_equal(again.training[k], v) for k, v in encoder.training.items())


def test_a_file_that_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Encoder.load(tmp_path / "none.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a readable encoder"):
        Encoder.load(tmp_path / "other.pt")
