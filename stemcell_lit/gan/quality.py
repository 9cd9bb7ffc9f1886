"""How good generated patches are: entropy, distances on an encoder's features, memorisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from stemcell_lit.base.metric_names import MetricName
from stemcell_lit.data.augment import to_float, to_uint8
from stemcell_lit.gan.objectives import rotate

_CHUNK = 8192  # references compared with at once


def entropy(pixels: np.ndarray) -> np.ndarray:
    """Shannon entropy of each image after min-max to 8 bit, -sum p log2 p over 256 bins.

    The formula of Witmer and Bhanu 2022 (Sensors 22:206).

    Args:
        pixels: uint8 (n, h, w).

    Returns:
        (n,) float64 in bits, 0 to 8; 0 for a constant image.
    """
    n = len(pixels)
    if n == 0:
        return np.empty(0)
    flat = pixels.reshape(n, -1).astype(np.float64)
    low, high = flat.min(1, keepdims=True), flat.max(1, keepdims=True)
    scaled = (flat - low) / np.maximum(high - low, 1) * 255
    bins = np.round(scaled).astype(np.int64) + 256 * np.arange(n)[:, None]
    share = np.bincount(bins.ravel(), minlength=256 * n).reshape(n, 256) / flat.shape[1]
    return -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum(1) + 0.0


def entropy_intersection(
    real: np.ndarray, generated: np.ndarray, bins: int = 100, draws: int = 5, seed: int = 0
) -> tuple[float, float]:
    """Overlap of the entropy histograms of real and generated patches, the paper's score of a GAN.

    Each draw takes as many images from both sides, without replacement, as the smaller side has;
    the histograms share their bins, from the least to the largest entropy of all images. The score
    ignores where pixels are: shuffled ones score alike.

    Args:
        real: uint8 (n, h, w).
        generated: uint8 (m, h, w).
        bins: of the histograms.
        draws: repetitions.
        seed: of the draws.

    Returns:
        Mean and standard deviation over the draws of sum min(p, q): 1 for equal histograms, 0 for
        disjoint ones.
    """
    first, second = entropy(real), entropy(generated)
    both = np.concatenate([first, second])
    edges = np.linspace(both.min(), both.max() + 1e-9, bins + 1)
    random = np.random.default_rng(seed)
    size = min(len(first), len(second))
    scores = []
    for _ in range(draws):
        one, other = (random.choice(side, size, replace=False) for side in (first, second))
        scores.append(_intersection(one, other, edges))
    return float(np.mean(scores)), float(np.std(scores))


def _intersection(first: np.ndarray, second: np.ndarray, edges: np.ndarray) -> float:
    """Sum of min(p, q) over the bins of two sets of one size."""
    p, q = (np.histogram(side, edges)[0] / len(side) for side in (first, second))
    return float(np.minimum(p, q).sum())


def reduced(pixels: np.ndarray, turns: str = "square", side: int = 16) -> np.ndarray:
    """Features for comparing images: averaged down to at most `side` pixels, (n, features) float32.

    The average forgives noise and shifts of a pixel, which a copy of a training patch would have.

    Args:
        pixels: uint8 (n, height, width).
        turns: `square`, or `any`: only the disc that a turn of any angle shows, see `objectives.turn`.
        side: of the averaged images.
    """
    n, height, width = pixels.shape
    step_y, step_x = max(1, height // side), max(1, width // side)
    rows, columns = height // step_y, width // step_x
    cut = pixels[:, : rows * step_y, : columns * step_x].astype(np.float32)
    small = cut.reshape(n, rows, step_y, columns, step_x).mean((2, 4))
    if turns == "square":
        return small.reshape(n, -1)
    y, x = ((np.arange(count) + 0.5) / count - 0.5 for count in (rows, columns))
    return small[:, np.hypot(y[:, None], x) < 0.5]


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
        turns: `square` (eight) or `any` (48, every 15 degrees), see `objectives.turn`.

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
    return every[nearest(reduced(generated, turns), reduced(every, turns))[1]]


def entropy_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Wasserstein-1 distance between the entropies of two sets, in bits; 0 for equal ones.

    Args:
        real: uint8 (n, h, w).
        generated: uint8 (m, h, w).
    """
    return float(wasserstein_distance(entropy(real), entropy(generated)))


# --- on features of an encoder ------------------------------------------------------------------


def kid(real: np.ndarray, generated: np.ndarray) -> float:
    """Kernel distance: the unbiased squared MMD under the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018, arXiv:1801.01401, over all features instead of subsets of them. Its mean
    is 0 for two samples of one distribution, however small they are, so single values may lie below
    0.

    Args:
        real: (n, d), at least 2 rows.
        generated: (m, d), at least 2 rows.
    """
    x, y = real.astype(np.float64), generated.astype(np.float64)
    (n, d), m = x.shape, len(y)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / d + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
    within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel(x, y).mean())


def frechet(real: np.ndarray, generated: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500). Biased upwards on small sets:
    compare at equal sizes only.

    Args:
        real: (n, d), at least 2 rows.
        generated: (m, d), at least 2 rows.
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


# --- all of them, per class and overall, beside their floors ------------------------------------


class Features(Protocol):
    """What judges: see `gan/encoder.Encoder`."""

    name: str

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Float32 (n, d) of uint8 patches (n, side, side)."""
        ...


@dataclass
class Reference:
    """Real patches that generated ones are compared with: of training groups alone.

    Attributes:
        classes: class names in their fixed order.
        train: uint8 (n, side, side), what the generator saw.
        train_label: (n,) int64.
        held_out: uint8 (m, side, side), of groups that the generator did not see (and no test
            patch).
        held_label: (m,) int64.
        encoder: trained on `train`.
        turns: in which the generator saw `train`, see `turned`: a copy may lie in any of them.
    """

    classes: list[str]
    train: np.ndarray
    train_label: np.ndarray
    held_out: np.ndarray
    held_label: np.ndarray
    encoder: Features
    turns: str = "square"
    _cache: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def draw(
        cls,
        classes: Sequence[str],
        train: tuple[np.ndarray, np.ndarray],
        held_out: tuple[np.ndarray, np.ndarray],
        encoder: Features,
        most: int,
        seed: int = 0,
        turns: str = "square",
    ) -> Reference:
        """Keeps at most `most` patches of a class on each side, so that the cost is bounded."""
        random = np.random.default_rng(seed)

        def kept(pixels: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            each = [
                random.permutation(np.flatnonzero(label == i))[:most] for i in range(len(classes))
            ]
            rows = np.sort(np.concatenate(each))
            return np.asarray(pixels[rows]), label[rows]

        (seen, seen_label), (held, held_label) = kept(*train), kept(*held_out)
        return cls(list(classes), seen, seen_label, held, held_label, encoder, turns)

    def features(self, part: str) -> list[np.ndarray]:
        """Of `train` or `held_out`, class by class."""
        if part not in self._cache:
            pixels, label = self._part(part)
            every = self.encoder.features(pixels)
            self._cache[part] = [every[label == i] for i in range(len(self.classes))]
        return self._cache[part]

    def pixels(self, part: str) -> list[np.ndarray]:
        """Of `train` or `held_out`, class by class."""
        pixels, label = self._part(part)
        return [pixels[label == i] for i in range(len(self.classes))]

    def floor_distances(self) -> list[np.ndarray]:
        """Distances of held-out patches to their nearest training patch, class by class."""
        if "floor" not in self._cache:
            self._cache["floor"] = self.distances(self.pixels("held_out"))
        return self._cache["floor"]

    def distances(self, sets: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Distances of patches, class by class, to the nearest training patch of their class."""
        if "turned" not in self._cache:
            self._cache["turned"] = [
                reduced(turned(p, self.turns), self.turns)
                if len(p)
                else np.empty((0, 0), np.float32)
                for p in self.pixels("train")
            ]
        known = self._cache["turned"]
        return [
            nearest(reduced(made, self.turns), ref)[0] if len(made) and len(ref) else np.empty(0)
            for made, ref in zip(sets, known, strict=True)
        ]

    def _part(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        if part == "train":
            return self.train, self.train_label
        return self.held_out, self.held_label


Value = dict[str, float | None]  # value, std, floor, floor_std
Quality = dict[str, dict[str, Value]]  # metric -> class, or "" for all of them -> value


def quality(
    reference: Reference,
    generated: Sequence[np.ndarray],
    *,
    draws: int = 5,
    neighbours: int = 5,
    min_patches: int = 5,
    seed: int = 0,
) -> Quality:
    """Every number of a generator that needs no training, each beside what real patches score.

    A value compares held-out real patches with generated ones; its floor compares them with
    training patches. Both take, in each of `draws` draws, as many patches of a class as are held
    out (or as the smaller side has), since most of these numbers depend on the size of the sets.
    Over all classes the sets hold each class as often as the held-out patches do.

    Args:
        reference: real patches and encoder.
        generated: uint8 (n, side, side) for each class, in the order of `reference.classes`.
        draws: repetitions, whose mean and standard deviation are given.
        neighbours: k of precision, recall, density and coverage.
        min_patches: a class with fewer held-out patches has no values of its own.
        seed: of the draws.

    Returns:
        metric -> class or "" -> value, std, floor, floor_std (None where it cannot be told).
        Metrics on features carry the encoder's name, as in `kid/encoder=3fa2c1`.
    """
    random = np.random.default_rng(seed)
    k = len(reference.classes)
    held, train = reference.features("held_out"), reference.features("train")
    made = [reference.encoder.features(g) for g in generated]
    held_bits, train_bits, made_bits = (
        [entropy(p) for p in sets]
        for sets in (reference.pixels("held_out"), reference.pixels("train"), generated)
    )
    floor_distance, distance = reference.floor_distances(), reference.distances(generated)
    result: Quality = {}

    def add(metric: str, name: str, values: list[float], floors: list[float]) -> None:
        told = [x for pair in (values, floors) for x in _mean_std(pair)]
        result.setdefault(metric, {})[name] = dict(
            zip(("value", "std", "floor", "floor_std"), told, strict=True)
        )

    def measure(name: str, which: list[int]) -> None:
        values: dict[str, list[float]] = {}
        floors: dict[str, list[float]] = {}
        sides = ((made, made_bits, values), (train, train_bits, floors))
        bits_here = np.concatenate(
            [b[i] for b in (held_bits, train_bits, made_bits) for i in which]
        )
        edges = np.linspace(bits_here.min(), bits_here.max() + 1e-9, 101)  # the paper's 100 bins
        for _ in range(draws):
            for features, bits, into in sides:
                sizes = {i: min(len(held[i]), len(features[i])) for i in which}
                one = {i: random.permutation(len(held[i]))[:n] for i, n in sizes.items()}
                other = {i: random.permutation(len(features[i]))[:n] for i, n in sizes.items()}
                if sum(sizes.values()) <= neighbours:
                    continue
                found = _compare(
                    np.concatenate([held[i][one[i]] for i in which]),
                    np.concatenate([features[i][other[i]] for i in which]),
                    np.concatenate([held_bits[i][one[i]] for i in which]),
                    np.concatenate([bits[i][other[i]] for i in which]),
                    edges,
                    neighbours,
                )
                for metric, value in found.items():
                    into.setdefault(metric, []).append(value)
        for metric in values:
            encoder = "" if metric.startswith("entropy") else reference.encoder.name
            full = str(MetricName(metric, encoder))
            add(full, name, values[metric], floors.get(metric, []))
        far, usual = (np.concatenate([d[i] for i in which]) for d in (distance, floor_distance))
        if len(far) and len(usual):
            ratio = float(np.median(far)) / max(float(np.median(usual)), 1e-9)
            add("memorisation", name, [ratio], [1.0])

    present = [i for i in range(k) if len(held[i]) and len(made[i])]
    if present:
        measure("", present)
    for i in present:
        if len(held[i]) >= max(min_patches, neighbours + 1):
            measure(reference.classes[i], [i])
    return result


def _compare(
    real: np.ndarray,
    other: np.ndarray,
    real_bits: np.ndarray,
    other_bits: np.ndarray,
    edges: np.ndarray,
    neighbours: int,
) -> dict[str, float]:
    """All numbers of one draw: features (n, d) and entropies (n,) of two sets of one size."""
    return {
        "entropy/intersection": _intersection(real_bits, other_bits, edges),
        "entropy/wasserstein": float(wasserstein_distance(real_bits, other_bits)),
        "kid": kid(real, other),
        "frechet": frechet(real, other),
        **precision_recall(real, other, neighbours),
    }


def _mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values))
