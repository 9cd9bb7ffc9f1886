"""Something to make once, for tests of what makes and keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemcell_lit.base.artifacts import Recipe


@dataclass
class Thing(Recipe):
    """What `fill` writes into the folder, under a key and a kind."""

    fill: Callable[[Path], Any]
    content: dict[str, Any] = field(default_factory=lambda: {"a": 1})
    kind: str = "generator"
    resumable: bool = False

    def key(self):
        return self.content

    def make(self, folder):
        self.fill(folder)


def log_of(store: Path) -> list[dict[str, Any]]:
    """The lines of a store's log.jsonl."""
    file = store / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
