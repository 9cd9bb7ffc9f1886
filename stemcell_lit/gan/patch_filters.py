"""Which generated patches are kept: filters by confidence, distance and entropy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.entropy import entropy
from stemcell_lit.gan.distances import ball_radius
from stemcell_lit.gan.encoder import Encoder
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.gan_keys import SelectConfig

FILTERS = ("confidence", "distance", "entropy")


_LEAST_SHARE = (
    1 / 3
)  # matching a histogram keeps at least about so many: a rare bin must not starve the rest


Accept = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Filter:
    """What decides which patches of a class are kept."""

    name: str  # one of `FILTERS`, or another's own
    # (first patches drawn uint8 (n, h, w), class name) -> a function of patches uint8 (m, h, w) that returns (m,)
    # bool, True to keep
    fit: Callable[[np.ndarray, str], Accept]


def make_filters(select: SelectConfig, encoder: Encoder | None, seed: int = 0) -> list[Filter]:
    """The filters of a configuration, in its order.

    All they know of real patches is what the encoder keeps: those of the training groups.

    Raises:
        UserError: an unknown filter, a threshold out of range, or no encoder.
    """
    check(select, "select.")
    if not select.filters:
        return []
    if encoder is None:
        raise UserError(
            f"select.filters={list(select.filters)}: needs the encoder.pt beside the generator, and there is none; "
            "train the generator again"
        )
    of: dict[str, Callable[[np.ndarray, str], Accept]] = {
        "confidence": lambda pilot, name: _confident(encoder, name, select.confidence),
        "distance": lambda pilot, name: _near(encoder, name, select.neighbours),
        "entropy": lambda pilot, name: _match_entropy(
            _training(encoder, "entropy", name),
            entropy(pilot),
            select.entropy_bins,
            np.random.default_rng([seed, encoder.classes.index(name)]),
        ),
    }
    return [Filter(name, of[name]) for name in select.filters]


def _training(encoder: Encoder, what: str, name: str) -> np.ndarray:
    """Features or entropies of the training patches of a class."""
    of_class: np.ndarray = encoder.training[what][
        encoder.training["label"] == encoder.classes.index(name)
    ]
    return of_class


def _confident(encoder: Encoder, name: str, least: float) -> Accept:
    place = encoder.classes.index(name)
    return lambda pixels: encoder.probabilities(pixels)[:, place] >= least


def _near(encoder: Encoder, name: str, neighbours: int) -> Accept:
    """Inside the ball of a real training patch of the class, to its k-th neighbour."""
    real = _training(encoder, "features", name).astype(np.float64)
    radius = ball_radius(real, neighbours)
    return lambda pixels: (cdist(real, encoder.features(pixels)) <= radius[:, None]).any(0)


def _match_entropy(
    real: np.ndarray, pilot: np.ndarray, bins: int, random: np.random.Generator
) -> Accept:
    """Rejection sampling: entropies of what is kept follow those of real patches.

    Bins hold equal shares of the real entropies; beyond the outer ones by more than a twentieth of
    their range nothing is kept.

    Args:
        real: (n,) bits.
        pilot: (m,) bits of generated patches.
        bins: at most so many, and eight real patches in each.
        random: of the rejection.
    """
    count = int(np.clip(len(real) // 8, 1, bins))
    edges = np.unique(np.quantile(real, np.linspace(0, 1, count + 1)))
    margin = max(0.05 * float(edges[-1] - edges[0]), 1e-3)
    edges = np.concatenate([[edges[0] - margin], edges[1:-1], [edges[-1] + margin]])

    def place(bits: np.ndarray) -> np.ndarray:
        inside = (bits >= edges[0]) & (bits <= edges[-1])
        found = np.searchsorted(edges, bits, side="right") - 1
        return np.where(inside, np.clip(found, 0, len(edges) - 2), -1)

    def share(bits: np.ndarray, more: float) -> np.ndarray:
        found = place(bits)
        counts = np.bincount(found[found >= 0], minlength=len(edges) - 1) + more
        shares: np.ndarray = counts / counts.sum()
        return shares

    ratio = share(real, 0) / share(pilot, 1)
    keep = np.minimum(1, ratio / min(float(ratio.max()), 1 / _LEAST_SHARE))

    def accept(pixels: np.ndarray) -> np.ndarray:
        found = place(entropy(pixels))
        kept: np.ndarray = (found >= 0) & (random.random(len(found)) < keep[np.maximum(found, 0)])
        return kept

    return accept
