"""One model of a folder of results: chosen, averaged and calibrated without a look at a test patch."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stemcell_lit.__main__ import main
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.stacked import Stacked
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import TrainedHierarchy, parts_of
from stemcell_lit.data.splits import make_split, whole_split
from stemcell_lit.deliver.chosen import choose
from stemcell_lit.deliver.command import deliver
from stemcell_lit.deliver.mean import mean_of
from stemcell_lit.deliver.onnx_files import export
from stemcell_lit.deliver.refit import found_settings
from stemcell_lit.deliver.sureness import Fold, Said, Sureness, on_test, sentences
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.calibration import fit_temperature, tempered, unsure_threshold
from stemcell_lit.evaluate.metrics import calibration_error
from stemcell_lit.experiment.trial import Part
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.report.print_table import interval, percent
from stemcell_lit.report.report import scores_table
from stemcell_lit.settings.command_keys import DeliverCommand
from stemcell_lit.settings.group_keys import HierarchyConfig, StageConfig, TemporalConfig
from tests.conftest import CLASSES


@pytest.fixture
def out(results, tmp_path) -> Path:
    return Path(shutil.copytree(results, tmp_path / "out", symlinks=True))


@pytest.fixture(scope="module")
def chosen(stacked):
    return choose(of(stacked, method="stacked_temporal"))


def of(out, **keys):
    return DeliverCommand(str(out), **{"resamples": 50, **keys})


def told(out):
    return json.loads((out / "model" / "model.json").read_text())["delivered"]


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# --- which ------------------------------------------------------------------------------------------------------------


def with_scores(out, method, **parts):
    for file in out.glob(f"trials/{method}-*/result.json"):
        info = json.loads(file.read_text())
        for part, value in parts.items():
            info[part] = {**info[part], "macro/f1": value, "macro/tpr": value}
        file.write_text(json.dumps(info))


def test_the_method_is_the_best_on_validation_patches_and_test_scores_have_no_say(out):
    for better in ("flat", "stacked_temporal"):
        for method in ("flat", "stacked_temporal"):
            found = {"validation": 0.7, "metrics": 0.1} if method == better else {}
            with_scores(out, method, **{"validation": 0.6, "metrics": 0.9, **found})
        chosen = choose(of(out))
        assert chosen.method == better and chosen.validation[better] == pytest.approx((0.7, 0.7))


def test_without_validation_scores_the_method_must_be_named(out):
    for file in out.glob("trials/*/result.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "validation": {}}))
    with pytest.raises(UserError, match=r"no method has scores on validation patches.*method="):
        choose(of(out))
    assert choose(of(out, method="flat")).method == "flat"


def test_a_method_that_did_not_run_is_refused_with_those_that_did(results):
    with pytest.raises(UserError, match=r"method=other: .*'flat', 'stacked_temporal'"):
        choose(of(results, method="other"))


def test_the_clock_alone_is_refused(out):
    for file in out.glob("trials/stacked_temporal-*/result.json"):
        info = json.loads(file.read_text())
        info["method"] = info["config"]["method"]["name"] = "time_only"
        info["config"]["method"]["learner"] = "clock"
        info["validation"] = {"macro/f1": 1.0, "macro/tpr": 1.0}
        file.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"method=time_only: the clock alone looks at no picture"):
        choose(of(out, method="time_only"))
    assert choose(of(out)).method == "flat"


# --- what -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["flat", "stacked_temporal"])
def test_the_model_is_the_mean_of_the_trials_networks_in_every_node(results, method):
    chosen = choose(of(results, method=method))
    models = [chosen.load(trial) for trial in chosen.trials]
    store = chosen.store
    facts = {"labels": store.labels} | {
        name: store.manifest[column].to_numpy()
        for name, column in (("times", "time_h"), ("tracks", "track"), ("frames", "frame"))
    }
    model = mean_of(models, models[0].hierarchy.fit(**facts))
    pixels = np.asarray(store.pixels[:12])
    assert len(models) == 4 and set(model.stages) == {n.name for n in model.hierarchy.nodes}
    for name, stage in model.stages.items():
        each = [one.stages[name].probabilities(pixels) for one in models]
        np.testing.assert_allclose(stage.probabilities(pixels), np.mean(each, 0), atol=1e-6)
    assert model.hierarchy.strength == np.median([one.hierarchy.strength for one in models])


def test_an_svm_that_all_seeds_share_is_there_once_a_fold(stacked):
    model = TrainedHierarchy.load(stacked / "model")
    assert told(stacked)["networks"] == {"root": {"network": 4, "classic": 2}}
    weights = [weight for _, weight in parts_of(model.stages["root"])]
    assert sorted(weights) == pytest.approx([1 / 8] * 4 + [1 / 4] * 2)


def test_members_limits_the_networks_to_those_of_the_first_seed(out):
    done = deliver(of(out, method="flat", members=2))
    assert {(t["fold"], t["seed"]) for t in done.about["trials"]} == {(0, 0), (1, 0)}
    assert done.about["networks"]["root"]["network"] == 2
    assert any("root: 2 networks" in line and "times as long" in line for line in done.lines)


def test_a_model_that_has_not_seen_all_groups_says_so_and_knows_what_it_has_seen(out):
    whole = deliver(of(out, method="flat"))
    patches = TrainedHierarchy.load(whole.folder).domain.patches
    assert "together have seen every group" in (whole.folder / "MODEL_CARD.md").read_text()
    one = deliver(of(out, method="flat", members=1))
    data, text = one.about["data"], (one.folder / "MODEL_CARD.md").read_text()
    assert data["learned_groups"] < data["groups"]
    assert f"{data['learned_groups']} of {data['groups']} groups" in " ".join(text.split())
    assert "every group" not in text and "no patch is left" not in text
    assert TrainedHierarchy.load(one.folder).domain.patches < patches


def test_what_is_known_of_time_is_that_of_all_labelled_groups(stacked, chosen):
    model = TrainedHierarchy.load(stacked / "model")
    store = chosen.store
    frames = (store.manifest[c].to_numpy() for c in ("time_h", "track", "frame"))
    fitted = model.hierarchy.fit(store.labels, *frames)
    assert model.hierarchy.prior == fitted.prior and model.hierarchy.temporal == "prior"
    one = TrainedHierarchy.load(chosen.trials[0].folder / "model")
    assert one.hierarchy.prior != fitted.prior


def windowed(store, rows, temporal="window"):
    """A tree over time whose cut is that of some patches; its networks are not trained."""
    tree = {"debris": "debris", "cells": {"by_time": {"early": CLASSES[1:3], "late": CLASSES[2:]}}}
    hierarchy = Hierarchy.build(CLASSES, HierarchyConfig(tree=tree), TemporalConfig(kind=temporal))
    hierarchy = hierarchy.fit(**Part(store, rows).facts)
    stages = {
        n.name: StageModule({**asdict(StageConfig()), "width": 2}, n.name, n.targets, [1, 1], 16)
        for n in hierarchy.nodes
        if len(n.targets) == 2
    }
    return TrainedHierarchy(hierarchy, stages, 16)


def test_trees_whose_folds_cut_the_time_elsewhere_have_one_cut_of_all_groups(store):
    frame = store.manifest["frame"].to_numpy()
    models = [
        windowed(store, np.flatnonzero(frame % 3 == 0)),
        windowed(store, np.flatnonzero(frame < 9)),
    ]
    assert models[0].hierarchy.windows != models[1].hierarchy.windows
    whole = models[0].hierarchy.fit(**Part(store, np.arange(len(store))).facts)
    mean = mean_of(models, whole)
    assert mean.hierarchy.windows == whole.windows == models[1].hierarchy.windows
    assert set(mean.stages) == {"root", "root/cells/early", "root/cells/late"}


def test_trees_of_other_nodes_have_no_mean(store):
    rows = np.arange(len(store))
    one, other = windowed(store, rows), windowed(store, rows, "none")
    with pytest.raises(UserError, match=r"trees of other nodes.*refit=true"):
        mean_of([one, other], one.hierarchy)


def test_every_group_that_any_of_its_networks_has_seen_is_known(stacked, tmp_path, chosen):
    model = TrainedHierarchy.load(stacked / "model")
    store = chosen.store
    assert model.learned.seen(store, model.image_size).all()
    words = [f"checkpoint={stacked / 'model'}", f"store={store.path}", f"out={tmp_path / 'x'}"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words])
    assert ended.value.code == 2 and not (tmp_path / "x").exists()


# --- how sure ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand(chosen):
    """Of each fold the mean over seeds, on validation and test patches."""
    found = []
    for fold in (0, 1):
        own = [t for t in chosen.trials if t.fold == fold]
        model = mean_of([chosen.load(t) for t in own], chosen.load(own[0]).hierarchy)
        split = make_split(chosen.store, replace(chosen.config.split, fold=fold))
        for name in ("val", "test"):
            rows = getattr(split, name)
            p, called = model.predict(
                np.asarray(chosen.store.pixels[rows]), chosen.store.manifest.iloc[rows]
            )
            found.append((fold, name, p, chosen.store.labels[rows], called))
    return found


def test_temperature_and_threshold_come_from_each_folds_own_networks_on_its_validation_patches(
    stacked, by_hand
):
    val = [part for part in by_hand if part[1] == "val"]
    p, y, called = (np.concatenate([part[i] for part in val]) for i in (2, 3, 4))
    model = TrainedHierarchy.load(stacked / "model")
    assert model.temperature == pytest.approx(fit_temperature(p, y))
    top = tempered(p, model.temperature).max(1)
    assert model.unsure_below == unsure_threshold(top, called == y, 0.05)
    assert told(stacked)["calibration"]["patches"] == len(y)


def test_the_cards_figures_on_test_patches_use_each_folds_validation_patches_alone(
    stacked, by_hand
):
    parts = {(fold, name): rest for fold, name, *rest in by_hand}
    tops, rights, sure = [], [], []
    for fold in (0, 1):
        p, y, called = parts[fold, "val"]
        temperature = fit_temperature(p, y)
        below = unsure_threshold(tempered(p, temperature).max(1), called == y, 0.05)
        p, y, called = parts[fold, "test"]
        tops.append(tempered(p, temperature).max(1))
        rights.append(called == y)
        sure.append(tops[-1] >= (np.inf if below is None else below))
    top, right, sure = map(np.concatenate, (tops, rights, sure))
    found = told(stacked)["calibration"]["test"]
    assert found["after"]["ece"] == pytest.approx(calibration_error(top, right))
    assert found["unsure"]["share"] == pytest.approx(1 - sure.mean())
    if sure.any():
        assert found["unsure"]["error_of_the_sure"] == pytest.approx(1 - right[sure].mean())
    assert found["error"] == pytest.approx(1 - right.mean())


def test_without_validation_patches_nothing_is_unsure_and_an_unattainable_error_is_told():
    rng = np.random.default_rng(0)
    p, none = rng.dirichlet([1, 1], 40), Said(np.empty((0, 2)), *[np.empty(0, np.int64)] * 2)
    wrong = Said(p, 1 - p.argmax(1), p.argmax(1))
    assert Sureness.fit(none, 0.05) == Sureness(1.0, None, 0)
    assert Sureness.fit(wrong, 0.05).unattainable and not Sureness.fit(none, 0.05).unattainable
    for val, share in ((none, None), (wrong, 1.0)):
        found = on_test([Fold(0, val, wrong)], 0.05)[0]
        assert (found["unsure"] or {}).get("share") == share
        said = " ".join(sentences(found, Sureness.fit(val, 0.05), 0.05))
        assert ("no patch validates" if val is none else "not attainable") in said


def test_the_temperature_changes_no_call_and_evaluate_tells_the_unsure(stacked, tmp_path, chosen):
    model = TrainedHierarchy.load(stacked / "model")
    store = chosen.store
    p, called = model.predict(np.asarray(store.pixels), store.manifest)
    cold = replace(model, temperature=1.0).predict(np.asarray(store.pixels), store.manifest)
    np.testing.assert_array_equal(called, cold[1])
    np.testing.assert_allclose(p, tempered(cold[0], model.temperature))


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_card_has_the_row_of_the_table(stacked, chosen):
    results = chosen.results
    counts = {m: results.counts(m) for m in results.methods}
    table = scores_table(results, counts, resamples=50)  # what table.csv is made of
    text = (stacked / "model" / "MODEL_CARD.md").read_text()
    for name in ("", *CLASSES):
        line = next(
            one
            for one in text.splitlines()
            if one.startswith(f"| {name or 'macro (mean'}") and "to" in one
        )
        for metric in ("tpr", "f1"):
            rows = table[(table["method"] == "stacked_temporal") & (table["class"] == name)]
            row = rows[rows["metric"] == metric].iloc[0]
            mean, low, high = (float(row[k]) for k in ("mean", "low", "high"))
            assert f"| {percent(mean)} | {interval(low, high)} |" in line
            written = told(stacked)["scores"][name][metric]
            assert (written["mean"], written["low"]) == pytest.approx((mean, low), rel=1e-5)
    assert (
        "of the single models of stacked" in text
        and "no patch is left on which it could be scored" in text
    )


def test_the_model_is_plain_files_without_pickle(stacked):
    found = files(stacked / "model")
    assert {"model.json", "MODEL_CARD.md", "calibration.png", "learned.npy"} <= set(found)
    rest = [name for name in found if not re.fullmatch(r".*\.(json|md|png|npy|safetensors)", name)]
    assert not rest
    assert not any(content[:2] in (b"PK", b"\x80\x02") for content in found.values())


def test_model_json_says_what_the_model_is_and_comes_from(stacked, chosen):
    about, store = told(stacked), chosen.store
    assert about["method"] == "stacked_temporal" and about["classes"] == CLASSES
    assert about["data"]["content_hash"] == store.content_hash
    assert sum(c["patches"] for c in about["data"]["classes"].values()) == len(store)
    assert about["input"]["patch_px"] == 16 and about["input"]["um_per_px"] == 1.0
    assert {t["name"] for t in about["trials"]} == {t.folder.name for t in chosen.trials}
    assert about["versions"]["torch"] and about["settings"]["stage"]["images"] == 96


def test_simulated_data_are_called_so(out):
    for file in out.glob("trials/*/result.json"):
        info = json.loads(file.read_text())
        info["data"]["simulated"] = True
        file.write_text(json.dumps(info))
    deliver(of(out, method="flat", members=2))
    text = (out / "model" / "MODEL_CARD.md").read_text()
    assert "**simulated** patches" in text and "no model for real cells" in text


def test_the_same_results_give_the_same_files_and_a_model_of_its_own_is_replaced(out):
    config = of(out, method="flat", members=2)
    deliver(config)
    before = files(out / "model")
    deliver(config)
    assert files(out / "model") == before


@pytest.mark.parametrize("what", ["a file of the user's", "a changed card"])
def test_what_the_user_put_or_changed_there_stays(out, stacked, what):
    config = of(out, method="flat", members=1)
    shutil.copytree(stacked / "model", out / "model")
    file = out / "model" / ("notes.txt" if "user" in what else "MODEL_CARD.md")
    file.write_text("mine")
    with pytest.raises(UserError, match="nothing was changed"):
        deliver(config)
    assert file.read_text() == "mine"


def test_a_failure_leaves_no_half_of_a_model(out, monkeypatch):
    def fail(*given):
        raise UserError("no card")

    monkeypatch.setattr("stemcell_lit.deliver.command.card", fail)
    with pytest.raises(UserError, match="no card"):
        deliver(of(out, method="flat", members=1))
    assert not (out / "model").exists() and not list(out.glob(".model*"))


def test_results_whose_store_has_changed_are_refused(out):
    file = next(out.glob("trials/flat-*/result.json"))
    for file in out.glob("trials/*/result.json"):
        info = json.loads(file.read_text())
        info["data"]["content_hash"] = "0" * 64
        file.write_text(json.dumps(info))
    with pytest.raises(UserError, match="has changed since the runs"):
        deliver(of(out))
    assert not (out / "model").exists()


def test_the_command_prints_what_was_made_and_takes_a_method_by_its_name(out, capsys):
    main(["deliver", f"out={out}", "method=flat", "members=1", "resamples=50"])
    said = capsys.readouterr().out
    assert "method: flat, as it was named" in said and said.strip().endswith(str(out / "model"))
    assert f"checkpoint={out / 'model'}" in said
    with pytest.raises(SystemExit):
        main(["deliver", f"out={out}", "method=none such"])
    assert "method=none such: " in capsys.readouterr().err


def test_predictions_of_a_store_take_the_delivered_model_as_that_of_a_trial(
    stacked, tmp_path, chosen
):
    store = chosen.store
    other = tmp_path / "other"
    PatchStore.write(
        other,
        255 - np.asarray(store.pixels),
        store.manifest.assign(group="new"),
        classes=CLASSES,
    )
    words = [f"checkpoint={stacked / 'model'}", f"store={other}", f"out={tmp_path / 'scores'}"]
    main(["evaluate", *words])
    table = pd.read_parquet(tmp_path / "scores" / "predictions.parquet")
    model = TrainedHierarchy.load(stacked / "model")
    top = table[[f"p/{c}" for c in CLASSES]].to_numpy().max(1)
    result = json.loads((tmp_path / "scores" / "result.json").read_text())["unseen"]["unsure"]
    if model.unsure_below is None:
        assert result is None and "unsure" not in table
    else:
        np.testing.assert_array_equal(table["unsure"], top < model.unsure_below)
        assert result["share"] == pytest.approx(table["unsure"].mean())


# --- trained anew, and exported ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refitted(results, tmp_path_factory):
    """A model of one seed, trained on all groups, with ONNX files where the extra is there."""
    place = Path(shutil.copytree(results, tmp_path_factory.mktemp("refit") / "out"))
    there = importlib.util.find_spec("onnxruntime") is not None
    return deliver(of(place, method="flat", refit=True, members=1, export=there))


def test_refit_trains_one_network_a_seed_on_all_groups_but_a_validation_share(refitted, chosen):
    about, store = refitted.about, chosen.store
    assert about["refit"] and about["networks"]["root"]["network"] == 1
    assert {t["fold"] for t in about["trials"]} == {0, 1}  # what is known of the method stays whole
    split = whole_split(store, chosen.config.split)
    assert not len(split.test) and 0 < len(split.val) < len(split.train)
    assert not set(split.groups(store, "val")) & set(split.groups(store, "train"))
    assert sorted([*split.train, *split.val]) == list(range(len(store)))
    model = TrainedHierarchy.load(refitted.folder)
    assert set(model.learned.groups) == set(store.manifest["group"])
    val = Part(store, split.val, chosen.config.data.patch_size)
    p, _ = replace(model, temperature=1.0).predict(val.pixels, val.manifest)
    assert model.temperature == pytest.approx(fit_temperature(p, val.labels))
    assert about["calibration"]["patches"] == len(val)
    text = (refitted.folder / "MODEL_CARD.md").read_text()
    assert "trained anew on all groups" in text and "own validation share" in text


def test_refit_takes_the_settings_that_most_folds_chose(results):
    trials = choose(of(results, method="flat")).trials
    assert found_settings(trials) == {}
    taken = [{"stage.lr": 0.1}, {"stage.lr": 0.2}, {"stage.lr": 0.2}, {"stage.lr": 0.1}]
    for trial, one in zip(trials, [*taken[:3], {"stage.lr": 0.2}], strict=True):
        trial.info["tuning"] = {"taken": one}
    assert found_settings(trials) == {"stage.lr": 0.2}


def test_exported_networks_answer_as_torch_does(refitted, chosen):
    runtime = pytest.importorskip("onnxruntime")
    told = refitted.about["onnx"]
    assert list(told["files"]) == ["stage-0.onnx"] and not told["left_out"]
    session = runtime.InferenceSession(
        str(refitted.folder / "stage-0.onnx"), providers=["CPUExecutionProvider"]
    )
    pixels = np.asarray(chosen.store.pixels)
    found = session.run(None, {"pixels": pixels[:, None].astype(np.float32)})[0]
    stage = TrainedHierarchy.load(refitted.folder).stages["root"]
    assert np.abs(found - stage.probabilities(pixels)).max() < 1e-4
    assert told["files"]["stage-0.onnx"] < 1e-4
    assert "differ from torch's by" in (refitted.folder / "MODEL_CARD.md").read_text()


def test_what_has_no_onnx_is_named(chosen, tmp_path):
    pytest.importorskip("onnxruntime")
    model = chosen.load(chosen.trials[0])
    (network, _), (classic, _) = parts_of(model.stages["root"])
    network.network = Unwritable()
    model.stages = {"root": Stacked([network, classic], [0.5, 0.5])}
    files = {"root": [{"file": "stage-0-0.safetensors"}, {"file": "stage-0-1.safetensors"}]}
    found = export(model, files, tmp_path, np.asarray(chosen.store.pixels))
    assert not found["files"] and not list(tmp_path.iterdir())
    assert "torch cannot export it" in found["left_out"]["stage-0-0.safetensors"]
    assert "classical features" in found["left_out"]["stage-0-1.safetensors"]


class Unwritable(nn.Module):
    def forward(self, x):
        return torch.linalg.lstsq(x.flatten(1)[:, :4].T @ x.flatten(1)[:, :4], x[0, 0, :4, :4])[0]


def test_export_without_the_extra_is_refused_before_any_work(results, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"export=true needs onnx and onnxruntime.*\[export\]"):
        deliver(of(results, export=True))
