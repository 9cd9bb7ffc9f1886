import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.settings.group_keys import HierarchyConfig, TemporalConfig
from tests.conftest import CLASSES

CONF = Path(__file__).resolve().parents[2] / "conf" / "hierarchy"


def config(name="colony"):
    merged = OmegaConf.merge(
        OmegaConf.structured(HierarchyConfig), OmegaConf.load(CONF / f"{name}.yaml")
    )
    return OmegaConf.to_object(merged)


def build(temporal="none", *, name="colony", classes=CLASSES, flat=False, tree=None, **settings):
    chosen = replace(config(name), **(tree or {}))
    return Hierarchy.build(classes, chosen, TemporalConfig(temporal, **settings), flat=flat)


def facts(labels, times, tracks=None):
    labels = np.array([CLASSES.index(c) for c in labels])
    tracks = np.array([""] * len(labels) if tracks is None else tracks, dtype=object)
    return {
        "labels": labels,
        "times": np.array(times, float),
        "tracks": tracks,
        "frames": np.arange(len(labels)),
    }


# dense until hour 40, differentiated from hour 60, spread and debris always
HOURS = np.repeat(np.arange(0, 100, 2), 3)
LABELS = [
    c
    for t in np.arange(0, 100, 2)
    for c in ("debris", "spread", "dense" if t < 50 else "differentiated")
]


def random_stages(hierarchy, n, seed=0):
    rng = np.random.default_rng(seed)
    return {node.name: rng.dirichlet(np.ones(len(node.targets)), n) for node in hierarchy.nodes}


@pytest.mark.parametrize("temporal", ["none", "window", "prior", "path"])
@pytest.mark.parametrize(
    "tree", [{}, {"hard": True}, {"leaves": True}, {"leaves": True, "hard": True}]
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_probabilities_down_the_tree_sum_to_one(temporal, tree, seed):
    tracks = ["a"] * len(LABELS)
    h = build(temporal, tree=tree).fit(**facts(LABELS, HOURS, tracks))
    rng = np.random.default_rng(seed)
    times = np.where(rng.random(40) < 0.2, np.nan, rng.uniform(-10, 110, 40))
    p = h.combine(random_stages(h, 40, seed), times)
    assert p.shape == (40, 4) and (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1)
    p, path = h.constrain(p, times, np.array(["x", "y"] * 20), np.arange(40))
    np.testing.assert_allclose(p.sum(1), 1)
    assert ((path >= 0) & (path < 4)).all()


def test_a_class_has_the_product_of_its_way_down():
    h = build("none")
    root, cells = h.nodes
    assert root.groups == {"debris": ["debris"], "cells": ["dense", "spread", "differentiated"]}
    assert list(cells.groups) == ["dense", "spread", "differentiated"]
    p = h.combine(
        {"root": np.array([[0.2, 0.8]]), "root/cells": np.array([[0.5, 0.3, 0.2]])}, np.array([5.0])
    )
    np.testing.assert_allclose(p[0], [0.2, 0.4, 0.24, 0.16])


def test_one_network_takes_the_prior_where_the_tree_recommends_a_window():
    assert build("hierarchy", tree={"temporal": "window"}).temporal == "window"
    assert build("hierarchy", tree={"temporal": "window"}, flat=True).temporal == "prior"
    assert build("hierarchy", tree={"temporal": "path"}, flat=True).temporal == "path"


def test_flat_is_the_tree_with_one_node():
    h = build(flat=True)
    (node,) = h.nodes
    assert node.name == "root" and list(node.groups) == CLASSES
    p = np.array([[0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(h.combine({"root": p}, np.array([np.nan])), p)


def test_hard_routing_lets_the_winner_of_each_stage_take_all():
    h = build("none", tree={"hard": True})
    p = h.combine(
        {"root": np.array([[0.4, 0.6]]), "root/cells": np.array([[0.35, 0.34, 0.31]])},
        np.array([0.0]),
    )
    assert p.tolist() == [[0, 1, 0, 0]]


def test_a_stage_of_leaves_learns_classes_and_speaks_for_its_groups():
    h = build("none", tree={"leaves": True})
    root, cells = h.nodes
    assert list(root.targets) == ["debris", "dense", "spread", "differentiated"]
    assert list(root.scope.groups) == list(root.targets) and list(root.groups) == [
        "debris",
        "cells",
    ]
    p = h.combine(
        {
            root.name: np.array([[0.4, 0.12, 0.18, 0.3]]),  # cells: 0.6, in them 0.2, 0.3, 0.5
            cells.name: np.array([[0.6, 0.3, 0.1]]),
        },
        np.array([0.0]),
    )
    np.testing.assert_allclose(p, [[0.4, 0.6 * 0.4, 0.6 * 0.3, 0.6 * 0.3]])
    assert not build("none", tree={"leaves": True}, flat=True).leaves


def test_stages_of_leaves_answer_in_the_order_of_the_classes_whatever_the_order_of_the_tree():
    turned = {"cells": ["spread", "differentiated", "dense"], "debris": "debris"}
    h = build("none", tree={"leaves": True, "tree": turned})
    root, cells = h.nodes
    (flat,) = build("none", flat=True).nodes
    assert list(root.targets) == list(flat.targets) == CLASSES
    assert list(cells.targets) == [c for c in CLASSES if c != "debris"]
    stages = {
        root.name: np.array([[0.4, 0.12, 0.18, 0.3]]),
        cells.name: np.array([[0.6, 0.3, 0.1]]),
    }
    straight = build("none", tree={"leaves": True})
    np.testing.assert_allclose(
        h.combine(stages, np.zeros(1)), straight.combine(stages, np.zeros(1))
    )


def test_the_window_is_fitted_on_training_times_and_cuts_what_cannot_be():
    h = build("window", quantile=0.0).fit(**facts(LABELS, HOURS))
    late_from, early_until = h.windows["root/cells"]
    assert (
        late_from == early_until == 49.0
    )  # halfway between the last dense (48) and the first differentiated (50)
    early, late = h.nodes[1:]
    assert (early.name, early.window) == ("root/cells/early", (-np.inf, 49.0))
    assert (late.name, late.window) == ("root/cells/late", (49.0, np.inf))
    stages = {n.name: np.full((2, len(n.groups)), 1 / len(n.groups)) for n in h.nodes}
    p = h.combine(stages, np.array([10.0, 90.0]))
    assert p[0, CLASSES.index("differentiated")] == 0 and p[1, CLASSES.index("dense")] == 0


def test_where_windows_overlap_the_weight_moves_over_gradually():
    h = build("window", quantile=0.0, margin_h=10).fit(**facts(LABELS, HOURS))
    late_from, early_until = h.windows["root/cells"]
    assert (late_from, early_until) == (40.0, 58.0)
    share = h.late_share("root/cells", np.array([0, 40, 49, 58, 99, np.nan]))
    np.testing.assert_allclose(share, [0, 0, 0.5, 1, 1, 0.5])


def test_windows_do_not_look_beyond_training_patches():
    train = facts(LABELS, HOURS)
    one = build("window").fit(**train)
    assert one == build("window").fit(**{k: v.copy() for k, v in train.items()})
    shifted = build("window").fit(**{**train, "times": train["times"] + 7})
    assert shifted.windows["root/cells"][0] == pytest.approx(one.windows["root/cells"][0] + 7)


def test_the_prior_moves_probability_to_the_classes_of_that_hour():
    h = build("prior", smoothing=0.1).fit(**facts(LABELS, HOURS))
    p, _predicted = h.constrain(
        np.full((2, 4), 0.25), np.array([5.0, 95.0]), np.array(["", ""]), np.zeros(2)
    )
    dense, differentiated = CLASSES.index("dense"), CLASSES.index("differentiated")
    assert p[0, dense] > 0.3 > p[0, differentiated] and p[1, differentiated] > 0.3 > p[1, dense]
    unknown, _ = h.constrain(np.full((1, 4), 0.25), np.array([np.nan]), np.array([""]), np.zeros(1))
    np.testing.assert_allclose(unknown, 0.25)


def test_time_alone_knows_the_shares_of_an_hour():
    h = build().fit(**facts(LABELS, HOURS))
    p = h.by_time_alone(np.array([5.0, 95.0]))
    np.testing.assert_allclose(p.sum(1), 1)
    assert p[0, CLASSES.index("dense")] > 0.25 and p[0, CLASSES.index("differentiated")] < 0.05


def test_strength_is_tuned_by_what_validation_patches_show():
    train = facts(LABELS, HOURS)
    h = build("prior").fit(**train)
    vague = np.full((len(LABELS), 4), 0.25)
    assert h.tune(vague, **train).strength > 0.5
    sure = np.full((len(LABELS), 4), 0.2)  # right, but easily led astray
    sure[np.arange(len(LABELS)), train["labels"]] = 0.4
    wrong = {**train, "times": train["times"][::-1].copy()}
    assert h.tune(sure / sure.sum(1, keepdims=True), **wrong).strength < 0.5


def test_path_never_goes_back():
    tracks = [f"t{i % 3}" for i in range(len(LABELS))]
    h = build("path").fit(**facts(LABELS, HOURS, tracks))
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 200)
    _, path = h.constrain(p, np.full(200, np.nan), np.array(["one"] * 200), np.arange(200))
    debris = CLASSES.index("debris")
    steps = [(a, b) for a, b in itertools.pairwise(path) if debris not in (a, b)]
    assert len(steps) > 50 and all(a <= b for a, b in steps)


def test_json_round_trip_is_exact():
    for temporal in ("none", "window", "prior", "path"):
        h = build(temporal).fit(**facts(LABELS, HOURS, ["a"] * len(LABELS)))
        assert Hierarchy.from_dict(json.loads(json.dumps(h.to_dict()))) == h


@pytest.mark.parametrize("name", sorted(p.stem for p in CONF.glob("*.yaml")))
def test_every_tree_that_comes_along_builds_over_its_classes(name):
    chosen = config(name)

    def classes_in(below):
        if isinstance(below, str):
            return [below]
        parts = below if isinstance(below, list) else list(below.values())
        return [c for part in parts for c in classes_in(part)]

    classes = sorted(set(classes_in(chosen.tree))) or ["a", "b"]
    h = Hierarchy.build(classes, chosen, TemporalConfig("hierarchy"))
    assert h.nodes and h.temporal == chosen.temporal


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: build(classes=["debris", "dense"]), "its tree holds"),
        (lambda: build("clock"), "temporal.kind=clock"),
        (lambda: build("window", flat=True), "needs a node with by_time"),
        (lambda: build("window").fit(**facts(["dense"], [np.nan])), "hours_per_frame"),
        (lambda: build("path").fit(**facts(["dense"], [1.0])), "needs tracks"),
        (
            lambda: Hierarchy.build(
                ["a", "b"], HierarchyConfig("x", tree={"g": ["a", "a"], "b": "b"}), TemporalConfig()
            ),
            "names a class twice",
        ),
        (
            lambda: Hierarchy.build(
                ["a"], HierarchyConfig("x", moves={"a": ["z"]}), TemporalConfig()
            ),
            "moves name",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, says):
    with pytest.raises(UserError, match=says):
        make()


@pytest.mark.parametrize(
    "tree",
    [
        {"tree": {"sure": [True, False], "one": "1"}},
        {"tree": {"sure": ["yes", "no"], "one": 1}},
        {"tree": {"all": ["yes", "no", "1"]}, "moves": {"yes": [False]}},
    ],
)
def test_names_that_yaml_takes_for_something_else_are_to_be_quoted(tree):
    with pytest.raises(UserError, match="quote"):
        build(classes=["yes", "no", "1"], tree={"moves": None, **tree})
