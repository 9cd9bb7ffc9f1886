"""Writes the measured tables and numbers of README and docs from benchmarks/results; `make docs-figures`.

A page marks a table by `<!-- figures:KIND NAME -->` and `<!-- end -->`, each on its own line, and a number within a
sentence by `<!--f:TABLE/METHOD/METRIC/COLUMN-->93.0<!--/f-->`. What lies between is replaced. With `--check` nothing is
written, and the exit status is 1 where a page differs from what was measured.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from stemcell_lit.base.artifacts import key_hash
from stemcell_lit.experiment.trial import relevant
from stemcell_lit.report.numbers import verdict_word
from stemcell_lit.settings.command_keys import RunCommand, typed
from stemcell_lit.settings.compose import compose

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
METRICS = ("tpr", "f1")
DATA = {"exp911": "exp911_full", "simulation": "simulated_rivals", "pancreatic": "phc_full"}
ANSWER = {
    "flat": "one network (`flat`)",
    "flat_gan": "and generated patches (`flat_gan`)",
    "flat_temporal": "and time (`flat_temporal`)",
    "stacked_temporal": "with an SVM, and time (`stacked_temporal`)",
    "temporal_gan": "the full method (`temporal_gan`)",
}
_BLOCK = re.compile(r"(?ms)^(<!-- figures:(\w+) (\w+) -->\n).*?^(<!-- end -->)$")
_INLINE = re.compile(r"<!--f:([\w/]+)-->(.*?)<!--/f-->")


def table(name: str) -> pd.DataFrame:
    """A committed table: a row per method and metric, or for `..._parts` per comparison and metric."""
    found = pd.read_csv(RESULTS / "tables" / f"{name}.csv")
    found["verdict"] = found["verdict"].str.lstrip("'")
    return found if name.endswith("_parts") else found[found["class"].isna()]


def methods_table(name: str) -> str:
    """Macro TPR and F1 of each method in %, and the difference to the baseline in points."""
    lines = [
        "| method | TPR | difference | F1 | difference | verdict (TPR; F1) |",
        "| --- | ---: | --- | ---: | --- | --- |",
    ]
    for method, rows in table(name).groupby("method", sort=False):
        of = rows.set_index("metric")
        cells = [f"{100 * of['mean'][m]:.1f} | {_gain(of.loc[m])}" for m in METRICS]
        lines.append(f"| {method} | {' | '.join(cells)} | {_verdicts(of)} |")
    return "\n".join(lines)


def parts_table(name: str) -> str:
    """What each part of a method adds, in points, and the p values adjusted over all parts."""
    lines = [
        "| part | methods | TPR | F1 | verdict (TPR; F1) | p |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for _, rows in table(f"{name}_parts").groupby(["method", "other"], sort=False):
        of, first = rows.set_index("metric"), rows.iloc[0]
        where = f" ({first['where']})" if isinstance(first["where"], str) else ""
        cells = " | ".join(_gain(of.loc[m]) for m in METRICS)
        p = "; ".join(f"{of['p'][m]:.3f}" for m in METRICS)
        pair = f"{first['method']} - {first['other']}"
        lines.append(f"| {first['part']}{where} | {pair} | {cells} | {_verdicts(of)} | {p} |")
    return "\n".join(lines)


def answer_table(name: str) -> str:
    """The README's five rows: TPR / F1 on each data set, the gain in TPR, and what is shown."""
    lines = [f"| method | {' | '.join(DATA)} | in words |", f"|{' --- |' * (len(DATA) + 2)}"]
    tables = {data: table(of) for data, of in DATA.items()}
    for method, told in ANSWER.items():
        cells, words = [], []
        for data, found in tables.items():
            of = found[found["method"] == method].set_index("metric")
            if of.empty:
                cells.append("-")
                continue
            gain = "" if method == "flat" else f", {100 * of['delta']['tpr']:+.1f}"
            cells.append(" / ".join(f"{100 * of['mean'][m]:.1f}" for m in METRICS) + gain)
            if (verdict := _verdicts(of)) in ("shown", "worse"):
                words.append(f"{'gain shown' if verdict == 'shown' else 'worse'}: {data}")
        said = "baseline" if method == "flat" else "; ".join(words) or "no gain shown"
        lines.append(f"| {told} | {' | '.join(cells)} | {said} |")
    return "\n".join(lines)


def power_table(name: str) -> str:
    """How often intervals hold the truth, and gains that would be shown are, of benchmarks/power.py."""
    lines = [
        "| groups | seeds | intervals that hold the truth, TPR; F1 | shown (80 % are promised), TPR; F1 "
        "| would show, TPR: median (10 to 90 %) |",
        "| ---: | ---: | --- | --- | --- |",
    ]
    rows = pd.DataFrame(_json(name)["rows"])
    for (groups, seeds), pair in rows.groupby(["groups", "seeds"], sort=False):
        of = pair.set_index("metric")
        held, power = (
            "; ".join(f"{100 * of[c][m]:.0f}" for m in METRICS) for c in ("coverage", "power")
        )
        low, high = of["mde_10_90"]["tpr"]
        mde = f"{of['median_mde']['tpr']:.1f} ({low:.1f} to {high:.1f})"
        lines.append(f"| {groups} | {seeds} | {held} % | {power} % | {mde} |")
    return "\n".join(lines)


def plateau_table(name: str) -> str:
    """Validation scores over the images that a network saw, of benchmarks/plateau.py."""
    data = _json(name)["data"]
    lines = [f"| images | {' | '.join(data)} |", f"|{' --- |' * (len(data) + 1)}"]
    told = "{:.1f} / {:.1f} / {:.3f}, {:.0f} s"
    for points in zip(*(of["curve"] for of in data.values()), strict=True):
        lines.append(f"| {round(points[0]['images'], -3):,.0f} | " + _scores(points, told))
    kept = [next(r for r in of["rule"] if r["gain"] == 0.02) for of in data.values()]
    lines.append("| the rule | " + _scores(kept, told))
    folds = (", ".join(f"{n / 1000:.0f}" for n in rule["images"]) for rule in kept)
    lines.append(f"| kept, thousands a fold | {' | '.join(folds)} |")
    return "\n".join(lines)


def measured(name: str) -> str:
    """Where and when a table was measured, and what has changed since."""
    meta = _json(f"tables/{name}")
    text = f"Measured at commit {meta['commit']} with `{meta['command']}` ({meta['how']})."
    if "note" in meta:
        text += f"\n{meta['note']}"
    if changed := outdated(name):
        text += (
            f"\n**To be measured again**: the settings of {', '.join(changed)} have changed since."
        )
    return text


def outdated(name: str) -> list[str]:
    """Methods whose settings are no longer those that a table of the embedded default was measured with."""
    settings: dict[str, str] = _json(f"tables/{name}").get("settings", {})
    return [m for m, known in settings.items() if settings_hash(m) != known]


@functools.cache
def settings_hash(method: str) -> str:
    """Of every setting that determines a result of `method` in `make reproduce`, seed and fold aside."""
    config = typed(compose("run", [f"method={method}"]))
    assert isinstance(config, RunCommand)
    return key_hash(relevant(config))


KINDS: dict[str, Callable[[str], str]] = {
    "methods": methods_table,
    "parts": parts_table,
    "answer": answer_table,
    "power": power_table,
    "plateau": plateau_table,
    "measured": measured,
}


def number(key: str) -> str:
    """A number of a sentence: `mean` in %, `delta`, `delta_low` and `delta_high` in signed points."""
    name, method, metric, column = key.split("/")
    rows = table(name)
    (value,) = rows[(rows["method"] == method) & (rows["metric"] == metric)][column]
    return f"{100 * value:+.1f}" if column.startswith("delta") else f"{100 * value:.1f}"


def filled(text: str) -> str:
    """A page with every marked table and number as measured.

    Raises:
        KeyError: a mark of an unknown kind.
    """
    text = _BLOCK.sub(lambda m: f"{m[1]}{KINDS[m[2]](m[3])}\n{m[4]}", text)
    return _INLINE.sub(lambda m: f"<!--f:{m[1]}-->{number(m[1])}<!--/f-->", text)


def pages() -> list[Path]:
    """README and docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main(words: list[str]) -> int:
    """Fills the pages, or with `--check` tells those that differ."""
    stale = [
        (p, new) for p in pages() if (new := filled(p.read_text("utf-8"))) != p.read_text("utf-8")
    ]
    for page, new in stale:
        if "--check" in words:
            print(
                f"{page.relative_to(ROOT)}: differs from benchmarks/results; run make docs-figures"
            )
        else:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    return int(bool(stale) and "--check" in words)


def _json(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def _gain(row: Any) -> str:
    if pd.isna(row["delta"]):
        return ""
    low, high = 100 * row["delta_low"], 100 * row["delta_high"]
    return f"{100 * row['delta']:+.1f} ({low:+.1f} to {high:+.1f})"


def _verdicts(of: pd.DataFrame) -> str:
    return "; ".join(dict.fromkeys(verdict_word(of.loc[m].to_dict()) for m in METRICS))


def _scores(points: Any, told: str) -> str:
    cells = [told.format(100 * p["tpr"], 100 * p["f1"], p["loss"], p["seconds"]) for p in points]
    return " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
