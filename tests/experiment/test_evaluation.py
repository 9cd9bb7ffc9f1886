"""Scores of a model on a store say which of its patches the model knew."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stemcell_lit.__main__ import main
from stemcell_lit.classify.domain import Domain
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import scores
from stemcell_lit.experiment.evaluation import evaluate_store
from stemcell_lit.experiment.run import run
from stemcell_lit.patches.store import PatchStore, reduce_pixels
from stemcell_lit.settings.command_keys import EvaluateCommand, typed
from stemcell_lit.settings.compose import compose
from tests.conftest import CLASSES, make_store


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A trained trial, its store beside it."""
    root = tmp_path_factory.mktemp("evaluation")
    make_store(root / "store", movies=6, frames=4)
    words = ["profile=smoke", "trainer=cpu", f"data.store={root / 'store'}", f"out={root}"]
    return run(typed(compose("run", [*words, "method=flat_temporal"])))


@pytest.fixture
def command(trial, tmp_path):
    return EvaluateCommand(
        str(trial / "model"), str(trial.parents[1] / "store"), str(tmp_path / "out")
    )


def test_a_trials_model_knows_what_its_training_patches_look_like(trial, command):
    store, model = PatchStore.open(command.store), TrainedHierarchy.load(trial / "model")
    split = json.loads((trial / "result.json").read_text())["split"]
    rows = np.flatnonzero(store.manifest["group"].isin(split["train"]))
    assert model.domain == Domain.of(reduce_pixels(store.finest[rows], model.image_size))
    assert model.unsure_below is None


def test_a_model_is_taken_by_the_folder_of_its_trial(trial, command):
    command.checkpoint, command.seen = str(trial), True
    assert evaluate_store(command).result["model"]["path"] == str(trial / "model")


def split_of(trial):
    found = json.loads((trial / "result.json").read_text())["split"]
    return {*found["train"], *found["val"]}, {*found["test"]}


def test_on_its_own_store_seen_and_unseen_groups_have_scores_of_their_own(trial, command):
    done = evaluate_store(command)
    table = pd.read_parquet(done.folder / "predictions.parquet")
    learned, tested = split_of(trial)
    assert set(table["group"][table["seen"]]) == learned
    assert set(table["group"][~table["seen"]]) == tested
    written = json.loads((done.folder / "result.json").read_text())
    for name, rows in (("seen", table[table["seen"]]), ("unseen", table[~table["seen"]])):
        assert written[name]["patches"] == len(rows)
        expected = scores(rows["label"], rows["predicted"], CLASSES)
        assert written[name]["metrics"] == pytest.approx(expected)
    told = json.loads((trial / "result.json").read_text())
    assert written["unseen"]["confusion"] == told["confusion"]  # what was held out, as it was


def test_the_result_names_model_and_store(trial, command):
    written = evaluate_store(command).result
    store = PatchStore.open(command.store)
    assert written["model"]["path"] == command.checkpoint
    assert written["model"]["content_hash"] == store.content_hash
    assert set(written["model"]["groups"]) == split_of(trial)[0]
    assert written["store"] == {"path": command.store, "content_hash": store.content_hash}


def test_a_store_of_nothing_but_seen_groups_is_refused_unless_asked_for(trial, command, tmp_path):
    store = PatchStore.open(command.store)
    rows = np.flatnonzero(store.manifest["group"].isin(split_of(trial)[0]))[::3]
    part = tmp_path / "part"
    PatchStore.write(
        part,
        np.asarray(store.pixels)[rows],
        store.manifest.iloc[rows].assign(group="new"),
        classes=CLASSES,
    )
    command = replace(command, store=str(part))
    with pytest.raises(UserError, match=r"part: the model has learned from every group.*seen=true"):
        evaluate_store(command)
    assert not (tmp_path / "out").exists()
    done = evaluate_store(replace(command, seen=True))
    assert done.result["unseen"] is None and done.result["seen"]["groups"] == 1


def test_a_new_store_is_unseen_and_equal_names_of_groups_are_told(command, tmp_path):
    make_store(tmp_path / "new", seed=9)
    command = replace(command, store=str(tmp_path / "new"))
    with pytest.warns(UserWarning, match=r"groups are called as groups that the model learned"):
        done = evaluate_store(command)
    assert done.result["seen"] is None and done.result["unseen"]["groups"] == 6


def test_scores_are_printed_the_seen_ones_as_such(trial, command, capsys):
    words = [f"checkpoint={command.checkpoint}", f"store={command.store}", f"out={command.out}"]
    main(["evaluate", *words])
    said = capsys.readouterr().out
    unseen = evaluate_store(command).result["unseen"]
    tpr, f1 = (100 * unseen["metrics"][f"macro/{m}"] for m in ("tpr", "f1"))
    count = f"{unseen['patches']} patches, {unseen['groups']} groups"
    assert f"unseen groups ({count}): TPR {tpr:.1f} %, F1 {f1:.1f} %" in said
    assert "groups that it learned from" in said and "say nothing" in said
    assert command.store in said and command.checkpoint in said
