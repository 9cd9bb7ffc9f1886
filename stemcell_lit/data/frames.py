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
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from stemcell_lit.errors import UserError

log = logging.getLogger(__name__)

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
SAMPLED_FRAMES = 16  # shows the lamp's slow drift, and still opens a movie within a second or two
SAMPLED_PIXELS = 65_536  # per sampled frame; 0.1 % of them are still 65 pixels
# Hot pixels and specks of dust must not set the scale of the cells
SCALING_PERCENTILES = (0.1, 99.9)
# A resolution tag that says more is a printer's 72 dpi (353 um), not a microscope's
MAX_PLAUSIBLE_UM = 20.0
# A reduction this near to a whole factor averages whole blocks
WHOLE_FACTOR = 0.005
# What lies beside a movie under its name: class maps, colony numbers
MAPS = ("_classes", "_colonies")
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma

_TO_UM = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "a": 1e-4,  # Angstrom, written with its ring in files
    "inch": 25_400.0,
    "in": 25_400.0,
}
_TO_HOURS = {
    **dict.fromkeys(("d", "day", "days"), 24.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 1.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 1 / 60),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1 / 3600),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1 / 3.6e6),
    **dict.fromkeys(("us", "usec", "microsecond", "microseconds"), 1 / 3.6e9),
}


def open_frames(
    path: str | Path,
    *,
    um_per_px: float | None = None,
    hours_per_frame: float | None = None,
    scaling: tuple[float, float] | None = None,
) -> Frames:
    """Opens a time-lapse: a TIFF or OME-TIFF stack, or a folder of images in natural order.

    Args:
        path: a file, or a folder of TIFF, PNG or JPEG files with one frame each.
        um_per_px: size of a pixel in micrometres; None: what the file says, if anything.
        hours_per_frame: time between two frames; None: what the file says, if anything.
        scaling: intensities that become 0 and 1; None: 0 and 255 for 8 bit, else percentiles of
            frames spread over the movie. One pair serves the whole movie, so that brightness can be
            compared between frames.

    Returns:
        Frames, to be closed or used in a `with` block.

    Raises:
        UserError: there is no movie there, or it is truncated, empty, of mixed shapes or types, or
            holds NaN.
    """
    path = Path(path)
    for key, value in (("um_per_px", um_per_px), ("hours_per_frame", hours_per_frame)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(
                f"{key}={value}: expected a positive number, or leave it out to take the file's"
            )
    if scaling is not None and not (np.isfinite(scaling).all() and scaling[0] < scaling[1]):
        raise UserError(
            f"scaling={scaling}: expected two numbers, the first smaller, such as (0, 4095)"
        )
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a TIFF stack or a folder of images")
    if not path.is_dir() and path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes); copy it again from the microscope")
    reader: _Reader
    if path.is_dir():
        reader = _FolderReader(path)
    elif path.suffix.lower() in TIFF_SUFFIXES:
        reader = _TiffReader(path)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        reader = _FolderReader(path.parent, [path])
    else:
        known = " ".join(TIFF_SUFFIXES + IMAGE_SUFFIXES)
        raise UserError(
            f"{path}: files of type {path.suffix or '(no suffix)'!r} are not read; expected one of "
            f"{known} or a folder of such images; export the movie as TIFF"
        )
    try:
        return Frames(path, reader, um_per_px, hours_per_frame, scaling)
    except BaseException:
        reader.close()
        raise


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder that may be frames, in natural order; hidden ones are left out."""
    return sorted(
        (
            f
            for f in folder.iterdir()
            if f.suffix.lower() in TIFF_SUFFIXES + IMAGE_SUFFIXES
            and not f.name.startswith(".")
            and f.is_file()
        ),
        key=lambda f: natural_key(f.name),
    )


def stacks_in(folder: Path) -> list[Path]:
    """The movies in a folder of TIFF stacks, without the maps beside them; none if a file is a frame."""
    files = [f for f in images_in(folder) if f.suffix.lower() in TIFF_SUFFIXES]
    files = [f for f in files if not bare_name(f).endswith(MAPS)]
    try:
        if files:
            with tifffile.TiffFile(files[0]) as tiff:
                series = tiff.series[0]
                return files if len(series.shape) - ("S" in series.axes) > 2 else []
    except Exception:  # every decoder has errors of its own; open_frames says what is wrong
        pass
    return []


def bare_name(path: Path) -> str:
    """A movie's name without its suffixes: `a.ome.tif` and `a.tif` are both `a`."""
    name = path.name
    if path.suffix.lower() in TIFF_SUFFIXES + IMAGE_SUFFIXES and not path.is_dir():
        name = path.stem
        if name.lower().endswith(".ome"):
            name = name[:-4]
    return name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which `t2` comes before `t10`; zero padding only breaks ties."""
    # not \d, which also matches signs such as superscripts that int() refuses
    parts = re.split(r"([0-9]+)", name)
    key = [(0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts if p]
    return [*key, (-1, 0, name)]


def scale_between(um_per_px: float | None, wanted: float | None) -> float:
    """Wanted pixels per pixel: 1 where either size is unknown, 1/n where they are nearly n to 1.

    Args:
        um_per_px: size of the pixels that are there, micrometres.
        wanted: size of the pixels to make.
    """
    if um_per_px is None or wanted is None:
        return 1.0
    ratio = wanted / um_per_px
    if abs(ratio - round(ratio)) <= WHOLE_FACTOR * ratio:
        ratio = float(round(ratio))
    return 1 / ratio


def scaled_shape(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of a frame after `resample`; a rest of less than a pixel is cut off."""
    return int(shape[0] * scale + 1e-6), int(shape[1] * scale + 1e-6)


def resample(image: np.ndarray, scale: float) -> np.ndarray:
    """A frame with pixels of another size.

    Whole factors average blocks, so that no interpolation blurs the texture; others average areas,
    and enlarging is bicubic.

    Args:
        image: uint8 (height, width).
        scale: new pixels per pixel, as `scale_between` gives it.

    Returns:
        uint8, of `scaled_shape`.
    """
    height, width = scaled_shape((image.shape[0], image.shape[1]), scale)
    factor = round(1 / scale)
    if scale * factor == 1:
        if factor == 1:
            return image
        blocks = image[: height * factor, : width * factor]
        blocks = blocks.reshape(height, factor, width, factor)
        return np.rint(blocks.mean((1, 3), dtype=np.float32)).astype(np.uint8)
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    box = (0.0, 0.0, width / scale, height / scale)
    return np.asarray(Image.fromarray(image).resize((width, height), how, box=box))


def resample_labels(labels: np.ndarray, scale: float) -> np.ndarray:
    """A label image with pixels of another size: each takes the label at its centre."""
    if scale == 1:
        return labels
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) / scale).astype(int), side - 1)
        for n, side in zip(
            scaled_shape((labels.shape[0], labels.shape[1]), scale), labels.shape, strict=True
        )
    )
    return labels[rows[:, None], columns[None, :]]


class Frames:
    """A time-lapse on disk. Made by `open_frames`.

    Attributes:
        path: the file or folder.
        source: tiff, imagej, ome-tiff or images.
        shape: (frames, height, width).
        dtype: of the intensities as stored (of one channel).
        um_per_px: size of a pixel in micrometres, None where unknown.
        hours_per_frame: time between frames, None where unknown.
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
    ):
        self.path, self._reader = path, reader
        self.source = reader.source
        self.dtype = reader.dtype
        self.shape = reader.shape
        self.notices = list(reader.notices)
        self.um_per_px = um_per_px if um_per_px is not None else reader.pixel_size()
        self.hours_per_frame = hours_per_frame if hours_per_frame is not None else reader.interval()
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
        raw = self.raw(index)
        low, high = self.scaling
        # in float64 where float32 could overflow before the values are clipped
        scaled: np.ndarray = raw.astype(np.float64 if raw.dtype.itemsize > 4 else np.float32)
        np.subtract(scaled, low, out=scaled)
        np.divide(scaled, high - low, out=scaled)
        return np.clip(scaled, 0, 1, out=scaled).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self)):
            yield self[index]

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        count, height, width = self.shape
        size = "unknown um/px" if self.um_per_px is None else f"{self.um_per_px:g} um/px"
        time = "unknown" if self.hours_per_frame is None else f"{self.hours_per_frame:g}"
        return (
            f"Frames({self.path}, {count} frames of {height} x {width} px, {self.dtype}, {size}, "
            f"{time} h/frame)"
        )

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
        if self.dtype == np.uint8 and self.scaling == (0.0, 255.0):
            return self.raw(index)
        return np.rint(self[index] * np.float32(255)).astype(np.uint8)

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

    def _checked(self, index: int) -> np.ndarray:
        where = self._reader.where(index)
        try:
            frame = self._reader.read(index)
        except UserError:
            raise
        except Exception as error:  # every decoder has errors of its own
            raise UserError(
                f"{where}: cannot be decoded "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); the file "
                "is truncated or damaged: copy it again from its origin"
            ) from error
        if frame.dtype == bool:
            frame = frame.astype(np.uint8) * np.uint8(255)
        if frame.ndim == 3:
            frame = _to_gray(frame)
        if frame.shape != self.shape[1:] or frame.dtype != self.dtype:
            raise UserError(
                f"{where}: found {frame.dtype} {_size(frame.shape)}, expected {self.dtype} "
                f"{_size(self.shape[1:])} as in the rest of the movie; export all frames with the "
                "same settings"
            )
        if frame.dtype.kind == "f" and not np.isfinite(frame).all():
            bad = int((~np.isfinite(frame)).sum())
            raise UserError(
                f"{where}: {bad} of {frame.size} pixels are NaN or infinite; expected finite "
                "intensities; fill or crop them, or leave this frame out"
            )
        return frame

    def _estimate_scaling(self) -> tuple[float, float]:
        """Percentiles over frames spread over the movie, both ends included."""
        count = min(SAMPLED_FRAMES, len(self))
        positions = np.unique(np.linspace(0, len(self) - 1, count).round().astype(int))
        sample = []
        for position in positions:
            frame = self._checked(int(position))
            stride = max(1, math.isqrt(frame.size // SAMPLED_PIXELS))
            sample.append(frame[::stride, ::stride].ravel().astype(np.float64))
        low, high = np.percentile(np.concatenate(sample), SCALING_PERCENTILES)
        if not high > low:  # a blank movie: everything becomes 0
            high = low + 1
        return float(low), float(high)


class _Reader(Protocol):
    """What `Frames` needs from a file format."""

    source: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    color: bool
    notices: list[str]

    def read(self, index: int) -> np.ndarray: ...
    def where(self, index: int) -> str: ...
    def pixel_size(self) -> float | None: ...
    def interval(self) -> float | None: ...
    def close(self) -> None: ...


class _TiffReader:
    """One TIFF file, its frames spread over one or several series of pages."""

    def __init__(self, path: Path):
        self.path = path
        self.notices: list[str] = []
        self._tiff: tifffile.TiffFile | None = None
        with _tifffile_complaints() as complaints:
            tiff = self._open()
            try:
                self._read_layout(tiff)
                complaints += self._broken_chain(tiff) + self._beyond_the_end(tiff)
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
        with _tifffile_complaints():  # what goes wrong here becomes an exception or a wrong shape
            tiff = self._open()
            part = int(np.searchsorted(self._starts, index, side="right")) - 1
            series = tiff.series[part]
            page = index - int(self._starts[part])
            if series.dataoffset is not None:
                # Uncompressed and contiguous. ImageJ writes one page description for all frames of
                # a large movie, so that reading page by page would find only the first.
                size = math.prod(self._page_shape)
                dtype = np.dtype(f"{tiff.byteorder}{series.dtype.char}")
                handle = tiff.filehandle
                handle.seek(series.dataoffset + page * size * dtype.itemsize)
                frame = np.frombuffer(handle.read(size * dtype.itemsize), dtype)
                frame = frame.reshape(self._page_shape).astype(
                    series.dtype
                )  # native order, writable
            else:
                found = series.pages[page]
                if found is None:
                    raise UserError(
                        f"{self.where(index)}: the OME-TIFF refers to a file that is not there; "
                        "put all its files into one folder"
                    )
                frame = found.asarray()
        if frame.ndim == 3 and self._samples_first:
            frame = np.moveaxis(frame, 0, -1)
        return frame

    def where(self, index: int) -> str:
        return f"{self.path}, frame {index}"

    def pixel_size(self) -> float | None:
        return self._um

    def interval(self) -> float | None:
        return self._hours

    def close(self) -> None:
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

    def _read_layout(self, tiff: tifffile.TiffFile) -> None:
        """Finds the time axis, or says why there is none."""
        series = [s for s in tiff.series if s.size]
        if not series:
            raise UserError(
                f"{self.path}: a TIFF file without images; expected a time-lapse; export it again"
            )
        kinds = sorted({f"{s.keyframe.dtype} {_size(s.keyframe.shape)}" for s in series})
        if len(kinds) > 1:
            raise UserError(
                f"{self.path}: pages of different shapes or types ({', '.join(kinds)}); expected "
                "one movie of equal frames; export it without thumbnails or other series"
            )
        if len(series) != len(tiff.series):
            raise UserError(f"{self.path}: some of its series are empty; export the movie again")
        keyframe = series[0].keyframe
        self._page_shape = tuple(int(n) for n in keyframe.shape)
        samples = keyframe.axes.count("S")
        if samples and keyframe.axes not in ("YXS", "SYX"):
            raise UserError(
                f"{self.path}: pages with axes {keyframe.axes}; expected gray or RGB frames (YX, "
                "YXS); export it again"
            )
        if not samples and keyframe.axes != "YX":
            raise UserError(
                f"{self.path}: pages with axes {keyframe.axes}; expected two-dimensional frames "
                "(YX); export it again"
            )
        self._samples_first = keyframe.axes == "SYX"
        self.color = bool(samples)
        size = self._page_shape[1:] if self._samples_first else self._page_shape[:2]
        counts = []
        for part in series:
            stacked = [
                (axis, int(n))
                for axis, n in zip(part.axes, part.shape, strict=True)
                if axis not in "YXS" and n > 1
            ]
            if len(stacked) > 1 or (stacked and stacked[0][0] == "C" and stacked[0][1] <= 4):
                found = " x ".join(f"{n} {_AXES.get(a, a)}" for a, n in stacked)
                raise UserError(
                    f"{self.path}: found {found}; expected one channel and one plane over time; in "
                    "Fiji choose Image > Hyperstacks > Make Subset and save that"
                )
            if stacked and stacked[0][0] not in "TIQ":
                name = _AXES.get(stacked[0][0], stacked[0][0])
                self.notices.append(f"its {stacked[0][1]} {name} were taken as time points")
            counts.append(stacked[0][1] if stacked else 1)
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self.dtype = _known_type(series[0].dtype, str(self.path))
        self.shape = (int(sum(counts)), int(size[0]), int(size[1]))
        self.source = "ome-tiff" if tiff.is_ome else "imagej" if tiff.is_imagej else "tiff"
        self._um, self._hours = _tiff_units(tiff, self.path)

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
        while offset:
            end = offset + form.tagnosize
            if offset not in seen and end <= size:
                end += number(offset, form.tagnoformat, form.tagnosize) * form.tagsize
            if offset in seen or end + form.offsetsize > size:
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


_AXES = {"C": "channels", "Z": "planes", "T": "time points", "S": "samples", "R": "replicates"}


class _FolderReader:
    """A folder with one frame a file."""

    def __init__(self, folder: Path, files: list[Path] | None = None):
        self.source = "images"
        self.notices: list[str] = []
        if files is None:
            files = images_in(folder)
        if not files:
            raise UserError(
                f"{folder}: no TIFF, PNG or JPEG file in this folder; expected one frame a file; "
                "give the folder that holds the frames, or a TIFF stack"
            )
        self.files = files
        types = sorted({_file_type(f) for f in files})
        if len(types) > 1:
            raise UserError(
                f"{folder}: files of different types ({', '.join(types)}); expected frames of one "
                "type; move the others elsewhere"
            )
        # Headers only: cheap enough for thousands of files, and a stray file is found before an
        # hour of work, not after
        first = _header(files[0])
        for file in files[1:]:
            found = _header(file)
            if found != first:
                raise UserError(
                    f"{file}: found {found[1]} {_size(found[0])}{' colour' * found[2]}, expected "
                    f"{first[1]} {_size(first[0])}{' colour' * first[2]} as in {files[0].name}; "
                    "export all frames with the same settings"
                )
        self.shape = (len(files), *first[0])
        self.dtype = _known_type(first[1], str(files[0]))
        self.color = first[2]
        self._um = None
        if types == ["tiff"]:
            with tifffile.TiffFile(files[0]) as tiff:
                self._um, _ = _tiff_units(tiff, files[0])

    def read(self, index: int) -> np.ndarray:
        file = self.files[index]
        if _file_type(file) == "tiff":
            reader = _TiffReader(file)
            try:
                return reader.read(0)
            finally:
                reader.close()
        with Image.open(file) as image:
            return np.array(image.convert(_pillow_mode(image.mode)))

    def where(self, index: int) -> str:
        return str(self.files[index])

    def pixel_size(self) -> float | None:
        return self._um

    def interval(self) -> float | None:
        return None  # nothing in separate images tells it reliably

    def close(self) -> None:
        pass


def _file_type(file: Path) -> str:
    suffix = file.suffix.lower()
    return "tiff" if suffix in TIFF_SUFFIXES else "png" if suffix == ".png" else "jpeg"


def _pillow_mode(mode: str) -> str:
    """The Pillow mode to decode into: 8-bit gray, 8-bit colour, 16-bit gray or float."""
    if mode in ("1", "L", "LA", "La"):
        return "L"
    if mode.startswith("I"):
        return mode if mode in ("I;16", "I;16B", "I;16L", "I;16N") else "I"
    return mode if mode == "F" else "RGB"


def _header(file: Path) -> tuple[tuple[int, int], np.dtype, bool]:
    """Size, type and whether it is in colour, without decoding pixels."""
    if file.stat().st_size == 0:
        raise UserError(f"{file}: the file is empty (0 bytes); copy it again or move it elsewhere")
    if _file_type(file) == "tiff":
        reader = _TiffReader(file)
        reader.close()
        if reader.shape[0] != 1:
            raise UserError(
                f"{file}: found {reader.shape[0]} frames, expected one frame a file in a folder; "
                "give the path of this file to read it as a movie"
            )
        return reader.shape[1:], reader.dtype, reader.color
    try:
        with Image.open(file) as image:
            mode = _pillow_mode(image.mode)
            width, height = image.size
    except Exception as error:
        raise UserError(
            f"{file}: not a readable image ({type(error).__name__}); it is truncated or of another "
            "type: copy it again or move it elsewhere"
        ) from error
    types = {"L": np.uint8, "RGB": np.uint8, "F": np.float32, "I": np.int32}
    return (height, width), np.dtype(types.get(mode, np.uint16)), mode == "RGB"


def _known_type(dtype: np.dtype | None, where: str) -> np.dtype:
    """The stored type, in native byte order, if intensities can be of it."""
    kind = np.dtype(dtype).newbyteorder("=") if dtype is not None else None
    if kind is not None and kind.kind == "b":
        return np.dtype(np.uint8)  # masks: False and True become 0 and 255
    if kind is None or kind.kind not in "uif" or kind.itemsize > 8:
        raise UserError(
            f"{where}: pixels of type {kind}; expected integers or real numbers; convert the movie "
            "to 8 or 16 bit"
        )
    return kind


def _to_gray(frame: np.ndarray) -> np.ndarray:
    """(height, width, samples) to (height, width) of the same type; alpha is left out."""
    if frame.shape[-1] < 3:
        return np.ascontiguousarray(frame[..., 0])
    gray = frame[..., :3].astype(np.float64) @ np.array(GRAY_WEIGHTS)
    return (np.rint(gray) if frame.dtype.kind in "ui" else gray).astype(frame.dtype)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


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
    handler, propagate = Collect(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield complaints
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _unit(text: object) -> str:
    """A unit's name in one spelling: micro signs as u, Angstrom as a."""
    name = str(text).strip().replace("\\u00B5", "u").replace("\\u00b5", "u")
    name = name.replace("µ", "u").replace("μ", "u").replace("Å", "a").replace("Å", "a")
    return name.lower()


def _positive(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _convert(value: object, unit: object, table: dict[str, float]) -> float | None:
    number, factor = _positive(value), table.get(_unit(unit))
    return None if number is None or factor is None else number * factor


def _tiff_units(tiff: tifffile.TiffFile, path: Path) -> tuple[float | None, float | None]:
    """Pixel size in micrometres and frame interval in hours, None where the file does not say."""
    um: float | None = None
    hours: float | None = None
    page = tiff.pages.first
    if tiff.is_ome and tiff.ome_metadata:
        um, hours = _ome_units(tiff.ome_metadata, path)
    elif tiff.is_imagej and tiff.imagej_metadata:
        meta = tiff.imagej_metadata
        per_unit = _resolution(page)
        um = None if per_unit is None else _convert(1 / per_unit, meta.get("unit", ""), _TO_UM)
        hours = _convert(meta.get("finterval"), meta.get("tunit", "sec"), _TO_HOURS)
        if hours is None:
            rate = _positive(meta.get("fps"))
            # Fiji writes 7 to 10 frames a second as the speed of playing a stack, also for a
            # time-lapse of days
            hours = 1 / rate / 3600 if rate is not None and rate <= 1 else None
    else:
        per_unit = _resolution(page)
        tag = page.tags.get("ResolutionUnit")
        size = {2: 25_400.0, 3: 10_000.0}.get(int(tag.value) if tag is not None else 1)
        if per_unit is not None and size is not None and size / per_unit <= MAX_PLAUSIBLE_UM:
            um = size / per_unit
    return um, hours


def _resolution(page: Any) -> float | None:
    """Pixels per unit along x, from the tag."""
    tag = page.tags.get("XResolution")
    if tag is None:
        return None
    numerator, denominator = tag.value
    return _positive(numerator / denominator) if denominator else None


def _ome_units(xml: str, path: Path) -> tuple[float | None, float | None]:
    """From OME-XML: PhysicalSizeX/Y and TimeIncrement with their units, or the planes' DeltaT.

    Schema: https://docs.openmicroscopy.org/ome-model/ (defaults: um and s).
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None, None
    pixels = root.find(".//{*}Pixels")
    if pixels is None:
        return None, None
    x = _convert(pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit", "um"), _TO_UM)
    y = _convert(pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeYUnit", "um"), _TO_UM)
    if x is not None and y is not None and abs(x - y) > 0.01 * max(x, y):
        raise UserError(
            f"{path}: pixels of {y:g} x {x:g} um in its metadata; expected square pixels; resample "
            "the movie to equal sizes along both axes"
        )
    hours = _convert(pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"), _TO_HOURS)
    if hours is None:
        times: dict[int, float] = {}
        for plane in pixels.iterfind("{*}Plane"):
            if plane.get("DeltaT") is None:
                continue
            factor = _TO_HOURS.get(_unit(plane.get("DeltaTUnit", "s")))
            if factor is not None:
                times.setdefault(int(plane.get("TheT", 0)), float(plane.get("DeltaT", 0)) * factor)
        if len(times) > 1:
            order = sorted(times)
            steps = np.diff([times[t] for t in order]) / np.diff(order)
            hours = _positive(float(np.median(steps)))
    return (x if x is not None else y), hours
