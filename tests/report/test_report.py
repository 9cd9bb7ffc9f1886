"""The report: from results on disk to a table, pictures and one page, or to a sentence that helps."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import confusion, scores
from stemcell_lit.experiment.results import collect, comparable
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.report import report
from stemcell_lit.report.page import _column_sums
from stemcell_lit.report.patch_pictures import nearest_stored
from stemcell_lit.report.pictures import Pictures
from stemcell_lit.report.print_table import print_table, read_table
from stemcell_lit.report.report import make_report
from stemcell_lit.settings.command_keys import RunCommand
from stemcell_lit.settings.compose import methods as methods_known

CLASSES = ["debris", "dense", "spread", "differentiated"]
SKILL = {"flat": 0.9, "flat_gan": 1.1, "temporal": 1.3, "temporal_gan": 1.8}  # logits of the truth

VALIDATED = {"flat": 0.9, "temporal": 0.8, "flat_gan": 0.95, "temporal_gan": 0.99}


def textures(labels: np.ndarray, rng: np.random.Generator, size: int = 16) -> np.ndarray:
    """uint8 (n, size, size): stripes, blobs and gradients that differ by class."""
    y, x = np.mgrid[:size, :size] / size
    kind = [
        lambda a: 210 * np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) * (30 + 20 * a)),
        lambda a: 90 + 60 * np.sin(22 * (x + a)) * np.sin(22 * y),
        lambda a: 110 + 40 * np.sin(9 * (x * a + y)),
        lambda a: 80 + 70 * (x * a + y * (1 - a)),
    ]
    images = [kind[CLASSES.index(c)](rng.random()) + rng.normal(0, 9, (size, size)) for c in labels]
    return np.clip(images, 0, 255).astype(np.uint8)


def write_results(
    out: Path,
    *,
    methods: tuple[str, ...] = tuple(SKILL),
    folds: int = 3,
    seeds: int = 2,
    groups: int = 9,
    per_group: int = 40,
    simulated: bool = True,
) -> Path:
    """A folder of results as a sweep leaves it, with a small store and generated patches."""
    rng = np.random.default_rng(0)
    n = groups * per_group
    labels = rng.choice(CLASSES, n, p=[0.1, 0.45, 0.3, 0.15])
    names = np.array([f"movie_{i:02d}" for i in range(groups)])
    group = np.repeat(names, per_group)
    manifest = pd.DataFrame(
        {
            "label": labels,
            "group": group,
            "track": [f"{g}/{i % 5}" for i, g in enumerate(group)],
            "time_h": rng.uniform(0, 96, n),
            "frame": rng.integers(0, 16, n),
        }
    )
    store = PatchStore.write(
        out.parent / "store", textures(labels, rng), manifest, classes=CLASSES,
        made_by={"command": "simulate" if simulated else "import"},
    )  # fmt: skip
    fake = np.repeat(CLASSES, 12)
    PatchStore.write(
        out / "artifacts/generated/store", textures(fake, rng, 8), pd.DataFrame({"label": fake}),
        classes=CLASSES, made_by={"generator": "3fa2", "seen_groups": []},
    )  # fmt: skip
    hard = rng.normal(0, 0.7, n) + np.repeat(rng.normal(0, 0.4, groups), per_group)
    place = np.array([CLASSES.index(c) for c in labels])
    for method in methods:
        for fold in range(folds):
            test = np.flatnonzero(np.isin(group, names[fold::folds]))
            val = names[(fold + 1) % folds :: folds][:1]
            train = [g for g in names if g not in set(names[fold::folds]) | set(val)]
            for seed in range(seeds):
                logits = rng.normal(0, 1, (len(test), len(CLASSES)))
                skill = SKILL.get(method, 1.0) + hard[test]
                logits[np.arange(len(test)), place[test]] += skill
                p = np.exp(2 * logits) / np.exp(2 * logits).sum(1, keepdims=True)
                table = manifest.iloc[test].assign(
                    patch=test,
                    predicted=np.array(CLASSES)[p.argmax(1)],
                    **{f"p/{c}": p[:, i] for i, c in enumerate(CLASSES)},
                )
                config = dataclasses.asdict(RunCommand())
                config["out"], config["seed"], config["split"]["fold"] = str(out), seed, fold
                config["split"]["folds"] = folds
                config["method"] = dataclasses.asdict(methods_known()[method])
                config["mix"]["recipe"] = "balance" if "gan" in method else "real"
                timed = "temporal" in method
                config["temporal"]["kind"] = "prior" if timed else "none"
                made = dict.fromkeys(CLASSES, 12) if "gan" in method else {}
                curve = [
                    {"images": i * 1000, "loss": 1.4 / i, "val/macro/f1": 0.8 - 0.4 / i}
                    for i in range(1, 5)
                ]
                result = {
                    "format": 1,
                    "hash": f"{abs(hash((method, fold, seed))):x}",
                    "method": method,
                    "fold": fold,
                    "seed": seed,
                    "classes": CLASSES,
                    "metrics": scores(table["label"], table["predicted"], CLASSES),
                    "confusion": confusion(table["label"], table["predicted"], CLASSES).tolist(),
                    # on validation patches another method is ahead than on test patches
                    "validation": dict.fromkeys(
                        ("macro/f1", "macro/tpr"), VALIDATED.get(method, 0.5)
                    ),
                    "data": {
                        "store": str(store.path),
                        "content_hash": store.content_hash,
                        "real": {
                            c: int((np.isin(group, train) & (labels == c)).sum()) for c in CLASSES
                        },
                        "generated": made,
                        "simulated": simulated,
                    },
                    "stages": [
                        {
                            "node": node,
                            "groups": CLASSES,
                            "images": 4000,
                            "train": {c: [50, made.get(c, 0)] for c in CLASSES},
                            "curve": curve,
                            "confusion": confusion(
                                table["label"], table["predicted"], CLASSES
                            ).tolist(),
                        }
                        for node in (("root", "trials") if timed else ("root",))
                    ],
                    "generator": {
                        "path": "artifacts/generator/3fa2",
                        "generated": "artifacts/generated/store",
                    }
                    if made
                    else None,
                    "store": str(store.path),
                    "split": {
                        "train": train,
                        "val": list(val),
                        "test": list(names[fold::folds]),
                        "kind": "grouped",
                    },
                    "temporal": {"kind": "prior" if timed else "none"},
                    "config": config,
                    "versions": {"stemcell-lit": "0.1.0", "torch": "2.6.0"},
                    "seconds": 61.5,
                }
                folder = out / "trials" / f"{method}-f{fold}-s{seed}-3fa2"
                folder.mkdir(parents=True)
                table.to_parquet(folder / "predictions.parquet", index=False)
                (folder / "result.json").write_text(json.dumps(result))
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    out = write_results(tmp_path_factory.mktemp("report") / "results")
    make_report(out, resamples=600)
    return out


@pytest.fixture
def small(tmp_path) -> Path:
    """Fewer trials, to be broken."""
    return write_results(
        tmp_path / "results", methods=("flat", "temporal_gan"), seeds=2, groups=6, per_group=12
    )


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Spares seconds of drawing where only words and numbers are tested."""
    monkeypatch.setattr(Pictures, "make", lambda self: {})


def edit(trial: Path, change) -> None:
    info = json.loads((trial / "result.json").read_text())
    change(info)
    (trial / "result.json").write_text(json.dumps(info))


def text_of(page: Path) -> str:
    """The page's words, without pictures and tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.read_text()))


def test_table_has_exactly_the_promised_columns_and_rows(results):
    table = pd.read_csv(results / "table.csv")
    assert ",".join(table.columns) == (
        "method,metric,class,mean,low,high,delta,delta_low,delta_high,p,mde,verdict"
    )
    assert len(table) == len(SKILL) * 2 * (1 + len(CLASSES))
    macro = table[table["class"].isna()]
    assert list(macro["method"].unique()) == ["flat", "flat_gan", "temporal", "temporal_gan"]
    assert (read_table(results)["class"] == "").sum() == len(macro)


def test_table_says_what_the_predictions_say(results):
    table = read_table(results).set_index(["method", "metric", "class"])
    per_seed = []
    for seed in (0, 1):
        parts = [
            pd.read_parquet(folder / "predictions.parquet")
            for folder in (results / "trials").glob(f"temporal_gan-f*-s{seed}-*")
        ]
        pooled = pd.concat(parts)
        per_seed.append(scores(pooled["label"], pooled["predicted"], CLASSES))
    for metric in ("tpr", "f1"):
        expected = np.mean([s[f"macro/{metric}"] for s in per_seed])
        assert table.loc[("temporal_gan", metric, ""), "mean"] == pytest.approx(expected, rel=1e-5)
        each = np.mean([s[f"{metric}/debris"] for s in per_seed])
        assert table.loc[("temporal_gan", metric, "debris"), "mean"] == pytest.approx(
            each, rel=1e-5
        )
    row = table.loc[("temporal_gan", "tpr", "")]
    assert row["delta"] == pytest.approx(
        row["mean"] - table.loc[("flat", "tpr", ""), "mean"], abs=1e-5
    )
    assert row["low"] < row["mean"] < row["high"] and row["delta_low"] > 0
    assert row["verdict"].endswith(": shown")


def test_page_is_one_file_that_needs_no_network(results):
    page = (results / "report.html").read_text()
    assert not re.search(r"https?://|<link|src=\"(?!data:)", page)
    (script,) = re.findall(
        r"<script>(.*?)</script>", page, re.DOTALL
    )  # none but its own, that the policy names
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page and page.count("<script") == 1
    assert page.count("data:image/png;base64,") == 10
    assert {p.stem for p in (results / "figures").glob("*.png")} == {
        "macro_difference", "class_difference", "confusion", "samples",
        "entropy", "curves", "hardest", "reliability", "stages", "precision_recall",
    }  # fmt: skip


def test_every_picture_has_a_text(results):
    page = (results / "report.html").read_text()
    texts = re.findall(r"<img [^>]*alt=\"([^\"]*)\"", page)
    assert len(texts) == page.count("<img ") == 10
    assert all(len(text) > 20 for text in texts)
    bars = re.findall(r"<svg[^>]*>", page)
    assert bars and all('role="img"' in one and "aria-label=" in one for one in bars)


def test_page_answers_the_question_in_words(results):
    text = text_of(results / "report.html")
    assert "Does temporal_gan gain 2 points or more over flat?" in text
    assert "A gain of 2 points or more is shown" in text
    assert "simulated data" in text and "temporal_gan, the question asked beforehand" in text
    assert "TPR (true positive rate) is recall" in text
    assert all(name in text for name in CLASSES)
    assert "stemcell-lit reproduce" in text and "stemcell-lit report" in text
    assert "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+", "", text.lower())


def test_networks_that_still_gained_at_their_most_images_are_told(small):
    def still_gains(info):
        info["stages"][0]["capped"] = info["seed"] == 0

    for trial in (small / "trials").iterdir():
        edit(trial, still_gains)
    (note,) = comparable(collect(small), "flat").notes
    assert note.startswith("6 of 12 networks still gained") and "stage.images" in note


def test_page_says_what_each_part_adds(results, capsys):
    parts = pd.read_csv(results / "parts.csv", keep_default_na=False)
    told = {(r.method, r.other) for r in parts.itertuples()}
    assert told == {("flat_gan", "flat"), ("temporal_gan", "temporal"), ("temporal_gan", "flat")}
    # the best without generated patches is chosen on validation patches, where it is flat
    best = parts[parts["part"] == report.BEST]
    assert set(best["other"]) == {"flat"} and len(parts) == 6
    trials = comparable(collect(results), "flat")
    of = {
        m: np.mean([t["macro/tpr"] for t in (scores(*trial, CLASSES) for trial in each)])
        for m, each in (
            (
                m,
                [
                    (part["label"].to_numpy(), part["predicted"].to_numpy())
                    for _, part in trials.tested(m).groupby("seed")
                ],
            )
            for m in ("flat", "flat_gan")
        )
    }
    row = parts[(parts["method"] == "flat_gan") & (parts["metric"] == "tpr")].iloc[0]
    assert float(row["delta"]) == pytest.approx(of["flat_gan"] - of["flat"], abs=1e-5)
    page = text_of(results / "report.html")
    assert "What each part adds" in page and "test patches had no say" in page
    assert "What each part adds" in (results / "table.md").read_text()
    print_table(results)
    assert "What each part adds" in capsys.readouterr().out


def test_page_shows_stages_precision_and_what_column_sums_would_have_said(results):
    figures = {p.stem for p in (results / "figures").glob("[!.]*")}
    assert {"stages", "precision_recall", "confusion", "reliability", "hardest"} <= figures
    trials = [c for c in comparable(collect(results), "flat").of("flat") if c.seed == 0]
    tested = pd.concat([c.predictions for c in trials])
    matrix = confusion(tested["label"], tested["predicted"], CLASSES)
    assert matrix.sum() == len(tested)
    text = text_of(results / "report.html")
    rows = _column_sums({"flat": matrix[None, None]})
    assert rows[0]["recall"] == pytest.approx(np.mean(matrix.diagonal() / matrix.sum(1)))
    assert rows[0]["precision"] == pytest.approx(np.mean(matrix.diagonal() / matrix.sum(0)))
    assert "TPR is recall" in text and "Average precision" in text


def test_subsets_and_choices_of_the_results_are_told(small, capsys, no_pictures):
    tuning = {
        "by": "macro/f1 on validation patches",
        "seed": 0,
        "tried": [
            {"settings": {"stage.lr": 0.002}, "macro/f1": 0.5, "macro/tpr": 0.5},
            {"settings": {"stage.lr": 0.004}, "macro/f1": 0.75, "macro/tpr": 0.6},
        ],
        "taken": {"stage.lr": 0.004},
    }

    def change(info):
        info["config"]["hierarchy"]["subsets"] = {"trials": CLASSES[1:]}
        info["tuning"] = tuning

    for trial in (small / "trials").iterdir():
        edit(trial, change)
    make_report(small, resamples=200)
    table = read_table(small).set_index(["method", "metric", "class"])["mean"]
    for metric in ("tpr", "f1"):
        mean = table[[("flat", metric, c) for c in CLASSES[1:]]].mean()
        assert table["flat", metric, "macro/trials"] == pytest.approx(mean, abs=1e-5)
    text = text_of(small / "report.html")
    assert "macro/trials" in text and "stage.lr=0.002: 50.0; stage.lr=0.004: 75.0" in text
    assert "<b>stage.lr=0.004: 75.0</b>" in (small / "report.html").read_text()
    print_table(small)
    assert "over trials classes" in capsys.readouterr().out


def test_markdown_holds_the_same_table(results):
    text = (results / "table.md").read_text()
    assert text.count("| temporal_gan |") == 2 + 2 * len(CLASSES)
    assert "| shown |" in text


def test_the_same_results_give_the_same_table(results, tmp_path, no_pictures):
    before = (results / "table.csv").read_bytes()
    again = shutil.copytree(results, tmp_path / "again")
    make_report(again, resamples=600)
    assert (again / "table.csv").read_bytes() == before


def test_console_shows_verdicts_and_the_page(results, capsys):
    print_table(results)
    printed = capsys.readouterr().out
    assert "temporal_gan" in printed and "shown" in printed
    assert str(results / "report.html") in printed


def test_no_results_say_what_to_run(tmp_path):
    with pytest.raises(UserError, match="stemcell-lit reproduce out="):
        collect(tmp_path)
    with pytest.raises(UserError, match="stemcell-lit report out="):
        print_table(tmp_path)


@pytest.mark.parametrize("broken", ["missing", "cut", "format", "keys", "predictions"])
def test_a_broken_trial_is_named(small, broken):
    trial = small / "trials" / "flat-f1-s0-3fa2"
    if broken == "missing":
        (trial / "result.json").unlink()
    elif broken == "cut":
        (trial / "result.json").write_text('{"format": 1, "meth')
    elif broken == "format":
        edit(trial, lambda info: info.update(format=7))
    elif broken == "keys":
        edit(trial, lambda info: info.pop("split"))
    else:
        (trial / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="flat-f1-s0-3fa2"):
        make_report(small, resamples=50)
    assert not (small / "table.csv").exists()


def test_trials_on_other_data_are_refused(small):
    trial = small / "trials" / "flat-f1-s0-3fa2"
    edit(trial, lambda info: info["data"].update(content_hash="0" * 64))
    with pytest.raises(UserError, match="different data"):
        collect(small)


def test_a_missing_baseline_says_how_to_get_it(small):
    with pytest.raises(UserError, match=r"method=flat_focal.*baseline="):
        make_report(small, baseline="flat_focal")


def test_unfinished_seeds_are_left_out_and_named(small):
    shutil.rmtree(small / "trials" / "temporal_gan-f2-s1-3fa2")
    found = comparable(collect(small), "flat")
    assert found.seeds == [0] and found.folds == [0, 1, 2]
    assert "temporal_gan lack" in found.notes[0] and "seed 1 fold 0" in found.notes[0]
    # with no seed whole, what all have is compared
    for trial in ("temporal_gan-f2-s0-3fa2", "flat-f1-s0-3fa2", "flat-f0-s1-3fa2"):
        shutil.rmtree(small / "trials" / trial)
    found = comparable(collect(small), "flat")
    pairs = {(trial.seed, trial.fold) for trial in found.trials}
    assert pairs == {(0, 0), (1, 1)} and found.methods == ["flat", "temporal_gan"]
    assert "not every patch" in found.notes[1]


def test_a_method_that_was_stopped_halfway_does_not_take_the_folds_from_the_others(small):
    for fold in (1, 2):
        for seed in (0, 1):
            shutil.rmtree(small / "trials" / f"temporal_gan-f{fold}-s{seed}-3fa2")
    found = comparable(collect(small), "flat")
    assert found.methods == ["flat"] and found.seeds == [0, 1] and found.folds == [0, 1, 2]
    assert found.notes[0].startswith("temporal_gan has 2 of 6 trials and is left out")


def test_a_sweep_over_a_setting_becomes_rows_of_its_own(small):
    for trial in list((small / "trials").glob("temporal_gan-*")):
        other = shutil.copytree(trial, trial.with_name(trial.name + "b"))
        edit(other, lambda info: info["config"]["mix"].update(amount=500.0))
    found = comparable(collect(small), "flat")
    assert found.methods[1:] == ["temporal_gan [mix.amount=0.0]", "temporal_gan [mix.amount=500.0]"]
    edit(other, lambda info: info["config"]["mix"].update(amount=0.0))
    with pytest.raises(UserError, match="remove one of them"):
        collect(small)


def test_a_baseline_of_several_settings_is_told_apart_not_missed(small):
    for trial in list((small / "trials").glob("flat-*")):
        other = shutil.copytree(trial, trial.with_name(trial.name + "b"))
        edit(other, lambda info: info["config"]["mix"].update(amount=500.0))
    with pytest.raises(UserError, match=r"several settings.*mix.amount=500.*artifacts="):
        comparable(collect(small), "flat")
    assert comparable(collect(small), "flat [mix.amount=500.0]").methods[0].startswith("flat [")


def test_moved_stores_cost_only_their_pictures(small):
    shutil.rmtree(small.parent / "store")
    shutil.rmtree(small / "artifacts")
    text = text_of(make_report(small, resamples=50))
    assert "Pictures of patches are left out" in text
    assert not (small / "figures" / "samples.png").exists()
    assert (small / "figures" / "confusion.png").exists()


def test_a_report_without_generator_or_second_method(tmp_path):
    out = write_results(tmp_path / "results", methods=("flat",), folds=2, seeds=1, groups=4)
    text = text_of(make_report(out, resamples=50))
    assert "nothing to compare" in text and "The patches" in text
    assert not (out / "figures" / "macro_difference.png").exists()


def test_failure_leaves_the_old_report(small, monkeypatch, no_pictures):
    make_report(small, resamples=50)
    before = {p: p.read_bytes() for p in small.glob("[!.]*.*")}
    assert {p.name for p in before} == {"table.csv", "table.md", "parts.csv", "report.html"}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report, "report_page", fail)
    with pytest.raises(OSError, match="disk full"):
        make_report(small, resamples=50, seed=1)
    assert {p: p.read_bytes() for p in small.glob("[!.]*.*")} == before


def test_nothing_in_a_result_can_break_the_page(tmp_path, no_pictures):
    out = write_results(tmp_path / "results", methods=("flat",), folds=2, seeds=1, groups=4)
    trial = next((out / "trials").iterdir())
    edit(trial, lambda info: info["versions"].update(torch="<script>alert(1)</script>"))
    page = make_report(out, resamples=20).read_text()
    assert "<script>alert" not in page and page.count("<script>") == 1


def test_a_method_far_behind_does_not_squeeze_the_others(results):
    found, table = comparable(collect(results), "flat"), read_table(results)
    table[["delta", "delta_low", "delta_high"]] = 0.03, 0.01, 0.05
    near = Pictures(found, table, {}, seed=0).macro_difference()
    one = table["method"] == "flat_gan"
    table.loc[one, ["delta", "delta_low", "delta_high"]] = -0.4, -0.5, -0.3
    far = Pictures(found, table, {}, seed=0).macro_difference()
    for before, axis in zip(near.axes, far.axes, strict=True):
        assert not before.texts
        assert [t.get_text() for t in axis.texts] == ["\N{BLACK LEFT-POINTING TRIANGLE} -40.0"]
        low, high = axis.get_xlim()
        assert -10 < low < 0 and 5 < high < 10


def test_families_of_features_are_shown_with_their_spread_where_a_method_has_them(results):
    found, table = comparable(collect(results), "flat"), read_table(results)
    assert Pictures(found, table, {}, seed=0).features() is None
    for i, trial in enumerate(found.of("flat_gan")):
        drops = {"shape": 0.1 + 0.02 * (i % 2), "haralick": 0.0}
        families = {name: {"drop": drop, "std": 0.01} for name, drop in drops.items()}
        trial.info["importance"] = {"macro/tpr": 0.9, "families": families}
    (axis,) = Pictures(found, table, {}, seed=0).features().axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["haralick", "shape"]
    points, _, (bars,) = axis.containers[0]
    np.testing.assert_allclose(np.array(points.get_xdata(orig=False), float), [0, 11], atol=1e-9)
    (low, _), (high, _) = bars.get_segments()[1]
    assert (low, high) == pytest.approx((10, 12))
    for trial in found.trials:
        trial.info.pop("importance", None)


def test_nearest_finds_a_turned_copy():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (50, 16, 16), dtype=np.uint8)
    queries = np.stack([np.rot90(pixels[7]), pixels[30][:, ::-1]])
    found, distance = nearest_stored(queries, pixels, np.arange(50), 16)
    assert list(found) == [7, 30] and distance == pytest.approx([0, 0], abs=0.1)
    found, distance = nearest_stored(queries, pixels, np.setdiff1d(np.arange(50), [7, 30]), 16)
    assert not set(found) & {7, 30} and (distance > 50).all()


def test_a_method_of_a_users_own_has_its_sentence_and_comparisons_from_its_results(
    small, no_pictures
):
    def own(info):
        info["method"] = info["config"]["method"]["name"] = "mine"
        info["config"]["method"] |= {"about": "my own way", "parts": ["time"], "claimed": False}

    for trial in (small / "trials").glob("temporal_gan-*"):
        edit(trial, own)
    results = comparable(collect(small), "flat")
    assert results.about("mine").about == "my own way"
    assert (results.full, results.claimed) == ("mine", None)
    assert "asked beforehand" not in text_of(make_report(small, resamples=50))
    counts = {method: results.counts(method) for method in results.methods}
    parts = report._parts(results, counts, 20, 0)
    told = parts.groupby(["part", "where", "method", "other"]).groups
    assert set(told) == {("time", "one network", "mine", "flat")}


def test_results_without_a_word_about_their_methods_have_a_table_all_the_same(small):
    for trial in (small / "trials").iterdir():
        edit(trial, lambda info: info["config"].pop("method"))
    results = comparable(collect(small), "flat")
    assert results.methods == ["flat", "temporal_gan"] and results.about("flat").about is None


def test_generated_features_are_generated_where_the_best_method_without_is_named(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(VALIDATED, "flat_features", 0.99)
    out = write_results(tmp_path / "results", methods=("flat", "flat_features"), seeds=1)
    results = comparable(collect(out), baseline="flat")
    assert max(results.validated, key=results.validated.__getitem__) == "flat_features"
    assert results.best_without_generated == "flat"
