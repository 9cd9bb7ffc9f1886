"""Trained generators read from their files, one or several together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stemcell_lit.base import formats as form
from stemcell_lit.base.weights import build, read_tensors, tensors
from stemcell_lit.errors import UserError
from stemcell_lit.gan.config import seed_of
from stemcell_lit.gan.module import GANModule
from stemcell_lit.settings.group_keys import GANConfig

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


class GeneratorEnsemble:
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
        scores: np.ndarray = np.mean([m.critic_scores(pixels, label) for m in self.members], axis=0)
        return scores


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
