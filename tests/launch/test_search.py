"""A search by Optuna: through our launcher, on validation patches, going on where it was."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from stemcell_lit.errors import UserError
from stemcell_lit.launch.search import _distribution, search
from tests.conftest import make_store
from tests.program import Program

optuna = pytest.importorskip("optuna", reason="the extra `search`")


class Launcher:
    """Instead of processes: the value is highest at lr = 0.001; keeps what it was asked for."""

    def __init__(self, fails=(), stop_after=None):
        self.jobs: list[dict[str, str]] = []
        self.fails, self.stop_after = fails, stop_after

    def __call__(self, overrides, initial_job_idx):
        return [self.run(job) for job in overrides]

    def run(self, job):
        if self.stop_after is not None and len(self.jobs) >= self.stop_after:
            raise KeyboardInterrupt
        given = dict(o.split("=", 1) for o in job)
        self.jobs.append(given)
        if len(self.jobs) in self.fails:
            return Failed()
        distance = abs(float(given["lr"]) - 1e-3)
        return SimpleNamespace(return_value=1 - 100 * distance - float(given.get("fold", 0)) / 10)


class Failed:
    @property
    def return_value(self):
        raise RuntimeError("job failed")


LR = "lr=tag(log,interval(1e-4,1e-2))"


def test_the_best_trial_is_the_one_of_the_highest_value(tmp_path):
    launcher = Launcher()
    best = search([LR, "method=flat"], launcher, tmp_path / "a", trials=8, seed=1)
    values = [1 - 100 * abs(float(job["lr"]) - 1e-3) for job in launcher.jobs]
    assert len(values) == 8 and best["value"] == pytest.approx(max(values))
    assert float(best["settings"]["lr"]) == float(launcher.jobs[values.index(max(values))]["lr"])
    assert all(job["method"] == "flat" for job in launcher.jobs)
    assert yaml.safe_load((tmp_path / "a" / "best.yaml").read_text()) == best
    assert len(pd.read_csv(tmp_path / "a" / "trials.csv")) == 8


def test_a_search_is_repeated_by_its_seed(tmp_path):
    def tried(name, seed):
        launcher = Launcher()
        search([LR], launcher, tmp_path / name, trials=4, seed=seed)
        return [job["lr"] for job in launcher.jobs]

    assert tried("a", 3) == tried("b", 3) != tried("c", 4)


def test_a_killed_search_goes_on_and_runs_the_cut_off_trial_again(tmp_path):
    first = Launcher(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        search([LR], first, tmp_path / "a", trials=6)
    second = Launcher()
    search([LR], second, tmp_path / "a", trials=6)
    table = pd.read_csv(tmp_path / "a" / "trials.csv")
    assert (table["state"] == "complete").sum() == 6
    assert len(second.jobs) == 3
    (cut,) = table.loc[table["state"] == "fail", "lr"]
    assert float(second.jobs[0]["lr"]) == pytest.approx(cut)  # the same settings: the same job
    assert len({job["lr"] for job in first.jobs + second.jobs}) == 6
    third = Launcher()
    search([LR], third, tmp_path / "a", trials=6)
    assert third.jobs == []  # all there


def test_a_failed_trial_is_named_and_the_same_command_fills_it_in(tmp_path):
    with pytest.raises(UserError, match=r"1 trials failed.*lr=.*job failed"):
        search([LR], Launcher(fails=[2]), tmp_path / "a", trials=4)
    launcher = Launcher()
    search([LR], launcher, tmp_path / "a", trials=4)
    assert len(launcher.jobs) == 1


def test_a_trial_is_the_mean_over_the_jobs_it_is_asked_over(tmp_path):
    launcher = Launcher()
    best = search([LR], launcher, tmp_path / "a", trials=2, parallel=2, over=["fold=0,1,2"])
    assert [job["fold"] for job in launcher.jobs] == ["0", "1", "2"] * 2
    values = [1 - 100 * abs(float(job["lr"]) - 1e-3) - 0.1 for job in launcher.jobs]
    assert best["value"] == pytest.approx(max(values))


def test_each_job_has_a_folder_named_by_its_settings(tmp_path):
    launcher = Launcher()
    search([LR], launcher, tmp_path / "a", trials=3, over=["fold=0,1"])
    folders = [job["hydra.sweep.subdir"] for job in launcher.jobs]
    assert len(set(folders)) == 6 and all(f.startswith("a/") for f in folders)


def test_another_search_does_not_go_on_in_the_same_folder(tmp_path):
    search([LR], Launcher(), tmp_path / "a", trials=1)
    with pytest.raises(UserError, match=r"another search.*hydra.sweeper.study"):
        search([LR, "method=flat"], Launcher(), tmp_path / "a", trials=1)


def test_a_job_without_validation_patches_is_no_trial(tmp_path):
    def launch(overrides, initial_job_idx):
        return [SimpleNamespace(return_value=None) for _ in overrides]

    with pytest.raises(UserError, match="no macro F1 on validation patches"):
        search([LR], launch, tmp_path / "a", trials=1)


@pytest.mark.parametrize("arguments", [[], ["method=flat"]])
def test_a_search_over_nothing_is_refused(tmp_path, arguments):
    with pytest.raises(UserError, match="nothing to search over"):
        search(arguments, Launcher(), tmp_path / "a", trials=1)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=interval(0,1.5)", "FloatDistribution(0.0, 1.5)"),
        ("a=tag(log,int(interval(1,64)))", "IntDistribution(1, 64, log=True)"),
        ("a=range(2,9,3)", "IntDistribution(2, 8, step=3)"),
        ("a=8,16", "CategoricalDistribution(('8', '16'))"),
        ("a=choice(x,'y z')", r"CategoricalDistribution(('x', 'y\\ z'))"),
    ],
)
def test_hydras_grammar_is_optunas_space(override, expected):
    (parsed,) = OverridesParser.create().parse_overrides([override])
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    names = {c.__name__: c for c in (CategoricalDistribution, FloatDistribution, IntDistribution)}
    assert _distribution(parsed) == eval(expected, names)


def test_a_search_runs_through_our_launcher_and_picks_by_validation_macro_f1(tmp_path):
    make_store(tmp_path / "store", movies=8, frames=3, counts=(2, 3, 3, 2))
    out = tmp_path / "out"

    def command(trials):
        program = Program(
            *("run", "-m", "hydra/sweeper=optuna"),
            *(f"hydra.sweeper.trials={trials}", "hydra.sweeper.parallel=3"),
            *("hydra.launcher.slots=2", "profile=smoke", "trainer=cpu", "method=flat"),
            *(f"data.store={tmp_path / 'store'}", f"out={out}", "stage.width=2,4,8"),
            "stage.lr=tag(log,interval(1e-4,1e-1))",
        )
        assert program.wait() == 0, program.said
        return program.said

    shown = command(3)
    results = [json.loads(f.read_text()) for f in out.glob("trials/*/result.json")]
    assert len(results) == 3
    best = yaml.safe_load((out / "multirun" / "search" / "best.yaml").read_text())
    top = max(results, key=lambda r: r["validation"]["macro/f1"])
    assert best["value"] == top["validation"]["macro/f1"]
    table = pd.read_csv(out / "multirun" / "search" / "trials.csv").set_index("stage.lr")
    for r in results:
        trial = table.loc[r["config"]["stage"]["lr"]]
        assert trial["value"] == pytest.approx(r["validation"]["macro/f1"])
        assert trial["stage.width"] == r["config"]["stage"]["width"]
    assert float(best["settings"]["stage.lr"]) in [r["config"]["stage"]["lr"] for r in results]
    assert f"{best['value']:.4f}" in shown
