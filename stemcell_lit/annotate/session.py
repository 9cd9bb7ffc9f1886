"""A session of sorting patches by hand: what is asked, and every answer saved at once.

A session is a folder, whole or absent, and at any time ready for `stemcell-lit import`::

    session.json   format, classes, settings, size of a pixel
    items.csv      a row a patch in the order asked; written once
    crops/         the patches, PNG
    labels.csv     a row an answer, appended and flushed before the page hears of it
    patches.csv    what `import` reads: the answered patches without the unsure ones

Patches are asked in a random order fixed at the beginning, so that a session that is stopped early
has seen all of the movie. Neither the time nor an earlier label of a patch is shown: labels made
with the clock in view could not tell afterwards whether the clock helps.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stemcell_lit.base import formats as form
from stemcell_lit.base.files import whole_or_absent, write_whole
from stemcell_lit.errors import UserError
from stemcell_lit.patches.labels import UNSURE
from stemcell_lit.settings.quoting import command_line

FORMAT = 1


LABELS = ("path", "label", "answered")


META = ("group", "track", "movie", "frame", "time_h", "x", "y")


MAX_CLASSES = 9  # one digit each


RESERVED = "uz"  # keys of unsure and undo


Item = dict[str, str]  # path and META as text, empty where unknown


_MOST_ITEMS = 1 << 30  # bytes of items.csv


_SESSION = form.versioned(
    FORMAT,
    form.record(
        {
            "classes": form.listing(form.NAME, least=1, most=MAX_CLASSES, unique=True),
            "source": form.text(),
            "kind": form.text(),
            "settings": form.mapping(form.anything),
        },
        {"um_per_px": form.UM_PER_PX, "crop_size": form.maybe(form.whole(1, 65_536))},
    ),
)


class Session:
    """Patches and the answers so far. Made by `Session.begin`, found again by `Session.open`.

    Patch i is asked when i answers are there, so the answers are a list and undo takes its last.

    Attributes:
        folder: see the module.
        info: the content of session.json.
        items: a row a patch, in the order asked.
        answers: class names or `unsure`, one per patch asked so far.
    """

    def __init__(self, folder: Path, info: dict[str, Any], items: list[Item], answers: list[str]):
        self.folder, self.info, self.items, self.answers = folder, info, items, answers
        self._rows: list[str] = []
        self._length = (
            (folder / "labels.csv").stat().st_size
        )  # of what counts; behind it lies what was refused
        self._columns = ["path", "label", *self._known()]

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their keys."""
        return list(self.info["classes"])

    @staticmethod
    def begin(
        folder: Path, info: Mapping[str, Any], patches: Sequence[tuple[np.ndarray, Item]]
    ) -> None:
        """Writes a new session, whole or not at all.

        Args:
            folder: to make; it must be absent or empty.
            info: plain JSON values, with `classes`.
            patches: (uint8 (height, width), what is known of it) in the order to ask.
        """
        digits = len(str(len(patches)))
        with whole_or_absent(folder, "annotation") as new:
            (new / "crops").mkdir()
            rows = []
            for i, (pixels, item) in enumerate(patches):
                name = f"crops/{i:0{digits}d}.png"
                Image.fromarray(pixels).save(new / name)
                rows.append({**dict.fromkeys(META, ""), **item, "path": name})
            _write_csv(new / "items.csv", ["path", *META], rows)
            _write_csv(new / "labels.csv", LABELS, [])
            (new / "session.json").write_text(
                json.dumps({"format": FORMAT, **info}, indent=1) + "\n", encoding="utf-8"
            )
            if (folder / "session.json").exists():
                raise UserError(f"{folder}: another annotate has just begun it; use its page")

    @classmethod
    def open(cls, folder: Path) -> Session:
        """Reads a session; an answer that a power failure cut short is forgotten.

        Raises:
            UserError: not a session, of another format, or edited so that it no longer fits together.
        """
        try:
            info = form.read_json(folder / "session.json", _SESSION, "give another out=")
            items = _read_csv(folder / "items.csv")
            labels = folder / "labels.csv"
            raw = labels.read_bytes()
            if not raw.endswith(b"\n"):
                raw = raw[: raw.rfind(b"\n") + 1]
                os.truncate(labels, len(raw))
            rows = list(csv.reader(io.StringIO(raw.decode("utf-8"), newline=""), strict=True))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(
                f"{folder}: not a readable annotation ({error}); give another out=, or restore its files"
            ) from error
        for item in items:
            if not (folder / item["path"]).resolve().is_relative_to(folder.resolve() / "crops"):
                raise UserError(
                    f"{folder / 'items.csv'}: {item['path']} lies outside {folder / 'crops'}; "
                    "restore the file, or begin again with another out="
                )
        allowed = {*info["classes"], UNSURE}
        if not rows or rows[0] != list(LABELS):
            raise UserError(
                f"{labels}: begins with {rows[:1]}, expected the line {','.join(LABELS)}; restore it"
            )
        for line, row in enumerate(rows[1:], 2):
            expected = items[line - 2]["path"] if line - 2 < len(items) else "no further line"
            fits = len(row) == len(LABELS) and row[0] == expected and row[1] in allowed
            if not fits or not _is_number(row[2]):
                raise UserError(
                    f"{labels}: line {line} holds {', '.join(row)[:200]}; expected {expected}, "
                    f"one of {', '.join(sorted(allowed))}, and seconds; correct the line, or delete it and all after it"
                )
        session = cls(folder, info, items, [row[1] for row in rows[1:]])
        session.export()
        return session

    def answer(self, label: str) -> None:
        """Saves the answer for the patch that is asked; it is on disk, and in patches.csv, when this returns.

        Raises:
            OSError: no space, or the like; the answer does not count, now and when the session is opened again.
        """
        count = len(self.answers)
        line = _csv_line([self.items[count]["path"], label, f"{time.time():.1f}"]).encode("utf-8")
        handle = self._labels()
        try:
            # The line's end comes last, where a blank holds its place: what has no end is no answer, and to set it
            # needs no space any more.
            _write(handle, line[:-1] + b" ", self._length)
            os.fsync(handle)
            self.answers.append(label)
            self.export()
            _write(handle, b"\n", self._length + len(line) - 1)
            os.fsync(handle)
        except BaseException:
            with suppress(OSError):  # else the next answer does it, or opening the session again
                os.ftruncate(handle, self._length)
            exported = len(self.answers) > count
            del self.answers[count:], self._rows[count:]
            if exported:
                with suppress(OSError, UserError):
                    self.export()
            raise
        finally:
            os.close(handle)
        self._length += len(line)

    def undo(self) -> str | None:
        """Takes the last answer back, also one of an earlier run; returns it, None if there is none.

        Raises:
            OSError: no space, or the like; the answer still counts.
        """
        if not self.answers:
            return None
        handle = self._labels()
        last = self.answers.pop()
        try:
            self.export()  # first: it may need space, which cutting the end off does not
            start = os.pread(handle, self._length, 0).rstrip(b"\n").rfind(b"\n") + 1
            os.ftruncate(handle, start)
            self._length = start
            with suppress(OSError):  # it is cut; the next answer brings that to the disk
                os.fsync(handle)
        except BaseException:
            self.answers.append(last)
            with suppress(OSError, UserError):
                self.export()
            raise
        finally:
            os.close(handle)
        return last

    def _labels(self) -> int:
        """labels.csv, open for writing, without what may be left of an answer that was refused.

        Raises:
            UserError: it is not as this session left it.
        """
        file = self.folder / "labels.csv"
        handle = os.open(file, os.O_RDWR)
        try:
            size = os.fstat(handle).st_size
            if size < self._length:
                raise UserError(f"{file}: was changed meanwhile; stop, look at it, and start again")
            if size > self._length:
                os.ftruncate(handle, self._length)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def export(self) -> None:
        """Brings patches.csv up to date."""
        # lines are made once: at 50,000 patches an answer must still be saved within a blink
        del self._rows[len(self.answers) :]
        for i in range(len(self._rows), len(self.answers)):
            label, line = self.answers[i], ""
            if label != UNSURE:
                row = {**self.items[i], "label": label}
                line = _csv_line([row[c] for c in self._columns])
            self._rows.append(line)
        text = _csv_line(self._columns) + "".join(self._rows)
        write_whole(self.folder / "patches.csv", text, durable=False)  # follows from labels.csv

    def counts(self) -> dict[str, int]:
        """Answers per class and unsure."""
        found = Counter(self.answers)
        return {name: found[name] for name in (*self.classes, UNSURE)}

    def import_command(self) -> str:
        """The command that makes a store of the answers; empty while there are none."""
        present = [c for c in self.classes if c in set(self.answers)]
        if not present:
            return ""
        settings = {"source": self.folder, "store": f"stores/{self.folder.name}"}
        if self.info.get("crop_size"):
            settings["size"] = self.info["crop_size"]
        if self.info.get("um_per_px"):
            settings["um_per_px"] = self.info["um_per_px"]
        return command_line("import", {**settings, "classes": present})

    def _known(self) -> list[str]:
        """Columns known for all patches; `import` refuses gaps."""
        return [c for c in META if all(item[c] != "" for item in self.items)]


def _write(handle: int, data: bytes, at: int) -> None:
    while data:  # a disk that fills takes a part
        written = os.pwrite(handle, data, at)
        data, at = data[written:], at + written


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _csv_line(values: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(values)
    return stream.getvalue()


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Item]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read_csv(path: Path) -> list[Item]:
    content = form.read_text(path, _MOST_ITEMS, "give another out=, or restore the file")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    if any(set(row) != {"path", *META} or None in row.values() for row in rows) or not rows:
        raise ValueError(f"{path.name} lacks a column or holds no rows")
    return rows
