"""Jobs in other processes and folders run with the user's own settings, and the content of these names a trial."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from stemcell_lit import commands
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.trial import prepare
from stemcell_lit.settings import conf
from stemcell_lit.settings.command_keys import JudgeCommand, typed
from stemcell_lit.settings.compose import compose
from stemcell_lit.settings.words import located
from stemcell_lit.studies import reproduce as study
from stemcell_lit.studies.judge_entries import entries_of
from tests.conftest import make_store
from tests.program import Program

SMALL = ["profile=smoke", "trainer=cpu", "data.store=store"]
TREE = """name: mine
temporal: prior
tree: {cells: [dense, spread, differentiated], debris: debris}
"""
METHOD = """defaults:
  - override /hierarchy: mine
  - override /temporal: hierarchy
method: {name: my_clock, learner: clock, tree: true}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A working folder with a store, own settings in conf/, and files elsewhere."""
    root = tmp_path_factory.mktemp("lab")
    make_store(root / "store", movies=8)
    (root / "conf" / "hierarchy").mkdir(parents=True)
    (root / "conf" / "hierarchy" / "mine.yaml").write_text(TREE)
    (root / "my files").mkdir()
    (root / "my files" / "tree, v2.yaml").write_text(TREE)
    (root / "my files" / "clock.yaml").write_text(METHOD)
    return root


@pytest.fixture
def here(lab, monkeypatch):
    monkeypatch.chdir(lab)
    conf.use(None)
    yield lab
    conf.use(None)


@pytest.fixture(scope="module")
def table(lab):
    """What the report of a table with a method by its path is made of; its jobs ran in other processes."""
    asked = {}
    words = [*SMALL, "out=res", "seeds=[0]", "methods=[time_only,./my files/clock.yaml]"]
    words += ["baseline=./my files/clock.yaml", "hierarchy=./my files/tree, v2.yaml"]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(lab)
        patched.setattr(study, "make_reports", lambda out, **more: asked.update(more))
        assert commands.do_reproduce(words) == 0
    return asked


def results(folder):
    return [json.loads(p.read_text()) for p in sorted(folder.glob("trials/[!.]*/result.json"))]


def test_a_method_by_its_path_is_a_row_with_the_name_in_its_file(lab, table):
    assert {r["method"] for r in results(lab / "res")} == {"time_only", "my_clock"}
    assert table["baseline"] == "my_clock"


def test_the_result_records_what_was_in_the_files(lab, table):
    mine = [r for r in results(lab / "res") if r["method"] == "my_clock"]
    assert len(mine) == 2
    for result in mine:
        tree = result["config"]["hierarchy"]
        assert {k: tree[k] for k in ("name", "temporal", "tree")} == yaml.safe_load(TREE)
        assert result["config"]["temporal"]["kind"] == "hierarchy"
        assert str(lab / "my files") not in json.dumps(result["config"])


def test_a_task_in_another_folder_finds_the_same_settings(
    here, table, tmp_path, monkeypatch, capsys
):
    words = [*SMALL[:2], f"data.store={here / 'store'}", f"out={here / 'res'}"]
    words += located("run", ["method=./my files/clock.yaml", "split.fold=0"])
    words += conf.for_jobs()
    before = {p: p.stat().st_mtime_ns for p in here.glob("res/trials/*/result.json")}
    monkeypatch.chdir(tmp_path)
    commands.run_trial([*words, f"artifacts={here / 'res' / 'artifacts'}"])
    assert "my_clock-f0-s0" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in here.glob("res/trials/*/result.json")} == before


def test_a_sweep_over_a_name_and_a_path_of_the_same_content_makes_one_trial(lab):
    choices = "hierarchy=choice(mine,'./my files/tree, v2.yaml')"
    program = Program(
        *("run", "-m", *SMALL, "out=swept", "method='./my files/clock.yaml'", choices), cwd=lab
    )
    assert program.wait() == 0, program.said
    assert "2 done" in program.said
    assert program.said.startswith(f"own settings: {lab / 'conf'} comes before the built-in ones")
    (found,) = results(lab / "swept")  # by its path and by its name a file is one trial
    assert found["config"]["hierarchy"]["name"] == "mine"


def test_what_names_a_trial_is_the_content_of_a_file_and_not_its_path(here):
    shutil.copy("my files/tree, v2.yaml", "other.yaml")

    def named(*words):
        return prepare(typed(compose("run", [*SMALL, "method=hierarchy", *words]))).name

    first = named("hierarchy=./my files/tree, v2.yaml")
    assert first == named("hierarchy=mine") == named("hierarchy=other.yaml".replace("=", "=./"))
    Path("other.yaml").write_text(TREE.replace("debris: debris", "rest: debris"))
    assert named("hierarchy=./other.yaml") != first
    inline = "hierarchy.tree={cells:[dense,spread,differentiated],debris:debris}"
    more = ["hierarchy=flat", inline, "hierarchy.name=mine", "hierarchy.temporal=prior"]
    assert named(*more) == first


def test_jobs_of_reproduce_are_given_absolute_paths_and_the_folder(here, monkeypatch):
    planned = []
    monkeypatch.setattr(study, "run_jobs", lambda jobs, **_: planned.extend(jobs) or [])
    monkeypatch.setattr(study, "make_reports", lambda *a, **k: None)
    words = located(
        "reproduce",
        [*SMALL, "out=planned", "seeds=[0]", "methods=[flat,./my files/clock.yaml]"],
    )
    study.reproduce(
        typed(compose("reproduce", words), study.ReproduceCommand),
        words,
        lambda w: typed(compose("run", w)),
    )
    clock = next(job for job in planned if "my_clock" in job.name)
    assert clock.argv[:4] == [sys.executable, "-m", "stemcell_lit", "run"]
    assert f'method="{here / "my files" / "clock.yaml"}"' in clock.argv
    assert clock.argv[-1] == f"--config-dir={here / 'conf'}"


def test_two_methods_of_one_name_are_refused(here):
    Path("flat.yaml").write_text("method: {name: flat, tree: true}\n")
    words = located("reproduce", [*SMALL, "out=twice", "methods=[flat,./flat.yaml]"])
    config = typed(compose("reproduce", words), study.ReproduceCommand)
    with pytest.raises(UserError, match="two of them are called flat"):
        study.reproduce(config, words, lambda w: typed(compose("run", w)))


def test_an_experiment_by_its_path_chooses_and_sets_for_every_trial(here):
    Path("e.yaml").write_text(
        "defaults: [override /hierarchy: mine]\nmethods: [flat, temporal]\nstage: {width: 6}\n"
        "hierarchy: {leaves: true}\n"
    )
    kept = study.for_trials(located("reproduce", [*SMALL, "experiment=./e.yaml"]))
    config = typed(compose("run", kept))
    assert (config.hierarchy.name, config.hierarchy.leaves, config.stage.width) == ("mine", True, 6)
    whole = typed(compose("reproduce", ["experiment=./e.yaml"]), study.ReproduceCommand)
    assert whole.methods == ["flat", "temporal"] and whole.hierarchy == config.hierarchy


def test_generators_by_their_paths_are_judged_by_the_names_in_their_files(here):
    Path("gan.yaml").write_text("defaults: [smoke, _self_]\nname: my_gan\nlatent: 8\n")
    words = located("judge", [*SMALL, "gans=[smoke,./gan.yaml]", "out=judged"])
    config = typed(compose("judge", words), JudgeCommand)
    entries = entries_of(config, words, lambda w: typed(compose("run", w)))
    assert [e.name for e in entries] == ["smoke", "my_gan"]
    assert [e.trial.config.gan.latent for e in entries][1] == 8
    assert entries[1].gan == str(here / "gan.yaml")
