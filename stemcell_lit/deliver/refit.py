"""The method trained once more, on all labelled groups, with the settings that its trials found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.data.splits import whole_split
from stemcell_lit.deliver.chosen import Chosen
from stemcell_lit.experiment.learners import train_trial
from stemcell_lit.experiment.results import Result
from stemcell_lit.experiment.training import quiet, use_cpu
from stemcell_lit.experiment.trial import Part, Trial, with_settings


def refit(chosen: Chosen, members: int | None) -> tuple[list[TrainedHierarchy], Part]:
    """A model a seed, trained on every labelled group but those of a validation share.

    The share, as large as in the trials, is held out for two things alone: when the training ends, and the
    temperature with its threshold.

    Args:
        chosen: the trials whose settings are taken.
        members: at most so many seeds, None: all.

    Returns:
        the models by seed, and the patches of the validation share.
    """
    quiet()
    models: list[TrainedHierarchy] = []
    trials = [_trial(chosen, seed) for seed in sorted({t.seed for t in chosen.trials})[:members]]
    for trial in trials:
        use_cpu(trial.config.trainer)
        models.append(train_trial(trial).model)
    return models, trials[0].seen(trials[0].val)


def found_settings(trials: Sequence[Result]) -> Mapping[str, Any]:
    """The choice of `tune=true` that most trials took, of equally many the first; empty without tuning."""
    taken = [(trial.info.get("tuning") or {}).get("taken") or {} for trial in trials]
    count = Counter(json.dumps(one, sort_keys=True) for one in taken)
    most: Mapping[str, Any] = json.loads(max(count, key=count.__getitem__))
    return most


def _trial(chosen: Chosen, seed: int) -> Trial:
    config = chosen.settings(next(t for t in chosen.trials if t.seed == seed))
    taken = found_settings(chosen.trials)
    config = replace(with_settings(config, taken) if taken else config, tune=False)
    hierarchy = Hierarchy.build(
        chosen.store.classes, config.hierarchy, config.temporal, flat=not config.method.tree
    )
    split = whole_split(chosen.store, config.split)
    return Trial(config, chosen.store, split, chosen.artifacts, hierarchy)
