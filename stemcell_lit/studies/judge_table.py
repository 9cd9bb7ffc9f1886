"""The table of `judge`: made of its entries, in Markdown and as files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.base.files import whole_or_absent, write_whole
from stemcell_lit.base.markdown import in_markdown, markdown_table
from stemcell_lit.base.metric_names import MetricName
from stemcell_lit.base.names import safe_name
from stemcell_lit.base.ranks import first_rank
from stemcell_lit.base.spreadsheets import to_csv
from stemcell_lit.base.terminal import printable
from stemcell_lit.evaluate.metrics import scores_of
from stemcell_lit.experiment.forms import ACCURACY, FACTS
from stemcell_lit.experiment.generator_quality import METRICS, find, read_quality
from stemcell_lit.experiment.training import versions
from stemcell_lit.settings.command_keys import JudgeCommand
from stemcell_lit.studies.judge_entries import FORMAT, PARTS, REAL, Confusions, Entry, _read

NUMBERS = ("value", "std", "floor", "floor_std")


def accuracy(
    folds: Sequence[Confusions], part: str, classes: Sequence[str]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Scores over folds: matrices are summed over folds, then mean and standard deviation over seeds.

    Returns:
        (`tpr` or `f1`, empty for macro) and (`tpr`, class) -> mean, standard deviation.
    """
    every = np.array([fold[part] for fold in folds]).sum(0)  # (seeds, classes, classes)
    per_seed = [scores_of(matrix, classes) for matrix in every]
    names = {(kind, ""): f"macro/{kind}" for kind in ("tpr", "f1")}
    names |= {("tpr", c): f"tpr/{c}" for c in classes}
    return {
        to: (
            float(np.mean([s[name] for s in per_seed])),
            float(np.std([s[name] for s in per_seed])),
        )
        for to, name in names.items()
    }


def table_of(
    entries: Sequence[Entry],
    folders: Sequence[Path],
    floors: Mapping[int, Mapping[str, Confusions]],
) -> pd.DataFrame:
    """A row for each generator, metric and class: mean over folds.

    Columns: gan, part (validation groups, or test groups for reporting only), metric, class (empty: all), value,
    std, floor, floor_std. The floor of a distance is that of real training patches; the floor of `accuracy/tpr` and
    `accuracy/f1` is the same classifier trained on the real patches as they are. Both real ways have rows of their own.
    """
    classes = entries[0].trial.store.classes
    folds = sorted({e.fold for e in entries})
    rows: list[dict[str, Any]] = []
    names = list(dict.fromkeys(e.name for e in entries))
    real = {
        name: {part: accuracy([floors[f][name] for f in folds], part, classes) for part in PARTS}
        for name in REAL
    }
    for name in REAL:
        for part, label in PARTS.items():
            for (kind, c), scores in real[name][part].items():
                rows.append(_row(name, label, f"accuracy/{kind}", c, scores))
    for name in names:
        mine = [(e, f) for e, f in zip(entries, folders, strict=True) if e.name == name]
        qualities = [read_quality(f)["quality"] for _, f in mine]
        for metric in METRICS:
            for c in ("", *classes):
                found = [q[c] for q in (find(q, metric) or {} for q in qualities) if c in q]
                if not found:
                    continue
                means = [_mean([q[k] for q in found]) for k in NUMBERS]
                known = {MetricName.parse(k) for q in qualities for k in q}
                on = sorted(n.encoder for n in known if n.metric == metric)  # an encoder a fold
                named = str(MetricName(metric, "+".join(on)))
                rows.append(_row(name, PARTS["val"], named, c, means))
        found_c = [_read(f / "accuracy.json", ACCURACY) for _, f in mine]
        for part, label in PARTS.items():
            for score, scores in accuracy(found_c, part, classes).items():
                kind, c = score
                floor = real[REAL[0]][part][score]
                rows.append(_row(name, label, f"accuracy/{kind}", c, (*scores, *floor)))
    return pd.DataFrame(rows)


def _row(
    gan: str, part: str, metric: str, c: str, numbers: Sequence[float | None]
) -> dict[str, Any]:
    about = {"gan": gan, "part": part, "metric": metric, "class": c}
    return about | dict(zip_longest(NUMBERS, numbers))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def markdown(
    table: pd.DataFrame, entries: Sequence[Entry], facts: Sequence[Mapping[str, Any]]
) -> str:
    """The table for reading: all classes first, then KID and accuracy class by class."""
    first = entries[0]
    classes = first.trial.store.classes
    folds = sorted({e.fold for e in entries})
    config = first.trial.config
    names = list(dict.fromkeys(e.name for e in entries))
    many = f"{len(first.seeds)} classifier{'s' if len(first.seeds) > 1 else ''}"
    encoders = sorted({MetricName.parse(m).encoder for m in table["metric"]} - {""})
    lines = [
        "# Generators side by side",
        "",
        f"{in_markdown(first.trial.store.path)}, "
        f"{first.key()['generator']['size']} px, folds {', '.join(map(str, folds))}; "
        f"{config.gan.images:,} images each; accuracy by {many} of {config.stage.images:,} "
        f"images, on {', '.join(sorted({str(e.per_class) for e in entries}))} generated patches a class.",
        "",
        "Against held-out real patches of training groups (validation groups). In brackets: real training patches "
        f"against the same ones, the floor. KID to coverage are on features of encoder {', '.join(encoders)}.",
        "",
    ]
    val = PARTS["val"]
    lines += markdown_table(
        ["generator", *(title for title, _, _ in METRICS.values())],
        (
            [name, *(_text(_pick(table, name, val, m, ""), d) for m, (_, _, d) in METRICS.items())]
            for name in names
        ),
    )
    lines += [
        "",
        "Classification accuracy score: macro TPR and F1 in % of a classifier trained on generated patches alone, "
        "beside the same one trained on real patches; matrices summed over folds, ± standard deviation over seeds. "
        "The validation columns may choose a generator, the test columns are **for reporting only**.",
        "",
    ]
    scores = [(part, metric) for part in PARTS.values() for metric in ("tpr", "f1")]
    lines += markdown_table(
        ["trained on", "validation TPR", "validation F1", "test TPR", "test F1"],
        (
            [name, *(_percent(_pick(table, name, p, f"accuracy/{m}", "")) for p, m in scores)]
            for name in (*REAL, *names)
        ),
    )
    lines += ["", "KID by class (floor):", ""]
    lines += markdown_table(
        ["generator", *classes],
        ([name, *(_text(_pick(table, name, val, "kid", c), 3) for c in classes)] for name in names),
    )
    lines += ["", "TPR in % by class on validation groups:", ""]
    lines += markdown_table(
        ["trained on", *classes],
        (
            [name, *(_percent(_pick(table, name, val, "accuracy/tpr", c)) for c in classes)]
            for name in (*REAL, *names)
        ),
    )
    notes = []
    for e, fact in zip(entries, facts, strict=True):
        where = f"{in_markdown(e.name)}, fold {e.fold}"
        notes.append(
            f"- {where}: snapshot of {fact['images']:,} of {fact['images_trained']:,} images, by {fact['metric']}"
        )
        if fact["alarm"]:
            notes.append(f"- {where}: **{in_markdown(fact['alarm'])}**")
        if fact["filters"]:
            shares = ", ".join(
                f"{in_markdown(c)} {100 * a['all']:.0f} %" for c, a in fact["acceptance"].items()
            )
            notes.append(f"- {where}: kept by {', '.join(fact['filters'])}: {shares}")
        if fact["missing"]:
            notes.append(f"- {where}: could not be filled: {in_markdown(fact['missing'])}")
    return "\n".join([*lines, "", *notes, ""])


def _pick(table: pd.DataFrame, name: str, part: str, metric: str, c: str) -> Any:
    base = table["metric"].map(lambda name: MetricName.parse(name).metric)
    found = table[
        (table["gan"] == name) & (table["part"] == part) & (base == metric) & (table["class"] == c)
    ]
    return found.iloc[0] if len(found) else None


def _text(row: Any, digits: int) -> str:
    if row is None or pd.isna(row["value"]):
        return "–"
    floor = "–" if pd.isna(row["floor"]) else f"{row['floor']:.{digits}f}"
    return f"{row['value']:.{digits}f} ({floor})"


def _percent(row: Any) -> str:
    if row is None or pd.isna(row["value"]):
        return "–"
    return f"{100 * row['value']:.1f} ± {100 * row['std']:.1f}"


def write(
    out: Path,
    config: JudgeCommand,
    entries: Sequence[Entry],
    folders: Sequence[Path],
    floors: Mapping[int, Mapping[str, Confusions]],
) -> None:
    """Writes table.csv, table.md, judge.json and grids/, each whole or not at all, and prints the table."""
    if not first_rank():
        return
    table = table_of(entries, folders, floors)
    facts = [_read(f / "facts.json", FACTS) for f in folders]
    text = markdown(table, entries, facts)
    write_whole(out / "table.csv", to_csv(table))
    write_whole(out / "table.md", text)
    content = {
        "format": FORMAT,
        "data": entries[0].trial.store.content_hash,
        "classes": entries[0].trial.store.classes,
        "real": {str(fold): of for fold, of in floors.items()},
        "generators": [
            {
                "name": e.name,
                "fold": e.fold,
                "per_class": e.per_class,
                "seeds": list(e.seeds),
                "facts": fact,
                "quality": read_quality(folder)["quality"],
                "accuracy": _read(folder / "accuracy.json", ACCURACY),
            }
            for e, folder, fact in zip(entries, folders, facts, strict=True)
        ],
        "config": asdict(config),
        "versions": versions(),
    }
    write_whole(out / "judge.json", json.dumps(content, indent=1) + "\n")
    with whole_or_absent(out / "grids", "grids") as grids:
        for e, folder in zip(entries, folders, strict=True):
            for file in sorted((folder / "grids").glob("class_*.png")):
                name = f"{safe_name(e.name)}-f{e.fold}-{file.stem.removeprefix('class_')}.png"
                shutil.copy(file, grids / name)
    print("\n".join(map(printable, text.split("\n"))))
    print(printable(out / "table.md"))
