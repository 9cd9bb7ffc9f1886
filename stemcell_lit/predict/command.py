"""Class maps of whole frames: from a trained hierarchy back to the movie.

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
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from stemcell_lit.base.files import check_target, whole_or_absent
from stemcell_lit.base.progress import Progress
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import label_colonies
from stemcell_lit.movies.frames import Frames, open_frames
from stemcell_lit.movies.tracks import track
from stemcell_lit.predict.mapper import Mapper, micrometres
from stemcell_lit.predict.outputs import (
    PANEL_PX,
    Found,
    MappedMovie,
    deviation_of,
    write_outputs,
)
from stemcell_lit.settings.command_keys import PredictCommand
from stemcell_lit.settings.field_types import check

FORMAT = 1  # of predict.json


ADJUST_FRAMES = 8  # from which windows are cut out to adjust to


COMPARED_FRAMES = 4  # in which shared features are compared with windows cut out


def predict(config: PredictCommand) -> Path:
    """Maps the classes of a movie and returns the folder of its outputs, whole or absent.

    Raises:
        UserError: the movie, the model or a setting cannot be used.
    """
    out = Path(config.out)
    check(config)
    check_target(out, "prediction", inputs=[config.movie, config.checkpoint])
    model = TrainedHierarchy.load(config.checkpoint, config.allow_module)
    threads = torch.get_num_threads()
    try:
        if config.threads:
            torch.set_num_threads(config.threads)
        with open_frames(
            config.movie,
            um_per_px=config.um_per_px,
            hours_per_frame=config.hours_per_frame,
            channel=config.channel,
            plane=config.plane,
            position=config.position,
        ) as frames:
            _predict(config, model, frames, out)
    finally:
        torch.set_num_threads(threads)
    return out


def _predict(config: PredictCommand, model: TrainedHierarchy, frames: Frames, out: Path) -> None:
    hierarchy = model.hierarchy
    _, height, width = frames.shape
    movie_um = frames.um_per_px
    if movie_um is None and model.um_per_px is not None:
        raise UserError(
            f"um_per_px=None: {config.movie} does not tell the size of a pixel, and the model learned at "
            f"{micrometres(model.um_per_px)}: at another scale it would call other classes; give um_per_px "
            "(micrometres per pixel of the movie)"
        )
    on_scale = _on_its_scale(model, frames)
    try:
        mapper = Mapper(model, (height, width), movie_um, config.stride, exact=config.exact)
    except UserError as error:
        raise UserError(f"{config.movie}: {error}") from error
    movie = MappedMovie(config, frames, movie_um)
    notices = [*on_scale, *_notices(config, model, frames, mapper)]
    for notice in notices:
        warnings.warn(notice, stacklevel=2)
    known = _adjust(config, movie, mapper)
    found = Found()
    tracks = track(_work(config, movie, mapper, found, known), um_per_px=movie_um)
    record = {
        "format": FORMAT,
        "movie": frames.describe(),
        "checkpoint": str(config.checkpoint),
        "classes": hierarchy.classes,
        "um_per_px": {"movie": movie_um, "model": model.um_per_px},
        "every": config.every,
        "scales": list(model.scales),
        "stride_px": mapper.stride / mapper.scale,
        "windows": list(mapper.grid),
        "temporal": hierarchy.temporal,
        "colonies": asdict(config.colonies),
        "exact": mapper.exact,
        "shared": mapper.shared,
        "adjust": config.adjust,
        "deviation": deviation_of(found),
        "notices": notices,
    }
    with whole_or_absent(out, "prediction", inputs=[config.movie, config.checkpoint]) as folder:
        write_outputs(folder, found, movie, mapper, tracks, record)


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
    elif mapper.scale > 1.01:
        said.append(
            f"{name} has {micrometres(frames.um_per_px)}, coarser than the model's "
            f"{micrometres(model.um_per_px)}: frames are enlarged, and lack detail that the model learned from"
        )
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


def _adjust(config: PredictCommand, movie: MappedMovie, mapper: Mapper) -> dict[int, np.ndarray]:
    """Adjusts the shared features to windows of frames spread over the movie.

    Returns:
        frame -> bool (rows, columns), the windows that were adjusted to.
    """
    if mapper.exact or not config.adjust or not mapper.model.stages:
        return {}
    chosen = sorted(_spaced(len(movie), ADJUST_FRAMES))
    rng, known = np.random.default_rng(1), {}

    def examples() -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
        for i in chosen:
            frame = movie.read(i)
            inside = mapper.windows(movie.mask(frame))
            rows, columns = np.nonzero(inside)
            # half at most: the other windows are to tell how well it went
            count = min(math.ceil(config.adjust / len(chosen)), len(rows) // 2)
            some = rng.permutation(len(rows))[:count]
            known[i] = np.zeros(mapper.grid, bool)
            known[i][rows[some], columns[some]] = True
            yield frame, float(movie.hours[i]), known[i]

    mapper.adjust(examples())
    return known


def _work(
    config: PredictCommand,
    movie: MappedMovie,
    mapper: Mapper,
    found: Found,
    known: dict[int, np.ndarray],
) -> Iterator[np.ndarray]:
    """Maps frame after frame; yields the colonies of each, int32 (height, width)."""
    total, hours = len(movie), movie.hours
    classes = len(mapper.model.hierarchy.classes)
    path = mapper.model.hierarchy.temporal == "path"
    compared = set() if mapper.exact else _spaced(total, COMPARED_FRAMES)
    shown = _spaced(total, config.panels)
    rng = np.random.default_rng(0)
    progress = Progress(total)
    for i in range(total):
        frame = movie.read(i)
        mask = movie.mask(frame)
        p = mapper.probabilities(frame, hours[i], mapper.windows(mask))
        if i in compared and mapper.model.stages:
            found.differences.append(mapper.deviation(frame, hours[i], p, rng, known.get(i)))
        chosen = np.where(np.isfinite(p[..., 0]), np.nan_to_num(p).argmax(2) + 1, 0)
        windows = chosen.astype(np.uint8)
        labels = label_colonies(mask)
        number = int(labels.max()) + 1
        # Class 0 stands where there is no colony, so label 0 drops out with it
        class_map = mapper.spread(windows) * mask
        both = labels.ravel().astype(np.int64) * (classes + 1) + class_map.ravel()
        counts = np.bincount(both, minlength=number * (classes + 1))
        found.counts.append(counts.reshape(number, classes + 1)[:, 1:])
        if path:
            found.mean_p.append(_mean_p(mapper, p, labels, number))
        found.masks.append(zlib.compress(np.packbits(mask).tobytes(), 1))
        found.windows.append(windows)
        if i in shown:
            step = math.ceil(max(frame.shape) / PANEL_PX)
            found.panels.append((i, frame[::step, ::step], class_map[::step, ::step]))
        progress.show(i + 1)
        yield labels
    progress.end()


def _mean_p(mapper: Mapper, p: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    """Mean probabilities over the pixels of each colony, (labels + 1, classes)."""
    flat = labels.ravel()
    area = np.bincount(flat, minlength=number).clip(1)
    sums = [
        np.bincount(flat, mapper.spread(np.nan_to_num(p[..., c])).ravel(), number)
        for c in range(p.shape[2])
    ]
    means: np.ndarray = np.stack(sums, 1) / area[:, None]
    return means


def _spaced(total: int, count: int) -> set[int]:
    return set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
