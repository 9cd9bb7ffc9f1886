"""Cells of the fields that labelled crops were cut from: patches without a label, as large as the crops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import classifier_of, foreground, label_colonies
from stemcell_lit.movies.frames import Frames, Movie, open_frames
from stemcell_lit.movies.resample import resample, scaled_shape
from stemcell_lit.movies.tracks import track
from stemcell_lit.patches.labelled import Select, movies_in
from stemcell_lit.patches.labels import UNLABELLED
from stemcell_lit.patches.store import ViewCutter
from stemcell_lit.settings.patch_keys import ImportCommand

EIGHT_BIT = (0.0, 255.0)  # the scaling of crops that are shown as stored


def cells(
    config: ImportCommand, fields: set[str], size: int, scale: float, scaling: tuple[float, float]
) -> tuple[pd.DataFrame, np.ndarray]:
    """A patch around the centre of every connected area of foreground, in each n-th frame of `config.movies`.

    Areas are linked over the frames; one that is followed is a track and a group. Left out is what touches the border,
    and what is nearer to it than half a patch.

    Args:
        config: as the user gave it: `movies`, `colonies`, `extraction.every` and what says how to read.
        fields: names that the crops' table gives to movies; empty where it does not tell them apart.
        size: px of a patch.
        scale: px of a patch per px of a movie.
        scaling: the stored intensities that are 0 and 255 in the crops.

    Returns:
        Rows of the manifest with `field`, and uint8 (patches, size, size).

    Raises:
        UserError: a movie that the table does not name, of another type than the crops, or without such an area.
    """
    assert config.movies is not None
    source = Path(config.movies)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; expected a movie or a folder of movies")
    parts, pixels = [], []
    for movie in movies_in(source, Select(config.channel, config.plane, config.position)):
        _check_name(movie, fields, source)
        with open_frames(
            movie,
            um_per_px=config.um_per_px,
            hours_per_frame=config.hours_per_frame,
            scaling=scaling,
            channel=config.channel,
            plane=config.plane,
        ) as frames:
            if (frames.dtype == np.uint8) != (scaling == EIGHT_BIT):
                raise UserError(
                    f"{movie.path}: found {frames.dtype}, and crops of another type; expected pictures on one "
                    "intensity scale: export both with the same settings"
                )
            rows, cut = _of_movie(frames, config, size, scale)
            parts.append(rows.assign(field=movie.name if fields else ""))
            pixels.append(cut)
    found = pd.concat(parts, ignore_index=True)
    if found.empty:
        raise UserError(
            f"{source}: no area of foreground with {size} px around it; give colonies=contrast (single cells) or "
            "colonies=colony (packed ones), or leave movies= out"
        )
    return found, np.concatenate(pixels)


def _check_name(movie: Movie, fields: set[str], source: Path) -> None:
    if fields and movie.name not in fields:
        told = ", ".join(sorted(fields)[:12])
        raise UserError(
            f"{source}: holds the movie {movie.name!r}, and the column movie of the crops names {told}; call the file "
            "or folder as the table does, or name another column, such as columns={movie:position}"
        )


def _of_movie(
    frames: Frames, config: ImportCommand, size: int, scale: float
) -> tuple[pd.DataFrame, np.ndarray]:
    positions = frames.each(config.extraction.every)
    classifier = classifier_of(config.colonies)

    def areas() -> Iterator[np.ndarray]:
        for position in positions:
            image = frames.read(position)
            mask = foreground(image, config.colonies, frames.um_per_px, classifier=classifier)
            yield label_colonies(mask)

    table = track(areas()).table
    corners = np.rint(table[["y", "x"]].to_numpy() * scale - size / 2).astype(int)
    most = np.array(scaled_shape(frames.shape[1:], scale)) - size
    inside = (corners >= 0).all(1) & (corners <= most).all(1) & ~table["cut"].to_numpy()
    table, corners = table[inside].reset_index(drop=True), corners[inside]
    if not inside.all():
        warnings.warn(
            f"{frames.path}: {int((~inside).sum())} of {len(inside)} cells lie at the border and are left out",
            stacklevel=2,
        )
    pixels = np.empty((len(table), size, size), np.uint8)
    for step in np.unique(table["frame"].to_numpy(np.int64)):
        of = np.flatnonzero(table["frame"] == step)
        image = resample(frames.read(positions[step]), scale)
        pixels[of] = ViewCutter(image, size).cut(*corners[of].T)
    number = frames.numbers[np.array(positions)[table["frame"]]] if len(table) else []
    rows = pd.DataFrame({"label": UNLABELLED, "frame": number, "y": table["y"], "x": table["x"]})
    rows["track"] = rows["group"] = [f"{frames.name}/cell-{i}" for i in table["track"]]
    rows["source"] = frames.path.name
    if config.hours_per_frame is not None:  # as those of crops
        rows["time_h"] = rows["frame"] * config.hours_per_frame
    return rows, pixels
