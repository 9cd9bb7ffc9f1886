"""`predict`: class maps of one movie or of many, by a trained hierarchy."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemcell_lit.base.files import check_files, check_target, write_whole
from stemcell_lit.base.progress import Progress
from stemcell_lit.base.terminal import printable
from stemcell_lit.classify.model_folder import find_model
from stemcell_lit.errors import JobsFailed, UserError
from stemcell_lit.predict.finished import (
    FORMAT,
    RECORD,
    check_out,
    check_several,
    is_done,
    made_with,
    source_of,
)
from stemcell_lit.predict.sources import Source, Sources, sources_of, told
from stemcell_lit.settings.command_keys import PredictCommand
from stemcell_lit.settings.field_types import check

if TYPE_CHECKING:
    from stemcell_lit.classify.trained import TrainedHierarchy

MOVIES = "movies.csv"

JOINED = ("shares.csv", "classes.csv", "colonies.csv")  # of all movies, as of each

TABLES = (RECORD, MOVIES, *JOINED)  # beside the folders of many movies


def predict(config: PredictCommand) -> Path:
    """Maps the classes of movies and returns the folder of the outputs; what is done already is not done again.

    Of one movie the folder is whole or absent. Of many, each has a folder of its own in it, whole or absent, and the
    tables over all stand beside them; a movie that cannot be read is named, and the others are mapped.

    Raises:
        UserError: no movie can be used, or the model or a setting cannot.
        JobsFailed: some movies could not be mapped, each named; the others are.
    """
    check(config)
    check_out(Path(config.out), [config.movie, config.checkpoint])
    model_folder = find_model(config.checkpoint)
    # what follows may take seconds
    _say(f"looking at {config.movie}; model {model_folder}")
    run = _prepare(config, model_folder)
    if run.left:
        _map_left(run)
    if run.several:
        _write_tables(run)
    if run.failed:
        total = len(run.sources.found) + len(run.sources.unread)
        raise JobsFailed(
            f"{len(run.failed)} of {total} movies were not mapped: {', '.join(run.failed)}"
        )
    return run.out


@dataclass
class _Run:
    """What is to be done.

    Attributes:
        made_with: what determines the results, see `finished.made_with`.
        left: movies to map.
        failed: movie -> why it cannot be mapped.
    """

    config: PredictCommand
    model: Path
    sources: Sources
    made_with: dict[str, Any]
    left: list[Source]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def several(self) -> bool:
        return self.sources.several

    def folder(self, source: Source) -> Path:
        """Of a movie's results."""
        return self.out / source.name if self.several else self.out

    def fail(self, movie: str, why: str) -> None:
        """Notes and says that a movie is not mapped."""
        self.failed[movie] = why
        print(f"not mapped: {printable(why)}", file=sys.stderr, flush=True)


def _prepare(config: PredictCommand, model: Path) -> _Run:
    """Everything that can be told without the model's networks, and said."""
    out = Path(config.out)
    sources = sources_of(config, reserved=TABLES)
    now = made_with(config, model)
    run = _Run(config, model, sources, now, [])
    if sources.several:
        check_several(out, now)
        check_files(out, TABLES)
        for path in (*(source.movie.path for source in sources.found), model):
            if out.resolve() in (path.resolve(), *path.resolve().parents):
                raise UserError(f"{out}: is or contains {path}, which is read; give another folder")
    for source in sources.found:
        folder = run.folder(source)
        check_target(folder, "prediction", inputs=[source.movie.path, model])
        if not is_done(folder, now, source_of(source.movie)):
            run.left.append(source)
    frames = sum(source.header.each(config.every) for source in run.left)
    done = len(sources.found) - len(run.left)
    what = f"{len(sources.found)} movies" if sources.several else told(sources.found[0].movie)
    already = f"{done} of them done already, " if done else ""
    _say(f"{what}: {already}{frames:,} frames to map")
    for notice in sources.notices:
        warnings.warn(notice, stacklevel=3)
    for unread, why in sources.unread.items():
        run.fail(unread, why)
    return run


def _say(what: str) -> None:
    print(f"predict: {printable(what)}", file=sys.stderr, flush=True)


def _map_left(run: _Run) -> None:
    """Maps what is left, movie after movie."""
    # these import torch, which takes seconds
    from stemcell_lit.classify.trained import TrainedHierarchy
    from stemcell_lit.predict.device import chosen_device, computing, move
    from stemcell_lit.predict.mapping import map_movie

    config = run.config
    device = chosen_device(config.device)
    model = TrainedHierarchy.load(run.model, config.allow_module)
    move(model.stages.values(), device)
    _check_pixel_sizes(run, model)
    if run.several:
        _begin(run)
    work = _Work(run.left, config.every)
    with computing(device, config.threads):
        for source in run.left:
            facts = {"made_with": run.made_with, "source": source_of(source.movie)}
            try:
                map_movie(config, model, source, run.folder(source), facts, work.counter(source))
            except UserError as error:
                if not run.several:
                    raise
                run.fail(told(source.movie), str(error))
            work.end(source)
    work.progress.end()


def _check_pixel_sizes(run: _Run, model: TrainedHierarchy) -> None:
    """Leaves out movies whose pixel size nobody tells.

    Raises:
        UserError: so it is with every movie.
    """
    from stemcell_lit.predict.mapping import check_pixel_size

    wrong: dict[str, UserError] = {}
    for source in run.left:
        try:
            check_pixel_size(model, source, run.config.um_per_px)
        except UserError as error:
            wrong[told(source.movie)] = error
    if len(wrong) == len(run.sources.found):
        raise next(iter(wrong.values()))
    for movie, why in wrong.items():
        run.fail(movie, str(why))
    run.left = [source for source in run.left if told(source.movie) not in wrong]


def _begin(run: _Run) -> None:
    """Notes in the folder what it is made with, so that the same command goes on in it."""
    about = {
        "format": FORMAT,
        "movies": True,
        "made_with": run.made_with,
        "checkpoint": run.config.checkpoint,
        "model": str(run.model),
    }
    write_whole(run.out / RECORD, json.dumps(about, indent=1) + "\n")


class _Work:
    """How far all movies are; frames count by their pixels for the time that is left.

    Args:
        sources: to be mapped.
        every: each n-th frame is.
    """

    def __init__(self, sources: list[Source], every: int):
        self.every = every
        self.frames = sum(s.header.each(every) for s in sources)
        self.pixels = sum(self._pixels(s) for s in sources)
        self.before, self.pixels_before = 0, 0.0
        self.progress = Progress(self.frames)

    def _pixels(self, source: Source) -> float:
        _, height, width = source.header.shape
        return float(source.header.each(self.every) * height * width)

    def counter(self, source: Source) -> Callable[[int], None]:
        """To be called with the number of frames of a movie that are done."""
        each, pixels = source.header.each(self.every), self._pixels(source)

        def done(frames: int) -> None:
            share = (self.pixels_before + pixels * frames / each) / self.pixels
            self.progress.show(self.before + frames, share)

        return done

    def end(self, source: Source) -> None:
        """A movie is done, or given up."""
        self.before += source.header.each(self.every)
        self.pixels_before += self._pixels(source)


def _write_tables(run: _Run) -> None:
    """The tables over all movies that are mapped."""
    from stemcell_lit.predict.tables import joined, overview

    folders = {
        source.name: run.folder(source)
        for source in run.sources.found
        if told(source.movie) not in run.failed
    }
    for file in JOINED:
        write_whole(run.out / file, joined(folders, file))
    write_whole(run.out / MOVIES, overview(folders, run.failed))
