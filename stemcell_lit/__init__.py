"""stemcell_lit: do generated patches and a temporal hierarchy help, by how much, is it real?"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemcell_lit.classify.hierarchy import Hierarchy
    from stemcell_lit.classify.stage import StageModule
    from stemcell_lit.data.datamodule import PatchDataModule, Scope
    from stemcell_lit.data.splits import Split, make_split
    from stemcell_lit.deliver.classifier import Classifier
    from stemcell_lit.errors import UserError
    from stemcell_lit.experiment.run import run
    from stemcell_lit.gan.module import GANModule
    from stemcell_lit.movies.frames import open_frames
    from stemcell_lit.patches.store import PatchStore
    from stemcell_lit.settings.group_keys import (
        HierarchyConfig,
        MixConfig,
        SplitConfig,
        StageConfig,
        TemporalConfig,
    )

_HOME = {
    "Classifier": "stemcell_lit.deliver.classifier",
    "GANModule": "stemcell_lit.gan.module",
    "Hierarchy": "stemcell_lit.classify.hierarchy",
    "HierarchyConfig": "stemcell_lit.settings.group_keys",
    "MixConfig": "stemcell_lit.settings.group_keys",
    "PatchDataModule": "stemcell_lit.data.datamodule",
    "PatchStore": "stemcell_lit.patches.store",
    "Scope": "stemcell_lit.data.datamodule",
    "Split": "stemcell_lit.data.splits",
    "SplitConfig": "stemcell_lit.settings.group_keys",
    "StageConfig": "stemcell_lit.settings.group_keys",
    "StageModule": "stemcell_lit.classify.stage",
    "TemporalConfig": "stemcell_lit.settings.group_keys",
    "UserError": "stemcell_lit.errors",
    "make_split": "stemcell_lit.data.splits",
    "open_frames": "stemcell_lit.movies.frames",
    "run": "stemcell_lit.experiment.run",
}

__all__ = [
    "Classifier",
    "GANModule",
    "Hierarchy",
    "HierarchyConfig",
    "MixConfig",
    "PatchDataModule",
    "PatchStore",
    "Scope",
    "Split",
    "SplitConfig",
    "StageConfig",
    "StageModule",
    "TemporalConfig",
    "UserError",
    "make_split",
    "open_frames",
    "run",
]


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that `import stemcell_lit` stays light.
    if name == "__version__":
        return importlib.metadata.version("stemcell-lit")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "__version__"})
