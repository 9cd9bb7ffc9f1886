"""A table for each value of one setting, and the figure over them: doses, learning curves, kinds of split.

Layout of a sweep's folder::

    sweep.json               what varies, over which values
    values/<key>-<value>/    a folder of results each, with table.csv and report.html
    sweep.csv  sweep.md      macro rows of all tables
    figures/sweep.png        the curves
    report.html              figure and table, and the way to each value's own page
    artifacts/               shared by all
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.base import formats as form
from stemcell_lit.base.drawing import STYLE, blank_figure, colours, png
from stemcell_lit.base.files import check_files, check_target, whole_or_absent, write_whole
from stemcell_lit.base.markdown import in_markdown, markdown_table
from stemcell_lit.base.names import safe_name
from stemcell_lit.base.pages import render
from stemcell_lit.base.spreadsheets import to_csv
from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.results_table import points
from stemcell_lit.experiment.forms import SWEEP
from stemcell_lit.experiment.results import TITLES, as_override, collect, comparable
from stemcell_lit.report.advice import Advice
from stemcell_lit.report.numbers import verdict_word
from stemcell_lit.report.print_table import print_table, read_table
from stemcell_lit.report.report import check_report, write_report
from stemcell_lit.settings.command_keys import SweepConfig
from stemcell_lit.settings.quoting import override

FORMAT = 1  # of sweep.json


@dataclass(frozen=True)
class Table:
    """One folder of results."""

    out: Path  # the folder
    name: str = ""  # inside the sweep, empty where there is none
    value: Any = None  # of the sweep's key
    overrides: Sequence[str] = ()  # that its trials get beside the method's


def tables_of(out: Path, sweep: SweepConfig) -> list[Table]:
    """The tables of a sweep, or the one table where nothing varies.

    Raises:
        UserError: a key without values, or a key that tells no trials apart.
    """
    if sweep.key is None:
        return [Table(out)]
    if not sweep.values:
        raise UserError(f"sweep.key={sweep.key}: sweep.values is empty; give sweep.values=[...]")
    if sweep.key in ("seed", "split.fold", "out", "artifacts") or sweep.key.startswith("method"):
        raise UserError(f"sweep.key={sweep.key}: every table has these; vary another key")
    fixed = [override(k, v) for k, v in sweep.fixed.items()]
    tables: list[Table] = []
    for value in sweep.values:
        name = safe_name(f"{sweep.key.split('.')[-1]}-{as_override(value)}")
        own = [*fixed, override(sweep.key, value)]
        if any(table.name == name for table in tables):
            raise UserError(
                f"sweep.values={sweep.values}: two of them are called {name}; give each once"
            )
        tables.append(Table(out / "values" / name, name, value, own))
    return tables


def write_sweep(out: Path, sweep: SweepConfig) -> None:
    """Keeps what varies, for `stemcell-lit report`."""
    text = json.dumps({"format": FORMAT, **asdict(sweep)}, indent=1)
    write_whole(out / "sweep.json", text + "\n")


def check_reports(out: Path, sweep: SweepConfig) -> None:
    """Refuses a folder in which `make_reports` would replace something of the user's; to be called before the work.

    Raises:
        UserError: what is in the way.
    """
    for table in tables_of(out, sweep):
        check_report(table.out)
    if sweep.key is not None:
        check_files(out, ["sweep.json", "sweep.csv", "sweep.md", "report.html"])
        check_target(out / "figures", "figures")


def make_reports(out: Path, baseline: str = "flat", resamples: int = 2000, seed: int = 0) -> None:
    """Writes and prints the report of a folder of results, or of every value of a sweep and of all together.

    Raises:
        UserError: results are missing, broken or do not belong together.
    """
    file = out / "sweep.json"
    if not os.path.lexists(file):
        _report(out, baseline, resamples, seed)
        return
    plain = form.read_json(file, SWEEP, "run the sweep again")
    sweep = SweepConfig(**{k: v for k, v in plain.items() if k != "format"})
    check_reports(out, sweep)
    tables = tables_of(out, sweep)
    advices = []
    for table in tables:
        print(printable(f"{sweep.key} = {as_override(table.value)}"))
        advices.append(_report(table.out, baseline, resamples, seed))
    together = pd.concat(
        [
            read_table(t.out).assign(value=as_override(t.value), patches=_labelled(t.out))
            for t in tables
        ],
        ignore_index=True,
    )
    macro = together[together["class"].str.match(r"(macro/.*)?$")]
    first = ["value", "patches"]
    macro = macro[[*first, *[c for c in macro.columns if c not in first]]]
    picture = draw(macro, tables, sweep, baseline)
    page = _page(out, macro, tables, sweep, baseline, picture, advices)
    with whole_or_absent(out / "figures", "figures") as folder:
        (folder / "sweep.png").write_bytes(picture)
    write_whole(out / "sweep.csv", to_csv(macro, "%.6g"))
    write_whole(out / "sweep.md", _markdown(macro, sweep, advices))
    write_whole(out / "report.html", page)
    print(printable(out / "report.html"))


def _report(out: Path, baseline: str, resamples: int, seed: int) -> Advice:
    """Writes and prints one table, and says what to do with it."""
    check_report(out)
    results = comparable(collect(out), baseline)
    advice = write_report(results, resamples, seed)
    print_table(out, results.notes, advice.lines)
    return advice


def _labelled(out: Path) -> int:
    """Labelled training patches of a trial, the mean over folds."""
    return round(
        float(np.mean([sum(trial.info["data"]["real"].values()) for trial in collect(out)]))
    )


def _names(macro: pd.DataFrame, form: str = "{} ({:,} patches)") -> dict[str, str]:
    """Value -> what it is called: with its number of training patches where that varies.

    Whole groups are labelled, so a share of them says little about the number of patches.
    """
    one = macro.drop_duplicates("value")
    patches = {str(v): int(n) for v, n in zip(one["value"], one["patches"], strict=True)}
    varies = len(set(patches.values())) > 1
    return {v: form.format(v, n) if varies else v for v, n in patches.items()}


def draw(macro: pd.DataFrame, tables: Sequence[Table], sweep: SweepConfig, baseline: str) -> bytes:
    """Macro TPR and F1 of every method over the values, with 95 % intervals, as PNG.

    Numbers stand at their place on the axis, on a logarithmic one where they span a factor of ten; names side by side.
    Where values differ in labelled training patches (`patches` of `macro`), the ticks tell how many.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return png(_drawn(macro, tables, sweep, baseline))


def _drawn(macro: pd.DataFrame, tables: Sequence[Table], sweep: SweepConfig, baseline: str) -> Any:
    values = [t.value for t in tables]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    places = np.array(values if numeric else range(len(values)), np.float64)
    methods, names = list(dict.fromkeys(macro["method"])), _names(macro, "{}\n{:,}")
    label = sweep.label or sweep.key or ""
    if any("\n" in name for name in names.values()):
        label += "\n(second line: labelled training patches)"
    colour = colours(methods, baseline)
    figure, axes = blank_figure(9.5, 3.8, 1, len(TITLES))
    wide = numeric and places.min() > 0 and places.max() / places.min() >= 10
    step = 0.0 if wide or len(places) < 2 else 0.012 * (places.max() - places.min())
    for axis, (metric, title) in zip(axes.flat, TITLES.items(), strict=True):
        for i, method in enumerate(methods):
            rows = macro[
                (macro["method"] == method) & (macro["metric"] == metric) & (macro["class"] == "")
            ].set_index("value")
            rows = rows.reindex([as_override(v) for v in values])
            aside = i - (len(methods) - 1) / 2  # so that no interval hides another
            x = places * 1.03**aside if wide else places + aside * step
            mean, low, high = (100 * rows[c].to_numpy() for c in ("mean", "low", "high"))
            axis.errorbar(
                *(x, mean),
                yerr=np.nan_to_num([mean - low, high - mean]),
                marker="o",
                ms=4,
                lw=1.4 if numeric else 0,
                elinewidth=0.9,
                capsize=2,
                color=colour[method],
                label=method,
            )
        if wide:
            axis.set_xscale("log")
        axis.set_xticks(places, [names[as_override(v)] for v in values])
        axis.minorticks_off()
        axis.set(xlabel=label, title=f"macro {title}, %")
    handles = axes.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(5, len(methods)))
    return figure


def _cells(macro: pd.DataFrame, metric: str) -> tuple[list[str], list[str], Mapping[Any, str]]:
    """Names of the values, methods, and (name, method) -> what stands in the table."""
    rows = macro[(macro["metric"] == metric) & (macro["class"] == "")]
    told, names = {}, _names(macro)
    for row in rows.to_dict("records"):
        text = f"{100 * row['mean']:.1f}"
        if math.isfinite(row["delta"]):
            text += f", {points(row['delta'])}"
        if math.isfinite(row["delta_low"]):
            ends = f"{points(row['delta_low'])} to {points(row['delta_high'])}"
            text += f" ({ends}): {verdict_word(row)}"
        told[names[row["value"]], row["method"]] = text
    return list(names.values()), list(dict.fromkeys(rows["method"])), told


def _markdown(macro: pd.DataFrame, sweep: SweepConfig, advices: Sequence[Advice]) -> str:
    names = _names(macro).values()
    lines = [
        f"- {in_markdown(sweep.key)} = {in_markdown(name)}: {in_markdown(advice.use)}"
        for name, advice in zip(names, advices, strict=True)
    ]
    lines += ["", "Macro scores in %, difference to the baseline at the same value in points.", ""]
    for metric, title in TITLES.items():
        values, methods, told = _cells(macro, metric)
        rows = [[v, *(told.get((v, m), "–") for m in methods)] for v in values]
        lines += [*markdown_table([f"{title}, {sweep.key}", *methods], rows), ""]
    return "\n".join(lines)


def _page(
    out: Path,
    macro: pd.DataFrame,
    tables: Sequence[Table],
    sweep: SweepConfig,
    baseline: str,
    picture: bytes,
    advices: Sequence[Advice],
) -> str:
    return render(
        Path(__file__).with_suffix(".html.j2"),
        title=out.name,
        sweep=sweep,
        baseline=baseline,
        leaky=sweep.key == "split.kind",
        picture=base64.b64encode(picture).decode("ascii"),
        metrics=[(title, *_cells(macro, metric)) for metric, title in TITLES.items()],
        pages=[
            (as_override(t.value), f"values/{t.name}/report.html", advice)
            for t, advice in zip(tables, advices, strict=True)
        ],
    )
