"""From a trained generator to a PatchStore that says where its patches come from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stemcell_lit.errors import UserError
from stemcell_lit.gan.config import seed_of
from stemcell_lit.gan.generative import GenerativeModule
from stemcell_lit.gan.patch_filters import Accept, Filter
from stemcell_lit.patches.store import PatchStore

_PILOT = 256  # patches of a class that a filter is fitted on, or as many as are wanted


def synthesize(
    source: GenerativeModule,
    per_class: Mapping[str, int],
    store: str | Path,
    *,
    seed: int,
    generator_hash: str,
    seen_groups: Sequence[str],
    um_per_px: float | None = None,
    filters: Sequence[Filter] = (),
    draws: float = 8.0,
    batch_size: int = 256,
    inputs: Sequence[str | Path] = (),
) -> PatchStore:
    """Draws patches and writes them with their provenance.

    Without filters every draw is kept. With them, draws continue until enough patches have passed
    all of them, but at most `draws` times the wanted number; a class that then falls short is named
    in a warning and in store.json (`made_by.missing`). What a class gets does not depend on the
    other classes.

    store.json also holds `made_by.acceptance`: for each class the share of draws that was good
    (`all`) and for each filter the share kept of what came to it.

    Args:
        source: the generator.
        per_class: class name -> patches wanted; classes left out get none.
        store: the folder to make.
        seed: of the latents.
        generator_hash: names the generator.
        seen_groups: groups whose patches the generator was trained on; the data module refuses to
            mix its patches into a split that validates or tests on one of them.
        um_per_px: size of a pixel in micrometres, None where unknown.
        filters: of `make_filters`, applied in their order.
        draws: most patches drawn for each one wanted, at least 1.
        batch_size: patches drawn at a time.
        inputs: files of the generator; the store may not be or contain one.

    Raises:
        UserError: an unknown class, nothing wanted, or no patch at all passed the filters.
    """
    unknown = sorted(set(per_class) - set(source.classes))
    if unknown:
        raise UserError(f"{store}: the generator knows {source.classes}, not {unknown}")
    if sum(per_class.values()) < 1 or min(per_class.values()) < 0:
        raise UserError(
            f"{store}: nothing to generate in {dict(per_class)}, expected counts above 0"
        )
    if draws < 1:
        raise UserError(f"{store}: draws={draws}, expected at least 1 draw for each patch wanted")
    pixels, labels = [], []
    acceptance: dict[str, dict[str, float]] = {}
    missing: dict[str, int] = {}
    for position, name in enumerate(source.classes):
        wanted = int(per_class.get(name, 0))
        if not wanted:
            continue
        limit = int(np.ceil(draws * wanted)) if filters else wanted
        kept, acceptance[name] = _draw(source, position, wanted, limit, seed, filters, batch_size)
        if len(kept) < wanted:
            missing[name] = wanted - len(kept)
        pixels.append(kept)
        labels += [name] * len(kept)
    if missing:
        told = ", ".join(f"{n} of {per_class[c]} {c}" for c, n in missing.items())
        names = ", ".join(f.name for f in filters)
        message = (
            f"{store}: too few generated patches pass the filters ({names}): missing {told} after {draws:g} draws for "
            "each; train the generator longer, loosen the filters (select.*) or raise select.draws"
        )
        if not labels:
            raise UserError(message)
        warnings.warn(message, stacklevel=2)
    return PatchStore.write(
        store,
        np.concatenate(pixels),
        pd.DataFrame({"label": labels, "origin": "generated"}),
        classes=source.classes,
        um_per_px=um_per_px,
        made_by={
            "step": "generate",
            "generator": generator_hash,
            "seen_groups": sorted(str(g) for g in seen_groups),
            "seed": int(seed),
            "images_seen": source.images_seen,
            "filters": [f.name for f in filters],
            "acceptance": acceptance,
            "missing": missing,
        },
        inputs=inputs,
    )


def _draw(
    module: GenerativeModule,
    position: int,
    wanted: int,
    limit: int,
    seed: int,
    filters: Sequence[Filter],
    batch_size: int,
) -> tuple[np.ndarray, dict[str, float]]:
    """Draws one class.

    Returns:
        The patches kept, uint8 (at most `wanted`, h, w), and the shares that passed.
    """
    name, turn, drawn = module.classes[position], 0, 0

    def draw(count: int) -> np.ndarray:
        nonlocal turn, drawn
        parts = []
        while count > 0:
            size = min(batch_size, count)
            label = torch.full((size,), position, dtype=torch.int64)
            parts.append(module.sample(label, seed_of(seed, position, turn), batch_size))
            turn, drawn, count = turn + 1, drawn + size, count - size
        return np.concatenate(parts)

    made = draw(min(limit, max(wanted, _PILOT)) if filters else wanted)
    came = dict.fromkeys((f.name for f in filters), 0)
    passed = dict(came)

    def keep(one: Filter, accept: Accept, patches: np.ndarray) -> np.ndarray:
        if not len(patches):
            return patches
        mask = accept(patches)
        if mask.shape != (len(patches),) or mask.dtype != bool:
            raise ValueError(
                f"filter {one.name} gave {mask.dtype} {mask.shape}, expected bool {(len(patches),)}"
            )
        came[one.name] += len(patches)
        passed[one.name] += int(mask.sum())
        return patches[mask]

    accepts = []
    good = made
    for one in filters:  # each is fitted on what the ones before it leave, if that says anything
        accept = one.fit(good if len(good) > 1 else made, name)
        good = keep(one, accept, good)
        accepts.append((one, accept))
    kept = [good]
    while sum(map(len, kept)) < wanted and drawn < limit:
        good = draw(min(batch_size, limit - drawn))
        for one, accept in accepts:
            good = keep(one, accept, good)
        kept.append(good)
    every = np.concatenate(kept)
    shares = {f: passed[f] / came[f] if came[f] else 0.0 for f in came}
    return every[:wanted], {"all": len(every) / drawn, **shares}
