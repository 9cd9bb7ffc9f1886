"""The families of generators: which one settings ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stemcell_lit.gan.config import check_config
from stemcell_lit.gan.flow import FlowModule
from stemcell_lit.gan.generative import GenerativeModule
from stemcell_lit.gan.module import GANModule

# every choice of `GANConfig.network` -> its family
FAMILIES: dict[str, type[GenerativeModule]] = {
    "modulated": GANModule,
    "style": GANModule,
    "dcgan": GANModule,
    "unet": FlowModule,
}


def make_module(
    gan: Mapping[str, Any],
    classes: list[str],
    image_size: int,
    seed: int = 0,
    modes: list[list[float]] | None = None,
    camera: list[float] | None = None,
) -> GenerativeModule:
    """A generator that has not learned yet, of the family of its settings; arguments as `GenerativeModule` has them.

    Raises:
        UserError: settings that are not legal, or not of one family.
    """
    settings = check_config(gan)
    return FAMILIES[settings["network"]](settings, classes, image_size, seed, modes, camera)
