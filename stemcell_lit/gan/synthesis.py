"""From a trained generator to a PatchStore that says where its patches come from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from stemcell_lit.base import formats as form
from stemcell_lit.base.weights import build, read_tensors, tensors
from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError
from stemcell_lit.gan.encoder import Encoder
from stemcell_lit.gan.module import GANModule, seed_of
from stemcell_lit.gan.quality import ball_radius, entropy
from stemcell_lit.schema import GANConfig, SelectConfig

FILTERS = ("confidence", "distance", "entropy", "critic")

_PILOT = 256  # patches of a class that a filter is fitted on, or as many as are wanted
_LEAST_SHARE = (
    1 / 3
)  # matching a histogram keeps at least about so many: a rare bin must not starve the rest

Accept = Callable[[np.ndarray], np.ndarray]

_WIDTH = form.whole(1, 65_536)


def _pairs(value: Any, where: str) -> None:
    """Form of a generator's settings; a pair of networks for each class is made for few classes alone."""
    form.record(
        {
            "gan": form.settings(
                asdict(GANConfig()),
                {
                    "latent": _WIDTH,
                    "embedding": _WIDTH,
                    "channels": form.listing(_WIDTH, most=12),
                    "critic_channels": form.listing(_WIDTH, most=12),
                    "shared_levels": form.whole(0, 12),
                    "modes": form.whole(1, 1000),
                },
            ),
            "classes": form.CLASSES,
            "image_size": form.whole(1, 4096),
            "seed": form.whole(),
        },
        {
            "modes": form.maybe(
                form.listing(form.listing(form.number(0, 1), 1, 1000), most=form.MOST_CLASSES)
            )
        },
        more=False,
    )(value, where)
    if value["gan"].get("condition") == "separate" and len(value["classes"]) > 200:
        raise form.Wrong(where, f"of {len(value['classes'])} pairs of networks", "at most 200")


_CHECKPOINT = form.record(
    {
        "hyper_parameters": _pairs,
        "state_dict": tensors,
        "gan_state": form.record(
            {
                "images_seen": form.whole(),
                "batches_seen": form.whole(),
                "low_checks": form.listing(form.whole(), most=form.MOST_CLASSES),
                "stale": form.flag,
            }
        ),
    }
)


@dataclass(frozen=True)
class Filter:
    """What decides which patches of a class are kept.

    Attributes:
        name: one of `FILTERS`, or another's own.
        fit: (first patches drawn uint8 (n, h, w), class name) -> a function of patches
            uint8 (m, h, w) that returns (m,) bool, True to keep.
    """

    name: str
    fit: Callable[[np.ndarray, str], Accept]


def make_filters(
    select: SelectConfig,
    generator: GANModule | Ensemble,
    encoder: Encoder | None,
    seed: int = 0,
) -> list[Filter]:
    """The filters of a configuration, in its order.

    All they know of real patches is what the encoder keeps: those of the training groups.

    Args:
        select: names and thresholds.
        generator: for its critic.
        encoder: of the generator's training patches; needed by all filters but `critic`.
        seed: of the draws that match a histogram.

    Raises:
        UserError: an unknown filter, a threshold out of range, or no encoder.
    """
    check_select(select)
    if set(select.filters) - {"critic"} and encoder is None:
        raise UserError(
            f"select.filters={list(select.filters)}: needs the encoder.pt beside the generator, and there is none; "
            "train the generator again"
        )
    of: dict[str, Callable[[np.ndarray, str], Accept]] = {
        "confidence": lambda pilot, name: _confident(encoder, name, select.confidence),  # type: ignore[arg-type]
        "distance": lambda pilot, name: _near(encoder, name, select.neighbours),  # type: ignore[arg-type]
        "entropy": lambda pilot, name: _match_entropy(
            _training(encoder, "entropy", name),  # type: ignore[arg-type]
            entropy(pilot),
            select.entropy_bins,
            np.random.default_rng([seed, generator.classes.index(name)]),
        ),
        "critic": lambda pilot, name: _by_critic(generator, name, pilot, select.critic_share),
    }
    return [Filter(name, of[name]) for name in select.filters]


def check_select(select: SelectConfig) -> None:
    """Refuses filters that no patch can pass.

    Raises:
        UserError: an unknown filter, or a threshold out of range.
    """
    unknown = [f for f in select.filters if f not in FILTERS]
    if unknown:
        raise UserError(f"select.filters={unknown}: expected some of {list(FILTERS)}")
    if not 0 < select.critic_share <= 1 or not 0 <= select.confidence < 1:
        raise UserError(
            f"select.critic_share={select.critic_share} and confidence={select.confidence}: expected shares, "
            "above 0 and below 1"
        )
    if select.draws < 1 or select.neighbours < 1 or select.entropy_bins < 1:
        raise UserError("select: expected at least 1 of draws, neighbours and entropy_bins")


def _training(encoder: Encoder, what: str, name: str) -> np.ndarray:
    """Features or entropies of the training patches of a class."""
    return encoder.training[what][encoder.training["label"] == encoder.classes.index(name)]


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
        return counts / counts.sum()

    ratio = share(real, 0) / share(pilot, 1)
    keep = np.minimum(1, ratio / min(float(ratio.max()), 1 / _LEAST_SHARE))

    def accept(pixels: np.ndarray) -> np.ndarray:
        found = place(entropy(pixels))
        return (found >= 0) & (random.random(len(found)) < keep[np.maximum(found, 0)])

    return accept


def _by_critic(
    generator: GANModule | Ensemble, name: str, pilot: np.ndarray, share: float
) -> Accept:
    """The share of the pilot with the best scores sets the least score."""
    place = generator.classes.index(name)

    def score(pixels: np.ndarray) -> np.ndarray:
        label = torch.full((len(pixels),), place, dtype=torch.int64)
        return np.asarray(generator.critic_scores(pixels, label), np.float64)  # type: ignore[operator,union-attr]

    least = np.quantile(score(pilot), 1 - share)
    return lambda pixels: score(pixels) >= least


class Ensemble:
    """Generators of the same patches and of different seeds, which draw in turns.

    Each of them leaves out other things: where generated patches alone are learned, several serve better than one
    (Eilertsen et al. 2021, arXiv:2104.11797).

    Attributes:
        members: at least one; of the same classes and size.
        classes: names, in the order of labels.
        seed: the first member's.
        images_seen: real patches that their critics were shown, all together.
    """

    def __init__(self, members: Sequence[GANModule]):
        first = members[0]
        for other in members[1:]:
            if (other.classes, other.image_size) != (first.classes, first.image_size):
                raise ValueError(
                    f"generators of {other.classes} at {other.image_size} px and of {first.classes} at "
                    f"{first.image_size} px make no ensemble"
                )
        self.members = list(members)
        self.classes: list[str] = first.classes
        self.seed: int = first.seed
        self.images_seen = int(sum(m.images_seen for m in members))

    def sample(self, labels: Tensor, seed: int, batch_size: int = 256) -> np.ndarray:
        """As `GANModule.sample`; the patch at place i is member i % n's, with n members."""
        count, side = len(self.members), self.members[0].image_size
        made = np.empty((len(labels), side, side), np.uint8)
        for i, member in enumerate(self.members):
            made[i::count] = member.sample(labels[i::count], seed_of(seed, i), batch_size)
        return made

    def critic_scores(self, pixels: np.ndarray, label: Tensor | np.ndarray) -> np.ndarray:
        """As `GANModule.critic_scores`, the mean over all members' critics."""
        return np.mean([m.critic_scores(pixels, label) for m in self.members], axis=0)


def synthesize(
    source: GANModule | Ensemble | str | Path,
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
        source: a module, the checkpoint of one, or several together.
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
    if isinstance(source, str | Path):
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


def load_generator(checkpoint: str | Path) -> GANModule:
    """Loads a trained module for sampling on the CPU.

    Raises:
        UserError: no such file, or not a checkpoint of a `GANModule`.
    """
    file, again = Path(checkpoint), "expected the checkpoint of a trained generator; train it again"
    content = read_tensors(file, _CHECKPOINT, "generator", again)
    settings, state = content["hyper_parameters"], content["gan_state"]
    module = build(lambda: GANModule(**settings), content["state_dict"], file, "generator", again)
    if len(state["low_checks"]) != len(module.classes):
        raise UserError(f"{file}: gan_state is not of {len(module.classes)} classes; {again}")
    module.on_load_checkpoint(content)
    return module.eval()


def _draw(
    module: GANModule | Ensemble,
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
    came, passed = (
        dict.fromkeys((f.name for f in filters), 0),
        dict.fromkeys((f.name for f in filters), 0),
    )

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
