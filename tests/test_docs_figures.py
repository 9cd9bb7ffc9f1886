"""Measured figures of README and docs are those of benchmarks/results."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_marked_figure_of_readme_and_docs_is_the_measured_one(figures, capsys):
    assert figures.main(["--check"]) == 0, capsys.readouterr().out
    marks = "".join(p.read_text("utf-8") for p in figures.pages())
    assert len(re.findall("^<!-- figures:", marks, re.M)) == marks.count("<!-- end -->") >= 10


def test_a_number_changed_by_hand_is_found_and_mended(figures, tmp_path, monkeypatch, capsys):
    page = (ROOT / "README.md").read_text("utf-8")
    good = f"{page}\nflat has <!--f:exp911_rivals/flat/tpr/mean-->93.0<!--/f--> % TPR\n"
    (tmp_path / "README.md").write_text(good, encoding="utf-8")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    assert figures.main(["--check"]) == 0
    for was, by in (("| flat | 93.0 |", "| flat | 93.9 |"), ("-->93.0<", "-->92.0<")):
        assert was in good
        (tmp_path / "README.md").write_text(good.replace(was, by), encoding="utf-8")
        assert figures.main(["--check"]) == 1
        assert "README.md: differs from benchmarks/results" in capsys.readouterr().out
        assert figures.main([]) == 0
        assert (tmp_path / "README.md").read_text("utf-8") == good


def test_the_table_of_make_reproduce_was_measured_with_the_settings_of_today(figures):
    changed = figures.outdated("simulated_rivals")
    assert not changed, (
        f"settings of {', '.join(changed)} differ from those of the committed table: measure again with make reproduce,"
        " replace benchmarks/results/tables/simulated_rivals*.csv and .json, then make docs-figures"
    )


def test_a_page_says_that_a_table_must_be_measured_again_once_settings_change(figures, monkeypatch):
    known = json.loads((figures.RESULTS / "tables/simulated_rivals.json").read_text("utf-8"))[
        "settings"
    ]
    now = {**known, "flat_gan": "other"}
    monkeypatch.setattr(figures, "settings_hash", now.__getitem__)
    assert figures.outdated("simulated_rivals") == ["flat_gan"]
    assert "**To be measured again**: the settings of flat_gan" in figures.measured(
        "simulated_rivals"
    )
