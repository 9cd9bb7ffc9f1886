"""The page as a biologist reads it: what to do first, one table of methods, and nothing that contradicts it."""

from __future__ import annotations

import json
import math
import shutil

import pandas as pd
import pytest

from stemcell_lit.base.markdown import in_markdown
from stemcell_lit.experiment.results import collect, comparable
from stemcell_lit.report.method_table import WIDTH, bar, group_of, scale_of
from stemcell_lit.report.page import _claim_cards
from stemcell_lit.report.pictures import Pictures
from stemcell_lit.report.print_table import print_table, read_table
from stemcell_lit.report.report import make_report, write_report
from tests.report.test_advice import UNKNOWN, row
from tests.report.test_report import edit, text_of, write_results

METHODS = ("flat", "time_only", "classic", "flat_gan", "flat_temporal", "temporal", "temporal_gan")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Results of every kind of method, without pictures; what is advised lies beside them."""
    out = tmp_path_factory.mktemp("page") / "mine"
    write_results(out, methods=METHODS, folds=2, seeds=2, groups=8, per_group=24, simulated=False)
    for trial in out.glob("trials/temporal*"):  # a tree, so that `temporal` is not `flat_temporal`
        edit(trial, lambda info: info["config"]["hierarchy"].update(name="colony"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pictures, "make", lambda self: {})
        make_report(out, resamples=300)
    return out


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(Pictures, "make", lambda self: {})


def test_page_terminal_and_markdown_give_the_same_advice(out, capsys, no_pictures):
    results = comparable(collect(out), "flat")
    advice = write_report(results, 300)
    assert advice.method == "temporal_gan"  # the highest of `VALIDATED`
    assert advice.command.startswith("stemcell-lit deliver out=")
    page, markdown = text_of(out / "report.html"), (out / "table.md").read_text()
    for told in (advice.use, advice.next, *(one.text for one in advice.helps)):
        assert " ".join(told.split()) in page.replace("&#39;", "'")
    print_table(out, results.notes, advice.lines)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-len(advice.lines) - 1 : -1] == advice.lines
    for line in advice.lines:
        assert f"- {in_markdown(line)}\n" in markdown
    assert page.index("Use temporal_gan") < page.index("Every method") < page.index("How to read")


def test_methods_stand_in_groups(out):
    results = comparable(collect(out), "flat")
    found = {method: group_of(results, method) for method in results.methods}
    expected = {
        **{"flat": "reference", "time_only": "reference", "classic": "classic"},
        **{"flat_gan": "generated", "flat_temporal": "time", "temporal_gan": "full"},
    }
    assert {m: g for m, g in found.items() if m in expected} == expected
    page = text_of(out / "report.html")
    order = ["Reference", "Classical features", "Generated patches flat_gan", "full method"]
    places = [page.index(title, page.index("Every method")) for title in order]
    assert places == sorted(places)


def cards_of(out, change):
    table = read_table(out)
    for method, told in change.items():
        rows = (table["method"] == method) & (table["class"] == "")
        for column, value in told.items():
            table.loc[rows, column] = value
    return _claim_cards(comparable(collect(out), "flat"), table, "temporal_gan")


@pytest.mark.parametrize(
    ("low", "high", "p", "title", "kind"),
    [
        (0.03, 0.08, 0.01, "A gain of 2 points or more is shown", "shown"),
        (0.01, 0.08, 0.01, "A gain is shown", "shown"),
        (0.001, 0.015, 0.01, "A gain is shown", "shown"),
        (-0.01, 0.08, 0.4, "No gain is shown", "not-shown"),
        (0.03, 0.08, 0.06, "No gain is shown", "not-shown"),
        (-0.01, 0.01, 0.9, "No gain of 2 points", "no-gain"),
        (-0.08, -0.01, 0.01, "Worse than flat", "worse"),
        (math.nan, math.nan, 0.01, "Nothing is shown", "not-shown"),
    ],
)
def test_the_card_of_the_claim_says_what_its_row_says(out, low, high, p, title, kind):
    told = {"delta_low": low, "delta_high": high, "p": p}
    for card in cards_of(out, {"temporal_gan": told}):
        assert (card["title"], card["kind"]) == (title, kind)
        assert "not shown" not in card["title"].lower()
        if "A gain" not in title:
            assert "gain is shown" not in card["words"]


@pytest.mark.parametrize(
    "case", ["one seed", "two groups", "no validation", "leaky", "one method", "no time"]
)
def test_the_first_screen_has_its_sentences_where_little_is_known(tmp_path, case, no_pictures):
    options = {"methods": ("flat", "temporal_gan"), "folds": 2, "seeds": 1, "groups": 4}
    options |= {"two groups": {"groups": 2}, "one method": {"methods": ("flat",)}}.get(case, {})
    options |= {"methods": ("flat", "flat_gan")} if case == "no time" else {}
    out = write_results(tmp_path / "res", per_group=20, **options)
    for trial in (out / "trials").iterdir():
        if case == "no validation":
            edit(trial, lambda info: info.update(validation={}))
        if case == "leaky":
            edit(trial, lambda info: info["split"].update(kind="leaky"))
    results = comparable(collect(out), "flat")
    advice = write_report(results, 100)
    page = text_of(out / "report.html")
    assert "Which method?" in page and "What helps?" in page and "What next?" in page
    assert (advice.method is None) == (case in ("no validation", "leaky"))
    assert (advice.command is None) == (advice.method is None)
    assert all(one.answer != "yes" for one in advice.helps) or case == "one seed"
    if case == "two groups":
        assert "too few groups for an interval" in advice.use
    if case == "leaky":
        assert {one.answer for one in advice.helps} == {"not compared"}
        assert "split.kind=grouped" in advice.next and advice.claim is None
    if case == "no time":
        assert "No method here uses time" in advice.helps[2].text
    assert "nan" not in " ".join(advice.lines)


def test_every_bar_stands_on_one_scale_and_one_far_behind_does_not_squeeze_the_others():
    rows = [row("a", delta=0.03, gain=(0.01, 0.05), p=0.01), row("b", delta=0.0, gain=UNKNOWN)]
    far = row("clock", delta=-0.4, gain=(-0.45, -0.35), p=0.01)
    scale = scale_of([*rows, far])
    assert scale == scale_of(rows)
    one, other, cut = (bar(r, scale) for r in (*rows, far))
    assert one["filled"] and not other["filled"] and other["ends"] is None
    assert 4 <= one["zero"] < one["ends"][0] < one["dot"] < one["ends"][1] <= WIDTH - 4
    assert cut["cut"] and not one["cut"]
    assert one["words"] == "+3.0 points TPR, interval +1.0 to +5.0"
    lost = bar(row("lost", delta=math.nan), scale_of([row("lost", delta=math.nan)]))
    assert lost["dot"] is None and lost["ends"] is None


def test_a_verdict_is_told_by_a_mark_and_a_word_not_by_colour_alone(out):
    page = text_of(out / "report.html")
    words = {v.rsplit(": ", 1)[-1] for v in read_table(out)["verdict"]} - {"baseline"}
    marks = {"shown": "✓", "worse": "▼", "not shown": "?"}
    macro = pd.read_csv(out / "table.csv", keep_default_na=False)
    there = {v.rsplit(": ", 1)[-1] for v in macro[macro["class"] == ""]["verdict"]} - {"baseline"}
    assert there and there <= words
    for word in there:
        assert f"{marks.get(word, '≈')} {word}" in page


def test_a_stage_that_was_validated_once_has_a_dot_and_shared_stages_one_line(tmp_path):
    out = write_results(
        tmp_path / "res", methods=("flat", "flat_gan"), folds=2, seeds=1, groups=4, per_group=12
    )
    for trial in (out / "trials").iterdir():
        fold = json.loads((trial / "result.json").read_text())["fold"]
        once = [{"images": 3000 + fold, "loss": 0.5, "val/macro/f1": None}]
        edit(trial, lambda info, once=once: info["stages"][0].update(curve=once))
    results = comparable(collect(out), "flat")
    figure = Pictures(results, read_table_of(out), {}, seed=0).curves()
    (axis,) = figure.axes  # no score of validation patches: no empty panel
    drawn = [line for line in axis.lines if len(line.get_xdata())]
    assert len(drawn) == 2 and all(line.get_marker() == "o" for line in drawn)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["flat = flat_gan"]


def read_table_of(out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pictures, "make", lambda self: {})
        make_report(out, resamples=50)
    return read_table(out)


def test_results_in_a_folder_with_blanks_have_a_command_that_can_be_pasted(out, tmp_path):
    import shlex

    copy = shutil.copytree(out, tmp_path / "my results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pictures, "make", lambda self: {})
        advice = write_report(comparable(collect(copy), "flat"), 50)
    words = shlex.split(advice.command)
    assert words[:2] == ["stemcell-lit", "deliver"] and len(words) == 3
    assert "my results" in words[2]
