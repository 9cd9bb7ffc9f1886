"""Files of `predict`: class maps, overlay, colonies and shares over time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL.ImageColor import getrgb

from stemcell_lit.base.drawing import NO_MATH, blank_figure, png
from stemcell_lit.base.spreadsheets import to_csv
from stemcell_lit.movies.tracks import Tracks
from stemcell_lit.predict import tables
from stemcell_lit.predict.finished import MAPS, PROBABILITIES, RECORD
from stemcell_lit.predict.found import Found, MappedMovie, Values
from stemcell_lit.predict.mapper import Mapper
from stemcell_lit.predict.stacks import write_classes, write_probabilities

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PANEL_PX = 480  # greatest side of a panel of the overlay


def write_outputs(
    folder: Path,
    name: str,
    found: Found,
    movie: MappedMovie,
    mapper: Mapper,
    values: Values,
    tracks: Tracks,
    record: Mapping[str, Any],
) -> None:
    """Writes class maps, colonies, shares, classes, overlay and predict.json, and probabilities if they were kept."""
    import matplotlib

    shape, total = mapper.shape, len(movie)
    maps = (mapper.spread(found.windows[i]) * found.mask(i, shape) for i in range(total))
    write_classes(
        folder / MAPS, maps, (total, *shape), values.names, values.colours, movie, found.digest()
    )
    if found.spill is not None:
        pages = (
            mapper.spread(p[..., c]) * found.mask(i, shape)
            for i, p in enumerate(found.spill)
            for c in range(values.classes)
        )
        whole = (total, values.classes, *shape)
        names, colours = values.names[: values.classes], values.colours
        write_probabilities(
            folder / PROBABILITIES, pages, whole, names, colours, movie, found.digest()
        )
        found.spill.remove()
    colonies = tables.colonies(tracks, found, mapper.model, values, movie)
    shares = tables.shares(found, values.names, movie, math.prod(shape))
    classes = tables.classes(name, found, values.names, colonies, shares, movie)
    for file, table, digits in (
        (tables.COLONIES, colonies, "%.6g"),
        # Enough digits for the shares of a row to sum to 1
        (tables.SHARES, shares, "%.9g"),
        (tables.CLASSES, classes, "%.6g"),
    ):
        (folder / file).write_text(to_csv(table, digits), encoding="utf-8")
    with matplotlib.rc_context(NO_MATH):
        (folder / "shares.png").write_bytes(png(_plot_shares(shares, values)))
        (folder / "overlay.png").write_bytes(png(_overlay(found, values, movie)))
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def deviation_of(found: Found) -> dict[str, Any] | None:
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


def _legend(figure: Figure, values: Values) -> None:
    from matplotlib.patches import Patch

    both = zip(values.names, values.colours, strict=True)
    handles = [Patch(color=colour, label=name) for name, colour in both]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, values.last), frameon=False
    )


def _plot_shares(shares: pd.DataFrame, values: Values) -> Figure:
    figure, ((axes,),) = blank_figure(6.4, 3.6, 1, 1)
    timed = shares["time_h"].notna().all()
    x = shares["time_h" if timed else "frame"].to_numpy(float)
    parts = shares[[f"share/{c}" for c in values.names]].to_numpy().T
    colours = values.colours
    if len(x) == 1:
        for i, part in enumerate(parts):
            axes.bar(["now"], part, bottom=parts[:i].sum(0), color=colours[i])
        axes.set_xticks([0], [f"{x[0]:g}"])
    else:
        axes.stackplot(x, np.nan_to_num(parts), colors=colours, linewidth=0)
        axes.set_xlim(x[0], x[-1])
    axes.set(ylim=(0, 1), ylabel="share of the colonies' area", xlabel="h" if timed else "frame")
    _legend(figure, values)
    return figure


def _overlay(found: Found, values: Values, movie: MappedMovie) -> Figure:
    height, width = found.panels[0][1].shape
    panels = len(found.panels)
    figure, grid = blank_figure(3.2 * panels, 3.2 * height / width + 0.8, 1, panels)
    colours = np.array([(0, 0, 0), *map(getrgb, values.colours)]) / 255
    for axes, (i, frame, class_map) in zip(grid[0], found.panels, strict=True):
        axes.imshow(frame, cmap="gray", vmin=0, vmax=255)
        colour = np.dstack([colours[class_map], np.where(class_map > 0, 0.4, 0)])
        axes.imshow(colour, interpolation="nearest")
        name, hours = f"frame {movie.numbers[i]}", movie.hours[i]
        axes.set_title(f"{name}, {hours:.4g} h" if math.isfinite(hours) else name, fontsize=10)
        axes.set_axis_off()
    _legend(figure, values)
    return figure
