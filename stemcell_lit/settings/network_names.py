"""Names of classifier networks, the values of `stage.network`; what they are is in `classify/networks`."""

from __future__ import annotations

import re

OWN = ("small", "valid", "vgg", "residual")

# two-dimensional classifiers of MONAI, at the sizes that they were published in
MONAI = tuple(
    f"monai/{name}"
    for name in (
        *(f"ResNet{n}" for n in (10, 18, 34, 50, 101, 152)),
        *(f"DenseNet{n}" for n in (121, 169, 201, 264)),
        *(f"EfficientNetBN-b{n}" for n in range(8)),
        *("SENet154", "SEResNet50", "SEResNet101", "SEResNet152", "SEResNeXt50", "SEResNeXt101"),
    )
)

_DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+"
MODULE = rf"module:{_DOTTED}"  # a callable of the user's own
TOLD = f"{' | '.join(OWN)} | monai/<name> | module:<package>.<attribute>, see docs/networks.md"


def own_module(network: str) -> str | None:
    """`package.attribute` of a network of the user's own, None for any other name."""
    return network.removeprefix("module:") if re.fullmatch(MODULE, network) else None
