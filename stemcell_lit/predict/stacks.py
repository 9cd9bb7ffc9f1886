"""Stacks of maps as OME-TIFF that Fiji and napari show as they are meant, written page after page."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL.ImageColor import getrgb

from stemcell_lit.predict.found import MappedMovie

NAMESPACE = "stemcell_lit/classes"  # of the annotation that names the values


def write_classes(
    file: Path,
    maps: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    names: list[str],
    colours: list[str],
    movie: MappedMovie,
    digest: str,
) -> None:
    """Class maps with a palette.

    Fiji's Bio-Formats keeps the palette, writes the name of the image under its title, frame by frame, and shows the
    description in Image > Show Info: so all of these hold what the values mean.

    Args:
        file: to be made.
        maps: uint8 (height, width), 0 background, then the values from 1.
        shape: (frames, height, width).
        names: of the values from 1.
        colours: of the values from 1.
        movie: what the maps belong to.
        digest: of the maps.
    """
    told = {"0": "background", **{str(i + 1): c for i, c in enumerate(names)}}
    metadata = _metadata(movie, "TYX", digest) | {
        "Name": ", ".join(f"{k} {v}" for k, v in told.items() if k != "0"),
        "Description": "; ".join(f"{k} {v}" for k, v in told.items()),
        "MapAnnotation": {"Namespace": NAMESPACE, **told},
    }
    palette = np.zeros((3, 256), np.uint16)
    for i, colour in enumerate(colours):
        palette[:, i + 1] = np.array(getrgb(colour)) * 257  # 8 bit to 16
    _write(file, maps, shape, metadata, photometric="palette", colormap=palette)


def write_probabilities(
    file: Path,
    pages: Iterable[np.ndarray],
    shape: tuple[int, int, int, int],
    names: list[str],
    colours: list[str],
    movie: MappedMovie,
    digest: str,
) -> None:
    """Probabilities of the classes, each a channel of its name and colour: 0 to 255 stand for 0 to 1.

    Args:
        file: to be made.
        pages: uint8 (height, width), frame by frame and in each class by class; 0 outside of colonies.
        shape: (frames, classes, height, width).
        names: of the classes.
        colours: of the classes.
        movie: what the maps belong to.
        digest: of the maps.
    """
    metadata = _metadata(movie, "TCYX", digest + "/probabilities") | {
        "Name": "probabilities, 255 is 1",
        "Description": "probability of each class, round(255 p); 0 outside of colonies; before a path along tracks",
        "Channel": {"Name": names, "Color": [_signed(c) for c in colours[: len(names)]]},
    }
    _write(file, pages, shape, metadata, photometric="minisblack")


def _metadata(movie: MappedMovie, axes: str, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "axes": axes,
        # the same maps give the same file: tifffile would name it by the clock
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
    }
    if movie.um_per_px is not None:
        found |= {"PhysicalSizeX": movie.um_per_px, "PhysicalSizeXUnit": "µm"}
        found |= {"PhysicalSizeY": movie.um_per_px, "PhysicalSizeYUnit": "µm"}
    if movie.hours_between is not None:
        found |= {"TimeIncrement": movie.hours_between, "TimeIncrementUnit": "h"}
    return found


def _write(
    file: Path,
    pages: Iterable[np.ndarray],
    shape: tuple[int, ...],
    metadata: dict[str, Any],
    **more: Any,
) -> None:
    tifffile.imwrite(
        file,
        iter(pages),
        shape=shape,
        dtype=np.uint8,
        ome=True,
        bigtiff=math.prod(shape) > 2**31,
        compression="zlib",
        metadata=metadata,
        **more,
    )


def _signed(colour: str) -> int:
    """A colour as OME has it: red, green, blue and opacity in a signed number of 32 bit."""
    red, green, blue = getrgb(colour)[:3]
    number = red << 24 | green << 16 | blue << 8 | 255
    return number - (1 << 32 if number >= 1 << 31 else 0)
