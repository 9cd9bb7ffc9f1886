"""Files of microscopes' makers, read through the readers of bioio: .nd2, .czi, .lif, and .vsi with Java.

Stage positions are the reader's scenes, movies of their own. One channel and one plane must be chosen; whatever else
has more than one entry is refused by its name. Sizes and times are taken where the reader gives them in known units.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from stemcell_lit.errors import UserError
from stemcell_lit.movies.suffixes import VENDOR_SUFFIXES
from stemcell_lit.movies.units import Units, settle

_AXES = {"C": "channels", "Z": "planes", "S": "samples of colour", "M": "mosaic tiles"}
_IN_UM = (".nd2", ".czi", ".lif")  # whose readers give sizes of pixels in micrometres
_EXPORT = "or export it as OME-TIFF with the maker's program or Fiji"


def reader_class(path: Path) -> Any:
    """The class that reads this file.

    Raises:
        UserError: its package is not installed.
    """
    package = VENDOR_SUFFIXES[path.suffix.lower()]
    module = package.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        java = " (it brings a part in Java)" if package == "bioio-bioformats" else ""
        raise UserError(
            f"{path}: files of type {path.suffix.lower()} are read by the package {package}, which is not installed; "
            f"pip install {package}{java}, {_EXPORT}"
        )
    return importlib.import_module(module).Reader


class VendorReader:
    """One movie of a maker's file; arguments as of `TiffReader`."""

    color, named = False, False

    def __init__(
        self,
        path: Path,
        *,
        channel: str | None = None,
        plane: int | None = None,
        position: str | None = None,
        labels: bool = False,
        first: bool = False,
    ):
        self.path, self.labels, self.notices = path, labels, list[str]()
        self.source = path.suffix.lower()[1:]
        if labels:
            raise UserError(
                f"{path}: class maps are read from TIFF and PNG alone; export the maps as TIFF"
            )
        self._kind: Any = reader_class(path)
        self._open: Any = None
        try:
            self._read_layout(channel, plane, position, first)
        except UserError:
            raise
        except Exception as error:  # each reader has errors of its own
            raise self._damaged(error) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # file handles stay in their process

    def read(self, index: int) -> np.ndarray:
        """Frame `index`, (height, width), as stored."""
        place = {**self._fixed, **({"T": index} if self._timed else {})}
        lazy = self._image().get_image_dask_data("YX", **place)
        frame: np.ndarray = np.asarray(lazy.compute(scheduler="synchronous"))
        return frame.astype(frame.dtype.newbyteorder("="), copy=False)

    def where(self, index: int) -> str:
        """The name of a frame, for messages."""
        return f"{self.path}, frame {index}" if self.shape[0] > 1 else str(self.path)

    def close(self) -> None:
        """Releases the file; reading afterwards opens it again."""
        self._open = None

    def _image(self) -> Any:
        if self._open is None:
            self._open = self._kind(str(self.path))
            self._open.set_scene(self._scene)
        return self._open

    def _damaged(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        package = VENDOR_SUFFIXES[self.path.suffix.lower()]
        return UserError(
            f"{self.path}: cannot be read by {package} ({reason}); copy it again from the microscope, {_EXPORT}"
        )

    def _read_layout(
        self, channel: str | None, plane: int | None, position: str | None, first: bool
    ) -> None:
        image = self._open = self._kind(str(self.path))
        scenes = [str(s) for s in image.scenes]
        self._check_scenes(len(scenes))
        names = scenes if len(set(scenes)) == len(scenes) else [f"{i}" for i in range(len(scenes))]
        self.positions = names if len(names) > 1 else [""]
        self._scene = self._position(names, position, first)
        image.set_scene(self._scene)
        sizes = {str(a): int(n) for a, n in zip(image.dims.order, image.dims.shape, strict=True)}
        self._timed = "T" in sizes
        self._fixed: dict[str, int] = {}
        for axis, n in sizes.items():
            if axis == "C":
                self._fixed["C"] = self._channel(image.channel_names, n, channel)
            elif axis == "Z":
                self._fixed["Z"] = self._plane(n, plane)
            elif axis not in "TYX":
                if n > 1:
                    what = _AXES.get(axis, f"entries of axis {axis}")
                    raise UserError(
                        f"{self.path}: found {n} {what}; expected one channel and one plane over time; "
                        f"{_EXPORT.removeprefix('or ')}"
                    )
                self._fixed[axis] = 0
        if "C" not in sizes and channel is not None:
            self._channel(None, 1, channel)
        if "Z" not in sizes and plane is not None:
            self._plane(1, plane)
        self.dtype = np.dtype(image.dtype).newbyteorder("=")
        if self.dtype.kind not in "uif" or 0 in sizes.values():
            raise UserError(
                f"{self.path}: found {self.dtype} {sizes}; expected frames of integers or real numbers; {_EXPORT}"
            )
        self.shape = (sizes.get("T", 1), sizes["Y"], sizes["X"])
        self.numbers = list(range(self.shape[0]))
        self.units = self._units(image)
        self.notices += self.units.notices

    def _check_scenes(self, told: int) -> None:
        """Refuses a CZI whose description names fewer scenes than its pixels are in: some would be left out unseen."""
        if self.path.suffix.lower() != ".czi":
            return
        from pylibCZIrw import czi

        with czi.open_czi(str(self.path)) as document:
            there = max(1, len(document.scenes_bounding_rectangle))
        if there != told:
            raise UserError(
                f"{self.path}: its description names {told} scenes, its pixels are in {there}; save it again with the "
                f"maker's program, {_EXPORT}"
            )

    def _position(self, names: list[str], position: str | None, first: bool) -> int:
        known = ", ".join(names[:12])
        if position is None:
            if first or len(names) == 1:
                return 0
            raise UserError(
                f"{self.path}: found {len(names)} stage positions ({known}); expected one movie; give "
                f"position={names[0]}"
            )
        at = _place(position, names)
        if at is None:
            raise UserError(
                f"{self.path}: position={position}: found {known}; give one of these, or none"
            )
        return at

    def _channel(self, told: Any, count: int, wanted: str | None) -> int:
        names = [str(n) for n in told or ()]
        names = names if len(names) == count else [f"{i}" for i in range(count)]
        at = None if wanted is None else _place(wanted, names)
        if at is not None:
            return at
        if wanted is None and count == 1:
            return 0
        said = f"channel={wanted}: " if wanted is not None else ""
        raise UserError(
            f"{self.path}: {said}found {count} {'channels' if count > 1 else 'channel'}; expected one channel and one "
            f"plane over time; give channel= ({', '.join(names)})"
        )

    def _plane(self, count: int, wanted: int | None) -> int:
        if wanted is None and count == 1:
            return 0
        if wanted is None or not 0 <= wanted < count:
            said = f"plane={wanted}: " if wanted is not None else ""
            raise UserError(
                f"{self.path}: {said}found {count} planes; expected one channel and one plane over time; give plane=0 "
                f"to plane={count - 1}"
            )
        return wanted

    def _units(self, image: Any) -> Units:
        units = Units()
        pixel = image.physical_pixel_sizes
        x, y = (_positive(size) for size in (pixel.X, pixel.Y))
        if self.path.suffix.lower() in _IN_UM:
            units.um_per_px = settle(units, [("its description", x, y)])
        elif x or y:
            units.notices.append("the unit of its pixel sizes is not known: give um_per_px")
        if self.shape[0] > 1:
            step = image.time_interval
            hours = step.total_seconds() / 3600 if isinstance(step, timedelta) else None
            units.hours_per_frame = _positive(hours)
        return units


def _positive(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) and number > 0 else None


def _place(wanted: str, names: list[str]) -> int | None:
    """Which is meant, by its name or by its number from 0; None if none is."""
    same = [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if not same and wanted.isdecimal() and int(wanted) < len(names):
        same = [int(wanted)]
    return same[0] if len(same) == 1 else None
