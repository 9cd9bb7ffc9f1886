"""The table of a report: read back, printed, in Markdown, and how its numbers are written."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stemcell_lit.base.markdown import in_markdown, markdown_table
from stemcell_lit.base.spreadsheets import read_csv
from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.intervals import METRICS, POWER
from stemcell_lit.evaluate.results_table import points
from stemcell_lit.experiment.results import TITLES, Results
from stemcell_lit.report.advice import Advice
from stemcell_lit.report.numbers import (
    interval,
    p_value,
    percent,
    signed_points,
    smallest,
    verdict_word,
)
from stemcell_lit.settings.quoting import command_line, plain

if TYPE_CHECKING:
    from rich.console import Console


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


WIDE = 120  # columns of a terminal in which the table stands with what would have been shown


_NUMBERS = ("mean", "low", "high", "delta", "delta_low", "delta_high", "p", "mde")
_NA = {c: [""] for c in _NUMBERS}  # what is no number in a CSV; a class may be called "nan"


def print_table(out: str | Path, notes: Sequence[str] = (), advice: Sequence[str] = ()) -> None:
    """Prints macro TPR and F1 of every method with difference, interval and verdict.

    Args:
        out: the folder of results.
        notes: of what was left out, printed below the table.
        advice: what to do with it, printed last, see `advice.Advice.lines`.

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
    for note in notes:
        console.print(printable(f"note: {note}"), soft_wrap=True, highlight=False, markup=False)
    for line in ["", *advice] if advice else []:
        console.print(printable(line), soft_wrap=True, highlight=False, markup=False)
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
    wide = console.width >= WIDE
    for title in TITLES.values():
        view.add_column(title, justify="right", no_wrap=True)
        view.add_column("difference in points")
        if wide:
            view.add_column("would show", justify="right", no_wrap=True)
    for method, rows in table[table["class"] == which].groupby("method", sort=False):
        line = [plain(method)]
        for metric in METRICS:
            row = rows[rows["metric"] == metric].to_dict("records")[0]
            line += [f"{100 * row['mean']:.1f}", _coloured(row)]
            line += [smallest(row["mde"])] if wide else []
        view.add_row(*line)
    console.print(view)
    told = f"the smallest gain that these data would have shown in {100 * POWER:.0f} % of cases"
    where = "would show" if wide else "`would show` in table.md"
    console.print(f"{where}: {told}", style="dim", highlight=False)


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
    word = verdict_word(row)
    colour = {"shown": "green", "worse": "red"}.get(word)
    told = word
    if math.isfinite(row["delta_low"]):
        ends = f"{points(row['delta_low'])} to {points(row['delta_high'])}"
        told = f"{points(row['delta'])} ({ends}): {word}"
    elif math.isfinite(row["delta"]):
        told = f"{points(row['delta'])}: {word}"
    told = plain(told)
    return f"[{colour}]{told}[/]" if colour else told


def table_markdown(
    results: Results, table: pd.DataFrame, parts: pd.DataFrame, advice: Advice
) -> str:
    """What to do, macro scores, what each part adds, and scores by class: the content of table.md."""
    ends = ["difference", "interval", "p", "would show", "verdict"]
    scores = ["metric", "mean", "interval", *ends]
    right = {"mean", "difference", "p", "would show"}
    macro, each = (table[inside] for inside in (table["class"] == "", table["class"] != ""))
    lines = [
        *(f"- {in_markdown(line)}" for line in advice.lines),
        "",
        "Macro TPR (recall) and F1 in %, with 95 % intervals over "
        f"{len(results.groups)} groups and {len(results.seeds)} seeds. Would show: the smallest gain in points that "
        f"these data would have shown in {100 * POWER:.0f} % of cases.",
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
    if results.notes:
        lines += ["", *(f"- {in_markdown(note)}" for note in results.notes)]
    rows = [[row["method"], row["class"], *_score_cells(row)] for row in each.to_dict("records")]
    lines += ["", "By class:", "", *markdown_table(["method", "class", *scores], rows, right)]
    return "\n".join(lines) + "\n"


def _score_cells(row: Mapping[Any, Any]) -> list[str]:
    mean, ends = percent(row["mean"]), interval(row["low"], row["high"])
    return [TITLES[row["metric"]], mean, ends, *_difference_cells(row)]


def _difference_cells(row: Mapping[Any, Any]) -> list[str]:
    ends = interval(row["delta_low"], row["delta_high"], True)
    told = [p_value(row["p"]), smallest(row["mde"]), verdict_word(row)]
    return [signed_points(row["delta"]), ends, *told]
