"""What determines a result has the hashes that it always had: work that was done is found again.

A hash that changes on purpose is changed here, and the commit says why. Names in the package may change freely; the
dumps below do not.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stemcell_lit.base.artifacts import key_hash
from stemcell_lit.classify.features import FeatureTable
from stemcell_lit.experiment.classic import StoreFeatures, TrainedClassic
from stemcell_lit.experiment.encoders import TrainedEncoder
from stemcell_lit.experiment.generators import TrainedGenerator
from stemcell_lit.experiment.stages import TrainedStage
from stemcell_lit.experiment.trial import SimulatedStore, prepare
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose

CLASSES = ["debris", "dense", "spread", "differentiated"]

CONTENT = "cd008ea11e7b64638a4295c2fd9218cdd4153507a8ff4c9ee3123928900d14e4"
SIMULATION = "900b27fcd97b6066"
SIMULATION_SMOKE = "c1fcb923c7b72f9b"

# settings -> hash of the trial, of its generator, of its encoder, of the first stage and of the last
GOLDEN = {
    ("method=flat",): (
        "776f61dad0773215",
        "73c6f5629e748154",
        "f1ea4ba2f44b5cf8",
        "54304c1ac579bb95",
        "c03aabe0c316161f",
    ),
    ("method=flat_gan",): (
        "54a9c0f2cff96c7c",
        "73c6f5629e748154",
        "f1ea4ba2f44b5cf8",
        "54304c1ac579bb95",
        "f44452a2cc8e72c8",
    ),
    ("method=flat_gan", "gan=tiny_long", "generator_seed=3"): (
        "d97de5cb55bbcdd7",
        "c8d062f577a51491",
        "f1ea4ba2f44b5cf8",
        "54304c1ac579bb95",
        "f44452a2cc8e72c8",
    ),
    ("method=hierarchy_gan", "seed=1", "split.fold=2", "tune=false"): (
        "19fac0a0c622ab39",
        "5e4450ad8ad109fd",
        "fc019e6e30d27d4b",
        "768c55befeeb2d7a",
        "7c1ae509829b8118",
    ),
    ("method=temporal", "temporal.kind=prior", "stage.images=960"): (
        "8108c7ced2739e87",
        "73c6f5629e748154",
        "f1ea4ba2f44b5cf8",
        "cdfb1749dfa279fe",
        "0e81ea2fb0b4e5e0",
    ),
    ("method=flat_sampler", "data.augment=strong", "data.patch_size=null"): (
        "f5b9b5909d63f121",
        "0297b51ca3fc2a10",
        "38c1b033bd1bcd10",
        "604967e9f4a91980",
        "7d385cd439e7cfe8",
    ),
    ("method=time_only",): (
        "921c1a6014049bce",
        "73c6f5629e748154",
        "f1ea4ba2f44b5cf8",
        "54304c1ac579bb95",
        "c03aabe0c316161f",
    ),
    ("profile=smoke", "method=flat_pseudo", "split.labelled_fraction=0.5"): (
        "8c79d423c6956ea6",
        "43f3a1ffda19c4c9",
        "f4efa8c33f2c21ee",
        "178ae0fd1ae01521",
        "410cb654c757149e",
    ),
    ("method=sampler_gan",): (
        "ecaa9dc98e9fcf7b",
        "73c6f5629e748154",
        "f1ea4ba2f44b5cf8",
        "c0294e167439870a",
        "7d76258a9e66d7af",
    ),
    ("method=sampler_shuffled", "mix.amount=0.5", "mix.weight=0.5"): (
        "484240734b0c7a99",
        "73c6f5629e748154",
        "f1ea4ba2f44b5cf8",
        "c0294e167439870a",
        "271e6f468461808f",
    ),
    ("method=flat_features",): (
        "2a674999aee0a6f1",
        "73c6f5629e748154",
        "f1ea4ba2f44b5cf8",
        "54304c1ac579bb95",
        "c03aabe0c316161f",
    ),
    ("stage=vgg", "method=flat_crt", "trainer.threads=2"): (
        "0ecb3d07ccc9f027",
        "7e3914a2535b20fa",
        "8fd1aaa97d1387c9",
        "21705e66abbc524e",
        "b6305b5b3538fd90",
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Whole numbers alone: the same on every machine."""
    rng = np.random.default_rng(0)
    n = 600
    labels = np.arange(n) % 4
    movie, frame = np.arange(n) // 60, np.arange(n) % 60 // 10
    manifest = pd.DataFrame(
        {
            "label": [CLASSES[i] for i in labels],
            "group": [f"movie_{m:02d}" for m in movie],
            "track": [f"movie_{m:02d}/c{c}" for m, c in zip(movie, labels, strict=True)],
            "frame": frame,
            "time_h": frame * 12.0,
            "y": 0.0,
            "x": 0.0,
        }
    )
    pixels = rng.integers(0, 256, (n, 48, 48)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("golden") / "store"
    made = {"command": "test"}
    return PatchStore.write(folder, pixels, manifest, classes=CLASSES, um_per_px=1.0, made_by=made)


def settings(store, *words):
    return typed(compose("run", [*words, f"data.store={store.path}", "hierarchy=colony"]))


def hashes(store, words):
    trial = prepare(settings(store, *words))
    nodes = trial.hierarchy.nodes
    made = [TrainedGenerator(trial), TrainedEncoder(trial), TrainedStage(trial, nodes[0])]
    made.append(TrainedStage(trial, nodes[-1], store))
    return (trial.hash, *(key_hash(recipe.key()) for recipe in made))


def test_a_store_of_patches_has_the_content_hash_that_it_always_had(store):
    assert store.content_hash == CONTENT


@pytest.mark.parametrize("words", list(GOLDEN), ids=" ".join)
def test_settings_have_the_hashes_that_they_always_had(store, words):
    assert hashes(store, words) == GOLDEN[words]


def test_the_embedded_simulation_has_the_hash_that_it_always_had(store):
    assert key_hash(SimulatedStore(settings(store).data).key()) == SIMULATION
    smoke = settings(store, "profile=smoke")
    assert key_hash(SimulatedStore(smoke.data).key()) == SIMULATION_SMOKE


# settings -> hash of the trial, of the features and of the stage on them
CLASSIC = {
    ("method=classic",): ("272937e6f0f73653", "bc50fad983efa436", "ac2ea212060c403f"),
    ("method=stacked", "classic=trees", "seed=1"): (
        "8638ada4608b4f5b",
        "bc50fad983efa436",
        "43f1aafc7e15da7c",
    ),
    ("method=classic_temporal", "classic.C=3", "classic.class_weight=balanced"): (
        "58c845aa7d19563c",
        "bc50fad983efa436",
        "e842ffac92400c6a",
    ),
}


@pytest.mark.parametrize("words", list(CLASSIC), ids=" ".join)
def test_classical_stages_have_the_hashes_that_they_always_had(store, words):
    trial = prepare(settings(store, *words))
    features = key_hash(StoreFeatures(trial.store).key())
    stage = key_hash(TrainedClassic(trial, trial.hierarchy.nodes[0], FeatureTable()).key())
    assert (trial.hash, features, stage) == CLASSIC[words]
