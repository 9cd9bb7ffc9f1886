"""The last layer of a trained network: what it sees, features drawn after that, and its training again on both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import nn

from stemcell_lit.classify import networks
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.data.augment import to_float, turn_square
from stemcell_lit.data.mixing import QuotaSampler
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import reduce_pixels

NEAREST = 2  # classes that a class borrows from, as Yang et al. 2021 do
_BATCH = 512  # patches at once
_LEAST = 1e-8  # variance that no direction falls below


@torch.inference_mode()
def head_inputs(module: StageModule, pixels: np.ndarray) -> np.ndarray:
    """What the last layer sees of patches, with nothing dropped.

    Args:
        module: a trained stage.
        pixels: uint8 (patches, [scales,] size, size), reduced to the trained size.

    Returns:
        float32 (members, turns, patches, width); turns are eight where the stage averages over them, else one.

    Raises:
        UserError: a network that does something behind its last linear layer.
    """
    pixels, network = reduce_pixels(pixels, module.image_size), module.network
    heads = networks.heads(network, len(module.groups))
    sides, training = range(8 if module.stage["turns"] else 1), module.training
    seen: list[torch.Tensor] = []
    hooks = [h.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for h in heads]
    module.eval()
    parts = []
    try:
        for start in range(0, len(pixels), _BATCH):
            images = to_float(
                torch.from_numpy(np.array(pixels[start : start + _BATCH])).to(module.device)
            )
            which = torch.zeros(len(images), dtype=torch.int64, device=module.device)
            turned = []
            for side in sides:
                seen.clear()
                x = turn_square(images, which + side)
                answers = torch.stack([m(x) for m in networks.members_of(network)])
                _check(seen, answers, heads)
                turned.append(torch.stack(seen))
            parts.append(torch.stack(turned, 1).float().cpu())
    finally:
        for hook in hooks:
            hook.remove()
        module.train(training)
    return torch.cat(parts, 2).numpy()


def _check(seen: Sequence[torch.Tensor], answers: torch.Tensor, heads: Sequence[nn.Linear]) -> None:
    """Refuses what is not features, a linear layer, and nothing behind it."""
    flat = len(seen) == len(heads) and all(x.ndim == 2 for x in seen)
    if flat:
        weighed = zip(heads, seen, answers, strict=True)
        same = (
            torch.allclose(nn.functional.linear(x, h.weight, h.bias), y, rtol=1e-3, atol=1e-3)
            for h, x, y in weighed
        )
    if not flat or not all(same):
        raise UserError(
            "stage.refit_head: this stage.network does something behind its last linear layer, or calls it more than "
            "once, so that the layer cannot be trained alone; take a network that ends in it, or leave "
            "stage.refit_head out"
        )


@dataclass(frozen=True)
class ClassGaussians:
    """A normal distribution of features for each class, whose spread is shared with the nearest classes.

    Few patches of a class say where it lies, but not how it spreads. So its covariance is the mean of its own, shrunk
    after Ledoit and Wolf 2004, and of those of the classes whose means are nearest, each weighing as many patches as it
    has. The idea that a rare class borrows from its neighbours is that of Yang, Liu and Xu (Free lunch for few-shot
    learning: distribution calibration, ICLR 2021); there the mean is borrowed as well and no weight is a count.

    Attributes:
        means: (classes, width).
        roots: (classes, width, width) lower triangles L, L L' being the covariance.
        rooted: the distribution is that of the features' square roots, since none of them is below 0 and their
            distribution is skewed (as there).
    """

    means: np.ndarray
    roots: np.ndarray
    rooted: bool

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, classes: int) -> ClassGaussians:
        """Of patches.

        Args:
            features: (patches, width).
            labels: (patches,) positions; every class has one at least.
            classes: number of them.
        """
        rooted = bool((features >= 0).all())
        x = np.sqrt(features.astype(np.float64)) if rooted else features.astype(np.float64)
        means = np.stack([x[labels == c].mean(0) for c in range(classes)])
        counts = np.bincount(labels, minlength=classes)
        own = np.zeros((classes, x.shape[1], x.shape[1]))
        for c in range(classes):
            if counts[c] > 1:  # one patch spreads nowhere
                own[c] = ledoit_wolf(x[labels == c])[0]
        spread = np.where(counts > 1, counts, 0)
        apart = np.linalg.norm(means[:, None] - means[None], axis=2)
        roots = np.zeros_like(own)
        for c in range(classes):
            # itself first, at a distance of 0
            near = np.argsort(apart[c], kind="stable")[: NEAREST + 1]
            weight = spread[near] / max(1, spread[near].sum())
            shared = np.tensordot(weight, own[near], 1)
            least = max(_LEAST, 1e-6 * float(np.trace(shared)) / len(shared))
            roots[c] = np.linalg.cholesky(shared + least * np.eye(len(shared)))
        return cls(means, roots, rooted)

    def draw(self, wanted: Sequence[int], seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """So many features of each class, float32 (draws, width), and their labels.

        What a class gets does not depend on how many the others get, and fewer are the first of more.
        """
        width = self.means.shape[1]
        found = [np.empty((0, width), np.float32)]
        for c, n in enumerate(wanted):
            noise = np.random.default_rng([*seed, c]).standard_normal((n, width))
            x = self.means[c] + noise @ self.roots[c].T
            found.append((np.maximum(x, 0) ** 2 if self.rooted else x).astype(np.float32))
        return np.concatenate(found), np.repeat(np.arange(len(wanted)), wanted)


def filling(counts: Sequence[int], dose: float) -> list[int]:
    """Generated features of each class: `dose` times what fills it to the largest."""
    return [round(dose * (max(counts) - n)) for n in counts]


def refit_head(
    module: StageModule,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    dose: float,
    images: int,
    seed: int,
) -> list[int]:
    """Trains the last layer of a stage on from its weights, on features of classes drawn equally often.

    All else of the stage stays. The rate and its schedule, the loss and the decay are those of the stage's training.

    Args:
        module: a trained stage, changed in place.
        features: (members, turns, patches, width) of `head_inputs`; each draw of a patch takes one of its turns.
        labels: (patches,) positions.
        dose: of generated features, see `filling`.
        images: features that are learned from, at least.
        seed: of order, turns and generated features.

    Returns:
        how many features of each class were generated.
    """
    members, turns, patches, _ = features.shape
    counts = np.bincount(labels, minlength=len(module.groups)).tolist()
    wanted, rng = filling(counts, dose), np.random.default_rng([seed, 23])
    banks, y = [], np.concatenate([labels, np.repeat(np.arange(len(wanted)), wanted)])
    for member, own in enumerate(features):
        drawn = np.empty((0, own.shape[2]), np.float32)
        if sum(wanted):
            one = own[rng.integers(0, turns, patches), np.arange(patches)]  # independent rows
            drawn, _ = ClassGaussians.fit(one, labels, len(counts)).draw(wanted, [seed, 29, member])
        every = np.broadcast_to(drawn, (turns, *drawn.shape))
        banks.append(torch.from_numpy(np.concatenate([own, every], 1)))
    bank, target = torch.stack(banks), torch.from_numpy(y)
    heads = networks.heads(module.network, len(module.groups))
    module.cpu().requires_grad_(False)
    for head in heads:
        head.requires_grad_(True)
    optimizer = module.configure_optimizers()
    strata = [np.flatnonzero(y == c) for c in range(len(counts))]
    size = module.stage["batch_size"]
    sampler = QuotaSampler(strata, [max(map(len, strata))] * len(strata), size, seed=seed)
    seen = 0
    while seen < images:
        for batch in sampler:
            if seen >= images:
                break
            for group in optimizer.param_groups:
                group["lr"] = module.learning_rate(seen / images) * group.get("scale", 1.0)
            index = torch.tensor(batch)
            turn = torch.from_numpy(rng.integers(0, turns, len(batch)))
            logits = torch.stack([h(x[turn, index]) for h, x in zip(heads, bank, strict=True)])
            loss = module.loss(logits if members > 1 else logits[0], target[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(batch)
        sampler.set_epoch(sampler.epoch + 1)
    module.requires_grad_(True)
    return wanted
