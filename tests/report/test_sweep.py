"""Sweeps over one setting: which trials are made, and what is told of them."""

import json
import shutil

import pandas as pd
import pytest

from stemcell_lit.errors import UserError
from stemcell_lit.experiment.run import run
from stemcell_lit.experiment.trial import prepare
from stemcell_lit.report.sweep import draw, make_reports, tables_of
from stemcell_lit.settings.command_keys import ReproduceCommand, SweepConfig, typed
from stemcell_lit.settings.compose import compose
from stemcell_lit.settings.conf import conf_dir
from stemcell_lit.studies import reproduce as module
from stemcell_lit.studies.reproduce import for_trials, reproduce
from tests.conftest import make_store
from tests.recipes import log_of

EXPERIMENTS = sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml"))


def typed_run(overrides):
    return typed(compose("run", overrides))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_trials_of_every_experiment_get_its_settings_and_compose(name, tmp_path):
    whole = typed(compose("reproduce", [f"experiment={name}"]), ReproduceCommand)
    base = for_trials([f"experiment={name}", "split.folds=3"])
    assert not any(o.startswith(("methods=", "seeds=", "sweep.", "experiment=")) for o in base)
    table, method = tables_of(tmp_path, whole.sweep)[-1], whole.methods[-1]
    trial = typed_run([*base, f"method={method}", *table.overrides])
    assert trial.tune == whole.tune and trial.stage.turns == whole.stage.turns
    assert trial.split.folds == 3 and trial.method.name == method
    if whole.sweep.key is None:
        assert trial.split.labelled_fraction == whole.split.labelled_fraction


def test_what_the_user_gives_stands_above_the_experiment():
    base = for_trials(["tune=false", "experiment=claim", "methods=[flat]", "seed=3"])
    assert base.index("tune=true") < base.index("tune=false")
    assert not typed_run(base).tune
    claim = ["experiment=claim", "methods=[flat]"]
    assert typed_run(for_trials(claim)).gan.images == 192_000
    longer = for_trials([*claim, "gan=tiny_long"])
    assert typed_run(longer).gan.images == 384_000 and typed_run(longer).stage.turns
    assert typed_run(for_trials([*claim, "gan=tiny_long", "gan.images=100"])).gan.images == 100
    with pytest.raises(UserError, match="experiment=nothing: no such choice"):
        for_trials(["experiment=nothing"])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    make_store(root / "store", movies=6)
    overrides = [
        *("profile=smoke", "trainer=cpu", f"data.store={root / 'store'}", f"out={root / 'out'}"),
        *("experiment=doses", "methods=[flat,flat_gan]", "sweep.values=[0.0,1.0]", "seeds=[0]"),
        "resamples=100",
    ]
    config = typed(compose("reproduce", overrides), ReproduceCommand)

    def here(jobs, **settings):
        """The same jobs without a process each, which `test_cli` and `test_launch` have."""
        waiting = {name for job in jobs for name in job.after}
        for job in sorted(jobs, key=lambda j: j.name not in waiting):
            run(typed_run(job.argv[4:]))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_jobs", here)
        assert reproduce(config, overrides, typed_run) == 0
    return root / "out"


def test_every_value_has_its_table_and_all_have_one_figure(swept):
    assert {p.name for p in (swept / "values").iterdir()} == {"amount-0.0", "amount-1.0"}
    for value in ("amount-0.0", "amount-1.0"):
        assert (swept / "values" / value / "report.html").is_file()
    rows = pd.read_csv(swept / "sweep.csv", keep_default_na=False)
    assert len(rows) == 2 * 2 * 2  # values, methods, metrics
    one = pd.read_csv(swept / "values" / "amount-1.0" / "table.csv", keep_default_na=False)
    pick = one[(one["method"] == "flat_gan") & (one["metric"] == "f1") & (one["class"] == "")]
    same = rows[(rows["value"] == 1.0) & (rows["method"] == "flat_gan") & (rows["metric"] == "f1")]
    assert same["mean"].item() == pick["mean"].item()
    page = (swept / "report.html").read_text()
    assert "values/amount-1.0/report.html" in page and "data:image/png;base64" in page
    assert "generated per real patch" in page
    # what each value's own table advises
    assert page.count("on test groups that it never saw") == 2
    assert (swept / "sweep.md").read_text().count("- mix.amount = ") == 2
    assert (swept / "figures" / "sweep.png").stat().st_size > 5000


def test_a_dose_reaches_the_methods_that_generate_and_no_other(swept):
    found = {}
    for file in swept.glob("values/*/trials/*/result.json"):
        info = json.loads(file.read_text())
        found.setdefault((info["method"], file.parts[-4]), []).append(info)
    for value in ("amount-0.0", "amount-1.0"):
        for trial in found["flat", value]:
            assert trial["config"]["mix"]["recipe"] == "real" and not trial["generator"]
        for trial in found["flat_gan", value]:
            (stage,) = trial["stages"]
            dose = float(value.split("-")[1])
            assert all(n[1] == round(dose * n[0]) for n in stage["train"].values())
    hashes = [{c["hash"] for c in found["flat", v]} for v in ("amount-0.0", "amount-1.0")]
    assert hashes[0] == hashes[1]


def test_what_values_share_is_made_once(swept):
    log = log_of(swept / "artifacts")
    made = [e["kind"] for e in log if e["event"] == "made"]
    assert made.count("generator") == 2  # one per fold
    # per fold: flat; flat_gan without a dose is flat; flat_gan with one
    assert made.count("stage") == 2 * 2


def test_reports_of_a_sweep_are_made_again_from_its_folder(swept):
    before = (swept / "sweep.csv").read_text()
    (swept / "sweep.csv").unlink()
    make_reports(swept, resamples=100)
    assert (swept / "sweep.csv").read_text() == before
    kept = (swept / "sweep.json").read_text()
    (swept / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"sweep\.json: the file is without format"):
        make_reports(swept)
    (swept / "sweep.json").write_text(kept)


def test_values_with_unequal_labels_tell_how_many_patches_they_are(swept, tmp_path):
    copy = tmp_path / "curve"
    shutil.copytree(swept, copy, ignore=shutil.ignore_patterns("artifacts", "wandb"))
    assert " patches)" not in (copy / "sweep.md").read_text()
    for file in copy.glob("values/amount-0.0/trials/*/result.json"):
        info = json.loads(file.read_text())
        info["data"]["real"] = {"a": 1000, "b": 234}
        file.write_text(json.dumps(info))
    make_reports(copy, resamples=100)
    rows = pd.read_csv(copy / "sweep.csv")
    other = rows.loc[rows["value"] == 1.0, "patches"].iloc[0]
    assert set(rows.loc[rows["value"] == 0.0, "patches"]) == {1234} and other < 1234
    for file in ("sweep.md", "report.html"):
        text = (copy / file).read_text()
        assert "0.0 (1,234 patches)" in text and f"1.0 ({other} patches)" in text


def test_values_that_are_names_stand_side_by_side(tmp_path):
    sweep = SweepConfig("split.kind", ["grouped", "leaky"])
    rows = [
        {"value": v, "patches": 9, "method": m, "metric": k, "class": ""}
        | {"mean": 0.8, "low": 0.7, "high": 0.9}
        for v in sweep.values
        for m in ("flat", "temporal")
        for k in ("tpr", "f1")
    ]
    image = draw(pd.DataFrame(rows), tables_of(tmp_path, sweep), sweep, "flat")
    assert image.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (SweepConfig("mix.amount", []), "sweep.values is empty"),
        (SweepConfig("seed", [1, 2]), "every table has these"),
    ],
)
def test_sweeps_that_cannot_be_are_named(tmp_path, sweep, says):
    with pytest.raises(UserError, match=says):
        tables_of(tmp_path, sweep)


def test_time_alone_is_left_out_where_no_patch_has_a_time(tmp_path, capsys, monkeypatch):
    make_store(tmp_path / "timed", movies=6)
    make_store(tmp_path / "untimed", movies=6, timed=False)
    names = {}
    monkeypatch.setattr(
        module,
        "run_jobs",
        lambda jobs, **k: names.setdefault("jobs", [j.name for j in jobs]) and [],
    )
    monkeypatch.setattr(module, "make_reports", lambda *a, **k: None)
    for store, there in (("timed", True), ("untimed", False)):
        overrides = ["profile=smoke", f"data.store={tmp_path / store}", f"out={tmp_path / 'x'}"]
        overrides += ["methods=[time_only,flat]"]
        names.clear()
        config = typed(compose("reproduce", overrides), ReproduceCommand)
        assert reproduce(config, overrides, typed_run) == 0
        assert any(n.startswith("time_only") for n in names["jobs"]) == there
        assert ("no patch has a time" in capsys.readouterr().out) != there


def test_the_line_of_factors_shows_control_characters_of_the_key(tmp_path, capsys, monkeypatch):
    make_store(tmp_path / "store", movies=6)
    for name in ("write_sweep", "make_reports"):
        monkeypatch.setattr(module, name, lambda *a, **k: None)
    monkeypatch.setattr(module, "run_jobs", lambda jobs, **k: [])
    overrides = ["profile=smoke", f"data.store={tmp_path / 'store'}", f"out={tmp_path / 'x'}"]
    config = typed(compose("reproduce", [*overrides, "methods=[flat]"]), ReproduceCommand)
    config.sweep = SweepConfig("mix.a\x1b[31m", [1, 2])
    reproduce(config, overrides, lambda words: typed_run([w for w in words if "\x1b" not in w]))
    assert "2 values of mix.a\\x1b[31m" in capsys.readouterr().out


def test_prepared_trials_of_a_sweep_over_the_split_differ(tmp_path):
    make_store(tmp_path / "store", movies=8)
    base = ["profile=smoke", f"data.store={tmp_path / 'store'}", "method=flat"]
    trials = [
        prepare(typed_run([*base, *table.overrides]))
        for table in tables_of(tmp_path, SweepConfig("split.labelled_fraction", [0.3, 1.0]))
    ]
    assert len(trials[0].split.train) < len(trials[1].split.train)
    assert (trials[0].split.test == trials[1].split.test).all()
