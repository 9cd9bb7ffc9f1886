"""Which methods are compared to show what a part is worth: those that differ by it alone.

The rule is fixed, and so are the comparisons of a table before its results are seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

# What one method has and the other lacks -> what the comparison is called, in this order. Another part of a user's
# own goes by its name.
_CALLED = {
    ("generated", None): "generated patches",
    ("generated", "balanced"): "generated patches instead of balanced batches",
    ("generated", "repeated"): "generated patches instead of real ones again",
    ("generated", "shuffled"): "a generator that knows the classes",
    ("refitted", None): "a last layer trained again on balanced features",
    ("features", None): "generated features",
    ("time", None): "time",
    ("tree", None): "the tree",
    (None, "hard"): "adding up, not hard routing",
    ("classic", None): "classical features instead of a network",
    ("stacked", None): "both averaged instead of a network",
    ("stacked", "classic"): "both averaged instead of classical features",
}
# A part is asked about where no later one is: the tree on real patches, generated patches without hard routing.
_STEP = {
    **dict.fromkeys(("tree", "time", "classic", "stacked"), 0),
    **dict.fromkeys(("balanced", "generated", "repeated", "shuffled"), 1),
    "hard": 2,
}
_LAST = 3
_ORDER = ("generated", "time", "tree", "hard", "classic", "stacked")
_WHERE = {(): "one network", ("generated", "time", "tree"): "full method"}


def comparisons(
    methods: Mapping[str, Sequence[str] | None],
) -> list[tuple[str, str, str, str]]:
    """Pairs of methods that differ by a part.

    Args:
        methods: the parts of each, in the order of the table; None: it is not compared.

    Returns:
        What it is called, what both methods have in words, the method with the part, and the one without it.
    """
    found = []
    places = {name: i for i, name in enumerate(methods)}
    for method, other in permutations(methods, 2):
        mine, theirs = methods[method], methods[other]
        if mine is None or theirs is None:
            continue
        has, lacks = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
        if len(has) > 1 or len(lacks) > 1:
            continue
        difference = (has[0] if has else None, lacks[0] if lacks else None)
        part = difference[0] or difference[1]
        called = _CALLED.get(difference)
        if called is None and not lacks and part not in _STEP:
            called = part
        common = set(mine) & set(theirs)
        if called is None or part is None or any(_step(c) > _step(part) for c in common):
            continue
        order = _ORDER.index(part) if part in _ORDER else len(_ORDER)
        key = (order, places[method], places[other])
        found.append((key, (called, _where(part, common), method, other)))
    return [comparison for _, comparison in sorted(found)]


def _step(part: str) -> int:
    return _STEP.get(part, _LAST)


def _where(part: str, common: set[str]) -> str:
    """What both methods have, in words."""
    if part in ("tree", "classic", "stacked"):
        return "time" if "time" in common else "no time"
    told = {
        "generated": "generated patches",
        "balanced": "balanced batches",
        "refitted": "last layer trained again",
        "classic": "classical features",
        "stacked": "network and classical features",
    }
    steps = sorted(common, key=lambda c: (_step(c), c != "tree", c))
    return _WHERE.get(tuple(sorted(common))) or ", ".join(told.get(c, c) for c in steps)
