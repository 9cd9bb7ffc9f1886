"""What a generator's networks are told of a patch: the mode of its class, or the class where it has one mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Conditions(nn.Module):
    """The conditions of the networks: the modes of all classes, those of the first class first.

    Its buffers move with the module that holds it and are in no checkpoint.

    Args:
        shares: for each class the shares of its modes among its training patches; each sums to 1.
    """

    class_of: Tensor  # (conditions,) int64, the class of each
    first: Tensor  # (classes,) int64, where a class's modes begin
    edges: Tensor  # (classes, most modes - 1), the sums of its modes' shares, the last left out

    def __init__(self, shares: Sequence[Sequence[float]]):
        super().__init__()
        edges = torch.full((len(shares), max(map(len, shares)) - 1), torch.inf)
        for i, own in enumerate(shares):
            edges[i, : len(own) - 1] = torch.tensor(own).cumsum(0)[:-1]
        # known under "meta", too
        sizes = torch.tensor([len(own) for own in shares], device="cpu")
        class_of = torch.arange(len(shares), device="cpu").repeat_interleave(sizes)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("first", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("class_of", class_of, persistent=False)

    def of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch,) int64: the mode of each patch, its class where no class has several; `null` without a label."""
        known = batch["mode"] if len(self.class_of) > len(self.first) else batch["label"]
        return known.masked_fill(batch["label"] < 0, self.null)

    @property
    def null(self) -> int:
        """The condition that says nothing, behind all others; that of patches without a label (label below 0)."""
        return len(self.class_of)

    def at(self, label: Tensor, place: Tensor) -> Tensor:
        """The mode of a class at a place, 0 to 1, in the sum of its modes' shares."""
        return self.first[label] + (place[:, None] >= self.edges[label]).sum(1)
