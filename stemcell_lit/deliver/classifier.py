"""A model in Python: patches or frames in, classes out. Needs no settings, no network and no logger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.predict.mapper import Mapper, micrometres

ADJUST = 1024  # windows cut out first, to which shared features are adjusted


@dataclass(frozen=True)
class Prediction:
    """What a model says of patches.

    Attributes:
        probabilities: float (patches, classes), rows sum to 1, in the order of `Classifier.classes`.
        classes: (patches,) names of the predicted classes.
        unsure: bool (patches,), top probability below the model's threshold; False where it has none.
    """

    probabilities: np.ndarray
    classes: np.ndarray
    unsure: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class ClassMap:
    """What a model says of every pixel of a frame.

    Attributes:
        classes: int64 (height, width), positions in `Classifier.classes`.
        top: float32 (height, width), probability of that class, 0 to 1.
        unsure: bool (height, width).
    """

    classes: np.ndarray
    top: np.ndarray
    unsure: np.ndarray


class Classifier:
    """A model that `deliver` made, or that of a trial. Read one with `Classifier.load`.

    Attributes:
        model: the trained hierarchy.
    """

    def __init__(self, model: TrainedHierarchy):
        self.model = model

    @classmethod
    def load(cls, path: str | Path, allow_module: str | None = None) -> Classifier:
        """Reads a folder with a model.json; no code in it is run.

        Args:
            path: `results/NAME/model`, or `model` of a trial.
            allow_module: a network of your own that it may ask for, `package.attribute`: its code is run.

        Raises:
            UserError: no model there, or an unreadable one.
        """
        return cls(TrainedHierarchy.load(path, allow_module))

    @property
    def classes(self) -> list[str]:
        """Names in the order of the probabilities."""
        return list(self.model.hierarchy.classes)

    @property
    def patch_px(self) -> int:
        """Height and width of the patches that it looks at, px; larger ones by a whole factor are averaged down."""
        return self.model.image_size

    @property
    def um_per_px(self) -> float | None:
        """Micrometres per pixel at `patch_px`; None: unknown."""
        return self.model.um_per_px

    @property
    def unsure_below(self) -> float | None:
        """A top probability below it is unsure, 0 to 1; None: not known."""
        return self.model.unsure_below

    def predict(
        self,
        pixels: np.ndarray,
        times: ArrayLike | None = None,
        tracks: Sequence[str] | np.ndarray | None = None,
        frames: ArrayLike | None = None,
    ) -> Prediction:
        """Classifies patches.

        Args:
            pixels: uint8 (patches, size, size), or (patches, scales, size, size) for a model of several scales; gray
                values 0 to 255, scaled as the model's data were. `size` is `patch_px` or a whole multiple of it, and
                shows the same stretch of the culture.
            times: (patches,) hours since the culture began, NaN where unknown; None: unknown.
            tracks: (patches,) names of the cell or colony, empty where unknown; None: unknown. With `frames`.
            frames: (patches,) numbers that order a track.

        Raises:
            UserError: pixels or lengths that the model cannot use.
        """
        pixels = self._checked(pixels)
        n = len(pixels)
        if tracks is not None and frames is None:
            raise UserError(
                "tracks without frames: nothing tells the order along a track; give frames"
            )
        given = {
            "time_h": np.full(n, np.nan) if times is None else _hours(times),
            "track": np.full(n, "") if tracks is None else _names(tracks),
            "frame": np.zeros(n, np.int64) if frames is None else _numbers(frames),
        }
        for name, values in given.items():
            if values.shape != (n,):
                raise UserError(f"{name}: {values.shape} values for {n} patches; give one for each")
        manifest = pd.DataFrame(
            {k: v.astype(object) if k == "track" else v for k, v in given.items()}
        )
        if not n:
            return Prediction(np.empty((0, len(self.classes))), np.empty(0, str), np.empty(0, bool))
        p, called = self.model.predict(pixels, manifest)
        return Prediction(p, np.array(self.classes)[called], self._unsure(p.max(1)))

    def map(
        self,
        frame: np.ndarray,
        um_per_px: float | None = None,
        hours: float | None = None,
        stride: float = 16,
        *,
        exact: bool = False,
    ) -> ClassMap:
        """Classifies every pixel of a frame by the window around it; a constraint along tracks is not applied.

        Args:
            frame: uint8 (height, width), gray values 0 to 255, scaled as the model's data were.
            um_per_px: micrometres per pixel of the frame; must be given where the model knows its own.
            hours: since the culture began; None: unknown.
            stride: px of the frame between windows.
            exact: cut every window out, as in training: much slower.

        Raises:
            UserError: no such frame, a frame smaller than a window, or its pixel size is missing.
        """
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 2:
            raise UserError(
                f"frame: {frame.dtype} {frame.shape}, expected uint8 (height, width) with gray values 0 to 255"
            )
        if um_per_px is None and self.um_per_px is not None:
            raise UserError(
                f"um_per_px=None: the model learned at {micrometres(self.um_per_px)}, and at another scale it would "
                "call other classes; give um_per_px of the frame"
            )
        mapper = Mapper(
            self.model, (frame.shape[0], frame.shape[1]), um_per_px, stride, exact=exact
        )
        time = math.nan if hours is None else float(hours)
        if mapper.shared:
            mapper.adjust([(frame, time, _some(mapper.grid))])
        p = mapper.probabilities(frame, time)
        top = p.max(2)
        # the threshold of a model with a path is one of what the path makes of the windows
        unsure = self._unsure(top) & (self.model.hierarchy.temporal != "path")
        return ClassMap(mapper.spread(p.argmax(2)), mapper.spread(top), mapper.spread(unsure))

    def _unsure(self, top: np.ndarray) -> np.ndarray:
        below = self.unsure_below
        found: np.ndarray = np.zeros(top.shape, bool) if below is None else top < below
        return found

    def _checked(self, pixels: np.ndarray) -> np.ndarray:
        pixels, views = np.asarray(pixels), len(self.model.scales)
        named = "(patches, size, size)" if views == 1 else f"(patches, {views}, size, size)"
        shape = pixels.shape[1:-2] == (() if views == 1 else (views,))
        if pixels.dtype != np.uint8 or pixels.ndim < 3 or not shape:
            raise UserError(
                f"pixels: {pixels.dtype} {pixels.shape}, expected uint8 {named} with gray values 0 to 255"
            )
        height, width = pixels.shape[-2:]
        if height != width or height < self.patch_px or height % self.patch_px:
            raise UserError(
                f"pixels: patches of {height} x {width} px, expected squares of {self.patch_px} px or a whole multiple"
            )
        return pixels


def _some(grid: tuple[int, ...]) -> np.ndarray:
    """Windows to adjust to, spread by chance, always the same: bool (rows, columns)."""
    wanted = np.zeros(grid, bool)
    chosen = np.random.default_rng(1).permutation(wanted.size)[:ADJUST]
    wanted.flat[chosen] = True
    return wanted


def _hours(times: ArrayLike) -> np.ndarray:
    try:
        found = np.asarray(times, np.float64)
    except (TypeError, ValueError):
        found = np.array([np.inf])
    if np.isinf(found).any():
        raise UserError("times: expected hours, NaN where unknown")
    return found


def _numbers(frames: ArrayLike) -> np.ndarray:
    found = np.asarray(frames)
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise UserError(f"frames: found {found.dtype}, expected whole numbers that order a track")
    return found.astype(np.int64)


def _names(tracks: Sequence[str] | np.ndarray) -> np.ndarray:
    """Tracks as text; what is no track (None, NaN) is none."""
    named = ["" if t is None or t != t else str(t) for t in np.asarray(tracks, object).ravel()]
    return np.array(named, str).reshape(np.shape(tracks))
