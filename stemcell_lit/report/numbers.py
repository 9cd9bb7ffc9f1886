"""How a report writes its numbers: shares in %, differences in points, intervals, p values, verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stemcell_lit.evaluate.results_table import points


def percent(value: float) -> str:
    """A share, 0 to 1, in %; a dash for none."""
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def signed_points(value: float) -> str:
    """A difference of shares in points, with its sign; a dash for none."""
    return points(value).replace("-", "−") if math.isfinite(value) else "–"


def interval(low: float, high: float, signed: bool = False) -> str:
    """The ends of an interval of shares in %, or `signed` of differences in points; a dash for none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    show = signed_points if signed else percent
    return f"{show(low)} to {show(high)}"


def smallest(value: float) -> str:
    """The smallest gain that would have been shown, in points; a dash where none would."""
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def p_value(value: float) -> str:
    """A p to three digits; a dash for none."""
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def verdict_word(row: Mapping[Any, Any]) -> str:
    """`shown`, `worse`, `not shown` or what is ruled out: the verdict without the question that it answers."""
    return str(row["verdict"].rsplit(": ", 1)[-1])
