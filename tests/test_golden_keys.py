"""What determines a result has the hashes that it always had: work that was done is found again.

A hash that changes on purpose is changed here, and the commit says why. Names in the package may change freely; the
dumps below do not.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stemcell_lit.base.artifacts import key_hash
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
        "1eec31d5068fc42c",
        "73c6f5629e748154",
        "46bff280f18b2d52",
        "f5ac077014c769db",
        "63f81cd6d22f41d7",
    ),
    ("method=flat_gan",): (
        "04a4bc3a69e40872",
        "73c6f5629e748154",
        "46bff280f18b2d52",
        "f5ac077014c769db",
        "38b494d3ebc68a78",
    ),
    ("method=flat_gan", "gan=tiny_long", "generator_seed=3"): (
        "ac45d7fed8f3e735",
        "c8d062f577a51491",
        "46bff280f18b2d52",
        "f5ac077014c769db",
        "38b494d3ebc68a78",
    ),
    ("method=hierarchy_gan", "seed=1", "split.fold=2", "tune=false"): (
        "8fe7599e39019c17",
        "5e4450ad8ad109fd",
        "cb02f8da321e32de",
        "7b8b89b305b9c367",
        "279238f54e63fcdd",
    ),
    ("method=temporal", "temporal.kind=prior", "stage.images=960"): (
        "f27d278e0b9f669d",
        "73c6f5629e748154",
        "46bff280f18b2d52",
        "754990cde6c17770",
        "9445b83730a4e5a4",
    ),
    ("method=flat_sampler", "data.augment=strong", "data.patch_size=null"): (
        "0377fd909964fbd1",
        "0297b51ca3fc2a10",
        "d3c3c93c5e2531d3",
        "89e8dcd164fc2022",
        "3fc7ef6ac6ac2896",
    ),
    ("method=time_only",): (
        "4f865ee7d2a0c83a",
        "73c6f5629e748154",
        "46bff280f18b2d52",
        "f5ac077014c769db",
        "63f81cd6d22f41d7",
    ),
    ("profile=smoke", "method=flat_pseudo", "split.labelled_fraction=0.5"): (
        "d4fbacd9d753b1dc",
        "43f3a1ffda19c4c9",
        "a27316d9d47cfbdf",
        "756470994889c0c3",
        "aadb26caa060e3ff",
    ),
    ("stage=vgg", "method=flat_crt", "trainer.threads=2"): (
        "f43e08bf42de5d7c",
        "7e3914a2535b20fa",
        "9513a7b7174673a5",
        "2449c3b84a82adab",
        "13780b24b55c2408",
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
