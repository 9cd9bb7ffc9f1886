"""From the cells' results to a table, pictures and one page that says whether the gain is real.

Everything here is computed from `cells/*/result.json`, their `predictions.parquet` and the patch
stores. Where a store has moved, its pictures are left out and the page says so.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from stemcell_lit.data.patches import PatchStore, whole_or_absent, write_whole
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import calibration_error, confusion, reliability
from stemcell_lit.evaluate.statistics import (
    ALPHA,
    METRICS,
    claim,
    compare,
    contrasts,
    effect_sizes,
    group_counts,
    judge,
    points,
    values,
)
from stemcell_lit.experiment.gallery import generator_section
from stemcell_lit.schema import RunCommand

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

Row = Mapping[str, Any]  # of the table

FORMAT = 1  # of result.json
CLAIM = 0.02  # the paper's gain in TPR and F1
FULL = "temporal_gan"  # the paper's whole method

# The order of the table, and what each row is to a reader who has not seen the configuration.
METHODS = {
    "time_only": "the clock alone: p(class | time), no picture",
    "flat": "one network on the real patches as they are",
    "flat_sampler": "one network, every class drawn equally often",
    "flat_weighted": "one network, rare classes weigh more in the loss",
    "flat_focal": "one network, focal loss",
    "flat_logit": "one network, logit-adjusted loss (at tau 1: balanced softmax)",
    "flat_crt": "one network, then a new last layer on balanced classes (cRT)",
    "flat_mixup": "one network, mixtures of patches and labels (mixup)",
    "flat_strong": "one network, strong augmentation",
    "flat_vgg": "the paper's network and recipe: VGG-19-BN, SGD",
    "flat_pseudo": "one network, rare classes filled with pseudo-labelled patches",
    "flat_gan": "one network, rare classes filled with generated patches",
    "flat_temporal": "one network under the constraint in time, no tree",
    "hierarchy": "a tree of networks",
    "hierarchy_gan": "a tree of networks, every stage filled with generated patches",
    "temporal_hard": "as temporal, each patch down the likeliest branch alone",
    "temporal": "a tree of networks under a constraint in time",
    "temporal_gan_hard": "as the full method, each patch down the likeliest branch alone",
    "temporal_gan": "the full method: tree, constraint in time and generated patches",
}
# What each part of the method adds: fixed comparisons, of which a report has those whose methods were run.
PARTS = (
    ("generated patches", "one network", "flat_gan", "flat"),
    ("generated patches instead of balanced batches", "one network", "flat_gan", "flat_sampler"),
    ("generated patches", "tree", "hierarchy_gan", "hierarchy"),
    ("generated patches", "tree, time", "temporal_gan", "temporal"),
    ("time", "one network", "flat_temporal", "flat"),
    ("time", "tree", "temporal", "hierarchy"),
    ("the tree", "no time", "hierarchy", "flat"),
    ("the tree", "time", "temporal", "flat_temporal"),
    ("adding up, not hard routing", "tree, time", "temporal", "temporal_hard"),
    ("adding up, not hard routing", "full method", "temporal_gan", "temporal_gan_hard"),
)
BEST = "the full method instead of the best without generated patches"
TITLES = {"tpr": "TPR", "f1": "F1"}
# Okabe and Ito's palette, then Tol's muted one: told apart under every common colour blindness.
GREY = "#8a8f98"  # the baseline
PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#332288", "#882255", "#999933", "#117733", "#aa4499", "#111111"),
)

# of all pictures
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.edgecolor": "#9aa0a6",
    "xtick.color": "#444",
    "ytick.color": "#444",
    "legend.frameon": False,
}

# What does not make another row of the table: fold and seed are averaged over, the rest is where
# and how fast a cell was computed.
_NOT_SETTINGS = re.compile(
    r"(seed|generator_seed|tune_seed|hierarchy\.subsets\..*|out|artifacts|split\.fold|data\.(store|workers|min_class_patches)"
    r"|(logger|trainer|method)\..*)$"
)


@dataclass
class Result:
    """A finished cell.

    Attributes:
        folder: where it lies.
        info: the content of its result.json.
        method: its row of the table: the method's name, and what tells it from others of that name.
    """

    folder: Path
    info: dict[str, Any]
    method: str

    @property
    def fold(self) -> int:
        """Which fold was tested."""
        return int(self.info["fold"])

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.info["seed"])

    @property
    def classes(self) -> list[str]:
        """Class names in their fixed order."""
        return list(self.info["classes"])

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """A row per test patch: patch (row of the store), group, label, predicted, p/<class>."""
        file = self.folder / "predictions.parquet"
        needed = ["patch", "group", "label", "predicted", *(f"p/{name}" for name in self.classes)]
        try:
            table = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: not readable ({error}); remove {self.folder} and run that cell again"
            ) from error
        missing = [column for column in needed if column not in table]
        if missing:
            raise UserError(
                f"{file}: lacks the columns {missing}; remove {self.folder} and run that cell again"
            )
        return table


@dataclass
class Results:
    """Cells that can be compared, and what was left out.

    Attributes:
        out: the folder of results.
        baseline: what the others are compared with.
        methods: rows of the table, the baseline first, the most complete last.
        cells: of these methods, every method with the same folds and seeds.
        notes: what was left out, in sentences.
    """

    out: Path
    baseline: str
    methods: list[str]
    cells: list[Result]
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Class names in their fixed order."""
        return self.cells[0].classes

    @property
    def full(self) -> str | None:
        """The method of the claim: the paper's where it ran, else the last; None: only baseline."""
        others = self.methods[1:]
        return FULL if FULL in others else (others[-1] if others else None)

    @property
    def seeds(self) -> list[int]:
        """Seeds that every method has."""
        return sorted({cell.seed for cell in self.cells})

    @property
    def folds(self) -> list[int]:
        """Folds that every method has."""
        return sorted({cell.fold for cell in self.cells})

    @cached_property
    def groups(self) -> list[str]:
        """Names of all tested groups."""
        return sorted({str(g) for cell in self.cells for g in cell.predictions["group"].unique()})

    @property
    def subsets(self) -> dict[str, list[str]]:
        """Named subsets of the classes, of the hierarchy's file, that have scores of their own."""
        given = self.cells[0].info["config"].get("hierarchy", {}).get("subsets") or {}
        return {str(k): list(v) for k, v in given.items() if set(v) <= set(self.classes)}

    def of(self, method: str) -> list[Result]:
        """Its cells by seed, then fold."""
        return sorted(
            (cell for cell in self.cells if cell.method == method), key=lambda c: (c.seed, c.fold)
        )

    def tested(self, method: str) -> pd.DataFrame:
        """Its test patches of all folds and seeds, with columns `seed` and `fold`."""
        parts = [c.predictions.assign(seed=c.seed, fold=c.fold) for c in self.of(method)]
        return pd.concat(parts, ignore_index=True)

    def counts(self, method: str) -> np.ndarray:
        """int64 (seeds, groups, classes, classes): confusion counts, rows true."""
        tested = self.tested(method)
        return np.stack(
            [
                group_counts(
                    *(part[column].to_numpy() for column in ("label", "predicted", "group")),
                    classes=self.classes,
                    groups=self.groups,
                )
                for part in (tested[tested["seed"] == seed] for seed in self.seeds)
            ]
        )

    def real(self) -> PatchStore:
        """The patches of these results.

        Raises:
            UserError: the store has moved, or changed since the runs.
        """
        info = self.cells[0].info
        path = Path(info["store"])
        # a relative path was written from where the run was started, perhaps above `out`
        places = [path, *(place / path for place in (self.out, *self.out.resolve().parents))]
        store = PatchStore.open(next((p for p in places if p.exists()), path))
        if store.content_hash != info["data"]["content_hash"]:
            raise UserError(f"{store.path}: has changed since the runs")
        return store

    def generated(self) -> tuple[Result, PatchStore] | None:
        """A cell with generated patches, of the full method where it has some, and these patches.

        Raises:
            UserError: the store has moved.
        """
        cells = [cell for cell in self.cells if cell.info.get("generator")]
        if not cells:
            return None
        cell = min(cells, key=lambda c: (c.method != self.full, c.seed, c.fold))
        return cell, PatchStore.open(self.out / cell.info["generator"]["generated"])


# --- reading ----------------------------------------------------------------------------------------


def collect(out: str | Path) -> list[Result]:
    """Every finished cell in a folder of results.

    Cells of one method with other settings (a sweep over them) become methods of their own, named
    by what tells them apart, such as `flat_gan [mix.amount=1000]`.

    Args:
        out: the folder of results; cells lie in its `cells/`.

    Returns:
        Cells by method, seed and fold.

    Raises:
        UserError: no cells, a cell that cannot be read, or cells on different data.
    """
    out = Path(out)
    folders = sorted(p for p in (out / "cells").glob("*") if p.is_dir() and p.name[0] != ".")
    if not folders:
        raise UserError(
            f"{out}: no results in {out / 'cells'}; make them with "
            f"`stemcell-lit reproduce out={out}`, or one with `stemcell-lit run out={out}`"
        )
    cells = [Result(folder, _read(folder / "result.json"), "") for folder in folders]
    first = cells[0]
    for cell in cells[1:]:
        for name, found in (
            ("classes", lambda c: c.classes),
            ("data", lambda c: c.info["data"]["content_hash"]),
            ("split", lambda c: c.info["split"]["kind"]),
        ):
            if found(cell) != found(first):
                raise UserError(
                    f"{cell.folder} and {first.folder} have different {name} "
                    f"({_short(found(cell))}, {_short(found(first))}) and cannot stand in one "
                    "table; keep each in an out= of its own"
                )
    _name_methods(cells)
    seen: dict[tuple[str, int, int], Result] = {}
    for cell in cells:
        other = seen.setdefault((cell.method, cell.fold, cell.seed), cell)
        if other is not cell:
            raise UserError(
                f"{cell.folder} and {other.folder} are both {cell.method}, fold {cell.fold}, "
                f"seed {cell.seed}; remove one of them"
            )
    rank = {name: i for i, name in enumerate(METHODS)}
    return sorted(
        cells,
        key=lambda c: (rank.get(c.info["method"], len(rank) - 1.5), c.method, c.seed, c.fold),
    )


def _read(file: Path) -> dict[str, Any]:
    again = f"remove {file.parent} and run that cell again"
    if not file.is_file():
        raise UserError(f"{file}: no such file, the cell is not finished; {again}")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable ({error}); {again}") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        found = info.get("format") if isinstance(info, dict) else "no object"
        raise UserError(f"{file}: format {found}, this version reads {FORMAT}; {again}")
    needed = ("method", "fold", "seed", "classes", "data", "split", "config")
    missing = [key for key in needed if key not in info]
    if missing:
        raise UserError(f"{file}: lacks {missing}; {again}")
    return info


def _name_methods(cells: Sequence[Result]) -> None:
    """Gives every cell its row: the method's name, with settings where one name has several."""
    for name in {cell.info["method"] for cell in cells}:
        same = [cell for cell in cells if cell.info["method"] == name]
        settings = [
            {k: v for k, v in flatten(c.info["config"]).items() if not _NOT_SETTINGS.match(k)}
            for c in same
        ]
        keys = sorted(set().union(*settings))
        differ = [k for k in keys if len({as_override(s.get(k)) for s in settings}) > 1]
        for cell, setting in zip(same, settings, strict=True):
            told = ", ".join(f"{k}={as_override(setting.get(k))}" for k in differ)
            cell.method = f"{name} [{told}]" if told else name


def comparable(cells: Sequence[Result], baseline: str) -> Results:
    """What of the cells can be compared: for every method the same folds and seeds.

    A method without a single seed that has every fold is left out, where the baseline has one: a table that was
    stopped halfway must not take the folds from all the others.

    Raises:
        UserError: the baseline has no cells, or nothing is common to all methods.
    """
    out = cells[0].folder.parent.parent
    names = list(dict.fromkeys(cell.method for cell in cells))
    several = [m for m in names if m.startswith(f"{baseline} [")]
    if several:
        raise UserError(
            f"{out}: the baseline's results are of several settings, {several}; give new ones a folder of their own "
            f"(out=..., artifacts={out}/artifacts keeps what was trained), move the old ones out of {out}/cells, or "
            f"choose one with \"baseline='{several[0]}'\""
        )
    if baseline not in names:
        raise UserError(
            f"{out}: no results of the baseline {baseline!r}, only of {names}; run it with "
            f"`stemcell-lit run out={out} method={baseline}`, or choose another with baseline="
        )
    have = {m: {(c.seed, c.fold) for c in cells if c.method == m} for m in names}
    everything = set().union(*have.values())
    folds = {fold for _, fold in everything}
    complete = {m: {s for s, _ in have[m] if all((s, f) in have[m] for f in folds)} for m in names}
    notes = []
    for m in [m for m in names if complete[baseline] and not complete[m] & complete[baseline]]:
        names.remove(m)
        notes.append(
            f"{m} has {len(have.pop(m))} of {len(everything)} cells and is left out. Run the same command again to "
            "fill them in."
        )
    everything = set().union(*have.values())
    common = set.intersection(*have.values())
    whole = {seed for seed, _ in common if all((seed, fold) in common for fold in folds)}
    kept = {pair for pair in common if pair[0] in whole} if whole else common
    if not kept:
        raise UserError(
            f"{out}: no fold and seed that all methods have ({names}); finish the sweep, the same "
            "command goes on where it stopped"
        )
    if kept != everything:
        gone = [f"seed {s} fold {f}" for s, f in sorted(everything - kept)]
        lacking = sorted(m for m in names if have[m] != everything)
        notes.append(
            f"Not finished: {', '.join(lacking)} lack some folds or seeds, so {', '.join(gone)} "
            "are left out for all methods. Run the same command again to fill them in."
        )
    if not whole:
        notes.append("No seed has every fold yet: not every patch has been tested.")
    order = [baseline, *(name for name in names if name != baseline)]
    chosen = [c for c in cells if c.method in have and (c.seed, c.fold) in kept]
    return Results(out, baseline, order, chosen, notes)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def as_override(value: Any) -> str:
    """A value as Hydra's command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(as_override(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{as_override(v)}" for k, v in value.items()) + "}"
    return str(value)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


# --- the report -------------------------------------------------------------------------------------


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
        UserError: results are missing, broken or do not belong together.
    """
    results = comparable(collect(out), baseline)
    counts = {method: results.counts(method) for method in results.methods}
    # only the paper's method was asked about beforehand; the last of a list is a choice made later
    primary = results.full if results.full == FULL else None
    table = compare(
        counts,
        baseline,
        results.classes,
        primary=primary,
        subsets=results.subsets,
        resamples=resamples,
        seed=seed,
    )
    parts = _parts(results, table, counts, resamples, seed)
    pictures = _Pictures(results, table, counts, seed)
    figures = pictures.make()
    page = _page(results, table, parts, counts, figures, pictures.facts, resamples)
    # all is computed before anything is written: a failure leaves the old report as it was
    with whole_or_absent(results.out / "figures") as folder:
        for name, image in figures.items():
            (folder / f"{name}.png").write_bytes(image)
    write_whole(results.out / "table.csv", table.to_csv(index=False, float_format="%.6g"))
    write_whole(results.out / "parts.csv", parts.to_csv(index=False, float_format="%.6g"))
    write_whole(results.out / "table.md", _markdown(results, table, parts))
    write_whole(results.out / "report.html", page)
    return results.out / "report.html"


def read_table(out: str | Path) -> pd.DataFrame:
    """table.csv of a folder of results; `class` is an empty string in the macro rows.

    Raises:
        UserError: there is none.
    """
    file = Path(out) / "table.csv"
    if not file.is_file():
        raise UserError(f"{file}: no such file; make it with `stemcell-lit report out={out}`")
    return pd.read_csv(file, keep_default_na=False, na_values=_NA)


_DPI = 150  # of the pictures
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
    parts = pd.read_csv(Path(out) / "parts.csv", keep_default_na=False, na_values=_NA)
    if len(parts):
        _print_parts(console, parts)
    # a path is printed whole, for it is to be copied
    console.print(str(Path(out) / "report.html"), soft_wrap=True, highlight=False, markup=False)


def _print_macro(console: Console, table: pd.DataFrame, which: str) -> None:
    from rich.table import Table

    over = f" over {which.removeprefix('macro/')} classes" if which else ""
    title = f"Macro TPR (recall) and F1{over} in %, 95 % intervals"
    view = Table(title=title, title_justify="left")
    view.add_column("method", no_wrap=True)
    for title in TITLES.values():
        view.add_column(title, justify="right", no_wrap=True)
        view.add_column("difference in points")
    for method, rows in table[table["class"] == which].groupby("method", sort=False):
        line = [str(method)]
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
        view.add_row(name, f"{method} - {other}", *(_coloured(of[m]) for m in METRICS))
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
    return f"[{colour}]{told}[/]" if colour else told


def _markdown(results: Results, table: pd.DataFrame, parts: pd.DataFrame) -> str:
    macro = table[table["class"] == ""]
    lines = [
        "Macro TPR (recall) and F1 in %, with 95 % intervals over "
        f"{len(results.groups)} groups and {len(results.seeds)} seeds.",
        "",
        "| method | metric | mean | interval | difference | interval | p | verdict |",
        "| --- | --- | ---: | --- | ---: | --- | ---: | --- |",
    ]
    lines += [_markdown_row(row, row["method"]) for row in macro.to_dict("records")]
    if len(parts):
        lines += [
            "",
            "What each part adds:",
            "",
            "| part | where | methods | metric | difference | interval | p | verdict |",
            "| --- | --- | --- | --- | ---: | --- | ---: | --- |",
        ]
    for row in parts.to_dict("records"):
        names = f"{row['part']} | {row['where']} | {row['method']} - {row['other']}"
        lines.append(f"| {names} | {TITLES[row['metric']]} {_difference(row)}")
    lines += [
        "",
        "By class:",
        "",
        "| method | class | metric | mean | interval | difference | interval | p | verdict |",
        "| --- | --- | --- | ---: | --- | ---: | --- | ---: | --- |",
    ]
    each = table[table["class"] != ""]
    lines += [
        _markdown_row(row, f"{row['method']} | {row['class']}") for row in each.to_dict("records")
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(row: Mapping[Any, Any], name: str) -> str:
    return (
        f"| {name} | {TITLES[row['metric']]} | {_percent(row['mean'])} "
        f"| {_range(row['low'], row['high'])} {_difference(row)}"
    )


def _difference(row: Mapping[Any, Any]) -> str:
    """The last columns of a line in Markdown."""
    word = row["verdict"].rsplit(": ", 1)[-1]
    return (
        f"| {_points(row['delta'])} | {_range(row['delta_low'], row['delta_high'], True)} "
        f"| {_p(row['p'])} | {word} |"
    )


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


# --- pictures ---------------------------------------------------------------------------------------


class _Pictures:
    """Makes the figures as PNG; what they show in numbers is left in `facts`."""

    def __init__(
        self, results: Results, table: pd.DataFrame, counts: Mapping[str, np.ndarray], seed: int
    ):
        self.results, self.counts, self.seed = results, counts, seed
        self.rows = _rows(table)
        self.facts: dict[str, Any] = {
            "notes": [],
            "generator": None,
            "nearest": None,
            "stages": None,
            "average_precision": {},
        }
        self.colour = colours(results.methods, results.baseline)

    def make(self) -> dict[str, bytes]:
        import matplotlib

        made: dict[str, bytes] = {}
        with matplotlib.rc_context(STYLE):
            for name, draw in (
                ("macro_difference", self.macro_difference),
                ("class_difference", self.class_difference),
                ("confusion", self.confusion),
                ("stages", self.stages),
                ("precision_recall", self.precision_recall),
                ("samples", self.samples),
                ("entropy", self.entropy),
                ("curves", self.curves),
                ("hardest", self.hardest),
                ("reliability", self.reliability),
            ):
                figure = draw()
                if figure is not None:
                    made[name] = png(figure)
        return made

    # -- numbers

    def macro_difference(self) -> Figure | None:
        others = self.results.methods[1:]
        if not others:
            return None
        figure, axes = blank_figure(9, 1.1 + 0.36 * len(others), 1, 2, sharey=True)
        for axis, metric in zip(axes.flat, METRICS, strict=True):
            for i, method in enumerate(others):
                row = self._row(method, metric)
                self._dot(axis, row, i, self.colour[method])
            axis.set_yticks(range(len(others)), others)
            axis.set_ylim(len(others) - 0.4, -0.6)
            axis.axvline(100 * CLAIM, color="#999", lw=0.8, ls=":")
            axis.set_title(f"macro {TITLES[metric]}, points against {self.results.baseline}")
        return figure

    def class_difference(self, most: int = 5) -> Figure | None:
        """The last methods of the table, which are the most complete: more would not be legible."""
        others, classes = self.results.methods[1:][-most:], self.results.classes
        if not others:
            return None
        height = 1.2 + len(classes) * (0.24 + 0.14 * len(others))
        figure, axes = blank_figure(9, height, 1, 2, sharey=True)
        for axis, metric in zip(axes.flat, METRICS, strict=True):
            for j, name in enumerate(classes):
                for i, method in enumerate(others):
                    shift = (i - (len(others) - 1) / 2) * 0.7 / max(len(others), 1)
                    self._dot(axis, self._row(method, metric, name), j + shift, self.colour[method])
            axis.set_yticks(range(len(classes)), classes)
            axis.set_ylim(len(classes) - 0.45, -0.55)
            for j in range(1, len(classes)):
                axis.axhline(j - 0.5, color="#eee", lw=0.8)
            axis.set_title(f"{TITLES[metric]}, points against {self.results.baseline}")
        handles = [axes.flat[0].plot([], [], "o", color=self.colour[m], label=m)[0] for m in others]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(others)))
        return figure

    def _row(self, method: str, metric: str, name: str = "") -> Row:
        return self.rows[method, metric, name]

    @staticmethod
    def _dot(axis: Axes, row: Row, y: float, colour: str) -> None:
        if not math.isfinite(row["delta"]):
            return
        if math.isfinite(row["delta_low"]):
            ends = [100 * row["delta_low"], 100 * row["delta_high"]]
            axis.plot(ends, [y, y], color=colour, lw=1.8, solid_capstyle="butt")
            sure = judge(row["delta_low"], row["delta_high"], row["p"]) != "not shown"
        else:
            sure = False
        face = colour if sure else "white"
        axis.plot([100 * row["delta"]], [y], "o", ms=5.5, mec=colour, mfc=face, zorder=3)
        axis.axvline(0, color="#444", lw=0.8, zorder=0)

    def confusion(self) -> Figure:
        classes, methods = self.results.classes, self.results.methods
        side = max(2.8, 0.5 * len(classes) + 1.1)
        rows = math.ceil(len(methods) / max(1, min(4, int(11 // side))))
        columns = math.ceil(len(methods) / rows)  # four methods stand two by two, not three and one
        figure, axes = blank_figure(side * columns, (side + 0.2) * rows, rows, columns, sharey=True)
        for axis, method in zip(axes.flat, methods, strict=False):
            self._matrix(axis, self.counts[method].sum((0, 1)), classes, method)
        for axis in axes[:, 0]:
            axis.set_ylabel("true")
        for axis in axes.flat[len(methods) :]:
            axis.remove()
        return figure

    def stages(self) -> Figure | None:
        """Confusion of each stage of the full method on the test patches that belong to it."""
        method = self.results.full or self.results.baseline
        found: dict[str, tuple[list[str], np.ndarray]] = {}
        for cell in self.results.of(method):
            for stage in cell.info.get("stages", []):
                if "confusion" in stage and "groups" in stage:
                    matrix = np.array(stage["confusion"], np.int64)
                    names, total = found.get(stage["node"], (stage["groups"], 0 * matrix))
                    found[stage["node"]] = (names, total + matrix)
        if len(found) < 2:
            return None  # one stage is what the matrix of the whole shows
        self.facts["stages"] = method
        side = max(2.8, 0.5 * max(len(names) for names, _ in found.values()) + 1.1)
        columns = min(len(found), max(1, int(11 // side)))
        rows = math.ceil(len(found) / columns)
        figure, axes = blank_figure(side * columns, (side + 0.2) * rows, rows, columns)
        for axis, (node, (names, matrix)) in zip(axes.flat, found.items(), strict=False):
            self._matrix(axis, matrix, names, f"stage {node}")
        for axis in axes.flat[len(found) :]:
            axis.remove()
        return figure

    def precision_recall(self, most: int = 5) -> Figure:
        """Each class against the rest, test patches of all folds and seeds pooled; the table's last methods."""
        from sklearn.metrics import average_precision_score, precision_recall_curve

        results = self.results
        methods = [results.baseline, *results.methods[1:][-most:]]
        columns = min(4, len(results.classes))
        rows = math.ceil(len(results.classes) / columns)
        figure, axes = blank_figure(2.7 * columns, 2.5 * rows, rows, columns)
        area: dict[str, dict[str, float]] = {m: {} for m in methods}
        for method in methods:
            tested = results.tested(method)
            for axis, name in zip(axes.flat, results.classes, strict=False):
                truth = (tested["label"] == name).to_numpy()
                if not truth.any():
                    continue
                p = tested[f"p/{name}"].to_numpy()
                precision, recall, _ = precision_recall_curve(truth, p)
                each = [
                    average_precision_score(part["label"] == name, part[f"p/{name}"])
                    for _, part in tested.groupby("seed")
                ]
                area[method][name] = float(np.mean(each))
                axis.plot(recall, precision, color=self.colour[method], lw=1.2)
        for i, (axis, name) in enumerate(zip(axes.flat, results.classes, strict=False)):
            axis.set(xlim=(0, 1.02), ylim=(0, 1.02), title=name)
            axis.set_xlabel("recall (TPR)" if i >= len(results.classes) - columns else "")
            axis.set_ylabel("precision" if i % columns == 0 else "")
        for axis in axes.flat[len(results.classes) :]:
            axis.remove()
        handles = [axes.flat[0].plot([], [], color=self.colour[m], label=m)[0] for m in methods]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(methods)))
        self.facts["average_precision"] = area
        return figure

    def curves(self) -> Figure | None:
        """Loss and validation macro F1 of every stage; methods that share a stage share a line."""
        rows = [
            {"node": stage["node"], "method": cell.method, "cell": cell.folder.name, **point}
            for cell in self.results.cells
            for stage in cell.info.get("stages", [])
            for point in stage.get("curve", [])
        ]
        if not rows:
            return None
        data = pd.DataFrame(rows)
        nodes = list(dict.fromkeys(data["node"]))
        shown = [k for k in ("loss", "val/macro/f1") if k in data]
        if not shown:
            return None
        wide = min(4.0, max(2.2, 11 / len(nodes)))
        figure, axes = blank_figure(wide * len(nodes), 2.4 * len(shown), len(shown), len(nodes))
        for row, key in zip(axes, shown, strict=True):
            for axis, node in zip(row, nodes, strict=True):
                part = data[data["node"] == node].dropna(subset=[key])
                for (method, _), line in part.groupby(["method", "cell"], sort=False):
                    axis.plot(
                        line["images"] / 1000, line[key], color=self.colour[method], lw=1, alpha=0.7
                    )
                axis.set_title(f"stage {node}" if key == shown[0] else "")
                if key == shown[-1]:
                    axis.set_xlabel("thousand images")
            row[0].set_ylabel("training loss" if key == "loss" else "validation macro F1")
        used = [m for m in self.results.methods if m in set(data["method"])]
        handles = [axes.flat[0].plot([], [], color=self.colour[m], label=m)[0] for m in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(used)))
        return figure

    @staticmethod
    def _matrix(axis: Axes, matrix: np.ndarray, names: Sequence[str], title: str) -> None:
        """Draws a confusion matrix, rows true, in % of each row."""
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*matrix.shape):
            axis.text(
                *(j, i, f"{100 * share[i, j]:.0f}\n({matrix[i, j]})"),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share[i, j] > 0.5 else "#333",
            )
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(title)
        axis.set_xlabel("predicted")

    def reliability(self) -> Figure:
        methods = self.results.methods
        figure, axes = blank_figure(9.5, 3.4, 1, 2)
        errors = {}
        for method in methods:
            tested = self.results.tested(method)
            sure = _confidence(tested, self.results.classes)
            right = (tested["label"] == tested["predicted"]).to_numpy()
            mean, share, number = reliability(sure, right)
            enough = number >= 10 * len(self.results.seeds)  # fewer say nothing of a share
            errors[method] = calibration_error(sure, right)
            axes.flat[0].plot(
                *(mean[enough], share[enough], "o-"),
                color=self.colour[method],
                ms=3.5,
                lw=1.2,
                label=f"{method}, error {errors[method]:.3f}",
            )
            axes.flat[1].hist(
                sure, np.linspace(0, 1, 21), histtype="step", color=self.colour[method]
            )
        axes.flat[0].plot([0, 1], [0, 1], color="#aaa", lw=0.8, ls=":")
        axes.flat[0].set(xlabel="how sure (probability of the call)", ylabel="share right")
        axes.flat[0].set_title("Sure and right")
        axes.flat[0].legend(fontsize=8, loc="best")
        axes.flat[1].set(xlabel="how sure (probability of the call)", ylabel="patches, all seeds")
        axes.flat[1].set_title("How often so sure")
        self.facts["calibration"] = errors
        return figure

    # -- patches

    @cached_property
    def _store(self) -> PatchStore | None:
        """The real patches; None (and a note) where they have moved or changed."""
        try:
            return self.results.real()
        except UserError as error:
            self.facts["notes"].append(f"Pictures of patches are left out: {error}.")
            return None

    @cached_property
    def _generator(self) -> tuple[Result, PatchStore] | None:
        """A cell with generated patches and these; None where there are none or they have moved."""
        try:
            found = self.results.generated()
        except UserError as error:
            self.facts["notes"].append(f"Generated patches are left out: {error}.")
            return None
        if found is not None:
            cell = found[0]
            self.facts["generator"] = {"method": cell.method, "fold": cell.fold, "seed": cell.seed}
        return found

    def _training(self, cell: Result, store: PatchStore) -> np.ndarray:
        """Rows of the training patches: of the training groups, and never a test patch."""
        inside = store.manifest["group"].isin(cell.info["split"]["train"]).to_numpy(copy=True)
        inside[cell.predictions["patch"].to_numpy()] = False
        return np.flatnonzero(inside)

    def samples(self) -> Figure | None:
        """Per class: real training patches, generated ones, and what in training is nearest."""
        if self._store is None or self._generator is None:
            return self._real_only()
        from stemcell_lit.data.patches import reduce_pixels

        (cell, fake), store, shown = self._generator, self._store, 10
        size = fake.pixels.shape[1]
        if store.size % size:
            self.facts["notes"].append(
                "Generated patches are of a size that real ones cannot take."
            )
            return None
        random = np.random.default_rng(self.seed)
        train = self._training(cell, store)
        labels = store.manifest["label"].to_numpy()
        panels: dict[str, np.ndarray] = {}
        rows: dict[str, np.ndarray] = {}
        for name in self.results.classes:
            mine = np.flatnonzero(fake.manifest["label"].to_numpy() == name)
            real = train[labels[train] == name]
            if len(mine) == 0 or len(real) == 0:
                continue
            rows[name] = random.permutation(mine)[:shown]
            panels[name] = random.permutation(real)[:shown]
        if not rows:
            return self._real_only()
        queries = np.concatenate([fake.pixels[rows[name]] for name in rows])
        near, distance = nearest(queries, store.pixels, train, size)
        held = random.permutation(cell.predictions["patch"].to_numpy())[: len(queries)]
        _, floor = nearest(
            reduce_pixels(store.pixels[np.sort(held)], size), store.pixels, train, size
        )
        self.facts["nearest"] = {
            "generated": float(np.median(distance)),
            "held_out": float(np.median(floor)),
        }
        columns = 2 if len(rows) > 1 else 1
        lines = math.ceil(len(rows) / columns)
        figure, axes = blank_figure(5.2 * columns, 1.75 * lines, lines, columns)
        start = 0
        for axis, name in zip(axes.flat, rows, strict=False):
            stop = start + len(rows[name])
            real = reduce_pixels(store.pixels[np.sort(panels[name])], size)
            found = reduce_pixels(store.pixels[near[start:stop]], size)
            _mosaic(axis, [real, queries[start:stop], found], shown)
            axis.set_yticks(
                (np.arange(3) + 0.5) * (size + 2) - 1, ["real", "generated", "nearest real"]
            )
            axis.set_title(name, loc="left")
            start = stop
        for axis in axes.flat[len(rows) :]:
            axis.remove()
        return figure

    def _real_only(self) -> Figure | None:
        """Real test patches per class, where nothing was generated."""
        store, classes = self._store, self.results.classes
        if store is None:
            return None
        random, shown = np.random.default_rng(self.seed), 12
        labels = store.manifest["label"].to_numpy()
        figure, axes = blank_figure(9, 0.85 * len(classes), len(classes), 1)
        for axis, name in zip(axes.flat, classes, strict=True):
            rows = np.sort(random.permutation(np.flatnonzero(labels == name))[:shown])
            _mosaic(axis, [store.finest[rows]], shown)
            axis.set_yticks([store.size / 2], [name])
        return figure

    def entropy(self) -> Figure | None:
        """Entropy histograms of real training and generated patches, per class."""
        if self._store is None or self._generator is None:
            return None
        try:
            from stemcell_lit.gan.quality import entropy, entropy_intersection
        except ImportError:
            return None
        from stemcell_lit.data.patches import reduce_pixels

        (cell, fake), store, most = self._generator, self._store, 2000
        size = fake.pixels.shape[1]
        if store.size % size:
            return None
        random = np.random.default_rng(self.seed)
        train, labels = self._training(cell, store), store.manifest["label"].to_numpy()
        sides = {}
        for name in self.results.classes:
            mine = np.flatnonzero(fake.manifest["label"].to_numpy() == name)
            real = train[labels[train] == name]
            if len(mine) and len(real):
                pick = [np.sort(random.permutation(part)[:most]) for part in (real, mine)]
                sides[name] = (reduce_pixels(store.pixels[pick[0]], size), fake.pixels[pick[1]])
        if not sides:
            return None
        columns = min(4, len(sides))
        lines = math.ceil(len(sides) / columns)
        figure, axes = blank_figure(2.7 * columns, 2.1 * lines, lines, columns)
        overlap = {}
        for axis, (name, (real, generated)) in zip(axes.flat, sides.items(), strict=False):
            bits = [entropy(real), entropy(generated)]
            edges = np.linspace(min(map(np.min, bits)), max(map(np.max, bits)) + 1e-6, 26)
            for side, colour, label in zip(
                bits, (GREY, PALETTE[1]), ("real", "generated"), strict=True
            ):
                axis.hist(side, edges, density=True, color=colour, alpha=0.55, label=label)
            overlap[name] = entropy_intersection(real, generated, seed=self.seed)
            axis.set_title(f"{name}: overlap {overlap[name][0]:.2f}")
            axis.set_xlabel("entropy, bits")
            axis.set_yticks([])
        for axis in axes.flat[len(sides) :]:
            axis.remove()
        handles = axes.flat[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
        self.facts["entropy"] = overlap
        return figure

    def hardest(self, shown: int = 16) -> Figure | None:
        """Test patches that the full method calls wrong and is surest of, over all seeds."""
        store, method = self._store, self.results.full or self.results.baseline
        if store is None:
            return None
        tested = self.results.tested(method)
        tested["sure"] = _confidence(tested, self.results.classes)
        wrong = tested[tested["label"] != tested["predicted"]]
        if wrong.empty:
            return None
        calls = wrong.groupby(["patch", "predicted"])["sure"].agg(["sum", "count"]).reset_index()
        calls["score"] = calls["sum"] / len(self.results.seeds)
        calls = calls.sort_values(["score", "patch"], ascending=[False, True])
        calls = calls.drop_duplicates("patch").head(shown)
        columns = min(8, len(calls))
        lines = math.ceil(len(calls) / columns)
        figure, axes = blank_figure(1.55 * columns, 2.25 * lines, lines, columns)
        for axis, call in zip(axes.flat, calls.to_dict("records"), strict=False):
            fact = store.manifest.iloc[int(call["patch"])]
            axis.imshow(store.finest[int(call["patch"])], cmap="gray", vmin=0, vmax=255)
            when = f", {fact['time_h']:.0f} h" if math.isfinite(fact["time_h"]) else ""
            axis.set_title(
                f"{fact['label']}\n→ {call['predicted']} {call['sum'] / call['count']:.2f}",
                fontsize=8,
                fontweight="normal",
                loc="left",
            )
            axis.set_xlabel(f"{str(fact['group'])[-18:]}{when}", fontsize=6.5, loc="left")
            axis.set(xticks=[], yticks=[])
        for axis in axes.flat[len(calls) :]:
            axis.remove()
        self.facts["hardest"] = {
            "method": method,
            "wrong": len(wrong),
            "tested": len(tested),
        }
        return figure


def nearest(
    queries: np.ndarray, pixels: np.ndarray, rows: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of some stored patches to each query, over its eight turns and flips.

    Args:
        queries: uint8 (n, size, size).
        pixels: uint8 (patches, height, width), perhaps memory-mapped; reduced to `size` here.
        rows: (m,) which of them to look at, in chunks.
        size: px.

    Returns:
        (n,) rows of the nearest, and (n,) root mean square distances in gray levels.
    """
    from stemcell_lit.data.patches import reduce_pixels

    n = len(queries)
    turned = [np.rot90(q, k, (1, 2)) for q in (queries, queries[:, :, ::-1]) for k in range(4)]
    a = np.stack(turned).reshape(8 * n, -1).astype(np.float32)
    best, found = np.full(n, np.inf), np.zeros(n, np.int64)
    for start in range(0, len(rows), 2048):
        part = rows[start : start + 2048]
        b = reduce_pixels(pixels[part], size).reshape(len(part), -1).astype(np.float32)
        squares = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
        squares = squares.reshape(8, n, -1).min(0)
        place = squares.argmin(1)
        least = squares[np.arange(n), place]
        better = least < best
        best[better], found[better] = least[better], part[place[better]]
    return found, np.sqrt(np.maximum(best, 0) / size**2)


def _confidence(tested: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(n,) probability of the predicted class."""
    p = tested[[f"p/{name}" for name in classes]].to_numpy(np.float64)
    place = pd.Index(classes).get_indexer(pd.Index(tested["predicted"]))
    return p[np.arange(len(p)), place]


def colours(methods: Sequence[str], baseline: str) -> dict[str, str]:
    """A colour for each method, grey for the baseline."""
    others = [m for m in methods if m != baseline]
    return {baseline: GREY} | {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(others)}


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format="png")
    return stream.getvalue()


def blank_figure(
    width: float, height: float, rows: int, columns: int, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of its own: pyplot would keep a list of all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _mosaic(axis: Axes, lines: Sequence[np.ndarray], columns: int) -> None:
    """Rows of patches side by side, two white pixels between them."""
    size = lines[0].shape[1]
    canvas = np.full((len(lines) * (size + 2) - 2, columns * (size + 2) - 2), 255, np.uint8)
    for i, line in enumerate(lines):
        for j, patch in enumerate(line[:columns]):
            y, x = i * (size + 2), j * (size + 2)
            canvas[y : y + size, x : x + size] = patch
    axis.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


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
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "points": _points, "p": _p}
    environment.globals |= {"interval": _range}
    info = [cell.info for cell in results.cells]
    seconds = sum(float(i.get("seconds") or 0) for i in info)
    images = {
        name: {
            "data": base64.b64encode(image).decode("ascii"),
            # px on the page: letters are then equally large in all pictures. A PNG's width is in bytes 16 to 19
            "width": round(int.from_bytes(image[16:20], "big") / _DPI * 96),
        }
        for name, image in figures.items()
    }
    return environment.get_template("report.html.j2").render(
        results=results,
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
        generator_section=Markup(generator_section(results)),
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
    rows, told = _rows(table), []
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
    told = [p for p in PARTS if p[2] in counts and p[3] in counts]
    rows = _rows(table)
    real = [
        m for m in results.methods if not any(cell.info.get("generator") for cell in results.of(m))
    ]
    if results.full == FULL and real:
        best = max(real, key=lambda m: rows[m, "f1", ""]["mean"])
        told.append((BEST, "", FULL, best))
    found = contrasts(counts, [p[2:] for p in told], resamples=resamples, seed=seed)
    for place, name in enumerate(("part", "where")):
        found.insert(place, name, [p[place] for p in told for _ in METRICS])
    return found


def _method_rows(results: Results, table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = _rows(table)
    sizes = effect_sizes(_matrices(results), results.baseline)
    return [
        {
            "name": method,
            "effect": dict(zip(METRICS, sizes.get(method, [math.nan] * 2), strict=True)),
            "about": METHODS.get(results.of(method)[0].info["method"], ""),
            "baseline": method == results.baseline,
            "scores": {metric: _score(rows[method, metric, ""]) for metric in METRICS},
        }
        for method in results.methods
    ]


def _class_rows(
    results: Results, table: pd.DataFrame, counts: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    rows = _rows(table)
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


def _rows(table: pd.DataFrame) -> dict[tuple[str, str, str], Row]:
    """The table's rows by method, metric and class (empty: macro)."""
    rows: Any = table.to_dict("records")
    return {(row["method"], row["metric"], row["class"]): row for row in rows}


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
    names = list(dict.fromkeys(c.info["method"] for c in results.cells))
    settings = {"out": str(results.out), "methods": names, "seeds": results.seeds}
    chosen = [f"{key}={as_override(value)}" for key, value in settings.items()]
    if results.baseline != "flat":
        chosen.append(f"baseline={results.baseline}")
    trees = {c["hierarchy.name"] for c in configs if c.get("hierarchy.name")}
    if len(trees) == 1:
        chosen.append(f"hierarchy={trees.pop()}")
    for key in sorted(configs[0]):
        found = {as_override(config.get(key)) for config in configs}
        skip = (
            r"(out|artifacts|seed|split\.fold|(hierarchy|method|logger|temporal|mix)\..*|.*\.name)$"
        )
        # without a value in the schema it is free-form and stands in the tree's own file
        if key not in usual or re.match(skip, key) or len(found) > 1:
            continue
        value = found.pop()
        if value != as_override(usual[key]):
            chosen.append(f"{key}={value}")
    out = shlex.quote(f"out={results.out}")
    report = f"stemcell-lit report {out}"
    if results.baseline != "flat":
        report += " " + shlex.quote(f"baseline={results.baseline}")
    return [" ".join(["stemcell-lit reproduce", *map(shlex.quote, chosen)]), report]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
