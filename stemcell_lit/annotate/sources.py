"""What is sorted: patches of movies, crops or a store, and a session begun or gone on with."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image
from rich.console import Console
from rich.progress import track as progress
from scipy.cluster.hierarchy import DisjointSet

from stemcell_lit.annotate.session import MAX_CLASSES, META, Item, Session
from stemcell_lit.annotate.uncertain import most_uncertain
from stemcell_lit.base.files import check_target, write_whole
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import classifier_of, foreground, label_colonies
from stemcell_lit.movies.frames import Frames, Movie, open_frames
from stemcell_lit.movies.suffixes import images_in
from stemcell_lit.movies.tracks import track
from stemcell_lit.patches.crop_files import SUFFIXES, CropFiles, pictures_below
from stemcell_lit.patches.crops import CropReader, table_in
from stemcell_lit.patches.groups import LEAST, Blocks, effective, told
from stemcell_lit.patches.labelled import Select, movies_in, stacks_in
from stemcell_lit.patches.labels import UNSURE, checked_classes
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.patches.tables import read_table
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.patch_keys import AnnotateCommand
from stemcell_lit.settings.quoting import plain

# Larger images in a folder are frames of a movie; crops are rarely above, frames never below
LARGEST_CROP = 256


SURROUNDINGS = 5  # side of the view around a patch, in patches


@contextmanager
def open_session(config: AnnotateCommand) -> Iterator[Session]:
    """The session in `config.out`, begun if there is none; nobody else can open it meanwhile.

    Raises:
        UserError: the source cannot be read, the folder holds something else, was begun otherwise, or
            is being worked on.
    """
    check(config)
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
    limit = None if config.checkpoint else config.limit  # a model looks at all of them
    if kind == "movie":
        found = _from_movies(source, config, rng, info)
        patches = [found[i] for i in rng.permutation(len(found))[:limit]]
    elif kind == "store":
        chosen = rng.permutation(len(store))[:limit]
        patches = [
            (np.asarray(store.finest[i]), _store_item(store.manifest.iloc[i])) for i in chosen
        ]
    else:
        items = _crop_items(source)
        chosen = rng.permutation(len(items))[:limit]
        reader = CropReader(source, [i["path"] for i in items], config.channel, config.plane)
        patches = [(reader.read(items[i]["path"]), items[i]) for i in chosen]
        shapes = {p.shape for p, _ in patches}
        if len(shapes) > 1 or any(h != w for h, w in shapes):
            info["crop_size"] = min(min(shape) for shape in shapes)
        info["um_per_px"] = config.um_per_px
    if config.checkpoint:
        model = TrainedHierarchy.load(config.checkpoint, config.allow_module)
        order = most_uncertain(model, [pixels for pixels, _ in patches], info["um_per_px"])
        patches = [patches[i] for i in order[: config.limit]]
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
    keys = ("kind", "size", "per_frame", "every", "foreground", "groups", "blocks", "limit", "seed")
    more = ("um_per_px", "hours_per_frame", "channel", "plane", "position", "checkpoint")
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
    files = images_in(source)
    if not files:
        return "crops"  # in sub-folders, or none at all, which is said there
    if stacks_in(source):
        return "movie"
    try:
        with Image.open(files[0]) as image:
            return "crops" if max(image.size) <= LARGEST_CROP else "movie"
    except Exception:  # not for Pillow: a kind of TIFF of frames, or damaged, which opening it says
        return "movie"


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
            found += _from_movie(frames, movie.name, config, rng, alone=len(movies) == 1)
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
    frames: Frames, name: str, config: AnnotateCommand, rng: np.random.Generator, *, alone: bool
) -> list[tuple[np.ndarray, Item]]:
    # pixels, step, top, left, colony: anywhere, and of blocks
    cut: dict[str, list[tuple[np.ndarray, int, int, int, int]]] = {"family": [], "block": []}
    blocks = Blocks((frames.shape[1], frames.shape[2]), config.size, config.blocks)
    wanted = config.groups if alone else "family"
    if wanted == "block" and len(blocks) < 2:
        raise UserError(
            f"groups=block: {frames.path} has frames of {frames.shape[1]} x {frames.shape[2]} px, too small for two "
            f"blocks of three patches of size={config.size}; give a smaller size, or groups=family or time"
        )
    ways: dict[str, tuple[np.ndarray | None, np.random.Generator]] = {}
    if wanted != "block":
        ways["family"] = (None, rng)
    if wanted in ("block", "auto") and len(blocks) > 1:
        ways["block"] = (blocks.inside(), np.random.default_rng([config.seed, 1]))
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
            for way, (allowed, random) in ways.items():
                for top, left in _positions(labels > 0, config, random, allowed):
                    where = slice(top, top + config.size), slice(left, left + config.size)
                    inside = np.bincount(labels[where].ravel())[1:]
                    colony = int(inside.argmax()) + 1
                    cut[way].append((image[where].copy(), step, top, left, colony))
            yield labels

    tracks = track(maps())
    family = _families(tracks.table["track"].unique(), tracks.events)
    half = config.size / 2
    found: dict[str, list[tuple[np.ndarray, Item]]] = {}
    for way, patches in cut.items():
        found[way] = []
        for pixels, step, top, left, colony in patches:
            position = positions[step]
            hours = frames.time(position)
            owner = int(tracks.paint(np.array([[colony]]), step)[0, 0])
            part, first = _part_of_time(step, len(positions), config.blocks)
            if wanted == "time" and first:  # a step between two parts shows nearly what both show
                continue
            of = {"family": f"family-{family[owner]}", "block": blocks.name(top, left)}
            group = f"{name}/{f'time-{part}' if wanted == 'time' else of[way]}"
            within = (
                name if group == f"{name}/{of['family']}" else group
            )  # no track lies in two groups
            item = {
                "group": group,
                "track": f"{within}/colony-{owner}",
                "movie": name,
                "frame": str(frames.numbers[position]),
                "time_h": "" if math.isnan(hours) else f"{hours:.6g}",
                "x": f"{left + half:g}",
                "y": f"{top + half:g}",
            }
            found[way].append((pixels, item))
    worth = {way: effective(item["group"] for _, item in of) for way, of in found.items()}
    if wanted == "auto" and worth["family"] < LEAST and worth["block"] > worth["family"]:
        groups = [item["group"] for _, item in found["family"]]
        warnings.warn(
            f"{name}: colonies that merged or split would be {told(groups)}; blocks of the field are kept together "
            f"instead, {blocks.rows} x {blocks.columns} of them, and patches lie wholly inside one (groups=family "
            "takes colonies)",
            stacklevel=2,
        )
        wanted = "block"
    return found["block" if wanted == "block" else "family"]


def _part_of_time(step: int, steps: int, most: int) -> tuple[int, bool]:
    """Which part of the time a step lies in, and whether it is the first of one that follows another."""
    parts = max(1, min(most, steps // 2))
    part = step * parts // steps
    return part, step > 0 and (step - 1) * parts // steps < part


def _positions(
    mask: np.ndarray,
    config: AnnotateCommand,
    rng: np.random.Generator,
    allowed: np.ndarray | None = None,
) -> list[tuple[int, int]]:
    """Random corners (top, left) of patches inside the mask, perhaps of allowed ones; no two share more than half."""
    size = config.size
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    free = inside >= max(1, config.foreground * size * size)
    if allowed is not None:
        free &= allowed
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
    joined = DisjointSet(map(int, tracks))
    for a, b in zip(events["track"], events["other"], strict=True):
        joined.merge(int(a), int(b))
    return {track: min(family) for family in joined.subsets() for track in family}


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
        rows = read.rows.assign(path=CropFiles(source, table).find_all(read.rows))
        rows = read.once(rows, ["path"], "crop").drop(columns="line")
        return [{str(k): str(v) for k, v in row.items()} for row in rows.to_dict("records")]
    files_below = pictures_below(source)
    if not files_below:
        raise UserError(
            f"{source}: no images in it; expected a movie, a patch store, or crops ({' '.join(SUFFIXES)})"
        )
    return [{"path": f.relative_to(source).as_posix()} for f in files_below]


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
