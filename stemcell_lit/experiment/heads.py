"""The stage of a node as its trial wants it: as trained, or with its last layer trained again on kept features."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from stemcell_lit.base.arrays import map_array
from stemcell_lit.base.artifacts import Recipe
from stemcell_lit.base.files import finite
from stemcell_lit.classify import networks
from stemcell_lit.classify.head import head_inputs, refit_head
from stemcell_lit.classify.trained import save_weights
from stemcell_lit.classify.tree import Node
from stemcell_lit.data.datamodule import PatchDataModule
from stemcell_lit.experiment.stages import TrainedStage, open_stage
from stemcell_lit.experiment.trial import Trial
from stemcell_lit.patches.store import PatchStore

VERSION = 1  # of features and of training; count it up where either changes
SHARE = 0.25  # of what the network has seen: with it a new head has a fifth of all, as in flat_crt


def stage_folder(trial: Trial, node: Node, generated: PatchStore | None) -> Path:
    """The folder of a node's stage, made where it is not there yet; read by `open_stage`."""
    folder = trial.artifacts.get(TrainedStage(trial, node, generated))
    if not trial.config.stage.refit_head:
        return folder
    features = trial.artifacts.get(HeadFeatures(trial, node, folder))
    return trial.artifacts.get(RefittedHead(trial, node, folder, features))


def _training(trial: Trial, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Real patches that a node learns from, and their positions in its targets."""
    size = trial.config.data.patch_size
    data = PatchDataModule(trial.store, trial.split, node.scope, patch_size=size)
    return data.bank["train"].numpy(), data.labels["train"].numpy()


@dataclass(frozen=True)
class HeadFeatures(Recipe):
    """What the last layer of a trained stage sees of its training patches: features.npy, see `head_inputs`.

    Attributes:
        trial: whose.
        node: of its hierarchy.
        stage: folder of the trained stage.
    """

    kind: ClassVar[str] = "head-features"
    trial: Trial
    node: Node
    stage: Path

    def key(self) -> dict[str, Any]:
        """The stage, whose own key holds the patches."""
        return {"stage": self.stage.name, "version": VERSION}

    def make(self, folder: Path) -> None:
        """Computes them."""
        module, _ = open_stage(self.stage, self.trial.config.stage.network)
        pixels, _ = _training(self.trial, self.node)
        np.save(folder / "features.npy", head_inputs(module, pixels), allow_pickle=False)


@dataclass(frozen=True)
class RefittedHead(Recipe):
    """A trained stage with its last layer trained again: stage.ckpt and stage.json, as those of a `TrainedStage`.

    Attributes:
        trial: whose dose.
        node: of its hierarchy.
        stage: folder of the trained stage.
        features: folder of its `HeadFeatures`.
    """

    kind: ClassVar[str] = "head"
    trial: Trial
    node: Node
    stage: Path
    features: Path

    def key(self) -> dict[str, Any]:
        """The stage and the dose; seed, rates and budget are the stage's own."""
        dose = self.trial.config.stage.feature_dose
        return {"stage": self.stage.name, "dose": dose, "version": VERSION}

    def make(self, folder: Path) -> None:
        """Trains it."""
        config = self.trial.config
        module, about = open_stage(self.stage, config.stage.network)
        _, labels = _training(self.trial, self.node)
        heads = networks.heads(module.network, len(module.groups))
        turns = 8 if module.stage["turns"] else 1
        shape = (len(heads), turns, len(labels), heads[0].in_features)
        again = f"delete {self.features} and run again"
        features = map_array(self.features / "features.npy", shape, again, np.float32)
        images = round(SHARE * about["cycles"][about["kept"]]["images"])
        dose = config.stage.feature_dose
        with threadpool_limits(1, "blas"):  # sums of several threads come in any order
            made = refit_head(
                module, np.asarray(features), labels, dose=dose, images=images, seed=config.seed
            )
        save_weights(module, folder / "stage.ckpt")
        told = {
            "images": images,
            "dose": dose,
            "generated": dict(zip(module.groups, made, strict=True)),
        }
        text = json.dumps(finite({**about, "head": told}))
        (folder / "stage.json").write_text(text + "\n", encoding="utf-8")
