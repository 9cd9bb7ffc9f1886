"""Methods that are none of their own on some data: equal to another there, or without what the data would have to say.

What decides is what the settings come to, not the name: a tree of one node is one network, a constraint in time that is
`none` is none, and generated patches of which none are wanted are none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stemcell_lit.base import formats as form
from stemcell_lit.base.artifacts import key_hash
from stemcell_lit.base.files import write_whole
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.forms import LEFT_OUT
from stemcell_lit.experiment.trial import chooses, relevant
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import RunCommand

FORMAT = 1  # of left_out.json
FILE = "left_out.json"  # in a folder of results: methods that were asked for and not made, and why
# settings of a constraint in time that each kind of it reads
_READ = {
    "none": (),
    "window": ("quantile", "margin_h"),
    "prior": ("bins", "smoothing"),
    "path": ("smoothing",),
}


def built(config: RunCommand, classes: Sequence[str]) -> Hierarchy:
    """The hierarchy that a trial's settings come to over some classes, not fitted.

    Raises:
        UserError: they do not fit together.
    """
    flat = not config.method.tree
    return Hierarchy.build(classes, config.hierarchy, config.temporal, flat=flat)


def identity(config: RunCommand, classes: Sequence[str]) -> str:
    """A hash that two methods share if they are the same on data of these classes, whatever their names.

    Raises:
        UserError: the settings do not fit together.
    """
    hierarchy = built(config, classes)
    several, kind = len(hierarchy.nodes) > 1, hierarchy.temporal
    # the clock alone is p(class | time), whatever its constraint is
    read = {*_READ[kind], *(() if config.method.learners else _READ["prior"])}
    plain = relevant(config)
    method = plain.pop("method")
    plain |= {
        "hierarchy": [[node.name, node.groups, node.leaves] for node in hierarchy.nodes],
        "tree": hierarchy.tree if several else {},
        "hard": hierarchy.hard and (several or kind != "none"),
        "temporal": [kind, *(hierarchy.settings[name] for name in sorted(read))],
        "weights": [
            config.stage.weights if "network" in config.method.learners else None,
            config.classic.weights if "classic" in config.method.learners else None,
        ],
        "moves": hierarchy.moves if kind == "path" else None,
        "method": {k: v for k, v in method.items() if k not in ("name", "tree")},
        "split": {k: v for k, v in plain["split"].items() if k != "fold"},
        "seed": 0,
    }
    return key_hash(json.loads(json.dumps(plain)))


def equal_ones(configs: Mapping[str, RunCommand], classes: Sequence[str]) -> dict[str, str]:
    """Methods that are the same as one before them: name -> that one's name.

    Args:
        configs: by name; of equal ones the first is kept.
        classes: of the patches.
    """
    first: dict[str, str] = {}
    found = {}
    for name, config in configs.items():
        try:
            kept = first.setdefault(identity(config, classes), name)
        except UserError:  # said where it is planned
            continue
        if kept != name:
            found[name] = kept
    return found


def left_out(
    configs: Mapping[str, Sequence[RunCommand]],
    baseline: str,
    store: PatchStore,
    *,
    known: bool = True,
) -> dict[str, str]:
    """Methods of a table, or of the tables of a sweep, that are not worth their training: name -> why, in a sentence.

    Args:
        configs: each method's settings, in each table.
        baseline: is never left out.
        store: the patches.
        known: whether times and tracks of the store are those that the trials will find.
    """
    reasons: dict[str, str] = {}
    for name, of_tables in configs.items():
        lacking = [_lacking(config, store) if known else None for config in of_tables]
        if name != baseline and all(lacking):
            reasons[name] = f"{name} is left out: {lacking[0]}"
    # of equal methods the baseline stays, else the one with fewest parts, which stands first in a table
    order = sorted(
        (name for name in configs if name not in reasons),
        key=lambda name: (name != baseline, configs[name][0].method.rank),
    )
    tables = range(len(configs[baseline]))
    pairs = [equal_ones({n: _dosed(configs[n][t]) for n in order}, store.classes) for t in tables]
    for name, same in pairs[0].items():
        if all(found.get(name) == same for found in pairs):
            tree = configs[name][0].hierarchy.name
            reasons[name] = said_equal(name, same, tree)
    return {name: reasons[name] for name in configs if name in reasons}


def _dosed(config: RunCommand) -> RunCommand:
    """The settings, with no dose of generated patches as real patches alone."""
    none = config.mix.recipe in ("ratio", "target", "share") and config.mix.amount == 0
    none &= not chooses(config)
    return replace(config, mix=replace(config.mix, recipe="real")) if none else config


def said_equal(name: str, same: str, tree: str) -> str:
    """Why a method is left out that equals another."""
    return f"{name} is left out: on these data, with hierarchy={tree} and these settings, it is the same as {same}"


def _lacking(config: RunCommand, store: PatchStore) -> str | None:
    """What the method needs and no patch has."""
    known = store.manifest[store.labelled]
    timed = bool(np.isfinite(known["time_h"]).any())
    if not config.method.learners:
        return None if timed else "no patch has a time"
    try:
        kind = built(config, store.classes).temporal
    except UserError:
        return None
    if kind in ("window", "prior") and not timed:
        return f"no patch has a time, which its constraint ({kind}) needs"
    tracks = known["track"]
    if kind == "path" and not tracks[tracks != ""].duplicated().any():
        return f"no track has two patches, which its constraint ({kind}) needs"
    return None


def write_left_out(out: Path, reasons: Iterable[str]) -> None:
    """Keeps why methods were left out of a folder of results, for its report."""
    said = list(reasons)
    if said or (out / FILE).is_file():
        text = json.dumps({"format": FORMAT, "left_out": said}, indent=1)
        write_whole(out / FILE, text + "\n")


def read_left_out(out: Path) -> list[str]:
    """What `write_left_out` kept; empty where nothing was left out.

    Raises:
        UserError: the file cannot be read.
    """
    if not os.path.lexists(out / FILE):
        return []
    found: dict[str, Any] = form.read_json(out / FILE, LEFT_OUT, "delete it")
    return list(found["left_out"])
