"""Frames: a time-lapse on disk, read one frame at a time.

A movie may be larger than memory: opening reads headers and, for 16-bit and float movies, a few
frames spread over the movie to fix one intensity scaling for all of it. Everything after that holds
about one frame.

    with open_frames("movie.ome.tif") as frames:
        frames.um_per_px, frames.hours_per_frame, frames.scaling
        for frame in frames:  # float32 (height, width) in [0, 1]
            ...
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stemcell_lit.errors import UserError
from stemcell_lit.movies.folder import FolderReader
from stemcell_lit.movies.pictures import image_layout, image_values
from stemcell_lit.movies.stored import one_sentence
from stemcell_lit.movies.suffixes import (
    IMAGE_SUFFIXES,
    TIFF_SUFFIXES,
    VENDOR_SUFFIXES,
    bare_name,
)
from stemcell_lit.movies.tiff import TiffReader
from stemcell_lit.movies.units import Units, lengths
from stemcell_lit.movies.vendor import VendorReader

log = logging.getLogger(__name__)

SAMPLED_FRAMES = 16  # shows the lamp's slow drift, and still opens a movie within a second or two
SAMPLED_PIXELS = 65_536  # per sampled frame; 0.1 % of them are still 65 pixels
# Hot pixels and specks of dust must not set the scale of the cells
SCALING_PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class Movie:
    """One movie of a file or folder, which may hold several stage positions."""

    path: Path  # the file, or the folder of frames
    name: str  # what it is called in groups and tables
    position: str | None = None  # which of several stage positions; None: there is one


def movies_at(
    path: str | Path,
    *,
    channel: str | None = None,
    plane: int | None = None,
    position: str | None = None,
    labels: bool = False,
) -> list[Movie]:
    """The movies of what `open_frames` reads with the same arguments: one, or one for each of its stage positions."""
    path = Path(path)
    with closing(_reader(path, channel, plane, position, labels, first=True)) as reader:
        if position is not None or len(reader.positions) == 1:
            return [Movie(path, bare_name(path), position)]
        return [Movie(path, f"{bare_name(path)}_{p}", p) for p in reader.positions]


@dataclass(frozen=True)
class Header:
    """What is known of a movie before a pixel of it is decoded.

    Attributes:
        shape: (frames, height, width).
        um_per_px: size of a pixel in micrometres as the file says, None where it does not.
        numbers: the frames' numbers, rising.
    """

    shape: tuple[int, int, int]
    um_per_px: float | None
    numbers: Sequence[int]

    def each(self, every: int) -> int:
        """How many frames `Frames.each` gives."""
        return sum((n - self.numbers[0]) % every == 0 for n in self.numbers)


def headers_at(
    path: str | Path,
    *,
    channel: str | None = None,
    plane: int | None = None,
    position: str | None = None,
) -> list[tuple[Movie, Header]]:
    """As `movies_at`, with the header of each.

    Raises:
        UserError: there is no movie there, or one cannot be read.
    """
    path = Path(path)
    with closing(_reader(path, channel, plane, position, False, first=True)) as reader:
        if position is not None or len(reader.positions) == 1:
            return [(Movie(path, bare_name(path), position), _header(reader))]
        names = list(reader.positions)
    found = []
    for name in names:
        with closing(_reader(path, channel, plane, name, False)) as reader:
            found.append((Movie(path, f"{bare_name(path)}_{name}", name), _header(reader)))
    return found


def _header(reader: _Reader) -> Header:
    return Header(reader.shape, reader.units.um_per_px, list(reader.numbers))


def open_frames(
    path: str | Path | Movie,
    *,
    um_per_px: float | None = None,
    hours_per_frame: float | None = None,
    scaling: tuple[float, float] | None = None,
    channel: str | None = None,
    plane: int | None = None,
    position: str | None = None,
    labels: bool = False,
) -> Frames:
    """Opens a time-lapse: a TIFF or OME-TIFF stack, or a folder of images.

    Args:
        path: a file (TIFF, or a maker's, see `vendor`), a folder of TIFF, PNG, JPEG or BMP files with one frame each,
            or one movie of these.
        um_per_px: size of a pixel in micrometres; None: what the file says, if anything.
        hours_per_frame: time from one frame number to the next; None: what the file says, if anything.
        scaling: intensities that become 0 and 1; None: 0 and 255 for 8 bit, else percentiles of
            frames spread over the movie. One pair serves the whole movie, so that brightness can be
            compared between frames.
        channel: which of several channels, by name or number; None: there is one.
        plane: which of several focal planes; None: there is one.
        position: which of several stage positions, by name or number; None: there is one.
        labels: the pictures hold numbers of classes or colonies, not intensities.

    Returns:
        Frames, to be closed or used in a `with` block.

    Raises:
        UserError: there is no movie there, or it is truncated, empty, of mixed shapes or types, holds several
            channels, planes or positions of which none is chosen, or NaN.
    """
    movie = path if isinstance(path, Movie) else Movie(Path(path), bare_name(Path(path)), position)
    path, name, position = movie.path, movie.name, movie.position
    for key, value in (("um_per_px", um_per_px), ("hours_per_frame", hours_per_frame)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(
                f"{key}={value}: expected a positive number, or leave it out to take the file's"
            )
    if scaling is not None and not (np.isfinite(scaling).all() and scaling[0] < scaling[1]):
        raise UserError(
            f"scaling={scaling}: expected two numbers, the first smaller, such as (0, 4095)"
        )
    reader = _reader(path, channel, plane, position, labels)
    try:
        return Frames(path, reader, um_per_px, hours_per_frame, scaling, name)
    except BaseException:
        reader.close()
        raise


def read_picture(file: Path, *, channel: str | None = None, plane: int | None = None) -> np.ndarray:
    """One picture, gray, (height, width), of the type that is stored.

    Raises:
        UserError: it cannot be read, or holds more than one picture.
    """
    file = Path(file)
    if file.suffix.lower() not in TIFF_SUFFIXES:
        values = image_values(file, channel=channel)
        _check_finite(values, str(file))
        return values
    with closing(_one_picture(file, channel, plane)) as reader:
        return _read_checked(reader, 0)


def picture_shape(
    file: Path, *, channel: str | None = None, plane: int | None = None
) -> tuple[int, int]:
    """(height, width) of one picture, from its header; arguments and errors as of `read_picture`."""
    file = Path(file)
    if file.suffix.lower() not in TIFF_SUFFIXES:
        return image_layout(file, channel=channel).shape
    with closing(_one_picture(file, channel, plane)) as reader:
        return reader.shape[1:]


def _one_picture(file: Path, channel: str | None, plane: int | None) -> _Reader:
    """The reader of a file that holds one picture."""
    reader = _reader(file, channel, plane, None, False)
    if reader.shape[0] == 1:
        return reader
    reader.close()
    found = f"{file}: found {reader.shape[0]} pictures, expected one; "
    if any("planes" in n for n in reader.notices):
        raise UserError(
            f"{found}give plane=0 to plane={reader.shape[0] - 1} if they are focal planes, or save one of them alone"
        )
    raise UserError(f"{found}save each as a file of its own")


def percentile_scaling(samples: Sequence[np.ndarray]) -> tuple[float, float]:
    """The intensities that become 0 and 1, from pixels of pictures spread over a movie or data set."""
    low, high = np.percentile(np.concatenate(samples), SCALING_PERCENTILES)
    if not high > low:  # blank: everything becomes 0
        high = low + 1
    return float(low), float(high)


def sample_pixels(picture: np.ndarray) -> np.ndarray:
    """Some pixels of a picture, float64, enough for `percentile_scaling`."""
    stride = max(1, math.isqrt(picture.size // SAMPLED_PIXELS))
    return picture[::stride, ::stride].ravel().astype(np.float64)


def scaled(raw: np.ndarray, scaling: tuple[float, float]) -> np.ndarray:
    """Intensities as float32 in [0, 1]: `scaling` becomes 0 and 1."""
    low, high = scaling
    # in float64 where float32 could overflow before the values are clipped
    values: np.ndarray = raw.astype(np.float64 if raw.dtype.itemsize > 4 else np.float32)
    np.subtract(values, low, out=values)
    np.divide(values, high - low, out=values)
    return np.clip(values, 0, 1, out=values).astype(np.float32, copy=False)


def to_8_bit(raw: np.ndarray, scaling: tuple[float, float]) -> np.ndarray:
    """Intensities as uint8: 8-bit ones on the full scale unchanged, others by `scaling`."""
    if raw.dtype == np.uint8 and scaling == (0.0, 255.0):
        return raw
    return np.rint(scaled(raw, scaling) * np.float32(255)).astype(np.uint8)


def _reader(
    path: Path,
    channel: str | None,
    plane: int | None,
    position: str | None,
    labels: bool,
    first: bool = False,
) -> _Reader:
    """The reader of a file or folder; with `first`, of the first of its positions."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a TIFF stack or a folder of images")
    if not path.is_dir() and not path.is_file():
        raise UserError(
            f"{path}: neither a file nor a folder; give a TIFF stack or a folder of images"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes); copy it again from the microscope")
    given: dict[str, Any] = {"channel": channel, "plane": plane, "labels": labels, "first": first}
    if path.is_dir():
        return FolderReader(path, position=position, **given)
    if path.suffix.lower() in TIFF_SUFFIXES:
        return TiffReader(path, position=position, **given)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return FolderReader(path.parent, [path], position=position, **given)
    if path.suffix.lower() in VENDOR_SUFFIXES:
        return VendorReader(path, position=position, **given)
    known = " ".join((*TIFF_SUFFIXES, *IMAGE_SUFFIXES, *VENDOR_SUFFIXES))
    raise UserError(
        f"{path}: files of type {path.suffix or '(no suffix)'!r} are not read; expected one of "
        f"{known} or a folder of such images; export the movie as TIFF"
    )


class Frames:
    """A time-lapse on disk. Made by `open_frames`.

    Attributes:
        path: the file or folder.
        source: tiff, imagej, ome-tiff, images, or the suffix of a maker's file, such as nd2.
        shape: (frames, height, width).
        dtype: of the intensities as stored (of one channel).
        um_per_px: size of a pixel in micrometres, None where unknown.
        numbers: int64 (frames,), the frames' numbers by the names of their files, else 0, 1, ...
        named: whether the numbers stand in the names.
        hours: float64 (frames,), time of each frame since the movie began; None where unknown.
        hours_per_frame: time from one number to the next (the median), None where unknown.
        scaling: (low, high), the stored intensities that become 0 and 1.
        notices: what was done to the input that its owner should know, one sentence each.
    """

    def __init__(
        self,
        path: Path,
        reader: _Reader,
        um_per_px: float | None,
        hours_per_frame: float | None,
        scaling: tuple[float, float] | None,
        name: str,
    ):
        self.path, self._reader, self.labels = path, reader, reader.labels
        self.name = name
        self.source = reader.source
        self.dtype = reader.dtype
        self.shape = reader.shape
        self.notices = list(reader.notices)
        self.files = list(reader.files) if isinstance(reader, FolderReader) else []
        self.um_per_px = um_per_px if um_per_px is not None else reader.units.um_per_px
        self.numbers = np.array(reader.numbers, np.int64)
        self.named = reader.named
        self._set_times(reader.units, hours_per_frame)
        if reader.color:
            self.notices.append("colour images were turned to gray (luma)")
        if scaling is not None:
            self.scaling = (float(scaling[0]), float(scaling[1]))
        elif self.dtype == np.uint8:
            self.scaling = (0.0, 255.0)
        else:
            self.scaling = self._estimate_scaling()
        for notice in self.notices:
            log.warning("%s: %s", path, notice)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        """Frame `index` as float32 (height, width) in [0, 1]."""
        return scaled(self.raw(index), self.scaling)

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self)):
            yield self[index]

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def raw(self, index: int) -> np.ndarray:
        """Frame `index` as stored, gray, (height, width).

        Raises:
            UserError: it cannot be decoded, has another shape or type than the movie, or holds NaN
                or infinity.
        """
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"frame {index} of a movie of {len(self)} frames")
        position %= len(self)
        return self._checked(position)

    def read(self, index: int) -> np.ndarray:
        """Frame `index` as uint8 (height, width): 8-bit movies unchanged, others by `scaling`."""
        return to_8_bit(self.raw(index), self.scaling)

    def index_of(self, number: int) -> int | None:
        """The position of the frame that has this number, None where there is none."""
        at = int(np.searchsorted(self.numbers, number))
        return at if at < len(self.numbers) and self.numbers[at] == number else None

    def each(self, every: int) -> list[int]:
        """Positions of each n-th frame by number, the first one included."""
        return np.flatnonzero((self.numbers - self.numbers[0]) % every == 0).tolist()

    def time(self, index: int) -> float:
        """Hours since the movie began at a frame, NaN where unknown."""
        return math.nan if self.hours is None else float(self.hours[index])

    def describe(self) -> dict[str, Any]:
        """What a store or a result records about its movie: plain JSON values."""
        return {
            "path": str(self.path),
            "source": self.source,
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            "um_per_px": self.um_per_px,
            "hours_per_frame": self.hours_per_frame,
            "scaling": list(self.scaling),
            "notices": list(self.notices),
        }

    def close(self) -> None:
        """Releases the file; reading afterwards opens it again."""
        self._reader.close()

    def _set_times(self, units: Units, hours_per_frame: float | None) -> None:
        """Times of the frames: from the user's step, from the file frame by frame, or from its step."""
        first = int(self.numbers[0])
        if self.named and first > 1:
            self.notices.append(
                f"its first frame has the number {first}: hours count from that frame"
            )
        own = None if units.hours is None else np.array(units.hours, np.float64)
        if own is not None and hours_per_frame is not None:
            self.notices.append("its frames tell their own times, hours_per_frame is used instead")
        step = hours_per_frame if hours_per_frame is not None else units.hours_per_frame
        self.hours_per_frame = step
        if hours_per_frame is None and own is not None:
            self.hours: np.ndarray | None = own
            if step is None and len(own) > 1:
                self.hours_per_frame = float(np.median(np.diff(own)))
        else:
            self.hours = None if step is None else (self.numbers - first) * step

    def _checked(self, index: int) -> np.ndarray:
        frame = _read_checked(self._reader, index)
        if frame.shape != self.shape[1:] or frame.dtype != self.dtype:
            raise UserError(
                f"{self._reader.where(index)}: found {frame.dtype} {lengths(frame.shape)}, expected {self.dtype} "
                f"{lengths(self.shape[1:])} as in the rest of the movie; export all frames with the "
                "same settings"
            )
        return frame

    def _estimate_scaling(self) -> tuple[float, float]:
        """Percentiles over frames spread over the movie, both ends included."""
        count = min(SAMPLED_FRAMES, len(self))
        positions = np.unique(np.linspace(0, len(self) - 1, count).round().astype(int))
        return percentile_scaling([sample_pixels(self._checked(int(p))) for p in positions])


class _Reader(Protocol):
    """What `Frames` needs from a file format."""

    source: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    color: bool
    labels: bool
    notices: list[str]
    units: Units
    numbers: list[int]
    named: bool
    positions: list[str]

    def read(self, index: int) -> np.ndarray: ...
    def where(self, index: int) -> str: ...
    def close(self) -> None: ...


def _read_checked(reader: _Reader, index: int) -> np.ndarray:
    where = reader.where(index)
    with one_sentence(where):
        frame = reader.read(index)
    _check_finite(frame, where)
    return frame


def _check_finite(frame: np.ndarray, where: str) -> None:
    if frame.dtype.kind == "f" and not np.isfinite(frame).all():
        bad = int((~np.isfinite(frame)).sum())
        raise UserError(
            f"{where}: {bad} of {frame.size} pixels are NaN or infinite; expected finite "
            "intensities; fill or crop them, or leave this frame out"
        )
