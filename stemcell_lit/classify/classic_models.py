"""What the classical rival learns on features: an SVM, trees or a line, each as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
from scipy.special import log_expit
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from stemcell_lit.settings.group_keys import ClassicConfig

STEEPNESS = 2.0  # of a pair's opinion over its margin; the calibration scales their sum
ROWS = 1024  # patches at once: their kernel values fit into memory whatever their number


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


@dataclass(frozen=True)
class Linear:
    """Multinomial logistic regression.

    Attributes:
        weights: (features, targets).
        intercept: (targets,).
    """

    kinds: ClassVar[dict[str, type]] = dict.fromkeys(("weights", "intercept"), np.float64)
    weights: np.ndarray
    intercept: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, config: ClassicConfig, seed: int) -> Linear:
        """On standardised features (patches, features) and targets (patches,), each of 0 to their number."""
        found = LogisticRegression(C=config.C, class_weight=_class_weight(config), max_iter=2000)
        found.fit(x, y)
        weights, intercept = found.coef_.T, found.intercept_
        if weights.shape[1] == 1:  # of two, scikit-learn keeps the second's alone
            weights = np.hstack([np.zeros_like(weights), weights])
            intercept = np.array([0.0, intercept[0]])
        return cls(weights.astype(np.float64), intercept.astype(np.float64))

    def scores(self, x: np.ndarray, targets: int) -> np.ndarray:
        """(patches, targets) logits."""
        scores: np.ndarray = x @ self.weights + self.intercept
        return scores

    def problem(self, features: int, targets: int) -> str:
        """What is wrong with arrays of a file; empty: nothing."""
        return _shapes(self, weights=(features, targets), intercept=(targets,))


Model = SupportVectors | Trees | Linear
KINDS: dict[str, type[SupportVectors] | type[Trees] | type[Linear]] = {
    "svm": SupportVectors,
    "trees": Trees,
    "linear": Linear,
}


def _class_weight(config: ClassicConfig) -> str | None:
    return "balanced" if config.class_weight == "balanced" else None


def _rows(counts: np.ndarray) -> np.ndarray:
    shares: np.ndarray = counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
    return shares


def _shapes(model: Model, **expected: tuple[int, ...]) -> str:
    for name, shape in expected.items():
        found = getattr(model, name).shape
        if found != shape:
            return f"{name} of shape {list(found)}, expected {list(shape)}"
    return ""
