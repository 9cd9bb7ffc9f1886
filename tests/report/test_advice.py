"""What a report advises: case by case, and never more than its table shows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.evaluate.results_table import verdict
from stemcell_lit.report.advice import (
    ASKED,
    DEPENDS,
    LEAST,
    NO,
    NONE,
    OPEN,
    YES,
    ClassSize,
    advise,
    chosen,
    helps,
    more_groups,
    why_a_smaller_one_is_shown,
)
from stemcell_lit.report.numbers import verdict_word

SIZES = {"a": ClassSize(100, 10, 9.0), "b": ClassSize(40, 8, 6.0)}
UNKNOWN = (math.nan, math.nan)


def row(method, metric="tpr", name="", mean=0.9, ends=(0.85, 0.95), delta=0.0, gain=UNKNOWN, p=1.0):
    """A row of a table; `gain` is the interval of its difference."""
    told = {"method": method, "metric": metric, "class": name, "mean": mean}
    told |= {"low": ends[0], "high": ends[1], "delta": delta, "delta_low": gain[0]}
    told |= {"delta_high": gain[1], "p": p, "mde": 0.03}
    return told | {"verdict": verdict(delta, *gain, p, metric=metric.upper())}


def table_of(methods, classes=None):
    """`methods`: name -> what `row` takes of both macro scores; `classes`: name -> what it takes of the class."""
    rows = []
    for i, (method, told) in enumerate(methods.items()):
        for metric in ("tpr", "f1"):
            rows.append(row(method, metric, **told))
            rows += [row(method, metric, name, **(classes or {}).get(name, {})) for name in SIZES]
        if i == 0:
            for one in rows:
                one["verdict"] = "baseline"
    return pd.DataFrame(rows)


def pair(part, where="", method="with", other="without", **scores):
    """Two rows of `parts.csv`: of each metric (difference, its interval, p)."""
    both = {"tpr": scores["tpr"], "f1": scores.get("f1", scores["tpr"])}
    return [
        {"part": part, "where": where, "other": other}
        | {k: v for k, v in row(method, metric, delta=d, gain=gain, p=p).items() if k != "class"}
        | {"mde": scores.get("mde", 0.035)}
        for metric, (d, gain, p) in both.items()
    ]


SHOWN = (0.05, (0.03, 0.07), 0.01)
WORSE = (-0.05, (-0.07, -0.03), 0.01)
EXCLUDED = (0.0, (-0.03, 0.015), 1.0)
UNSURE = (0.02, (-0.01, 0.05), 0.3)
LIKELY = (
    0.04,
    (0.01, 0.07),
    0.08,
)  # its interval lies above zero, its adjusted p does not lie below 0.05


def answer(*pairs, topic="Time"):
    rows = [r for i, one in enumerate(pairs) for r in pair("time", str(i), f"m{i}", f"o{i}", **one)]
    return helps(pd.DataFrame(rows), topic)


@pytest.mark.parametrize(
    ("pairs", "expected", "words"),
    [
        ([{"tpr": SHOWN}], YES, "+5.0 points TPR (+3.0 to +7.0)"),
        ([{"tpr": SHOWN}, {"tpr": UNSURE}], YES, "Also m1 against o1: cannot tell."),
        ([{"tpr": UNSURE, "f1": SHOWN}], YES, "m0 against o0"),
        ([{"tpr": UNSURE}], OPEN, "show a gain in 80 % of cases from 3.5 TPR or 3.5 F1 points on"),
        ([{"tpr": LIKELY}], OPEN, "m0 against o0"),
        ([{"tpr": EXCLUDED, "f1": UNSURE}], OPEN, "m0 against o0"),
        ([{"tpr": EXCLUDED}], NO, "a gain of 2 points is ruled out"),
        ([{"tpr": EXCLUDED}, {"tpr": UNSURE}], OPEN, "m1 against o1: +2.0"),
        ([{"tpr": WORSE}], NO, "shown to be worse"),
        ([{"tpr": UNSURE}, {"tpr": WORSE}], NO, "m1 against o1: −5.0"),
        ([{"tpr": SHOWN}, {"tpr": EXCLUDED}], DEPENDS, "Also m1 against o1: no gain of 2 points."),
        ([{"tpr": SHOWN}, {"tpr": WORSE}], DEPENDS, "m0 against o0: +5.0"),
        ([{"tpr": SHOWN, "f1": WORSE}], DEPENDS, "m0 against o0"),
        ([{"tpr": (0.3, UNKNOWN, 0.01)}], OPEN, "+30.0 points TPR (–)"),
    ],
)
def test_a_part_helps_where_a_gain_is_shown_and_nothing_speaks_against_it(pairs, expected, words):
    told = answer(*pairs)
    assert told.answer == expected and words in told.text, told.text
    assert told.sentence.startswith(f"Time: {expected}. ")


def test_a_part_that_no_two_methods_differ_by_is_not_compared_and_says_why():
    empty = pd.DataFrame()
    assert helps(empty, "Time").answer == NONE
    assert helps(empty, "Time").text == "No two of these methods differ by it alone."
    assert helps(empty, "Time", "the patches have no time").text == "the patches have no time"
    other = pd.DataFrame(pair("the tree", tpr=SHOWN))
    assert helps(other, "Time").answer == NONE and helps(other, "The tree").answer == YES


def test_where_no_p_can_be_small_enough_it_says_that_no_gain_can_be_shown():
    told = answer({"tpr": LIKELY, "mde": math.nan})
    assert (
        told.answer == OPEN and "With these groups and resamples no gain can be shown" in told.text
    )


@pytest.mark.parametrize(("instead", "told"), [(SHOWN, False), (UNSURE, True), (WORSE, True)])
def test_generated_patches_that_help_are_held_against_a_balanced_sampler(instead, told):
    rows = pair("generated patches", tpr=SHOWN)
    rows += pair("generated patches instead of balanced batches", other="sampler", tpr=instead)
    found = helps(pd.DataFrame(rows), "Generated patches")
    assert found.answer == YES
    assert ("more than a balanced sampler is not shown" in found.text) == told


shares = st.floats(-1, 1)
scores = st.tuples(shares, st.one_of(st.just(UNKNOWN), st.tuples(shares, shares)), st.floats(0, 1))


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_never_yes_without_a_shown_gain_and_never_no_where_one_is(pairs):
    parts = pd.DataFrame(
        [
            r
            for i, (tpr, f1) in enumerate(pairs)
            for r in pair("time", "", f"m{i}", "o", tpr=tpr, f1=f1)
        ]
    )
    words = [verdict_word(r) for r in parts.to_dict("records")]
    found = helps(parts, "Time").answer
    assert found in (YES, NO, DEPENDS, OPEN)
    if found in (YES, DEPENDS):
        assert "shown" in words
    if found == YES:
        assert "worse" not in words
    if found == NO:
        assert "shown" not in words
        assert "worse" in words or all(w.startswith("no ") for w in words)
    if "shown" not in words and "not shown" in words and "worse" not in words:
        assert found == OPEN


def advice_of(table, parts=None, **given_):
    options = {"baseline": "flat", "claimed": None, "validated": {}, "about": {}} | given_
    return advise(table, pd.DataFrame() if parts is None else parts, SIZES, **options)


TWO = {"flat": {}, "other": {"mean": 0.93, "delta": 0.03, "gain": (0.01, 0.05), "p": 0.01}}


def test_the_method_is_chosen_by_validation_scores_whatever_test_groups_say():
    table = table_of(TWO)
    validated = {"flat": (0.9, 0.8), "other": (0.8, 0.9)}
    advice = advice_of(table, validated=validated, about={"flat": "one network"}, command="do it")
    assert advice.method == "flat" and advice.command == "do it"
    assert "Use flat (one network): 90.0 % macro TPR (95 % interval 85.0 to 95.0)" in advice.use
    assert "chosen by validation patches alone" in advice.use and "No other method" in advice.use
    advice = advice_of(table, validated={"flat": (0.8, 0.9), "other": (0.9, 0.8)})
    assert "+3.0 points TPR (shown) and +3.0 points F1 (shown)" in advice.use
    assert len(advice.helps) == len(ASKED) and len(advice.lines) == 5


def test_of_equal_validation_scores_the_first_and_simplest_is_taken_and_f1_counts_before_tpr():
    assert chosen({"flat": (0.9, 0.9), "big": (0.9, 0.9)}) == "flat"
    assert chosen({"flat": (0.9, 0.9), "big": (0.9, 0.91)}) == "big"
    assert chosen({"flat": (0.91, 0.1), "big": (0.9, 0.91)}) == "flat"
    assert chosen({"flat": (math.nan, 0.1), "big": (0.2, 0.1)}) == "big"
    assert chosen({}) is None


def test_without_validation_scores_or_on_a_leaky_split_no_method_is_recommended():
    table = table_of(TWO)
    for given_, words in (
        ({}, "no method has scores on validation patches"),
        ({"validated": {"flat": (0.9, 0.9)}, "leaky": True}, "every score is inflated"),
    ):
        advice = advice_of(table, command="do it", **given_)
        assert advice.method is None and advice.command is None
        assert words in advice.use and advice.use.startswith("No method can be recommended")


def test_a_single_method_without_intervals_has_its_sentences_all_the_same():
    one = row("flat", ends=UNKNOWN)
    rows = [{**one, "metric": m, "class": c} for m in ("tpr", "f1") for c in ("", *SIZES)]
    advice = advice_of(pd.DataFrame(rows), validated={"flat": (0.9, 0.9)})
    assert "too few groups for an interval" in advice.use and "only method" in advice.use
    assert [one.answer for one in advice.helps] == [NONE] * 3
    assert "nan" not in " ".join(advice.lines)


def test_the_claim_of_the_full_method_is_a_sentence_of_its_own():
    methods = TWO | {"full": {"mean": 0.91, "delta": 0.01, "gain": (-0.02, 0.04), "p": 0.4}}
    advice = advice_of(
        table_of(methods), claimed="full", validated={"flat": (0.8, 0.8), "other": (0.9, 0.9)}
    )
    assert advice.method == "other" and "(shown)" in advice.use and "full" not in advice.use
    assert advice.claim == (
        "The paper's whole method, full, against flat: +1.0 points TPR (not shown) and "
        "+1.0 points F1 (not shown)."
    )


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ({}, {"mean": 0.6, "ends": (0.4, 0.8)}, "Label more of b: 60.0 % of its 40 tested patches"),
        ({"mean": 0.8, "ends": (0.3, 0.9)}, {"mean": 0.6, "ends": (0.5, 0.8)}, "Label more of a"),
        ({}, {"mean": 0.9, "ends": UNKNOWN}, "too few for an interval"),
        ({}, {"mean": math.nan, "ends": UNKNOWN}, "none of it was tested"),
        ({}, {"mean": 0.0, "ends": (0.0, 0.0)}, "in all of them alike"),
        ({"ends": (0.96, 0.99)}, {"ends": (0.97, 1.0)}, "No class asks for more labels"),
    ],
)
def test_the_class_to_label_is_the_one_whose_recall_may_be_lowest(a, b, words):
    advice = advice_of(
        table_of({"flat": {}}, {"a": a, "b": b}), validated={"flat": (0.9, 0.9)}, command="x"
    )
    assert words in advice.next
    assert "estimate" in advice.next or "halve" not in advice.next


def test_simulated_patches_are_not_asked_to_be_labelled():
    table = table_of({"flat": {}})
    told = advice_of(table, validated={"flat": (0.9, 0.9)}, simulated=True).next
    assert told.startswith("These patches are simulated; of real ones: label more of")


@given(st.integers(2, 500), st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_the_groups_asked_for_halve_the_interval_and_are_at_least_those_of_a_test(groups, share):
    effective = max(1.0, share * groups)
    more = more_groups(groups, effective)
    assert more >= 1 and groups + more >= LEAST
    if effective > 1.5:
        from scipy import stats

        def width(n):
            return stats.t.ppf(0.975, n - 1) / np.sqrt(n - 1)

        after = effective * (groups + more) / groups
        assert width(after) <= width(effective) / 2 * 1.001
        assert more <= 3.2 * groups + LEAST  # the square root asks for three times as many at most


def test_fewer_groups_than_an_interval_needs_ask_for_those_of_a_test():
    assert more_groups(0, 0.0) == LEAST and more_groups(1, 1.0) == LEAST - 1


def test_a_smaller_gain_that_is_shown_beside_a_larger_one_that_is_not_has_its_reason():
    small = {"delta": 0.019, "gain": (0.005, 0.03), "p": 0.02}
    wide = {"delta": 0.027, "gain": (-0.01, 0.06), "p": 0.2}
    table = table_of({"flat": {}, "small": small, "large": wide})
    told = why_a_smaller_one_is_shown(table, None)
    assert "small (+1.9 points" in told and "large (+2.7) is not" in told
    assert "reaches down to −1.0" in told
    above = wide | {"gain": (0.002, 0.05), "p": 0.09}
    table = table_of({"flat": {}, "small": small, "large": above})
    told = why_a_smaller_one_is_shown(table, "small")
    assert "is 0.090" in told and "small was asked about beforehand" in told
    assert "beforehand" not in why_a_smaller_one_is_shown(table, None)
    assert why_a_smaller_one_is_shown(table_of({"flat": {}, "small": small}), None) == ""
    ruled_out = {"delta": 0.019, "gain": (-0.01, 0.0199), "p": 0.9}
    table = table_of({"flat": {}, "small": small | {"delta": 0.018}, "out": ruled_out})
    assert why_a_smaller_one_is_shown(table, None) == ""
