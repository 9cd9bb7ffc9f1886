"""A trained generator, read from its file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from stemcell_lit.base import formats as form
from stemcell_lit.base.weights import build, read_tensors, tensors
from stemcell_lit.errors import UserError
from stemcell_lit.gan.families import make_module
from stemcell_lit.gan.generative import GenerativeModule
from stemcell_lit.settings.gan_keys import GANConfig

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
                    "steps": form.whole(1, 10_000),
                },
            ),
            "classes": form.CLASSES,
            "image_size": form.whole(1, 4096),
            "seed": form.whole(),
        },
        {
            "modes": form.maybe(
                form.listing(form.listing(form.number(0, 1), 1, 1000), most=form.MOST_CLASSES)
            ),
            "camera": form.maybe(form.listing(form.number(0, 1), 3, 3)),
        },
        more=False,
    )(value, where)
    wanted = value["gan"].get("camera", "none") != "none"
    if wanted != (value.get("camera") is not None):
        raise form.Wrong(where, "camera", "its strengths, where gan.camera asks for it alone")
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


def load_generator(checkpoint: str | Path) -> GenerativeModule:
    """Loads a trained module for sampling on the CPU.

    Raises:
        UserError: no such file, or not a checkpoint of a `GenerativeModule`.
    """
    file, again = Path(checkpoint), "expected the checkpoint of a trained generator; train it again"
    content = read_tensors(file, _CHECKPOINT, "generator", again)
    settings, state = content["hyper_parameters"], content["gan_state"]
    module = build(lambda: make_module(**settings), content["state_dict"], file, "generator", again)
    if len(state["low_checks"]) != len(module.classes):
        raise UserError(f"{file}: gan_state is not of {len(module.classes)} classes; {again}")
    module.on_load_checkpoint(content)
    return module.eval()
