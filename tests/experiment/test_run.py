import functools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stemcell_lit.__main__ import compose
from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import scores
from stemcell_lit.experiment.artifacts import ArtifactStore
from stemcell_lit.experiment.run import (
    Cell,
    evaluate_store,
    generate,
    prepare,
    relevant,
    run,
    train,
    typed,
)
from stemcell_lit.schema import EvaluateCommand, GenerateCommand, RunCommand, TrainCommand
from tests.conftest import make_store

SMOKE = ["profile=smoke", "trainer=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store and the cells of several methods on its first fold."""
    root = tmp_path_factory.mktemp("run")
    make_store(root / "store", movies=8, frames=4)
    return root


def config(folder, *overrides, out="out", command="run", kind=RunCommand):
    base = [*SMOKE, f"data.store={folder / 'store'}", f"out={folder / out}"]
    return typed(compose(command, [*base, *overrides]), kind)


def result(cell):
    return json.loads((cell / "result.json").read_text())


@pytest.mark.parametrize(
    "method", ["flat", "flat_gan", "temporal", "temporal_gan", "hierarchy", "time_only"]
)
def test_a_cell_goes_from_patches_to_a_result(folder, method):
    cell = run(config(folder, f"method={method}"))
    found, table = result(cell), pd.read_parquet(cell / "predictions.parquet")
    store = PatchStore.open(folder / "store")
    assert sorted(table["group"].unique()) == found["split"]["test"]
    assert (
        store.manifest["label"].iloc[table["patch"]].to_numpy() == table["label"].to_numpy()
    ).all()
    p = table[[f"p/{c}" for c in store.classes]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    again = scores(table["label"].to_numpy(), table["predicted"].to_numpy(), store.classes)
    assert found["metrics"] == pytest.approx(again)
    assert np.sum(found["confusion"]) == len(table)
    assert bool(found["generator"]) == method.endswith("gan")
    assert found["temporal"]["kind"] == ("window" if method.startswith("temporal") else "none")
    assert found["data"]["content_hash"] == store.content_hash
    assert found["config"]["method"]["name"] == method and "torch" in found["versions"]
    stages = {s["node"] for s in found["stages"]}
    assert stages == {
        "flat": {"root"},
        "flat_gan": {"root"},
        "hierarchy": {"root", "root/cells"},
        "time_only": set(),
    }.get(method, {"root", "root/cells/early", "root/cells/late"})


def test_generated_patches_fill_every_stage(folder):
    found = result(run(config(folder, "method=temporal_gan")))
    for stage in found["stages"]:
        assert len({sum(n) for n in stage["train"].values()}) == 1
        assert any(n[1] > 0 for n in stage["train"].values())


def test_the_generator_saw_training_groups_alone(folder):
    found = result(run(config(folder, "method=flat_gan")))
    made = PatchStore.open(folder / "out" / found["generator"]["generated"])
    assert made.seen_groups == set(found["split"]["train"])
    assert not made.seen_groups & set(found["split"]["test"] + found["split"]["val"])


@pytest.mark.parametrize("method", ["flat", "temporal_gan"])
def test_the_same_seed_gives_the_same_metrics(folder, method):
    first = result(run(config(folder, f"method={method}", out="a")))
    second = result(run(config(folder, f"method={method}", out="b")))
    for key in ("metrics", "confusion", "stages", "temporal", "hash"):
        assert first[key] == second[key]
    one, two = (
        pd.read_parquet(next((folder / o / "cells").glob(f"{method}-*")) / "predictions.parquet")
        for o in "ab"
    )
    pd.testing.assert_frame_equal(one, two)


def test_another_seed_gives_another_training(folder):
    first, second = (result(run(config(folder, "method=flat", f"seed={s}"))) for s in (0, 1))
    assert first["stages"][0]["curve"] != second["stages"][0]["curve"]
    assert first["split"] == second["split"]


def test_a_finished_cell_is_not_made_again(folder):
    cell = run(config(folder, "method=flat"))
    before = (cell / "result.json").stat().st_mtime_ns
    assert run(config(folder, "method=flat")) == cell
    assert (cell / "result.json").stat().st_mtime_ns == before


def test_a_generator_is_trained_once_for_all_methods_and_seeds(folder):
    for method in ("flat_gan", "temporal_gan"):
        for seed in (0, 1):
            run(config(folder, f"method={method}", f"seed={seed}", out="once"))
    log = ArtifactStore(folder / "once" / "artifacts").log()
    assert [e["event"] for e in log if e["kind"] == "generator"].count("made") == 1


def test_a_cell_that_fails_leaves_no_result(folder, monkeypatch):
    from stemcell_lit.experiment import run as module

    def broken(*args):
        raise RuntimeError("disk full")

    monkeypatch.setattr(module, "evaluate", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        run(config(folder, "method=flat", out="broken"))
    assert not list((folder / "broken").glob("cells/*"))


irrelevant = st.sampled_from(
    [
        ["logger=disabled"],
        ["out=elsewhere"],
        ["artifacts=x"],
        ["data.workers=3"],
        ["logger.project=p"],
        ["trainer.accelerator=cpu"],
    ]
)
matters = st.sampled_from(
    [
        ["stage.lr=0.1"],
        ["seed=5"],
        ["generator_seed=5"],
        ["split.fold=1"],
        ["split.seed=3"],
        ["mix=balance"],
        ["gan.images=7"],
        ["data.augment=strong"],
        ["data.patch_size=8"],
        ["temporal=prior"],
        ["hierarchy=flat"],
        ["method=temporal"],
        ["trainer.precision=bf16-mixed"],
    ]
)


@functools.cache
def composed(overrides):
    return typed(compose("run", list(overrides)))


@settings(max_examples=12, deadline=None)
@given(irrelevant, matters)
def test_only_what_may_change_a_result_changes_its_hash(store_cell, nothing, something):
    def hash_of(*overrides):
        return replace(store_cell, config=composed(overrides)).hash

    assert hash_of() == hash_of(*nothing)
    assert hash_of() != hash_of(*something)
    assert hash_of(*something) == hash_of(*something, *nothing)


@pytest.fixture(scope="module")
def store_cell(folder) -> Cell:
    return prepare(config(folder))


def test_every_setting_is_either_relevant_or_named_as_irrelevant():
    chosen = relevant(RunCommand())
    assert set(chosen) == set(RunCommand.__dataclass_fields__) - {
        "out",
        "artifacts",
        "logger",
    }


def test_train_generate_and_evaluate_work_on_the_same_parts(folder):
    checkpoint = train(config(folder, "task=gan", command="train", kind=TrainCommand))
    assert train(config(folder, "task=gan", command="train", kind=TrainCommand)) == checkpoint
    made = generate(GenerateCommand(str(checkpoint), str(folder / "new"), per_class=5))
    assert made.manifest["label"].value_counts().to_dict() == dict.fromkeys(made.classes, 5)
    assert set(made.manifest["origin"]) == {"generated"} and made.seen_groups
    file = train(
        config(
            folder, "task=stage", "method=temporal", "node=root", command="train", kind=TrainCommand
        )
    )
    assert file.name == "stage.ckpt"
    with pytest.raises(UserError, match="root/cells/early"):
        train(
            config(
                folder,
                "task=stage",
                "method=temporal",
                "node=x",
                command="train",
                kind=TrainCommand,
            )
        )

    cell = run(config(folder, "method=temporal"))
    written = evaluate_store(
        EvaluateCommand(str(cell / "model"), str(folder / "store"), str(folder / "eval"))
    )
    whole = pd.read_parquet(written.parent / "predictions.parquet").set_index("patch")
    tested = pd.read_parquet(cell / "predictions.parquet").set_index("patch")
    pd.testing.assert_frame_equal(whole.loc[tested.index], tested)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda f: generate(GenerateCommand(str(f / "no.ckpt"), str(f / "x"))),
            "no.ckpt: no such file",
        ),
        (
            lambda f: evaluate_store(EvaluateCommand(str(f), str(f / "store"), str(f / "x"))),
            "model.json: no such file",
        ),
        (lambda f: prepare(config(f, "hierarchy=mitosis", "method=temporal")), "its tree holds"),
        (lambda f: run(config(f, "logger.wandb=loud", out="loud")), "offline, online, disabled"),
        (lambda f: typed(OmegaConf.create({"store": "???"}), GenerateCommand), "store= is missing"),
    ],
)
def test_what_cannot_be_used_is_named(folder, make, says):
    with pytest.raises(UserError, match=says):
        make(folder)
