"""The classical rival of a network: features of patches, a model on them, and calibrated probabilities.

Features are classical, or those of a network whose weights stay as they are.

It stands in a node of the tree where a `StageModule` may stand. Fitted by scikit-learn, it is kept and used as plain
arrays: what classifies is the same code before and after it was saved, and no file is ever unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.model_selection import StratifiedGroupKFold

from stemcell_lit.base import formats as form
from stemcell_lit.base.weights import tensors
from stemcell_lit.classify.classic_models import KINDS, Model
from stemcell_lit.classify.features import VERSION, Classical, Extractor, FeatureTable
from stemcell_lit.classify.network_features import NetworkFeatures
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import reduce_pixels
from stemcell_lit.settings.group_keys import ClassicConfig

CLIP = 4.0  # standard deviations: a feature further out says no more
FOLDS = 5  # of the training patches, whose scores the calibration learns from
RIDGE = 0.01  # of the calibration's offsets: it is fitted on few patches of rare classes
ABSENT = -1e3  # the score of a class that a fold does not know

_CLASSICAL = form.record({"version": form.exactly(VERSION)}, more=False)
_OF_NETWORK = form.record(
    {"network": form.text(), "colour": form.flag}, {"weights": form.text(64)}, more=False
)


def _extracted(value: Any, where: str) -> None:
    """The key of an extractor."""
    known = isinstance(value, Mapping) and "network" in value
    (_OF_NETWORK if known else _CLASSICAL)(value, where)


_SETTINGS = form.record(
    {
        "learner": form.exactly("classic"),
        "features": _extracted,
        "classic": form.settings(asdict(ClassicConfig()), {}),
        "node": form.text(),
        "groups": form.listing(form.NAME, 2, form.MOST_CLASSES, unique=True),
        "image_size": form.whole(1, 65_536),
        "channels": form.whole(1, 64),
    },
    more=False,
)
SAVED = form.record({"hyper_parameters": _SETTINGS, "state_dict": tensors}, more=False)

Arrays = dict[str, np.ndarray]


NETWORK = "network."  # before the names of its weights in a file


class ClassicStage:
    """One node of the hierarchy: features, a model on them, calibrated probabilities.

    Attributes:
        groups: what it tells apart, in the order of its answers.
        image_size: height and width in pixels that it looks at.
        channels: views of a patch.
        table: of features; stages of one hierarchy may share it.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        node: str,
        groups: Sequence[str],
        image_size: int,
        channels: int,
        model: Model,
        arrays: Arrays,
        table: FeatureTable,
    ):
        self.config, self.node, self.groups = dict(config), node, list(groups)
        self.image_size, self.channels = image_size, channels
        self.model, self._arrays, self.table = model, arrays, table

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        units: np.ndarray,
        groups: Sequence[str],
        config: ClassicConfig,
        *,
        node: str,
        image_size: int,
        channels: int = 1,
        seed: int = 0,
        table: FeatureTable | None = None,
    ) -> ClassicStage:
        """Learns from features, and then from scores of patches that a model did not learn from how sure it may be.

        Those scores come from folds by unit, never by patch: neighbours along a track are nearly the same picture, and
        a model that has seen one would be taken for surer of the other than it is of a cell that it has not seen.

        Args:
            x: (patches, features), see `features.features`.
            y: (patches,) positions in `groups`, each there at least once.
            units: (patches,) what must not be in two folds.
            groups: what is told apart.
            config: settings.
            node: its place in the tree.
            image_size: of the patches, px.
            channels: views of a patch.
            seed: of trees.
            table: of features, of the extractor that made these.
        """
        kind = KINDS[config.model]
        rows = _thinned(y, config.most)
        x, y, units = x[rows], y[rows], units[rows]
        mean, scale = x.mean(0, np.float64), x.std(0, dtype=np.float64)
        scale[scale < 1e-9 * np.maximum(np.abs(mean), 1e-9)] = 1.0
        z = _standard(x, mean, scale)
        scores, known = _held_out(
            lambda rows, labels: kind.fit(z[rows], labels, config, seed), z, y, units, len(groups)
        )
        factor, offset = calibrate(scores[known], y[known], len(groups))
        arrays = {"mean": mean, "scale": scale, "factor": np.array([factor]), "offset": offset}
        model = kind.fit(z, y, config, seed)
        settings = {k: v for k, v in asdict(config).items() if k not in ("features", "weights")}
        table = table or FeatureTable()
        return cls(settings, node, groups, image_size, channels, model, arrays, table)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of patches.

        Args:
            pixels: uint8 (patches, [views,] size, size), reduced to `image_size`.

        Returns:
            float64 (patches, groups).
        """
        return self.of_features(self.table.of(reduce_pixels(pixels, self.image_size)))

    def of_features(self, x: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (patches, groups) of features (patches, features)."""
        arrays = self._arrays
        scores = self.model.scores(_standard(x, arrays["mean"], arrays["scale"]), len(self.groups))
        p: np.ndarray = softmax(arrays["factor"] * scores + arrays["offset"], axis=1)
        return p

    def content(self) -> dict[str, Any]:
        """Plain settings and tensors, as `of_content` takes them."""
        arrays = {**self._arrays, **vars(self.model)}
        state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
        extractor = self.table.extractor
        if isinstance(extractor, NetworkFeatures):
            weights = extractor.network.state_dict()
            state |= {f"{NETWORK}{k}": v.contiguous() for k, v in weights.items()}
        return {
            "hyper_parameters": {
                "learner": "classic",
                "features": extractor.key,
                "classic": self.config,
                "node": self.node,
                "groups": self.groups,
                "image_size": self.image_size,
                "channels": self.channels,
            },
            "state_dict": state,
        }

    @classmethod
    def of_content(
        cls,
        content: Mapping[str, Any],
        file: Path,
        remedy: str,
        tables: Sequence[FeatureTable] = (),
        allow_module: str | None = None,
    ) -> ClassicStage:
        """The inverse of `content`.

        Args:
            content: of the form `SAVED`.
            file: for the sentence.
            remedy: what to do.
            tables: of features; one of the same extractor is shared.
            allow_module: a network of the user's own that it may ask for.

        Raises:
            UserError: arrays that belong to no such model.
        """
        about, state = content["hyper_parameters"], content["state_dict"]
        key, channels = about["features"], about["channels"]
        table = next((t for t in tables if t.extractor.key == key), None)
        if table is None:
            extractor: Extractor = Classical()
            if "network" in key:
                body = {
                    k.removeprefix(NETWORK): v for k, v in state.items() if k.startswith(NETWORK)
                }
                extractor = NetworkFeatures.of_content(
                    key, body, channels, file, remedy, allow_module
                )
            table = FeatureTable(extractor=extractor)
        found = {k: v.numpy().copy() for k, v in state.items() if not k.startswith(NETWORK)}
        features, targets = len(table.extractor.names(channels)), len(about["groups"])
        own = {"mean": (features,), "scale": (features,), "factor": (1,), "offset": (targets,)}
        wrong = ""
        kind = KINDS.get(about["classic"].get("model", "svm"))
        if kind is None:
            raise UserError(
                f"{file}: a model of kind {about['classic']['model']!r:.60}, expected {' or '.join(KINDS)}; {remedy}"
            )
        expected = {**dict.fromkeys(own, np.float64), **kind.kinds}
        if {k: v.dtype for k, v in found.items()} != {k: np.dtype(v) for k, v in expected.items()}:
            wrong = f"arrays {sorted(found)[:20]}, expected {sorted(expected)} of their types"
        elif any(found[name].shape != shape for name, shape in own.items()):
            wrong = f"scales for other features than the {features} of its patches"
        elif not (found["scale"] > 0).all():
            wrong = "a scale that is not above 0"
        else:
            model = kind(**{name: found.pop(name) for name in kind.kinds})
            wrong = model.problem(features, targets)
        if wrong:
            raise UserError(f"{file}: not a readable stage: {wrong}; {remedy}")
        size, node, groups = about["image_size"], about["node"], about["groups"]
        return cls(about["classic"], node, groups, size, channels, model, found, table)


def calibrate(scores: np.ndarray, y: np.ndarray, targets: int) -> tuple[float, np.ndarray]:
    """Bias-corrected temperature scaling (Alexandari et al. 2020): one factor, an offset a target, least log loss.

    Args:
        scores: (patches, targets) of models that did not learn from these patches.
        y: (patches,) positions.
        targets: how many.

    Returns:
        factor above 0 and offsets (targets,), of which softmax(factor x scores + offset) is the probability; 1 and 0
        where there is no patch.
    """
    if not len(y):
        return 1.0, np.zeros(targets)
    truth = np.eye(targets)[y]

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(v[0] * scores + v[1:], axis=1)
        over = (np.exp(log_p) - truth) / len(y)
        value = -(truth * log_p).sum() / len(y) + RIDGE * (v[1:] ** 2).mean()
        slope = np.concatenate([[(over * scores).sum()], over.sum(0) + 2 * RIDGE * v[1:] / targets])
        return float(value), slope

    bounds = [(1e-3, 1e3), *[(-20.0, 20.0)] * targets]
    begin = np.concatenate([[1.0], np.zeros(targets)])
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(found[0]), found[1:]


def _held_out(
    fit: Callable[[np.ndarray, np.ndarray], Model],
    z: np.ndarray,
    y: np.ndarray,
    units: np.ndarray,
    targets: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (patches, targets) by models of the other folds, and which patches have some."""
    scores, known = np.full((len(y), targets), ABSENT), np.zeros(len(y), bool)
    folds = min(FOLDS, len(set(units)), int(np.bincount(y).max()))
    if folds < 2:
        return scores, known
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is in fewer groups than there are folds
        parts = list(splitter.split(z, y, units))
    for learn, held in parts:
        there, labels = np.unique(y[learn], return_inverse=True)
        if len(there) < 2 or not len(held):
            continue
        model = fit(learn, labels)
        scores[np.ix_(held, there)] = model.scores(z[held], len(there))
        known[held] = np.isin(y[held], there)
    return scores, known


def _thinned(y: np.ndarray, most: int) -> np.ndarray:
    """Rows, sorted: all, or at most about so many, in each class the same share of its own and at least one."""
    if len(y) <= most:
        return np.arange(len(y))
    rng, kept = np.random.default_rng(0), []
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        kept.append(rng.permutation(rows)[: max(1, round(len(rows) * most / len(y)))])
    return np.sort(np.concatenate(kept))


def _standard(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip((x - mean) / scale, -CLIP, CLIP)
    return clipped
