"""Files of `predict`: class maps, overlay, colonies and shares over time."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tifffile
from PIL.ImageColor import getrgb

from stemcell_lit.base.drawing import NO_MATH, area_colours, blank_figure, png
from stemcell_lit.base.spreadsheets import to_csv
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.movies.colonies import classifier_of, foreground
from stemcell_lit.movies.frames import Frames
from stemcell_lit.movies.tracks import Tracks
from stemcell_lit.predict.mapper import Mapper
from stemcell_lit.settings.command_keys import PredictCommand

if TYPE_CHECKING:
    from matplotlib.figure import Figure


RECORD = "predict.json"


MAPS = "classes.ome.tif"


PANEL_PX = 480  # greatest side of a panel of the overlay


@dataclass
class Found:
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


def write_outputs(
    folder: Path,
    found: Found,
    movie: MappedMovie,
    mapper: Mapper,
    tracks: Tracks,
    record: Mapping[str, Any],
) -> None:
    """Writes class maps, colonies, shares, overlay and predict.json."""
    import matplotlib

    model = mapper.model
    classes = model.hierarchy.classes
    _write_maps(folder / MAPS, mapper, found, movie)
    colonies = to_csv(_colonies(tracks, found, model, movie), "%.6g")
    (folder / "colonies.csv").write_text(colonies, encoding="utf-8")
    shares = _shares(found, classes, movie, math.prod(mapper.shape))
    # Enough digits for the shares of a row to sum to 1
    (folder / "shares.csv").write_text(to_csv(shares, "%.9g"), encoding="utf-8")
    with matplotlib.rc_context(NO_MATH):
        (folder / "shares.png").write_bytes(png(_plot_shares(shares, classes)))
        (folder / "overlay.png").write_bytes(png(_overlay(found, classes, movie)))
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


def _class_map(mapper: Mapper, found: Found, i: int) -> np.ndarray:
    """Frame `i`, uint8 (height, width): 0 outside of colonies, then the classes from 1."""
    bits = np.frombuffer(zlib.decompress(found.masks[i]), np.uint8)
    height, width = mapper.shape
    mask = np.unpackbits(bits, count=height * width).reshape(height, width)
    return mapper.spread(found.windows[i]) * mask


def _write_maps(file: Path, mapper: Mapper, found: Found, movie: MappedMovie) -> None:
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
    tracks: Tracks, found: Found, model: TrainedHierarchy, movie: MappedMovie
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


def _shares(found: Found, classes: list[str], movie: MappedMovie, pixels: int) -> pd.DataFrame:
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


def _overlay(found: Found, classes: list[str], movie: MappedMovie) -> Figure:
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
