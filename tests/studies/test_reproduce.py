"""`reproduce`: what is planned, what is refused before anything runs, and what is left out with a word."""

from __future__ import annotations

import json

import pytest

from stemcell_lit.commands import settings_of
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.results import collect, comparable
from stemcell_lit.experiment.run import run
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose
from stemcell_lit.studies import reproduce as module
from stemcell_lit.studies.reproduce import reproduce
from tests.conftest import make_store

SMOKE = ["profile=smoke", "trainer=cpu", "seeds=[0]", "resamples=50"]


def trial_of(words):
    return typed(compose("run", words))


def started(words, monkeypatch, *, made=False):
    """Names of the jobs that `reproduce` would start; with `made`, it makes them here and writes the report."""
    names = []

    def here(jobs, **settings):
        names.extend(job.name for job in jobs)
        for job in jobs if made else []:
            run(trial_of(job.argv[4:]))
        return []

    monkeypatch.setattr(module, "run_jobs", here)
    if not made:
        monkeypatch.setattr(module, "make_reports", lambda *args, **settings: None)
    assert reproduce(settings_of("reproduce", words), words, trial_of) == 0
    return names


@pytest.fixture
def words(tmp_path):
    make_store(tmp_path / "store")
    return [*SMOKE, f"data.store={tmp_path / 'store'}", f"out={tmp_path / 'out'}"]


def test_nothing_is_trained_twice_and_the_note_stands_in_plan_table_and_page(
    words, tmp_path, monkeypatch, capsys
):
    more = ["methods=[flat,hierarchy,temporal]", "hierarchy=flat"]
    names = started([*words, *more], monkeypatch, made=True)
    assert {name.split("-")[0] for name in names} == {"flat"}
    said = capsys.readouterr().out
    note = "temporal is left out: on these data, with hierarchy=flat"
    assert said.count(note) == 2  # before the trials, and below the table
    assert note in (tmp_path / "out" / "report.html").read_text()
    assert note in (tmp_path / "out" / "table.md").read_text()
    assert "hierarchy" not in (tmp_path / "out" / "table.csv").read_text()


def test_equal_methods_that_were_made_one_by_one_are_told_in_the_report(words, tmp_path):
    plain = [w for w in words if not w.startswith(("seeds", "resamples"))]
    for method in ("flat", "temporal"):
        for fold in range(2):
            run(trial_of([*plain, f"method={method}", "hierarchy=flat", f"split.fold={fold}"]))
    results = comparable(collect(tmp_path / "out"), "flat")
    assert results.methods == ["flat"]
    assert any("temporal is left out" in note for note in results.notes)


def test_a_method_without_its_tree_is_not_told_as_one_with_it(words, tmp_path):
    plain = [w for w in words if not w.startswith(("seeds", "resamples"))]
    for method in ("flat", "temporal"):
        more = ["hierarchy=flat", "hierarchy.temporal=prior", "split.folds=2"]
        for fold in range(2):
            run(trial_of([*plain, *more, f"method={method}", f"split.fold={fold}"]))
    about = comparable(collect(tmp_path / "out"), "flat").about("temporal")
    assert about.parts == ["time"] and about.about.endswith("here without the tree")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("temporal=path", "hierarchy.temporal=path"),
        ("temporal.kind=none", "hierarchy.temporal=none"),
        ("stage.loss=weighted", "flat_weighted"),
        ("stage.sampler=balanced", "flat_sampler"),
        ("stage.mixup=0.2", "flat_mixup"),
        ("hierarchy.hard=true", "temporal_hard"),
        ("method=temporal", "methods="),
        ("method.tree=true", "methods="),
        ("sweep={key:temporal.kind,values:[none,prior]}", "hierarchy.temporal"),
    ],
)
def test_a_setting_that_would_change_the_baseline_is_refused_with_the_key_that_is_meant(
    words, word, meant, monkeypatch, tmp_path
):
    given = ["sweep.key=temporal.kind", "sweep.values=[none,prior]"] if "sweep" in word else [word]
    with pytest.raises(UserError) as error:
        started([*words, "methods=[flat,temporal]", *given], monkeypatch)
    assert "the baseline, is" in str(error.value) and meant in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_constrains_methods_in_time_leaves_the_baseline_as_it_is(words, tmp_path, monkeypatch):
    plain = started([*words, "methods=[flat,temporal]"], monkeypatch)
    other = started([*words, "methods=[flat,temporal]", "hierarchy.temporal=none"], monkeypatch)

    def of(names, method):
        return {n.rsplit("-", 1)[1] for n in names if n.startswith(f"{method}-")}

    config = trial_of(["hierarchy.temporal=none"])
    assert config.temporal.kind == "none" and of(plain, "temporal") != of(other, "temporal")


def test_a_dose_is_given_to_methods_with_generated_patches_alone(words, monkeypatch):
    methods = "methods=[flat,flat_gan]"
    plain = started([*words, methods], monkeypatch)
    dosed = started([*words, methods, "mix=ratio", "mix.amount=2"], monkeypatch)
    assert {n for n in plain if n.startswith("flat-")} == {
        n for n in dosed if n.startswith("flat-")
    }
    assert not set(plain) & {n for n in dosed if n.startswith("flat_gan")}


def test_results_of_other_settings_in_the_folder_are_refused_before_anything_is_made(
    words, tmp_path, monkeypatch
):
    started([*words, "methods=[flat]"], monkeypatch, made=True)
    with pytest.raises(UserError, match=r"other settings or data.*give out=.*out-2"):
        started([*words, "methods=[flat]", "stage.lr=0.1"], monkeypatch)


def test_other_simulated_movies_than_those_of_the_folder_are_not_made_first(
    words, tmp_path, monkeypatch
):
    started([*words, "methods=[flat]"], monkeypatch, made=True)
    simulated = [w for w in words if not w.startswith("data.store")]
    with pytest.raises(UserError, match=r"of other patches than those to come.*out-2"):
        started([*simulated, "methods=[flat]"], monkeypatch)
    file = next((tmp_path / "out" / "trials").glob("*/result.json"))
    told = json.loads(file.read_text())
    told["config"]["data"]["store"] = None
    file.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"data.simulation.movies"):
        started([*simulated, "methods=[flat]", "data.simulation.movies=7"], monkeypatch)
    assert not (tmp_path / "out" / "artifacts" / "simulation").exists()


def test_classes_with_few_training_patches_are_told_before_anything_runs(
    words, monkeypatch, capsys
):
    started([*words, "methods=[flat]"], monkeypatch)
    said = capsys.readouterr().err
    assert "class debris has" in said and "data.min_class_patches=20" in said
    started([*words, "methods=[flat]", "data.min_class_patches=0"], monkeypatch)
    assert "class debris" not in capsys.readouterr().err
