"""Imports by their settings, as tests give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stemcell_lit.patches import crops, tiles
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.patch_keys import ImportCommand


def import_crops(source: Path, store: Path, **settings: Any) -> PatchStore:
    return crops.import_crops(ImportCommand(str(source), str(store), **settings))


def import_tiles(movie: Path, table: Path, store: Path, **settings: Any) -> PatchStore:
    return tiles.import_tiles(ImportCommand(str(movie), str(store), **settings), table)
