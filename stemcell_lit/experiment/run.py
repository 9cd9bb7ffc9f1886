"""`run` makes a cell of the table, from patches to result.json; `train` and `evaluate` make parts of one."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.base import formats as form
from stemcell_lit.base.files import check_target, whole_or_absent
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import confusion, scores
from stemcell_lit.experiment import gallery, tracking
from stemcell_lit.experiment.artifacts import finite
from stemcell_lit.experiment.cell import FORMAT, RESULT, Cell, Part, prepare, with_settings
from stemcell_lit.experiment.forms import VALIDATION
from stemcell_lit.experiment.generators import (
    CHECKPOINT,
    generator_facts,
    generator_recipe,
    make_generated,
)
from stemcell_lit.experiment.plan import plan
from stemcell_lit.experiment.stages import TrainedStage, open_stage
from stemcell_lit.experiment.training import join_ranks, quiet, use_cpu, versions
from stemcell_lit.schema import EvaluateCommand, RunCommand, TrainCommand, typed

PREDICTIONS = "predictions.parquet"


def run(config: RunCommand) -> Path:
    """Makes one cell and returns its folder; a finished one is returned at once.

    The folder holds result.json, predictions.parquet (a row per test patch) and model/ (the trained hierarchy).

    Raises:
        UserError: settings or data that do not fit together.
    """
    quiet()
    first = join_ranks(config.trainer)
    ((cell,),) = plan([config])
    if cell.finished:
        return cell.folder
    if first:
        check_target(cell.folder, "cell", inputs=[config.data.store])
    start = time.monotonic()
    use_cpu(config.trainer)
    beginning = _beginning(cell)
    with tracking.wandb_run(beginning, config.logger, Path(config.out), first=first) as wandb_run:
        chosen, tuning = choose(cell)
        chosen = replace(chosen, wandb_run=wandb_run)
        trained = _train(chosen)
        table, scored = evaluate(trained.model, chosen.test)
        result = {
            **beginning,
            **scored,
            "validation": validation_scores(trained.model, chosen),
            "tuning": tuning,
            **_ending(chosen, trained),
        }
        result["data"]["generated"] = trained.generated_counts
        result["seconds"] = round(time.monotonic() - start, 1)
        if first:
            _write(cell.folder, trained.model, table, result, [config.data.store])
            tracking.log_result(wandb_run, finite(result), table, Path(config.out), cell.store)
    return cell.folder


@dataclass(frozen=True)
class Trained:
    """What the training of a cell gives.

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


def _train(cell: Cell) -> Trained:
    hierarchy = cell.hierarchy.fit(**cell.train.facts)
    modules, stages, generator = {}, [], None
    if cell.config.method.network:
        generator = make_generated(cell, hierarchy)
        generated = PatchStore.open(generator["generated"]) if generator else None
        for node in hierarchy.nodes:
            folder = cell.artifacts.get(TrainedStage(cell, node, generated))
            modules[node.name], about = open_stage(folder)
            stages.append(about)
    model = TrainedHierarchy(hierarchy, modules, cell.size, cell.um_per_px, cell.store.scales)
    if len(cell.val) and cell.config.method.network:
        facts = cell.val.facts
        p = model.network_probabilities(cell.val.pixels, facts["times"])
        model.hierarchy = hierarchy.tune(p, **facts)
    return Trained(model, stages, generator)


def _write(
    place: Path,
    model: TrainedHierarchy,
    table: pd.DataFrame,
    result: Mapping[str, Any],
    inputs: Sequence[str | None],
) -> None:
    with whole_or_absent(place, "cell", inputs=inputs) as folder:
        (folder / "model").mkdir()
        model.save(folder / "model")
        table.to_parquet(folder / PREDICTIONS, index=False)
        text = json.dumps(finite(result), indent=1, allow_nan=False)
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")


# --- what result.json says --------------------------------------------------------------------------------------------


def _beginning(cell: Cell) -> dict[str, Any]:
    """What is known before the training."""
    config = cell.config
    return {
        "format": FORMAT,
        "hash": cell.hash,
        "method": config.method.name,
        "fold": config.split.fold,
        "seed": config.seed,
        "classes": cell.store.classes,
        "data": _data_facts(cell),
        "temporal": {"kind": cell.hierarchy.temporal},
        "config": asdict(config),
    }


def _data_facts(cell: Cell) -> dict[str, Any]:
    return {
        "unlabelled": len(cell.unlabelled),
        "store": str(cell.store.path),
        "content_hash": cell.store.content_hash,
        "simulated": cell.store.info["made_by"].get("origin") == "simulated",
        "real": cell.train.counts,
        "val": cell.val.counts,
        "test": cell.test.counts,
    }


def _ending(cell: Cell, trained: Trained) -> dict[str, Any]:
    """What is known after it, beside the scores on test patches."""
    model, generator, split = trained.model, trained.generator, cell.split
    return {
        "stages": _with_test_confusions(trained.stages, model, cell.test),
        "generator": generator
        and {
            **{k: os.path.relpath(v, cell.config.out) for k, v in generator.items()},
            "curve": generator_facts(generator["path"])["curve"],
        },
        "generator_quality": gallery.told(generator),
        "store": str(cell.store.path),
        "split": {
            "kind": split.kind,
            **{part: split.groups(cell.store, part) for part in ("train", "val", "test")},
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
        inside = labels.isin(list(target)).to_numpy() & node.view.learns_at(times.to_numpy())
        predicted = stage.probabilities(pixels[inside]).argmax(1)
        truth = labels[inside].map(target).to_numpy(np.int64)
        matrix = confusion(truth, predicted, list(node.targets)).tolist()
        found.append({**about, "confusion": matrix})
    return found


# --- choosing on validation patches -----------------------------------------------------------------------------------


def choose(cell: Cell) -> tuple[Cell, dict[str, Any] | None]:
    """The cell with the settings of its method that do best on the fold's validation patches.

    Every choice is trained with `tune_seed`, whatever the cell's own seed, so that all seeds of a fold share one choice
    and its trainings. Best is the highest macro F1, then TPR, then the first in the list. Test patches have no say.

    Returns:
        the cell to train, and for result.json all that was tried with its validation scores; the cell itself and None
        where nothing is to be chosen.

    Raises:
        UserError: no validation patches, or a choice that is no legal setting.
    """
    config = cell.config
    if not config.tune or not config.method.choices or not config.method.network:
        return cell, None
    if len(cell.val) == 0:
        raise UserError(
            "tune=true chooses on validation patches, and there are none; give split.validation_share"
        )
    tried = []
    for choice in config.method.choices:
        other = prepare(replace(with_settings(config, choice), seed=config.tune_seed))
        found = validation_scores(_train(other).model, other)
        tried.append({"settings": dict(choice), **found})
    best = max(range(len(tried)), key=lambda i: (tried[i]["macro/f1"], tried[i]["macro/tpr"], -i))
    taken = dict(config.method.choices[best])
    return prepare(with_settings(config, taken)), {
        "by": "macro/f1 on validation patches",
        "seed": config.tune_seed,
        "tried": tried,
        "taken": taken,
    }


def validation_scores(model: TrainedHierarchy, cell: Cell) -> dict[str, float]:
    """Macro and per-class TPR and F1 on the validation patches; empty where there are none."""
    if len(cell.val) == 0:
        return {}
    _, predicted = model.predict(cell.val.pixels, cell.val.manifest)
    return scores(cell.val.labels, predicted, cell.store.classes)


# --- what sweeps ask --------------------------------------------------------------------------------------------------


def finished(config: Any) -> bool:
    """Whether a composed configuration's cell has its result; asked by sweeps before they start a process."""
    try:
        return prepare(typed(config)).finished
    except UserError:
        return False  # its own process says what is wrong, and the other cells go on


def validation_f1(folder: Path) -> float | None:
    """What a search maximises: a finished cell's macro F1 on its validation patches, never on a test patch.

    None where nobody has written the result yet (another rank will), or where there was no validation patch.
    """
    file = folder / RESULT
    if not file.is_file():
        return None
    info = form.read_json(file, VALIDATION, f"remove {folder} and run that cell again")
    found = (info.get("validation") or {}).get("macro/f1")
    return None if found is None else float(found)


def returned(config: Any) -> float | None:
    """What the job of a composed configuration returned, asked by sweeps when it is done or was skipped as done."""
    return validation_f1(prepare(typed(config)).folder)


# --- the other commands on the same parts -----------------------------------------------------------------------------


def train(config: TrainCommand) -> Path:
    """Trains one module of a cell and returns its file.

    Raises:
        UserError: an unknown task or node.
    """
    quiet()
    if config.task not in ("gan", "stage"):
        raise UserError(f"task={config.task}: expected gan or stage")
    join_ranks(config.trainer)
    ((cell,),) = plan([config], generator=config.task == "gan")
    use_cpu(config.trainer)
    if config.task == "gan":
        return cell.artifacts.get(generator_recipe(cell)) / CHECKPOINT
    hierarchy = cell.hierarchy.fit(**cell.train.facts)
    node = next((n for n in hierarchy.nodes if n.name == config.node), None)
    if node is None:
        raise UserError(f"node={config.node}: expected one of {[n.name for n in hierarchy.nodes]}")
    generator = make_generated(cell, hierarchy)
    generated = PatchStore.open(generator["generated"]) if generator else None
    return cell.artifacts.get(TrainedStage(cell, node, generated)) / "stage.ckpt"


def evaluate_store(config: EvaluateCommand) -> Path:
    """Classifies every patch of a store with a cell's trained hierarchy; writes result.json and predictions.parquet.

    Raises:
        UserError: no trained hierarchy there, a store of other classes, or something of the user's in the way.
    """
    out, inputs = Path(config.out), [config.store, config.checkpoint]
    check_target(out, "evaluation", inputs=inputs)
    store, model = PatchStore.open(config.store), TrainedHierarchy.load(config.checkpoint)
    table, result = evaluate(model, Part(store, np.arange(len(store))))
    with whole_or_absent(out, "evaluation", inputs=inputs) as folder:
        table.to_parquet(folder / PREDICTIONS, index=False)
        text = json.dumps(finite({"format": FORMAT, **result, "versions": versions()}), indent=1)
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")
    return out / RESULT


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
