"""TIFF files: which of their pages are the frames of which movie, read one by one.

A file may hold stage positions, channels, focal planes and times. They are told apart by its axes and metadata:
positions are movies of their own, one channel and one plane must be chosen, and whatever else has more than one entry
is refused by its name.
"""

from __future__ import annotations

import logging
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from stemcell_lit.errors import UserError
from stemcell_lit.movies.pictures import page_layout, page_values
from stemcell_lit.movies.units import Units, lengths, tiff_units

_AXES = {
    **{"C": "channels", "Z": "planes", "T": "time points", "S": "samples", "R": "positions"},
    **{"A": "angles", "P": "phases", "M": "mosaic tiles", "H": "lifetimes", "E": "excitations"},
    **{"Q": "unnamed entries", "I": "pages"},
}
MOST_CHANNELS = 16  # more are times: tifffile calls the frames of a plain stack for ImageJ so
_TIMES = "TIQ"  # Q and I: a plain sequence of pages, without a name for what it runs along


@dataclass(frozen=True)
class Part:
    """Where the frames of one movie lie in a file."""

    image: list[int]  # which series of pages
    pages: list[int]  # the page of each frame in its series
    position: str  # the name of its stage position; empty where the file tells none


class TiffReader:
    """One movie of a TIFF file.

    Args:
        path: the file.
        channel: which channel, by name or number from 0; needed where there are several.
        plane: which focal plane, from 0; the same.
        position: which stage position, by name or number from 0; the same.
        labels: read stored numbers, not intensities.
        first: where there are several positions, the first, without a choice.
    """

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
        self.path, self.labels = path, labels
        self._channel = channel  # of colour, where the axes do not tell it
        self.notices: list[str] = []
        self._tiff: tifffile.TiffFile | None = None
        with _tifffile_complaints() as complaints:
            tiff = self._open()
            try:
                # first: tifffile would follow a chain that runs in a circle for ever
                complaints += self._broken_chain(tiff)
                if not complaints:
                    self._read_layout(tiff, plane, position, first)
                    complaints += self._beyond_the_end(tiff)
            except UserError:
                self.close()
                raise
            except Exception as error:
                self.close()
                raise self._damaged(str(error)) from error
        if complaints:
            self.close()
            raise self._damaged(complaints[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tiff": None}  # file handles stay in their process

    def read(self, index: int) -> np.ndarray:
        """Frame `index`, (height, width), values as `pictures.page_values` gives them."""
        with _tifffile_complaints():  # what goes wrong here becomes an exception or a wrong shape
            tiff = self._open()
            series = tiff.series[self._part.image[index]]
            page = self._part.pages[index]
            described: Any = series.keyframe
            if series.dataoffset is not None:
                # Uncompressed and contiguous. ImageJ writes one page description for all frames of
                # a large movie, so that reading page by page would find only the first.
                shape = tuple(int(n) for n in series.keyframe.shape)
                size = math.prod(shape)
                dtype = np.dtype(f"{tiff.byteorder}{series.dtype.char}")
                handle = tiff.filehandle
                handle.seek(series.dataoffset + page * size * dtype.itemsize)
                frame = np.frombuffer(handle.read(size * dtype.itemsize), dtype)
                # native order, writable
                frame = frame.reshape(shape).astype(series.dtype)
            else:
                # its own description: it may have a colour table of its own, or strips left out
                described = series.pages[page]
                if described is None:
                    raise UserError(
                        f"{self.where(index)}: the OME-TIFF refers to a file that is not there; "
                        "put all its files into one folder"
                    )
                frame = described.asarray()
            return page_values(
                frame, described, self.where(index), channel=self._channel, labels=self.labels
            )

    def where(self, index: int) -> str:
        """The name of a frame, for messages."""
        return f"{self.path}, frame {index}" if self.shape[0] > 1 else str(self.path)

    def close(self) -> None:
        """Releases the file; reading afterwards opens it again."""
        if self._tiff is not None:
            self._tiff.close()
            self._tiff = None

    def _open(self) -> tifffile.TiffFile:
        if self._tiff is None:
            try:
                self._tiff = tifffile.TiffFile(self.path)
            except Exception as error:
                raise self._damaged(str(error)) from error
        return self._tiff

    def _damaged(self, detail: str) -> UserError:
        return UserError(
            f"{self.path}: not a whole TIFF file "
            f"({detail.splitlines()[0] if detail else 'no detail'}); it is truncated or damaged: "
            "copy it again from its origin"
        )

    def _read_layout(
        self, tiff: tifffile.TiffFile, plane: int | None, position: str | None, first: bool
    ) -> None:
        series = [s for s in tiff.series if s.size]
        if not series:
            raise UserError(
                f"{self.path}: a TIFF file without images; expected a time-lapse; export it again"
            )
        kinds = sorted({f"{s.keyframe.dtype} {lengths(s.keyframe.shape)}" for s in series})
        if len(kinds) > 1:
            raise UserError(
                f"{self.path}: pages of different shapes or types ({', '.join(kinds)}); expected "
                "one movie of equal frames; export it without thumbnails or other series"
            )
        if len(series) != len(tiff.series):
            raise UserError(f"{self.path}: some of its series are empty; export the movie again")
        parts = self._parts(tiff, plane)
        self.positions = [p.position for p in parts]
        alone = position is None and (first or len(parts) == 1)
        self._part = parts[0] if alone else self._chosen(parts, position)
        series_of = tiff.series[self._part.image[0]]
        layout = page_layout(
            series_of.keyframe, str(self.path), channel=self._channel, labels=self.labels
        )
        self.notices += layout.notices
        self.color, self.dtype = layout.colour, layout.dtype
        self.shape = (len(self._part.pages), *layout.shape)
        self.numbers, self.named = list(range(self.shape[0])), False
        self.source = "ome-tiff" if tiff.is_ome else "imagej" if tiff.is_imagej else "tiff"
        self.units: Units = tiff_units(
            tiff, self._part.image[0], self.shape[0], self._used["C"], self._used["Z"]
        )
        self.notices += self.units.notices

    def _parts(self, tiff: tifffile.TiffFile, plane: int | None) -> list[Part]:
        """The movies of the file."""
        self._used = {"C": 0, "Z": 0}
        names = _ome_names(tiff)
        wanted, parts = self._channel, []
        for number, series in enumerate(tiff.series):
            axes = [
                (a, int(n))
                for a, n in zip(series.axes, series.shape, strict=True)
                if a not in "YXS"
            ]
            self._channel = wanted
            parts += self._of_series(number, axes, plane, names[1], tiff)
        several = len(tiff.series) > 1
        if several and tiff.is_ome:
            named = names[0] if len(set(names[0])) == len(tiff.series) else []
            return [
                Part(
                    p.image, p.pages, (named[p.image[0]] if named else str(p.image[0])) + p.position
                )
                for p in parts
            ]
        if several and all(len(p.pages) == 1 and not p.position for p in parts):
            # written page by page
            return [Part([p.image[0] for p in parts], [p.pages[0] for p in parts], "")]
        if several:
            return [Part(p.image, p.pages, str(p.image[0]) + p.position) for p in parts]
        return parts

    def _of_series(
        self,
        number: int,
        axes: list[tuple[str, int]],
        plane: int | None,
        channels: list[str],
        tiff: tifffile.TiffFile,
    ) -> list[Part]:
        """The movies of one series of pages: one, or one for each of its positions."""
        used: list[slice | int] = []
        wanted_channel = self._channel
        times = [a for a, n in axes if a in _TIMES and n > 1]
        places = 1
        stacked = [(a, n) for a, n in axes if n > 1]
        found = " x ".join(f"{n} {_AXES.get(a, a)}" for a, n in stacked)
        for axis, n in axes:
            many = axis == "C" and n > MOST_CHANNELS and wanted_channel is None
            plain = axis == "Z" and n > 1 and plane is None and _plain_slices(tiff)
            if not times and (many or plain):
                self.notices.append(f"its {n} {_AXES[axis]} were taken as time points")
                times.append(axis)
                used.append(slice(None))
            elif axis == "C" and n > 1:
                self._used["C"] = self._pick_channel(n, channels, found)
                used.append(self._used["C"])
                self._channel = None  # told, so not a sample of colour
            elif axis == "Z" and n > 1:
                if plane is None or not 0 <= plane < n:
                    said = f"plane={plane}: " if plane is not None else ""
                    raise UserError(
                        f"{self.path}: {said}found {found}; expected one channel and one plane over time; give "
                        f"plane=0 to plane={n - 1}, or, if they are times, say so in Fiji by Image > Properties "
                        "(Slices 1, Frames ...) and save"
                    )
                self._used["Z"] = plane
                used.append(plane)
            elif axis in _TIMES or axis == "R" or n == 1:
                places = n if axis == "R" else places
                used.append(slice(None))
            else:
                raise UserError(
                    f"{self.path}: found {found}; expected one channel and one plane over time; in "
                    "Fiji choose Image > Hyperstacks > Make Subset and save that"
                )
        if len(times) > 1:
            raise UserError(
                f"{self.path}: found {found}, and no word says which of them is time; expected one channel and one "
                "plane over time; export it as OME-TIFF or with Fiji"
            )
        pages = np.arange(math.prod(n for _, n in axes)).reshape([n for _, n in axes])[tuple(used)]
        kept = [a for (a, _), u in zip(axes, used, strict=True) if isinstance(u, slice)]
        if places > 1:
            pages = np.moveaxis(pages, kept.index("R"), 0).reshape(places, -1)
            return [Part([number] * len(p), p.tolist(), f"R{i}") for i, p in enumerate(pages)]
        return [Part([number] * pages.size, pages.ravel().tolist(), "")]

    def _pick_channel(self, count: int, names: list[str], found: str) -> int:
        wanted = self._channel
        at = None if wanted is None else _place(wanted, names, count)
        if at is not None:
            return at
        choice = ", ".join(names) if names else f"0 to {count - 1}"
        said = f"channel={wanted}: " if wanted is not None else ""
        raise UserError(
            f"{self.path}: {said}found {found}; expected one channel and one plane over time; give channel= "
            f"({choice})"
        )

    def _chosen(self, parts: list[Part], position: str | None) -> Part:
        names = [p.position for p in parts]
        if position is None:
            raise UserError(
                f"{self.path}: found {len(names)} stage positions ({', '.join(names[:12])}); expected one movie; "
                f"give position={names[0]}"
            )
        at = _place(position, names, len(parts))
        if at is None or not any(names):
            known = ", ".join(names[:12]) if any(names) else "no positions"
            raise UserError(
                f"{self.path}: position={position}: found {known}; give one of these, or none"
            )
        return parts[at]

    def _broken_chain(self, tiff: tifffile.TiffFile) -> list[str]:
        """Follows the chain of page descriptions; a truncated file breaks it, at times in silence.

        Layout: TIFF 6.0, section 2; BigTIFF: 64-bit offsets and counts.
        """
        form, handle, size = tiff.tiff, tiff.filehandle, int(tiff.filehandle.size)

        def number(position: int, layout: str, length: int) -> int:
            handle.seek(position)
            return int(struct.unpack(layout, handle.read(length))[0])

        offset = number(8 if form.is_bigtiff else 4, form.offsetformat, form.offsetsize)
        seen: set[int] = set()
        taken = 0
        while offset:
            end = offset + form.tagnosize
            if offset not in seen and end <= size:
                end += number(offset, form.tagnoformat, form.tagnosize) * form.tagsize
            taken += end + form.offsetsize - offset  # more than the file holds: they overlap
            if offset in seen or end + form.offsetsize > size or taken > size:
                return [f"the description of page {len(seen)} is missing"]
            seen.add(offset)
            offset = number(end, form.offsetformat, form.offsetsize)
        return []

    def _beyond_the_end(self, tiff: tifffile.TiffFile) -> list[str]:
        """Says if the last frame lies beyond the end; files are written front to back."""
        series = tiff.series[-1]
        if series.dataoffset is not None:
            end = series.dataoffset + series.nbytes
        else:
            page = series.pages[-1]
            if page is None or page.parent is not tiff:
                return []  # in another file of a multi-file OME-TIFF
            page = page.aspage()
            ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False) if n]
            end = max(ends, default=0)
        size = int(tiff.filehandle.size)
        if end > size:
            return [f"{size} bytes found, at least {end} expected"]
        return []


def _place(wanted: str, names: list[str], count: int) -> int | None:
    """Which of several things is meant, by its name or by its number from 0; None if none is."""
    same = [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if not same and wanted.isdecimal() and int(wanted) < count:
        same = [int(wanted)]
    return same[0] if len(same) == 1 else None


def _ome_names(tiff: tifffile.TiffFile) -> tuple[list[str], list[str]]:
    """Names of the images and of the first one's channels, as OME-XML has them."""
    if not (tiff.is_ome and tiff.ome_metadata):
        return [], []
    try:
        root = ElementTree.fromstring(tiff.ome_metadata)
    except ElementTree.ParseError:
        return [], []
    images = [i for i in root.iterfind("{*}Image") if i.find("{*}Pixels") is not None]
    channels = (
        [c.get("Name", "") for c in images[0].iterfind("{*}Pixels/{*}Channel")] if images else []
    )
    return [i.get("Name", "") for i in images], channels if all(channels) else []


def _plain_slices(tiff: tifffile.TiffFile) -> bool:
    """Whether slices may be times: Fiji calls every plain stack so, unless it was given a step along z."""
    meta = (tiff.imagej_metadata if tiff.is_imagej else None) or {"hyperstack": True}
    return not meta.get("spacing") and not meta.get("hyperstack")


@contextmanager
def _tifffile_complaints() -> Iterator[list[str]]:
    """Collects what tifffile only logs, such as a chain of pages that breaks off."""
    complaints: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if re.search(
                r"invalid page offset|corrupt|truncated|unexpected end|invalid offset", text
            ):
                complaints.append(text)

    logger = logging.getLogger("tifffile")
    handler = Collect(logging.WARNING)
    before = logger.propagate, logger.disabled, logger.level, logger.manager.disable
    logger.addHandler(handler)
    # Whatever a library or a script did to logging: a file that breaks off must be found out.
    logger.propagate, logger.disabled, logger.manager.disable = False, False, logging.NOTSET
    logger.setLevel(logging.WARNING)
    try:
        yield complaints
    finally:
        logger.removeHandler(handler)
        logger.propagate, logger.disabled, _, logger.manager.disable = before
        logger.setLevel(before[2])
