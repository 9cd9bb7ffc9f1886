"""Distances between sets of patches: nearest neighbours, KID, Frechet, precision and recall."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.distance import cdist

from stemcell_lit.data.augment import to_float, to_uint8
from stemcell_lit.gan.objectives import rotate

_CHUNK = 8192  # references compared with at once


def reduced(pixels: np.ndarray, turns: str = "square", side: int = 16) -> np.ndarray:
    """Features for comparing images: averaged down to at most `side` pixels, (n, features) float32.

    The average forgives noise and shifts of a pixel, which a copy of a training patch would have.

    Args:
        pixels: uint8 (n, height, width).
        turns: `square`, or `any`: only the disc that a turn of any angle shows, see `objectives.random_turn`.
        side: of the averaged images.
    """
    n, height, width = pixels.shape
    step_y, step_x = max(1, height // side), max(1, width // side)
    rows, columns = height // step_y, width // step_x
    cut = pixels[:, : rows * step_y, : columns * step_x].astype(np.float32)
    small: np.ndarray = cut.reshape(n, rows, step_y, columns, step_x).mean((2, 4))
    if turns == "square":
        return small.reshape(n, -1)
    y, x = ((np.arange(count) + 0.5) / count - 0.5 for count in (rows, columns))
    disc: np.ndarray = small[:, np.hypot(y[:, None], x) < 0.5]
    return disc


def nearest(query: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest reference of each query.

    Args:
        query: (n, features).
        reference: (m, features).

    Returns:
        (n,) Euclidean distance, float64, and (n,) its row.
    """
    query = query.astype(np.float64)
    squares, rows = np.full(len(query), np.inf), np.zeros(len(query), np.int64)
    for first in range(0, len(reference), _CHUNK):  # a bounded part of the table of distances
        part = reference[first : first + _CHUNK].astype(np.float64)
        norms = (part**2).sum(1)
        for start in range(0, len(query), 512):
            chunk = query[start : start + 512]
            found = norms - 2 * chunk @ part.T
            place = found.argmin(1)
            least = found[np.arange(len(chunk)), place] + (chunk**2).sum(1)
            better = np.flatnonzero(least < squares[start : start + 512])
            squares[start + better] = least[better]
            rows[start + better] = first + place[better]
    return np.sqrt(np.maximum(squares, 0)), rows


def turned(pixels: np.ndarray, turns: str = "square") -> np.ndarray:
    """The turns and flips in which a generator was shown training patches.

    Args:
        pixels: uint8 (n, side, side).
        turns: `square` (eight) or `any` (48, every 15 degrees), see `objectives.random_turn`.

    Returns:
        uint8 (8 n or 48 n, side, side), turn by turn, the patches as they are first.
    """
    sides = (pixels, pixels[:, :, ::-1])
    eight = np.concatenate([np.rot90(side, k, (1, 2)) for side in sides for k in range(4)])
    if turns == "square":
        return eight
    parts = to_float(torch.from_numpy(eight)).split(512)
    between = [
        to_uint8(rotate(part, torch.full((len(part),), math.radians(degrees))))
        for degrees in (-30, -15, 15, 30, 45)
        for part in parts
    ]
    return np.concatenate([eight, *between])


def nearest_training(generated: np.ndarray, train: np.ndarray, turns: str = "square") -> np.ndarray:
    """For each generated patch the training patch that is nearest, in the turn that is nearest.

    Args:
        generated: uint8 (n, side, side).
        train: uint8 (m, side, side).
        turns: of the training patches, see `turned`.

    Returns:
        uint8 (n, side, side).
    """
    every = turned(train, turns)
    found: np.ndarray = every[nearest(reduced(generated, turns), reduced(every, turns))[1]]
    return found


def kid(real: np.ndarray, generated: np.ndarray) -> float:
    """Kernel distance: the unbiased squared MMD under the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018, arXiv:1801.01401, over all features instead of subsets of them. Its mean
    is 0 for two samples of one distribution, however small they are, so single values may lie below
    0. The features are (n, d) and (m, d), at least 2 rows each.
    """
    x, y = real.astype(np.float64), generated.astype(np.float64)
    (n, d), m = x.shape, len(y)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        cubed: np.ndarray = (a @ b.T / d + 1) ** 3
        return cubed

    xx, yy = kernel(x, x), kernel(y, y)
    within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
    within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel(x, y).mean())


def frechet(real: np.ndarray, generated: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500). Biased upwards on small sets:
    compare at equal sizes only. The features are (n, d) and (m, d), at least 2 rows each.
    """
    x, y = real.astype(np.float64), generated.astype(np.float64)
    a, b = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # the trace of (C1 C2)^(1/2) by a symmetric matrix of the same eigenvalues: stable if singular
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(max(0.0, apart + np.trace(a) + np.trace(b) - 2 * mixed))


def ball_radius(features: np.ndarray, neighbours: int) -> np.ndarray:
    """(n,) distance of each row to its k-th nearest other row; fewer rows: to the farthest."""
    distance = np.sort(cdist(features, features), axis=1)  # each row's first is itself
    return distance[:, min(neighbours, len(features) - 1)]


def precision_recall(
    real: np.ndarray, generated: np.ndarray, neighbours: int = 5
) -> dict[str, float]:
    """Improved precision and recall, density and coverage, by balls to the k-th neighbour.

    Kynkaanniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797.

    Args:
        real: (n, d), more than `neighbours` rows.
        generated: (m, d), more than `neighbours` rows.
        neighbours: k.

    Returns:
        precision: share of generated inside a ball around a real one (do they look real?).
        recall: share of real inside a ball around a generated one (is everything made?).
        density: mean number of real balls around a generated one, over k; may exceed 1.
        coverage: share of real balls that hold a generated one.
    """
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    between = cdist(real, generated)
    inside = between <= ball_radius(real, neighbours)[:, None] * (1 + 1e-9)
    reached = between <= ball_radius(generated, neighbours)[None] * (1 + 1e-9)
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float(reached.any(1).mean()),
        "density": float(inside.sum(0).mean() / neighbours),
        "coverage": float(inside.any(1).mean()),
    }
