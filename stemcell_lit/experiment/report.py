"""From the cells' results to a table, pictures and one page that says whether the gain is real.

Everything here is computed from `cells/*/result.json`, their `predictions.parquet` and the patch
stores. Where a store has moved, its pictures are left out and the page says so.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stemcell_lit.base.files import check_files, check_target, whole_or_absent, write_whole
from stemcell_lit.base.markdown import markdown_table
from stemcell_lit.base.pages import render
from stemcell_lit.base.spreadsheets import read_csv, to_csv
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import confusion
from stemcell_lit.evaluate.statistics import (
    ALPHA,
    METRICS,
    claim,
    compare,
    contrasts,
    effect_sizes,
    judge,
    points,
    values,
)
from stemcell_lit.experiment.gallery import generator_section
from stemcell_lit.experiment.parts import comparisons
from stemcell_lit.experiment.pictures import DPI, Pictures
from stemcell_lit.experiment.results import (
    CLAIM,
    TITLES,
    Results,
    as_override,
    collect,
    comparable,
    flatten,
    rows_of,
)
from stemcell_lit.schema import RunCommand
from stemcell_lit.settings.meaning import Role, own_keys, role_of
from stemcell_lit.settings.quoting import command_line, plain, printable

if TYPE_CHECKING:
    from rich.console import Console

BEST = "the full method instead of the best without generated patches"


def make_report(
    out: str | Path, baseline: str = "flat", resamples: int = 2000, seed: int = 0
) -> Path:
    """Writes table.csv, table.md, parts.csv, figures/ and report.html into the folder of results.

    Args:
        out: the folder of results.
        baseline: the method that the others are compared with.
        resamples: of the bootstrap, and most swaps of the permutation test.
        seed: of both, and of the choice of shown patches.

    Returns:
        report.html, which holds its pictures and needs no network.

    Raises:
        UserError: results are missing, broken or do not belong together, or files of the user's are in the way.
    """
    check_report(out)
    results = comparable(collect(out), baseline)
    counts = {method: results.counts(method) for method in results.methods}
    # only the paper's method was asked about beforehand; the last of a list is a choice made later
    table = compare(
        counts,
        baseline,
        results.classes,
        primary=results.claimed,
        subsets=results.subsets,
        resamples=resamples,
        seed=seed,
    )
    parts = _parts(results, table, counts, resamples, seed)
    pictures = Pictures(results, table, counts, seed)
    figures = pictures.make()
    page = _page(results, table, parts, counts, figures, pictures.facts, resamples)
    # all is computed before anything is written: a failure leaves the old report as it was
    with whole_or_absent(results.out / "figures", "figures") as folder:
        for name, image in figures.items():
            (folder / f"{name}.png").write_bytes(image)
    write_whole(results.out / "table.csv", to_csv(table, "%.6g"))
    write_whole(results.out / "parts.csv", to_csv(parts, "%.6g"))
    write_whole(results.out / "table.md", _markdown(results, table, parts))
    write_whole(results.out / "report.html", page)
    return results.out / "report.html"


def check_report(out: str | Path) -> None:
    """Refuses a folder of results whose report would replace something of the user's; to be called before the work.

    Raises:
        UserError: what is in the way.
    """
    check_files(out, ["table.csv", "parts.csv", "table.md", "report.html"])
    check_target(Path(out) / "figures", "figures")


def read_table(out: str | Path) -> pd.DataFrame:
    """table.csv of a folder of results; `class` is an empty string in the macro rows.

    Raises:
        UserError: there is none.
    """
    file = Path(out) / "table.csv"
    if not os.path.lexists(file):
        raise UserError(f"{file}: no such file; {_again(out)}")
    return read_csv(file, ["method", "metric", "class", *_NUMBERS, "verdict"], _again(out), _NA)


def _again(out: str | Path) -> str:
    return f"make it with `{command_line('report', {'out': out})}`"


_NUMBERS = ("mean", "low", "high", "delta", "delta_low", "delta_high", "p")
_NA = {c: [""] for c in _NUMBERS}  # what is no number in a CSV; a class may be called "nan"


def print_table(out: str | Path) -> None:
    """Prints macro TPR and F1 of every method with difference, interval and verdict.

    Raises:
        UserError: no table.csv there.
    """
    from rich.console import Console

    table = read_table(out)
    console = Console()
    for which in [c for c in dict.fromkeys(table["class"]) if re.match(r"(macro/.*)?$", c)]:
        _print_macro(console, table, which)
    parts = read_csv(Path(out) / "parts.csv", ["part"], _again(out), _NA)
    if len(parts):
        _print_parts(console, parts)
    # a path is printed whole, for it is to be copied
    console.print(
        printable(Path(out) / "report.html"), soft_wrap=True, highlight=False, markup=False
    )


def _print_macro(console: Console, table: pd.DataFrame, which: str) -> None:
    from rich.table import Table

    over = f" over {which.removeprefix('macro/')} classes" if which else ""
    title = f"Macro TPR (recall) and F1{over} in %, 95 % intervals"
    view = Table(title=plain(title), title_justify="left")
    view.add_column("method", no_wrap=True)
    for title in TITLES.values():
        view.add_column(title, justify="right", no_wrap=True)
        view.add_column("difference in points")
    for method, rows in table[table["class"] == which].groupby("method", sort=False):
        line = [plain(method)]
        for metric in METRICS:
            row = rows[rows["metric"] == metric].to_dict("records")[0]
            line += [f"{100 * row['mean']:.1f}", _coloured(row)]
        view.add_row(*line)
    console.print(view)


def _print_parts(console: Console, parts: pd.DataFrame) -> None:
    from rich.table import Table

    view = Table(title="What each part adds, in points", title_justify="left")
    view.add_column("part")
    view.add_column("methods")
    for title in TITLES.values():
        view.add_column(title)
    for (part, where, method, other), rows in parts.groupby(
        ["part", "where", "method", "other"], sort=False
    ):
        of = {row["metric"]: row for row in rows.to_dict("records")}
        name = f"{part} ({where})" if where else str(part)
        methods = plain(f"{method} - {other}")
        view.add_row(plain(name), methods, *(_coloured(of[m]) for m in METRICS))
    console.print(view)


def _coloured(row: Mapping[Any, Any]) -> str:
    """Difference, interval and verdict for the console."""
    word = row["verdict"].rsplit(": ", 1)[-1]
    colour = {"shown": "green", "worse": "red"}.get(word)
    told = word
    if math.isfinite(row["delta_low"]):
        ends = f"{points(row['delta_low'])} to {points(row['delta_high'])}"
        told = f"{points(row['delta'])} ({ends}): {word}"
    elif math.isfinite(row["delta"]):
        told = f"{points(row['delta'])}: {word}"
    told = plain(told)
    return f"[{colour}]{told}[/]" if colour else told


def _markdown(results: Results, table: pd.DataFrame, parts: pd.DataFrame) -> str:
    ends = ["difference", "interval", "p", "verdict"]
    scores = ["metric", "mean", "interval", *ends]
    right = {"mean", "difference", "p"}
    macro, each = (table[inside] for inside in (table["class"] == "", table["class"] != ""))
    lines = [
        "Macro TPR (recall) and F1 in %, with 95 % intervals over "
        f"{len(results.groups)} groups and {len(results.seeds)} seeds.",
        "",
    ]
    rows = [[row["method"], *_score_cells(row)] for row in macro.to_dict("records")]
    lines += markdown_table(["method", *scores], rows, right)
    if len(parts):
        rows = [
            [
                *(row["part"], row["where"], f"{row['method']} - {row['other']}"),
                *(TITLES[row["metric"]], *_difference_cells(row)),
            ]
            for row in parts.to_dict("records")
        ]
        lines += ["", "What each part adds:", ""]
        lines += markdown_table(["part", "where", "methods", "metric", *ends], rows, right)
    rows = [[row["method"], row["class"], *_score_cells(row)] for row in each.to_dict("records")]
    lines += ["", "By class:", "", *markdown_table(["method", "class", *scores], rows, right)]
    return "\n".join(lines) + "\n"


def _score_cells(row: Mapping[Any, Any]) -> list[str]:
    mean, interval = _percent(row["mean"]), _range(row["low"], row["high"])
    return [TITLES[row["metric"]], mean, interval, *_difference_cells(row)]


def _difference_cells(row: Mapping[Any, Any]) -> list[str]:
    interval = _range(row["delta_low"], row["delta_high"], True)
    word = row["verdict"].rsplit(": ", 1)[-1]
    return [_points(row["delta"]), interval, _p(row["p"]), word]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def _points(value: float) -> str:
    return points(value).replace("-", "−") if math.isfinite(value) else "–"


def _range(low: float, high: float, signed: bool = False) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    show = _points if signed else _percent
    return f"{show(low)} to {show(high)}"


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# --- the page ---------------------------------------------------------------------------------------


def _page(
    results: Results,
    table: pd.DataFrame,
    parts: pd.DataFrame,
    counts: Mapping[str, np.ndarray],
    figures: Mapping[str, bytes],
    facts: Mapping[str, Any],
    resamples: int,
) -> str:
    info = [cell.info for cell in results.cells]
    seconds = sum(float(i.get("seconds") or 0) for i in info)
    images = {
        name: {
            "data": base64.b64encode(image).decode("ascii"),
            # px on the page: letters are then equally large in all pictures. A PNG's width is in bytes 16 to 19
            "width": round(int.from_bytes(image[16:20], "big") / DPI * 96),
        }
        for name, image in figures.items()
    }
    filters = {"percent": _percent, "points": _points, "p": _p}
    return render(
        Path(__file__).with_suffix(".html.j2"),
        filters,
        results=results,
        interval=_range,
        simulated=any(i["data"].get("simulated") for i in info),
        leaky=info[0]["split"]["kind"] == "leaky",
        store=info[0]["store"],
        content_hash=info[0]["data"]["content_hash"],
        headline=_headline(results, table),
        methods=_method_rows(results, table),
        parts=[
            {**pair.iloc[0], "scores": {r["metric"]: _score(r) for r in pair.to_dict("records")}}
            for _, pair in parts.groupby(["part", "where", "method", "other"], sort=False)
        ],
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
        resamples=resamples,
        least_p=2 / 2 ** len(results.groups),
        cells=[
            {
                "name": cell.folder.name,
                "method": cell.method,
                "fold": cell.fold,
                "seed": cell.seed,
                "seconds": cell.info.get("seconds"),
            }
            for cell in results.cells
        ],
        seconds=_duration(seconds),
        versions=info[0].get("versions") or {},
        machines=sorted({str(i["machine"]) for i in info if i.get("machine")}),
        commands=_commands(results),
        configs={
            cell.method: json.dumps(cell.info["config"], indent=1)
            for cell in reversed(results.cells)
        },
    )


def _headline(results: Results, table: pd.DataFrame) -> list[dict[str, Any]]:
    """What the claim's method gained, per metric, and whether two points are shown."""
    if results.full is None:
        return []
    rows, told = rows_of(table), []
    for metric in METRICS:
        row, base = rows[results.full, metric, ""], rows[results.baseline, metric, ""]
        limits = (row["delta_low"], row["delta_high"], row["p"])
        answer, gain = claim(*limits, CLAIM), judge(*limits)
        if answer == "yes":
            words = f"A gain of {100 * CLAIM:.0f} points or more is shown."
        elif gain == "worse":
            words = f"The method is worse than {results.baseline} here."
        elif gain == "shown":
            ruled = "ruled out" if answer == "no" else "not shown"
            words = f"A gain is shown; that it is {100 * CLAIM:.0f} points or more is {ruled}."
        elif answer == "no":
            words = f"No gain is shown, and one of {100 * CLAIM:.0f} points or more is ruled out."
        elif not math.isfinite(row["delta_low"]):
            words = "Too few groups for an interval: nothing is shown."
        else:
            words = "No gain is shown: the difference may be chance."
        told.append(
            {
                "metric": TITLES[metric],
                "answer": answer,
                "kind": {"yes": "yes", "no": "no"}.get(answer, "open"),
                "words": words,
                "before": base["mean"],
                "after": row["mean"],
                **{k: row[k] for k in ("delta", "delta_low", "delta_high", "p")},
            }
        )
    return told


def _parts(
    results: Results,
    table: pd.DataFrame,
    counts: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """What each part of the method adds: `contrasts` with two more columns in front, `part` and `where`."""
    ranked = sorted(results.methods, key=lambda m: (results.about(m).rank, m))
    told = comparisons({m: results.about(m).parts for m in ranked})
    rows = rows_of(table)
    real = [
        m for m in results.methods if not any(cell.info.get("generator") for cell in results.of(m))
    ]
    if results.claimed and real:
        best = max(real, key=lambda m: rows[m, "f1", ""]["mean"])
        told.append((BEST, "", results.claimed, best))
    found = contrasts(counts, [p[2:] for p in told], resamples=resamples, seed=seed)
    for place, name in enumerate(("part", "where")):
        found.insert(place, name, [p[place] for p in told for _ in METRICS])
    return found


def _method_rows(results: Results, table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = rows_of(table)
    sizes = effect_sizes(_matrices(results), results.baseline)
    return [
        {
            "name": method,
            "effect": dict(zip(METRICS, sizes.get(method, [math.nan] * 2), strict=True)),
            "about": results.about(method).about or "",
            "baseline": method == results.baseline,
            "scores": {metric: _score(rows[method, metric, ""]) for metric in METRICS},
        }
        for method in results.methods
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
                metric: {m: _score(rows[m, metric, name]) for m in results.methods}
                for metric in METRICS
            },
        }
        for name, inside in names.items()
    ]


def _matrices(results: Results) -> dict[str, np.ndarray]:
    """Per method (cells, classes, classes): a confusion matrix for each seed and fold, in one order for all."""
    return {
        method: np.stack(
            [
                confusion(c.predictions["label"], c.predictions["predicted"], results.classes)
                for c in results.of(method)
            ]
        )
        for method in results.methods
    }


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
            cell = next(c for c in results.of(method) if c.fold == fold)
            tuning = cell.info.get("tuning")
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


def _score(row: Mapping[Any, Any]) -> dict[str, Any]:
    word = row["verdict"].rsplit(": ", 1)[-1]
    return {**row, "word": word, "css": word.replace(" ", "-")}


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
    cells = {c.fold: c for c in reversed(results.of(results.baseline))}
    others = {c.fold: c for c in reversed(results.of(results.full or results.baseline))}
    for fold in results.folds:
        info, split = cells[fold].info, cells[fold].info["split"]
        label = cells[fold].predictions["label"]
        made = others[fold].info["data"].get("generated") or {}
        rows.append(
            {
                "fold": fold,
                "train": info["data"].get("real") or {},
                "val": info["data"].get("val") or {},
                "test": {name: int((label == name).sum()) for name in results.classes},
                "generated": {k: v for k, v in made.items() if v},
                "groups": {part: len(split.get(part, [])) for part in ("train", "val", "test")},
            }
        )
    return rows


def _commands(results: Results) -> list[str]:
    """What makes these results again: the settings that all cells share and a default does not."""
    configs = [flatten(cell.info["config"]) for cell in results.cells]
    usual = flatten(dataclasses.asdict(RunCommand()))
    own = own_keys("reproduce")
    names = list(dict.fromkeys(c.info["method"] for c in results.cells))
    settings = {"out": str(results.out), "methods": names, "seeds": results.seeds}
    chosen: dict[str, Any] = dict(settings)
    if results.baseline != "flat":
        chosen["baseline"] = results.baseline
    trees = {c["hierarchy.name"] for c in configs if c.get("hierarchy.name")}
    if len(trees) == 1:
        chosen["hierarchy"] = trees.pop()
    for key in sorted(configs[0]):
        found = {as_override(config.get(key)) for config in configs}
        # what the files of the tree and the methods set; without a value in the schema it is free-form
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
