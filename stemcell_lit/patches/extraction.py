"""Labelled patches from movies with class maps: a label image per frame, 0 where nothing is labelled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import classifier_of, foreground, label_colonies
from stemcell_lit.movies.frames import Frames, Movie, open_frames
from stemcell_lit.movies.maps import pair
from stemcell_lit.movies.resample import resample, resample_labels, scale_between, scaled_shape
from stemcell_lit.movies.tracks import Tracks, track
from stemcell_lit.patches.labelled import LabelledMovie, Select, find_movies, simulated
from stemcell_lit.patches.labels import UNLABELLED, UNSURE, checked_classes
from stemcell_lit.patches.store import PatchStore, ViewCutter, check_scales
from stemcell_lit.settings.colony_keys import ColoniesConfig
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.group_keys import ExtractionConfig

TRIES = 400  # random positions a frame; far more than patches fit in, so the frame is covered
DEBRIS = "debris"


def extract(
    source: Path,
    store: Path,
    extraction: ExtractionConfig,
    *,
    table: Path | None = None,
    classes: Sequence[str] | None = None,
    um_per_px: float | None = None,
    hours_per_frame: float | None = None,
    blocks: int | None = None,
    select: Select | None = None,
    unlabelled: Sequence[str] = (),
    colonies: ColoniesConfig | None = None,
) -> PatchStore:
    """Cuts patches at random places or on a grid and labels them by the class map.

    A place is looked at if at least `foreground` of the patch is labelled. Its label is the class that holds the
    largest share of these pixels, if that share is at least `purity`; otherwise the patch is unsure: left out, counted,
    and named in `unsure.parquet`. In both shares a pixel of a class called debris counts `debris_weight` times: debris
    bodies are small, but their halo outshines what lies around them. With 4 and foreground 0.5 a patch on bare ground
    is debris from an eighth of its area on, on a colony (purity 0.7) from 37 %, and up to 9 % of debris leave a cell
    patch its label. Random places of a frame never share more than half a patch. Of all that are sure
    `patches_per_movie` are drawn, so the classes stay as imbalanced as the frames show them.

    Of a movie without maps places are taken where `colonies` finds cells, by the same `foreground`, without a label.

    A movie is a group of the split. A single labelled one may have blocks of columns instead; what lies in two is left
    out.

    Frames are read one by one, and only those that patches come from.

    Args:
        source: a movie, a folder of movies, or the folder that `simulate` wrote.
        store: PatchStore to write; whole or absent.
        extraction: size, places and how sure a label must be.
        table: the class maps, see `find_movies`.
        classes: names of the maps' values from 1; None: what the manifest of `simulate` says.
        um_per_px: of the movies; None: what they say.
        hours_per_frame: of the movies; None: what they say.
        blocks: of columns, the groups of a single movie; None: it is one group.
        select: which of several channels, planes and positions.
        unlabelled: names of movies without maps.
        colonies: where their cells are.

    Returns:
        The store. `made_by` in its info holds the settings, the movies and how many places were unsure.

    Raises:
        UserError: a setting is out of range, or movies and maps do not fit together.
    """
    source, select = Path(source), select or Select()
    check_extraction(extraction)
    about: dict[str, Any] = {"origin": "real"}
    if (source / "manifest.json").is_file():
        names, movies, about = simulated(source)
        if unlabelled:
            raise UserError(
                f"unlabelled={list(unlabelled)}: every movie of {source / 'manifest.json'} has class maps; leave it out"
            )
        if classes is not None and list(classes) != names:
            raise UserError(
                f"classes={list(classes)}: {source / 'manifest.json'} names {names}; leave classes out"
            )
    else:
        movies = find_movies(source, table, um_per_px, hours_per_frame, select, unlabelled)
        names = _named(source, classes)

    pixels: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []
    sizes: dict[float | None, str] = {}
    straddling, alone = 0, sum(movie.classes is not None for movie in movies) == 1
    for number, movie in enumerate(movies):
        rng = np.random.default_rng([extraction.seed, number])
        with ExitStack() as opened:
            frames = opened.enter_context(
                open_frames(
                    movie.movie,
                    um_per_px=movie.um_per_px,
                    hours_per_frame=movie.hours_per_frame,
                    channel=select.channel,
                    plane=select.plane,
                )
            )
            scale, um = patch_scale(frames, extraction.um_per_px)
            sizes.setdefault(um, movie.movie.path.name)
            if movie.classes is None:
                found = _look_without(movie, frames, scale, extraction, rng, colonies)
            else:
                found = _look(movie, frames, scale, names, extraction, rng, opened)
            if blocks is not None and alone and movie.classes is not None:
                side = scaled_shape(frames.shape[1:], scale)[1]
                inside = [
                    p
                    for p in found
                    if p["corner"][1] * blocks // side
                    == (p["corner"][1] + extraction.patch_size - 1) * blocks // side
                ]
                straddling, found = len(found) - len(inside), inside
                for patch in found:
                    patch["group"] = f"columns-{patch['corner'][1] * blocks // side}"
            left_out += [_row(p, extraction.patch_size, scale) for p in found if not p["sure"]]
            found = [p for p in found if p["sure"]]
            chosen = rng.permutation(len(found))[: extraction.patches_per_movie]
            found = [found[i] for i in sorted(chosen)]  # in the order of the frames
            pixels += _cut(frames, scale, found, extraction)
            rows += [_row(p, extraction.patch_size, scale) for p in found]
            described.append(frames.describe())
    one_size(sizes)
    if all(row["label"] == UNLABELLED for row in rows):
        raise UserError(
            f"{source}: no labelled patch of {extraction.patch_size} px has foreground >= {extraction.foreground} and "
            f"purity >= {extraction.purity} ({len(left_out)} were unsure"
            f"{f', {straddling} lay in two of blocks={blocks}' * (straddling > 0)}), expected at least one; lower "
            "one of these"
        )
    if blocks is not None and alone:
        say_views_cross_columns(extraction)
    manifest = pd.DataFrame(rows)
    return PatchStore.write(
        store,
        np.concatenate(pixels),
        manifest.drop(columns=["likely", "share"]),
        classes=names,
        um_per_px=next(iter(sizes)),
        scales=extraction.scales,
        unsure=pd.DataFrame(left_out),
        inputs=[source, table],
        made_by={
            "command": "extract",
            **about,
            **asdict(extraction),
            "movies": described,
            "split_by": "movie"
            if blocks is None or not alone
            else f"block of columns ({blocks} over the width of the frame, {straddling} patches in two left out)",
            "unsure": len(left_out),
        },
    )


def say_views_cross_columns(extraction: ExtractionConfig) -> None:
    """A notice where the split of one movie does not hold for its wide views."""
    if len(extraction.scales) > 1:
        warnings.warn(
            "one movie, split by columns: the wide views of a patch reach into its neighbours' columns",
            stacklevel=3,
        )


def check_extraction(extraction: ExtractionConfig) -> None:
    """Refuses settings out of bounds, and scales that do not fit together."""
    check(extraction, "extraction.")
    check_scales(extraction.scales, extraction.patch_size)


def patch_scale(frames: Frames, wanted: float | None) -> tuple[float, float | None]:
    """Pixels of a patch per pixel of a movie, and the size of the patch's pixels in micrometres.

    Raises:
        UserError: a size is wanted and the movie does not tell its own.
    """
    if wanted is None:
        return 1.0, frames.um_per_px
    if frames.um_per_px is None:
        raise UserError(
            f"{frames.path}: does not tell the size of a pixel, so it cannot be brought to "
            f"extraction.um_per_px={wanted}; give um_per_px (micrometres per pixel of the movie)"
        )
    scale = scale_between(frames.um_per_px, wanted)
    if scale > 1.01:
        warnings.warn(
            f"{frames.path.name} has {frames.um_per_px:g} um/px, coarser than extraction.um_per_px={wanted:g}: its "
            "frames are enlarged, and lack detail that the others have",
            stacklevel=2,
        )
    return scale, wanted


def one_size(sizes: dict[float | None, str]) -> None:
    """Refuses patches of several pixel sizes, um/px -> a movie that has it."""
    if len(sizes) > 1:
        said = ", ".join(
            f"{name} {'unknown' if um is None else f'{um:g}'}" for um, name in sizes.items()
        )
        raise UserError(
            f"movies of different um/px ({said}); expected one size of a pixel; give extraction.um_per_px to bring all "
            "to it, or um_per_px where the files are wrong"
        )


def _named(source: Path, classes: Sequence[str] | None) -> list[str]:
    if not classes:
        raise UserError(
            f"{source}: classes= is missing; name the values 1, 2, ... of its class maps in order, such as "
            "classes=[debris,dense]"
        )
    return checked_classes(classes)


# --- which places ---------------------------------------------------------------------------------------------------


def _look(
    movie: LabelledMovie,
    frames: Frames,
    scale: float,
    classes: list[str],
    extraction: ExtractionConfig,
    rng: np.random.Generator,
    opened: ExitStack,
) -> list[dict[str, Any]]:
    """All places of a movie that hold enough foreground, sure or not. Reads the maps only."""
    assert movie.classes is not None
    maps = opened.enter_context(_label_images(movie.classes))
    map_at = pair(frames, maps)
    colonies = movie.colonies and opened.enter_context(_label_images(movie.colonies))
    colonies_at = pair(frames, colonies) if colonies else []
    size = extraction.patch_size
    _check_size(frames, scale, extraction)
    weights = np.ones(len(classes), np.int64)
    if DEBRIS in classes:
        weights[classes.index(DEBRIS)] = extraction.debris_weight
    positions = frames.each(extraction.every)
    found: list[dict[str, Any]] = []

    def walk() -> Iterator[np.ndarray]:
        for step, position in enumerate(positions):
            whole = maps.raw(map_at[position])
            number = int(frames.numbers[position])
            low, high = int(whole.min()), int(whole.max())
            if low < 0 or high > len(classes):
                raise UserError(
                    f"{maps.path}: found class {high if low >= 0 else low} in frame {number}, expected 0 to "
                    f"{len(classes)} (background, {', '.join(classes)}); correct the map, or name all classes"
                )
            ids = None if colonies else label_colonies(whole > 0)
            class_map = resample_labels(whole, scale)
            here = _places(class_map, number, classes, weights, extraction, rng)
            if here:
                numbered = colonies.raw(colonies_at[position]) if colonies else ids
                assert numbered is not None
                numbered = resample_labels(numbered, scale)
                for patch in here:
                    patch["step"], patch["position"] = step, position
                    patch["colony"] = _colony(patch, class_map, numbered, classes, size)
                found.extend(here)
            yield np.empty((1, 1), bool) if ids is None else ids

    # Colonies are linked over time only where nobody has numbered them
    tracks = None if colonies else track(walk())
    if colonies:
        for _ in walk():
            pass
    _describe(found, movie, frames, tracks)
    return found


def _look_without(
    movie: LabelledMovie,
    frames: Frames,
    scale: float,
    extraction: ExtractionConfig,
    rng: np.random.Generator,
    colonies: ColoniesConfig | None,
) -> list[dict[str, Any]]:
    """All places of a movie without maps that hold enough of its colonies; all are sure, and of no class."""
    config = colonies or ColoniesConfig()
    classifier = classifier_of(config)
    _check_size(frames, scale, extraction)
    found: list[dict[str, Any]] = []

    def walk() -> Iterator[np.ndarray]:
        for step, position in enumerate(frames.each(extraction.every)):
            image = frames.read(position)
            ids = label_colonies(foreground(image, config, frames.um_per_px, classifier=classifier))
            number, here = int(frames.numbers[position]), resample_labels(ids, scale)
            inside = (here > 0).astype(np.uint8)
            for patch in _places(
                inside, number, [UNLABELLED], np.ones(1, np.int64), extraction, rng
            ):
                patch["step"], patch["position"] = step, position
                patch["colony"] = _colony(patch, inside, here, [UNLABELLED], extraction.patch_size)
                found.append(patch)
            yield ids

    _describe(found, movie, frames, track(walk()))
    return found


def _check_size(frames: Frames, scale: float, extraction: ExtractionConfig) -> None:
    """Refuses frames that are smaller than a patch."""
    shape, size = scaled_shape(frames.shape[1:], scale), extraction.patch_size
    if min(shape) < size:
        raise UserError(
            f"{frames.path}: frames are {shape[0]} x {shape[1]} px"
            f"{f' at {extraction.um_per_px:g} um/px' if scale != 1 else ''}, expected at least patch_size = {size}; "
            "lower extraction.patch_size"
        )


def _describe(
    found: list[dict[str, Any]], movie: LabelledMovie, frames: Frames, tracks: Tracks | None
) -> None:
    """Adds track, group, time and file to places; `tracks` where nobody has numbered the colonies over time."""
    for patch in found:
        colony, step = patch.pop("colony"), patch.pop("step")
        if tracks is not None and colony:
            colony = int(tracks.paint(np.array([[colony]]), step)[0, 0])
        patch["track"] = f"{movie.movie.name}/c{colony}" if colony else ""
        patch["group"] = movie.movie.name
        patch["time_h"] = frames.time(patch["position"])
        patch["source"] = movie.movie.path.name


def _label_images(movie: Movie) -> Frames:
    """Maps, opened: their values are no intensities."""
    maps = open_frames(movie, scaling=(0, 1), labels=True)
    if maps.dtype.kind not in "ui":
        maps.close()
        raise UserError(
            f"{movie.path}: found {maps.dtype}, expected a label image: gray, whole numbers, 0 where nothing is "
            "labelled; export the labels, not a picture of them"
        )
    return maps


def _places(
    class_map: np.ndarray,
    number: int,
    classes: list[str],
    weights: np.ndarray,
    extraction: ExtractionConfig,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Places of a frame with enough foreground: label, corner, whether it is sure."""
    size, found = extraction.patch_size, []
    if extraction.places == "grid":
        step = extraction.stride or size
        lines = [np.arange(0, side - size + 1, step) for side in class_map.shape]
        corners = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2)
    else:
        corners = rng.integers(0, np.array(class_map.shape) - size + 1, (TRIES, 2))
    counts = _counts(class_map, corners, size, len(classes))
    weighted = counts * weights
    total = weighted.sum(1)
    taken = np.empty((0, 2), np.int64)
    for i in np.flatnonzero(total >= extraction.foreground * size**2):
        if extraction.places == "random":
            gap = np.clip(size - np.abs(taken - corners[i]), 0, None)
            if (2 * gap.prod(1) > size**2).any():
                continue
            taken = np.concatenate([taken, corners[i : i + 1]])
        best = int(weighted[i].argmax())
        found.append(
            {
                "likely": classes[best],
                "share": float(weighted[i, best] / total[i]),
                "sure": weighted[i, best] >= extraction.purity * total[i],
                "frame": number,
                "corner": (int(corners[i, 0]), int(corners[i, 1])),
                "foreground": float(counts[i].sum() / size**2),
            }
        )
    return found


def _counts(class_map: np.ndarray, corners: np.ndarray, size: int, classes: int) -> np.ndarray:
    """(positions, classes) pixels of each class in each patch, from summed-area tables."""
    top, left = corners.T
    counts = np.empty((len(corners), classes), np.int64)
    for c in range(classes):
        table = np.zeros(np.array(class_map.shape) + 1, np.int64)
        table[1:, 1:] = (class_map == c + 1).cumsum(0).cumsum(1)
        counts[:, c] = (
            table[top + size, left + size]
            - table[top, left + size]
            - table[top + size, left]
            + table[top, left]
        )
    return counts


def _colony(
    patch: dict[str, Any], class_map: np.ndarray, ids: np.ndarray, classes: list[str], size: int
) -> int:
    """The colony that most of the patch's class lies in; 0: none, as for debris on bare ground."""
    top, left = patch["corner"]
    window = slice(top, top + size), slice(left, left + size)
    own = ids[window][class_map[window] == classes.index(patch["likely"]) + 1]
    return int(np.bincount(own).argmax())


def _cut(
    frames: Frames, scale: float, found: list[dict[str, Any]], extraction: ExtractionConfig
) -> list[np.ndarray]:
    """Pixels of places in the order of their frames, an array a frame."""
    parts = []
    for position in dict.fromkeys(p["position"] for p in found):
        corners = np.array([p["corner"] for p in found if p["position"] == position])
        image = resample(frames.read(position), scale)
        parts.append(ViewCutter(image, extraction.patch_size, extraction.scales).cut(*corners.T))
    return parts


def _row(patch: dict[str, Any], size: int, scale: float) -> dict[str, Any]:
    """A row of the manifest; its centre in px of the movie."""
    top, left = patch["corner"]
    return {
        "label": patch["likely"] if patch["sure"] else UNSURE,
        **{k: patch[k] for k in ("group", "track", "frame", "time_h", "source", "foreground")},
        "y": (top + size / 2) / scale,
        "x": (left + size / 2) / scale,
        "origin": "real",
        "likely": patch["likely"],
        "share": patch["share"],
    }
