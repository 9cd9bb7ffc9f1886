"""stemcell_lit: do generated patches and a temporal hierarchy help, by how much, is it real?"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemcell_lit.classify.hierarchy import Hierarchy
    from stemcell_lit.classify.stage import StageModule
    from stemcell_lit.data.datamodule import PatchDataModule
    from stemcell_lit.experiment.run import run
    from stemcell_lit.gan.module import GANModule
    from stemcell_lit.patches.store import PatchStore

_HOME = {
    "PatchStore": "stemcell_lit.patches.store",
    "PatchDataModule": "stemcell_lit.data.datamodule",
    "GANModule": "stemcell_lit.gan.module",
    "StageModule": "stemcell_lit.classify.stage",
    "Hierarchy": "stemcell_lit.classify.hierarchy",
    "run": "stemcell_lit.experiment.run",
}

__all__ = ["GANModule", "Hierarchy", "PatchDataModule", "PatchStore", "StageModule", "run"]


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that `import stemcell_lit` stays light.
    if name == "__version__":
        return importlib.metadata.version("stemcell-lit")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
