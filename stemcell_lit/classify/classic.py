"""The classical rival of a network: features of patches, an SVM or trees on them, and calibrated probabilities.

It stands in a node of the tree where a `StageModule` may stand. Fitted by scikit-learn, it is kept and used as plain
arrays: what classifies is the same code before and after it was saved, and no file is ever unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_expit, log_softmax, softmax
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.svm import SVC

from stemcell_lit.base import formats as form
from stemcell_lit.base.weights import tensors
from stemcell_lit.classify.features import VERSION, FeatureTable, feature_names
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import reduce_pixels
from stemcell_lit.settings.group_keys import ClassicConfig

CLIP = 4.0  # standard deviations: a feature further out says no more
FOLDS = 5  # of the training patches, whose scores the calibration learns from
RIDGE = 0.01  # of the calibration's offsets: it is fitted on few patches of rare classes
STEEPNESS = 2.0  # of a pair's opinion over its margin; the calibration scales their sum
ABSENT = -1e3  # the score of a class that a fold does not know
ROWS = 1024  # patches at once: their kernel values fit into memory whatever their number

_SETTINGS = form.record(
    {
        "learner": form.exactly("classic"),
        "features": form.exactly(VERSION),
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


@dataclass(frozen=True)
class SupportVectors:
    """A support vector machine with RBF kernel between every two targets.

    Attributes:
        support: (vectors, features) standardised.
        weights: (vectors, pairs) of each vector in each pair's decision, above 0 for the first of the two.
        intercept: (pairs,).
        gamma: (1,) of exp(-gamma |x - y|^2).
    """

    kinds: ClassVar[dict[str, type]] = dict.fromkeys(
        ("support", "weights", "intercept", "gamma"), np.float64
    )
    support: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray
    gamma: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, config: ClassicConfig, seed: int) -> SupportVectors:
        """On standardised features (patches, features) and targets (patches,), each of 0 to their number."""
        gamma = config.gamma / x.shape[1]
        machine = SVC(C=config.C, gamma=gamma, class_weight=_class_weight(config), cache_size=500)
        machine.fit(x, y)
        k, duals = len(machine.classes_), machine.dual_coef_
        ends = np.cumsum([0, *machine.n_support_])
        pairs = list(combinations(range(k), 2))
        weights = np.zeros((len(machine.support_vectors_), len(pairs)))
        for p, (i, j) in enumerate(pairs):
            weights[ends[i] : ends[i + 1], p] = duals[j - 1, ends[i] : ends[i + 1]]
            weights[ends[j] : ends[j + 1], p] = duals[i, ends[j] : ends[j + 1]]
        sign = -1.0 if k == 2 else 1.0  # of two, scikit-learn's decision is above 0 for the second
        return cls(
            machine.support_vectors_, sign * weights, sign * machine.intercept_, np.array([gamma])
        )

    def decisions(self, x: np.ndarray) -> np.ndarray:
        """(patches, pairs), above 0 for the first of the pair."""
        squared = (self.support**2).sum(1)
        parts = []
        for start in range(0, len(x), ROWS):
            rows = x[start : start + ROWS]
            apart = (rows**2).sum(1)[:, None] + squared - 2 * rows @ self.support.T
            parts.append(np.exp(-self.gamma * np.maximum(apart, 0)) @ self.weights)
        none = np.empty((0, len(self.intercept)))
        decisions: np.ndarray = np.concatenate([*parts, none]) + self.intercept
        return decisions

    def scores(self, x: np.ndarray, targets: int) -> np.ndarray:
        """(patches, targets): the sum of a target's log opinions over its pairs (`log_expit` of the margin)."""
        margins = STEEPNESS * self.decisions(x)
        out = np.zeros((len(x), targets))
        for p, (i, j) in enumerate(combinations(range(targets), 2)):
            out[:, i] += log_expit(margins[:, p])
            out[:, j] += log_expit(-margins[:, p])
        return out

    def problem(self, features: int, targets: int) -> str:
        """What is wrong with arrays of a file; empty: nothing."""
        pairs = targets * (targets - 1) // 2
        m = self.weights.size // pairs
        return _shapes(
            self, support=(m, features), weights=(m, pairs), intercept=(pairs,), gamma=(1,)
        ) or ("gamma is not above 0" if not self.gamma[0] > 0 else "")


@dataclass(frozen=True)
class Trees:
    """Extremely randomised trees, one array of nodes behind another; a leaf is its own child.

    Attributes:
        roots: (trees,) node of each tree's root.
        left: (nodes,) the child where the feature is at most the threshold.
        right: (nodes,) the other.
        feature: (nodes,).
        threshold: (nodes,).
        shares: (nodes, targets) of the training patches in it.
    """

    kinds: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("roots", "left", "right", "feature"), np.int64),
        "threshold": np.float64,
        "shares": np.float32,
    }
    roots: np.ndarray
    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    shares: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, config: ClassicConfig, seed: int) -> Trees:
        """On standardised features (patches, features) and targets (patches,), each of 0 to their number."""
        forest = ExtraTreesClassifier(
            config.trees,
            max_features=config.max_features,
            class_weight=_class_weight(config),
            random_state=seed,
        ).fit(x, y)
        parts = [tree.tree_ for tree in forest.estimators_]
        roots = np.cumsum([0, *(t.node_count for t in parts)])[:-1]
        own = [np.arange(t.node_count) for t in parts]

        def children(name: str) -> np.ndarray:
            found = [getattr(t, f"children_{name}") for t in parts]
            placed = [np.where(c < 0, o, c) + r for c, o, r in zip(found, own, roots, strict=True)]
            return np.concatenate(placed)

        return cls(
            roots.astype(np.int64),
            children("left"),
            children("right"),
            np.concatenate([np.maximum(t.feature, 0) for t in parts]),
            np.concatenate([t.threshold for t in parts]),
            np.concatenate([_rows(t.value[:, 0]) for t in parts]).astype(np.float32),
        )

    def scores(self, x: np.ndarray, targets: int) -> np.ndarray:
        """(patches, targets) log of the trees' mean share, a target that no tree saw counted as half a tree."""
        x, rows = x.astype(np.float32), np.arange(len(x))
        total = np.zeros((len(x), targets))
        for root in self.roots:
            at = np.full(len(x), root)
            while True:
                lower = x[rows, self.feature[at]] <= self.threshold[at]
                below = np.where(lower, self.left[at], self.right[at])
                if (below == at).all():
                    break
                at = below
            total += self.shares[at]
        scores: np.ndarray = np.log(total + 0.5) - np.log(total.sum(1, keepdims=True) + 0.5)
        return scores

    def problem(self, features: int, targets: int) -> str:
        """What is wrong with arrays of a file; empty: nothing."""
        n = self.left.size
        own = np.arange(n)
        wrong = _shapes(
            self,
            roots=(self.roots.size,),
            **dict.fromkeys(("left", "right", "feature", "threshold"), (n,)),
            shares=(n, targets),
        )
        if wrong:
            return wrong
        leaf = (self.left == own) & (self.right == own)
        deeper = (self.left > own) & (self.right > own)  # so that every way down ends
        inside = (self.left < n) & (self.right < n)
        legal = (self.feature >= 0) & (self.feature < features)
        if not ((leaf | deeper) & inside & legal).all():
            return "a node has children or a feature that no tree can have"
        if not len(self.roots) or self.roots.min() < 0 or self.roots.max() >= n:
            return "a root is no node"
        return "" if (self.shares >= 0).all() else "a share is below 0"


KINDS: dict[str, type[SupportVectors] | type[Trees]] = {"svm": SupportVectors, "trees": Trees}


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
        model: SupportVectors | Trees,
        arrays: Arrays,
    ):
        self.config, self.node, self.groups = dict(config), node, list(groups)
        self.image_size, self.channels = image_size, channels
        self.model, self._arrays = model, arrays
        self.table = FeatureTable()

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
        return cls(asdict(config), node, groups, image_size, channels, model, arrays)

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
        return {
            "hyper_parameters": {
                "learner": "classic",
                "features": VERSION,
                "classic": self.config,
                "node": self.node,
                "groups": self.groups,
                "image_size": self.image_size,
                "channels": self.channels,
            },
            "state_dict": {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()},
        }

    @classmethod
    def of_content(cls, content: Mapping[str, Any], file: Path, remedy: str) -> ClassicStage:
        """The inverse of `content`.

        Args:
            content: of the form `SAVED`.
            file: for the sentence.
            remedy: what to do.

        Raises:
            UserError: arrays that belong to no such model.
        """
        about = content["hyper_parameters"]
        found = {name: value.numpy().copy() for name, value in content["state_dict"].items()}
        features, targets = len(feature_names(about["channels"])), len(about["groups"])
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
        size, channels = about["image_size"], about["channels"]
        return cls(about["classic"], about["node"], about["groups"], size, channels, model, found)


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
    fit: Callable[[np.ndarray, np.ndarray], SupportVectors | Trees],
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


def _class_weight(config: ClassicConfig) -> str | None:
    return "balanced" if config.class_weight == "balanced" else None


def _rows(counts: np.ndarray) -> np.ndarray:
    shares: np.ndarray = counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
    return shares


def _shapes(model: SupportVectors | Trees, **expected: tuple[int, ...]) -> str:
    for name, shape in expected.items():
        found = getattr(model, name).shape
        if found != shape:
            return f"{name} of shape {list(found)}, expected {list(shape)}"
    return ""
