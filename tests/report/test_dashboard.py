import copy
import json

import pytest

from stemcell_lit.__main__ import main
from stemcell_lit.errors import UserError
from stemcell_lit.experiment import tracking
from stemcell_lit.experiment.run import run
from stemcell_lit.report import dashboard as boards
from stemcell_lit.report import wandb_runs
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose
from stemcell_lit.settings.group_keys import LoggerConfig
from tests.conftest import make_store

pytest.importorskip("wandb_workspaces", reason="the extra `dashboard`")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Results of two methods, one of them with two values of a setting."""
    root = tmp_path_factory.mktemp("run")
    make_store(root / "store", movies=8, frames=3, counts=(2, 3, 3, 2))
    for overrides in (["method=flat"], ["method=hierarchy"], ["method=flat", "stage.width=8"]):
        base = [
            "profile=smoke",
            "trainer=cpu",
            f"data.store={root / 'store'}",
            f"out={root / 'out'}",
        ]
        run(typed(compose("run", [*base, *overrides])))
    return root / "out"


@pytest.fixture(scope="module")
def spec(out):
    return json.loads(boards.dashboard(out, LoggerConfig(entity="lab")).read_text())


@pytest.fixture(scope="module")
def results(out):
    return [json.loads(f.read_text()) for f in sorted(out.glob("trials/*/result.json"))]


def panels(spec):
    for section in spec["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            yield section["name"], panel["viewType"], panel["config"]


def named(spec):
    """Every metric, config key and table that a panel names."""
    metrics, keys, tables = set(), set(), set()
    for _, kind, config in panels(spec):
        metrics |= set(config.get("metrics", []))
        if "xAxis" in config:
            metrics.add(config["xAxis"])
        if "groupBy" in config:
            keys.add(config["groupBy"])
        for column in config.get("columns", []):
            where, name = column["accessor"].split(":", 1)
            (metrics if where == "summary" else keys).add(name)
        tables |= set(config.get("mediaKeys", []))
        if kind == "Weave":
            tables.add(config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"])
        if kind == "Vega2":
            (field,) = config["userQuery"]["queryFields"][0]["fields"][:1]
            tables.add(field["args"][0]["value"])
    return metrics, keys, tables


class FakeRun:
    """Collects the names that tracking logs."""

    def __init__(self):
        self.summary, self.names = {}, set()

    def log(self, row):
        for name, value in row.items():
            chart = type(value).__name__ == "CustomChart"
            self.names.add(f"{name}_table" if chart else name)

    def define_metric(self, *args, **kwargs):
        pass


def test_panels_name_only_what_tracking_logs(spec, out, results):
    run = FakeRun()
    for result in results:
        (trial,) = out.glob(f"trials/*-{result['hash'][:8]}")
        from pandas import read_parquet

        table = read_parquet(trial / "predictions.parquet")
        tracking.log_result(run, result, table, out, None)
    metrics, keys, tables = named(spec)
    assert metrics <= run.names | set(run.summary)
    assert tables <= run.names
    for key in keys:  # method.value.name, as W&B writes method.name
        value = results[0]["config"]
        for part in key.replace(".value.", ".").removesuffix(".value").split("."):
            value = value[part]
    # and it names the comparison it is for, of every class
    wanted = {f"{kind}/{c}" for kind in ("tpr", "f1") for c in ["macro", *results[0]["classes"]]}
    assert wanted <= metrics and "validation/f1/macro" in metrics
    assert {"confusion/test_table", "confusion/root-cells_table", "predictions/mistakes"} <= tables


def test_a_panel_with_a_name_that_is_not_logged_would_be_found(spec):
    broken = copy.deepcopy(spec)
    for _, kind, config in panels(broken):
        if kind == "Bar Chart":
            config["metrics"] = ["accuracy"]
    assert "accuracy" in named(broken)[0]


def test_methods_are_compared_with_the_spread_over_folds_and_seeds(spec):
    bars = [c for _, kind, c in panels(spec) if kind == "Bar Chart"]
    assert [b["metrics"] for b in bars[:2]] == [["tpr/macro"], ["f1/macro"]]
    for bar in bars:
        assert bar["groupBy"] == "method.value.name"
        assert (bar["groupAgg"], bar["groupArea"]) == ("mean", "stddev")


def test_settings_that_differ_are_axes_and_groups(spec):
    (plot,) = [c for _, kind, c in panels(spec) if kind == "Parallel Coordinates Plot"]
    axes = [column["accessor"] for column in plot["columns"]]
    assert axes == [
        *("config:method.value.name", "config:split.value.fold", "config:seed.value"),
        "config:stage.value.width",
        *("summary:validation/f1/macro", "summary:tpr/macro", "summary:f1/macro"),
    ]
    (runs,) = spec["spec"]["section"]["runSets"]
    assert [g["name"] for g in runs["grouping"]] == ["method.value.name", "stage.value.width"]


def test_only_runs_of_these_results_are_shown(spec):
    (runs,) = spec["spec"]["section"]["runSets"]
    assert '"out"' in json.dumps(runs["filters"]) and "group" in json.dumps(runs["filters"])


def test_the_same_results_make_the_same_file(spec, out):
    assert json.loads(boards.dashboard(out, LoggerConfig(entity="lab")).read_text()) == spec


def test_online_it_is_saved_under_a_name_of_its_own(out, monkeypatch):
    import wandb_workspaces.workspaces as ws

    saved = []
    monkeypatch.setattr(ws.Workspace, "save", lambda self: saved.append(self))
    monkeypatch.setattr(ws.Workspace, "url", property(lambda self: "https://wandb.ai/lab"))
    for _ in range(2):
        boards.dashboard(out, LoggerConfig(wandb="online", entity="lab"))
    first, second = saved
    assert first._internal_name == second._internal_name  # saved again, it replaces itself
    assert first.entity == "lab" and first.project == "stemcell_lit"


def test_without_a_network_the_file_is_there_and_a_note_says_so(out, monkeypatch):
    import wandb_workspaces.workspaces as ws

    def broken(self):
        raise OSError("no network")

    monkeypatch.setattr(ws.Workspace, "save", broken)
    with pytest.warns(UserWarning, match="did not take the dashboard.*no network"):
        file = boards.dashboard(out, LoggerConfig(wandb="online", entity="lab"))
    assert json.loads(file.read_text())["entity"] == "lab"


def test_without_the_extra_the_error_says_what_to_install(out, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match="stemcell_lit\\[dashboard\\]"):
        boards.dashboard(out, LoggerConfig())


@pytest.mark.parametrize("flag", ["--wandb", "wandb=true"])
def test_report_takes_the_flag_and_the_key(flag, monkeypatch, tmp_path):
    from stemcell_lit.report import sweep

    called = []
    monkeypatch.setattr(wandb_runs, "rebuild", lambda out, logger: called.append(logger.wandb) or 3)
    monkeypatch.setattr(boards, "dashboard", lambda out, logger: called.append(out))
    monkeypatch.setattr(sweep, "make_reports", lambda *a, **k: called.append("report"))
    main(["report", f"out={tmp_path}", flag, "logger=online"])
    assert called == ["online", str(tmp_path), "report"]
    main(["report", f"out={tmp_path}"])
    assert called[3:] == ["report"]
