"""From a trained generator to a PatchStore that says where its patches come from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError
from stemcell_lit.gan.module import GANModule, seed_of

Select = Callable[[np.ndarray, str], np.ndarray]


def synthesize(
    source: GANModule | str | Path,
    per_class: Mapping[str, int],
    store: str | Path,
    *,
    seed: int,
    generator_hash: str,
    seen_groups: Sequence[str],
    um_per_px: float | None = None,
    select: Select | None = None,
    threshold: float | None = None,
    draws: float = 4.0,
    batch_size: int = 256,
) -> PatchStore:
    """Draws patches and writes them with their provenance.

    Without `select` every draw is kept. With it and no `threshold`, `draws` times the wanted number
    is drawn and the best scores are kept. With a `threshold`, draws continue until enough patches
    reach it, but at most `draws` times the wanted number; a class that then falls short is named in
    a warning and in store.json (`made_by.missing`). What a class gets does not depend on the other
    classes.

    Args:
        source: a module, or the checkpoint of one.
        per_class: class name -> patches wanted; classes left out get none.
        store: the folder to make.
        seed: of the latents.
        generator_hash: names the generator.
        seen_groups: groups whose patches the generator was trained on; the data module refuses to
            mix its patches into a split that validates or tests on one of them.
        um_per_px: size of a pixel in micrometres, None where unknown.
        select: (uint8 (n, h, w), class name) -> (n,) scores, high is good.
        threshold: least score to keep.
        draws: most patches drawn for each one wanted, at least 1.
        batch_size: patches drawn at a time.

    Raises:
        UserError: an unknown class, nothing wanted, or no patch at all reached the threshold.
    """
    if not isinstance(source, GANModule):
        source = load_generator(source)
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
    acceptance: dict[str, float] = {}
    missing: dict[str, int] = {}
    for position, name in enumerate(source.classes):
        wanted = int(per_class.get(name, 0))
        if not wanted:
            continue
        limit = wanted if select is None else int(np.ceil(draws * wanted))
        kept, drawn = _draw(source, position, wanted, limit, seed, select, threshold, batch_size)
        acceptance[name] = len(kept) / drawn
        if len(kept) < wanted:
            missing[name] = wanted - len(kept)
        pixels.append(kept)
        labels += [name] * len(kept)
    if missing:
        told = ", ".join(f"{n} of {per_class[c]} {c}" for c, n in missing.items())
        message = (
            f"{store}: too few generated patches reach the threshold {threshold}: missing {told} "
            f"after {draws:g} draws for each; train the generator longer, or lower the threshold"
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
            "acceptance": acceptance,
            "missing": missing,
        },
    )


def load_generator(checkpoint: str | Path) -> GANModule:
    """Loads a trained module for sampling on the CPU.

    Raises:
        UserError: no such file, or not a checkpoint of a `GANModule`.
    """
    if not Path(checkpoint).is_file():
        raise UserError(
            f"{checkpoint}: no such file; expected the checkpoint of a trained generator"
        )
    try:
        module = GANModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{checkpoint}: not the checkpoint of a generator ({error})") from error
    return module.eval()


def _draw(
    module: GANModule,
    position: int,
    wanted: int,
    limit: int,
    seed: int,
    select: Select | None,
    threshold: float | None,
    batch_size: int,
) -> tuple[np.ndarray, int]:
    """Draws one class.

    Returns:
        The patches kept, uint8 (at most `wanted`, h, w), and how many were drawn for them.
    """
    pixels: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    drawn = kept = turn = 0
    while drawn < limit and (kept < wanted or threshold is None):
        count = min(batch_size, limit - drawn)
        label = torch.full((count,), position, dtype=torch.int64)
        made = module.sample(label, seed_of(seed, position, turn), batch_size)
        drawn, turn = drawn + count, turn + 1
        if select is not None:
            score = np.asarray(select(made, module.classes[position]), np.float64)
            if score.shape != (count,):
                raise ValueError(f"select gave scores of shape {score.shape}, expected {(count,)}")
            if threshold is not None:
                made, score = made[score >= threshold], score[score >= threshold]
            scores.append(score)
        pixels.append(made)
        kept += len(made)
    every = np.concatenate(pixels)
    if select is not None and threshold is None:
        best = np.sort(np.argsort(-np.concatenate(scores), kind="stable")[:wanted])
        return every[best], drawn
    return every[:wanted], drawn
