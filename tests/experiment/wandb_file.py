"""Reads a `.wandb` file: the records of an offline run.

The file is a 7-byte header (":W&B", magic 0xBEE1, version) and then LevelDB's log format: blocks of 32 KiB with
fragments of a CRC-32C (4 bytes), a length (2), a type (1: full, 2: first, 3: middle, 4: last) and the content. Each
record is a protobuf message `wandb_internal_pb2.Record`.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024
HEAD = 7


def records(file: Path) -> list[Record]:
    content = file.read_bytes()
    assert content[:4] == b":W&B" and struct.unpack("<H", content[4:6])[0] == 0xBEE1
    found, part, at = [], b"", HEAD
    while at < len(content):
        left = BLOCK - at % BLOCK
        if left < HEAD:  # a block's tail too short for a fragment is padding
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEAD])
        assert kind in (1, 2, 3, 4) and at + HEAD + length <= len(content), "a broken file"
        part = (b"" if kind in (1, 2) else part) + content[at + HEAD : at + HEAD + length]
        if kind in (1, 4):
            found.append(Record.FromString(part))
        at += HEAD + length
    return found


class OfflineRun:
    """What an offline run holds: `run` (its record), config, summary, history (rows), files of tables."""

    def __init__(self, folder: Path):
        self.folder = folder
        (file,) = folder.glob("*.wandb")
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.files: dict[str, Path] = {}  # of logged tables: name -> where it waits to be sent
        self.ended = False
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= _items(record.run.config.update)
            elif kind == "config":
                self.config |= _items(record.config.update)
            elif kind == "summary":
                self.summary |= _items(record.summary.update)
            elif kind == "history":
                self.history.append(_items(record.history.item))
            elif kind == "artifact":
                contents = record.artifact.manifest.contents
                self.files |= {entry.path: Path(entry.local_path) for entry in contents}
            self.ended |= kind == "exit"

    def names(self) -> set[str]:
        """Names of everything in history and summary, W&B's own excepted."""
        names = set(self.summary).union(*self.history)
        return {name for name in names if not name.startswith("_")}

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.history if name in row]

    def table(self, name: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a logged table."""
        (logged,) = self.column(name)
        content = json.loads((self.folder / "files" / logged["path"]).read_text())
        return content["columns"], content["data"]


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = found
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def offline_runs(out: Path) -> list[OfflineRun]:
    return [OfflineRun(folder) for folder in sorted((out / "wandb").glob("offline-run-*"))]
