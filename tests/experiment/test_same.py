"""What settings come to on some data decides whether two methods are two."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from stemcell_lit.experiment import results
from stemcell_lit.experiment.results import Result
from stemcell_lit.experiment.same import identity, left_out, read_left_out, write_left_out
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose
from tests.conftest import CLASSES, make_store

METHODS = ["time_only", "flat", "flat_gan", "flat_temporal", "hierarchy", "temporal"]
METHODS += ["temporal_hard", "temporal_gan"]


def config(method, *words):
    return typed(compose("run", [f"method={method}", *words]))


def of(methods, *words):
    return {m: [config(m, *words)] for m in methods}


def equals(reasons):
    """method -> the one that it equals."""
    return {m: said.rsplit(" ", 1)[1] for m, said in reasons.items() if "the same as" in said}


def test_without_a_tree_and_a_constraint_methods_equal_flat_ones_and_are_left_out(store):
    reasons = left_out(of(METHODS, "hierarchy=flat"), "flat", store)
    flat = dict.fromkeys(("flat_temporal", "hierarchy", "temporal", "temporal_hard"), "flat")
    assert equals(reasons) == {**flat, "temporal_gan": "flat_gan"}
    assert "hierarchy=flat" in reasons["temporal"] and set(reasons) == set(equals(reasons))


def test_with_a_tree_and_time_every_method_is_its_own(store):
    assert left_out(of(METHODS, "hierarchy=colony"), "flat", store) == {}
    both = ["hierarchy=flat", "hierarchy.temporal=prior"]
    assert equals(left_out(of(METHODS, *both), "flat", store)) == {
        "hierarchy": "flat",
        "temporal": "flat_temporal",
        # one node and p(class | time): of the likeliest class alone nothing but the clock could be added to
    }


def test_settings_decide_and_not_names(store):
    weighted = of(["flat", "flat_weighted"], "stage.loss=weighted", "hierarchy=flat")
    assert equals(left_out(weighted, "flat", store)) == {"flat_weighted": "flat"}
    none = {"flat": [config("flat")], "flat_gan": [config("flat_gan", "mix=ratio", "mix.amount=0")]}
    assert equals(left_out(none, "flat", store)) == {"flat_gan": "flat"}
    assert left_out(of(["flat", "flat_gan"]), "flat", store) == {}


def test_networks_that_begin_with_other_weights_are_two_methods(store):
    both = {"flat": [config("flat")], "flat_weighted": [config("flat_weighted")]}
    settings = ["stage.loss=weighted", "stage.weights=w.pt"]
    begun = {"flat": [config("flat", settings[0])], "flat_weighted": []}
    begun["flat_weighted"] = [config("flat_weighted", *settings)]
    assert left_out(both, "flat", store) == left_out(begun, "flat", store) == {}
    begun["flat"] = [config("flat", *settings)]
    assert equals(left_out(begun, "flat", store)) == {"flat_weighted": "flat"}
    svm = [identity(config("classic", *words), CLASSES) for words in ([], settings[1:])]
    assert svm[0] == svm[1]  # no network to begin with them


def test_rows_of_networks_that_began_with_other_weights_all_stay_in_the_table():
    def row(name, digits, path):
        plain = asdict(config("flat", *([f"stage.weights={path}"] if path else [])))
        outside = {"weights": digits} if digits else {}
        info = {"method": "flat", "config": plain, "outside": outside, "classes": CLASSES}
        return Result(Path("trial"), info, name)

    rows = [row("none", "", ""), row("one", "1" * 64, "w.pt"), row("other", "2" * 64, "w.pt")]
    rows.append(row("moved", "1" * 64, "sub/w.pt"))
    names = [r.method for r in rows]
    assert set(results._equal(rows, names, "none")) == {"moved"}


def test_choices_of_tuning_make_two_methods_of_one_setting(store):
    tuned = of(["flat", "hierarchy"], "hierarchy=flat", "tune=true")
    assert equals(left_out(tuned, "flat", store)) == {"hierarchy": "flat"}  # the same choices
    tuned["hierarchy"] = [
        config("hierarchy", "hierarchy=flat", "tune=true", "method.choices=[{stage.lr: 0.1}]")
    ]
    assert left_out(tuned, "flat", store) == {}


def test_the_clock_alone_reads_the_bins_of_its_times():
    clock, other = (config("time_only", *words) for words in ([], ["temporal.bins=5"]))
    assert identity(clock, CLASSES) != identity(other, CLASSES)
    flat, other = (config("flat", *words) for words in ([], ["temporal.bins=5"]))
    assert identity(flat, CLASSES) == identity(other, CLASSES)


def test_the_baseline_is_never_left_out(store):
    reasons = left_out(of(["flat", "temporal"], "hierarchy=flat"), "temporal", store)
    assert equals(reasons) == {"flat": "temporal"}


def test_what_equals_another_in_one_table_of_a_sweep_alone_stays(store):
    doses = {
        m: [
            config(m, *(["mix=ratio", f"mix.amount={a}"] if m == "flat_gan" else []))
            for a in (0, 1)
        ]
        for m in ("flat", "flat_gan")
    }
    assert left_out(doses, "flat", store) == {}


def test_methods_that_need_times_or_tracks_which_no_patch_has_are_left_out(tmp_path):
    store = make_store(tmp_path / "untimed", timed=False)
    reasons = left_out(of(METHODS, "hierarchy=colony"), "flat", store)
    timed = {"time_only", "flat_temporal", "temporal", "temporal_hard", "temporal_gan"}
    assert set(reasons) == timed and all("no patch has a time" in r for r in reasons.values())
    assert left_out(of(METHODS, "hierarchy=colony"), "flat", store, known=False) == {}
    store.manifest["track"] = [f"t{i}" for i in range(len(store))]
    path = of(["flat", "temporal"], "hierarchy=colony", "hierarchy.temporal=path")
    assert "no track has two patches" in left_out(path, "flat", store)["temporal"]


@pytest.mark.parametrize("words", [["seed=3"], ["split.fold=1"], ["logger=disabled"], ["out=x"]])
def test_seeds_folds_and_places_make_no_other_method(words):
    assert identity(config("flat", *words), CLASSES) == identity(config("flat"), CLASSES)


@pytest.mark.parametrize("words", [["stage.lr=0.1"], ["data.augment=none"], ["split.seed=1"]])
def test_what_makes_another_result_makes_another_method(words):
    assert identity(config("flat", *words), CLASSES) != identity(config("flat"), CLASSES)


def test_reasons_are_kept_with_the_results_and_forgotten_when_there_are_none(tmp_path):
    assert read_left_out(tmp_path) == []
    write_left_out(tmp_path, [])
    assert not list(tmp_path.iterdir())
    write_left_out(tmp_path, ["a is left out: x"])
    assert read_left_out(tmp_path) == ["a is left out: x"]
    write_left_out(tmp_path, [])
    assert read_left_out(tmp_path) == []
    assert np.all([p.name.startswith((".", "left_out")) for p in tmp_path.iterdir()])
