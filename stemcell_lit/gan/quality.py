"""How good generated patches are, without any network: entropy and memorisation."""

from __future__ import annotations

import numpy as np


def entropy(pixels: np.ndarray) -> np.ndarray:
    """Shannon entropy of each image after min-max to 8 bit, -sum p log2 p over 256 bins.

    The formula of Witmer and Bhanu 2022 (Sensors 22:206).

    Args:
        pixels: uint8 (n, h, w).

    Returns:
        (n,) float64 in bits, 0 to 8; 0 for a constant image.
    """
    n = len(pixels)
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
        p, q = (
            np.histogram(random.choice(side, size, replace=False), edges)[0] / size
            for side in (first, second)
        )
        scores.append(np.minimum(p, q).sum())
    return float(np.mean(scores)), float(np.std(scores))


def reduced(pixels: np.ndarray, side: int = 16) -> np.ndarray:
    """Features for comparing images: averaged down to at most `side` pixels, (n, features) float32.

    The average forgives noise and shifts of a pixel, which a copy of a training patch would have.
    """
    n, height, width = pixels.shape
    step_y, step_x = max(1, height // side), max(1, width // side)
    rows, columns = height // step_y, width // step_x
    cut = pixels[:, : rows * step_y, : columns * step_x].astype(np.float32)
    return cut.reshape(n, rows, step_y, columns, step_x).mean((2, 4)).reshape(n, -1)


def nearest_distance(query: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Euclidean distance of each query to its nearest reference.

    Args:
        query: (n, features).
        reference: (m, features).

    Returns:
        (n,) float64.
    """
    query, reference = query.astype(np.float64), reference.astype(np.float64)
    norms = (reference**2).sum(1)
    nearest = [
        (norms - 2 * part @ reference.T).min(1) + (part**2).sum(1)
        for part in np.array_split(query, max(1, len(query) // 512))
    ]
    return np.sqrt(np.maximum(np.concatenate(nearest), 0))


def memorisation(train: np.ndarray, held_out: np.ndarray, generated: np.ndarray) -> float:
    """How near generated patches come to training patches, against how near unseen real ones come.

    The training patches stand in all eight turns and flips, which the generator was shown.

    Args:
        train: uint8 (n, side, side), what the generator saw.
        held_out: uint8 (m, side, side), real patches of other groups: the floor.
        generated: uint8 (k, side, side).

    Returns:
        Median distance of generated over that of held-out patches to their nearest training patch:
        near 1 or above is free of copies, towards 0 is memorisation.
    """
    turned = [np.rot90(side, k, (1, 2)) for side in (train, train[:, :, ::-1]) for k in range(4)]
    reference = np.concatenate([reduced(part) for part in turned])
    floor = float(np.median(nearest_distance(reduced(held_out), reference)))
    return float(np.median(nearest_distance(reduced(generated), reference))) / max(floor, 1e-9)
