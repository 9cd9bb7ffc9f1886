"""Features and what learns from them: named, turn-proof, calibrated by group, kept without pickle."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.svm import SVC

from stemcell_lit.base.weights import save_safe
from stemcell_lit.classify import features as features_module
from stemcell_lit.classify.classic import ClassicStage, calibrate
from stemcell_lit.classify.classic_models import SupportVectors, Trees
from stemcell_lit.classify.features import (
    FeatureTable,
    digests,
    families,
    feature_names,
    features,
)
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.stacked import Stacked, fitted_weight
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import TrainedHierarchy, load_classic, save_stage
from stemcell_lit.errors import UserError
from stemcell_lit.settings.group_keys import (
    ClassicConfig,
    HierarchyConfig,
    StageConfig,
    TemporalConfig,
)
from tests.conftest import make_patches

GROUPS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def patches():
    labels = np.arange(60) % 3
    return make_patches(labels, 16, np.random.default_rng(0)), labels


@pytest.fixture(scope="module")
def measured(patches):
    return features(patches[0])


def fit(x, y, units=None, groups=GROUPS, size=16, **settings):
    units = np.arange(len(y)) // 6 if units is None else units
    config = ClassicConfig(**{"trees": 20, **settings})
    return ClassicStage.fit(x, y, units, groups, config, node="root", image_size=size)


# --- features -------------------------------------------------------------------------------------------------------


def test_every_feature_has_a_name_of_its_own_in_a_family(measured):
    names = feature_names()
    assert len(set(names)) == len(names) == measured.shape[1]
    assert set(families(names)) == {
        *("intensity", "haralick", "patterns", "gradients"),
        *("grains", "profile", "zernike", "shape"),
    }
    assert sorted(i for part in families(names).values() for i in part) == list(range(len(names)))
    assert (measured.std(0) > 0).mean() > 0.9  # nearly all say something of noise


def test_views_of_a_patch_have_features_of_their_own(patches, measured):
    views = np.stack([patches[0][:4], patches[0][4:8]], 1)
    assert len(feature_names(2)) == 2 * len(feature_names())
    np.testing.assert_allclose(features(views), np.hstack([measured[:4], measured[4:8]]), rtol=1e-5)


@pytest.mark.parametrize("turn", [1, 2, 3, "flip"])
def test_a_turned_or_flipped_patch_has_the_same_features(patches, measured, turn):
    pixels = patches[0][:, :, ::-1] if turn == "flip" else np.rot90(patches[0], turn, (1, 2))
    apart = np.abs(features(pixels) - measured) / np.maximum(measured.std(0), 1e-6)
    assert np.median(apart) < 1e-4
    assert apart.mean() < 0.02  # rounding turns ties of a few local patterns


@pytest.mark.parametrize("gray", [0, 100, 255])
@pytest.mark.parametrize("size", [8, 16])
def test_blank_patches_have_finite_features(gray, size):
    assert np.isfinite(features(np.full((2, size, size), gray, np.uint8))).all()


def test_a_brighter_larger_or_rounder_cell_is_measured_so():
    y, x = np.mgrid[:32, :32] - 15.5
    disc, small = np.hypot(x, y) < 10, np.hypot(x, y) < 5
    bar = (np.abs(x) < 3) & (np.abs(y) < 13)
    named = {}
    for name, mask in (("disc", disc), ("small", small), ("bar", bar)):
        pixels = np.where(mask, 200, 50).astype(np.uint8)[None]
        named[name] = dict(zip(feature_names(), features(pixels)[0], strict=True))
    assert named["disc"]["shape/area"] == pytest.approx(disc.mean(), abs=1e-3)
    assert named["disc"]["shape/area"] > 3 * named["small"]["shape/area"]
    assert named["bar"]["shape/eccentricity"] > 0.9 > 0.3 > named["disc"]["shape/eccentricity"]
    assert named["disc"]["intensity/step"] == pytest.approx(150, abs=1)
    assert named["bar"]["gradients/coherence"] > named["disc"]["gradients/coherence"] + 0.2


def test_features_that_are_known_are_not_computed_again(patches, measured, monkeypatch):
    pixels = patches[0]
    table = FeatureTable(measured, digests(pixels))
    calls = []
    real = features_module.features
    monkeypatch.setattr(
        features_module, "features", lambda p, shown=None: calls.append(len(p)) or real(p)
    )
    np.testing.assert_array_equal(table.of(pixels[[5, 3, 5]]), measured[[5, 3, 5]])
    assert calls == []
    new = np.stack([pixels[0] ^ 1, pixels[1], pixels[0] ^ 1])
    found = table.of(new)
    assert calls == [1]  # the same patch twice is one
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(table.of(new), found)
    assert calls == [1]  # nor are those of the last call: stages of a tree ask for the same


# --- models on them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 4])
def test_support_vectors_decide_as_scikit_learns_do(k):
    rng = np.random.default_rng(k)
    y = np.arange(40) % k
    x, new = rng.normal(y[:, None], 1.0, (40, 6)), rng.normal(1, 1, (30, 6))
    config = ClassicConfig(C=3.0, gamma=0.6)
    theirs = SVC(C=3.0, gamma=0.1, decision_function_shape="ovo").fit(x, y).decision_function(new)
    ours = SupportVectors.fit(x, y, config, 0).decisions(new)
    np.testing.assert_allclose(ours, theirs if k > 2 else -theirs[:, None], atol=1e-9)


def test_trees_answer_as_scikit_learns_do():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x, new = rng.normal(y[:, None], 1.0, (60, 5)), rng.normal(1, 1, (30, 5))
    config = ClassicConfig(model="trees", trees=8, max_features=0.5, class_weight="balanced")
    made = Trees.fit(x, y, config, 7)
    theirs = ExtraTreesClassifier(8, max_features=0.5, class_weight="balanced", random_state=7)
    p = theirs.fit(x, y).predict_proba(new)
    np.testing.assert_allclose(made.scores(new, 3), np.log((8 * p + 0.5) / 8.5), atol=1e-5)


@pytest.mark.parametrize("model", ["svm", "trees"])
def test_it_learns_and_its_probabilities_sum_to_one(patches, measured, model):
    stage = fit(measured[:45], patches[1][:45], model=model)
    p = stage.probabilities(patches[0][45:])
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
    assert (p.argmax(1) == patches[1][45:]).mean() > 0.6


def test_calibration_learns_nothing_from_neighbours_of_the_same_cell():
    """Ten nearly equal pictures of each cell, whose label is chance: nobody can be sure of a new cell."""
    rng = np.random.default_rng(0)
    cells = np.repeat(np.arange(30), 10)
    x = rng.normal(0, 1, (30, 20))[cells] + rng.normal(0, 0.01, (300, 20))
    y = rng.integers(0, 2, 30)[cells]
    new = rng.normal(0, 1, (200, 20))

    def sureness(units):
        return fit(x, y, units, ["a", "b"]).of_features(new).max(1).mean()

    assert sureness(cells) < 0.65
    assert sureness(np.arange(300)) > sureness(cells) + 0.1  # what folds of patches would have said


def test_calibrated_scores_are_as_sure_as_they_are_right():
    rng = np.random.default_rng(0)
    y = rng.choice(3, 4000, p=[0.7, 0.2, 0.1])
    scores = 5 * (np.eye(3)[y] + rng.normal(0, 0.7, (4000, 3)))
    factor, offset = calibrate(scores[:2000], y[:2000], 3)
    p = np.exp(factor * scores[2000:] + offset)
    p /= p.sum(1, keepdims=True)
    right = p.argmax(1) == y[2000:]
    assert p.max(1).mean() == pytest.approx(right.mean(), abs=0.03)
    assert calibrate(scores[:0], y[:0], 3)[0] == 1.0


def test_a_class_that_one_group_holds_is_learned():
    rng = np.random.default_rng(0)
    y = np.array([0] * 20 + [1] * 20 + [2] * 4)
    units = np.array([*np.arange(20) // 4, *np.arange(20) // 4, *[9] * 4])
    x = rng.normal(3 * y[:, None], 1, (44, 4))
    p = fit(x, y, units).of_features(x)
    assert np.isfinite(p).all() and (p.argmax(1) == y).mean() > 0.9


def test_of_many_patches_it_learns_from_a_share_of_each_class():
    rng = np.random.default_rng(0)
    y = np.array([0] * 300 + [1] * 90 + [2] * 2)
    x = rng.normal(3 * y[:, None], 1, (392, 4)) + np.arange(392)[:, None] * 1e-6
    stage = fit(x, y, most=100)
    assert len(stage.model.support) <= 101
    assert (stage.of_features(x).argmax(1) == y).mean() > 0.9
    np.testing.assert_array_equal(stage.of_features(x), fit(x, y, most=100).of_features(x))


# --- on disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["svm", "trees"])
def test_a_saved_stage_answers_with_the_very_same_probabilities(patches, measured, tmp_path, model):
    stage = fit(measured, patches[1], model=model)
    save_stage(stage, tmp_path / "stage.ckpt")
    again = load_classic(tmp_path / "stage.ckpt")
    assert (again.groups, again.image_size, again.config) == (GROUPS, 16, stage.config)
    np.testing.assert_array_equal(again.of_features(measured), stage.of_features(measured))


def broken(stage, how):
    content = stage.content()
    state, about = content["state_dict"], content["hyper_parameters"]
    if how == "other features":
        about["features"] = {"version": 0}
    elif how == "one group less":
        about["groups"] = about["groups"][:-1]
    elif how == "a model that is none":
        about["classic"]["model"] = "forest"
    elif how == "an array less":
        del state["mean"]
    elif how == "a scale of 0":
        state["scale"][0] = 0
    elif how == "a shape":
        state["offset"] = state["offset"][:, None]
    elif how == "a type":
        state["mean"] = state["mean"].float()
    elif how == "no number":
        state["mean"][0] = float("nan")
    elif how == "a circle":
        state["left"][-1] = 0
    elif how == "a node outside":
        state["right"][0] = len(state["right"])
    elif how == "a feature outside":
        state["feature"][0] = 10_000
    elif how == "a root outside":
        state["roots"][0] = -1
    elif how == "a vector less":
        state["support"] = state["support"][1:]
    return content


@pytest.mark.parametrize(
    "how",
    [
        *("other features", "one group less", "a model that is none", "an array less"),
        *("a scale of 0", "a shape", "a type", "no number", "a vector less"),
        *("a circle", "a node outside", "a feature outside", "a root outside"),
    ],
)
def test_a_broken_stage_is_refused_in_a_sentence(patches, measured, tmp_path, how):
    trees = how in ("a circle", "a node outside", "a feature outside", "a root outside")
    stage = fit(measured, patches[1], model="trees" if trees else "svm", trees=3)
    torch.save(broken(stage, how), tmp_path / "stage.ckpt")
    with pytest.raises(UserError, match="run the trial again"):
        load_classic(tmp_path / "stage.ckpt")


# --- with a network -------------------------------------------------------------------------------------------------


class Fixed:
    image_size, channels = 16, 1

    def __init__(self, p):
        self.p, self.groups = np.array(p, float), ["a", "b"]

    def probabilities(self, pixels):
        return np.tile(self.p, (len(pixels), 1))


def test_stacked_is_the_weighted_mean():
    pixels = np.zeros((2, 16, 16), np.uint8)
    both = Stacked([Fixed([0.2, 0.8]), Fixed([0.6, 0.4])], [0.75, 0.25])
    np.testing.assert_allclose(both.probabilities(pixels), [[0.3, 0.7]] * 2)


def test_the_fitted_weight_is_that_of_the_better_part():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    good = np.where(np.eye(2)[y] > 0, 0.9, 0.1)
    chance = rng.dirichlet([1, 1], 200)
    assert fitted_weight(good, chance, y) > 0.9
    assert fitted_weight(chance, good, y) < 0.1
    assert fitted_weight(good[:0], chance[:0], y[:0]) == 0.5


def test_a_stacked_hierarchy_is_kept_whole_with_parts_of_two_sizes(patches, measured, tmp_path):
    pixels, y = patches
    classic = fit(measured, y)
    plan = {**asdict(StageConfig()), "width": 2}
    network = StageModule(plan, "root", {g: [g] for g in GROUPS}, [4] * 3, 8).eval()
    hierarchy = Hierarchy.build(GROUPS, HierarchyConfig(), TemporalConfig(), flat=True)
    n = np.arange(60)
    hierarchy = hierarchy.fit(y, n.astype(float), np.array([""] * 60), n)
    model = TrainedHierarchy(hierarchy, {"root": Stacked([network, classic], [0.5, 0.5])}, 16, 1.0)
    model.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("learned.npy", "model.json", "stage-0-0.safetensors", "stage-0-1.safetensors"),
    ]
    again = TrainedHierarchy.load(tmp_path)
    times = np.full(6, np.nan)
    p = model.network_probabilities(pixels[:6], times)
    np.testing.assert_array_equal(again.network_probabilities(pixels[:6], times), p)
    each = [part.probabilities(pixels[:6]) for part in (network, classic)]
    np.testing.assert_allclose(p, np.mean(each, 0), atol=1e-6)

    about = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(about.replace('"weight": 0.5', '"weight": 0.25'))
    with pytest.raises(UserError, match="model.json: weights .* expected a sum of 1"):
        TrainedHierarchy.load(tmp_path)
    (tmp_path / "model.json").write_text(about)

    save_safe(replace_groups(classic), tmp_path / "stage-0-1.safetensors")
    with pytest.raises(UserError, match="for other groups or patches than those beside it"):
        TrainedHierarchy.load(tmp_path)


def replace_groups(stage):
    content = stage.content()
    content["hyper_parameters"]["groups"] = ["x", "y", "z"]
    return content


def test_a_setting_of_the_model_is_kept_in_its_file(patches, measured):
    stage = fit(measured, patches[1], C=7.0)
    kept = asdict(replace(ClassicConfig(), C=7.0, trees=20))
    del kept["features"], kept["weights"]  # beside the settings stands what made the features
    assert stage.content()["hyper_parameters"]["classic"] == kept
