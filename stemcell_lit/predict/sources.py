"""Which movies `predict` is asked to map, and what each is called in its results."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from glob import glob, has_magic
from pathlib import Path

from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import Header, Movie, headers_at
from stemcell_lit.movies.suffixes import IMAGE_SUFFIXES, TIFF_SUFFIXES, bare_name, natural_key
from stemcell_lit.patches.labelled import is_map, places_of
from stemcell_lit.settings.command_keys import PredictCommand

_SIGNS = re.compile(r"[/\\:\x00-\x1f\x7f]|^\.")  # make no name of a folder everywhere

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Source:
    """A movie to map.

    Attributes:
        movie: what `open_frames` reads.
        name: of its folder in the results.
        header: what is known of it before it is read.
    """

    movie: Movie
    name: str
    header: Header


@dataclass
class Sources:
    """What `movie=` means.

    Attributes:
        found: movies, in natural order.
        several: whether each gets a folder of its own: so it is for a folder of movies and for a pattern, also where
            only one is there.
        unread: path -> why it cannot be read.
        notices: what else the user should know, one sentence each.
    """

    found: list[Source]
    several: bool
    unread: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def sources_of(config: PredictCommand, reserved: Sequence[str] = ()) -> Sources:
    """The movies of a setting, each with its header; no pixel is read.

    Args:
        config: its `movie` is a file, a folder of frames or of movies, or a pattern; one that is there under exactly
            this name is no pattern.
        reserved: names of files beside the movies' folders, which no movie may have.

    Raises:
        UserError: there is no movie, none can be read, or two would have the same name.
    """
    places, several, notices = _places(config.movie, Path(config.out))
    movies: list[tuple[Movie, Header]] = []
    unread: dict[str, str] = {}
    for name, path in places:
        try:
            movies += _positions(name, path, config)
        except UserError as error:
            if not several:
                raise
            unread[str(path)] = str(error)
    if not movies:
        first = next(iter(unread.values()), "there is no movie")
        raise UserError(f"{config.movie}: none of its {len(unread)} movies can be read; {first}")
    several = several or len(movies) > 1
    names = _names([m for m, _ in movies], reserved) if several else [movies[0][0].name]
    found = [Source(m, n, h) for (m, h), n in zip(movies, names, strict=True)]
    return Sources(found, several, unread, notices)


def told(movie: Movie) -> str:
    """A movie as a user knows it: its path, and which of its stage positions."""
    return str(movie.path) + ("" if movie.position is None else f", position {movie.position}")


def _places(given: str, out: Path) -> tuple[list[tuple[str, Path]], bool, list[str]]:
    """(name, path) of movies, whether they are several, and notices."""
    source = Path(given)
    if os.path.lexists(source) or not has_magic(given):
        if not source.is_dir():
            return [(bare_name(source), source)], False, []
        places = _without(places_of(source), out)
        alone = [path for _, path in places] == [source]
        return places, not alone, []
    matched = sorted(glob(os.path.expanduser(given), recursive=True), key=natural_key)  # noqa: PTH111, PTH207 - `**`
    paths = [Path(p) for p in matched if not is_map(Path(p))]
    known = [p for p in paths if p.is_dir() or p.suffix.lower() in TIFF_SUFFIXES + IMAGE_SUFFIXES]
    other = [p for p in paths if p not in known]
    places = _without([place for path in known for place in places_of(path)], out)
    places = list({path: (name, path) for name, path in places}.values())
    if not places:
        raise UserError(
            f"{given}: no movie fits this pattern; expected TIFF stacks or folders of images; put the pattern in "
            "quotes, such as movie='movies/*.tif'"
        )
    said = []
    if other:
        names = ", ".join(p.name for p in other[:_SHOWN])
        said.append(f"{len(other)} files that are no pictures are left out ({names})")
    return places, True, said


def _without(places: list[tuple[str, Path]], out: Path) -> list[tuple[str, Path]]:
    """Movies that are not results of an earlier run in the same place."""
    own = out.resolve()
    return [
        (name, path)
        for name, path in places
        if own not in (path.resolve(), *path.resolve().parents)
    ]


def _positions(name: str, path: Path, config: PredictCommand) -> list[tuple[Movie, Header]]:
    """A movie for each stage position of a file or folder."""
    found = headers_at(path, channel=config.channel, plane=config.plane, position=config.position)
    if len(found) == 1:
        return [(replace(found[0][0], name=name), found[0][1])]
    return [(replace(m, name=f"{name}_{m.position}"), header) for m, header in found]


def _names(movies: Sequence[Movie], reserved: Sequence[str]) -> list[str]:
    """A name for the folder of each movie, as short as tells them apart.

    Raises:
        UserError: two movies cannot be told apart, or one is called as a table beside the folders.
    """
    ways = (
        lambda m: m.name,
        lambda m: m.path.name + ("" if m.position is None else f"_{m.position}"),
        lambda m: f"{m.path.parent.name}_{m.name}",
        lambda m: "_".join(m.path.parts[-3:]) + ("" if m.position is None else f"_{m.position}"),
    )
    level = [0] * len(movies)
    taken = {_folded(name) for name in reserved}
    while True:
        names = [_SIGNS.sub("_", ways[k](m)) for k, m in zip(level, movies, strict=True)]
        same: dict[str, list[int]] = defaultdict(list)
        for i, name in enumerate(names):
            same[_folded(name)].append(i)
        again = [i for key, rows in same.items() if len(rows) > 1 or key in taken for i in rows]
        if not again:
            return names
        for i in again:
            level[i] += 1
            if level[i] == len(ways):
                key = _folded(names[i])
                both = " and ".join(told(movies[k]) for k in same[key][:2])
                raise UserError(
                    f"{both}: would be written to one folder {names[i]}; rename one of them, or map them one by one"
                )


def _folded(name: str) -> str:
    """What a file system that knows no capitals takes a name for."""
    return unicodedata.normalize("NFC", name).casefold()
