"""Last layers that are trained again: on top of the stage that other methods share, in every node of a tree."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.experiment import heads
from stemcell_lit.experiment.run import run
from stemcell_lit.experiment.trial import prepare
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store
from tests.recipes import log_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    make_store(root / "store", movies=8, frames=4)
    return root


def config(folder, *words):
    base = [
        "profile=smoke",
        "trainer=cpu",
        f"data.store={folder / 'store'}",
        f"out={folder / 'out'}",
    ]
    return typed(compose("run", [*base, *words]))


def made(folder, kind):
    return [e["event"] for e in log_of(folder / "out" / "artifacts") if e["kind"] == kind].count(
        "made"
    )


def test_features_are_kept_once_for_all_doses_on_the_stage_of_flat(folder):
    results = {
        m: json.loads((run(config(folder, f"method={m}")) / "result.json").read_text())
        for m in ("flat", "flat_refit", "flat_features")
    }
    assert made(folder, "stage") == made(folder, "head-features") == 1 and made(folder, "head") == 3
    tuning = results["flat_features"]["tuning"]
    assert [t["settings"]["stage.feature_dose"] for t in tuning["tried"]] == [0, 1, 2]
    assert tuning["taken"] == min(tuning["tried"], key=lambda t: t["loss"])["settings"]
    # no dose is flat_refit itself
    assert tuning["tried"][0]["loss"] == results["flat_refit"]["validation"]["loss"]
    assert results["flat"]["validation"] != results["flat_refit"]["validation"]


def test_only_training_patches_are_looked_at(folder, monkeypatch):
    seen = []
    kept = heads.head_inputs
    monkeypatch.setattr(
        heads, "head_inputs", lambda m, pixels: seen.append(pixels) or kept(m, pixels)
    )
    trial = prepare(config(folder, "method=flat_features", "seed=1", "method.choices=[]"))
    run(trial.config)
    (pixels,) = seen
    assert (pixels == trial.train.pixels).all() and len(pixels) == len(trial.split.train)


def test_every_node_of_a_tree_gets_its_own_and_the_model_is_read_back_as_it_was(folder):
    words = ["method=temporal", "hierarchy=colony", "temporal=window", "stage.feature_dose=1"]
    done = run(config(folder, *words, "stage.refit_head=true", "seed=2"))
    stages = json.loads((done / "result.json").read_text())["stages"]
    assert len(stages) == 3 and all(s["head"]["dose"] == 1 for s in stages)
    assert any(sum(s["head"]["generated"].values()) for s in stages)
    table, store = pd.read_parquet(done / "predictions.parquet"), PatchStore.open(folder / "store")
    rows = table["patch"].to_numpy()
    model = TrainedHierarchy.load(done / "model")
    p, _ = model.predict(store.pixels[rows], store.manifest.iloc[rows])
    np.testing.assert_allclose(p, table[[f"p/{c}" for c in store.classes]], atol=1e-5)


def test_a_dose_without_a_layer_that_learns_from_it_is_refused(folder):
    with pytest.raises(UserError, match=r"stage\.feature_dose=1: .*stage\.refit_head=true"):
        run(config(folder, "method=flat", "stage.feature_dose=1"))
