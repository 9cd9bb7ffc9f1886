"""What stands in each node of a trial's tree, trained: a network, a classical stage, both, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stemcell_lit.classify.classic import ClassicStage
from stemcell_lit.classify.domain import MOST_PATCHES, Domain
from stemcell_lit.classify.features import families, feature_names
from stemcell_lit.classify.learned import Learned
from stemcell_lit.classify.stacked import Stacked, Stage, fitted_weight
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.classify.tree import Node
from stemcell_lit.evaluate.metrics import scores
from stemcell_lit.experiment.classic import (
    TrainedClassic,
    feature_table,
    node_targets,
    open_classic,
)
from stemcell_lit.experiment.generators import make_generated
from stemcell_lit.experiment.heads import stage_folder
from stemcell_lit.experiment.stages import open_stage
from stemcell_lit.experiment.trial import Trial, needs_generator
from stemcell_lit.patches.store import PatchStore, reduce_pixels

REPEATS = 5  # permutations of a family of features


@dataclass(frozen=True)
class Trained:
    """What the training of a trial gives.

    Attributes:
        model: the hierarchy, tuned on validation patches.
        stages: what is known of each stage's training.
        generator: `path` of the generator's folder and of its `generated` store; None: none was used.
    """

    model: TrainedHierarchy
    stages: list[dict[str, Any]]
    generator: dict[str, Path] | None

    @property
    def generated_counts(self) -> dict[str, int]:
        """Generated patches per stage and group."""
        return {
            f"{about['node']}/{g}": n[1] for about in self.stages for g, n in about["train"].items()
        }


def train_trial(trial: Trial) -> Trained:
    """Trains what the trial's method has in each node, and weighs the constraint in time on validation patches."""
    hierarchy = trial.hierarchy.fit(**trial.train.facts)
    learners = trial.config.method.learners
    generator = make_generated(trial, hierarchy) if "network" in learners else None
    generated = PatchStore.open(generator["generated"]) if generator else None
    table = feature_table(trial) if "classic" in learners else None
    stages: dict[str, Stage] = {}
    known = []
    for node in hierarchy.nodes if learners else []:
        parts: list[Stage] = []
        if "network" in learners:
            folder = stage_folder(trial, node, generated)
            network, about = open_stage(folder, trial.config.stage.network)
            parts.append(network)
        if table is not None:
            folder = trial.artifacts.get(TrainedClassic(trial, node, table))
            classic, of_classic = open_classic(folder, table)
            parts.append(classic)
            about = about if "network" in learners else of_classic
        stages[node.name] = parts[0] if len(parts) == 1 else _stacked(trial, node, parts)
        known.append(about)
    size = max((stage.image_size for stage in stages.values()), default=trial.size)
    model = TrainedHierarchy(
        hierarchy,
        stages,
        size,
        trial.um_per_px_at(size),
        trial.store.scales,
        trial.store.size / size,
        _learned(trial, size),
        trial.store.scaling,
        domain_of(trial.store, trial.split.train, size),
    )
    if len(trial.val) and learners:
        val = trial.seen(trial.val)
        p = model.network_probabilities(val.pixels, val.facts["times"])
        model.hierarchy = hierarchy.tune(p, **val.facts)
    return Trained(model, known, generator)


def _learned(trial: Trial, size: int) -> Learned:
    """Training patches, those that choose and tune, and those without a label, where it or its generator had them."""
    split, config = trial.split, trial.config
    generated = needs_generator(config) and config.gan.unlabelled
    more = [split.unlabelled] if config.stage.pseudo_rounds or generated else []
    return Learned.of(trial.store, np.concatenate([split.train, split.val, *more]), size)


def domain_of(store: PatchStore, rows: np.ndarray, size: int) -> Domain:
    """What patches that a model learned from look like at the size that it wants.

    Args:
        store: of them.
        rows: which.
        size: px.
    """
    rows = np.sort(rows)
    if len(rows) > MOST_PATCHES:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:MOST_PATCHES])
    return Domain.of(reduce_pixels(store.finest[rows], size))


def _stacked(trial: Trial, node: Node, parts: list[Stage]) -> Stacked:
    """Network and classical stage, each half, or as the validation patches of this node weigh them."""
    weight = 0.5
    if trial.config.classic.blend == "fitted":
        val = trial.seen(trial.val)
        inside, y = node_targets(node, val.manifest["label"].to_numpy(), val.facts["times"])
        pixels = val.pixels[inside]
        first, second = (part.probabilities(pixels) for part in parts)
        weight = fitted_weight(first, second, y)
    return Stacked(parts, [weight, 1 - weight])


def importance(model: TrainedHierarchy, trial: Trial) -> dict[str, Any] | None:
    """What each family of features is worth: macro TPR lost on validation patches when it is another patch's.

    All features of a family are permuted together (features of one family say much the same, and one alone would
    hardly be missed), in every stage, before the constraint in time.

    Returns:
        for result.json the score without a permutation and `families`, name -> mean drop and deviation over
        permutations; None where something else than features classifies, or no patch validates.
    """
    stages = {n: s for n, s in model.stages.items() if isinstance(s, ClassicStage)}
    of_network = trial.config.classic.features != "classical"  # whose features have no names
    if not stages or len(stages) < len(model.stages) or not len(trial.val) or of_network:
        return None
    part = trial.seen(trial.val)
    labels, times = part.facts["labels"], part.facts["times"]
    x = next(iter(stages.values())).table.of(part.pixels)

    def score(features: np.ndarray) -> float:
        p = model.hierarchy.combine({n: s.of_features(features) for n, s in stages.items()}, times)
        return scores(labels, p.argmax(1), trial.store.classes)["macro/tpr"]

    whole, rng, found = score(x), np.random.default_rng(0), {}
    for family, columns in families(feature_names(len(trial.store.scales))).items():
        drops = []
        for _ in range(REPEATS):
            mixed = x.copy()
            mixed[:, columns] = x[rng.permutation(len(x))][:, columns]
            drops.append(whole - score(mixed))
        found[family] = {"drop": float(np.mean(drops)), "std": float(np.std(drops))}
    return {"macro/tpr": whole, "families": found}
