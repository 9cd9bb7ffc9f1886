"""Simulated phase-contrast time-lapses of growing stem-cell colonies, with a class map for every frame.

Everything in a movie is a function of (seed, movie, time): colonies grow around fixed centres, cells ride
outwards with them, each place turns from dense to spread to differentiated at its own two times and never back,
debris comes early and again late. The cells' optical thickness is a phase map (rad), and Zernike's filter in
the Fourier plane turns it into the image, halo and shade-off included.

Layout of the folder::

    movie_00.tif           uint8 frames, zlib-compressed OME-TIFF with pixel size and frame interval
    movie_00_classes.tif   uint8, 0 = background, 1.. = `CLASSES` in order
    movie_00_colonies.tif  uint16, 0 = no colony, 1.. = a colony, the same one in every frame
    manifest.json          classes, scale, config and the condition of every movie

What comes out is *simulated*: its figures are the author's choice, held against published entropy shares, and say
nothing of a real culture.
"""

from __future__ import annotations

import numpy as np

from stemcell_lit.settings.group_keys import SimulationConfig
from stemcell_lit.simulate.culture import Culture
from stemcell_lit.simulate.rendering import Renderer

CLASSES = ("debris", "dense", "spread", "differentiated")  # the paper's


DEBRIS, DENSE, SPREAD, DIFFERENTIATED = 1, 2, 3, 4  # values in a class map


class Movie:
    """One movie: its culture and looks are fixed, and `frame` is a function of them and of the time."""

    def __init__(self, config: SimulationConfig, index: int):
        self.config, self.index = config, index
        rng = np.random.default_rng([config.seed, index, 0])
        self.culture = Culture(config, rng)
        self.renderer = Renderer(self.culture, index, rng)

    def frame(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image (uint8), class map (uint8) and colony map (uint16) of a frame, (size, size) each; they count from 0."""
        hour = number * self.config.hours / self.config.frames
        rng = np.random.default_rng([self.config.seed, self.index, 1, number])
        inward, look = self.culture.extent(hour)
        phase = self.renderer.cells_phase(hour, look, inward)
        debris, phase = self.renderer.with_debris(phase, hour)
        inside = inward > 0
        classes = np.zeros(inside.shape, np.uint8)
        classes[inside] = DENSE
        for value, turn in zip((SPREAD, DIFFERENTIATED), self.culture.turns, strict=True):
            classes[inside & (hour >= turn)] = value
        classes[debris] = DEBRIS
        colonies = np.where(inside, self.culture.owner + 1, 0).astype(np.uint16)
        return self.renderer.expose(phase, hour, rng), classes, colonies
