"""The classical rival's artifacts: features of a store, and stages on them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from stemcell_lit.base import formats as form
from stemcell_lit.base.arrays import map_array
from stemcell_lit.base.artifacts import ArtifactStore, Recipe
from stemcell_lit.base.checkpoints import write_bytes_whole
from stemcell_lit.base.progress import Progress
from stemcell_lit.classify.classic import ClassicStage
from stemcell_lit.classify.features import Classical, Extractor, FeatureTable, digests
from stemcell_lit.classify.network_features import NetworkFeatures
from stemcell_lit.classify.trained import load_classic, save_stage
from stemcell_lit.classify.tree import Node
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.forms import STAGE
from stemcell_lit.experiment.trial import Trial, rows_hash
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import ClassicConfig
from stemcell_lit.settings.network_names import own_module
from stemcell_lit.settings.roles import determining

READ = 2048  # patches read from the store and kept at once, some ten seconds of work


@dataclass(frozen=True)
class StoreFeatures(Recipe):
    """Features of every patch of a store, without a label: features.npy, and keys.npy, by which they are found.

    An interrupted making goes on behind the last part that it finished.
    """

    kind: ClassVar[str] = "features"
    resumable: ClassVar[bool] = True
    store: PatchStore
    extractor: Extractor = field(default_factory=Classical, compare=False)

    def key(self) -> dict[str, Any]:
        """The patches, and what computes features."""
        return {"content": self.store.content_hash, **self.extractor.key}

    def make(self, folder: Path) -> None:
        """Computes them, with a line now and then."""
        store, count = self.store, len(self.store.pixels)
        width = len(self.extractor.names(len(store.scales)))
        made = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (count, width))
        keys, parts, progress = [], [], Progress(count, "features", "patches")
        with threadpool_limits(1):  # sums of several threads come in any order
            for start in range(0, count, READ):
                pixels = np.asarray(store.pixels[start : start + READ])
                parts.append(folder / f"part-{start}.npy")
                done = _part(parts[-1], (len(pixels), width))
                if done is None:
                    done = self.extractor(pixels, _from(progress.show, start))
                    _save(parts[-1], done)
                made[start : start + READ] = done
                keys += digests(pixels)
        progress.end()
        made.flush()
        np.save(folder / "keys.npy", np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16))
        for part in parts:
            part.unlink()


def _save(file: Path, values: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    write_bytes_whole(stream.getbuffer(), file)


def _part(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What an interrupted making left, None where there is nothing or nothing whole."""
    if not file.is_file():
        return None
    try:
        return map_array(file, shape, "", np.float32)
    except UserError:
        file.unlink()
        return None


def _from(show: Callable[[int], None], start: int) -> Callable[[int], None]:
    return lambda done: show(start + done)


def feature_table(trial: Trial) -> FeatureTable:
    """Features of the trial's store, made once for all trials."""
    return features_of(trial.store, trial.config.classic, trial.artifacts)


def features_of(store: PatchStore, config: ClassicConfig, artifacts: ArtifactStore) -> FeatureTable:
    """Features of a store's patches as a method has them, made once and shared."""
    extractor = extractor_of(config, store)
    folder = artifacts.get(StoreFeatures(store, extractor))
    again, count = f"delete {folder} and run again", len(store.pixels)
    shape = (count, len(extractor.names(len(store.scales))))
    known = map_array(folder / "features.npy", shape, again, np.float32)
    keys = map_array(folder / "keys.npy", (count, 16), again)
    return FeatureTable(known, [key.tobytes() for key in keys], extractor)


def extractor_of(config: ClassicConfig, store: PatchStore) -> Extractor:
    """What makes the features of a method.

    Raises:
        UserError: a network that is not there, has no weights, or cannot take these patches.
    """
    if config.features == "classical":
        return Classical()
    return NetworkFeatures.begin(config.features, config.weights, len(store.scales), store.size)


@dataclass(frozen=True)
class TrainedClassic(Recipe):
    """A classical stage of a trial: stage.ckpt, and stage.json with what is known of its training.

    It learns from the patches that a network's stage learns from, at their stored size.

    Attributes:
        trial: whose.
        node: of its hierarchy.
        table: features of its store.
    """

    kind: ClassVar[str] = "classic"
    trial: Trial
    node: Node
    table: FeatureTable = field(compare=False, repr=False)

    def key(self) -> dict[str, Any]:
        """Its patches, its place in the tree, its settings; an SVM has no seed."""
        trial, node = self.trial, self.node
        classic = determining(trial.config.classic)
        own = {"svm": ("C", "gamma"), "trees": ("trees", "max_features"), "linear": ("C",)}[
            classic["model"]
        ]
        features = self.table.extractor.key
        return {
            "data": trial.store.content_hash,
            "features": features.get("version", features),
            "train": rows_hash(trial.split.train),
            "folds": trial.split.kind,
            "node": {
                "name": node.name,
                "groups": [[name, *members] for name, members in node.targets.items()],
                "window": [str(v) for v in node.window],
            },
            "classic": {k: classic[k] for k in ("model", "class_weight", "most", *own)},
            "seed": trial.config.seed if classic["model"] == "trees" else None,
        }

    def make(self, folder: Path) -> None:
        """Fits and calibrates it."""
        trial, node, part = self.trial, self.node, self.trial.train
        inside, y = node_targets(node, part.manifest["label"].to_numpy(), part.facts["times"])
        rows = part.rows[inside]
        units = part.manifest["group"].to_numpy()[inside]
        if trial.split.kind == "leaky":
            units = rows.astype(str)
        with threadpool_limits(1):
            stage = ClassicStage.fit(
                self.table.of(np.asarray(trial.store.pixels[rows])),
                y,
                units,
                list(node.targets),
                trial.config.classic,
                node=node.name,
                image_size=trial.store.size,
                channels=len(trial.store.scales),
                seed=trial.config.seed,
                table=self.table,
            )
        save_stage(stage, folder / "stage.ckpt")
        counts = np.bincount(y, minlength=len(node.targets)).tolist()
        about = {
            "node": node.name,
            "groups": list(node.targets),
            "images": len(rows),
            "train": {g: [n, 0] for g, n in zip(node.targets, counts, strict=True)},
            "pseudo": 0,
            "curve": [],
        }
        (folder / "stage.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def node_targets(
    node: Node, labels: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which patches a node learns from or is asked about, and their targets.

    Args:
        node: of the tree.
        labels: (patches,) class names.
        times: (patches,) hours.

    Returns:
        (patches,) bool, and the positions of those inside in `node.targets`.
    """
    place = {c: i for i, members in enumerate(node.targets.values()) for c in members}
    target = np.array([place.get(str(c), -1) for c in labels], np.int64)
    inside = (target >= 0) & node.scope.learns_at(times)
    return inside, target[inside]


def open_classic(folder: Path, table: FeatureTable) -> tuple[ClassicStage, dict[str, Any]]:
    """The stage in the folder of a `TrainedClassic`, and what is known of its training."""
    about = form.read_json(folder / "stage.json", STAGE, f"delete {folder} and run again")
    module = own_module(table.extractor.key.get("network", ""))
    return load_classic(folder / "stage.ckpt", [table], module), about
