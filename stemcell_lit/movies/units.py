"""Sizes of pixels and times of frames, as files tell them.

What no microscope has, pixels that are not square, and sources that disagree are told and not used: a wrong size
would change every patch, and nobody would see it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

# A resolution tag that says more is a printer's 72 dpi (353 um); below lie electrons
MAX_PLAUSIBLE_UM = 20.0
MIN_PLAUSIBLE_UM = 0.005
SAME = 0.01  # sizes that differ by less are one

_TO_UM = {
    **{"m": 1e6, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "pm": 1e-6},
    **dict.fromkeys(("um", "micron", "microns", "micrometer", "micrometre"), 1.0),
    "a": 1e-4,  # Angstrom, written with its ring in files
    **dict.fromkeys(("inch", "in"), 25_400.0),
}
_TO_HOURS = {
    **dict.fromkeys(("d", "day", "days"), 24.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 1.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 1 / 60),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1 / 3600),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1 / 3.6e6),
    **dict.fromkeys(("us", "usec", "microsecond", "microseconds"), 1 / 3.6e9),
}


@dataclass
class Units:
    """What a file tells of its pixels and times."""

    um_per_px: float | None = None  # micrometres; None where unknown
    hours_per_frame: float | None = None  # from one frame to the next; None where unknown
    # the time of each frame, where the file tells it frame by frame
    hours: list[float] | None = None
    notices: list[str] = field(default_factory=list)  # what it tells that is not used, and why


def lengths(shape: tuple[int, ...]) -> str:
    """A shape in words: `480 x 640`."""
    return " x ".join(str(n) for n in shape)


def tiff_units(tiff: tifffile.TiffFile, image: int, frames: int, channel: int, plane: int) -> Units:
    """Pixel size and times of one movie in a TIFF file.

    `channel` and `plane`: whose times are wanted, of those that OME-XML names.
    """
    units = Units()
    sizes: list[tuple[str, float | None, float | None]] = []  # source, along x, along y
    page = tiff.pages.first
    if tiff.is_ome and tiff.ome_metadata:
        sizes.append(
            ("its OME metadata", *_ome(units, tiff.ome_metadata, image, frames, channel, plane))
        )
    if tiff.is_imagej and tiff.imagej_metadata:
        meta = tiff.imagej_metadata
        unit = _unit(meta.get("unit", ""))
        x, y = (_convert(_pixel(page, c), unit, _TO_UM) for c in "XY")
        if unit not in ("", "pixel", "pixels"):
            sizes.append(("ImageJ", x, y))
        if units.hours_per_frame is None:
            units.hours_per_frame = _imagej_hours(meta)
    else:
        tag = page.tags.get("ResolutionUnit")
        size = {2: 25_400.0, 3: 10_000.0}.get(int(tag.value) if tag is not None else 1)
        if size is not None:
            x, y = ((size * i if (i := _pixel(page, c)) else None) for c in "XY")
            plausible = x is not None and x <= MAX_PLAUSIBLE_UM
            if (
                plausible or not sizes
            ):  # a printer's 72 dpi beside a microscope's own words says nothing
                sizes.append(("its resolution tag", x, y))
    units.um_per_px = settle(units, sizes)
    return units


def settle(units: Units, sizes: list[tuple[str, float | None, float | None]]) -> float | None:
    """The one size that all sources tell, or None and a notice that says why."""
    found: list[tuple[str, float]] = []
    for source, x, y in sizes:
        if x is None and y is None:
            continue
        x, y = (y if x is None else x), (x if y is None else y)
        assert x is not None and y is not None
        if not math.isclose(x, y, rel_tol=SAME):
            units.notices.append(
                f"{source} tells pixels of {y:g} x {x:g} um, not square, so no size is used: resample the movie to "
                "square pixels and give um_per_px"
            )
            return None
        if not MIN_PLAUSIBLE_UM <= x <= MAX_PLAUSIBLE_UM:
            if (
                source != "its resolution tag" or x < MIN_PLAUSIBLE_UM
            ):  # 72 dpi is in half of all files
                units.notices.append(
                    f"{source} tells pixels of {x:g} um, which no microscope has, so no size is used: give um_per_px"
                )
            return None
        found.append((source, x))
    if not found:
        return None
    source, size = found[0]
    for other, value in found[1:]:
        if not math.isclose(size, value, rel_tol=SAME):
            units.notices.append(
                f"{source} tells pixels of {size:g} um, {other} {value:g}, so no size is used: give um_per_px"
            )
            return None
    return size


def one_pixel_size(sizes: list[float | None]) -> tuple[float | None, list[str]]:
    """The size of the pixels of separate files, and what to say where they disagree."""
    told = [s for s in sizes if s is not None]
    if not told:
        return None, []
    if not math.isclose(min(told), max(told), rel_tol=SAME):
        return None, [
            f"its files tell pixels of {min(told):g} to {max(told):g} um, so no size is used: give um_per_px"
        ]
    return told[0], []


def _imagej_hours(meta: dict[str, Any]) -> float | None:
    hours = _convert(meta.get("finterval"), meta.get("tunit", "sec"), _TO_HOURS)
    if hours is None:
        rate = _positive(meta.get("fps"))
        # Fiji writes 7 to 10 frames a second as the speed of playing a stack, also for a time-lapse of days
        hours = 1 / rate / 3600 if rate is not None and rate <= 1 else None
    return hours


def _ome(
    units: Units, xml: str, image: int, frames: int, channel: int, plane: int
) -> tuple[float | None, float | None]:
    """From OME-XML: PhysicalSizeX/Y, and TimeIncrement or the planes' DeltaT.

    Schema: https://docs.openmicroscopy.org/ome-model/ (defaults: um and s).
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None, None
    every = root.findall(".//{*}Pixels")
    if not every:
        return None, None
    pixels = every[min(image, len(every) - 1)]
    x = _convert(pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit", "um"), _TO_UM)
    y = _convert(pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeYUnit", "um"), _TO_UM)
    units.hours_per_frame = _convert(
        pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"), _TO_HOURS
    )
    times: dict[int, float] = {}
    for part in pixels.iterfind("{*}Plane"):
        mine = (part.get("TheC", "0"), part.get("TheZ", "0")) == (str(channel), str(plane))
        factor = _TO_HOURS.get(_unit(part.get("DeltaTUnit", "s")))
        value = _number(part.get("DeltaT"))
        t = part.get("TheT", "0")
        if mine and factor is not None and value is not None and t.isdecimal():
            times.setdefault(int(t), value * factor)
    if sorted(times) == list(range(frames)) and frames > 1:
        hours = [times[t] for t in range(frames)]
        if all(b > a for a, b in itertools.pairwise(hours)):
            units.hours = hours
            if units.hours_per_frame is None:
                units.hours_per_frame = float(np.median(np.diff(hours)))
        else:
            units.notices.append("the times of its planes (DeltaT) do not rise, and are not used")
    elif len(times) > 1 and units.hours_per_frame is None:
        order = sorted(times)
        units.hours_per_frame = _positive(
            float(np.median(np.diff([times[t] for t in order]) / np.diff(order)))
        )
    return x, y


def _unit(text: object) -> str:
    """A unit's name in one spelling: micro signs as u, Angstrom as a."""
    name = str(text).strip().replace("\\u00B5", "u").replace("\\u00b5", "u")
    for sign, letter in (("\u00b5", "u"), ("\u03bc", "u"), ("\u00c5", "a"), ("\u212b", "a")):
        name = name.replace(sign, letter)
    return name.lower()


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _positive(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _convert(value: object, unit: object, table: dict[str, float]) -> float | None:
    number, factor = _positive(value), table.get(_unit(unit))
    return None if number is None or factor is None else number * factor


def _pixel(page: Any, axis: str) -> float | None:
    """Units per pixel along an axis, from the tag of its resolution."""
    tag = page.tags.get(f"{axis}Resolution")
    if tag is None:
        return None
    try:
        numerator, denominator = tag.value
    except (TypeError, ValueError):
        return None
    pixels = _positive(numerator / denominator) if denominator else None
    return None if pixels is None else 1 / pixels
