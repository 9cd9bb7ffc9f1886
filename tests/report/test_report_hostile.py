"""Names are names: no script in a page, no trial in Markdown, no formula in a spreadsheet, no mathematics."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.base.markdown import in_markdown
from stemcell_lit.base.spreadsheets import as_text, as_written, read_csv, to_csv
from stemcell_lit.report.advice import Advice, Help
from stemcell_lit.report.print_table import read_table
from stemcell_lit.report.report import make_report
from stemcell_lit.report.sweep import Table, _markdown, _page
from stemcell_lit.settings.command_keys import SweepConfig
from tests.hostile import SCRIPT, result

NASTY = [f"{SCRIPT}a", '=HYPERLINK("http://x")|b\n`$x_{', "@c"]
TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "section",
        "h1",
        "h2",
        "h3",
        "p",
        "b",
    ),
    *(
        "br",
        "div",
        "table",
        "tr",
        "th",
        "td",
        "ul",
        "li",
        "pre",
        "code",
        "details",
        "summary",
        "img",
    ),
    *("figure", "figcaption", "sub", "i", "a", "span"),
    *("thead", "tbody", "svg", "line", "circle", "path", "rect", "script"),
}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(page: str) -> Page:
    """Asserts that a page holds no tag, handler or address but its own."""
    found = Page(page)
    assert found.tags <= TAGS, found.tags - TAGS
    assert not [a for a in found.attributes if a[1].startswith("on")]
    for tag, name, value in found.attributes:
        if name == "src":
            assert value.startswith("data:image/png;base64,")
        if name == "href":
            assert not value.lower().startswith(("javascript:", "data:", "http")), (tag, value)
    policy = [v for tag, name, v in found.attributes if tag == "meta" and name == "content"]
    assert any("default-src 'none'" in v for v in policy)
    allowed = [word for v in policy for word in re.findall(r"script-src ([^;]*)", v)]
    assert page.count("<script>") == len(allowed)  # the report's own, known by its hash
    for script, word in zip(
        re.findall(r"<script>(.*?)</script>", page, re.DOTALL), allowed, strict=True
    ):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert word == f"'sha256-{digest}'"
    return found


def nasty(value: Any) -> Any:
    """A JSON value whose texts are all scripts, names of mappings too."""
    if isinstance(value, dict):
        return {f"{k}{SCRIPT}": nasty(v) for k, v in value.items()}
    if isinstance(value, list):
        return [nasty(v) for v in value]
    return SCRIPT if isinstance(value, str) else value


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Results in which everything that may be named is named to do harm."""
    out = tmp_path_factory.mktemp("nasty") / "<script>alert(2)</script>"
    rng = np.random.default_rng(0)
    for method in ("flat", f"flat{SCRIPT}"):
        info = result()
        counts = dict.fromkeys(NASTY, 4)
        info |= {
            "method": method,
            "classes": NASTY,
            "store": SCRIPT,
            "machine": SCRIPT,
            "versions": {SCRIPT: SCRIPT},
            "metrics": {},
            "confusion": [[4, 0, 0], [0, 4, 0], [0, 0, 4]],
            "config": {
                "method": {"name": method},
                "hierarchy": {"name": SCRIPT, "subsets": {SCRIPT: NASTY[:2]}},
                SCRIPT: SCRIPT,
            },
        }
        info["data"] |= dict.fromkeys(("real", "val", "test"), counts)
        info["data"]["generated"] = {SCRIPT: 3}
        info["split"] |= {part: [SCRIPT] for part in ("train", "val", "test")}
        info["stages"] = [
            {**info["stages"][0], "node": SCRIPT, "groups": NASTY, "confusion": info["confusion"]}
        ]
        info["tuning"] |= {"taken": {SCRIPT: SCRIPT}}
        info["tuning"]["tried"][0]["settings"] = {SCRIPT: SCRIPT}
        quality = info["generator_quality"]
        quality |= dict.fromkeys(("metric", "alarm"), SCRIPT)
        quality |= {
            "filters": [SCRIPT],
            "acceptance": {SCRIPT: {"all": 0.5}},
            "missing": {SCRIPT: 1},
        }
        trial = out / "trials" / f"{len(method)}"
        trial.mkdir(parents=True)
        (trial / "result.json").write_text(json.dumps(info))
        labels = NASTY * 4
        p = rng.dirichlet([1, 1, 1], 12)
        table = pd.DataFrame({"patch": range(12), "group": [f"{SCRIPT}{i % 4}" for i in range(12)]})
        table = table.assign(
            label=labels, predicted=np.array(NASTY)[p.argmax(1)], track="", frame=-1
        )
        table = table.assign(time_h=np.nan, **{f"p/{c}": p[:, i] for i, c in enumerate(NASTY)})
        table.to_parquet(trial / "predictions.parquet", index=False)
    make_report(out, resamples=20)
    return out


def test_no_name_becomes_a_script_in_the_report(out):
    page = harmless((out / "report.html").read_text())
    assert page.text.count("<script>alert(1)</script>") > 10  # told, as it is called
    assert "collapsed" not in page.text and "&lt;" not in page.text


def test_no_name_breaks_a_table_in_markdown(out):
    text = (out / "table.md").read_text()
    assert "<" not in text.replace("| < 0.001 |", "")
    tables = [block.split("\n") for block in text.split("\n\n") if block.startswith("| ")]
    for lines in tables:
        trials = {line.replace("\\\\", "").replace("\\|", "").count("|") for line in lines if line}
        assert len(trials) == 1, lines


def test_no_name_is_a_formula_in_a_spreadsheet(out):
    for name in ("table.csv", "parts.csv"):
        with (out / name).open(newline="", encoding="utf-8") as stream:
            for row in csv.reader(stream):
                for value in row:
                    assert not value.startswith(("=", "@", "\t", "\r")), row
                    assert not value.startswith(("+", "-")) or float(value) is not None
    assert set(read_table(out)["class"]) >= set(NASTY)  # and read as it was


def test_no_name_becomes_a_script_in_a_page_of_a_sweep(out):
    sweep = SweepConfig("mix.amount", [SCRIPT, "a & b"], {SCRIPT: SCRIPT}, SCRIPT)
    tables = [Table(out, f"v{i}", v) for i, v in enumerate(sweep.values)]
    macro = pd.concat([read_table(out).assign(value=t.value, patches=3) for t in tables])
    macro = macro[macro["class"] == ""]
    advice = Advice(SCRIPT, SCRIPT, (Help(SCRIPT, SCRIPT, SCRIPT),), SCRIPT, SCRIPT, SCRIPT)
    page = harmless(_page(out, macro, tables, sweep, SCRIPT, b"\x89PNG", [advice] * 2))
    assert "a & b" in page.text and "&amp;" not in page.text  # escaped once
    assert "<" not in _markdown(macro, sweep, [advice] * 2).replace("| < 0.001 |", "")


def test_a_result_of_scripts_alone_is_refused_or_harmless(out, tmp_path):
    info = json.loads((out / "trials" / "4" / "result.json").read_text())
    told = nasty(info["generator_quality"])
    from stemcell_lit.errors import UserError
    from stemcell_lit.experiment.results import collect

    info["generator_quality"] = told
    trial = tmp_path / "trials" / "one"
    trial.mkdir(parents=True)
    (trial / "result.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="generator_quality"):
        collect(tmp_path)


@given(st.text(alphabet="'=+-@\t\r1.e a", max_size=6))
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back_from_a_spreadsheet_as_it_was(text):
    safe = as_text(text)
    assert as_written(safe) == text
    if not safe.strip("+-.e0123456789"):
        return
    assert not safe.startswith(("=", "@", "\t", "\r"))
    if safe.startswith(("+", "-")):
        float(safe)


def test_numbers_of_a_csv_stay_numbers(tmp_path):
    table = pd.DataFrame({"-name": ["=1+1", "'=x", "plain", "-1.5"], "n": [-1.5, 2.0, np.nan, 0.0]})
    text = to_csv(table)
    rows = list(csv.reader(io.StringIO(text)))
    assert [row[1] for row in rows] == ["n", "-1.5", "2.0", "", "0.0"]
    assert [row[0] for row in rows] == ["'-name", "'=1+1", "''=x", "plain", "-1.5"]
    (tmp_path / "t.csv").write_text(text)
    back = read_csv(tmp_path / "t.csv", ["-name", "n"], "again", {"n": [""]})
    pd.testing.assert_frame_equal(back, table, check_dtype=False)


def test_markdown_holds_names_as_they_are():
    assert in_markdown("a|b\nc`d` <x> [l](u) *e*") == r"a\|b c\`d\` &lt;x&gt; [l]\(u) \*e\*"
    assert in_markdown("flat_gan [mix.amount=1]") == "flat_gan [mix.amount=1]"
