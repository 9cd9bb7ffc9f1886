"""Several trained hierarchies of one method as one: in every node the mean of what theirs say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from stemcell_lit.classify.classic import ClassicStage
from stemcell_lit.classify.features import FeatureTable
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.learned import Learned
from stemcell_lit.classify.stacked import Stacked, Stage
from stemcell_lit.classify.trained import MOST_PARTS, TrainedHierarchy, content_of, parts_of
from stemcell_lit.errors import UserError


def mean_of(
    models: Sequence[TrainedHierarchy], hierarchy: Hierarchy, table: FeatureTable | None = None
) -> TrainedHierarchy:
    """The mean of the models' networks, each model with the same weight, under one hierarchy.

    Equal parts (an SVM has no seed) are there once, with the weight of all. The strength of the constraint in time is
    the median of the models'.

    Args:
        models: of one method on one store.
        hierarchy: fitted, with the nodes of theirs.
        table: of features, which classical stages share.

    Raises:
        UserError: their nodes tell other groups apart, or there are too many.
    """
    nodes = {node.name: list(node.targets) for node in hierarchy.nodes}
    for model in models:
        found = {name: stage.groups for name, stage in model.stages.items()}
        if found != nodes:
            raise UserError(
                f"the trials have trees of other nodes ({sorted(found.items())[:5]} and {sorted(nodes.items())[:5]}), "
                "perhaps because hierarchy.leaves was chosen in each fold, and nodes of other targets have no mean; "
                "give refit=true, which trains one tree"
            )
    stages = {name: _mean([model.stages[name] for model in models], table) for name in nodes}
    strength = float(median(model.hierarchy.strength for model in models))
    hierarchy = Hierarchy.from_dict({**hierarchy.to_dict(), "strength": strength})
    first = models[0]
    return replace(
        first,
        hierarchy=hierarchy,
        stages=stages,
        learned=Learned.union([model.learned for model in models]),
    )


def _mean(stages: Sequence[Stage], table: FeatureTable | None) -> Stage:
    parts: dict[str, Stage] = {}
    weights: dict[str, float] = {}
    for stage in stages:
        for part, weight in parts_of(stage):
            if isinstance(part, ClassicStage):
                table = table or part.table
                if part.table.extractor.key == table.extractor.key:
                    part.table = table
            name = _digest(content_of(part))
            parts.setdefault(name, part)
            weights[name] = weights.get(name, 0.0) + weight / len(stages)
    if len(parts) > MOST_PARTS:
        raise UserError(
            f"{len(parts)} networks in a node, expected at most {MOST_PARTS}; give members="
        )
    if len(parts) == 1:
        return next(iter(parts.values()))
    total = sum(weights.values())
    return Stacked(list(parts.values()), [w / total for w in weights.values()])


def _digest(content: dict[str, Any]) -> str:
    """Of everything that a stage answers by; the seed of its first weights is none of it."""
    about = {k: v for k, v in content["hyper_parameters"].items() if k != "seed"}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(content["state_dict"].items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return digest.hexdigest()


def counted(model: TrainedHierarchy) -> dict[str, dict[str, int]]:
    """How many networks and classical stages stand in each node."""
    found = {}
    for name, stage in model.stages.items():
        classic = sum(isinstance(part, ClassicStage) for part, _ in parts_of(stage))
        found[name] = {"network": len(parts_of(stage)) - classic, "classic": classic}
    return found


def counted_words(count: Mapping[str, int]) -> str:
    """What stands in a node, in words, such as `5 networks and 1 classical stage`."""
    names = {"network": "network", "classic": "classical stage"}
    told = [f"{n} {names[kind]}{'s' if n > 1 else ''}" for kind, n in count.items() if n]
    return " and ".join(told)
