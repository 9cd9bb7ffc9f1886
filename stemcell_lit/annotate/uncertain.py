"""Which patches a model is least sure of: to label these teaches it more than to label any (uncertainty sampling)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.movies.resample import resample, scale_between

_TOGETHER = 1024  # patches in memory at a model's size


def most_uncertain(
    model: TrainedHierarchy, patches: Sequence[np.ndarray], um_per_px: float | None
) -> np.ndarray:
    """Positions of patches by their top probability, the least first; equal ones stay in order.

    "Least confidence" of Lewis and Gale 1994. Neither time nor track is told to the model: a person will not see them
    either, and they would make it surer than the picture does.

    Args:
        model: trained.
        patches: uint8 (height, width) each.
        um_per_px: of the patches, None where unknown.

    Raises:
        UserError: the model looks at several scales, or at more than a patch shows.
    """
    if len(model.scales) > 1:
        raise UserError(
            f"checkpoint: the model looks at scales {list(model.scales)} around a patch, of which a patch shows one; "
            "give a model of one scale, or no checkpoint"
        )
    known = um_per_px is not None and model.um_per_px is not None
    scale = scale_between(um_per_px, model.um_per_px) if known else 1 / model.reduced
    tops = []
    for start in range(0, len(patches), _TOGETHER):
        seen = np.stack(
            [_middle(p, model.image_size, scale) for p in patches[start : start + _TOGETHER]]
        )
        tops.append(model.network_probabilities(seen, np.full(len(seen), np.nan)).max(1))
    order: np.ndarray = np.argsort(np.concatenate(tops), kind="stable")
    return order


def _middle(patch: np.ndarray, size: int, scale: float) -> np.ndarray:
    """The middle of a patch at the model's pixel size."""
    seen = resample(patch, scale)
    height, width = seen.shape
    if min(height, width) < size:
        raise UserError(
            f"checkpoint: the model looks at {size} px, which are {size / scale:.0f} px here, and a patch has "
            f"{patch.shape[0]} x {patch.shape[1]}; give size= of at least that, or um_per_px= where it is not right"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return seen[top : top + size, left : left + size]
