"""The classical rival as a method: the same splits, features made once, both parts of `stacked` shared."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stemcell_lit.base.artifacts import key_hash
from stemcell_lit.classify.classic import ClassicStage
from stemcell_lit.classify.features import Classical, FeatureTable, feature_names, features
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.experiment import classic as classic_module
from stemcell_lit.experiment.classic import StoreFeatures, TrainedClassic, feature_table
from stemcell_lit.experiment.plan import plan
from stemcell_lit.experiment.run import run
from stemcell_lit.experiment.trial import prepare, relevant
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store
from tests.recipes import log_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("classic")
    make_store(root / "store", movies=6, frames=4, counts=(1, 3, 2, 2))
    return root


def config(folder, *words, out="out"):
    base = ["profile=smoke", "trainer=cpu", "data.patch_size=8", f"data.store={folder / 'store'}"]
    return typed(compose("run", [*base, f"out={folder / out}", *words]))


def result(trial):
    return json.loads((trial / "result.json").read_text())


def made(folder, out="out"):
    log = log_of(folder / out / "artifacts")
    return [line["kind"] for line in log if line["event"] == "made"]


@pytest.mark.parametrize("method", ["classic", "classic_temporal"])
def test_a_trial_goes_from_features_to_a_result(folder, method):
    trial = run(config(folder, f"method={method}"))
    found = result(trial)
    assert found["temporal"]["kind"] == ("prior" if "temporal" in method else "none")
    assert [stage["node"] for stage in found["stages"]] == ["root"]
    assert sum(n for n, _ in found["stages"][0]["train"].values()) == found["stages"][0]["images"]
    table = pd.read_parquet(trial / "predictions.parquet")
    assert sorted(table["group"].unique()) == found["split"]["test"]
    model = TrainedHierarchy.load(trial / "model")
    assert isinstance(model.stages["root"], ClassicStage)
    assert model.image_size == 16  # as stored, whatever data.patch_size is
    store = PatchStore.open(folder / "store")
    rows = table["patch"].to_numpy()
    p, _ = model.predict(store.pixels[rows], store.manifest.iloc[rows])
    kept = table[[f"p/{c}" for c in store.classes]].to_numpy()
    np.testing.assert_allclose(kept, p, atol=1e-5)


def test_it_stands_in_every_node_of_a_tree(folder):
    words = ["method=classic_temporal", "method.tree=true", "temporal=window"]
    found = result(run(config(folder, *words)))
    nodes = {stage["node"] for stage in found["stages"]}
    assert nodes == {"root", "root/cells/early", "root/cells/late"}


def test_features_are_made_once_and_shared_by_folds_and_settings(folder):
    for words in (["split.fold=0"], ["split.fold=1"], ["classic.C=1"]):
        run(config(folder, "method=classic", *words, out="shared"))
    assert made(folder, "shared").count("features") == 1
    assert made(folder, "shared").count("classic") == 3
    trial = prepare(config(folder, "method=classic", out="shared"))
    x = feature_table(trial).of(trial.store.pixels)
    np.testing.assert_array_equal(x, features(np.asarray(trial.store.pixels)))


def test_an_interrupted_making_of_features_goes_on_behind_its_last_part(folder, monkeypatch):
    trial = prepare(config(folder, "method=classic", out="cut"))
    pixels = np.asarray(trial.store.pixels)
    monkeypatch.setattr(classic_module, "READ", 50)
    calls = []

    def until(most):
        def measured(self, part, shown=None):
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append(len(part))
            return features(part)

        return measured

    monkeypatch.setattr(Classical, "__call__", until(2))
    with pytest.raises(KeyboardInterrupt):
        feature_table(trial)
    part = next(trial.artifacts.root.glob("features/.*.partial/part-50.npy"))
    part.write_bytes(part.read_bytes()[:-1])  # a broken one is made again
    monkeypatch.setattr(Classical, "__call__", until(99))
    table = feature_table(trial)
    again = -(-len(pixels) // 50) - 1  # all but the first
    assert len(calls) == 2 + again
    np.testing.assert_array_equal(table.of(pixels), features(pixels))
    made = {p.name for p in trial.artifacts.locate(StoreFeatures(trial.store)).iterdir()}
    assert made == {"artifact.json", "features.npy", "keys.npy"}


def test_a_changed_feature_file_is_refused(folder):
    trial = prepare(config(folder, "method=classic", out="broken"))
    place = trial.artifacts.get(StoreFeatures(trial.store))
    (place / "features.npy").write_bytes((place / "features.npy").read_bytes()[:-4])
    again = prepare(config(folder, "method=classic", out="broken"))
    with pytest.raises(UserError, match=r"features\.npy"):
        feature_table(again)


def test_stacked_trains_nothing_that_flat_and_classic_have_trained(folder):
    for method in ("flat", "classic", "stacked", "stacked_temporal"):
        trial = run(config(folder, f"method={method}", out="stacked"))
    assert sorted(made(folder, "stacked")) == ["classic", "features", "stage"]
    model = json.loads((trial / "model" / "model.json").read_text())
    parts = model["stages"]["root"]
    assert [(p["learner"], p["weight"]) for p in parts] == [("network", 0.5), ("classic", 0.5)]


def test_stacked_is_the_mean_of_flat_and_classic(folder):
    tables = {}
    for method in ("flat", "classic", "stacked"):
        trial = run(config(folder, f"method={method}", out="stacked"))
        table = pd.read_parquet(trial / "predictions.parquet")
        tables[method] = table[[c for c in table if c.startswith("p/")]].to_numpy()
    mean = (tables["flat"] + tables["classic"]) / 2
    np.testing.assert_allclose(tables["stacked"], mean, atol=1e-6)


def test_a_fitted_blend_takes_its_weight_from_validation_patches(folder):
    trial = run(config(folder, "method=stacked", "classic.blend=fitted", out="stacked"))
    model = json.loads((trial / "model" / "model.json").read_text())
    weights = [p["weight"] for p in model["stages"]["root"]]
    assert sum(weights) == pytest.approx(1) and weights[0] != 0.5


def test_families_of_features_are_ranked_on_validation_patches(folder):
    found = result(run(config(folder, "method=classic")))["importance"]
    assert found["macro/tpr"] == pytest.approx(
        result(run(config(folder, "method=classic")))["validation"]["macro/tpr"]
    )
    assert set(found["families"]) == {name.split("/")[0] for name in feature_names()}
    assert max(f["drop"] for f in found["families"].values()) > 0
    assert result(run(config(folder, "method=flat")))["importance"] is None


def test_generated_patches_are_refused_where_nothing_learns_from_them(folder):
    with pytest.raises(UserError, match="learns from real patches alone, found mix.recipe=balance"):
        plan([config(folder, "method=classic", "mix=balance")])


@pytest.fixture(scope="module")
def plain(folder):
    """Method -> its settings."""
    return {m: config(folder, f"method={m}") for m in ("flat", "classic", "stacked")}


def changed(settings, key, value):
    head, _, rest = key.partition(".")
    below = changed(getattr(settings, head), rest, value) if rest else value
    return replace(settings, **{head: below})


OWN = {
    ("classic.C", 1.0): True,
    ("classic.gamma", 1.0): True,
    ("classic.class_weight", "balanced"): True,
    ("classic.model", "trees"): True,
    ("classic.trees", 7): False,  # of an SVM
    ("classic.most", 200): True,
    ("classic.blend", "fitted"): False,  # of stacked
    ("seed", 3): False,  # an SVM has none
    ("stage.images", 999): False,
    ("data.patch_size", 4): False,
    ("data.augment", "strong"): False,
    ("split.fold", 1): True,
}


def stage_key(settings):
    trial = prepare(settings)
    return key_hash(TrainedClassic(trial, trial.hierarchy.nodes[0], FeatureTable()).key())


@pytest.mark.parametrize("change", OWN, ids=lambda change: change[0])
def test_a_classical_stage_is_made_anew_by_what_changes_it(plain, change):
    before = stage_key(plain["classic"])
    assert (stage_key(changed(plain["classic"], *change)) != before) == OWN[change]


def test_trees_have_a_seed(plain):
    trees = changed(plain["classic"], "classic.model", "trees")
    assert stage_key(changed(trees, "seed", 1)) != stage_key(trees)


def test_settings_of_the_other_learner_make_no_other_trial(plain):
    def differs(method, key, value):
        return relevant(changed(plain[method], key, value)) != relevant(plain[method])

    assert not differs("flat", "classic.C", 1.0)
    assert not differs("classic", "stage.lr", 0.1)
    assert differs("classic", "classic.C", 1.0) and differs("flat", "stage.lr", 0.1)
    assert differs("stacked", "classic.C", 1.0) and differs("stacked", "stage.lr", 0.1)
