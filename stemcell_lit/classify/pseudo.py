"""Pseudo-labels that balance the classes: the idea of Iterative Pseudo Balancing (Sci Rep 2024, 14:4489)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pseudo_balance(
    p: np.ndarray, counts: Sequence[int], confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses unlabelled patches, by what a network says of them, to fill each target up to the largest.

    Args:
        p: (patches, targets) probabilities of the unlabelled patches.
        counts: labelled training patches of each target.
        confidence: least probability of a pseudo-label, 0 to 1.

    Returns:
        Positions in `p`, sorted, and the target of each. Of a target's calls the surest come first; where there are
        too few, its gap stays open.
    """
    called, sure = p.argmax(1), p.max(1)
    chosen = []
    for target, n in enumerate(counts):
        rows = np.flatnonzero((called == target) & (sure >= confidence))
        surest = rows[np.argsort(-sure[rows], kind="stable")]
        chosen.append(surest[: max(counts) - n])
    rows = np.sort(np.concatenate(chosen))
    return rows, called[rows]
