"""What to do with a table: the method to use, what helps, what to label next; in sentences, from its numbers alone.

Nothing here reads a file or looks at a picture. "Yes" is said only where the table says `shown`, and the method is
chosen by its scores on validation patches, so that the scores on test groups stay an honest estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from stemcell_lit.evaluate.intervals import ALPHA, METRICS, POWER
from stemcell_lit.experiment.results import CLAIM, TITLES, Row, rows_of
from stemcell_lit.report.numbers import (
    interval,
    p_value,
    percent,
    signed_points,
    smallest,
    verdict_word,
)

YES, NO, DEPENDS, OPEN, NONE = "yes", "no", "it depends", "these data cannot tell", "not compared"

# What is asked, and the name that `experiment/parts.py` gives to the comparisons that answer it.
ASKED = {"Generated patches": "generated patches", "The tree": "the tree", "Time": "time"}
INSTEAD = "generated patches instead of balanced batches"

_LEAKY = (
    "No method can be recommended: this split puts near-duplicates on both sides on purpose, and every score is "
    "inflated."
)
_GROUPED = "Run the same with split.kind=grouped."
ENOUGH = 0.95  # a class whose TPR is surely above it needs no more labels
LEAST = 6  # groups: with fewer no p value is below 0.05 (2 / 2**5 is above it)


@dataclass(frozen=True)
class Help:
    """Whether a part helps.

    Attributes:
        topic: the part, as a heading.
        answer: `YES`, `NO`, `DEPENDS`, `OPEN` or `NONE`.
        text: why, in a sentence or two.
    """

    topic: str
    answer: str
    text: str

    @property
    def sentence(self) -> str:
        """All of it as one line."""
        return f"{self.topic}: {self.answer}. {self.text}"


@dataclass(frozen=True)
class ClassSize:
    """How much of a class was tested: patches, groups that hold some, and the equal groups that these are worth."""

    patches: int
    groups: int
    effective: float


@dataclass(frozen=True)
class Advice:
    """The first screen of a report.

    Attributes:
        method: the one to use; None: none can be chosen.
        use: why, and what it scores.
        helps: an answer for each of `ASKED`.
        next: what to label.
        command: what makes a model; None: there is nothing to be made.
        claim: what is shown of the paper's whole method, where it ran.
    """

    method: str | None
    use: str
    helps: tuple[Help, ...]
    next: str
    command: str | None
    claim: str | None = None

    @property
    def lines(self) -> list[str]:
        """All of it, a line each, for a terminal or Markdown."""
        told = [self.use, *(one.sentence for one in self.helps), self.next]
        told += [f"To get a model: {self.command}"] if self.command else []
        return told + ([self.claim] if self.claim else [])


def advise(
    table: pd.DataFrame,
    parts: pd.DataFrame,
    sizes: Mapping[str, ClassSize],
    *,
    baseline: str,
    claimed: str | None,
    validated: Mapping[str, tuple[float, float]],
    about: Mapping[str, str | None],
    absent: Mapping[str, str] | None = None,
    command: str | None = None,
    leaky: bool = False,
    simulated: bool = False,
) -> Advice:
    """The sentences of a table.

    Args:
        table: of `compare`.
        parts: of `contrasts`, with the columns `part` and `where`.
        sizes: of each class.
        baseline: what the others are compared with.
        claimed: the paper's whole method, where it ran.
        validated: method -> macro F1 and TPR on validation patches, 0 to 1; in the order of the table.
        about: method -> what it is.
        absent: topic of `ASKED` -> why nothing has this part here.
        command: what makes a model.
        leaky: near-duplicates are on both sides of the split.
        simulated: no real patches.
    """
    rows = rows_of(table)
    if leaky:
        told = "Nothing is said on a leaky split: what near-duplicates add differs from method to method."
        return Advice(
            None, _LEAKY, tuple(Help(topic, NONE, told) for topic in ASKED), _GROUPED, None
        )
    method = chosen(validated)
    return Advice(
        method,
        _use(rows, method, baseline, validated, about),
        tuple(helps(parts, topic, (absent or {}).get(topic)) for topic in ASKED),
        _next(rows, method or baseline, sizes, simulated),
        command if method else None,
        _claim(rows, claimed, baseline) if claimed else None,
    )


def chosen(validated: Mapping[str, tuple[float, float]]) -> str | None:
    """The method of the highest macro F1, then TPR, on validation patches; of equals the first, the simplest."""
    known = {m: pair for m, pair in validated.items() if all(map(math.isfinite, pair))}
    return max(known, key=known.__getitem__) if known else None


def _use(
    rows: Mapping[tuple[str, str, str], Row],
    method: str | None,
    baseline: str,
    validated: Mapping[str, tuple[float, float]],
    about: Mapping[str, str | None],
) -> str:
    if method is None:
        return (
            "No method can be recommended: no method has scores on validation patches, and test groups must not "
            "choose one."
        )
    what = f" ({about[method]})" if about.get(method) else ""
    scores = " and ".join(
        f"{percent(row['mean'])} % macro {TITLES[metric]} ({_ends(row['low'], row['high'])})"
        for metric in METRICS
        for row in [rows[method, metric, ""]]
    )
    told = f"Use {method}{what}: {scores} on test groups that it never saw."
    score = percent(validated[method][0])
    if len(validated) == 1:
        return (
            f"{told} It is the only method with scores on validation patches (macro F1 {score} %)."
        )
    told += (
        f" It was chosen by validation patches alone: its macro F1 there, {score} %, is the highest of "
        f"{len(validated)} methods."
    )
    if method == baseline:
        return f"{told} No other method did better there."
    gains = [_gain(rows[method, metric, ""]) for metric in METRICS]
    return f"{told} Against {baseline} on the test groups: {' and '.join(gains)}."


def _gain(row: Row) -> str:
    """A difference with its verdict: `+1.9 points TPR (shown)`."""
    return (
        f"{signed_points(row['delta'])} points {TITLES[str(row['metric'])]} ({verdict_word(row)})"
    )


def _ends(low: float, high: float, signed: bool = False) -> str:
    told = interval(low, high, signed)
    return "too few groups for an interval" if told == "–" else f"95 % interval {told}"


def helps(parts: pd.DataFrame, topic: str, absent: str | None = None) -> Help:
    """Whether a part helps on these data, from all pairs of methods that differ by it alone.

    `YES`: a gain is shown for a pair, and nothing is said against it for another. `NO`: a pair is shown to be worse, or
    for every pair a gain of two points is ruled out. `DEPENDS`: yes for one pair, no for another.

    Args:
        parts: of `contrasts`, with the columns `part` and `where`.
        topic: of `ASKED`.
        absent: why nothing has this part here.
    """
    pairs = _pairs(parts, ASKED[topic])
    if not pairs:
        return Help(topic, NONE, absent or "No two of these methods differ by it alone.")
    answers = [_answer(pair) for pair in pairs]
    overall = _overall(answers)
    lead = _lead(answers, overall)
    told = [_told(pairs[lead], answers[lead])]
    words = {
        **{YES: "yes", NO: "no gain of 2 points", "worse": "worse"},
        **{OPEN: "cannot tell", DEPENDS: "one score better, the other worse"},
    }
    others = [
        f"{next(iter(pair.values()))['method']} against {next(iter(pair.values()))['other']}: {words[answer]}"
        for i, (pair, answer) in enumerate(zip(pairs, answers, strict=True))
        if i != lead
    ]
    told += [f"Also {'; '.join(others)}."] if others else []
    if topic == "Generated patches" and overall in (YES, DEPENDS):
        instead = [_answer(pair) for pair in _pairs(parts, INSTEAD)]
        if instead and YES not in instead:
            told.append("That they do more than a balanced sampler is not shown.")
    return Help(topic, overall, " ".join(told))


def _pairs(parts: pd.DataFrame, part: str) -> list[dict[str, Row]]:
    """Metric -> row, for each pair of methods that is compared for a part."""
    if parts.empty:
        return []
    mine = parts[parts["part"] == part]
    found = []
    for _, pair in mine.groupby(["method", "other"], sort=False):
        records: Any = pair.to_dict("records")
        found.append({row["metric"]: row for row in records})
    return found


def _answer(pair: Mapping[str, Row]) -> str:
    """Of a pair: `YES`, `worse`, `NO`, `DEPENDS` (one score better, the other worse) or `OPEN`."""
    words = [verdict_word(row) for row in pair.values()]
    if "shown" in words:
        return DEPENDS if "worse" in words else YES
    if "worse" in words:
        return "worse"
    return NO if all(word.startswith("no ") for word in words) else OPEN


def _overall(answers: Sequence[str]) -> str:
    found = set(answers)
    if YES in found or DEPENDS in found:
        return DEPENDS if found & {NO, "worse", DEPENDS} else YES
    return NO if "worse" in found or found == {NO} else OPEN


def _lead(answers: Sequence[str], overall: str) -> int:
    """The pair whose numbers are told: the first that says what is said of all."""
    order = {YES: (YES,), NO: ("worse", NO), DEPENDS: (YES, DEPENDS), OPEN: (OPEN,)}[overall]
    return min(range(len(answers)), key=lambda i: (order + tuple(answers)).index(answers[i]))


def _told(pair: Mapping[str, Row], answer: str) -> str:
    first = next(iter(pair.values()))
    numbers = [
        f"{signed_points(row['delta'])} points {TITLES[metric]} ({interval(row['delta_low'], row['delta_high'], True)})"
        for metric, row in pair.items()
    ]
    told = f"{first['method']} against {first['other']}: {', '.join(numbers)}"
    told += {
        "worse": ", shown to be worse",
        NO: f"; a gain of {100 * CLAIM:.0f} points is ruled out",
    }.get(answer, "")
    seen = [f"{smallest(r['mde'])} {TITLES[m]}" for m, r in pair.items() if math.isfinite(r["mde"])]
    if not seen:
        return f"{told}. With these groups and resamples no gain can be shown, however large."
    power = f"{100 * POWER:.0f} %"
    return f"{told}. Such data show a gain in {power} of cases from {' or '.join(seen)} points on."


def _claim(rows: Mapping[tuple[str, str, str], Row], claimed: str, baseline: str) -> str:
    """The paper's claim in a sentence of its own: it is about one method, whichever is best here."""
    gains = [_gain(rows[claimed, metric, ""]) for metric in METRICS]
    return f"The paper's whole method, {claimed}, against {baseline}: {' and '.join(gains)}."


def worst_class(rows: Mapping[tuple[str, str, str], Row], method: str, names: Sequence[str]) -> str:
    """The class to label more of: that whose TPR may be lowest.

    By the lower end of its interval, which is low where a class is missed and where little is known of it; a class
    without an interval comes first. Of equals the one of lower TPR.
    """

    def key(name: str) -> tuple[float, float]:
        row = rows[method, "tpr", name]
        return tuple(v if math.isfinite(v) else -1.0 for v in (row["low"], row["mean"]))  # type: ignore[return-value]

    return min(names, key=key)


def more_groups(groups: int, effective: float) -> int:
    """How many more groups with a class halve the interval of its TPR; an estimate.

    An interval of n equal groups is as wide as t(n - 1) / sqrt(n - 1), Student's t at 97.5 %. New groups are taken to
    be as unequal as those that are there, and what seeds add to the interval to be small. At least `LEAST` in all.

    Args:
        groups: that hold the class.
        effective: the equal groups that they are worth, more than 1 and at most `groups`.
    """

    def width(n: float) -> float:
        return float(stats.t.ppf(1 - ALPHA / 2, n - 1)) / math.sqrt(n - 1)

    if not effective > 1 or groups < 2:
        return max(1, LEAST - groups)
    low, high = effective, 5 * effective + 5
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if width(middle) > width(effective) / 2 else (low, middle)
    return max(math.ceil(groups * (high / effective - 1)), LEAST - groups, 1)


def _next(
    rows: Mapping[tuple[str, str, str], Row],
    method: str,
    sizes: Mapping[str, ClassSize],
    simulated: bool,
) -> str:
    name = worst_class(rows, method, list(sizes))
    row, size = rows[method, "tpr", name], sizes[name]
    begin = "These patches are simulated; of real ones: label" if simulated else "Label"
    if math.isfinite(row["low"]) and row["low"] >= ENOUGH:
        return (
            f"No class asks for more labels: the TPR of each is above {100 * ENOUGH:.0f} % with its whole interval "
            f"({name}, the lowest: {interval(row['low'], row['high'])} %)."
        )
    more = more_groups(size.groups, size.effective)
    groups = f"{more} more group{'s' if more > 1 else ''} (movies, fields or tracks)"
    each = max(1, round(size.patches / size.groups)) if size.groups else 0
    like = f", about {each} patch{'es' if each > 1 else ''} in each as now," if each else ""
    if not math.isfinite(row["mean"]):
        return f"{begin} more of {name}: none of it was tested. It needs at least {groups}."
    found = (
        f"{percent(row['mean'])} % of its {size.patches} tested patches are found, in {size.groups} "
        f"group{'s' if size.groups != 1 else ''}"
    )
    if not math.isfinite(row["low"]):
        return (
            f"{begin} more of {name}: {found}, too few for an interval. At least {groups} that hold it{like} are "
            f"needed: with fewer than {LEAST} in all no gain in it can be shown."
        )
    ends = interval(row["low"], row["high"])
    if row["high"] - row["low"] < 1e-9:
        return (
            f"{begin} more of {name}: {found}, in all of them alike, so that nothing can be reckoned from their "
            f"scatter. {groups[0].upper() + groups[1:]} that hold it{like} are a beginning."
        )
    return (
        f"{begin} more of {name}: {found}, and with an interval of {ends} % its TPR may be the lowest of all "
        f"classes. About {groups} that hold it{like} would halve this interval (an estimate, from how intervals "
        "shrink with the number of groups)."
    )


def why_a_smaller_one_is_shown(table: pd.DataFrame, claimed: str | None) -> str:
    """A sentence where a gain is shown beside a larger one that is not; empty: nothing to explain.

    Args:
        table: of `compare`.
        claimed: the method whose p values are adjusted apart.
    """
    best: tuple[float, Row, Row] | None = None
    macro: Any = table[table["class"] == ""].to_dict("records")
    for low in macro:
        for high in macro:
            gap = high["delta"] - low["delta"]
            if low["metric"] != high["metric"] or verdict_word(low) != "shown" or not gap > 0:
                continue
            if verdict_word(high) == "not shown" and (best is None or gap > best[0]):
                best = (gap, low, high)
    if best is None:
        return ""
    _, low, high = best
    told = (
        f"{low['method']} ({signed_points(low['delta'])} points {TITLES[str(low['metric'])]}) is shown and "
        f"{high['method']} ({signed_points(high['delta'])}) is not: shown asks whether a gain may be chance, not how "
        "large it is. "
    )
    if not math.isfinite(high["delta_low"]):
        return f"{told}The larger one has no interval."
    if high["delta_low"] <= 0:
        down = signed_points(high["delta_low"])
        return f"{told}The larger one varies more from group to group: its interval reaches down to {down}."
    apart = (
        f"; {low['method']} was asked about beforehand and is adjusted apart from the others"
        if low["method"] == claimed
        else ""
    )
    return (
        f"{told}The interval of the larger one lies above zero as well, but its p, adjusted for all comparisons of "
        f"its kind, is {p_value(high['p'])}{apart}."
    )
