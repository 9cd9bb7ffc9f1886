"""The class maps of one movie: its frames one by one, and what is said of them.

Every stage network sees a frame once. Its convolutions run over the whole frame, in tiles so that
memory is bounded; then each window averages its part of the shared features and the final layers
classify it. A window that is cut out sees zeros behind its border, where the shared features see
the neighbouring pixels: this is the only difference between the two. To correct it, a few windows of
the movie are cut out first, and a linear term of the last layer is fitted to them; the difference
that remains is measured on other windows. `exact=true` cuts every window out.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemcell_lit.base.files import whole_or_absent
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import label_colonies
from stemcell_lit.movies.frames import Frames, open_frames
from stemcell_lit.movies.tracks import track
from stemcell_lit.predict.finished import FORMAT
from stemcell_lit.predict.found import Found, MappedMovie, Values
from stemcell_lit.predict.mapper import Mapper, micrometres
from stemcell_lit.predict.outputs import PANEL_PX, deviation_of, write_outputs
from stemcell_lit.predict.sources import Source, told
from stemcell_lit.settings.command_keys import PredictCommand

LOOKED_AT = 8  # frames from which windows are cut out before the work

COMPARED_FRAMES = 4  # in which shared features are compared with windows cut out

SAMPLED_WINDOWS = 64  # in each frame that is looked at, to compare them with the training patches

COARSER = 1.01  # times the model's um/px: frames are enlarged

FINER = 2.0  # times finer than the pixels that the training patches were stored at


def map_movie(
    config: PredictCommand,
    model: TrainedHierarchy,
    source: Source,
    out: Path,
    facts: Mapping[str, Any],
    done: Callable[[int], None],
) -> None:
    """Maps a movie into a folder, whole or absent.

    Args:
        config: of the run.
        model: its networks on the device on which they run.
        source: the movie.
        out: the folder.
        facts: of predict.json, what it was made with.
        done: called with the number of frames that are mapped.

    Raises:
        UserError: the movie cannot be read or mapped.
    """
    movie = source.movie
    inputs: list[str | Path | None] = [movie.path, config.checkpoint]
    with (
        open_frames(
            movie,
            um_per_px=config.um_per_px,
            hours_per_frame=config.hours_per_frame,
            channel=config.channel,
            plane=config.plane,
        ) as frames,
        whole_or_absent(out, "prediction", inputs=inputs) as folder,
    ):
        _map(config, model, frames, source, folder, facts, done)


def check_pixel_size(model: TrainedHierarchy, source: Source, um_per_px: float | None) -> None:
    """Refuses a movie whose pixel size nobody tells, where the model knows its own.

    Raises:
        UserError: so it is.
    """
    if um_per_px is None and source.header.um_per_px is None and model.um_per_px is not None:
        raise UserError(
            f"um_per_px=None: {told(source.movie)} does not tell the size of a pixel, and the model learned at "
            f"{micrometres(model.um_per_px)}: at another scale it would call other classes; give um_per_px "
            "(micrometres per pixel of the movie)"
        )


def _map(
    config: PredictCommand,
    model: TrainedHierarchy,
    frames: Frames,
    source: Source,
    folder: Path,
    facts: Mapping[str, Any],
    done: Callable[[int], None],
) -> None:
    hierarchy = model.hierarchy
    _, height, width = frames.shape
    on_scale = _on_its_scale(model, frames)
    try:
        mapper = Mapper(model, (height, width), frames.um_per_px, config.stride, exact=config.exact)
    except UserError as error:
        raise UserError(f"{told(source.movie)}: {error}") from error
    movie = MappedMovie(config, frames, frames.um_per_px)
    values = Values.of(config, model)
    notices = [*on_scale, *_notices(config, model, frames, mapper)]
    for notice in notices:
        warnings.warn(notice, stacklevel=2)
    known, sample = _look(config, movie, mapper)
    strange = model.domain.notices(sample) if model.domain is not None else None
    if strange:
        notices.append(
            f"{frames.path.name} does not look like the patches that the model learned from, and its classes may be "
            f"wrong: {'; '.join(strange)}"
        )
        warnings.warn(notices[-1], stacklevel=2)
    found = Found()
    if config.probabilities:
        found.keep_probabilities(folder)
    tracks = track(
        _work(config, movie, mapper, values, found, known, done), um_per_px=frames.um_per_px
    )
    record = {
        "format": FORMAT,
        "movie": frames.describe(),
        "reading": {
            "channel": config.channel,
            "plane": config.plane,
            "position": source.movie.position,
        },
        **facts,
        "checkpoint": str(config.checkpoint),
        "device": _device_of(model),
        "classes": hierarchy.classes,
        "values": values.names,
        "colours": values.colours,
        "unsure": values.threshold,
        "um_per_px": {"movie": frames.um_per_px, "model": model.um_per_px},
        "hours_per_frame": frames.hours_per_frame,
        "every": config.every,
        "frames": len(movie),
        "tracks": int(tracks.table["track"].nunique()),
        "scales": list(model.scales),
        "stride_px": mapper.stride / mapper.scale,
        "windows": list(mapper.grid),
        "temporal": hierarchy.temporal,
        "colonies": asdict(config.colonies),
        "exact": mapper.exact,
        "shared": mapper.shared,
        "adjust": config.adjust,
        "deviation": deviation_of(found),
        "domain": strange,
        "notices": notices,
    }
    write_outputs(folder, source.name, found, movie, mapper, values, tracks, record)


def _device_of(model: TrainedHierarchy) -> str:
    """Where its networks are; classical stages have none."""
    kinds = {
        p.device.type
        for stage in model.stages.values()
        for part in getattr(stage, "parts", [stage])
        if isinstance(part, torch.nn.Module)
        for p in part.parameters()
    }
    return "cuda" if "cuda" in kinds else "cpu"


def _on_its_scale(model: TrainedHierarchy, frames: Frames) -> list[str]:
    """Puts a movie on the intensity scale of the crops that the model learned from, if they had one.

    Raises:
        UserError: the movie's intensities lie outside it.
    """
    if model.scaling is None:
        return []
    low, high = model.scaling
    name, scale = frames.path.name, f"{low:g} to {high:g}"
    if frames.dtype == np.uint8:
        return [
            f"the model learned from crops whose intensities {scale} became 0 to 255, and {name} is 8 bit: its values "
            "are taken as they are; give the movie as the microscope stored it"
        ]
    own = frames.scaling
    if own[1] <= low or own[0] >= high:
        raise UserError(
            f"{name}: its intensities, {own[0]:g} to {own[1]:g}, lie outside those of the crops that the model learned "
            f"from, {scale}; expected a movie of the same camera and settings"
        )
    frames.scaling = model.scaling
    return [
        f"the intensities {scale} of {name} become 0 to 255, as in the crops that the model learned from"
    ]


def _notices(
    config: PredictCommand, model: TrainedHierarchy, frames: Frames, mapper: Mapper
) -> list[str]:
    said = []
    name, temporal = frames.path.name, model.hierarchy.temporal
    if model.um_per_px is None:
        stored = round(mapper.size * model.reduced)
        said.append(
            f"the model does not tell the size of a pixel: {name} is taken to have the pixels of the patches that it "
            f"learned from, {stored} x {stored} px each; import them with um_per_px if it has others"
        )
    else:
        said += _magnification(name, frames.um_per_px, model)
    real = mapper.stride / mapper.scale
    if abs(real - config.stride) > 0.01 * config.stride:
        said.append(
            f"stride={config.stride}: {real:.4g} px, the nearest that the networks allow, are used"
        )
    timed = temporal in ("window", "prior") or not model.stages
    if frames.hours_per_frame is None and timed:
        said.append(
            f"{name} does not tell its frame interval, so the model's knowledge of time is not used; "
            "give hours_per_frame"
        )
    for stage, reason in mapper.cut.items():
        said.append(f"stage {stage}: {reason}: its windows are cut out, as with exact=true")
    if mapper.exact and not (config.exact or mapper.cut):
        said.append(
            f"the model looks at scales {list(model.scales)}, whose windows cannot share features: every window is cut "
            "out, as with exact=true"
        )
    if temporal == "path":
        said.append(
            "temporal=path is applied to the class of each colony in colonies.csv, not to the maps"
        )
    return said


def _magnification(name: str, um: float | None, model: TrainedHierarchy) -> list[str]:
    """What is to be said where the movie has other pixels than the model learned from."""
    if um is None or model.um_per_px is None:
        return []
    if um > COARSER * model.um_per_px:
        return [
            f"{name} has {micrometres(um)}, coarser than the model's {micrometres(model.um_per_px)} by a factor of "
            f"{um / model.um_per_px:.3g}: frames are enlarged, and lack detail that the model learned from"
        ]
    stored = model.um_per_px / model.reduced
    if FINER * um < stored:
        return [
            f"{name} has {micrometres(um)}, finer than the {micrometres(stored)} of the model's patches by a factor of "
            f"{stored / um:.3g}: another magnification shows other halos and textures, also at the same um/px"
        ]
    return []


def _look(
    config: PredictCommand, movie: MappedMovie, mapper: Mapper
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Adjusts the shared features to windows of frames spread over the movie, and takes a sample of windows.

    Returns:
        frame -> bool (rows, columns), the windows that were adjusted to; and windows for the domain, uint8.
    """
    model = mapper.model
    adjusts = not mapper.exact and config.adjust > 0 and bool(model.stages)
    known: dict[int, np.ndarray] = {}
    seen = [np.empty((0, mapper.size, mapper.size), np.uint8)]
    chosen = sorted(_spaced(len(movie), LOOKED_AT)) if adjusts or model.domain is not None else []
    rng, other = np.random.default_rng(1), np.random.default_rng(2)

    def examples() -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
        for i in chosen:
            frame = movie.read(i)
            inside = mapper.windows(movie.mask(frame))
            if model.domain is not None:
                some = mapper.sample(frame, inside, SAMPLED_WINDOWS, other)
                seen.append(some if some.ndim == 3 else some[:, 0])
            rows, columns = np.nonzero(inside)
            # half at most: the other windows are to tell how well it went
            count = min(math.ceil(config.adjust / len(chosen)), len(rows) // 2)
            some_rows = rng.permutation(len(rows))[:count]
            known[i] = np.zeros(mapper.grid, bool)
            known[i][rows[some_rows], columns[some_rows]] = True
            yield frame, float(movie.hours[i]), known[i]

    if adjusts:
        mapper.adjust(examples())
        return known, np.concatenate(seen)
    for _ in examples():
        pass
    return {}, np.concatenate(seen)


def _work(
    config: PredictCommand,
    movie: MappedMovie,
    mapper: Mapper,
    values: Values,
    found: Found,
    known: dict[int, np.ndarray],
    done: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """Maps frame after frame; yields the colonies of each, int32 (height, width)."""
    total, hours = len(movie), movie.hours
    compared = set() if mapper.exact else _spaced(total, COMPARED_FRAMES)
    shown = _spaced(total, config.panels)
    rng = np.random.default_rng(0)
    for i in range(total):
        frame = movie.read(i)
        mask = movie.mask(frame)
        p = mapper.probabilities(frame, hours[i], mapper.windows(mask))
        if i in compared and mapper.model.stages:
            found.differences.append(mapper.deviation(frame, hours[i], p, rng, known.get(i)))
        best, windows = values.choose(p)
        labels = label_colonies(mask)
        # Class 0 stands where there is no colony, so label 0 drops out with it
        class_map = mapper.spread(windows) * mask
        found.counts.append(_count(labels, class_map, values.last))
        if values.threshold is None:
            found.best.append(found.counts[-1])
        else:
            found.best.append(_count(labels, mapper.spread(best) * mask, values.classes))
        found.mean_p.append(_mean_p(mapper, p, labels))
        found.masks.append(zlib.compress(np.packbits(mask).tobytes(), 1))
        found.windows.append(windows)
        found.add_probabilities(p)
        if i in shown:
            step = math.ceil(max(frame.shape) / PANEL_PX)
            found.panels.append((i, frame[::step, ::step], class_map[::step, ::step]))
        done(i + 1)
        yield labels


def _count(labels: np.ndarray, class_map: np.ndarray, last: int) -> np.ndarray:
    """Pixels of each value from 1 to `last` in each colony, (labels + 1, last)."""
    number = int(labels.max()) + 1
    both = labels.ravel().astype(np.int64) * (last + 1) + class_map.ravel()
    counts: np.ndarray = np.bincount(both, minlength=number * (last + 1))
    return counts.reshape(number, last + 1)[:, 1:]


def _mean_p(mapper: Mapper, p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean probabilities over the pixels of each colony, (labels + 1, classes)."""
    inside = np.flatnonzero(labels)
    flat, number = labels.ravel()[inside], int(labels.max()) + 1
    area = np.bincount(flat, minlength=number).clip(1)
    places = np.arange(p.shape[0] * p.shape[1]).reshape(p.shape[:2])
    window = mapper.spread(places).ravel()[inside]
    each = np.nan_to_num(p).reshape(-1, p.shape[2])
    sums = [np.bincount(flat, each[window, c], number) for c in range(p.shape[2])]
    means: np.ndarray = np.stack(sums, 1) / area[:, None]
    return means


def _spaced(total: int, count: int) -> set[int]:
    return set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
