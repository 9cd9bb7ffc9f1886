"""`evaluate`: a trained trial on a store, patches that it knows told apart from those that it has never seen."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.base.files import check_target, finite, whole_or_absent
from stemcell_lit.classify.model_folder import find_model
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import confusion, scores
from stemcell_lit.experiment.run import PREDICTIONS, evaluate
from stemcell_lit.experiment.training import versions
from stemcell_lit.experiment.trial import RESULT, Part
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import EvaluateCommand

FORMAT = 3  # of an evaluation's result.json


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a store.

    Attributes:
        folder: of result.json and predictions.parquet.
        result: the content of result.json.
    """

    folder: Path
    result: Mapping[str, Any]

    def lines(self) -> list[str]:
        """The scores in words and numbers, unseen groups first."""
        model, store = self.result["model"], self.result["store"]
        said = [f"model: {model['path']}", f"store: {store['path']}"]
        for name, title in (("unseen", "unseen groups"), ("seen", "groups that it learned from")):
            part = self.result[name]
            if part is None:
                continue
            found = part["metrics"]
            many = f"{part['patches']} patches, {part['groups']} groups"
            said.append(f"{title} ({many}): {_percent(found, 'macro')}")
            said += [f"  {c}: {_percent(found, c)}" for c in self.result["classes"]]
            unsure = part["unsure"]
            if unsure is not None:
                wrong = 100 * unsure["error_of_the_sure"]
                rest = "" if np.isnan(wrong) else f", of the others {wrong:.1f} % wrong"
                said.append(f"  unsure: {100 * unsure['share']:.1f} %{rest}")
        if self.result["seen"] is not None:
            said.append("scores on what a model learned from say nothing of what it does elsewhere")
        return said


def _percent(found: Mapping[str, float], name: str) -> str:
    keys = ("macro/tpr", "macro/f1") if name == "macro" else (f"tpr/{name}", f"f1/{name}")
    tpr, f1 = (found[key] for key in keys)
    return "no patches" if np.isnan(tpr) else f"TPR {100 * tpr:.1f} %, F1 {100 * f1:.1f} %"


def evaluate_store(config: EvaluateCommand) -> Evaluation:
    """Classifies every labelled patch of a store with a trained hierarchy; writes result.json and predictions.parquet.

    Groups that the model has learned from (see `Learned.seen`) have scores of their own, beside those of all others.

    Raises:
        UserError: no trained hierarchy there, a store of other classes, one whose groups the model has all seen while
            `seen` is not set, or something of the user's in the way.
    """
    out, inputs = Path(config.out), [config.store, config.checkpoint]
    check_target(out, "evaluation", inputs=inputs)
    store = PatchStore.open(config.store)
    folder = find_model(config.checkpoint)
    model = TrainedHierarchy.load(folder, config.allow_module)
    rows = np.flatnonzero(store.labelled)
    table, _ = evaluate(model, Part(store, rows))
    seen = model.learned.seen(store, model.image_size)[rows]
    if seen.all() and not config.seen:
        raise UserError(
            f"{store.path}: the model has learned from every group of it (it was trained on "
            f"{model.learned.store}), so these scores would say nothing of new patches; give a store of other groups. "
            "What held-out groups scored stands in result.json of its trial, or in the card of deliver; seen=true goes "
            "on all the same"
        )
    _say_same_names(store, model, rows[~seen])
    table["seen"] = seen
    if model.unsure_below is not None:
        top = table[[f"p/{name}" for name in model.hierarchy.classes]].max(axis=1)
        table["unsure"] = top < model.unsure_below
    result = {
        "format": FORMAT,
        "model": {
            "path": str(folder),
            "store": model.learned.store,
            "content_hash": model.learned.content_hash,
            "groups": list(model.learned.groups),
        },
        "store": {"path": str(store.path), "content_hash": store.content_hash},
        "classes": model.hierarchy.classes,
        "unseen": _scored(table[~seen], model.hierarchy.classes),
        "seen": _scored(table[seen], model.hierarchy.classes),
        "versions": versions(),
    }
    with whole_or_absent(out, "evaluation", inputs=inputs) as made:
        table.to_parquet(made / PREDICTIONS, index=False)
        text = json.dumps(finite(result), indent=1)
        (made / RESULT).write_text(text + "\n", encoding="utf-8")
    return Evaluation(out, result)


def _scored(table: pd.DataFrame, classes: list[str]) -> dict[str, Any] | None:
    """Metrics and confusion of some patches; None: there are none."""
    if table.empty:
        return None
    truth, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
    return {
        "patches": len(table),
        "groups": table["group"].nunique(),
        "metrics": scores(truth, predicted, classes),
        "confusion": confusion(truth, predicted, classes).tolist(),
        "unsure": _unsure(table),
    }


def _unsure(table: pd.DataFrame) -> dict[str, float] | None:
    """Share of patches that the model calls unsure, and of wrong calls among the others; None: it calls none so."""
    if "unsure" not in table:
        return None
    sure = table[~table["unsure"]]
    wrong = float((sure["label"] != sure["predicted"]).mean()) if len(sure) else float("nan")
    return {"share": float(table["unsure"].mean()), "error_of_the_sure": wrong}


def _say_same_names(store: PatchStore, model: TrainedHierarchy, unseen: np.ndarray) -> None:
    """A notice where another store calls groups as the model's are called, and no pixels tell that they are these."""
    if store.content_hash == model.learned.content_hash:
        return
    same = set(store.manifest["group"].iloc[unseen]) & set(model.learned.groups)
    if same:
        warnings.warn(
            f"{store.path}: {len(same)} groups are called as groups that the model learned from, such as "
            f"{min(same)}, and hold other pixels; if they show the same cells (cut at other places, another scale), "
            "their scores count for nothing",
            stacklevel=3,
        )
