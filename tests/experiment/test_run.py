import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stemcell_lit.base.artifacts import ArtifactStore, key_hash
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import scores
from stemcell_lit.experiment.evaluation import evaluate_store
from stemcell_lit.experiment.generators import (
    TrainedGenerator,
    generate,
    with_shuffled_labels,
)
from stemcell_lit.experiment.run import choose, run, train
from stemcell_lit.experiment.stages import TrainedStage
from stemcell_lit.experiment.trial import Trial, prepare, relevant, with_settings
from stemcell_lit.patches.store import PatchStore, reduce_pixels
from stemcell_lit.settings.command_keys import (
    EvaluateCommand,
    GenerateCommand,
    RunCommand,
    TrainCommand,
    typed,
)
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store
from tests.recipes import log_of

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["profile=smoke", "trainer=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store and the trials of several methods on its first fold."""
    root = tmp_path_factory.mktemp("run")
    make_store(root / "store", movies=8, frames=4)
    return root


def config(folder, *overrides, out="out", command="run", kind=RunCommand):
    base = [*SMOKE, f"data.store={folder / 'store'}", f"out={folder / out}"]
    return typed(compose(command, [*base, *overrides]), kind)


def result(trial):
    return json.loads((trial / "result.json").read_text())


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("flat", []),
        ("flat_gan", []),
        ("flat_temporal", []),
        ("temporal", []),
        ("temporal", ["temporal=window"]),
        ("temporal_gan", []),
        ("hierarchy", []),
        ("time_only", []),
    ],
)
def test_a_trial_goes_from_patches_to_a_result(folder, method, more):
    trial = run(config(folder, f"method={method}", *more))
    found, table = result(trial), pd.read_parquet(trial / "predictions.parquet")
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
    kind = "window" if more else "prior" if "temporal" in method else "none"
    assert found["temporal"]["kind"] == kind
    assert found["data"]["content_hash"] == store.content_hash
    assert found["config"]["method"]["name"] == method and "torch" in found["versions"]
    stages = {s["node"] for s in found["stages"]}
    if more:
        assert stages == {"root", "root/cells/early", "root/cells/late"}
    else:
        flat = {"root"} if method.startswith("flat") else {"root", "root/cells"}
        assert stages == (set() if method == "time_only" else flat)


def test_a_class_with_few_training_patches_is_told_for_classifiers_too(folder):
    few = r"class debris has \d+ real training patches, fewer than 20: a network learns little"
    with pytest.warns(UserWarning, match=few):
        run(config(folder, "method=flat", "stage.lr=0.003", out="few"))


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
        pd.read_parquet(next((folder / o / "trials").glob(f"{method}-*")) / "predictions.parquet")
        for o in "ab"
    )
    pd.testing.assert_frame_equal(one, two)


def test_another_seed_gives_another_training(folder):
    first, second = (result(run(config(folder, "method=flat", f"seed={s}"))) for s in (0, 1))
    assert first["stages"][0]["curve"] != second["stages"][0]["curve"]
    assert first["split"] == second["split"]


def test_a_finished_trial_is_not_made_again(folder):
    trial = run(config(folder, "method=flat"))
    before = (trial / "result.json").stat().st_mtime_ns
    assert run(config(folder, "method=flat")) == trial
    assert (trial / "result.json").stat().st_mtime_ns == before


def test_a_generator_is_trained_once_for_all_methods_and_seeds(folder):
    for method in ("flat_gan", "temporal_gan"):
        for seed in (0, 1):
            run(config(folder, f"method={method}", f"seed={seed}", out="once"))
    log = log_of(folder / "once" / "artifacts")
    assert [e["event"] for e in log if e["kind"] == "generator"].count("made") == 1


def test_a_trial_that_fails_leaves_no_result(folder, monkeypatch):
    from stemcell_lit.experiment import run as module

    def broken(*args):
        raise RuntimeError("disk full")

    monkeypatch.setattr(module, "evaluate", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        run(config(folder, "method=flat", out="broken"))
    assert not list((folder / "broken").glob("trials/*"))


# --- parts of a stage's training --------------------------------------------------------------------------------------


def test_retraining_the_head_keeps_the_budget(folder):
    (stage,) = result(run(config(folder, "method=flat_crt", out="crt")))["stages"]
    assert 200 <= stage["images"] < 200 + 2 * 16  # each part ends with a whole batch
    assert stage["curve"] and stage["images"] == stage["curve"][-1]["images"]
    assert not list((folder / "crt").glob("artifacts/stage/*/*/"))


@pytest.mark.parametrize("cut", ["cycle 1", "head"])
def test_a_stage_killed_between_or_in_its_parts_ends_the_same(folder, monkeypatch, cut):
    whole = result(run(config(folder, "method=flat_crt", out="whole")))
    from stemcell_lit.experiment import stages as module

    kept = module.fit

    def killed(*args):
        if cut in args[4]:
            if cut == "head":
                kept(*args)
            raise KeyboardInterrupt
        return kept(*args)

    monkeypatch.setattr(module, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config(folder, "method=flat_crt", out=f"cut-{cut}"))
    monkeypatch.setattr(module, "fit", kept)
    again = result(run(config(folder, "method=flat_crt", out=f"cut-{cut}")))
    assert again["metrics"] == whole["metrics"] and again["stages"] == whole["stages"]


def test_pseudo_labels_come_from_training_groups_without_labels(folder, monkeypatch):
    from stemcell_lit.experiment import stages as module

    given = []
    kept = module._pseudo_labels

    def watched(trial, stage):
        found = kept(trial, stage)
        given.append((trial, found))
        return found

    monkeypatch.setattr(module, "_pseudo_labels", watched)
    settings = ["method=flat_pseudo", "split.labelled_fraction=0.4", "stage.images=1200"]
    settings += ["stage.pseudo_confidence=0.3", "stage.width=8", "stage.lr=0.01"]
    found = result(run(config(folder, *settings, out="pseudo")))
    assert len(given) == 3 and found["data"]["unlabelled"] > 0
    for trial, (rows, _) in given:
        groups = set(trial.store.manifest["group"].iloc[rows])
        assert not groups & set(found["split"]["test"] + found["split"]["val"])
        assert not set(rows) & set(trial.split.train)
    assert found["stages"][0]["pseudo"] == len(given[-1][1][0]) > 0


# --- choosing on validation patches -----------------------------------------------------------------------------------

CHOICES = ["tune=true", "method.choices=[{stage.lr: 0.000001}, {stage.lr: 0.003}]"]


def test_the_choice_with_the_best_validation_f1_is_taken_and_all_are_told(folder):
    tuned = result(run(config(folder, "method=flat", *CHOICES, out="tuned")))["tuning"]
    assert [t["settings"] for t in tuned["tried"]] == [{"stage.lr": 1e-6}, {"stage.lr": 0.003}]
    best = max(tuned["tried"], key=lambda t: t["macro/f1"])
    assert tuned["taken"] == best["settings"]
    alone = [
        result(run(config(folder, "method=flat", f"stage.lr={t['settings']['stage.lr']}", out="x")))
        for t in tuned["tried"]
    ]
    for tried, trial in zip(tuned["tried"], alone, strict=True):
        assert tried["macro/f1"] == trial["validation"]["macro/f1"]
    found = result(run(config(folder, "method=flat", *CHOICES, out="tuned")))
    taken = next(c for c in alone if c["config"]["stage"]["lr"] == tuned["taken"]["stage.lr"])
    assert found["metrics"] == taken["metrics"] and found["config"]["stage"]["lr"] == 0.002


def test_choices_are_compared_without_a_look_at_test_patches(folder, tmp_path):
    """With other test pixels and labels the same choice is taken, with the same validation scores."""
    store = PatchStore.open(folder / "store")
    trial = prepare(config(folder, "method=flat"))
    rng = np.random.default_rng(0)
    pixels, manifest = np.array(store.pixels), store.manifest.copy()
    pixels[trial.split.test] = rng.integers(0, 255, pixels[trial.split.test].shape)
    spoilt = Trial(
        config(folder, "method=flat", *CHOICES, out="spoilt"),
        PatchStore.write(tmp_path / "s", pixels, manifest, classes=store.classes, made_by={}),
        trial.split,
        ArtifactStore(tmp_path / "a"),
        trial.hierarchy,
    )
    from stemcell_lit.experiment import run as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "prepare", lambda c: replace(spoilt, config=c))
        assert (
            choose(spoilt)[1]
            == result(run(config(folder, "method=flat", *CHOICES, out="tuned")))["tuning"]
        )


def test_all_seeds_of_a_fold_share_one_choice_and_its_trainings(folder):
    found = [
        result(run(config(folder, "method=flat", *CHOICES, f"seed={s}", out="seeds")))["tuning"]
        for s in (0, 1)
    ]
    assert found[0] == found[1]
    log = log_of(folder / "seeds" / "artifacts")
    assert [e["event"] for e in log if e["kind"] == "stage"].count("made") == 3  # two, and seed 1


def test_without_tuning_choices_change_nothing(folder):
    plain, off = (prepare(config(folder, "method=flat", *o)) for o in ([], ["method.choices=[]"]))
    assert plain.hash == off.hash and choose(plain)[1] is None
    assert prepare(config(folder, "method=flat", "tune=true")).hash != plain.hash


SAMPLERS = ("sampler_gan", "sampler_repeat", "sampler_shuffled")


def methods():
    return sorted(p.stem for p in (ROOT / "conf" / "method").glob("*.yaml"))


def test_every_trained_method_has_equally_many_choices_all_of_them_legal():
    numbers = {}
    for name in methods():
        c = composed((f"method={name}",))
        settings = [with_settings(c, choice) for choice in c.method.choices]
        if not c.method.always:
            numbers[name] = len(settings)
        if settings:
            assert len({json.dumps(relevant(s), sort_keys=True) for s in settings}) == len(settings)
            assert settings[0] == c, f"{name}: the first choice is not what runs untuned"
    assert all(len(composed((f"method={m}",)).method.choices) == 5 for m in SAMPLERS)
    assert numbers.pop("time_only") == 0 and len(set(numbers.values())) == 1


@pytest.fixture
def served(monkeypatch):
    """Every data module that is made, with its generated patches."""
    from stemcell_lit.data.datamodule import PatchDataModule

    made, begin = [], PatchDataModule.__init__

    def watched(self, store, split, scope, **more):
        begin(self, store, split, scope, **more)
        made.append((self, more.get("generated")))

    monkeypatch.setattr(PatchDataModule, "__init__", watched)
    return made


def check_served(folder, served, found):
    """Whatever is trained on is a training patch, or one of a generator that saw training groups alone."""
    store, held = PatchStore.open(folder / "store"), found["split"]["test"] + found["split"]["val"]
    rows = np.flatnonzero(~store.manifest["group"].isin(held).to_numpy())
    known = {p.tobytes() for p in reduce_pixels(store.pixels[rows], None)}
    assert any(generated is not None for _, generated in served)
    for data, generated in served:
        drawn = set() if generated is None else {p.tobytes() for p in generated.pixels}
        assert generated is None or generated.seen_groups == set(found["split"]["train"])
        assert {p.numpy().tobytes() for p in data.bank["train"]} <= known | drawn


def test_a_method_that_always_chooses_takes_the_least_validation_loss_and_a_dose_of_none_may_win(
    folder, served, monkeypatch
):
    from stemcell_lit.experiment import run as module

    few = "method.choices=[{mix.amount: 0}, {mix.amount: 0.5, mix.weight: 0.5}]"
    found = result(run(config(folder, "method=sampler_gan", few, out="sampler")))
    check_served(folder, served, found)
    tuning = found["tuning"]
    assert tuning["by"] == "loss on validation patches"
    assert [t["settings"]["mix.amount"] for t in tuning["tried"]] == [0, 0.5]
    least = min(tuning["tried"], key=lambda t: t["loss"])
    assert tuning["taken"] == least["settings"] and found["validation"]["loss"] == least["loss"]
    log = log_of(folder / "sampler" / "artifacts")
    assert [e["event"] for e in log if e["kind"] == "stage"].count("made") == 2  # both are shared
    kept = module.validation_scores
    monkeypatch.setattr(module, "validation_scores", lambda *a: {**kept(*a), "loss": 0.5})
    chosen, tied = choose(prepare(config(folder, "method=sampler_gan", few, out="sampler")))
    assert tied["taken"] == {"mix.amount": 0} and chosen.config.mix.amount == 0


def test_a_method_that_always_chooses_is_refused_without_validation_patches(folder):
    trial = prepare(config(folder, "method=sampler_gan", "split.validation_share=0", out="none"))
    with pytest.raises(UserError, match=r"method=sampler_gan chooses on validation patches"):
        choose(trial)


def test_no_patch_of_a_validation_or_test_group_reaches_a_generator_of_shuffled_labels(
    folder, served
):
    one = "method.choices=[{mix.amount: 0.5}]"
    check_served(
        folder, served, result(run(config(folder, "method=sampler_shuffled", one, out="shuffled")))
    )


def test_a_generator_of_shuffled_labels_sees_the_same_patches_and_class_counts(folder):
    trial = prepare(config(folder, "method=sampler_shuffled"))
    other, split = with_shuffled_labels(trial), trial.split
    assert other.store.content_hash != trial.store.content_hash
    for rows in (split.train, split.val):
        before, after = trial.store.labels[rows], other.store.labels[rows]
        assert (np.bincount(before) == np.bincount(after)).all() and (before != after).any()
    assert (trial.store.labels[split.test] == other.store.labels[split.test]).all()
    keys = [TrainedGenerator(trial, shuffled).key() for shuffled in (False, True)]
    assert keys[0] != keys[1] and "labels" not in keys[0]


def test_generators_do_not_change_what_runs_on_real_patches(store_trial):
    of_generators = ("mix.amount=2", "gan.images=7", "generator_seed=5")
    dosed = replace(store_trial, config=composed(of_generators))
    assert dosed.hash == replace(store_trial, config=composed(())).hash


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
        ["mix=ratio"],
        ["gan.images=7"],
        ["data.augment=strong"],
        ["data.patch_size=8"],
        ["temporal=prior"],
        ["hierarchy=flat"],
        ["method.name=other"],
        ["trainer.precision=bf16-mixed"],
    ]
)


@functools.cache
def composed(overrides):
    return typed(compose("run", list(overrides)))


@settings(max_examples=6, deadline=None)
@given(irrelevant, matters)
def test_only_what_may_change_a_result_changes_its_hash(store_trial, nothing, something):
    def hash_of(*overrides):
        return replace(store_trial, config=composed(("method=flat_gan", *overrides))).hash

    assert hash_of() == hash_of(*nothing)
    assert hash_of() != hash_of(*something)
    assert hash_of(*something) == hash_of(*something, *nothing)


@pytest.fixture(scope="module")
def store_trial(folder) -> Trial:
    return prepare(config(folder))


def test_every_setting_is_either_relevant_or_named_as_irrelevant():
    chosen = relevant(RunCommand())
    assert set(chosen) == set(RunCommand.__dataclass_fields__) - {
        "out",
        "artifacts",
        "logger",
        "classic",  # of a method that has no classical part
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
    with pytest.raises(UserError, match="root/cells"):
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

    trial = run(config(folder, "method=temporal"))
    written = evaluate_store(
        EvaluateCommand(str(trial / "model"), str(folder / "store"), str(folder / "eval"))
    )
    whole = pd.read_parquet(written.folder / "predictions.parquet").set_index("patch")
    tested = pd.read_parquet(trial / "predictions.parquet").set_index("patch")
    pd.testing.assert_frame_equal(whole.loc[tested.index].drop(columns="seen"), tested)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda f: generate(GenerateCommand(str(f / "no.ckpt"), str(f / "none"))),
            "no.ckpt: no such file",
        ),
        (
            lambda f: evaluate_store(EvaluateCommand(str(f), str(f / "store"), str(f / "none"))),
            "model.json: no such file",
        ),
        (lambda f: prepare(config(f, "hierarchy=mitosis", "method=temporal")), "its tree holds"),
        (
            lambda f: run(config(f, "logger.wandb=loud", out="loud")),
            r"offline \| online \| disabled",
        ),
        (
            lambda f: choose(prepare(config(f, "tune=true", "method.choices=[{seed: 3}]"))),
            "seed cannot be chosen",
        ),
        (
            lambda f: choose(prepare(config(f, "tune=true", "method.choices=[{stage.lrr: 3}]"))),
            "stage.lrr",
        ),
        (
            lambda f: choose(prepare(config(f, "tune=true", "split.validation_share=0"))),
            "there are none",
        ),
        (lambda f: prepare(config(f, "method=flat_pseudo")), "labelled_fraction=1 leaves none"),
        (
            lambda f: prepare(
                config(
                    f, "method=hierarchy", "stage.pseudo_rounds=1", "split.labelled_fraction=0.5"
                )
            ),
            "a stage of a tree",
        ),
        (
            lambda f: run(config(f, "method=flat_crt", "stage.retrain_head=1", out="no")),
            "retrain_head=1",
        ),
        (lambda f: typed(OmegaConf.create({"store": "???"}), GenerateCommand), "store= is missing"),
    ],
)
def test_what_cannot_be_used_is_named(folder, make, says):
    with pytest.raises(UserError, match=says):
        make(folder)


def test_every_stage_of_leaves_gets_the_generated_patches_it_asks_for(folder):
    """A stage that learns classes balances classes, the rarest of a group too."""
    found = result(run(config(folder, "method=hierarchy_gan", "hierarchy.leaves=true")))
    for stage in found["stages"]:
        assert stage["groups"] == list(stage["train"])
        assert len({sum(n) for n in stage["train"].values()}) == 1
    assert len(found["stages"][0]["groups"]) == 4


def test_a_tree_reads_each_stage_in_the_stages_own_order(folder):
    """Flat networks and trees share stages: the same targets in another order must not be taken for the same stage."""

    def of(method, tree):
        made = config(folder, f"method={method}", "hierarchy.leaves=true", out="order")
        return replace(made, hierarchy=replace(made.hierarchy, tree=tree))

    cells = ["spread", "dense", "differentiated"]
    straight = result(run(of("flat", {"cells": cells, "debris": "debris"})))
    tree = run(of("hierarchy", {"cells": cells, "debris": "debris"}))
    model = TrainedHierarchy.load(tree / "model")
    assert straight["stages"][0]["curve"] == result(tree)["stages"][0]["curve"]  # shared
    for node in model.hierarchy.nodes:
        assert model.stages[node.name].groups == list(node.targets)


def test_the_same_groups_in_another_order_are_another_stage(folder):
    orders = ["spread", "dense", "differentiated"], ["dense", "differentiated", "spread"]
    keys = []
    for order in orders:
        made = config(folder, "method=hierarchy")
        tree = {"cells": list(order), "debris": "debris"}
        trial = prepare(replace(made, hierarchy=replace(made.hierarchy, tree=tree)))
        keys.append(key_hash(TrainedStage(trial, trial.hierarchy.nodes[1]).key()))
    assert keys[0] != keys[1]


def test_a_model_whose_stages_do_not_fit_its_tree_is_refused(folder, tmp_path):
    trial = run(config(folder, "method=hierarchy"))
    shutil.copytree(trial / "model", tmp_path / "model")
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    about["hierarchy"]["tree"]["cells"] = ["spread", "dense", "differentiated"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="run the trial again"):
        TrainedHierarchy.load(tmp_path / "model")


def test_the_generator_learns_the_modes_of_its_training_patches(folder):
    made = config(
        folder,
        "task=gan",
        "gan.mode_patches=5",
        "gan.modes=3",
        command="train",
        kind=TrainCommand,
    )
    checkpoint = train(made)
    about = json.loads(checkpoint.with_name("generator.json").read_text())
    trial = prepare(made)
    labels = trial.store.labels[trial.split.train]
    counts = [int(np.clip((labels == i).sum() // 5, 1, 3)) for i in range(len(about["classes"]))]
    assert [len(about["modes"][c]) for c in about["classes"]] == counts and max(counts) == 3
    out = folder / "moded"
    asked = GenerateCommand(checkpoint=str(checkpoint), store=str(out), per_class=4)
    assert (generate(asked).manifest["label"].value_counts() == 4).all()
