"""Labelled patches from movies with class maps: a label image per frame, 0 where nothing is labelled.

Movies and maps are named by `find_movies`, or by the manifest.json that `simulate` writes beside its own.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.data.colonies import label_colonies, track
from stemcell_lit.data.crops import UNSURE
from stemcell_lit.data.frames import (
    MAPS,
    TIFF_SUFFIXES,
    Frames,
    bare_name,
    images_in,
    natural_key,
    open_frames,
    resample,
    resample_labels,
    scale_between,
    scaled_shape,
    stacks_in,
)
from stemcell_lit.data.patches import PatchStore, Views, checked_scales
from stemcell_lit.errors import UserError
from stemcell_lit.schema import ExtractionConfig

FORMAT = 1  # of the movies' manifest.json
TRIES = 400  # random positions a frame; far more than patches fit in, so the frame is covered
BLOCKS = 10  # columns of a frame on one side of a split; a field of view has no better groups
DEBRIS = "debris"


@dataclass(frozen=True)
class LabelledMovie:
    """A movie and its maps.

    Attributes:
        name: its group.
        frames: what `open_frames` reads.
        classes: the same, label images of 0 and the classes from 1 in order.
        colonies: the same, numbers of colonies over time from 1; None: found in the class maps.
        um_per_px, hours_per_frame: None: what the file says.
    """

    name: str
    frames: Path
    classes: Path
    colonies: Path | None = None
    um_per_px: float | None = None
    hours_per_frame: float | None = None


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
) -> PatchStore:
    """Cuts patches at random places or on a grid and labels them by the class map.

    A place is looked at if at least `foreground` of the patch is labelled. Its label is the class that holds the
    largest share of these pixels, if that share is at least `purity`; otherwise the patch is unsure: left out, counted,
    and named in `unsure.parquet`. In both shares a pixel of a class called debris counts `debris_weight` times: debris
    bodies are small, but their halo outshines what lies around them. With 4 and foreground 0.5 a patch on bare ground
    is debris from an eighth of its area on, on a colony (purity 0.7) from 37 %, and up to 9 % of debris leave a cell
    patch its label. Random places of a frame never share more than half a patch. Of all that are sure
    `patches_per_movie` are drawn, so the classes stay as imbalanced as the frames show them.

    A movie is a group of the split. A single one may have blocks of columns instead; what lies in two is left out.

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

    Returns:
        The store. `made_by` in its info holds the settings, the movies and how many places were unsure.

    Raises:
        UserError: a setting is out of range, or movies and maps do not fit together.
    """
    source = Path(source)
    check_extraction(extraction)
    about: dict[str, Any] = {"origin": "real"}
    if (source / "manifest.json").is_file():
        names, movies, about = _simulated(source)
        if classes is not None and list(classes) != names:
            raise UserError(
                f"classes={list(classes)}: {source / 'manifest.json'} names {names}; leave classes out"
            )
    else:
        movies = find_movies(source, table, um_per_px, hours_per_frame)
        names = _named(source, classes)

    pixels: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []
    sizes: dict[float | None, str] = {}
    straddling = 0
    for number, movie in enumerate(movies):
        rng = np.random.default_rng([extraction.seed, number])
        with ExitStack() as opened:
            frames = opened.enter_context(
                open_frames(
                    movie.frames,
                    um_per_px=movie.um_per_px,
                    hours_per_frame=movie.hours_per_frame,
                )
            )
            scale, um = patch_scale(frames, extraction.um_per_px)
            sizes.setdefault(um, movie.frames.name)
            found = _look(movie, frames, scale, names, extraction, rng, opened)
            if blocks is not None and len(movies) == 1:
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
    if not rows:
        raise UserError(
            f"{source}: no patch of {extraction.patch_size} px has foreground >= {extraction.foreground} and purity >= "
            f"{extraction.purity} ({len(left_out)} were unsure"
            f"{f', {straddling} lay in two of blocks={blocks}' * (straddling > 0)}), expected at least one; lower "
            "one of these"
        )
    if blocks is not None and len(movies) == 1:
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
        made_by={
            "command": "extract",
            **about,
            **asdict(extraction),
            "movies": described,
            "split_by": "movie"
            if blocks is None or len(movies) > 1
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
    """Refuses settings out of range."""
    e = extraction
    for key, value, good, expected in (
        ("patch_size", e.patch_size, e.patch_size >= 8, "at least 8 px"),
        (
            "patches_per_movie",
            e.patches_per_movie,
            e.patches_per_movie is None or e.patches_per_movie >= 1,
            "at least 1, or null for all",
        ),
        ("purity", e.purity, 0 <= e.purity <= 1, "a share from 0 to 1"),
        ("foreground", e.foreground, 0 < e.foreground <= 1, "a share above 0, to 1"),
        ("seed", e.seed, e.seed >= 0, "0 or more"),
        ("places", e.places, e.places in ("random", "grid"), "random or grid"),
        ("stride", e.stride, e.stride is None or e.stride >= 1, "at least 1 px, or null"),
        ("every", e.every, e.every >= 1, "at least 1 frame"),
        ("debris_weight", e.debris_weight, e.debris_weight >= 1, "at least 1"),
        (
            "um_per_px",
            e.um_per_px,
            e.um_per_px is None or (math.isfinite(e.um_per_px) and e.um_per_px > 0),
            "a positive number, or null for the movies' own",
        ),
    ):
        if not good:
            raise UserError(f"extraction.{key}: found {value}, expected {expected}; change it")
    checked_scales(e.scales, e.patch_size)


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


# --- which movies ---------------------------------------------------------------------------------


def find_movies(
    source: Path,
    table: Path | None = None,
    um_per_px: float | None = None,
    hours_per_frame: float | None = None,
) -> list[LabelledMovie]:
    """Movies with their class maps, by name.

    A movie `NAME.tif`, or a folder `NAME` of frames, has its maps in `NAME_classes.tif` or a folder `NAME_classes`
    beside it; where a table is given, in it: it is the maps of the one movie, or a folder that holds `NAME_classes` or
    `NAME` for each movie. `NAME_colonies` beside the movie numbers its colonies, if it is there. In a folder of movies
    those without maps are left out, with a notice.

    Args:
        source: a movie, or a folder of them.
        table: see above.
        um_per_px: of the movies; None: what they say.
        hours_per_frame: the same.

    Raises:
        UserError: there are no movies with maps.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; expected a movie or a folder of movies")
    if table is not None and not Path(table).exists():
        raise UserError(f"{table}: no such file or folder; expected class maps, or a CSV")
    paths = movies_in(source)
    found, bare = [], []
    for path in paths:
        places = [path.parent]
        if table is not None and Path(table).is_dir():
            places.insert(0, Path(table))
        maps = _beside(path, "_classes", places)
        if table is not None:
            same = None if places[0] == path.parent else _beside(path, "", places[:1])
            maps = (maps if maps and maps.parent == places[0] else None) or same
            if maps is None and len(paths) == 1:
                maps = Path(table)
        if maps is None:
            bare.append(path)
            continue
        colonies = _beside(path, "_colonies", [path.parent])
        found.append(
            LabelledMovie(bare_name(path), path, maps, colonies, um_per_px, hours_per_frame)
        )
    if not found:
        name = bare_name(paths[0]) if paths else "NAME"
        raise UserError(
            f"{source}: found no class maps; expected {name}_classes.tif (or a folder {name}_classes) beside "
            f"{paths[0].name if paths else 'each movie'}, or table= naming them"
        )
    if bare:
        warnings.warn(
            f"{len(bare)} of {len(paths)} movies have no class maps and are left out, such as {bare[0].name}",
            stacklevel=2,
        )
    return found


def movies_in(source: Path) -> list[Path]:
    """The movies of a source: itself, its TIFF stacks, or its sub-folders of frames that have maps beside them."""
    if not source.is_dir():
        return [source]
    if stacks := stacks_in(source):
        return stacks
    if images := [f for f in images_in(source) if not bare_name(f).endswith(MAPS)]:
        labelled = any(_beside(f, "_classes", [source]) for f in images)
        return (
            images if labelled else [source]
        )  # single images with maps, or the frames of one movie
    folders = sorted(
        (f for f in source.iterdir() if f.is_dir() and not f.name.endswith(MAPS)),
        key=lambda f: natural_key(f.name),
    )
    return [f for f in folders if not f.name.startswith(".") and images_in(f)]


def _beside(path: Path, ending: str, places: list[Path]) -> Path | None:
    """The first NAME + ending that is there: a folder, or a TIFF under any of its suffixes."""
    name = bare_name(path) + ending
    for place in places:
        if (place / name).is_dir() and (place / name) != path:
            return place / name
        for suffix in (*TIFF_SUFFIXES, *(f".ome{s}" for s in TIFF_SUFFIXES)):
            if (place / f"{name}{suffix}").is_file() and (place / f"{name}{suffix}") != path:
                return place / f"{name}{suffix}"
    return None


def has_maps(source: Path) -> bool:
    """Whether class maps lie beside a movie or the movies of a folder."""
    if (source / "manifest.json").is_file():
        return True
    if not source.exists():
        return False
    return any(_beside(path, "_classes", [path.parent]) for path in movies_in(source))


def _named(source: Path, classes: Sequence[str] | None) -> list[str]:
    if not classes:
        raise UserError(
            f"{source}: classes= is missing; name the values 1, 2, ... of its class maps in order, such as "
            "classes=[debris,dense]"
        )
    names = [str(name) for name in classes]
    if len(set(names)) != len(names) or UNSURE in names:
        raise UserError(f"classes={names}: expected each class once, and none called {UNSURE}")
    return names


def _simulated(source: Path) -> tuple[list[str], list[LabelledMovie], dict[str, Any]]:
    """Classes, movies and origin from a manifest, with every entry that is used checked."""
    file = source / "manifest.json"
    again = "make the folder again with `stemcell-lit simulate`"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: found no readable JSON ({error}); {again}") from error
    found_format = manifest.get("format") if isinstance(manifest, dict) else None
    if found_format != FORMAT:
        raise UserError(f"{file}: found format {found_format}, expected {FORMAT}; {again}")
    classes, movies = manifest.get("classes"), manifest.get("movies")
    if not (isinstance(classes, list) and classes and all(isinstance(c, str) for c in classes)):
        raise UserError(f"{file}: found classes {classes}, expected a list of names; {again}")
    for key in ("um_per_px", "hours_per_frame"):
        value = manifest.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{file}: found {key} {value}, expected a number above 0; {again}")
    if not isinstance(movies, list) or not movies:
        raise UserError(f"{file}: found no movies, expected a list of them; {again}")
    found = []
    for number, movie in enumerate(movies):
        for key in ("name", "frames", "classes"):
            if not isinstance(movie, dict) or not isinstance(movie.get(key), str):
                raise UserError(f"{file}: movie {number} has no {key}, expected text; {again}")
        paths = {
            key: _inside(source, file, str(movie[key]))
            for key in ("frames", "classes", "colonies")
            if movie.get(key) is not None
        }
        found.append(
            LabelledMovie(
                movie["name"],
                paths["frames"],
                paths["classes"],
                paths.get("colonies"),
                manifest["um_per_px"],
                manifest["hours_per_frame"],
            )
        )
    names = [movie.name for movie in found]
    if len(set(names)) != len(names):
        raise UserError(f"{file}: a movie's name occurs twice in {names}; name each differently")
    about = {"origin": manifest.get("origin", "unknown"), "simulation": manifest.get("config")}
    return classes, found, about


def _inside(source: Path, file: Path, name: str) -> Path:
    """Refuses a name that leads out of the source folder: manifests come from elsewhere."""
    rooted = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if rooted or not (source / name).resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"{file}: found the file name {name!r}, expected one inside {source}; correct the manifest"
        )
    return source / name


# --- which places ---------------------------------------------------------------------------------


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
    maps = opened.enter_context(_label_images(movie.classes, frames))
    colonies = movie.colonies and opened.enter_context(_label_images(movie.colonies, frames))
    size = extraction.patch_size
    shape = scaled_shape(frames.shape[1:], scale)
    if min(shape) < size:
        raise UserError(
            f"{frames.path}: frames are {shape[0]} x {shape[1]} px"
            f"{f' at {extraction.um_per_px:g} um/px' if scale != 1 else ''}, expected at least patch_size = {size}; "
            "lower extraction.patch_size"
        )
    weights = np.ones(len(classes), np.int64)
    if DEBRIS in classes:
        weights[classes.index(DEBRIS)] = extraction.debris_weight
    numbers = range(0, len(frames), extraction.every)
    found: list[dict[str, Any]] = []

    def walk() -> Iterator[np.ndarray]:
        for step, number in enumerate(numbers):
            whole = maps.raw(number)
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
                numbered = colonies.raw(number) if colonies else ids
                assert numbered is not None
                numbered = resample_labels(numbered, scale)
                for patch in here:
                    patch["step"] = step
                    patch["colony"] = _colony(patch, class_map, numbered, classes, size)
                found.extend(here)
            yield np.empty((1, 1), bool) if ids is None else ids

    # Colonies are linked over time only where nobody has numbered them
    tracks = None if colonies else track(walk())
    if colonies:
        for _ in walk():
            pass
    hours = frames.hours_per_frame
    for patch in found:
        colony, step = patch.pop("colony"), patch.pop("step")
        if tracks is not None and colony:
            colony = int(tracks.paint(np.array([[colony]]), step)[0, 0])
        patch["track"] = f"{movie.name}/c{colony}" if colony else ""
        patch["group"] = movie.name
        patch["time_h"] = math.nan if hours is None else patch["frame"] * hours
        patch["source"] = movie.frames.name
    return found


def _label_images(path: Path, frames: Frames) -> Frames:
    """Maps that fit a movie, opened."""
    maps = open_frames(path, scaling=(0, 1))  # their values are no intensities
    if maps.dtype.kind not in "ui" or "colour images were turned to gray (luma)" in maps.notices:
        maps.close()
        raise UserError(
            f"{path}: found {'colours' if maps.dtype.kind in 'ui' else maps.dtype}, expected a label image: gray, "
            "whole numbers, 0 where nothing is labelled; export the labels, not a picture of them"
        )
    if maps.shape != frames.shape:
        maps.close()
        raise UserError(
            f"{path}: found {maps.shape} (frames, height, width), expected {frames.shape} as {frames.path.name} has; "
            "make the map again, 0 where nothing is labelled"
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
    for number in dict.fromkeys(p["frame"] for p in found):
        corners = np.array([p["corner"] for p in found if p["frame"] == number])
        image = resample(frames.read(number), scale)
        parts.append(Views(image, extraction.patch_size, extraction.scales).cut(*corners.T))
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
