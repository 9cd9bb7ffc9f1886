"""Class maps of whole frames: from a trained hierarchy back to the movie.

Every stage network sees a frame once. Its convolutions run over the whole frame, in tiles so that
memory is bounded; then each window averages its part of the shared features and the last layers
speak. A window that is cut out sees zeros behind its border where the shared features see what is
really there: this, and nothing else, tells the two apart. So a few windows of the movie are cut out
first, and a linear term of the last layer is fitted to them; what difference is left is measured on
others. `exact=true` cuts every window out.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
import time
import uuid
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tifffile
import torch
import torch.nn.functional as F
from PIL.ImageColor import getrgb
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stemcell_lit.base.drawing import NO_MATH, area_colours, blank_figure, png
from stemcell_lit.base.files import check_target, whole_or_absent
from stemcell_lit.base.spreadsheets import to_csv
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.data.augment import to_float
from stemcell_lit.data.colonies import (
    METHODS,
    Tracks,
    classifier_of,
    foreground,
    label_colonies,
    track,
)
from stemcell_lit.data.frames import Frames, open_frames
from stemcell_lit.data.patches import Views
from stemcell_lit.data.resample import resample, scale_between, scaled_shape
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.progress import LINE_S, SILENT_S
from stemcell_lit.schema import PredictCommand

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1  # of predict.json
RECORD = "predict.json"
MAPS = "classes.ome.tif"
OUTPUTS = (MAPS, "overlay.png", "colonies.csv", "shares.csv", "shares.png", RECORD)

TILE_PX = 512  # of a tile's windows, model px: its features fit into a processor's cache
BATCH = 256  # windows cut out at once
ADJUST_FRAMES = 8  # from which windows are cut out to adjust to
ADJUST_LEAST = 100  # windows; fewer cannot tell hundreds of features apart
RIDGE = 0.01  # of the features' mean square; ten times more or less changes little
COMPARED_FRAMES = 4  # in which shared features are compared with windows cut out
COMPARED_WINDOWS = 64  # in each of them
PANEL_PX = 480  # greatest side of a panel of the overlay


# --- one network on a whole frame -----------------------------------------------------------------


class DenseStage:
    """A stage's network on whole frames, all windows sharing their features.

    Args:
        stage: trained; left as it is.
        size: height and width of a window, px.
        stride: px between windows, see `usable_stride`.

    Raises:
        UserError: the network is not one whose windows can share features.
    """

    def __init__(self, stage: StageModule, size: int, stride: int):
        if stage.stage["members"] > 1 or stage.stage["turns"]:
            raise UserError(
                "stage.members or stage.turns: windows of averaged answers cannot share features; give exact=true"
            )
        layers = _leaves(copy.deepcopy(stage.network).eval())
        kinds = [type(layer) for layer in layers]
        cut = kinds.index(nn.AdaptiveAvgPool2d) if nn.AdaptiveAvgPool2d in kinds else 0
        body, head = layers[:cut], layers[cut + 1 :]
        padded = {la.padding != (0, 0) for la in body if isinstance(la, nn.Conv2d)}
        if len(padded) != 1 or not all(_shareable(layer) for layer in body):
            raise UserError(
                f"stage.network={stage.stage['network']}: its windows cannot share features; expected "
                "3x3 convolutions, all padded or none, and 2x2 pools before one average; give exact=true"
            )
        self.size, self.stride, self.groups = size, stride, len(stage.groups)
        self.pool = total_pool(stage)
        # Without padding nothing behind a window's border plays a part, and sharing is exact
        self.exact = all(la.padding == (0, 0) for la in body if isinstance(la, nn.Conv2d))
        # Features that a tile needs around it
        self.halo = 0 if self.exact else math.ceil(_reach(body) / self.pool)
        self.body = nn.Sequential(*_fused(body))
        with torch.inference_mode():  # features that a window averages, per side
            self.span = int(self.body(torch.zeros(1, 1, size, size)).shape[-1])
        self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster here
        self.head = nn.Sequential(*head)
        self._term: tuple[torch.Tensor, torch.Tensor] | None = None  # weights, offset

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Softmax probabilities of the windows.

        Args:
            image: uint8 (height, width).
            wanted: bool (rows, columns) of windows; tiles in which none is wanted are left out.

        Returns:
            float32 (rows, columns, groups), 0 where left out.
        """
        return self._passes(image, wanted, raw=False)

    def raw(self, image: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Logits and pooled features of the wanted windows, (windows, groups + features)."""
        return self._passes(image, wanted, raw=True)[wanted]

    def adjust(self, raw: np.ndarray, cut: np.ndarray) -> None:
        """Adds to the logits the linear term of the features that brings them to windows cut out.

        Fitted by ridge regression on three of four windows, and kept only if it brings the others nearer
        too. Beside the mean over a window the term sees that over its middle, without the outermost
        features: the two differ where a window's border matters.

        Args:
            raw: (windows, groups + features), from `raw`.
            cut: (windows, groups) probabilities of the same windows cut out.
        """
        if len(raw) < ADJUST_LEAST:
            return
        logits, x = np.split(raw.astype(np.float64), [self.groups], axis=1)
        target = np.log(np.maximum(cut.astype(np.float64), 1e-12))
        y = (target - target.mean(1, keepdims=True)) - (logits - logits.mean(1, keepdims=True))
        held = np.arange(len(x)) % 4 == 3
        mean, offset = x[~held].mean(0), y[~held].mean(0)
        centred = x[~held] - mean
        square = centred.T @ centred
        square += max(RIDGE * np.trace(square) / len(square), 1e-12) * np.eye(len(square))
        weights = np.linalg.solve(square, centred.T @ (y[~held] - offset))
        term = torch.from_numpy(weights).float(), torch.from_numpy(offset - mean @ weights).float()
        errors = []
        for self._term in (None, term):
            p = self._answer(torch.from_numpy(raw[held])).numpy()
            errors.append(np.abs(p - cut[held]).mean())
        if errors[1] >= errors[0]:
            self._term = None

    @torch.inference_mode()
    def _passes(self, image: np.ndarray, wanted: np.ndarray, *, raw: bool) -> np.ndarray:
        out: np.ndarray | None = None
        # Windows nearer to each other than the pools' step: one pass for each of their offsets
        passes = max(1, self.pool // self.stride)
        for a in range(passes):
            for b in range(passes):
                shifted = image[a * self.stride :, b * self.stride :]
                part = np.s_[a::passes, b::passes]
                for tile, values in self._tiles(shifted, wanted[part]):
                    found = values if raw else self._answer(values)
                    if out is None:
                        out = np.zeros((*wanted.shape, found.shape[1]), np.float32)
                    rows, columns = wanted[part][tile].shape
                    out[part][tile] = found.numpy().reshape(rows, columns, -1)
        return np.zeros((*wanted.shape, self.groups), np.float32) if out is None else out

    def _answer(self, values: torch.Tensor) -> torch.Tensor:
        """Probabilities from logits and features."""
        logits, features = values[:, : self.groups], values[:, self.groups :]
        if self._term is not None:
            logits = logits + features @ self._term[0] + self._term[1]
        return F.softmax(logits, 1)

    def _tiles(self, image: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[Any, torch.Tensor]]:
        """Tiles in which a window is wanted, with logits and features of all their windows."""
        step = max(1, self.stride // self.pool)  # features between windows
        count = max(1, TILE_PX // (step * self.pool))  # windows of a tile, per side
        for y in range(0, wanted.shape[0], count):
            for x in range(0, wanted.shape[1], count):
                tile = np.s_[y : y + count, x : x + count]
                if not wanted[tile].any():
                    continue
                rows, columns = wanted[tile].shape
                top, left = y * step, x * step
                bottom = top + (rows - 1) * step + self.span
                right = left + (columns - 1) * step + self.span
                up, before = max(0, top - self.halo), max(0, left - self.halo)
                around = self.size + self.halo * self.pool
                pixels = image[
                    up * self.pool : (top + (rows - 1) * step) * self.pool + around,
                    before * self.pool : (left + (columns - 1) * step) * self.pool + around,
                ]
                features = self.body(to_float(torch.from_numpy(pixels.copy())[None]))
                features = features[:, :, top - up : bottom - up, left - before : right - before]
                means = F.avg_pool2d(features, self.span, stride=step)[0].flatten(1).T
                parts = [self.head(means).float(), means]
                if self.span > 2:
                    inner = features[:, :, 1:-1, 1:-1]
                    parts.append(F.avg_pool2d(inner, self.span - 2, stride=step)[0].flatten(1).T)
                yield tile, torch.cat(parts, 1)


def total_pool(stage: StageModule) -> int:
    """Pixels per feature of a stage's network, per side."""
    pools = sum(isinstance(layer, nn.MaxPool2d) for layer in _leaves(stage.network))
    return 2 ** (pools // stage.stage["members"])


def usable_stride(stride: float, pool: int) -> int:
    """The stride nearest to the wanted one that divides the pools' step or is a multiple of it.

    Args:
        stride: wanted, in model px.
        pool: px per feature, a power of two.
    """
    if stride >= pool:
        return max(1, round(stride / pool)) * pool
    return min((2**k for k in range(pool.bit_length())), key=lambda s: abs(s - stride))


def _leaves(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential):
        return [leaf for child in module for leaf in _leaves(child)]
    return [module]


def _shareable(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        same = tuple(2 * p + 1 for p in layer.padding) == layer.kernel_size  # type: ignore[operator]
        return (
            (same or layer.padding == (0, 0))
            and layer.stride == (1, 1)
            and layer.dilation == (1, 1)
        )
    if isinstance(layer, nn.MaxPool2d):
        return layer.kernel_size == layer.stride == 2 and layer.padding == 0
    return isinstance(layer, nn.BatchNorm2d | nn.ReLU)


def _reach(body: list[nn.Module]) -> int:
    """Pixels beyond a feature's own square that it depends on."""
    step, reach = 1, 0
    for layer in body:
        if isinstance(layer, nn.Conv2d):
            reach += layer.kernel_size[0] // 2 * step
        elif isinstance(layer, nn.MaxPool2d):
            step *= 2
    return reach


def _fused(body: list[nn.Module]) -> list[nn.Module]:
    """Normalisation folded into the convolution before it; pools before ReLU, which has less to do.

    Both leave the function as it is, up to rounding.
    """
    done: list[nn.Module] = []
    for layer in body:
        if isinstance(layer, nn.BatchNorm2d) and done and isinstance(done[-1], nn.Conv2d):
            done[-1] = fuse_conv_bn_eval(done[-1], layer)
        elif isinstance(layer, nn.MaxPool2d) and done and isinstance(done[-1], nn.ReLU):
            done.insert(-1, layer)
        else:
            done.append(layer)
    return done


# --- the hierarchy on a movie ---------------------------------------------------------------------


class Mapper:
    """A trained hierarchy on the frames of one movie.

    Windows have the size that the model was trained at and lie wholly inside the frame. A pixel
    belongs to the window whose centre is nearest, so that the border of a frame, half a window
    wide, takes the class of the outermost windows.

    Args:
        model: trained.
        shape: (height, width) of the frames, px.
        um_per_px: of the frames; None: that of the model.
        stride: px of the movie between windows; the nearest that the networks allow is taken.
        exact: cut every window out, as in training; always so where the model looks at several scales.

    Attributes:
        scale: model px per px of the movie.
        stride: between windows, model px.
        grid: (rows, columns) of windows.

    Raises:
        UserError: the stride is below 1 px, or the frame is smaller than a window.
    """

    def __init__(
        self,
        model: TrainedHierarchy,
        shape: tuple[int, int],
        um_per_px: float | None = None,
        stride: float = 16,
        *,
        exact: bool = False,
    ):
        if stride < 1:
            raise UserError(f"stride={stride}: expected 1 px of the movie or more")
        # The views of several scales move at different speeds past a window: nothing to share
        self.model, self.shape, self.exact = model, shape, exact or len(model.scales) > 1
        self.scale = scale_between(um_per_px, model.um_per_px)  # as patches are for training
        pool = max((total_pool(stage) for stage in model.stages.values()), default=1)
        self.stride = usable_stride(stride * self.scale, pool)
        self.size = model.image_size
        reduced = scaled_shape(shape, self.scale)
        if min(reduced) < self.size:
            raise UserError(
                f"the frames are {shape[0]} x {shape[1]} px, {reduced[0]} x {reduced[1]} at the model's "
                f"{_um(model.um_per_px)}; expected at least {self.size} x {self.size}; check um_per_px"
            )
        self.grid = tuple((side - self.size) // self.stride + 1 for side in reduced)
        self._rows, self._columns = (
            self._nearest(side, count) for side, count in zip(shape, self.grid, strict=True)
        )
        self._dense: dict[str, DenseStage] = {}
        if not self.exact:
            self._dense = {
                name: DenseStage(stage, self.size, self.stride)
                for name, stage in model.stages.items()
            }

    def reduce(self, frame: np.ndarray) -> np.ndarray:
        """A frame at the model's pixel size, uint8; whole factors average blocks, as in training."""
        return resample(frame, self.scale)

    def windows(self, mask: np.ndarray) -> np.ndarray:
        """The windows that some pixel of a mask (height, width) belongs to, bool (rows, columns)."""
        # Indices only rise, so each window's pixels are one run; a window may have none
        rows, tops = np.unique(self._rows, return_index=True)
        columns, lefts = np.unique(self._columns, return_index=True)
        some = np.logical_or.reduceat(np.logical_or.reduceat(mask, tops, axis=0), lefts, axis=1)
        wanted = np.zeros(self.grid, bool)
        wanted[np.ix_(rows, columns)] = some
        return wanted

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of windows (rows, columns) given to their pixels, (height, width)."""
        return values[self._rows[:, None], self._columns[None, :]]

    def probabilities(
        self, frame: np.ndarray, hours: float = math.nan, wanted: np.ndarray | None = None
    ) -> np.ndarray:
        """p(class | window, time) with window and prior of the constraint; a path needs tracks.

        Args:
            frame: uint8 (height, width).
            hours: time of the frame, NaN where unknown.
            wanted: bool (rows, columns); None: all windows.

        Returns:
            float32 (rows, columns, classes), NaN where not wanted.
        """
        wanted = np.ones(self.grid, bool) if wanted is None else wanted
        out = np.full((*self.grid, len(self.model.hierarchy.classes)), np.nan, np.float32)
        if wanted.any():
            out[wanted] = self._decide(self.reduce(frame), hours, wanted, self.exact)
        return out

    def adjust(self, examples: Iterable[tuple[np.ndarray, float, np.ndarray]]) -> None:
        """Brings shared features nearer to windows cut out, stage by stage.

        Args:
            examples: (frame, hours, wanted): uint8 (height, width), its time, and bool (rows, columns),
                the windows that are cut out.
        """
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in self._dense}
        for frame, hours, wanted in examples:
            image, silent = self.reduce(frame), self._silent(hours)
            for name, dense in self._dense.items():
                if wanted.any() and name not in silent and not dense.exact:
                    stage = self.model.stages[name]
                    cut = _cut_out(stage, image, self.size, self.stride, self.model.scales, wanted)
                    found[name].append((dense.raw(image, wanted), cut))
        for name, pairs in found.items():
            if pairs:
                raw, cut = (np.concatenate(part) for part in zip(*pairs, strict=True))
                self._dense[name].adjust(raw, cut)

    def deviation(
        self,
        frame: np.ndarray,
        hours: float,
        p: np.ndarray,
        rng: np.random.Generator,
        known: np.ndarray | None = None,
    ) -> np.ndarray:
        """Compares probabilities with those of a few windows cut out.

        Args:
            frame: uint8 (height, width).
            hours: its time.
            p: as `probabilities` gave them.
            rng: draws the windows.
            known: bool (rows, columns), windows that were adjusted to, and are left out.

        Returns:
            float (windows, 2): the greatest difference of a class's probability, and 1 where both
            choose the same class.
        """
        free = np.isfinite(p[..., 0])
        rows, columns = np.nonzero(free if known is None else free & ~known)
        chosen = rng.permutation(len(rows))[:COMPARED_WINDOWS]
        wanted = np.zeros(self.grid, bool)
        wanted[rows[chosen], columns[chosen]] = True
        if not wanted.any():
            return np.empty((0, 2))
        cut, shared = self._decide(self.reduce(frame), hours, wanted, True), p[wanted]
        return np.stack([np.abs(cut - shared).max(1), cut.argmax(1) == shared.argmax(1)], 1).astype(
            float
        )

    def _nearest(self, side: int, count: int) -> np.ndarray:
        """For each pixel along a side, the window whose centre is nearest."""
        centre = (np.arange(side) + 0.5) * self.scale
        nearest = np.floor((centre - self.size / 2) / self.stride + 0.5).astype(int)
        return nearest.clip(0, count - 1)

    def _silent(self, hours: float) -> set[str]:
        """Stages whose weight in the tree is 0 at a time."""
        return {
            node.name
            for node in self.model.hierarchy.nodes
            if hours < node.window[0] or hours > node.window[1]  # False for an unknown time
        }

    def _decide(
        self, image: np.ndarray, hours: float, wanted: np.ndarray, exact: bool
    ) -> np.ndarray:
        hierarchy, count = self.model.hierarchy, int(wanted.sum())
        times = np.full(count, hours, np.float64)
        if not self.model.stages:
            return hierarchy.by_time_alone(times)
        silent = self._silent(hours)
        p = {}
        for name, stage in self.model.stages.items():
            if name in silent:
                p[name] = np.zeros((count, len(stage.groups)), np.float32)
            elif exact:
                p[name] = _cut_out(stage, image, self.size, self.stride, self.model.scales, wanted)
            else:
                p[name] = self._dense[name].probabilities(image, wanted)[wanted]
        joint = hierarchy.combine(p, times)
        if hierarchy.temporal == "prior":
            frames = np.zeros(count, np.int64)
            joint = hierarchy.constrain(joint, times, np.full(count, ""), frames)[0]
        return joint


def _cut_out(
    stage: StageModule,
    image: np.ndarray,
    size: int,
    stride: int,
    scales: Sequence[int],
    wanted: np.ndarray,
) -> np.ndarray:
    """Probabilities (wanted windows, groups), each window cut out and classified, in batches."""
    views = Views(image, size, scales)
    top, left = (stride * i for i in np.nonzero(wanted))
    parts = [
        stage.probabilities(views.cut(top[i : i + BATCH], left[i : i + BATCH]), BATCH)
        for i in range(0, len(top), BATCH)
    ]
    return np.concatenate(parts)


def _um(value: float | None) -> str:
    return "unknown um/px" if value is None else f"{value:g} um/px"


# --- the command ----------------------------------------------------------------------------------


@dataclass
class _Found:
    """What is kept of each frame until tracks are known: little, so that long movies fit."""

    masks: list[bytes] = field(default_factory=list)  # packed and compressed
    windows: list[np.ndarray] = field(default_factory=list)  # uint8 class + 1 of each window
    counts: list[np.ndarray] = field(default_factory=list)  # pixels (labels + 1, classes)
    mean_p: list[np.ndarray] = field(default_factory=list)  # (labels + 1, classes), for a path
    panels: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)
    differences: list[np.ndarray] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 (hex) of the maps."""
        digest = hashlib.sha256()
        for mask, windows in zip(self.masks, self.windows, strict=True):
            digest.update(mask + windows.tobytes())
        return digest.hexdigest()


class _Movie:
    """The frames that are mapped, and where cells are in them."""

    def __init__(self, config: PredictCommand, frames: Frames, um_per_px: float | None):
        self.frames, self.um_per_px, self.colonies = frames, um_per_px, config.colonies
        self.positions = frames.each(config.every)
        self.numbers = frames.numbers[self.positions]
        self.hours = config.start_h + np.array([frames.time(p) for p in self.positions])
        interval = frames.hours_per_frame
        self.hours_between = None if interval is None else interval * config.every
        self.classifier = classifier_of(config.colonies)

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, i: int) -> np.ndarray:
        """The i-th of them, uint8 (height, width)."""
        return self.frames.read(self.positions[i])

    def mask(self, frame: np.ndarray) -> np.ndarray:
        """Where cells are, bool (height, width)."""
        if self.colonies.method == "none":
            return np.ones(frame.shape, bool)
        return foreground(frame, self.colonies, self.um_per_px, classifier=self.classifier)


def predict(config: PredictCommand) -> Path:
    """Maps the classes of a movie and returns the folder of its outputs, whole or absent.

    Raises:
        UserError: the movie, the model or a setting cannot be used.
    """
    out = Path(config.out)
    _check(config, out)
    model = TrainedHierarchy.load(config.checkpoint)
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


def _check(config: PredictCommand, out: Path) -> None:
    if config.colonies.method not in (*METHODS, "none"):
        raise UserError(
            f"colonies.method={config.colonies.method}: expected one of {', '.join(METHODS)}, none"
        )
    for key, value, least in (
        ("threads", config.threads, 0),
        ("panels", config.panels, 1),
        ("adjust", config.adjust, 0),
        ("stride", config.stride, 1),
        ("every", config.every, 1),
    ):
        if value < least:
            raise UserError(f"{key}={value}: expected {least} or more")
    if not math.isfinite(config.start_h):
        raise UserError(f"start_h={config.start_h}: expected hours")
    check_target(out, "prediction", inputs=[config.movie, config.checkpoint])


def _predict(config: PredictCommand, model: TrainedHierarchy, frames: Frames, out: Path) -> None:
    hierarchy = model.hierarchy
    _, height, width = frames.shape
    movie_um = frames.um_per_px if frames.um_per_px is not None else model.um_per_px
    try:
        mapper = Mapper(model, (height, width), movie_um, config.stride, exact=config.exact)
    except UserError as error:
        raise UserError(f"{config.movie}: {error}") from error
    movie = _Movie(config, frames, movie_um)
    notices = _notices(config, model, frames, mapper)
    for notice in notices:
        warnings.warn(notice, stacklevel=2)
    known = _adjust(config, movie, mapper)
    found = _Found()
    tracks = track(
        _work(config, movie, mapper, found, known),
        um_per_px=movie_um,
        hours_per_frame=movie.hours_between,
    )
    with whole_or_absent(out, "prediction", inputs=[config.movie, config.checkpoint]) as folder:
        _write_maps(folder / MAPS, mapper, found, movie)
        colonies = to_csv(_colonies(tracks, found, model, movie), "%.6g")
        (folder / "colonies.csv").write_text(colonies, encoding="utf-8")
        shares = _shares(found, hierarchy.classes, movie, height * width)
        # Enough digits for the shares of a row to sum to 1
        (folder / "shares.csv").write_text(to_csv(shares, "%.9g"), encoding="utf-8")
        import matplotlib

        with matplotlib.rc_context(NO_MATH):
            shown = _plot_shares(shares, hierarchy.classes)
            (folder / "shares.png").write_bytes(png(shown))
            (folder / "overlay.png").write_bytes(png(_overlay(found, hierarchy.classes, movie)))
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
            "adjust": config.adjust,
            "deviation": _deviation(found),
            "notices": notices,
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _notices(
    config: PredictCommand, model: TrainedHierarchy, frames: Frames, mapper: Mapper
) -> list[str]:
    said = []
    name, temporal = frames.path.name, model.hierarchy.temporal
    if frames.um_per_px is None or model.um_per_px is None:
        which = f"{name} does not" if frames.um_per_px is None else "the model does not"
        said.append(
            f"{which} tell the size of a pixel: the movie is taken to have the model's pixels, of which "
            f"a patch has {mapper.size} x {mapper.size}; give um_per_px if the movie's is what is missing"
        )
    elif mapper.scale > 1.01:
        said.append(
            f"{name} has {_um(frames.um_per_px)}, coarser than the model's {_um(model.um_per_px)}: frames "
            "are enlarged, and lack detail that the model learned from"
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
    if mapper.exact and not config.exact:
        said.append(
            f"the model looks at scales {list(model.scales)}, whose windows cannot share features: every window is cut "
            "out, as with exact=true"
        )
    if temporal == "path":
        said.append(
            "temporal=path is applied to the class of each colony in colonies.csv, not to the maps"
        )
    return said


def _adjust(config: PredictCommand, movie: _Movie, mapper: Mapper) -> dict[int, np.ndarray]:
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
    movie: _Movie,
    mapper: Mapper,
    found: _Found,
    known: dict[int, np.ndarray],
) -> Iterator[np.ndarray]:
    """Maps frame after frame; yields the colonies of each, int32 (height, width)."""
    total, hours = len(movie), movie.hours
    classes = len(mapper.model.hierarchy.classes)
    path = mapper.model.hierarchy.temporal == "path"
    compared = set() if mapper.exact else _spaced(total, COMPARED_FRAMES)
    shown = _spaced(total, config.panels)
    rng = np.random.default_rng(0)
    progress = _Progress(total)
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
    return np.stack(sums, 1) / area[:, None]


def _spaced(total: int, count: int) -> set[int]:
    return set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())


def _deviation(found: _Found) -> dict[str, Any] | None:
    """How far the shared features are from windows cut out; None where nothing was compared."""
    rows = np.concatenate(found.differences) if found.differences else np.empty((0, 2))
    if not len(rows):
        return None
    return {
        "windows": len(rows),
        "mean_abs_probability": round(float(rows[:, 0].mean()), 6),
        "max_abs_probability": round(float(rows[:, 0].max()), 6),
        "same_class": round(float(rows[:, 1].mean()), 6),
    }


# --- outputs --------------------------------------------------------------------------------------


def _class_map(mapper: Mapper, found: _Found, i: int) -> np.ndarray:
    """Frame `i`, uint8 (height, width): 0 outside of colonies, then the classes from 1."""
    bits = np.frombuffer(zlib.decompress(found.masks[i]), np.uint8)
    height, width = mapper.shape
    mask = np.unpackbits(bits, count=height * width).reshape(height, width)
    return mapper.spread(found.windows[i]) * mask


def _write_maps(file: Path, mapper: Mapper, found: _Found, movie: _Movie) -> None:
    """The class maps as OME-TIFF with a palette, frame after frame."""
    classes = mapper.model.hierarchy.classes
    names = {"0": "background", **{str(i + 1): c for i, c in enumerate(classes)}}
    metadata: dict[str, Any] = {
        "axes": "TYX",
        # the same maps give the same file: tifffile would name it by the clock
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, found.digest())}",
        "Name": "classes",
        "Description": "; ".join(f"{k} {v}" for k, v in names.items()),
        "MapAnnotation": {"Namespace": "stemcell_lit/classes", **names},
    }
    if movie.um_per_px is not None:
        metadata |= {"PhysicalSizeX": movie.um_per_px, "PhysicalSizeXUnit": "µm"}
        metadata |= {"PhysicalSizeY": movie.um_per_px, "PhysicalSizeYUnit": "µm"}
    if movie.hours_between is not None:
        metadata |= {"TimeIncrement": movie.hours_between, "TimeIncrementUnit": "h"}
    palette = np.zeros((3, 256), np.uint16)
    for i, colour in enumerate(area_colours(len(classes))):
        palette[:, i + 1] = np.array(getrgb(colour)) * 257  # 8 bit to 16
    tifffile.imwrite(
        file,
        (_class_map(mapper, found, i) for i in range(len(movie))),
        shape=(len(movie), *mapper.shape),
        dtype=np.uint8,
        ome=True,
        bigtiff=len(movie) * math.prod(mapper.shape) > 2**31,
        compression="zlib",
        photometric="palette",
        colormap=palette,
        metadata=metadata,
    )


def _colonies(
    tracks: Tracks, found: _Found, model: TrainedHierarchy, movie: _Movie
) -> pd.DataFrame:
    """A row per colony and frame: where, how large, its class and the share of each class in it."""
    classes = model.hierarchy.classes
    table = tracks.table[["track", "frame", "y", "x", "area_px", "area_um2", "cut"]].copy()
    table.insert(2, "time_h", movie.hours[table["frame"]])
    where = list(zip(table["frame"], tracks.table["label"], strict=True))
    shape = (len(where), len(classes))
    counts = np.array([found.counts[f][n] for f, n in where], float).reshape(shape)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    best = shares.argmax(1)
    if model.hierarchy.temporal == "path":
        p = np.array([found.mean_p[f][n] for f, n in where], float).reshape(shape)
        names = table["track"].astype(str).to_numpy()
        best = model.hierarchy.constrain(
            p, table["time_h"].to_numpy(), names, table["frame"].to_numpy()
        )[1]
    table["frame"] = movie.numbers[table["frame"]]
    table["class"] = np.array(classes)[best] if len(best) else ""
    for i, name in enumerate(classes):
        table[f"share/{name}"] = shares[:, i]
    return table.sort_values(["track", "frame"], ignore_index=True)


def _shares(found: _Found, classes: list[str], movie: _Movie, pixels: int) -> pd.DataFrame:
    """A row per frame: share of the frame in colonies, and of each class in those, NaN without any."""
    counts = np.stack([c.sum(0) for c in found.counts]).astype(float)
    inside = counts.sum(1)
    with np.errstate(invalid="ignore"):
        shares = counts / inside[:, None]
    return pd.DataFrame(
        {
            "frame": movie.numbers,
            "time_h": movie.hours,
            "colonies": inside / pixels,
            **{f"share/{c}": shares[:, i] for i, c in enumerate(classes)},
        }
    )


def _legend(figure: Figure, classes: list[str]) -> None:
    from matplotlib.patches import Patch

    both = zip(classes, area_colours(len(classes)), strict=True)
    handles = [Patch(color=colour, label=name) for name, colour in both]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(classes)), frameon=False
    )


def _plot_shares(shares: pd.DataFrame, classes: list[str]) -> Figure:
    figure, ((axes,),) = blank_figure(6.4, 3.6, 1, 1)
    timed = shares["time_h"].notna().all()
    x = shares["time_h" if timed else "frame"].to_numpy(float)
    parts = shares[[f"share/{c}" for c in classes]].to_numpy().T
    colours = area_colours(len(classes))
    if len(x) == 1:
        for i, part in enumerate(parts):
            axes.bar(["now"], part, bottom=parts[:i].sum(0), color=colours[i])
        axes.set_xticks([0], [f"{x[0]:g}"])
    else:
        axes.stackplot(x, np.nan_to_num(parts), colors=colours, linewidth=0)
        axes.set_xlim(x[0], x[-1])
    axes.set(ylim=(0, 1), ylabel="share of the colonies' area", xlabel="h" if timed else "frame")
    _legend(figure, classes)
    return figure


def _overlay(found: _Found, classes: list[str], movie: _Movie) -> Figure:
    height, width = found.panels[0][1].shape
    panels = len(found.panels)
    figure, grid = blank_figure(3.2 * panels, 3.2 * height / width + 0.8, 1, panels)
    colours = np.array([(0, 0, 0), *map(getrgb, area_colours(len(classes)))]) / 255
    for axes, (i, frame, class_map) in zip(grid[0], found.panels, strict=True):
        axes.imshow(frame, cmap="gray", vmin=0, vmax=255)
        colour = np.dstack([colours[class_map], np.where(class_map > 0, 0.4, 0)])
        axes.imshow(colour, interpolation="nearest")
        name, hours = f"frame {movie.numbers[i]}", movie.hours[i]
        axes.set_title(f"{name}, {hours:.4g} h" if math.isfinite(hours) else name, fontsize=10)
        axes.set_axis_off()
    _legend(figure, classes)
    return figure


class _Progress:
    """One line on stderr now and then: frames done, frames/s, time left. Short work is silent."""

    def __init__(self, total: int):
        self.total, self.start = total, time.monotonic()
        self.last, self.said = self.start, False
        self.terminal = sys.stderr.isatty()

    def show(self, done: int) -> None:
        now = time.monotonic()
        pause = 0.5 if self.terminal else LINE_S
        if now - self.start < SILENT_S or now - self.last < pause:
            return
        self.last, self.said = now, True
        rate = done / (now - self.start)
        left = (self.total - done) / rate / 60
        line = (
            f"predict: {done:,} of {self.total:,} frames, {rate:.2f} frames/s, {left:.1f} min left"
        )
        print(
            f"\r\033[K{line}" if self.terminal else line,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        if self.terminal and self.said:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
