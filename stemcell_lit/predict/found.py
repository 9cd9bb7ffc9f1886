"""What is kept of a movie while it is mapped, and what the values of its maps mean."""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stemcell_lit.base.drawing import GREY, area_colours
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import classifier_of, foreground
from stemcell_lit.movies.frames import Frames
from stemcell_lit.patches.labels import UNSURE
from stemcell_lit.predict.finished import PROBABILITIES
from stemcell_lit.predict.spill import Spill
from stemcell_lit.settings.command_keys import PredictCommand

MOST_VALUES = 255  # of a class map of 8 bit, beside the background


@dataclass(frozen=True)
class Values:
    """What the values of a class map mean.

    Attributes:
        names: of the values from 1: the classes, and last `unsure` where there is a threshold.
        threshold: a window whose greatest class probability is below is unsure; None: none is.
        of_colonies: the same of a colony.
    """

    names: list[str]
    threshold: float | None
    of_colonies: float | None

    @classmethod
    def of(cls, config: PredictCommand, model: TrainedHierarchy) -> Values:
        """Of a run.

        Raises:
            UserError: there are more classes than a map can tell apart, or one is called `unsure`.
        """
        of_colonies = model.unsure_below if config.unsure is None else config.unsure
        threshold, classes = of_colonies, model.hierarchy.classes
        if config.unsure is None and model.hierarchy.temporal == "path":
            threshold = None  # the model's is one of what a path makes of the windows
        if not threshold:
            names, threshold = classes, None
        elif UNSURE in classes:
            raise UserError(
                f"unsure={threshold}: the model has a class of the name {UNSURE!r} already; give unsure=0"
            )
        else:
            names = [*classes, UNSURE]
        if len(names) > MOST_VALUES:
            raise UserError(
                f"the model has {len(classes)} classes; a class map tells at most {MOST_VALUES} apart"
            )
        return cls(list(names), threshold, of_colonies or None)

    @property
    def last(self) -> int:
        """The greatest value."""
        return len(self.names)

    @property
    def classes(self) -> int:
        """How many of them are classes."""
        return len(self.names) - (self.threshold is not None)

    @property
    def colours(self) -> list[str]:
        """Of each, such as #0072b2."""
        return area_colours(self.classes) + [GREY] * (self.last - self.classes)

    def choose(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest class of windows, and what the map shows there.

        Args:
            p: (rows, columns, classes), NaN where nothing was asked.

        Returns:
            both uint8 (rows, columns): 0 where nothing was asked, then the classes from 1.
        """
        asked, known = np.isfinite(p[..., 0]), np.nan_to_num(p)
        best = np.where(asked, known.argmax(2) + 1, 0).astype(np.uint8)
        if self.threshold is None:
            return best, best
        unsure = asked & (known.max(2) < self.threshold)
        return best, np.where(unsure, np.uint8(self.last), best)


@dataclass
class Found:
    """What is kept of each frame until tracks are known: little, so that long movies fit."""

    masks: list[bytes] = field(default_factory=list)  # packed and compressed
    windows: list[np.ndarray] = field(default_factory=list)  # uint8 value of each window
    counts: list[np.ndarray] = field(default_factory=list)  # pixels (labels + 1, values)
    best: list[np.ndarray] = field(default_factory=list)  # the same of the likeliest classes
    mean_p: list[np.ndarray] = field(default_factory=list)  # (labels + 1, classes)
    panels: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)
    differences: list[np.ndarray] = field(default_factory=list)
    spill: Spill | None = None  # probabilities of the windows, in a file until they are written

    def keep_probabilities(self, folder: Path) -> None:
        """Keeps those of each frame in a file of a folder, which `write_outputs` deletes."""
        self.spill = Spill(folder / f"{PROBABILITIES}.part")

    def add_probabilities(self, p: np.ndarray) -> None:
        """Those of a frame's windows (rows, columns, classes), NaN where nothing was asked, if they are kept."""
        if self.spill is not None:
            self.spill.add(np.rint(np.nan_to_num(p) * 255).astype(np.uint8))

    def digest(self) -> str:
        """SHA-256 (hex) of the maps."""
        digest = hashlib.sha256()
        for mask, windows in zip(self.masks, self.windows, strict=True):
            digest.update(mask + windows.tobytes())
        return digest.hexdigest()

    def mask(self, i: int, shape: tuple[int, int]) -> np.ndarray:
        """Where cells are in frame `i`, uint8 (height, width), 0 or 1."""
        bits = np.frombuffer(zlib.decompress(self.masks[i]), np.uint8)
        return np.unpackbits(bits, count=math.prod(shape)).reshape(shape)


class MappedMovie:
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
