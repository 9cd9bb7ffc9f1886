"""What may never reach a training: held-out groups, by generated patches or by those without a label."""

from __future__ import annotations

import numpy as np

from stemcell_lit.data.splits import Split
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore


def check_labelled(store: PatchStore, split: Split) -> None:
    """Refuses a split with patches without a label among those that train, validate or test, or held-out ones to learn.

    Raises:
        ValueError: a mistake of the program.
    """
    store.labels_of(np.concatenate([split.train, split.val, split.test]))
    held = split.units(store, "val") | split.units(store, "test")
    if held & split.units(store, "unlabelled"):
        raise ValueError("unlabelled patches of validation or test groups")


def check_no_leak(store: PatchStore, split: Split, generated: PatchStore) -> None:
    """Refuses generated patches that know of validation or test patches.

    Raises:
        UserError: the generator has seen a group that validates or tests here, or does not say what it has seen.
    """
    if (
        not generated.info["made_by"].get("generator")
        or "seen_groups" not in generated.info["made_by"]
    ):
        raise UserError(
            f"{generated.path}: does not say which generator made it and which groups that has seen; "
            "make it with `stemcell-lit generate`"
        )
    held = split.units(store, "val") | split.units(store, "test")
    leaked = sorted(generated.seen_groups & held)
    if leaked:
        raise UserError(
            f"{generated.path}: its generator has seen {len(leaked)} validation or test groups of this split "
            f"({', '.join(leaked[:3])}{', ...' if len(leaked) > 3 else ''}); train a generator on this split's "
            "training groups"
        )
