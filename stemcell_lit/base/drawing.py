"""Palettes, figures and grids of patches, the same for every picture."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, then Tol's muted one: told apart under every common colour blindness.
_BOTH = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#332288", "#882255", "#999933", "#117733", "#aa4499"),
)
LINE_COLOURS = (*_BOTH, "#111111")  # on white, where yellow is hard to see
AREA_COLOURS = (*_BOTH, "#f0e442")  # over pictures, where black is hard to see
GREY = "#8a8f98"  # the baseline, and real patches

NO_MATH: Any = {"text.parse_math": False}  # a class may be called $x
# of all pictures of a report
STYLE: Any = {
    **NO_MATH,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.edgecolor": "#9aa0a6",
    "xtick.color": "#444",
    "ytick.color": "#444",
    "legend.frameon": False,
}

DPI = 150  # of the figures


def colours(methods: Sequence[str], baseline: str) -> dict[str, str]:
    """A colour for each method, grey for the baseline."""
    others = [m for m in methods if m != baseline]
    return {baseline: GREY} | {m: LINE_COLOURS[i % len(LINE_COLOURS)] for i, m in enumerate(others)}


def area_colours(classes: int) -> list[str]:
    """A colour for each class on a picture; they repeat where there are more classes than colours."""
    return [AREA_COLOURS[i % len(AREA_COLOURS)] for i in range(classes)]


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=DPI, format="png")
    return stream.getvalue()


def blank_figure(
    width: float, height: float, rows: int, columns: int, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of its own: pyplot would keep a list of all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def panels(
    width: float, height: float, count: int, most: int, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `count` places of that size in inches, at most so many in a row, and a grid that ends with them."""
    columns = min(most, count)
    rows = math.ceil(count / columns)
    figure, axes = blank_figure(width * columns, height * rows, rows, columns, **shared)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, axes


def mosaic(axis: Axes, lines: Sequence[np.ndarray], columns: int) -> None:
    """Rows of patches side by side, two white pixels between them."""
    size = lines[0].shape[1]
    canvas = np.full((len(lines) * (size + 2) - 2, columns * (size + 2) - 2), 255, np.uint8)
    for i, line in enumerate(lines):
        for j, patch in enumerate(line[:columns]):
            y, x = i * (size + 2), j * (size + 2)
            canvas[y : y + size, x : x + size] = patch
    axis.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def draw_grid(
    rows: np.ndarray | Iterable[np.ndarray], names: Sequence[str], path: str | Path
) -> None:
    """Writes rows of patches with a name before each.

    `rows` are uint8, for each name (columns, side, side); the folder of `path`, a PNG, is made.
    """
    lines = [np.concatenate(list(row), axis=1) for row in rows]
    width, height = max(line.shape[1] for line in lines), lines[0].shape[0]
    zoom = max(1, 64 // height)  # small patches are shown large enough to be judged
    margin = 8 * max(len(n) for n in names) + 8
    page = Image.new("L", (margin + zoom * width, zoom * height * len(lines)), 255)
    pen = ImageDraw.Draw(page)
    for i, (line, name) in enumerate(zip(lines, names, strict=True)):
        picture = Image.fromarray(line)
        size = (zoom * picture.width, zoom * picture.height)
        page.paste(picture.resize(size, Image.Resampling.NEAREST), (margin, zoom * height * i))
        pen.text((4, zoom * height * i + zoom * height // 2 - 6), name, fill=0)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)
