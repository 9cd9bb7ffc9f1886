"""The page of a report: every section's rows, filled into one template."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from stemcell_lit.base.drawing import DPI
from stemcell_lit.base.pages import render
from stemcell_lit.evaluate.intervals import ALPHA, METRICS, POWER, values
from stemcell_lit.evaluate.results_table import claim, verdict_of
from stemcell_lit.experiment.results import CLAIM, TITLES, Results, as_override, flatten, rows_of
from stemcell_lit.report.advice import Advice, why_a_smaller_one_is_shown
from stemcell_lit.report.generators import generator_section
from stemcell_lit.report.method_table import confusion_tables, method_groups, part_rows, scored
from stemcell_lit.report.numbers import interval, p_value, percent, signed_points, smallest
from stemcell_lit.settings.command_keys import RunCommand
from stemcell_lit.settings.keys import own_keys, role_of
from stemcell_lit.settings.quoting import command_line
from stemcell_lit.settings.roles import Role

SCRIPT = Path(__file__).with_name("report.js").read_text("utf-8")  # sorts the table
BEST = "the full method instead of the best without generated patches"


def report_page(
    results: Results,
    table: pd.DataFrame,
    parts: pd.DataFrame,
    counts: Mapping[str, np.ndarray],
    advice: Advice,
    figures: Mapping[str, bytes],
    facts: Mapping[str, Any],
    resamples: int,
) -> str:
    """The content of report.html.

    Args:
        results: the trials.
        table: of `compare`.
        parts: of `contrasts`, with the columns `part` and `where`.
        counts: method -> (seeds, groups, classes, classes).
        advice: what to do.
        figures: name -> PNG.
        facts: of the pictures.
        resamples: of the bootstrap.
    """
    info = [trial.info for trial in results.trials]
    seconds = sum(float(i.get("seconds") or 0) for i in info)
    images = {
        name: {
            "data": base64.b64encode(image).decode("ascii"),
            # px on the page: letters are then equally large in all pictures. A PNG's width is in bytes 16 to 19
            "width": round(int.from_bytes(image[16:20], "big") / DPI * 96),
        }
        for name, image in figures.items()
    }
    groups = method_groups(results, table, advice.method)
    # what most readers compare: the baseline, what to use, and the paper's method
    few = list(dict.fromkeys(m for m in (results.baseline, advice.method, results.claimed) if m))
    subject = _subject(results, advice)
    filters = {"percent": percent, "points": signed_points, "p": p_value, "mde": smallest}
    return render(
        Path(__file__).with_name("report.html.j2"),
        filters,
        results=results,
        interval=interval,
        script=Markup(SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii"),
        advice=advice,
        why=why_a_smaller_one_is_shown(table, results.claimed),
        simulated=results.simulated,
        leaky=results.leaky,
        store=info[0]["store"],
        content_hash=info[0]["data"]["content_hash"],
        subject=subject,
        cards=_claim_cards(results, table, subject),
        groups=groups,
        methods=[row for _, rows in groups for row in rows],
        few=few,
        bars=_class_bars(results, table, counts, few),
        confusions=confusion_tables(results, counts, few),
        parts=part_rows(parts),
        best=BEST,
        columns=_column_sums(counts),
        tuned=_tuned(results),
        subsets=results.subsets,
        classes=_class_rows(results, table, counts),
        titles=TITLES,
        seeds=_seed_rows(results, counts),
        folds=_fold_rows(results),
        images=images,
        facts=facts,
        generators=generator_section(results),
        claim=CLAIM,
        alpha=ALPHA,
        power=POWER,
        resamples=resamples,
        least_p=2 / 2 ** len(results.groups),
        trials=[
            {
                "name": trial.folder.name,
                "method": trial.method,
                "fold": trial.fold,
                "seed": trial.seed,
                "seconds": trial.info.get("seconds"),
            }
            for trial in results.trials
        ],
        seconds=_duration(seconds),
        versions=info[0].get("versions") or {},
        machines=sorted({str(i["machine"]) for i in info if i.get("machine")}),
        commands=_commands(results),
        configs={
            trial.method: json.dumps(trial.info["config"], indent=1)
            for trial in reversed(results.trials)
        },
    )


def _subject(results: Results, advice: Advice) -> str | None:
    """Which method is held against the claim: the paper's, else the one to use, else the last; None: only baseline."""
    if results.claimed:
        return results.claimed
    use = advice.method
    return use if use and use != results.baseline else results.full


def _claim_cards(
    results: Results, table: pd.DataFrame, subject: str | None
) -> list[dict[str, Any]]:
    """What a method gained, per metric: the verdict of the table, then whether it is two points."""
    if subject is None:
        return []
    rows, told = rows_of(table), []
    for metric in METRICS:
        row, base = rows[subject, metric, ""], rows[results.baseline, metric, ""]
        limits = (row["delta_low"], row["delta_high"], row["p"])
        answer, gain = claim(*limits, CLAIM), verdict_of(*limits)
        kind, words = gain.replace(" ", "-"), ""
        if answer == "yes":
            title = f"A gain of {100 * CLAIM:.0f} points or more is shown"
        elif gain == "shown":
            ruled = "ruled out" if answer == "no" else "not shown"
            title, words = (
                "A gain is shown",
                f"That it is {100 * CLAIM:.0f} points or more is {ruled}.",
            )
        elif gain == "worse":
            title = f"Worse than {results.baseline}"
        elif answer == "no":
            title, kind = f"No gain of {100 * CLAIM:.0f} points", "no-gain"
            words = "One as large is ruled out."
        elif not math.isfinite(row["delta_low"]):
            title, words = "Nothing is shown", "Too few groups for an interval."
        else:
            title, words = "No gain is shown", "The difference may be chance."
        told.append(
            {
                "metric": TITLES[metric],
                "title": title,
                "kind": kind,
                "words": words,
                "before": base["mean"],
                "after": row["mean"],
                **{k: row[k] for k in ("delta", "delta_low", "delta_high", "p", "mde")},
            }
        )
    return told


def _class_bars(
    results: Results, table: pd.DataFrame, counts: Mapping[str, np.ndarray], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """TPR and F1 of each class by the given methods, as lengths in %."""
    rows = rows_of(table)
    truth = counts[results.baseline].sum(3)
    return [
        {
            "name": name,
            "patches": int(truth[:, :, j].sum(1).max()),
            "groups": int((truth[:, :, j].sum(0) > 0).sum()),
            "scores": {
                metric: [
                    {"method": m, **{k: rows[m, metric, name][k] for k in ("mean", "low", "high")}}
                    for m in methods
                ]
                for metric in METRICS
            },
        }
        for j, name in enumerate(results.classes)
    ]


def _class_rows(
    results: Results, table: pd.DataFrame, counts: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    rows = rows_of(table)
    truth = counts[results.baseline].sum(3)  # (seeds, groups, classes)
    names = {name: [j] for j, name in enumerate(results.classes)}
    names |= {
        f"macro/{name}": [results.classes.index(c) for c in inside]
        for name, inside in results.subsets.items()
    }
    return [
        {
            "name": name,
            "patches": int(truth[:, :, inside].sum((1, 2)).max()),
            "groups": int((truth[:, :, inside].sum((0, 2)) > 0).sum()),
            "scores": {
                metric: {m: scored(rows[m, metric, name]) for m in results.methods}
                for metric in METRICS
            },
        }
        for name, inside in names.items()
    ]


def _column_sums(counts: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Macro recall of each method, and what its matrices give if divided by column sums instead: precision."""
    told = []
    for method, array in counts.items():
        matrix = array.sum(1)  # (seeds, classes, classes)
        turned = np.swapaxes(matrix, -1, -2)  # its recall is the other's precision
        told.append(
            {
                "method": method,
                "recall": float(np.nanmean(values(matrix)[:, 0, 0])),
                "precision": float(np.nanmean(values(turned)[:, 0, 0])),
            }
        )
    return told


def _tuned(results: Results) -> list[dict[str, Any]]:
    """What each method chose in each fold on validation patches, with the scores of all that it tried."""
    rows = []
    for method in results.methods:
        for fold in results.folds:
            trial = next(c for c in results.of(method) if c.fold == fold)
            tuning = trial.info.get("tuning")
            if tuning:
                tried = [
                    {
                        "settings": ", ".join(
                            f"{k}={as_override(v)}" for k, v in t["settings"].items()
                        ),
                        "f1": float("nan") if t["macro/f1"] is None else t["macro/f1"],
                        "taken": t["settings"] == tuning["taken"],
                    }
                    for t in tuning["tried"]
                ]
                rows.append({"method": method, "fold": fold, "tried": tried})
    return rows


def _seed_rows(results: Results, counts: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Macro TPR and F1 of every method in every seed."""
    each = {method: values(array.sum(1))[:, :, 0] for method, array in counts.items()}
    return [
        {
            "seed": seed,
            "scores": {method: tuple(float(v) for v in each[method][i]) for method in each},
        }
        for i, seed in enumerate(results.seeds)
    ]


def _fold_rows(results: Results) -> list[dict[str, Any]]:
    """What every fold trained on and tested, from the baseline; generated from the full method."""
    rows = []
    trials = {c.fold: c for c in reversed(results.of(results.baseline))}
    others = {c.fold: c for c in reversed(results.of(results.full or results.baseline))}
    for fold in results.folds:
        info, split = trials[fold].info, trials[fold].info["split"]
        label = trials[fold].predictions["label"]
        made = others[fold].info["data"].get("generated") or {}
        rows.append(
            {
                "fold": fold,
                "train": info["data"].get("real") or {},
                "val": info["data"].get("val") or {},
                "unlabelled": info["data"].get("unlabelled") or 0,
                "test": {name: int((label == name).sum()) for name in results.classes},
                "generated": {k: v for k, v in made.items() if v},
                "thinned": split.get("thinned", {}),
                "groups": {part: len(split.get(part, [])) for part in ("train", "val", "test")},
            }
        )
    return rows


def _commands(results: Results) -> list[str]:
    """What makes these results again: the settings that all trials share and a default does not."""
    configs = [flatten(trial.info["config"]) for trial in results.trials]
    usual = flatten(dataclasses.asdict(RunCommand()))
    own = own_keys("reproduce")
    names = list(dict.fromkeys(c.info["method"] for c in results.trials))
    settings = {"out": str(results.out), "methods": names, "seeds": results.seeds}
    chosen: dict[str, Any] = dict(settings)
    if results.baseline != "flat":
        chosen["baseline"] = results.baseline
    trees = {c["hierarchy.name"] for c in configs if c.get("hierarchy.name")}
    if len(trees) == 1:
        chosen["hierarchy"] = trees.pop()
    for key in sorted(configs[0]):
        found = {as_override(config.get(key)) for config in configs}
        # what the files of the tree and the methods set; a key without a default there is free-form
        group, in_a_file = key.split(".")[0], key not in usual or key.endswith(".name")
        if in_a_file or group in ("hierarchy", "method", "temporal", "mix") or len(found) > 1:
            continue
        if key in own or role_of(key) is Role.SHOWN:
            continue
        if found.pop() != as_override(usual[key]):
            chosen[key] = configs[0].get(key)
    again = {k: v for k, v in chosen.items() if k in ("out", "baseline")}
    return [command_line("reproduce", chosen), command_line("report", again)]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
