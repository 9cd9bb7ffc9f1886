"""Sorting patches by hand: a page in the browser, one key per class, every answer saved at once.

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
import hmac
import io
import json
import math
import os
import secrets
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image
from rich.console import Console
from rich.progress import track as progress
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from stemcell_lit.base import formats as form
from stemcell_lit.base.files import check_target, whole_or_absent, write_whole
from stemcell_lit.base.pages import render
from stemcell_lit.data.colonies import classifier_of, foreground, label_colonies, track
from stemcell_lit.data.crop_files import SUFFIXES, CropFiles, pictures_below
from stemcell_lit.data.crops import CropReader, table_in
from stemcell_lit.data.frames import Frames, Movie, open_frames
from stemcell_lit.data.labelled import Select, movies_in, stacks_in
from stemcell_lit.data.labels import UNSURE, checked_classes
from stemcell_lit.data.naming import natural_key
from stemcell_lit.data.patches import PatchStore
from stemcell_lit.data.tables import read_table
from stemcell_lit.errors import UserError
from stemcell_lit.schema import AnnotateCommand
from stemcell_lit.settings.quoting import command_line, plain, printable

FORMAT = 1
HOST = "127.0.0.1"  # never another: the page shows unpublished data and takes no password
LABELS = ("path", "label", "answered")
META = ("group", "track", "movie", "frame", "time_h", "x", "y")
KINDS = ("auto", "movie", "crops", "store")
# Larger images in a folder are frames of a movie; crops are rarely above, frames never below
LARGEST_CROP = 256
SURROUNDINGS = 5  # side of the view around a patch, in patches
MAX_CLASSES = 9  # one digit each
RESERVED = "uz"  # keys of unsure and undo
LONGEST_PAUSE_S = 60.0  # longer ones are a coffee, and say nothing about the rate
RATE_OVER = 30  # answers

Item = dict[str, str]  # path and META as text, empty where unknown


# --- the session ----------------------------------------------------------------------------------

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


# --- where patches come from ----------------------------------------------------------------------


@contextmanager
def open_session(config: AnnotateCommand) -> Iterator[Session]:
    """The session in `config.out`, begun if there is none; nobody else can open it meanwhile.

    Raises:
        UserError: the source cannot be read, the folder holds something else, was begun otherwise, or
            is being worked on.
    """
    _check(config)
    out = Path(config.out)
    if not (out / "session.json").is_file():
        _begin(out, config)
    lock = FileLock(out / ".lock")  # the system releases it, also of a process that was killed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{out}: another annotate is at work on it; use its page, or stop it first"
        ) from None
    with lock:
        yield _resume(out, config)


def _check(config: AnnotateCommand) -> None:
    if config.kind not in KINDS:
        raise UserError(f"kind={config.kind}: expected one of {', '.join(KINDS)}")
    for key in ("size", "per_frame", "every"):
        if getattr(config, key) < 1:
            raise UserError(f"{key}={getattr(config, key)}: expected 1 or more")
    if not 0 < config.foreground <= 1:
        raise UserError(f"foreground={config.foreground}: expected a share above 0, to 1")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"limit={config.limit}: expected 1 or more, or null for all")
    if not 0 <= config.port <= 65535:
        raise UserError(f"port={config.port}: expected 0 (any free one) to 65535")


def _begin(out: Path, config: AnnotateCommand) -> None:
    source = Path(config.source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: holds something else; expected a new folder or one that annotate began; give another out="
        )
    check_target(out, "annotation", inputs=[source])
    if not source.exists():
        raise UserError(
            f"{source}: no such file or folder; expected a movie, a folder of crops or a patch store"
        )
    kind = _kind(source) if config.kind == "auto" else config.kind
    info: dict[str, Any] = {"kind": kind, "source": source.name, "settings": _settings(config)}
    classes = config.classes
    if kind == "store":
        store = PatchStore.open(source)
        classes = classes or store.classes
        info["um_per_px"] = store.info["um_per_px"]
    info["classes"] = _checked_classes(classes)
    rng = np.random.default_rng(config.seed)
    if kind == "movie":
        patches = _shuffled(_from_movies(source, config, rng, info), config.limit, rng)
    elif kind == "store":
        chosen = rng.permutation(len(store))[: config.limit]
        patches = [
            (np.asarray(store.finest[i]), _store_item(store.manifest.iloc[i])) for i in chosen
        ]
    else:
        items = _crop_items(source)
        chosen = rng.permutation(len(items))[: config.limit]
        reader = CropReader(source, [i["path"] for i in items], config.channel, config.plane)
        patches = [(reader.read(items[i]["path"]), items[i]) for i in chosen]
        shapes = {p.shape for p, _ in patches}
        if len(shapes) > 1 or any(h != w for h, w in shapes):
            info["crop_size"] = min(min(shape) for shape in shapes)
        info["um_per_px"] = config.um_per_px
    Session.begin(out, info, patches)


def _resume(out: Path, config: AnnotateCommand) -> Session:
    session = Session.open(out)
    begun, now = session.info["settings"], _settings(config)
    if session.info["source"] != Path(config.source).name:
        raise UserError(
            f"{out}: was begun with {session.info['source']}, not with {Path(config.source).name}; "
            "give that source, or another out="
        )
    for key, value in now.items():
        if begun.get(key) != value:
            raise UserError(
                f"{out}: was begun with {key}={begun.get(key)}, now it is {value}; the patches are cut "
                "already: give the same, or another out="
            )
    if config.classes:
        classes = _checked_classes(config.classes)
        lost = sorted(set(session.answers) - {*classes, UNSURE})
        if lost:
            raise UserError(
                f"classes={classes}: {out} holds answers {lost[0]!r}; keep that class, or give another out="
            )
        if classes != session.classes:  # a class may join when it is first seen
            session.info["classes"] = classes
            write_whole(out / "session.json", json.dumps(session.info, indent=1) + "\n")
    return session


def _settings(config: AnnotateCommand) -> dict[str, Any]:
    """What determines the patches and their order."""
    keys = ("kind", "size", "per_frame", "every", "foreground", "limit", "seed")
    more = ("um_per_px", "hours_per_frame", "channel", "plane", "position")
    found = {key: getattr(config, key) for key in keys + more}
    return {**found, "colonies": asdict(config.colonies)}


def _checked_classes(classes: Sequence[str] | None) -> list[str]:
    if not classes:
        raise UserError(
            "classes= is missing; name the classes to sort into, such as classes=[dense,spread]"
        )
    names = checked_classes(classes)
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"classes={names}: found {len(names)}, expected 2 to {MAX_CLASSES}, a key each"
        )
    return names


def _kind(source: Path) -> str:
    """movie, crops or store, by what is there."""
    if source.is_file():
        return "movie"
    if (source / "store.json").is_file():
        return "store"
    if table_in(source) is not None:
        return "crops"
    files = _images(source)
    if not files:
        return "crops"  # in sub-folders, or none at all, which is said there
    if stacks_in(source):
        return "movie"
    try:
        with Image.open(files[0]) as image:
            return "crops" if max(image.size) <= LARGEST_CROP else "movie"
    except Exception:  # not for Pillow: a kind of TIFF of frames, or damaged, which opening it says
        return "movie"


def _images(folder: Path) -> list[Path]:
    found = (f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
    return sorted(
        (f for f in found if f.is_file() and not f.name.startswith(".")),
        key=lambda f: natural_key(f.name),
    )


def _movies(source: Path, config: AnnotateCommand) -> list[Movie]:
    return movies_in(source, Select(config.channel, config.plane, config.position))


def _open_movie(movie: Movie, config: AnnotateCommand) -> Frames:
    return open_frames(
        movie,
        um_per_px=config.um_per_px,
        hours_per_frame=config.hours_per_frame,
        channel=config.channel,
        plane=config.plane,
    )


def _from_movies(
    source: Path, config: AnnotateCommand, rng: np.random.Generator, info: dict[str, Any]
) -> list[tuple[np.ndarray, Item]]:
    """Patches inside colonies, their colonies linked over time."""
    movies = _movies(source, config)
    found: list[tuple[np.ndarray, Item]] = []
    sizes = set()
    for movie in movies:
        with _open_movie(movie, config) as frames:
            if min(frames.shape[1:]) < config.size:
                raise UserError(
                    f"{movie.path}: frames are {frames.shape[1]} x {frames.shape[2]} px, smaller than "
                    f"size={config.size}; give a smaller size"
                )
            sizes.add(frames.um_per_px)
            found += _from_movie(frames, movie.name, config, rng)
    if not found:
        raise UserError(
            f"{source}: no patch of {config.size} px lies inside colonies by at least "
            f"foreground={config.foreground}; lower it, or choose colonies=contrast (single cells) or "
            "colonies=colony (packed ones)"
        )
    info["um_per_px"] = sizes.pop() if len(sizes) == 1 else None
    if len(movies) > 1:  # whole movies stay on one side of a split
        for _, item in found:
            item["group"] = item["movie"]
    return found


def _from_movie(
    frames: Frames, name: str, config: AnnotateCommand, rng: np.random.Generator
) -> list[tuple[np.ndarray, Item]]:
    cut: list[tuple[np.ndarray, int, int, int, int]] = []  # pixels, step, top, left, colony
    positions = frames.each(config.every)
    classifier = classifier_of(config.colonies)

    def maps() -> Iterator[np.ndarray]:
        bar = progress(
            positions, f"colonies of {plain(name)}", console=Console(stderr=True), transient=True
        )
        for step, position in enumerate(bar):
            image = frames.read(position)
            mask = foreground(image, config.colonies, frames.um_per_px, classifier=classifier)
            labels = label_colonies(mask)
            for top, left in _positions(labels > 0, config, rng):
                where = slice(top, top + config.size), slice(left, left + config.size)
                inside = np.bincount(labels[where].ravel())[1:]
                cut.append((image[where].copy(), step, top, left, int(inside.argmax()) + 1))
            yield labels

    tracks = track(maps())
    family = _families(tracks.table["track"].unique(), tracks.events)
    half = config.size / 2
    result = []
    for pixels, step, top, left, colony in cut:
        position = positions[step]
        hours = frames.time(position)
        owner = int(tracks.paint(np.array([[colony]]), step)[0, 0])
        item = {
            "group": f"{name}/family-{family[owner]}",
            "track": f"{name}/colony-{owner}",
            "movie": name,
            "frame": str(frames.numbers[position]),
            "time_h": "" if math.isnan(hours) else f"{hours:.6g}",
            "x": f"{left + half:g}",
            "y": f"{top + half:g}",
        }
        result.append((pixels, item))
    return result


def _positions(
    mask: np.ndarray, config: AnnotateCommand, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Random corners (top, left) of patches inside the mask; no two share more than half."""
    size = config.size
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    free = inside >= max(1, config.foreground * size * size)
    chosen: list[tuple[int, int]] = []
    reach = (size + 1) // 2
    while len(chosen) < config.per_frame:
        left_over = np.flatnonzero(free)
        if not left_over.size:
            break
        top, left = divmod(int(rng.choice(left_over)), free.shape[1])
        chosen.append((top, left))
        free[max(0, top - reach + 1) : top + reach, max(0, left - reach + 1) : left + reach] = False
    return chosen


def _families(tracks: Sequence[int] | np.ndarray, events: pd.DataFrame) -> dict[int, int]:
    """Tracks joined over merges and splits: what shares cells must stay on one side of a split."""
    head = {int(t): int(t) for t in tracks}

    def find(t: int) -> int:
        while head[t] != t:
            t = head[t]
        return t

    for a, b in zip(events["track"], events["other"], strict=True):
        one, other = sorted((find(int(a)), find(int(b))))
        head[other] = one
    return {t: find(t) for t in head}


def _store_item(row: pd.Series) -> Item:
    item = {c: str(row[c]) if c in row and pd.notna(row[c]) else "" for c in META}
    if row["frame"] < 0:
        item["frame"] = ""
    return item


def _crop_items(source: Path) -> list[Item]:
    """Crops in a folder and its sub-folders, or those that its patches.csv names."""
    if not source.is_dir():
        raise UserError(
            f"{source}: is a file, expected a folder of crops; for a movie give kind=movie"
        )
    table = table_in(source)
    if table is not None:
        read = read_table(table, ["path"], META, gaps=True)
        files = CropFiles(source, table)
        rows = read.rows.assign(
            path=[
                files.find(name, int(line))
                for name, line in zip(read.rows["path"], read.rows["line"], strict=True)
            ]
        )
        files.say_renamed()
        rows = read.once(rows, ["path"], "crop").drop(columns="line")
        return [{str(k): str(v) for k, v in row.items()} for row in rows.to_dict("records")]
    files_below = pictures_below(source)
    if not files_below:
        raise UserError(
            f"{source}: no images in it; expected a movie, a patch store, or crops ({' '.join(SUFFIXES)})"
        )
    return [{"path": f.relative_to(source).as_posix()} for f in files_below]


def _shuffled(
    patches: list[tuple[np.ndarray, Item]], limit: int | None, rng: np.random.Generator
) -> list[tuple[np.ndarray, Item]]:
    return [patches[i] for i in rng.permutation(len(patches))[:limit]]


class _Surroundings:
    """The place of a patch in its frame, read when asked for; absent where there is no movie."""

    def __init__(self, session: Session, config: AnnotateCommand):
        self._session, self._size = session, config.size
        self._config = config
        self._movies: dict[str, Movie] = {}
        self._open: tuple[str, Frames] | None = None
        source = Path(config.source)
        if session.info["kind"] == "movie" and source.exists():
            self._movies = {movie.name: movie for movie in _movies(source, config)}

    def __contains__(self, index: int) -> bool:
        return self._session.items[index]["movie"] in self._movies

    def cut(self, index: int) -> np.ndarray:
        """uint8, `SURROUNDINGS` patches wide and high; the patch is in the middle.

        What lies outside the frame is mid-gray.
        """
        item = self._session.items[index]
        name = item["movie"]
        if self._open is None or self._open[0] != name:
            self.close()
            self._open = (name, _open_movie(self._movies[name], self._config))
        frames = self._open[1]
        at = frames.index_of(int(item["frame"]))
        if at is None:
            raise UserError(f"{frames.path}: frame {item['frame']} is no longer there; restore it")
        image = frames.read(at)
        side = SURROUNDINGS * self._size
        top, left = (round(float(item[c]) - side / 2) for c in ("y", "x"))
        view = np.full((side, side), 128, np.uint8)
        bottom, right = min(top + side, image.shape[0]), min(left + side, image.shape[1])
        y, x = max(top, 0), max(left, 0)
        view[y - top : bottom - top, x - left : right - left] = image[y:bottom, x:right]
        return view

    def close(self) -> None:
        if self._open:
            self._open[1].close()
            self._open = None


# --- the page -------------------------------------------------------------------------------------


def class_keys(classes: Sequence[str]) -> list[str]:
    """A letter per class: the first of its name that no class before it and no command has."""
    taken = set(RESERVED)
    keys = []
    for name in classes:
        letters = (c for c in name.lower() if c.isascii() and c.isalpha() and c not in taken)
        key = next(letters, "")
        taken.add(key)
        keys.append(key)
    return keys


class Page:
    """The WSGI application: one page, its pictures, and the answers.

    Other web sites open in the same browser can send requests here, and a name that they own can be
    made to point here. So every request must name this very address as its host, come from this page,
    and know the token of this run.
    """

    def __init__(self, session: Session, surroundings: _Surroundings, token: str):
        self.session, self.surroundings, self.token = session, surroundings, token
        self.port = 0  # set once bound
        self._lock = threading.Lock()  # answers come one by one; frames are read by one thread
        self._times: list[float] = []
        self._urls = Map(
            [
                Rule("/", endpoint="page", methods=["GET"]),
                Rule("/patch/<int:index>.png", endpoint="patch", methods=["GET"]),
                Rule("/around/<int:index>.png", endpoint="around", methods=["GET"]),
                Rule("/state", endpoint="state", methods=["GET"]),
                Rule("/answer", endpoint="answer", methods=["POST"]),
                Rule("/undo", endpoint="undo", methods=["POST"]),
            ]
        )

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Answers a request (PEP 3333)."""
        request = Request(environ)
        request.max_content_length = 10_000
        try:
            response = self._refusal(request) or self._respond(request)
        except HTTPException as error:
            response = Response(f"{error.code} {error.name}\n", error.code or 400)
        except (UserError, OSError) as error:  # such as a full disk: the page must say so
            response = Response(f"{error}\n", 500)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"  # the token is in the address
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers.setdefault("Cache-Control", "no-store")
        return response(environ, start_response)

    def _refusal(self, request: Request) -> Response | None:
        hosts = {f"{HOST}:{self.port}", f"localhost:{self.port}"}
        origin = request.headers.get("Origin")
        site = request.headers.get("Sec-Fetch-Site", "none")
        given = request.headers.get("X-Token") or (
            request.args.get("token", "") if request.method == "GET" else ""
        )
        if request.headers.get("Host") not in hosts:
            return Response(f"403: expected the host {HOST}:{self.port}\n", 403)
        if origin is not None and (
            urlsplit(origin).netloc not in hosts or urlsplit(origin).scheme != "http"
        ):
            return Response("403: requests from other pages are refused\n", 403)
        if site not in ("same-origin", "none"):
            # a link on another page may not even open this one
            return Response("403: requests from other pages are refused\n", 403)
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return Response(
                "403: open the address that the command printed; each start has a new one\n", 403
            )
        return None

    def _respond(self, request: Request) -> Response:
        endpoint, values = self._urls.bind_to_environ(request.environ).match()
        if endpoint == "page":
            return self._page()
        if endpoint in ("patch", "around"):
            return self._picture(endpoint, values["index"])
        with self._lock:
            if endpoint == "answer":
                return self._answer(request)
            if endpoint == "undo":
                undone = self.session.undo()
                if self._times:
                    self._times.pop()
                return self._state(undone=undone)
            return self._state()

    def _page(self) -> Response:
        nonce = secrets.token_urlsafe(16)
        page = render(Path(__file__).with_suffix(".html"), nonce=nonce)
        response = Response(page, mimetype="text/html")
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    def _picture(self, kind: str, index: int) -> Response:
        if index >= len(self.session.items):
            raise NotFound
        if kind == "patch":
            data = (self.session.folder / self.session.items[index]["path"]).read_bytes()
        else:
            if index not in self.surroundings:
                raise NotFound
            stream = io.BytesIO()
            with self._lock:
                view = self.surroundings.cut(index)
            Image.fromarray(view).save(stream, "PNG")
            data = stream.getvalue()
        # kept by the browser, so that the next patch is there when it is asked for
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(data, mimetype="image/png", headers=headers)

    def _answer(self, request: Request) -> Response:
        given = request.get_json(silent=True)
        given = given if isinstance(given, dict) else {}
        label, asked = given.get("label"), len(self.session.answers)
        if label not in (*self.session.classes, UNSURE):
            return Response(f"400: {label!r} is not a class\n", 400)
        if given.get("index") != asked or asked == len(self.session.items):
            # a second window, or a key pressed twice: the answer is for a patch no longer asked
            return self._state(409)
        self.session.answer(label)
        self._times.append(time.monotonic())
        return self._state()

    def _state(self, status: int = 200, **more: Any) -> Response:
        session, done = self.session, len(self.session.answers)
        total = len(session.items)
        counts = session.counts()
        keys = class_keys(session.classes)
        named = zip(session.classes, keys, strict=True)
        state = {
            "done": done,
            "total": total,
            "classes": [{"name": n, "letter": k, "count": counts[n]} for n, k in named],
            "unsure": counts[UNSURE],
            "last": session.answers[-1] if done else None,
            "around": [i in self.surroundings for i in range(done, min(done + 2, total))],
            "share": 1 / SURROUNDINGS,
            "import": session.import_command(),
            **self._rate(total - done),
            **more,
        }
        return Response(json.dumps(state), status, mimetype="application/json")

    def _rate(self, left: int) -> dict[str, float | None]:
        """Answers a minute in this run, and the minutes left at it; pauses are left out."""
        gaps = np.diff(self._times[-RATE_OVER - 1 :])
        gaps = gaps[gaps < LONGEST_PAUSE_S]
        if len(gaps) < 3 or not gaps.sum():
            return {"per_minute": None, "minutes_left": None}
        rate = 60 * len(gaps) / float(gaps.sum())
        return {"per_minute": rate, "minutes_left": left / rate}


class _Quiet(WSGIRequestHandler):
    """A line per request would hide the address that was printed, and hold its token."""

    def log(self, type: str, message: str, *args: Any) -> None:
        if type == "error":
            super().log(type, message, *args)


def annotate(config: AnnotateCommand) -> None:
    """Serves the page until Ctrl-C, then says how to go on.

    Raises:
        UserError: the source or the session cannot be used, or the port is taken.
    """
    with open_session(config) as session:
        surroundings = _Surroundings(session, config)
        try:
            _serve(Page(session, surroundings, secrets.token_urlsafe(24)), config.port)
        finally:
            surroundings.close()


def _serve(page: Page, port: int) -> None:
    try:
        bound = socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(
            f"port={port}: cannot be bound on {HOST} ({error.strerror}); give another, or 0 for a free one"
        ) from error
    with bound:
        server = make_server(
            HOST, port, page, threaded=True, request_handler=_Quiet, fd=bound.fileno()
        )
    assert isinstance(server, socketserver.ThreadingMixIn)
    server.daemon_threads = True  # an open browser window must not hold Ctrl-C back
    page.port = server.port
    session = page.session
    print(
        f"{len(session.items)} patches, {len(session.answers)} answered, in {printable(session.folder)}"
    )
    print(f"open http://{HOST}:{server.port}/?token={page.token}")
    print("every answer is saved at once; Ctrl-C stops, the same command goes on", flush=True)
    server.serve_forever()  # returns on Ctrl-C, its socket closed
    counts = ", ".join(f"{name} {n}" for name, n in session.counts().items())
    print(f"\n{len(session.answers)} of {len(session.items)} answered: {printable(counts)}")
    if session.import_command():
        print(f"next: {session.import_command()}")
