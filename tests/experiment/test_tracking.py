import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stemcell_lit.errors import UserError
from stemcell_lit.experiment import tracking
from stemcell_lit.experiment.run import run
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.report import wandb_runs
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose
from stemcell_lit.settings.group_keys import LoggerConfig
from tests.conftest import make_store
from tests.experiment.wandb_file import OfflineRun, offline_runs
from tests.program import Program


def settings(tmp_path, *overrides):
    if not (tmp_path / "store").exists():
        make_store(tmp_path / "store", movies=8, frames=3, counts=(2, 3, 3, 2))
    base = ["profile=smoke", "trainer=cpu", "method=flat", f"data.store={tmp_path / 'store'}"]
    return [*base, f"out={tmp_path / 'out'}", *overrides]


def trial(tmp_path, *overrides):
    return run(typed(compose("run", settings(tmp_path, *overrides))))


def command(*arguments):
    """In a process of its own: W&B may write the last of its file when the process ends."""
    program = Program(*arguments)
    assert program.wait() == 0, program.said
    return program.said


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """The folder of a trial that has logged offline."""
    root = tmp_path_factory.mktemp("offline")
    command("run", *settings(root, "method=temporal_gan", "logger=offline"))
    return root / "out"


@pytest.fixture(scope="module")
def result(offline):
    (file,) = offline.glob("trials/*/result.json")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def logged(offline) -> OfflineRun:
    (found,) = offline_runs(offline)
    return found


@pytest.fixture(scope="module")
def rebuilt(offline, tmp_path_factory) -> OfflineRun:
    """The same run, made again from files alone by `report --wandb`, in a copy of the folder."""
    out = shutil.copytree(offline, tmp_path_factory.mktemp("again") / "out", symlinks=True)
    shown = command("report", f"out={out}", "baseline=temporal_gan", "resamples=20", "--wandb")
    assert "W&B: 1 runs (offline)" in shown
    (found,) = offline_runs(out)  # the logged one, which was copied too, is replaced
    return found


def expected_summary(result):
    """Written out once more, as docs/wandb.md promises it."""
    names = {}
    for prefix, part in (("", "metrics"), ("validation/", "validation")):
        for kind in ("tpr", "f1"):
            names[f"{prefix}{kind}/macro"] = result[part][f"macro/{kind}"]
            for c in result["classes"]:
                names[f"{prefix}{kind}/{c}"] = result[part][f"{kind}/{c}"]
    return {k: v for k, v in names.items() if v is not None}


def test_offline_is_the_default():
    assert typed(compose("run", [])).logger.wandb == "offline"


@pytest.mark.parametrize("which", ["logged", "rebuilt"])
def test_an_offline_run_holds_exactly_the_metrics_of_its_result(which, result, request):
    found = request.getfixturevalue(which)
    scores = {
        k: v
        for k, v in found.summary.items()
        if k.removeprefix("validation/").split("/")[0] in ("tpr", "f1")
    }
    assert scores == expected_summary(result)  # every one, to the last bit, and no other
    assert found.summary["patches/test"] == sum(result["data"]["test"].values())
    assert found.summary["patches/generated"] == sum(result["data"]["generated"].values()) > 0
    assert found.ended and found.folder.name.endswith(result["hash"])


def test_a_run_is_found_by_group_job_type_tags_and_config(logged, result):
    assert logged.run.run_id == result["hash"]
    assert logged.run.run_group == "out" and logged.run.job_type == "temporal_gan"
    assert set(logged.run.tags) == {
        "temporal_gan",
        "fold-0",
        "seed-0",
        f"data-{result['data']['content_hash'][:8]}",
        "hierarchy-colony",
        "temporal-prior",
        "mix-balance",
    }
    assert logged.config["method"]["name"] == "temporal_gan"
    assert logged.config["stage"] == result["config"]["stage"]
    assert logged.config["trial"]["hash"] == result["hash"]


def test_training_curves_are_those_of_the_result_over_images_seen(logged, result):
    for stage in result["stages"]:
        name = f"curve/{stage['node'].replace('/', '-')}"
        assert logged.column(f"{name}/images") == [p["images"] for p in stage["curve"]]
        assert logged.column(f"{name}/loss") == [p["loss"] for p in stage["curve"]]
        f1 = [p["val/macro/f1"] for p in stage["curve"] if p["val/macro/f1"] is not None]
        assert logged.column(f"{name}/f1/macro") == f1
    curve = result["generator"]["curve"]
    assert [p["images"] for p in curve] == sorted({p["images"] for p in curve}) and curve
    assert logged.column("curve/generator/critic/real") == [p["critic/real"] for p in curve]
    assert not [k for k in logged.summary if k.startswith("curve/")]
    assert any(k.startswith("live/stage/root/") for k in logged.names())


def test_confusion_matrices_of_the_whole_and_of_every_stage_are_there(logged, result):
    wanted = {"test": (result["classes"], result["confusion"])} | {
        s["node"].replace("/", "-"): (s["groups"], s["confusion"]) for s in result["stages"]
    }
    assert len(wanted) == 3
    for name, (classes, matrix) in wanted.items():
        columns, rows = logged.table(f"confusion/{name}_table")
        assert columns == ["true", "predicted", "patches"]
        counts = {(true, predicted): n for true, predicted, n in rows}
        found = [[counts[true, predicted] for predicted in classes] for true in classes]
        assert found == matrix


def test_mistakes_come_the_surest_first_with_pictures(offline, logged, result):
    (file,) = offline.glob("trials/*/predictions.parquet")
    table = pd.read_parquet(file)
    wrong = table[table["label"] != table["predicted"]]
    columns, rows = logged.table("predictions/mistakes")
    assert len(rows) == min(len(wrong), tracking.MISTAKES) > 0 and columns[0] == "picture"
    sure = [row[columns.index("p predicted")] for row in rows]
    assert sure == sorted(sure, reverse=True)
    assert sure[0] == pytest.approx(
        max(wrong.loc[i, f"p/{wrong.loc[i, 'predicted']}"] for i in wrong.index), abs=1e-4
    )
    assert {row[columns.index("patch")] for row in rows} <= set(wrong["patch"])
    pictures = {k: v for k, v in logged.files.items() if k.endswith(".png")}
    assert len(pictures) == len(rows)
    staging = tracking.staging(offline, result["hash"])  # not in the home directory
    store = PatchStore.open(result["store"])
    shown = {Image.open(file).tobytes() for file in pictures.values()}
    assert shown == {store.pixels[row[columns.index("patch")]].tobytes() for row in rows}
    assert all(file.is_relative_to(staging.resolve()) for file in pictures.values())


def test_counts_of_predictions_add_up(logged, result):
    columns, rows = logged.table("predictions/counts")
    assert columns == ["label", "patches", "right", "confidence", "wrong"]
    assert {r[0]: r[1] for r in rows} == {k: v for k, v in result["data"]["test"].items() if v}
    assert sum(r[2] for r in rows) == np.trace(np.array(result["confusion"]))
    assert all(r[1] == r[2] + r[4] for r in rows)


def test_sample_grids_of_the_generator_are_there_over_its_training(offline, logged, result):
    grids = offline / result["generator"]["path"] / "grids"
    images = [int(f.stem.removeprefix("images_")) for f in sorted(grids.glob("images_*.png"))]
    assert logged.column("generator/grid_images") == images and images
    for entry in logged.column("generator/grid"):
        assert (logged.folder / "files" / entry["path"]).is_file()


def test_a_rebuilt_run_equals_the_logged_one_but_for_what_was_live(logged, rebuilt):
    def content(run):
        return {
            name: run.column(name)
            for name in run.names()
            if not name.startswith(("live/", "confusion/", "predictions/", "generator/grid"))
        }

    assert content(rebuilt) == content(logged)
    assert rebuilt.names() == {k for k in logged.names() if not k.startswith("live/")}
    assert rebuilt.config == logged.config and set(rebuilt.run.tags) == set(logged.run.tags)
    for table in ("confusion/test_table", "predictions/counts", "predictions/sample"):
        assert rebuilt.table(table) == logged.table(table)


def test_a_table_of_predictions_is_bounded(tmp_path, monkeypatch):
    logged = {}

    class FakeRun:
        def log(self, row):
            logged.update(row)

    n, classes = 3 * tracking.SAMPLE, ["a", "b"]
    table = pd.DataFrame(
        {
            **{"patch": np.arange(n), "group": "g", "track": "t", "frame": 0, "time_h": np.nan},
            **{"label": "a", "predicted": "b", "p/a": np.linspace(0, 0.5, n)},
        }
    )
    table["p/b"] = 1 - table["p/a"]
    tracking._log_predictions(FakeRun(), {"classes": classes}, table, None)
    assert len(logged["predictions/sample"].data) == tracking.SAMPLE
    assert len(logged["predictions/mistakes"].data) == tracking.MISTAKES
    assert logged["predictions/mistakes"].data[0][0] == 0  # p(b) = 1: nothing is surer
    assert logged["predictions/sample"].data[0][4] is None  # no NaN


# --- whatever W&B does, the trial goes on ---


def test_disabled_leaves_no_trace(tmp_path):
    trial(tmp_path, "logger=disabled")
    assert not (tmp_path / "out" / "wandb").exists()


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"logger.wandb=sometimes: expected one of offline"):
        trial(tmp_path, "logger.wandb=sometimes")


class FakeRun:
    """Takes everything, or raises at everything."""

    def __init__(self, broken=False, **settings):
        self.settings, self.broken, self.summary = settings, broken, {}
        self.id, self.rows, self.finished = settings["id"], [], False

    def log(self, row):
        if self.broken:
            raise OSError("disk full")
        self.rows.append(row)

    def define_metric(self, *args, **kwargs):
        pass

    def finish(self):
        self.finished = True
        if self.broken:
            raise OSError("disk full")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The runs that were opened; W&B itself is not there, nor is a key."""
    import wandb

    runs = []

    def init(**settings):
        if settings["mode"] == "online" and "no-network" in os.environ.get("WANDB_API_KEY", ""):
            raise OSError("no network")
        runs.append(FakeRun(broken=settings["project"] == "broken", **settings))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return runs


def test_online_without_a_key_is_kept_offline(tmp_path, started):
    with pytest.warns(UserWarning, match="no W&B key was found"):
        assert (trial(tmp_path, "logger=online") / "result.json").is_file()
    assert [r.settings["mode"] for r in started] == ["offline"] and started[0].finished


def test_online_without_a_network_is_kept_offline(tmp_path, started, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "no-network")
    with pytest.warns(UserWarning, match="no network.*kept offline"):
        assert (trial(tmp_path, "logger=online") / "result.json").is_file()
    assert [r.settings["mode"] for r in started] == ["offline"]


def test_online_with_a_key_goes_on_in_the_run_of_its_hash(tmp_path, started, monkeypatch):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 1234\n")
    assert tracking.has_key()
    folder = trial(tmp_path, "logger=online", "logger.entity=lab")
    result = json.loads((folder / "result.json").read_text())
    (opened,) = started
    assert opened.settings["mode"] == "online" and opened.settings["resume"] == "allow"
    assert opened.id == result["hash"] and opened.settings["entity"] == "lab"
    assert opened.summary["f1/macro"] == result["metrics"]["macro/f1"]
    # rebuilding writes over what is there instead of adding to it
    store = tmp_path / "out"
    assert wandb_runs.rebuild(store, LoggerConfig(wandb="online")) == 1
    assert started[1].settings["resume"] is None and started[1].id == opened.id
    assert started[1].summary == opened.summary


def test_a_wandb_that_does_not_start_costs_a_warning_and_no_result(tmp_path, monkeypatch, started):
    import wandb

    def broken(**settings):
        raise OSError("no disk")

    monkeypatch.setattr(wandb, "init", broken)
    with pytest.warns(UserWarning, match="goes on without it"):
        assert (trial(tmp_path, "logger=offline") / "result.json").is_file()


def test_a_wandb_that_fails_while_a_trial_trains_costs_a_warning_and_no_result(tmp_path, started):
    with pytest.warns(UserWarning, match="the result is whole without it") as warned:
        made = trial(tmp_path, "logger=offline", "logger.project=broken")
    assert (made / "result.json").is_file() and started[0].finished
    assert len([w for w in warned if "disk full" in str(w.message)]) < 8  # not one a step


def test_rebuilding_without_the_store_leaves_out_pictures_and_says_so(tmp_path, started):
    folder = trial(tmp_path, "logger=disabled")
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match="no pictures of patches"):
        wandb_runs.rebuild(tmp_path / "out", LoggerConfig())
    rows = {k: v for row in started[0].rows for k, v in row.items()}
    assert "picture" not in rows["predictions/mistakes"].columns
    result = json.loads((folder / "result.json").read_text())
    assert started[0].summary["tpr/macro"] == result["metrics"]["macro/tpr"]


def test_rebuilding_with_a_disabled_logger_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to rebuild"):
        wandb_runs.rebuild(tmp_path, LoggerConfig(wandb="disabled"))


def test_wandb_stays_out_of_the_home_directory(tmp_path, started, monkeypatch):
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    info = json.loads((trial(tmp_path, "logger=disabled") / "result.json").read_text())
    with tracking.wandb_run(info, LoggerConfig(), tmp_path / "out"):
        assert Path(os.environ["WANDB_DATA_DIR"]).is_relative_to(tmp_path)
    assert "WANDB_DATA_DIR" not in os.environ


def test_validation_scores_are_those_of_the_validation_patches(offline, result):
    from stemcell_lit.classify.plateau import refined_loss
    from stemcell_lit.classify.trained import TrainedHierarchy
    from stemcell_lit.experiment.run import evaluate, validation_f1
    from stemcell_lit.experiment.trial import Part

    (folder,) = offline.glob("trials/*")
    store = PatchStore.open(result["store"])
    rows = np.flatnonzero(store.manifest["group"].isin(result["split"]["val"]).to_numpy())
    table, found = evaluate(TrainedHierarchy.load(folder / "model"), Part(store, rows))
    p = table[[f"p/{c}" for c in store.classes]].to_numpy()
    loss = pytest.approx(refined_loss(p, store.labels[rows]), rel=1e-4)
    assert result["validation"] == {**found["metrics"], "loss": loss}
    assert validation_f1(folder) == found["metrics"]["macro/f1"]
    assert not set(result["split"]["val"]) & set(result["split"]["test"])
