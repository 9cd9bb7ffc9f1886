"""`run` makes a cell of the table, from patches to result.json; `train` and `evaluate` make parts of one."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.base import formats as form
from stemcell_lit.base.files import check_target, whole_or_absent
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.data.patches import PatchStore, reduce_pixels
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import confusion, scores
from stemcell_lit.experiment import gallery, tracking
from stemcell_lit.experiment.artifacts import finite
from stemcell_lit.experiment.cell import FORMAT, RESULT, Cell, facts_of, prepare, with_settings
from stemcell_lit.experiment.forms import VALIDATION
from stemcell_lit.experiment.generators import generator_facts, make_generated, make_generator
from stemcell_lit.experiment.plan import plan
from stemcell_lit.experiment.stages import make_stage
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
    inputs = [config.data.store]
    if first:
        check_target(cell.folder, "cell", inputs=inputs)
    start = time.monotonic()
    use_cpu(config.trainer)
    beginning = {
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
    with tracking.wandb_run(beginning, config.logger, Path(config.out), first=first) as board:
        chosen, tuning = choose(cell)
        model, trained, generator = _train(chosen, board)
        table, result = evaluate(model, cell.store, cell.split.test)
        result = {
            **beginning,
            **result,
            "validation": validation_scores(model, cell),
            "tuning": tuning,
            "stages": [_with_test_confusion(about, model, cell) for about in trained],
            "generator": generator
            and {
                **{k: os.path.relpath(v, config.out) for k, v in generator.items()},
                "curve": generator_facts(generator["path"])["curve"],
            },
            "generator_quality": gallery.told(generator),
            "store": str(cell.store.path),
            "split": {
                "kind": cell.split.kind,
                **{part: cell.split.groups(cell.store, part) for part in ("train", "val", "test")},
            },
            "temporal": {
                "kind": model.hierarchy.temporal,
                "windows": model.hierarchy.to_dict()["windows"],
                "strength": model.hierarchy.strength,
            },
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "seconds": round(time.monotonic() - start, 1),
        }
        result["data"]["generated"] = _generated_counts(trained)
        if not first:
            return cell.folder
        with whole_or_absent(cell.folder, "cell", inputs=inputs) as folder:
            (folder / "model").mkdir()
            model.save(folder / "model")
            table.to_parquet(folder / PREDICTIONS, index=False)
            text = json.dumps(finite(result), indent=1, allow_nan=False)
            (folder / RESULT).write_text(text + "\n", encoding="utf-8")
        tracking.log_result(board, finite(result), table, Path(config.out), cell.store)
    return cell.folder


def _train(
    cell: Cell, board: Any = None
) -> tuple[TrainedHierarchy, list[dict[str, Any]], dict[str, Path] | None]:
    """The trained hierarchy of a cell, what is known of its stages' training, and its generator."""
    hierarchy = cell.hierarchy.fit(**facts_of(cell, cell.split.train))
    stages, trained, generator = {}, [], None
    if cell.config.method.network:
        generator = make_generated(cell, hierarchy, board)
        generated = PatchStore.open(generator["generated"]) if generator else None
        for node in hierarchy.nodes:
            module, about, _ = make_stage(cell, node, generated, board)
            stages[node.name] = module
            trained.append(about)
    size = cell.config.data.patch_size or cell.store.size
    um = cell.store.info["um_per_px"]
    um = um * cell.store.size / size if um else None
    model = TrainedHierarchy(hierarchy, stages, size, um, cell.store.scales)
    facts = facts_of(cell, cell.split.val)
    if len(cell.split.val) and cell.config.method.network:
        p = model.network_probabilities(cell.store.pixels[cell.split.val], facts["times"])
        model.hierarchy = hierarchy.tune(p, **facts)
    return model, trained, generator


def _data_facts(cell: Cell) -> dict[str, Any]:
    labels = cell.store.manifest["label"].to_numpy()
    return {
        "unlabelled": len(cell.split.unlabelled),
        "store": str(cell.store.path),
        "content_hash": cell.store.content_hash,
        "simulated": cell.store.info["made_by"].get("origin") == "simulated",
        "real": {c: int((labels[cell.split.train] == c).sum()) for c in cell.store.classes},
        "val": {c: int((labels[cell.split.val] == c).sum()) for c in cell.store.classes},
        "test": {c: int((labels[cell.split.test] == c).sum()) for c in cell.store.classes},
    }


def _generated_counts(trained: list[dict[str, Any]]) -> dict[str, int]:
    """Generated patches per stage and group."""
    return {f"{about['node']}/{g}": n[1] for about in trained for g, n in about["train"].items()}


def _with_test_confusion(
    about: dict[str, Any], model: TrainedHierarchy, cell: Cell
) -> dict[str, Any]:
    """Adds the stage's own confusion matrix on the test patches that belong to it."""
    stage = model.stages[about["node"]]
    node = next(n for n in model.hierarchy.nodes if n.name == about["node"])
    target = {c: i for i, members in enumerate(node.targets.values()) for c in members}
    test = cell.store.manifest.iloc[cell.split.test]
    inside = test["label"].isin(list(target)).to_numpy() & node.view.learns_at(
        test["time_h"].to_numpy()
    )
    rows = cell.split.test[inside]
    found = stage.probabilities(reduce_pixels(cell.store.pixels[rows], model.image_size)).argmax(1)
    truth = test["label"][inside].map(target).to_numpy(np.int64)
    return {**about, "confusion": confusion(truth, found, list(node.targets)).tolist()}


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
    if len(cell.split.val) == 0:
        raise UserError(
            "tune=true chooses on validation patches, and there are none; give split.validation_share"
        )
    tried = []
    for choice in config.method.choices:
        other = prepare(replace(with_settings(config, choice), seed=config.tune_seed))
        found = validation_scores(_train(other)[0], other)
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
    rows = cell.split.val
    if len(rows) == 0:
        return {}
    _, predicted = model.predict(cell.store.pixels[rows], cell.store.manifest.iloc[rows])
    return scores(cell.store.labels[rows], predicted, cell.store.classes)


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
        return make_generator(cell) / "generator.ckpt"
    hierarchy = cell.hierarchy.fit(**facts_of(cell, cell.split.train))
    node = next((n for n in hierarchy.nodes if n.name == config.node), None)
    if node is None:
        raise UserError(f"node={config.node}: expected one of {[n.name for n in hierarchy.nodes]}")
    generator = make_generated(cell, hierarchy)
    return make_stage(cell, node, PatchStore.open(generator["generated"]) if generator else None)[2]


def evaluate_store(config: EvaluateCommand) -> Path:
    """Classifies every patch of a store with a cell's trained hierarchy; writes result.json and predictions.parquet.

    Raises:
        UserError: no trained hierarchy there, a store of other classes, or something of the user's in the way.
    """
    out, inputs = Path(config.out), [config.store, config.checkpoint]
    check_target(out, "evaluation", inputs=inputs)
    store, model = PatchStore.open(config.store), TrainedHierarchy.load(config.checkpoint)
    table, result = evaluate(model, store, np.arange(len(store)))
    with whole_or_absent(out, "evaluation", inputs=inputs) as folder:
        table.to_parquet(folder / PREDICTIONS, index=False)
        text = json.dumps(finite({"format": FORMAT, **result, "versions": versions()}), indent=1)
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")
    return out / RESULT


def evaluate(
    model: TrainedHierarchy, store: PatchStore, rows: np.ndarray
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions and scores of a trained hierarchy on rows of a store.

    Returns:
        the table of predictions.parquet; classes, metrics and confusion of result.json.

    Raises:
        UserError: the store has other classes.
    """
    classes = model.hierarchy.classes
    if set(store.classes) != set(classes):
        raise UserError(
            f"{store.path}: has classes {store.classes}, the model {classes}; they must be the same"
        )
    if list(model.scales) != store.scales:
        raise UserError(
            f"{store.path}: has patches at scales {store.scales}, the model learned from {list(model.scales)}; import "
            "the movies again with the model's extraction.scales"
        )
    manifest = store.manifest.iloc[rows]
    p, predicted = model.predict(store.pixels[rows], manifest)
    table = pd.DataFrame(
        {
            "patch": rows,
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
