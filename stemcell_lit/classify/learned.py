"""What a trained model has learned from, so that scores on it are never taken for scores on unseen patches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stemcell_lit.base import formats as form
from stemcell_lit.base.arrays import MOST_ROWS, map_array
from stemcell_lit.patches.store import PatchStore, reduce_pixels

PRINTS = "learned.npy"  # beside model.json: uint8 (patches, PRINT_BYTES)
PRINT_BYTES = (
    8  # of a patch's SHA-256: two of a billion patches share them with a chance of 1 in 37
)
_CHUNK = 4096  # patches that are read at once

ABOUT = form.record(
    {
        "store": form.text(),
        "content_hash": form.text(),
        "groups": form.listing(form.text()),
        "patches": form.whole(0, MOST_ROWS),
    },
    more=False,
)


@dataclass(frozen=True, eq=False)
class Learned:
    """The patches that trained, tuned or validated a model; none for one that was made by hand.

    Attributes:
        store: where they lay.
        content_hash: of that store.
        groups: names of their groups in it.
        prints: uint8 (patches, 8): the first bytes of the SHA-256 of each patch's pixels as the model sees them, sorted
            and without repeats. By them a patch is known again in a store that was imported anew, cut to a part or
            grouped otherwise. Patches of one gray value have none: they are alike in any two stores.
    """

    store: str = ""
    content_hash: str = ""
    groups: Sequence[str] = ()
    prints: np.ndarray = field(default_factory=lambda: np.empty((0, PRINT_BYTES), np.uint8))

    @classmethod
    def of(cls, store: PatchStore, rows: np.ndarray, size: int) -> Learned:
        """Of some rows of a store, that a model sees at `size` px."""
        groups = sorted(set(store.manifest["group"].iloc[rows]))
        found = np.unique(_prints(store, rows, size))
        return cls(str(store.path), store.content_hash, groups, _as_bytes(found[found != 0]))

    @classmethod
    def union(cls, parts: Sequence[Learned]) -> Learned:
        """Of several models that learned from one store."""
        groups = sorted({group for part in parts for group in part.groups})
        prints = np.unique(np.concatenate([_as_numbers(part.prints) for part in parts]))
        return cls(parts[0].store, parts[0].content_hash, groups, _as_bytes(prints))

    def seen(self, store: PatchStore, size: int) -> np.ndarray:
        """Which patches of a store the model knows: those it has learned from, and all others of their groups.

        In the store that it was trained on these are its groups; in another one groups with a patch whose pixels it has
        learned from. What was resampled, scaled anew or stored with loss has other pixels, and is not known again.

        Args:
            store: any.
            size: px at which the model sees patches.

        Returns:
            bool (patches,).
        """
        group = store.manifest["group"]
        known = list(self.groups)
        if store.content_hash != self.content_hash:
            prints = _prints(store, np.arange(len(store)), size)
            known = group[np.isin(prints, _as_numbers(self.prints))].unique().tolist()
        inside: np.ndarray = group.isin(known).to_numpy(bool)
        return inside

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the prints into a model's folder; the rest, for its model.json."""
        np.save(folder / PRINTS, self.prints, allow_pickle=False)
        return {
            "store": self.store,
            "content_hash": self.content_hash,
            "groups": list(self.groups),
            "patches": len(self.prints),
        }

    @classmethod
    def load(cls, folder: Path, about: dict[str, Any], again: str) -> Learned:
        """What `save` wrote and returned.

        Raises:
            UserError: the prints are missing or unreadable.
        """
        prints = map_array(folder / PRINTS, [about["patches"], PRINT_BYTES], again)
        return cls(about["store"], about["content_hash"], about["groups"], np.array(prints))


def _prints(store: PatchStore, rows: np.ndarray, size: int) -> np.ndarray:
    """uint64 (rows,), 0 for patches of one gray value."""
    found = np.zeros(len(rows), np.uint64)
    for start in range(0, len(rows), _CHUNK):
        some = reduce_pixels(store.finest[rows[start : start + _CHUNK]], size)
        for i, patch in enumerate(some, start):
            if patch.min() != patch.max():
                digest = hashlib.sha256(patch.tobytes()).digest()
                found[i] = int.from_bytes(digest[:PRINT_BYTES], "little")
    return found


def _as_bytes(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype("<u8").view(np.uint8).reshape(-1, PRINT_BYTES)


def _as_numbers(prints: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(prints).view("<u8").reshape(-1)
