"""Modes of a class: the kinds of its patches, which the generator is told, so that it drops none of them.

After self-conditioned GANs (Liu et al. 2020, arXiv:2006.10728): a conditional GAN whose conditions are clusters of
real images has to draw from each of them. There clusters of the critic's features are found again and again while it
trains, without classes; here they are found once, inside each class, between features of the encoder of the training
patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Modes:
    """Clusters of each class's training patches."""

    centres: list[np.ndarray]  # for each class (modes, d), in the encoder's features
    # for each class the share of its training patches in each mode; sums to 1
    shares: list[list[float]]

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        *,
        most: int,
        patches: int,
    ) -> Modes:
        """Finds them by k-means; the same call gives the same modes.

        Args:
            features: (n, d) of training patches.
            labels: (n,) int64, positions in `classes`.
            classes: class names; one without patches has one mode.
            most: modes of a class at most.
            patches: training patches that a mode needs on average; a class with fewer than twice
                as many has one mode.
        """
        centres, shares = [], []
        for i in range(len(classes)):
            own = np.asarray(features[labels == i], np.float64)
            count = int(np.clip(len(own) // patches, 1, most))
            if count == 1 or len(np.unique(own, axis=0)) < count:
                centres.append(
                    own.mean(0, keepdims=True) if len(own) else np.zeros((1, features.shape[1]))
                )
                shares.append([1.0])
                continue
            with threadpool_limits(1):  # sums of several threads come in any order
                found = KMeans(count, n_init=10, random_state=0).fit(own)
            centres.append(found.cluster_centers_)
            shares.append((np.bincount(found.labels_, minlength=count) / len(own)).tolist())
        return cls(centres, shares)

    def of(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The nearest mode of each patch's own class.

        Args:
            features: (n, d).
            labels: (n,) int64, positions of the classes.

        Returns:
            (n,) int64, counted over the modes of all classes, those of the first class first.
        """
        first = np.cumsum([0, *map(len, self.shares)])
        found = np.empty(len(labels), np.int64)
        for i, centres in enumerate(self.centres):
            rows = np.flatnonzero(labels == i)
            if len(rows):
                found[rows] = first[i] + cdist(features[rows], centres).argmin(1)
        return found
