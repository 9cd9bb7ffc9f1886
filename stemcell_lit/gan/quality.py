"""How good generated patches are: entropy, distances on an encoder's features, memorisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import wasserstein_distance

from stemcell_lit.base.metric_names import MetricName
from stemcell_lit.evaluate.entropy import _intersection, entropy
from stemcell_lit.gan.distances import frechet, kid, nearest, precision_recall, reduced, turned
from stemcell_lit.gan.encoder import Encoder


@dataclass
class Reference:
    """Real patches that generated ones are compared with: of training groups alone."""

    classes: list[str]  # class names in their fixed order
    train: np.ndarray  # uint8 (n, side, side), what the generator saw
    train_label: np.ndarray  # (n,) int64
    # uint8 (m, side, side), of groups that the generator did not see (and no test patch)
    held_out: np.ndarray
    held_label: np.ndarray  # (m,) int64
    encoder: Encoder  # trained on `train`
    # in which the generator saw `train`, see `turned`: a copy may lie in any of them
    turns: str = "square"
    _cache: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def draw(
        cls,
        classes: Sequence[str],
        train: tuple[np.ndarray, np.ndarray],
        held_out: tuple[np.ndarray, np.ndarray],
        encoder: Encoder,
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
