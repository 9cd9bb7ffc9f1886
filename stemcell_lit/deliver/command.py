"""`deliver`: the one model of a folder of results that a lab uses."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stemcell_lit.base.files import check_target, finite, whole_or_absent
from stemcell_lit.base.progress import Progress
from stemcell_lit.classify.features import FeatureTable
from stemcell_lit.classify.learned import Learned
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.deliver.card import PICTURE, card
from stemcell_lit.deliver.chosen import Chosen, choose
from stemcell_lit.deliver.mean import counted, counted_words, mean_of
from stemcell_lit.deliver.onnx_files import PATCHES, check_export, export
from stemcell_lit.deliver.picture import draw
from stemcell_lit.deliver.refit import found_settings, refit
from stemcell_lit.deliver.sureness import Said, Sureness, folds_of, on_test, sentences
from stemcell_lit.evaluate.intervals import METRICS
from stemcell_lit.experiment.classic import features_of
from stemcell_lit.experiment.learners import domain_of
from stemcell_lit.experiment.results import rows_of
from stemcell_lit.experiment.training import versions
from stemcell_lit.experiment.trial import Part, relevant
from stemcell_lit.report.numbers import percent
from stemcell_lit.report.report import scores_table
from stemcell_lit.settings.command_keys import DeliverCommand
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.quoting import command_line

CARD = "MODEL_CARD.md"


@dataclass(frozen=True)
class Delivered:
    """What was made.

    Attributes:
        folder: of the model.
        about: `delivered` of its model.json.
        lines: what was found, a sentence each.
    """

    folder: Path
    about: Mapping[str, Any]
    lines: list[str]


def deliver(config: DeliverCommand) -> Delivered:
    """Makes `model` in a folder of results, whole or absent; one that was made there before is replaced.

    Raises:
        UserError: results that cannot be used, a key that does not fit, or something of the user's in the way.
    """
    check(config)
    target = Path(config.out) / "model"
    if config.export:
        check_export()
    chosen = choose(config)
    inputs = [chosen.store.path, *(trial.folder for trial in chosen.trials)]
    check_target(target, "model", inputs=inputs)
    table = FeatureTable()
    if "classic" in chosen.learners:
        table = features_of(chosen.store, chosen.config.classic, chosen.artifacts)
    models = [chosen.load(trial) for trial in chosen.trials]
    progress = Progress(len({trial.fold for trial in chosen.trials}), "deliver", "folds")
    folds = folds_of(chosen, models, table, progress.show)
    progress.end()
    test, before, after = on_test(folds, config.error)
    said = Said.together([fold.val for fold in folds])
    if config.refit:
        models, part = refit(chosen, config.members)
        said = Said.by(mean_of(models, models[0].hierarchy, table), part)
    sureness = Sureness.fit(said, config.error)
    model = _delivered(chosen, models, sureness, config.refit)
    counts = {method: chosen.results.counts(method) for method in chosen.results.methods}
    about = {
        **_facts(chosen, model, config),
        "scores": _scores(chosen, counts, config.resamples),
        "calibration": {
            "temperature": sureness.temperature,
            "unsure_below": sureness.unsure_below,
            "error": config.error,
            "patches": sureness.patches,
            "test": test,
        },
        "onnx": None,
    }
    told = sentences(test, sureness, config.error)
    with whole_or_absent(target, "model", inputs=inputs) as folder:
        model.save(folder)
        written = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if config.export:
            pixels = np.asarray(chosen.store.pixels[_spread(len(chosen.store), PATCHES)])
            done = export(model, written["stages"], folder, pixels)
            about["onnx"] = {**done, "patches": len(pixels)}
        about = finite(about)
        text = json.dumps({**written, "delivered": about}, indent=1, allow_nan=False)
        (folder / "model.json").write_text(text + "\n", encoding="utf-8")
        matrix = counts[chosen.method].sum((0, 1))
        (folder / PICTURE).write_bytes(draw(matrix, chosen.results.classes, before, after))
        (folder / CARD).write_text(card(about, told), encoding="utf-8")
        cost = _cost(chosen, model, folder)
    return Delivered(target, about, [*_lines(chosen, about, cost), *told, *_next(target)])


def _delivered(
    chosen: Chosen, models: Sequence[TrainedHierarchy], sureness: Sureness, refit: bool
) -> TrainedHierarchy:
    """The mean of the models, what it knows of time fitted on every labelled patch of the store."""
    every = Part(chosen.store, np.arange(len(chosen.store)))
    model = mean_of(models, models[0].hierarchy.fit(**every.facts))
    learned = model.learned
    if model.hierarchy.temporal != "none":  # it has learned of time from all of them
        learned = Learned.of(chosen.store, every.rows, model.image_size)
    domain = model.domain
    if not refit:  # each saw the training part of its fold
        rows = [chosen.split(fold).train for fold in sorted({t.fold for t in chosen.trials})]
        domain = domain_of(chosen.store, np.unique(np.concatenate(rows)), model.image_size)
    return replace(
        model,
        learned=learned,
        domain=domain,
        unsure_below=sureness.unsure_below,
        temperature=sureness.temperature,
    )


def _facts(chosen: Chosen, model: TrainedHierarchy, config: DeliverCommand) -> dict[str, Any]:
    """What model.json and the card say of a model beside its scores."""
    store, hierarchy, results = chosen.store, model.hierarchy, chosen.results
    first, manifest = chosen.trials[0], store.manifest[store.labelled]
    of = {c: manifest[manifest["label"] == c] for c in store.classes}
    scaling = store.info["made_by"].get("scaling")
    return {
        "method": chosen.method,
        "about": results.about(chosen.method).about or "",
        "classes": results.classes,
        "chosen_by": {m: list(values) for m, values in chosen.validation.items()},
        "refit": config.refit,
        "networks": counted(model),
        "trials": [
            {"name": t.folder.name, "hash": t.info.get("hash"), "fold": t.fold, "seed": t.seed}
            for t in chosen.trials
        ],
        "split": first.info["split"]["kind"],
        "data": {
            "store": str(first.info.get("store") or store.path),
            "content_hash": store.content_hash,
            "simulated": bool(first.info["data"].get("simulated")),
            "patches": len(manifest),
            "groups": int(manifest["group"].nunique()),
            "learned_groups": len(set(model.learned.groups)),
            "tested_groups": len(results.groups),
            "classes": {
                c: {"patches": len(rows), "groups": int(rows["group"].nunique())}
                for c, rows in of.items()
            },
        },
        "input": {
            "patch_px": model.image_size,
            "um_per_px": model.um_per_px,
            "scales": list(model.scales),
            "scaling": scaling,
            "intensity": f"They were scaled so that {scaling[0]:g} became 0 and {scaling[1]:g} 255."
            if isinstance(scaling, list) and len(scaling) == 2
            else "Each movie's gray values were scaled to that range.",
        },
        "temporal": {
            "kind": hierarchy.temporal,
            "strength": hierarchy.strength,
            "weighed": hierarchy.temporal in ("prior", "path"),
            "windows": hierarchy.to_dict()["windows"],
        },
        "settings": relevant(chosen.config),
        "tuned": dict(found_settings(chosen.trials)) if config.refit else _tuned(chosen),
        "versions": versions(),
    }


def _tuned(chosen: Chosen) -> dict[str, Any]:
    """What tuning took in each trial."""
    taken = {t.folder.name: (t.info.get("tuning") or {}).get("taken") for t in chosen.trials}
    return {name: found for name, found in taken.items() if found}


def _scores(
    chosen: Chosen, counts: Mapping[str, np.ndarray], resamples: int
) -> dict[str, dict[str, dict[str, float]]]:
    """The method's rows of the table: class (empty: macro) -> metric -> mean and ends of its interval."""
    rows = rows_of(scores_table(chosen.results, counts, resamples))
    names = list(dict.fromkeys(name for method, _, name in rows if method == chosen.method))
    return {
        name: {
            metric: {
                k: float(rows[chosen.method, metric, name][k]) for k in ("mean", "low", "high")
            }
            for metric in METRICS
        }
        for name in names
    }


def _cost(chosen: Chosen, model: TrainedHierarchy, folder: Path) -> float:
    """How many times as long the model takes as that of one trial; also sees that it reads back as it is."""
    part = Part(chosen.store, _spread(len(chosen.store), PATCHES))
    pixels, times = part.pixels, part.facts["times"]
    seconds, found = [], []
    for place in (folder, chosen.trials[0].folder / "model"):
        again = TrainedHierarchy.load(place, chosen.allow_module)
        again.network_probabilities(pixels[:16], times[:16])  # what only the first call takes
        start = time.perf_counter()
        found.append(again.network_probabilities(pixels, times))
        seconds.append(time.perf_counter() - start)
    if not np.array_equal(found[0], model.network_probabilities(pixels, times)):
        raise RuntimeError(f"{folder}: the written model answers otherwise than the one in memory")
    return seconds[0] / max(seconds[1], 1e-9)


def _spread(total: int, count: int) -> np.ndarray:
    """Rows of a store, at most so many, evenly over it: a store is often sorted by class."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def _lines(chosen: Chosen, about: Mapping[str, Any], cost: float) -> list[str]:
    why = "as it was named"
    if chosen.validation:
        best = percent(chosen.validation[chosen.method][0])
        why = (
            f"the best of {len(chosen.validation)} methods on validation patches, macro F1 {best} %"
        )
    count = [f"{name}: {counted_words(n)}" for name, n in about["networks"].items()]
    told = [about["scores"][""][metric]["mean"] for metric in METRICS]
    tpr, f1 = (percent(np.nan if value is None else value) for value in told)
    return [
        f"method: {chosen.method}, {why}",
        f"{'; '.join(count)}: a prediction takes about {max(cost, 1):.1f} times as long as with one trial's model"
        + ("" if about["refit"] else " (members=N averages the networks of N trials alone)"),
        f"cross-validated, of the single trials: TPR {tpr} %, F1 {f1} %",
        *(f"no ONNX of {file}: {reason}" for file, reason in _not_exported(about).items()),
    ]


def _not_exported(about: Mapping[str, Any]) -> Mapping[str, str]:
    found: Mapping[str, str] = (about["onnx"] or {}).get("left_out", {})
    return found


def _next(target: Path) -> list[str]:
    settings = {"movie": "movie.tif", "checkpoint": str(target), "out": "maps"}
    return [f"next: {command_line('predict', settings)}"]
