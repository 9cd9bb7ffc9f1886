"""`run` makes a trial, from patches to result.json; `train` makes a part of one."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.base import formats as form
from stemcell_lit.base.files import check_target, finite, whole_or_absent
from stemcell_lit.classify.plateau import refined_loss
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import confusion, scores
from stemcell_lit.experiment import tracking
from stemcell_lit.experiment.classic import TrainedClassic, feature_table
from stemcell_lit.experiment.forms import VALIDATION
from stemcell_lit.experiment.generator_quality import generator_summary
from stemcell_lit.experiment.generators import (
    CHECKPOINT,
    TrainedGenerator,
    generator_facts,
    make_generated,
)
from stemcell_lit.experiment.heads import stage_folder
from stemcell_lit.experiment.learners import Trained, importance, train_trial
from stemcell_lit.experiment.plan import plan
from stemcell_lit.experiment.problems import Planner
from stemcell_lit.experiment.training import join_ranks, quiet, use_cpu, versions
from stemcell_lit.experiment.trial import (
    FORMAT,
    RESULT,
    Part,
    Trial,
    chooses,
    prepare,
    with_settings,
)
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import RunCommand, TrainCommand, typed
from stemcell_lit.settings.words import nearest

PREDICTIONS = "predictions.parquet"


def run(config: RunCommand) -> Path:
    """Makes one trial and returns its folder; a finished one is returned at once.

    The folder holds result.json, predictions.parquet (a row per test patch) and model/ (the trained hierarchy).

    Raises:
        UserError: settings or data that do not fit together.
    """
    quiet()
    first = join_ranks(config.trainer)
    ((trial,),) = plan([config])
    if trial.finished:
        return trial.folder
    if first:
        check_target(trial.folder, "trial", inputs=[config.data.store])
    start = time.monotonic()
    use_cpu(config.trainer)
    beginning = _beginning(trial)
    with tracking.wandb_run(beginning, config.logger, Path(config.out), first=first) as wandb_run:
        chosen, tuning = choose(trial)
        chosen = replace(chosen, wandb_run=wandb_run)
        trained = train_trial(chosen)
        table, scored = evaluate(trained.model, chosen.seen(chosen.test))
        result = {
            **beginning,
            **scored,
            "validation": validation_scores(trained.model, chosen),
            "importance": importance(trained.model, chosen),
            "tuning": tuning,
            **_ending(chosen, trained),
        }
        result["data"]["generated"] = trained.generated_counts
        result["seconds"] = round(time.monotonic() - start, 1)
        if first:
            _write(trial.folder, trained.model, table, result, [config.data.store])
            tracking.log_result(wandb_run, finite(result), table, Path(config.out), trial.store)
    return trial.folder


def _write(
    place: Path,
    model: TrainedHierarchy,
    table: pd.DataFrame,
    result: Mapping[str, Any],
    inputs: Sequence[str | None],
) -> None:
    with whole_or_absent(place, "trial", inputs=inputs) as folder:
        (folder / "model").mkdir()
        model.save(folder / "model")
        table.to_parquet(folder / PREDICTIONS, index=False)
        text = json.dumps(finite(result), indent=1, allow_nan=False)
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")


# --- what result.json says ------------------------------------------------------------------------------------------


def _beginning(trial: Trial) -> dict[str, Any]:
    """What is known before the training."""
    config = trial.config
    return {
        "format": FORMAT,
        "hash": trial.hash,
        "method": config.method.name,
        "fold": config.split.fold,
        "seed": config.seed,
        "classes": trial.store.classes,
        "data": _data_facts(trial),
        "temporal": {"kind": trial.hierarchy.temporal},
        "outside": trial.outside,
        "config": asdict(config),
    }


def _data_facts(trial: Trial) -> dict[str, Any]:
    return {
        "unlabelled": len(trial.unlabelled),
        "store": str(trial.store.path),
        "content_hash": trial.store.content_hash,
        "simulated": trial.store.info["made_by"].get("origin") == "simulated",
        "real": trial.train.counts,
        "val": trial.val.counts,
        "test": trial.test.counts,
    }


def _ending(trial: Trial, trained: Trained) -> dict[str, Any]:
    """What is known after it, beside the scores on test patches."""
    model, generator, split = trained.model, trained.generator, trial.split
    return {
        "stages": _with_test_confusions(trained.stages, model, trial.seen(trial.test)),
        "generator": generator
        and {
            **{k: os.path.relpath(v, trial.config.out) for k, v in generator.items()},
            "curve": generator_facts(generator["path"])["curve"],
        },
        "generator_quality": generator_summary(generator),
        "store": str(trial.store.path),
        "split": {
            "kind": split.kind,
            **{part: split.groups(trial.store, part) for part in ("train", "val", "test")},
            **(
                {"thinned": {k: asdict(v) for k, v in split.thinned.items()}}
                if split.thinned
                else {}
            ),
        },
        "temporal": {
            "kind": model.hierarchy.temporal,
            "windows": model.hierarchy.to_dict()["windows"],
            "strength": model.hierarchy.strength,
        },
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _with_test_confusions(
    stages: Sequence[dict[str, Any]], model: TrainedHierarchy, test: Part
) -> list[dict[str, Any]]:
    """Adds to each stage its own confusion matrix on the test patches that belong to it."""
    if not stages:
        return []
    nodes = {node.name: node for node in model.hierarchy.nodes}
    labels, times = (test.manifest[c] for c in ("label", "time_h"))
    pixels, found = test.pixels, []
    for about in stages:
        node, stage = nodes[about["node"]], model.stages[about["node"]]
        target = {c: i for i, members in enumerate(node.targets.values()) for c in members}
        inside = labels.isin(list(target)).to_numpy() & node.scope.learns_at(times.to_numpy())
        predicted = stage.probabilities(pixels[inside]).argmax(1)
        truth = labels[inside].map(target).to_numpy(np.int64)
        matrix = confusion(truth, predicted, list(node.targets)).tolist()
        found.append({**about, "confusion": matrix})
    return found


# --- choosing on validation patches ---------------------------------------------------------------------------------


def choose(trial: Trial) -> tuple[Trial, dict[str, Any] | None]:
    """The trial with the settings of its method that do best on the fold's validation patches.

    Every choice is trained with `tune_seed`, whatever the trial's own seed, so that all seeds of a fold share one
    choice and its trainings. Best is the highest macro F1, then TPR, then the first in the list; with `method.by=loss`
    the least loss, then the first. Test patches have no say.

    Returns:
        the trial to train, and for result.json all that was tried with its validation scores; the trial itself and None
        where nothing is to be chosen.

    Raises:
        UserError: no validation patches, or a choice that is no legal setting.
    """
    config = trial.config
    if not chooses(config) or not config.method.learners:
        return trial, None
    if len(trial.val) == 0:
        who = f"method={config.method.name}" if config.method.always else "tune=true"
        raise UserError(
            f"{who} chooses on validation patches, and there are none; give split.validation_share"
        )
    tried, scored = [], []
    for choice in config.method.choices:
        other = prepare(replace(with_settings(config, choice), seed=config.tune_seed))
        scored.append(validation_scores(train_trial(other).model, other))
        tried.append({"settings": dict(choice), **scored[-1]})
    by_loss = config.method.by == "loss"

    names, sign = (["loss"], -1) if by_loss else (["macro/f1", "macro/tpr"], 1)
    merit = [[sign * found[name] for name in names] for found in scored]
    best = max(range(len(tried)), key=merit.__getitem__)  # the first of equal ones
    taken = dict(config.method.choices[best])
    return prepare(with_settings(config, taken)), {
        "by": f"{'loss' if by_loss else 'macro/f1'} on validation patches",
        "seed": config.tune_seed,
        "tried": tried,
        "taken": taken,
    }


def validation_scores(model: TrainedHierarchy, trial: Trial) -> dict[str, float]:
    """Macro and per-class TPR and F1 on the validation patches, and their loss; empty where there are none.

    The loss is that by which a stage's training ends, see `plateau.refined_loss`.
    """
    if len(trial.val) == 0:
        return {}
    val = trial.seen(trial.val)
    p, predicted = model.predict(val.pixels, val.manifest)
    found = scores(val.labels, predicted, trial.store.classes)
    return {**found, "loss": refined_loss(p, val.labels)}


# --- what sweeps ask ------------------------------------------------------------------------------------------------


def finished(config: Any) -> bool:
    """Whether a composed configuration's trial has its result; asked by sweeps before they start a process."""
    try:
        return prepare(typed(config)).finished
    except UserError:
        return False  # its own process says what is wrong, and the other trials go on


def validation_f1(folder: Path) -> float | None:
    """What a search maximises: a finished trial's macro F1 on its validation patches, never on a test patch.

    None where nobody has written the result yet (another rank will), or where there was no validation patch.
    """
    file = folder / RESULT
    if not file.is_file():
        return None
    info = form.read_json(file, VALIDATION, f"remove {folder} and run that trial again")
    found = (info.get("validation") or {}).get("macro/f1")
    return None if found is None else float(found)


def returned(config: Any) -> float | None:
    """What the job of a composed configuration returned, asked by sweeps when it is done or was skipped as done."""
    return validation_f1(prepare(typed(config)).folder)


# --- the other commands on the same parts ---------------------------------------------------------------------------


def train(config: TrainCommand) -> Path:
    """Trains one module of a trial and returns its file.

    Raises:
        UserError: an unknown task or node.
    """
    quiet()
    if config.task not in ("gan", "stage"):
        raise UserError(f"task={config.task}: expected gan or stage")
    if config.task == "stage":
        _check_node(config)
    join_ranks(config.trainer)
    ((trial,),) = plan([config], generator=config.task == "gan")
    use_cpu(config.trainer)
    if config.task == "gan":
        return trial.artifacts.get(TrainedGenerator(trial)) / CHECKPOINT
    hierarchy = trial.hierarchy.fit(**trial.train.facts)
    node = next(n for n in hierarchy.nodes if n.name == config.node)
    if trial.config.method.learner == "classic":
        table = feature_table(trial)
        return trial.artifacts.get(TrainedClassic(trial, node, table)) / "stage.ckpt"
    generator = make_generated(trial, hierarchy)
    generated = PatchStore.open(generator["generated"]) if generator else None
    return stage_folder(trial, node, generated) / "stage.ckpt"


def evaluate(model: TrainedHierarchy, part: Part) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions and scores of a trained hierarchy on part of a store.

    Returns:
        the table of predictions.parquet; classes, metrics and confusion of result.json.

    Raises:
        UserError: the store has other classes.
    """
    classes, store, manifest = model.hierarchy.classes, part.store, part.manifest
    if set(store.classes) != set(classes):
        raise UserError(
            f"{store.path}: has classes {store.classes}, the model {classes}; they must be the same"
        )
    if list(model.scales) != store.scales:
        raise UserError(
            f"{store.path}: has patches at scales {store.scales}, the model learned from {list(model.scales)}; import "
            "the movies again with the model's extraction.scales"
        )
    p, predicted = model.predict(part.pixels, manifest)
    table = pd.DataFrame(
        {
            "patch": part.rows,
            **{c: manifest[c].to_numpy() for c in ("group", "track", "time_h", "frame", "label")},
            "predicted": np.array(classes)[predicted],
            **{f"p/{c}": p[:, i].astype(np.float32) for i, c in enumerate(classes)},
        }
    )
    truth = table["label"].to_numpy()
    return table, {
        "classes": classes,
        "metrics": scores(truth, table["predicted"].to_numpy(), classes),
        "confusion": confusion(truth, table["predicted"].to_numpy(), classes).tolist(),
    }


def _check_node(config: TrainCommand) -> None:
    """Refuses a node that the tree does not have, before movies are simulated for it.

    Raises:
        UserError: the names that there are, and the nearest.
    """
    names = [n.name for n in Planner(here=True).hierarchy(config).nodes]
    if config.node not in names:
        near = nearest(config.node, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"node={config.node}: expected one of {', '.join(names)}{hint}")
