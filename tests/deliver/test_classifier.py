"""A delivered model in Python."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import stemcell_lit
from stemcell_lit.classify.stacked import Stacked
from stemcell_lit.deliver.classifier import Classifier
from stemcell_lit.errors import UserError
from stemcell_lit.predict.mapper import Mapper
from tests.predict.test_predict import CLASSES, make_model, make_stage, noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory, patches):
    """A model of two networks along tracks that is unsure now and then."""
    moves = {c: list(CLASSES) for c in CLASSES}
    stages = [make_stage(groups=CLASSES) for _ in range(2)]
    for parameter in stages[1].network.parameters():
        parameter.data *= 1.1
    model = make_model(None, "path", moves, Stacked(stages, [0.5, 0.5]))
    model.temperature = 2.0
    p = model.calibrated(model.network_probabilities(patches, np.full(12, np.nan)))
    model.unsure_below = float(np.median(p.max(1)))
    place = tmp_path_factory.mktemp("classifier") / "model"
    place.mkdir()
    model.save(place)
    return place


@pytest.fixture(scope="module")
def patches():
    return np.stack([noise(32, 32, seed=i) // (1 + i % 3) for i in range(12)])


def test_patches_are_classified_as_by_the_model(folder, patches):
    classifier = Classifier.load(folder)
    found = classifier.predict(patches)
    assert len(found) == 12 and classifier.classes == CLASSES and classifier.patch_px == 32
    p = classifier.model.network_probabilities(patches, np.full(12, np.nan))
    np.testing.assert_allclose(found.probabilities, classifier.model.calibrated(p))
    assert list(found.classes) == [CLASSES[i] for i in p.argmax(1)]
    np.testing.assert_array_equal(
        found.unsure, found.probabilities.max(1) < classifier.unsure_below
    )
    assert set(found.unsure) == {True, False}


def test_tracks_and_larger_patches_are_used(folder, patches):
    classifier = Classifier.load(folder)
    alone = classifier.predict(patches)
    along = classifier.predict(patches, tracks=["t"] * 12, frames=range(12))
    assert np.abs(alone.probabilities - along.probabilities).max() > 1e-3
    unknown = classifier.predict(patches, tracks=[None] * 6 + [np.nan] * 6, frames=range(12))
    np.testing.assert_array_equal(unknown.probabilities, alone.probabilities)  # no track is none
    larger = np.kron(patches, np.ones((1, 2, 2), np.uint8))
    np.testing.assert_allclose(classifier.predict(larger).probabilities, alone.probabilities)
    assert len(classifier.predict(patches[:0])) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda x: {"pixels": x / 255},
            r"pixels: float64 .*expected uint8 \(patches, size, size\)",
        ),
        (lambda x: {"pixels": x[0]}, r"pixels: uint8 \(32, 32\)"),
        (lambda x: {"pixels": x[:, :30, :30]}, "patches of 30 x 30 px, expected squares of 32 px"),
        (lambda x: {"pixels": x[:, :, :16]}, "patches of 32 x 16 px"),
        (lambda x: {"pixels": x, "times": [1.0]}, "time_h: .* for 12 patches"),
        (lambda x: {"pixels": x, "tracks": ["a"] * 12}, "tracks without frames"),
        (lambda x: {"pixels": x, "frames": np.arange(12) / 2}, "frames: found float64, expected"),
        (lambda x: {"pixels": x, "times": ["noon"] * 12}, "times: expected hours"),
    ],
)
def test_what_the_model_cannot_use_is_refused(folder, patches, change, told):
    with pytest.raises(UserError, match=told):
        Classifier.load(folder).predict(**change(patches))


def test_a_frame_becomes_a_class_map(folder):
    classifier, frame = Classifier.load(folder), noise(96, 80)
    found = classifier.map(frame, stride=8, exact=True)
    mapper = Mapper(classifier.model, frame.shape, None, 8, exact=True)
    p = mapper.probabilities(frame)
    np.testing.assert_array_equal(found.classes, mapper.spread(p.argmax(2)))
    np.testing.assert_allclose(found.top, mapper.spread(p.max(2)))
    assert (
        not found.unsure.any()
    )  # its threshold is one of what the path along tracks makes of windows
    shared = classifier.map(frame, stride=8)
    assert shared.classes.shape == frame.shape and (shared.classes == found.classes).mean() > 0.8


def test_a_frame_of_other_type_or_without_its_pixel_size_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"frame: uint16 .*expected uint8 \(height, width\)"):
        Classifier.load(folder).map(noise(64, 64).astype(np.uint16))
    known = Classifier(make_model(um_per_px=2.0))
    with pytest.raises(UserError, match="um_per_px=None: the model learned at 2 um/px"):
        known.map(noise(96, 96))
    assert known.map(noise(96, 96), um_per_px=1.0).classes.shape == (96, 96)


ALONE = """
import socket, sys

def refuse(*given, **more):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from stemcell_lit import Classifier

classifier = Classifier.load(sys.argv[1])
assert len(classifier.predict(np.zeros((2, 32, 32), np.uint8))) == 2
classifier.map(np.zeros((64, 64), np.uint8))
print(sorted({name.partition(".")[0] for name in sys.modules} & {"hydra", "wandb", "hydra_plugins"}))
"""


def test_loading_and_predicting_import_neither_hydra_nor_wandb_and_need_no_network(folder):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_public_names_are_shown_and_there():
    shown = dir(stemcell_lit)
    assert set(stemcell_lit.__all__) <= set(shown) and "Classifier" in shown
    for name in stemcell_lit.__all__:
        assert getattr(stemcell_lit, name).__doc__
