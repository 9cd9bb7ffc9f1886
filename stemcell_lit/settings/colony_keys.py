"""The legal keys of where colonies are found, typed; `None` means "found out from the data"."""

from __future__ import annotations

from dataclasses import dataclass, field

from stemcell_lit.settings.field_types import (
    choice,
    number,
    random_seed,
    setting,
    share,
)


@dataclass
class ContrastConfig:
    """Colonies by brightness relative to their surroundings, two thresholds."""

    cell_um: float = setting(
        "um, sigma of a cell's surroundings: about half a cell's length", number(10.0, above=0)
    )
    low: float = setting("relative brightness of every pixel of a colony, at least", 0.025)
    high: float = setting("relative brightness of one pixel of a colony, at least", 0.15)
    polarity: str = setting(
        "cells against the ground: bright, dark, or both (textured)",
        choice("bright", "dark", "both"),
    )


@dataclass
class PaperConfig:
    """Colonies by local entropy (Witmer and Bhanu 2022)."""

    entropy_radius_um: float = setting(
        "um around a pixel whose gray values count; 3 px at 1.6 um/px", number(4.8, above=0)
    )
    opening_um: float = setting("um, radius of what is too thin to stay", number(1.6, least=0))
    threshold: float | None = setting(
        "least entropy of a colony, scaled to 0..1; null: by Otsu's method", share(None)
    )


@dataclass
class ForestConfig:
    """Colonies by trees on pixel features, fitted to a few annotated frames at every use."""

    movie: str | None = setting("file or folder of the annotated frames", None)
    masks: str | None = setting("file or folder of their masks: 0 ground, else cell", None)
    frames: int = setting(
        "annotated frames used at most, spread over the movie; empty masks are left out",
        number(8, least=1),
    )
    um_per_px: float | None = setting(
        "um of a pixel of that movie; null: what its file says", number(None, above=0)
    )
    pixels: int = setting("pixels drawn from each annotated frame", number(20_000, least=1))
    min_um: float = setting("um, sigma of the finest features", number(1.6, above=0))
    max_um: float = setting("um, sigma of the coarsest features", number(12.8, above=0))
    trees: int = setting("how many", number(100, least=1))
    seed: int = setting("seed of the pixels that are drawn", random_seed())
    probability: float = setting("above which a pixel belongs to a colony", share(0.5))


@dataclass
class ColoniesConfig:
    """Which pixels are cells or colonies (`movies/colonies`). Lengths in um, areas in um2."""

    name: str = setting("what reports call these settings", "contrast")
    method: str = setting(
        "by contrast, the paper's entropy, a forest fitted to your masks, or none: all is foreground",
        choice("contrast", "paper", "forest", "none"),
    )
    blur_um: float = setting(
        "um, sigma of a blur before anything else, against noise; contrast and paper",
        number(0.0, least=0),
    )
    background_um: float = setting(
        "um, sigma over which the light counts as even; contrast and forest", number(50.0, above=0)
    )
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    paper: PaperConfig = field(default_factory=PaperConfig)
    forest: ForestConfig = field(default_factory=ForestConfig)
    # what becomes of the map, whatever the method
    grow_um: float = setting(
        "um by which outlines move outwards: they lie outside the bright body", number(1.6, least=0)
    )
    join_um: float = setting(
        "um, width of gaps that are closed: cells to colonies", number(0.0, least=0)
    )
    max_hole_um2: float | None = setting(
        "um2, area of the largest hole that is filled; null: all are", number(80.0, least=0)
    )
    min_area_um2: float = setting("um2, smaller ones are dropped", number(200.0, least=0))
    margin_um: float = setting(
        "um; a colony whose centre is nearer to the frame's border is dropped", number(0.0, least=0)
    )
