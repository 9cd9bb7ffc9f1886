"""A reader for napari: class maps as labels with names and colours, over their movie.

napari finds it by `napari.yaml`, where both are installed; nothing else of this project imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import tifffile

from stemcell_lit.base import formats as form
from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import open_frames
from stemcell_lit.predict.finished import MAPS, RECORD
from stemcell_lit.predict.stacks import NAMESPACE

MOST_BYTES = 4 << 30  # of a movie that is shown below its maps

Layer = tuple[Any, dict[str, Any], str]

_ABOUT = form.record(
    {
        "movie": form.record(
            {"path": form.text(), "scaling": form.listing(form.number(), 2, 2)},
        ),
        "reading": form.record(
            {
                "channel": form.maybe(form.text()),
                "plane": form.maybe(form.whole()),
                "position": form.maybe(form.text()),
            },
            more=False,
        ),
        "every": form.whole(1),
    }
)


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[Layer]] | None:
    """The reader of class maps of `predict`, or of the folder that holds them; None for anything else."""
    if not isinstance(path, str):
        return None
    file = _maps_at(Path(path))
    try:
        if file is None or not _names(file):
            return None
    except Exception:  # whatever it is, another reader shall say what is wrong with it
        return None
    return read


def read(path: str | Sequence[str]) -> list[Layer]:
    """Layers of class maps, as napari takes them: the movie as an image where it is found, then the labels.

    The names of the classes stand in the labels' features, which napari shows under the cursor. Lengths are in um
    where the pixel size is known.
    """
    file = _maps_at(Path(str(path)))
    if file is None:
        raise ValueError(f"{path}: no class maps of stemcell-lit predict")
    with tifffile.TiffFile(file) as tiff:
        maps = tiff.asarray()
        table = tiff.pages.first.colormap  # uint16 (3, 256)
    maps = maps.reshape(-1, *maps.shape[-2:])  # a movie of one frame has no axis of time
    names = _names(file)
    colours: dict[int | None, Any] = {None: (0.0, 0.0, 0.0, 0.0), 0: (0.0, 0.0, 0.0, 0.0)}
    for value in names:
        if value and table is not None:
            colours[value] = (*(table[:, value] / 65_535).tolist(), 1.0)
    um = _um_per_px(file)
    place = {"scale": (1.0, um or 1.0, um or 1.0)}
    if um is not None:
        place["units"] = ("pixel", "um", "um")  # type: ignore[assignment]
    labels = {
        **place,
        "name": f"classes of {file.parent.name}",
        "colormap": colours,
        "features": pd.DataFrame({"index": list(names), "class": list(names.values())}),
        "opacity": 0.4,
        "metadata": {"classes": names},
    }
    layers: list[Layer] = [(maps, labels, "labels")]
    movie = _movie(file, maps.shape)
    if movie is not None:
        layers.insert(0, (movie[0], {**place, "name": movie[1], "colormap": "gray"}, "image"))
    return layers


def _maps_at(path: Path) -> Path | None:
    """The class maps at a path, of a name that may be another; None: there are none."""
    if path.is_dir():
        path = path / MAPS
    return path if path.is_file() and path.name.lower().endswith((".tif", ".tiff")) else None


def _tree(file: Path) -> ElementTree.Element:
    with tifffile.TiffFile(file) as tiff:
        return ElementTree.fromstring(tiff.ome_metadata or "<OME/>")


def _names(file: Path) -> dict[int, str]:
    """Value -> name, with the background; empty for a file that is not of `predict`."""
    for note in _tree(file).iter():
        if note.tag.endswith("}MapAnnotation") and note.get("Namespace") == NAMESPACE:
            pairs = [m for m in note.iter() if m.tag.endswith("}M")]
            return {int(m.get("K", "")): m.text or "" for m in pairs}
    return {}


def _um_per_px(file: Path) -> float | None:
    for pixels in _tree(file).iter():
        if pixels.tag.endswith("}Pixels"):
            size = pixels.get("PhysicalSizeX")
            return None if size is None else float(size)
    return None


def _movie(file: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, str] | None:
    """The frames of the movie that was mapped, uint8 as the maps lie, and its name; None: it is not found."""
    try:
        about = form.read_json(file.parent / RECORD, _ABOUT, "map it again")
        movie = about["movie"]
        scaling = (movie["scaling"][0], movie["scaling"][1])
        with open_frames(movie["path"], scaling=scaling, **about["reading"]) as frames:
            each = frames.each(about["every"])
            if (len(each), *frames.shape[1:]) != shape or np.prod(shape) > MOST_BYTES:
                return None
            return np.stack([frames.read(i) for i in each]), frames.path.name
    except (UserError, OSError):
        return None
