import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stemcell_lit.base.artifacts import ArtifactStore
from stemcell_lit.errors import UserError
from stemcell_lit.experiment import generator_quality
from stemcell_lit.experiment.generator_quality import METRICS, find
from stemcell_lit.experiment.generators import TrainedGenerator, generate
from stemcell_lit.experiment.run import run
from stemcell_lit.experiment.trial import prepare
from stemcell_lit.gan.alarms import GANDiverged
from stemcell_lit.gan.best_snapshot import QualityWatch
from stemcell_lit.gan.camera import STRENGTHS, estimate
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.report.generators import generator_section
from stemcell_lit.settings.command_keys import GenerateCommand, JudgeCommand, RunCommand, typed
from stemcell_lit.settings.compose import compose
from stemcell_lit.studies.judge import judge
from stemcell_lit.studies.judge_entries import PARTS, REAL, entries_of
from stemcell_lit.studies.judge_table import accuracy
from tests.conftest import make_store

SMALL = [
    "profile=smoke",
    "trainer=cpu",
    "quality.encoder_images=300",
    "quality.samples=16",
    "quality.final_samples=24",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("judge")
    make_store(root / "store", movies=10, frames=4)
    return root


def settings(folder, *overrides, out="out"):
    given = [*SMALL, f"data.store={folder / 'store'}", f"out={folder / out}", *overrides]
    return typed(compose("judge", given), JudgeCommand), given


def typed_run(overrides):
    return typed(compose("run", overrides))


def make_generator(trial):
    return trial.artifacts.get(TrainedGenerator(trial))


def judge_here(folder, *overrides, out="out"):
    return judge(*settings(folder, *overrides, out=out), typed_run)


@pytest.fixture(scope="module")
def table(folder):
    """Generators of two families on a fold, each judged in its own process, then the table."""
    more = ["gans=[smoke,flow]", "gan.channels=[8,8]", "gan.images=96"]
    more += ["gan.batch_size=16", "gan.validate_every_images=48"]
    more += ["gan.collapse_below=0", "seeds=[0,1]"]
    assert judge_here(folder, *more) == 0
    assert judge_here(folder, *more) == 0  # again: everything is there
    return pd.read_csv(folder / "out" / "table.csv", keep_default_na=False, na_values=[""])


def test_the_table_has_every_metric_beside_its_floor(folder, table):
    assert set(table["gan"]) == {"smoke", "flow", *REAL}
    for gan in ("smoke", "flow"):
        mine = table[(table["gan"] == gan) & table["class"].isna()].set_index("metric")
        named = {name.split("/encoder=")[0] for name in mine.index}
        assert named == {*METRICS, "accuracy/tpr", "accuracy/f1"}
        assert mine[["value", "floor"]].notna().all().all()
        encoders = {n.split("=")[1] for n in mine.index if "/encoder=" in n}
        assert len(encoders) == 1 and len(encoders.pop()) == 6
    text = (folder / "out" / "table.md").read_text()
    assert "for reporting only" in text and "flow" in text
    assert {p.name for p in (folder / "out").iterdir()} >= {"table.csv", "judge.json", "grids"}


def test_test_groups_serve_the_accuracy_score_alone(table):
    tested = table[table["part"] == PARTS["test"]]
    assert set(tested["metric"]) == {"accuracy/tpr", "accuracy/f1"}
    assert len(tested) > 0 and PARTS["test"].endswith("for reporting only")


def test_every_generator_has_the_same_budget_and_is_trained_once(folder, table):
    found = json.loads((folder / "out" / "judge.json").read_text())
    assert [g["facts"]["images_trained"] for g in found["generators"]] == [96, 96]
    log = (folder / "out" / "artifacts" / "log.jsonl").read_text().splitlines()
    made = [json.loads(line)["kind"] for line in log if '"made"' in line]
    assert made.count("generator") == 2 and made.count("judged") == 2
    assert made.count("encoder") == 1  # shared by both processes


def test_a_grid_a_class_shows_real_generated_and_nearest(folder, table):
    grids = sorted((folder / "out" / "grids").glob("[!.]*"))
    store = PatchStore.open(folder / "store")
    assert [p.name for p in grids] == [
        f"{g}-f0-{c}.png" for g in ("flow", "smoke") for c in sorted(store.classes)
    ]
    with Image.open(grids[0]) as page:
        assert page.height == 3 * 64


def test_run_takes_the_generator_that_judge_has_trained(folder, table):
    overrides = [*SMALL, f"data.store={folder / 'store'}", f"out={folder / 'out'}"]
    overrides += ["gan=smoke", "gan.channels=[8,8]"]
    before = len(list((folder / "out" / "artifacts" / "generator").glob("[!.]*")))
    make_generator(prepare(typed_run([*overrides, "method=flat_gan"])))
    assert len(list((folder / "out" / "artifacts" / "generator").glob("[!.]*"))) == before


def test_a_method_with_generated_patches_takes_those_of_a_flow(folder, table):
    overrides = ["gan=flow", "gan.channels=[8,8]", "gan.images=96", "gan.batch_size=16"]
    overrides += ["gan.validate_every_images=48", "gan.collapse_below=0", "method=flat_gan"]
    trained = folder / "out" / "artifacts" / "generator"
    before = len(list(trained.glob("[!.]*")))
    result = run(config(folder, *overrides, f"artifacts={folder / 'out' / 'artifacts'}"))
    told = json.loads((result / "result.json").read_text())["generator_quality"]
    assert told["images"] <= told["images_trained"] == 96
    assert len(list(trained.glob("[!.]*"))) == before  # judge has trained it
    checkpoint = make_generator(prepare(config(folder, *overrides, out="out"))) / "generator.ckpt"
    made = generate(GenerateCommand(str(checkpoint), str(folder / "flow"), per_class=3))
    assert made.manifest["label"].value_counts().to_dict() == dict.fromkeys(made.classes, 3)


def test_a_style_generator_with_a_camera_is_judged_by_its_name(folder):
    words = ["gans=[style]", "gan.channels=[8,8]", "gan.critic_channels=[8,8]", "gan.images=96"]
    words += ["gan.batch_size=16", "gan.validate_every_images=48", "gan.collapse_below=0"]
    words += ["seeds=[0]", "gan.camera=estimated"]
    config, given = settings(folder, *words)
    (entry,) = entries_of(config, given, typed_run)
    assert entry.name == "style" and entry.key()["generator"]["gan"]["camera"] == "estimated"
    facts = json.loads((make_generator(entry.trial) / "generator.json").read_text())
    expected = dict(zip(STRENGTHS, estimate(entry.trial.train.pixels), strict=True))
    assert facts["camera"] == pytest.approx(expected, rel=1e-5) and expected["read"] > 0
    assert facts["images_trained"] == 96


def test_selection_is_judged_on_what_it_keeps(folder):
    config, given = settings(
        folder, "gans=[smoke]", "selects=[none,confidence]", "select.confidence=0.2", "seeds=[0]"
    )
    entries = entries_of(config, given, typed_run)
    assert [e.name for e in entries] == ["smoke", "smoke+confidence"]
    assert entries[1].trial.config.select.confidence == 0.2
    folders = [e.trial.artifacts.get(e) for e in entries]
    facts = [json.loads((f / "facts.json").read_text()) for f in folders]
    assert facts[0]["filters"] == [] and facts[1]["filters"] == ["confidence"]
    assert facts[0]["hash"] == facts[1]["hash"]  # one generator
    assert all(0 <= a["all"] <= 1 for a in facts[1]["acceptance"].values())
    quality = [json.loads((f / "quality.json").read_text())["quality"] for f in folders]
    assert find(quality[0], "kid")[""] != find(quality[1], "kid")[""]


def test_accuracy_sums_folds_and_averages_seeds():
    classes = ["a", "b"]
    one = {"val": [[[8, 2], [0, 10]], [[10, 0], [0, 10]]]}
    two = {"val": [[[2, 8], [0, 0]], [[10, 0], [0, 0]]]}
    found = accuracy([one, two], "val", classes)
    assert found["tpr", ""] == pytest.approx(
        ((0.5 + 1) / 2 + 1) / 2 * np.array([1, 0]) + [0, 0.125]
    )
    assert found["tpr", "a"] == pytest.approx((0.75, 0.25))


def test_the_classifiers_of_the_accuracy_score_have_a_small_budget_of_their_own():
    budgets = {w: compose("judge", list(w)).stage.images for w in ((), ("stage=vgg",))}
    assert set(budgets.values()) == {24_000}
    assert compose("judge", ["profile=smoke"]).stage.images == 200
    assert compose("judge", ["stage.images=99"]).stage.images == 99


def test_the_floor_of_accuracy_is_the_same_classifier_on_real_patches(folder, table):
    found = json.loads((folder / "out" / "judge.json").read_text())
    for of in found["real"].values():
        for name in REAL:
            for part in PARTS:
                assert np.shape(of[name][part]) == (2, 4, 4)
    plain = table[(table["gan"] == REAL[0]) & table["class"].isna()]
    made = table[(table["gan"] == "smoke") & table["class"].isna()]
    for part in PARTS.values():
        floor = made[(made["part"] == part) & (made["metric"] == "accuracy/tpr")]["floor"].item()
        real = plain[(plain["part"] == part) & (plain["metric"] == "accuracy/tpr")]["value"]
        assert floor == pytest.approx(real.item())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["folds=[0,7]"], "split.fold=7: expected 0 to 1"),
        (["gans=[]"], "expected at least one"),
        (["gans=[magic]"], "magic"),
        (["split.validation_share=0"], "expected a share above 0"),
        (["trainer.devices=2"], "one device"),
    ],
)
def test_what_cannot_be_judged_is_named_before_any_training(folder, overrides, says):
    with pytest.raises(UserError, match=says):
        judge_here(folder, "gans=[smoke]", *overrides, out="wrong")
    assert not (folder / "wrong" / "table.csv").exists()


# --- the same parts in a trial


def config(folder, *overrides, out="trials"):
    given = [*SMALL, f"data.store={folder / 'store'}", f"out={folder / out}", *overrides]
    return typed(compose("run", given), RunCommand)


def test_a_trial_tells_the_quality_of_its_generator_and_the_report_shows_it(folder):
    trial = run(config(folder, "method=flat_gan", "select=confidence", "select.confidence=0.1"))
    told = json.loads((trial / "result.json").read_text())["generator_quality"]
    assert told["alarm"] is None and told["filters"] == ["confidence"]
    assert told["metric"].startswith("frechet_train/encoder=")
    assert find(told["quality"], "kid")["floor"] is not None
    from stemcell_lit.experiment.results import collect

    (own,) = (t for t in collect(folder / "trials") if t.folder == trial)
    results = SimpleNamespace(out=folder / "trials", trials=[own], classes=own.classes)
    shown = generator_section(results)
    assert len(shown["rows"]) == 1 and shown["rows"][0]["filters"] == ["confidence"]
    assert len(shown["grids"]) == 4


def test_generate_selects_with_the_encoder_beside_the_generator(folder):
    checkpoint = make_generator(prepare(config(folder, "method=flat_gan"))) / "generator.ckpt"
    command = GenerateCommand(str(checkpoint), str(folder / "new"), per_class=5)
    command.select.filters = ["confidence", "entropy"]
    command.select.confidence = 0.0
    made = generate(command)
    assert made.info["made_by"]["filters"] == ["confidence", "entropy"]


def test_an_alarm_keeps_the_best_snapshot_before_it_and_is_told(folder, monkeypatch):
    def ring(self, words):
        if len(self.checks) == 2:
            raise GANDiverged("the GAN rang")

    monkeypatch.setattr(QualityWatch, "_check_memorisation", ring)
    with pytest.warns(UserWarning, match="the GAN rang"):
        trial = run(config(folder, "method=flat_gan", "gan.images=480", out="alarm"))
    told = json.loads((trial / "result.json").read_text())["generator_quality"]
    assert told["alarm"] == "the GAN rang"
    assert told["images"] <= told["images_trained"] < 480


def test_an_alarm_without_a_good_snapshot_ends_the_trial(folder):
    overrides = ["method=flat_gan", "quality.memorised_below=1000", "gan.images=480"]
    with pytest.raises(UserError, match=r"memorised.*No good snapshot"):
        run(config(folder, *overrides, out="none"))


def test_cut_off_after_the_training_the_same_generator_comes_out(folder, monkeypatch):
    trials = [prepare(config(folder, "method=flat_gan", out=name)) for name in ("whole", "cut")]
    original = generator_quality.show_generator

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(generator_quality, "show_generator", killed)
    with pytest.raises(KeyboardInterrupt):
        make_generator(trials[1])
    monkeypatch.setattr(generator_quality, "show_generator", original)
    whole, cut = (make_generator(trial) for trial in trials)
    for name in ("generator.json", "quality.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert {p.name for p in cut.iterdir()} == {
        *("artifact.json", "encoder.pt", "generator.ckpt", "generator.json"),
        *("grids", "quality.json"),
    }


def test_without_validation_groups_the_last_snapshot_is_used(folder):
    made = make_generator(
        prepare(config(folder, "method=flat_gan", "split.validation_share=0", out="bare"))
    )
    about = json.loads((made / "generator.json").read_text())
    assert about["metric"] == "last" and about["images"] == about["images_trained"]
    assert not (made / "quality.json").exists()


def test_nothing_of_the_test_groups_reaches_the_choice(folder, monkeypatch):
    """Making a generator reads no test patch: there is none to read."""
    trial = prepare(config(folder, "method=flat_gan", out="blind"))
    pixels = np.array(trial.store.pixels)
    made = make_generator(trial)
    pixels[trial.split.test] = 0
    blind = PatchStore(trial.store.path, pixels, trial.store.manifest, trial.store.info)
    again = make_generator(
        replace(trial, store=blind, artifacts=ArtifactStore(folder / "blind" / "again"))
    )
    for name in ("generator.json", "quality.json", "grids/class_dense.png"):
        assert (made / name).read_bytes() == (again / name).read_bytes()
