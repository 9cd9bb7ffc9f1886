"""Which movies a source holds, and the class maps that belong to them.

Movies and maps are named by `find_movies`, or by the manifest.json that `simulate` writes beside its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from stemcell_lit.base import formats as form
from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import Movie, movies_at
from stemcell_lit.movies.suffixes import (
    IMAGE_SUFFIXES,
    MAPS,
    TIFF_SUFFIXES,
    VENDOR_SUFFIXES,
    bare_name,
    images_in,
    natural_key,
)
from stemcell_lit.movies.tiff import TiffReader

FORMAT = 1  # of the movies' manifest.json
DEEPEST = 3  # folders between a source and its movies


@dataclass(frozen=True)
class Select:
    """Which of several channels, planes and stage positions is meant; None: there is one, or all positions."""

    channel: str | None = None
    plane: int | None = None
    position: str | None = None


@dataclass(frozen=True)
class LabelledMovie:
    """A movie and its maps."""

    movie: Movie  # what `open_frames` reads; its name is its group
    # the same, label images of 0 and the classes from 1 in order; None: nothing is labelled
    classes: Movie | None
    # the same, numbers of colonies over time from 1; None: found in the class maps
    colonies: Movie | None = None
    um_per_px: float | None = None  # None: what the file says
    hours_per_frame: float | None = None  # None: what the file says


def find_movies(
    source: Path,
    table: Path | None = None,
    um_per_px: float | None = None,
    hours_per_frame: float | None = None,
    select: Select | None = None,
    unlabelled: Sequence[str] = (),
) -> list[LabelledMovie]:
    """Movies with their class maps, by name, and those named in `unlabelled`, which have none.

    A movie `NAME.tif`, or a folder `NAME` of frames, has its maps in `NAME_classes.tif` or a folder `NAME_classes`
    beside it; where a table is given, in it: it is the maps of the one movie, or a folder that holds `NAME_classes` or
    `NAME` for each movie. `NAME_colonies` beside the movie numbers its colonies, if it is there. Movies may lie in
    folders of their own. Others without maps are left out, with a notice.

    Raises:
        UserError: there are no movies with maps; a name in `unlabelled` that no movie without maps has.
    """
    source, select = Path(source), select or Select()
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; expected a movie or a folder of movies")
    if table is not None and not Path(table).exists():
        raise UserError(f"{table}: no such file or folder; expected class maps, or a CSV")
    places = places_of(source)
    found, bare, without = [], [], list[str]()
    listing: Listing = {}
    for name, path in places:
        folders = [path.parent]
        if table is not None and Path(table).is_dir():
            folders.insert(0, Path(table))
        maps = _beside(path, "_classes", folders, listing)
        if table is not None:
            same = None if folders[0] == path.parent else _beside(path, "", folders[:1], listing)
            maps = (maps if maps and maps.parent == folders[0] else None) or same
            if maps is None and len(places) == 1:
                maps = Path(table)
        if maps is None:
            movies = _expand(name, path, select)
            without += [m.name for m in movies]
            wanted = [m for m in movies if m.name in unlabelled or name in unlabelled]
            found += [LabelledMovie(m, None, None, um_per_px, hours_per_frame) for m in wanted]
            bare += [path] * (not wanted)
            continue
        colonies = _beside(path, "_colonies", [path.parent], listing)
        for movie in _expand(name, path, select):
            found.append(
                LabelledMovie(
                    movie,
                    _map_of(movie, maps),
                    None if colonies is None else _map_of(movie, colonies),
                    um_per_px,
                    hours_per_frame,
                )
            )
    if not any(movie.classes for movie in found):
        name = bare_name(places[0][1]) if places else "NAME"
        raise UserError(
            f"{source}: found no class maps; expected {name}_classes.tif (or a folder {name}_classes) beside "
            f"{places[0][1].name if places else 'each movie'}, or table= naming them"
        )
    absent = [name for name in unlabelled if name not in without]
    if absent:
        raise UserError(
            f"{source}: unlabelled={list(unlabelled)}: {absent[0]!r} is no movie without class maps; these are "
            f"{', '.join(without[:12]) or 'none'}"
        )
    if bare:
        warnings.warn(
            f"{len(bare)} of {len(places)} movies have no class maps and are left out, such as {bare[0].name}; "
            f"unlabelled=[{bare_name(bare[0])}] takes patches of it without a label",
            stacklevel=2,
        )
    return found


def movies_in(source: Path, select: Select | None = None) -> list[Movie]:
    """The movies of a source: itself, or those in its folders; each stage position is one."""
    select = select or Select()
    return [m for name, path in places_of(Path(source)) for m in _expand(name, path, select)]


def stacks_in(folder: Path) -> list[Path]:
    """The movies in a folder: stacks, without the maps beside them, and makers' files; none if a TIFF is a frame."""
    makers = sorted(
        (
            f
            for f in folder.iterdir()
            if f.suffix.lower() in VENDOR_SUFFIXES and not f.name.startswith(".") and f.is_file()
        ),
        key=lambda f: natural_key(f.name),
    )
    pictures = [f for f in images_in(folder) if not is_map(f)]
    files = [f for f in pictures if f.suffix.lower() in TIFF_SUFFIXES]
    if not files:
        return [] if pictures else makers  # pictures are the frames of one movie
    for file in files:
        try:
            reader = TiffReader(file, first=True)
        except UserError as error:
            # several channels or planes: a stack, too
            if "expected one channel and one plane over time" in str(error):
                return files + makers
            continue  # told when it is opened; what the others are does not hang on it
        reader.close()
        return files + makers if reader.shape[0] > 1 or len(reader.positions) > 1 else []
    return []


def is_map(path: Path) -> bool:
    """Whether a file or folder is named as maps of the movie beside it are."""
    return bare_name(path).casefold().endswith(MAPS)


def has_maps(source: Path) -> bool:
    """Whether class maps lie beside a movie or the movies of a folder."""
    if (source / "manifest.json").is_file():
        return True
    listing: Listing = {}
    return any(_beside(path, "_classes", [path.parent], listing) for _, path in places_of(source))


def places_of(source: Path) -> list[tuple[str, Path]]:
    """(name, file or folder of frames) of the movies of a source, without opening more than one file a folder."""
    if not source.is_dir():
        return [(bare_name(source), source)]
    return _walk(source, "", DEEPEST) or [(bare_name(source), source)]


def _walk(folder: Path, prefix: str, depth: int) -> list[tuple[str, Path]]:
    if stacks := stacks_in(folder):
        return [(prefix + bare_name(f), f) for f in stacks]
    if images := [f for f in images_in(folder) if not is_map(f)]:
        listing: Listing = {}
        if any(_beside(f, "_classes", [folder], listing) for f in images):
            return [(prefix + bare_name(f), f) for f in images]  # single images with maps
        return [(prefix.removesuffix("/") or folder.name, folder)]  # the frames of one movie
    if not depth:
        return []
    inner = sorted(
        (
            f
            for f in folder.iterdir()
            if f.is_dir() and not is_map(f) and not f.name.startswith(".")
        ),
        key=lambda f: natural_key(f.name),
    )
    return [found for f in inner for found in _walk(f, f"{prefix}{f.name}/", depth - 1)]


def _expand(name: str, path: Path, select: Select) -> list[Movie]:
    """One movie a stage position, under the name of its place."""
    found = movies_at(path, channel=select.channel, plane=select.plane, position=select.position)
    if len(found) == 1:
        return [Movie(path, name, found[0].position)]
    return [Movie(path, f"{name}_{m.position}", m.position) for m in found]


def _map_of(movie: Movie, maps: Path) -> Movie:
    """The maps of a movie: those of its position, where they tell positions apart."""
    positions = [m.position for m in movies_at(maps, labels=True)]
    if len(positions) == 1:
        if movie.position is not None and movie.name.endswith(f"_{movie.position}"):
            raise UserError(
                f"{maps}: found maps of one movie, and {movie.path.name} holds several positions; expected maps of "
                f"each position; give position={movie.position} if they belong to that one"
            )
        return Movie(maps, bare_name(maps))
    return Movie(maps, bare_name(maps), movie.position)


Listing = dict[Path, dict[str, list[Path]]]  # folder -> casefolded name -> what is called so


def _beside(path: Path, ending: str, places: list[Path], listing: Listing) -> Path | None:
    """The first NAME + ending that is there: a folder, or a picture under any of its suffixes, in any case."""
    name = (bare_name(path) + ending).casefold()
    suffixes = ("", *TIFF_SUFFIXES, *(f".ome{s}" for s in TIFF_SUFFIXES), *IMAGE_SUFFIXES)
    for place in places:
        if place not in listing:
            listing[place] = {}
            for f in sorted(place.iterdir()):
                listing[place].setdefault(f.name.casefold(), []).append(f)
        found = [
            f
            for suffix in suffixes
            for f in listing[place].get(name + suffix, [])
            if f != path and (f.is_file() if suffix else f.is_dir())
        ]
        if len(found) > 1:
            raise UserError(
                f"{place}: found {' and '.join(f.name for f in found)}, expected one of them for {path.name}; move the "
                "others elsewhere"
            )
        if found:
            return found[0]
    return None


_SIMULATED = form.versioned(
    FORMAT,
    form.record(
        {
            "classes": form.CLASSES,
            "um_per_px": form.number(0, above=True),
            "hours_per_frame": form.number(0, above=True),
            "movies": form.listing(
                form.record(
                    {"name": form.text(), "frames": form.text(), "classes": form.text()},
                    {"colonies": form.maybe(form.text())},
                ),
                least=1,
            ),
        },
        {"origin": form.text()},
    ),
)


def simulated(source: Path) -> tuple[list[str], list[LabelledMovie], dict[str, Any]]:
    """Classes, movies and origin from a manifest, with every entry that is used checked."""
    file = source / "manifest.json"
    again = "make the folder again with `stemcell-lit simulate`"
    manifest = form.read_json(file, _SIMULATED, again)
    classes, found = manifest["classes"], []
    for movie in manifest["movies"]:
        paths = {
            key: _inside(source, file, str(movie[key]))
            for key in ("frames", "classes", "colonies")
            if movie.get(key) is not None
        }
        found.append(
            LabelledMovie(
                Movie(paths["frames"], movie["name"]),
                Movie(paths["classes"], "classes"),
                Movie(paths["colonies"], "colonies") if "colonies" in paths else None,
                manifest["um_per_px"],
                manifest["hours_per_frame"],
            )
        )
    names = [found_movie.movie.name for found_movie in found]
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
