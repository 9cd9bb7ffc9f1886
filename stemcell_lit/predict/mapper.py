"""From a frame to class probabilities: its windows on a grid, and the grid spread over its pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from stemcell_lit.classify.stacked import Stacked, Stage
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.movies.resample import resample, scale_between, scaled_shape
from stemcell_lit.patches.store import ViewCutter
from stemcell_lit.predict.dense import DenseMean, DenseStage, total_pool, usable_stride, why_not

BATCH = 256  # windows cut out at once


COMPARED_WINDOWS = 64  # in each of them


class Mapper:
    """A trained hierarchy on the frames of one movie.

    Windows have the size that the model was trained at and lie wholly inside the frame. A pixel
    belongs to the window whose centre is nearest, so that the border of a frame, half a window
    wide, takes the class of the outermost windows.

    Args:
        model: trained.
        shape: (height, width) of the frames, px.
        um_per_px: of the frames; None, or a model that does not tell its own: they have the pixels of the patches as
            they were stored, before the model's reduction of them.
        stride: px of the movie between windows; the nearest that the networks allow is taken.
        exact: cut every window out, as in training; always so where the model looks at several scales. Otherwise the
            windows of a stage share features where its layers allow it, and are cut out where they do not.

    Attributes:
        exact: whether the windows of every stage are cut out.
        shared: stages whose windows share features.
        cut: other stages, and why theirs do not; empty with `exact`, and where the model looks at several scales.
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
        self.model, self.shape = model, shape
        exact = exact or len(model.scales) > 1
        self.cut = {} if exact else {n: why_not(s) for n, s in model.stages.items() if why_not(s)}
        kinds = (StageModule, Stacked)
        networks = {n: s for n, s in model.stages.items() if isinstance(s, kinds)}
        self.shared = [] if exact else [name for name in networks if name not in self.cut]
        self.exact = exact or (not self.shared and bool(model.stages))
        known = um_per_px is not None and model.um_per_px is not None
        # as patches are for training
        self.scale = scale_between(um_per_px, model.um_per_px) if known else 1 / model.reduced
        pool = max((total_pool(networks[name]) for name in self.shared), default=1)
        self.stride = usable_stride(stride * self.scale, pool)
        self.size = model.image_size
        reduced = scaled_shape(shape, self.scale)
        if min(reduced) < self.size:
            raise UserError(
                f"the frames are {shape[0]} x {shape[1]} px, {reduced[0]} x {reduced[1]} at the model's "
                f"{micrometres(model.um_per_px)}; expected at least {self.size} x {self.size}; check um_per_px"
            )
        self.grid = tuple((side - self.size) // self.stride + 1 for side in reduced)
        self._rows, self._columns = (
            self._nearest(side, count) for side, count in zip(shape, self.grid, strict=True)
        )
        self._dense = {
            name: DenseMean(networks[name], self.size, self.stride) for name in self.shared
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
        given: np.ndarray = values[self._rows[:, None], self._columns[None, :]]
        return given

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

    def sample(
        self, frame: np.ndarray, inside: np.ndarray, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Some windows as the model sees them.

        Args:
            frame: uint8 (height, width).
            inside: bool (rows, columns), from which they are drawn.
            count: of them, at most.
            rng: draws them.

        Returns:
            uint8 (windows, [scales,] size, size).
        """
        rows, columns = np.nonzero(inside)
        some = rng.permutation(len(rows))[:count]
        views = ViewCutter(self.reduce(frame), self.size, self.model.scales)
        return views.cut(self.stride * rows[some], self.stride * columns[some])

    def adjust(self, examples: Iterable[tuple[np.ndarray, float, np.ndarray]]) -> None:
        """Brings shared features nearer to windows cut out, stage by stage.

        Args:
            examples: (frame, hours, wanted): uint8 (height, width), its time, and bool (rows, columns),
                the windows that are cut out.
        """
        found: dict[DenseStage, list[tuple[np.ndarray, np.ndarray]]] = {}
        for frame, hours, wanted in examples:
            image, silent = self.reduce(frame), self._silent(hours)
            for name, mean in self._dense.items():
                if not wanted.any() or name in silent:
                    continue
                for stage, dense in zip(mean.parts, mean.dense, strict=True):
                    if dense.exact:
                        continue
                    scales = self.model.scales
                    cut = _cut_out(
                        stage, image, self.size, self.stride, scales, wanted, turns=False
                    )
                    found.setdefault(dense, []).append((dense.raw(image, wanted), cut))
        for dense, pairs in found.items():
            raw, cut = (np.concatenate(part) for part in zip(*pairs, strict=True))
            dense.adjust(raw, cut)

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
            elif exact or name not in self._dense:
                p[name] = _cut_out(stage, image, self.size, self.stride, self.model.scales, wanted)
            else:
                p[name] = self._dense[name].probabilities(image, wanted)[wanted]
        joint = hierarchy.combine(p, times)
        if hierarchy.temporal == "prior":
            frames = np.zeros(count, np.int64)
            joint = hierarchy.constrain(joint, times, np.full(count, ""), frames)[0]
        # fitted on what a path makes of it, the temperature says nothing of what the path is to be made of
        return joint if hierarchy.temporal == "path" else self.model.calibrated(joint)


def _cut_out(
    stage: Stage,
    image: np.ndarray,
    size: int,
    stride: int,
    scales: Sequence[int],
    wanted: np.ndarray,
    **how: bool,
) -> np.ndarray:
    """Probabilities (wanted windows, groups), each window cut out and classified, in batches; `how`: as they say."""
    views = ViewCutter(image, size, scales)
    top, left = (stride * i for i in np.nonzero(wanted))
    parts = [
        stage.probabilities(views.cut(top[i : i + BATCH], left[i : i + BATCH]), **how)
        for i in range(0, len(top), BATCH)
    ]
    return np.concatenate(parts)


def micrometres(value: float | None) -> str:
    """A pixel size in words."""
    return "unknown um/px" if value is None else f"{value:g} um/px"
