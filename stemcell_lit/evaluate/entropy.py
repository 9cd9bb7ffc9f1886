"""Entropy of patches: how the paper tells classes apart, and how alike two sets are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Published shares of 64 px patches with a Shannon entropy of 5 to 6, 6 to 7 and over 7 bits (see `entropy_shares`).
ENTROPY_SHARES = {
    "debris": (0.27, 0.69, 0.04),
    "dense": (0.25, 0.65, 0.09),
    "spread": (0.64, 0.35, 0.0),
    "differentiated": (0.89, 0.11, 0.0),
}


def entropy_shares(
    pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, tuple[float, float, float]]:
    """How each class's entropies are distributed, to be held against `ENTROPY_SHARES`.

    Args:
        pixels: uint8 (patches, height, width).
        labels: (patches,) positions in `classes`.
        classes: names.

    Returns:
        For each class with patches its shares with 5 to 6, 6 to 7 and from 7 bits; what is missing from 1 lies
        below 5 bits.
    """
    bits, found = entropy(pixels), {}
    for k, name in enumerate(classes):
        own = bits[labels == k]
        if len(own):
            counts = np.histogram(own, (0, 5, 6, 7, 9))[0] / len(own)
            found[name] = (float(counts[1]), float(counts[2]), float(counts[3]))
    return found


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
    bits: np.ndarray = (
        -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum(1) + 0.0
    )
    return bits


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
