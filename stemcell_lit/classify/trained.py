"""A trained hierarchy: its stages and constraint in one folder, ready to classify patches."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl

from stemcell_lit.base import formats as form
from stemcell_lit.base.checkpoints import save_whole
from stemcell_lit.base.weights import SAFE, read_tensors, save_safe
from stemcell_lit.classify import classic, domain
from stemcell_lit.classify.classic import ClassicStage
from stemcell_lit.classify.domain import Domain
from stemcell_lit.classify.features import FeatureTable
from stemcell_lit.classify.hierarchy import Hierarchy, check_fitted
from stemcell_lit.classify.learned import ABOUT, Learned
from stemcell_lit.classify.stacked import Stacked, Stage
from stemcell_lit.classify.stage import StageModule, read_stage
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.calibration import tempered
from stemcell_lit.patches.store import reduce_pixels

FORMAT = 6
MOST_PARTS = 1024  # of a stage: folds x seeds x learners
_PART = form.record(
    {
        "file": form.beside,
        "learner": form.exactly("network", "classic"),
        "weight": form.number(0, 1),
    },
    more=False,
)
_MODEL = form.versioned(
    FORMAT,
    form.record(
        {
            "image_size": form.whole(1, 65_536),
            "reduced": form.number(1, 65_536),
            "um_per_px": form.UM_PER_PX,
            "scales": form.listing(form.whole(1, 1024), 1, 64, unique=True),
            "stages": form.mapping(form.listing(_PART, 1, MOST_PARTS), most=10_000),
            "hierarchy": check_fitted,
            "learned": ABOUT,
            "scaling": form.maybe(form.listing(form.number(), 2, 2)),
            "domain": form.maybe(domain.ABOUT),
            "unsure_below": form.maybe(form.number(0, 1)),
            "temperature": form.number(0, 1000, above=True),
        },
        {"delivered": form.mapping(form.anything)},
    ),
)


@dataclass
class TrainedHierarchy:
    """Stages by node name, the fitted hierarchy over them, and the patch size they were trained at.

    Attributes:
        hierarchy: fitted.
        stages: node name -> what stands there; empty for the time-only classifier.
        image_size: height and width in pixels that the stages want, of several the largest.
        um_per_px: of patches at `image_size`, None where unknown.
        scales: widths of the views of a patch, see `patches.store.ViewCutter`.
        reduced: px of the patches as they are stored, for each px at `image_size`.
        learned: from which patches.
        scaling: of crops that were not 8 bit, the stored intensities that became 0 and 255; None: patches were 8 bit,
            or each movie had its own.
        domain: what those patches look like, None where that was not measured.
        unsure_below: a patch whose top probability is less is called unsure, 0 to 1; None: not known, none is.
        temperature: divides the logarithms of the class probabilities, after the constraint in time: above 1 the model
            was surer than it may be. It changes no predicted class.

    Raises:
        ValueError: a stage answers with other targets, or in another order, than its node in the tree.
    """

    hierarchy: Hierarchy
    stages: Mapping[str, Stage]
    image_size: int
    um_per_px: float | None = None
    scales: Sequence[int] = (1,)
    reduced: float = 1.0
    learned: Learned = field(default_factory=Learned)
    scaling: tuple[float, float] | None = None
    domain: Domain | None = None
    unsure_below: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        wanted = {node.name: list(node.targets) for node in self.hierarchy.nodes}
        for name, stage in self.stages.items():
            if stage.groups != wanted.get(name):
                raise ValueError(
                    f"stage {name} tells {stage.groups} apart, the tree {wanted.get(name)}"
                )

    def network_probabilities(self, pixels: np.ndarray, times: np.ndarray) -> np.ndarray:
        """p(class | patch, window) (patches, classes), before prior and path.

        Args:
            pixels: uint8 (patches, [scales,] size, size); reduced to `image_size`.
            times: (patches,) hours, NaN where unknown.
        """
        if not self.stages:
            return self.hierarchy.by_time_alone(times)
        reduced = reduce_pixels(pixels, self.image_size)
        return self.hierarchy.combine(
            {name: stage.probabilities(reduced) for name, stage in self.stages.items()}, times
        )

    def predict(self, pixels: np.ndarray, manifest: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Classifies patches, with everything the temporal constraint allows.

        Args:
            pixels: uint8 (patches, [scales,] size, size).
            manifest: their rows, with time_h, track and frame.

        Returns:
            probabilities (patches, classes) and predicted class positions (patches,).
        """
        times, tracks, frames = (manifest[c].to_numpy() for c in ("time_h", "track", "frame"))
        p = self.network_probabilities(pixels, times)
        p, called = self.hierarchy.constrain(p, times, tracks, frames)
        return self.calibrated(p), called

    def calibrated(self, p: np.ndarray) -> np.ndarray:
        """Class probabilities (..., classes) at the model's temperature."""
        return tempered(p, self.temperature)

    def save(self, folder: Path) -> None:
        """Writes model.json, what it learned from and a file for each part of a stage into an existing folder."""
        files: dict[str, list[dict[str, Any]]] = {}
        for i, (name, stage) in enumerate(self.stages.items()):
            files[name] = []
            parts = parts_of(stage)
            for k, (part, weight) in enumerate(parts):
                file = f"stage-{i}{f'-{k}' if len(parts) > 1 else ''}{SAFE}"
                learner = "classic" if isinstance(part, ClassicStage) else "network"
                files[name].append({"file": file, "learner": learner, "weight": weight})
                save_safe(content_of(part), folder / file)
        told = {
            "format": FORMAT,
            "image_size": self.image_size,
            "reduced": self.reduced,
            "um_per_px": self.um_per_px,
            "scales": list(self.scales),
            "stages": files,
            "hierarchy": self.hierarchy.to_dict(),
            "learned": self.learned.save(folder),
            "scaling": self.scaling and list(self.scaling),
            "domain": self.domain and self.domain.to_dict(),
            "unsure_below": self.unsure_below,
            "temperature": self.temperature,
        }
        (folder / "model.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, allow_module: str | None = None) -> TrainedHierarchy:
        """Reads what `save` wrote; weights are never unpickled as code.

        Args:
            folder: `model` of a trial, or what `deliver` made.
            allow_module: a network of the user's own that it may ask for, `package.attribute`.

        Raises:
            UserError: no trained hierarchy there, or an unreadable one.
        """
        folder = Path(folder)
        file = folder / "model.json"
        if not os.path.lexists(file):
            raise UserError(
                f"{file}: no such file; expected the `model` folder of a finished trial, such as "
                "results/default/trials/NAME/model, or the one that `stemcell-lit deliver` made"
            )
        again = "run the trial again"
        about = form.read_json(file, _MODEL, again)
        hierarchy = Hierarchy.from_dict(about["hierarchy"])
        nodes = {node.name for node in hierarchy.nodes}
        # without a stage it is the clock alone, whose folder holds no weights either
        alone = not about["stages"] and not any(folder.glob(f"stage-*{SAFE}"))
        if not alone and set(about["stages"]) != nodes:
            raise UserError(
                f"{file}: has stages {sorted(about['stages'])[:20]}, its tree has {sorted(nodes)[:20]}; {again}"
            )
        stages: dict[str, Stage] = {}
        for name, parts in about["stages"].items():
            stages[name] = _stage(folder, parts, stages, again, allow_module)
        size, scales = about["image_size"], about["scales"]
        learned = Learned.load(folder, about["learned"], again)
        for name, stage in stages.items():
            if (stage.image_size, stage.channels) != (size, len(scales)):
                raise UserError(
                    f"{folder / about['stages'][name][0]['file']}: a stage for {stage.channels} views of "
                    f"{stage.image_size} px, {file.name} says {len(scales)} of {size} px; {again}"
                )
        try:
            um, reduced = about["um_per_px"], about["reduced"]
            scaling = about["scaling"] and tuple(about["scaling"])
            known = about["domain"] and Domain.from_dict(about["domain"])
            facts = (scaling, known, about["unsure_below"], about["temperature"])
            return cls(hierarchy, stages, size, um, scales, reduced, learned, *facts)
        except ValueError as error:
            raise UserError(f"{file}: {error}; {again}") from error


def parts_of(stage: Stage) -> list[tuple[Stage, float]]:
    """What a stage is made of, and the weight of each."""
    if isinstance(stage, Stacked):
        return list(zip(stage.parts, stage.weights, strict=True))
    return [(stage, 1.0)]


def _stage(
    folder: Path,
    parts: Sequence[Mapping[str, Any]],
    before: Mapping[str, Stage],
    remedy: str,
    allow_module: str | None,
) -> Stage:
    """What stands in a node, of the files that model.json names; features are shared with the stages before it."""
    known = [part for stage in before.values() for part, _ in parts_of(stage)]
    tables = [part.table for part in known if isinstance(part, ClassicStage)]
    read = [
        load_classic(folder / part["file"], tables, allow_module)
        if part["learner"] == "classic"
        else load_stage(folder / part["file"], allow_module)
        for part in parts
    ]
    if len(read) == 1:
        return read[0]
    weights = [part["weight"] for part in parts]
    if abs(sum(weights) - 1) > 1e-6:
        raise UserError(
            f"{folder / 'model.json'}: weights {weights} of a stage, expected a sum of 1; {remedy}"
        )
    size = max(stage.image_size for stage in read)
    for stage, part in zip(read, parts, strict=True):
        alike = (stage.groups, stage.channels) == (read[0].groups, read[0].channels)
        if not alike or size % stage.image_size:
            raise UserError(
                f"{folder / part['file']}: a stage for other groups or patches than those beside it; {remedy}"
            )
    return Stacked(read, weights)


def save_stage(stage: Stage, file: Path) -> None:
    """Writes plain settings and arrays of one stage, without optimisers."""
    save_whole(content_of(stage), file)


def save_weights(module: pl.LightningModule, file: Path) -> None:
    """Writes a module's plain hyper-parameters and weights, without optimisers."""
    save_whole(_content(module), file)


def content_of(stage: Stage) -> dict[str, Any]:
    """Plain settings and tensors of one stage, as its file holds them."""
    if isinstance(stage, ClassicStage):
        return stage.content()
    if isinstance(stage, StageModule):
        return _content(stage)
    raise TypeError(f"a {type(stage).__name__} has no file of its own")


def _content(module: pl.LightningModule) -> dict[str, Any]:
    weights = {name: value.cpu() for name, value in module.state_dict().items()}
    return {"hyper_parameters": dict(module.hparams), "state_dict": weights}


def load_stage(file: Path, allow_module: str | None = None) -> StageModule:
    """A stage from what `save_weights` wrote, in evaluation mode.

    Raises:
        UserError: missing or unreadable, or a network of the user's own that is not allowed.
    """
    return read_stage(file, "run the trial again", allow_module=allow_module)[0]


def load_classic(
    file: Path, tables: Sequence[FeatureTable] = (), allow_module: str | None = None
) -> ClassicStage:
    """A classical stage from what `save_stage` wrote.

    Args:
        file: its own.
        tables: of features; one of the same extractor is shared.
        allow_module: a network of the user's own that it may ask for.

    Raises:
        UserError: missing, unreadable, or of features that are no longer computed.
    """
    remedy = "run the trial again"
    content = read_tensors(file, classic.SAVED, "stage", remedy)
    return ClassicStage.of_content(content, file, remedy, tables, allow_module)
