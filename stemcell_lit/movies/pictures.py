"""One picture or one TIFF page to gray values or to label numbers: one reader for every way in.

Decoders disagree about white-is-zero, colour tables, low bit depths, alpha and 16-bit colour. Here
each of these has one meaning, whatever file it comes from: what is stored is described first
(`stored.Stored`), and only then turned into values. What has no single meaning is refused.

    with tifffile.TiffFile("movie.tif") as tiff:
        page = tiff.pages[3]
        page_layout(page, "movie.tif, frame 3")  # from the header alone
        values = page_values(page.asarray(), page, "movie.tif, frame 3")
    values = image_values(Path("crop.png"))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stemcell_lit.errors import UserError
from stemcell_lit.movies.stored import (
    EXPORT_AGAIN,
    MAKE_GRAY,
    MAX_PIXELS,
    Stored,
    check_segments,
    decoded,
    one_sentence,
    opened,
    stored_file,
    stored_page,
    too_large,
)

GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
MAX_SAMPLES = 2**30
_COLOURS = ("red", "green", "blue")
_AS_LABELS = "export the labels themselves as 8- or 16-bit gray, not a picture of them"


@dataclass(frozen=True)
class Layout:
    """What a picture will give, known from its header alone."""

    shape: tuple[int, int]  # (height, width)
    dtype: np.dtype  # of the values, in native byte order
    colour: bool  # whether its colours will be mixed to gray by luma
    notices: tuple[str, ...] = ()  # what its owner should know, one sentence each


def page_layout(
    page: Any, where: str, *, channel: str | None = None, labels: bool = False
) -> Layout:
    """What a TIFF page will give, from its tags.

    Args:
        page: a tifffile TiffPage or TiffFrame.
        where: names it in messages: the file, and the frame where there are several.
        channel: the sample to take of several: a number from 0, or red, green, blue. A page of one
            sample has only 0. None: colour becomes gray, and other samples are refused.
        labels: the stored numbers are meant, not gray values.

    Raises:
        UserError: it has no single meaning, or is too large.
    """
    with one_sentence(where):
        layout = _layout(stored_page(page, where), channel, labels)
        check_segments(page, where)
        return layout


def page_values(
    array: np.ndarray, page: Any, where: str, *, channel: str | None = None, labels: bool = False
) -> np.ndarray:
    """The values of a decoded TIFF page.

    Gray values: white-is-zero is turned round, 1 to 7 bits are spread over 0 to 255, a gray colour
    table is applied, colour is mixed by luma in the stored type; everything else is as stored.

    Args:
        array: the page as `page.asarray()` gives it, axes as in `page.axes`.
        page: where it comes from.
        where: names it in messages.
        channel: as in `page_layout`.
        labels: as in `page_layout`.

    Returns:
        (height, width), of the layout's type. NaN and infinity stay.

    Raises:
        UserError: as `page_layout`, and for pixels that are coloured by a table or transparent.
    """
    with one_sentence(where):
        stored = stored_page(page, where)
        layout = _layout(stored, channel, labels)
        check_segments(page, where)
        if page.keyframe.axes == "SYX":
            array = np.moveaxis(array, 0, -1)
        return _values(array, stored, layout, channel, labels)


def image_layout(file: Path, *, channel: str | None = None, labels: bool = False) -> Layout:
    """What a PNG, JPEG or BMP file will give, from its header; `channel` and `labels` as in `page_layout`.

    Its content says the format, whatever its suffix.

    Raises:
        UserError: not there, not readable, of another format, or without a single meaning.
    """
    with opened(file) as handle:
        return _layout(stored_file(handle, str(file))[0], channel, labels)


def image_values(file: Path, *, channel: str | None = None, labels: bool = False) -> np.ndarray:
    """The values of a PNG, JPEG or BMP file: as `page_values` would give for the same picture.

    Raises:
        UserError: as `image_layout`, and for a damaged file and pixels that are coloured by a table
            or transparent.
    """
    with opened(file) as handle:
        stored, image = stored_file(handle, str(file))
        layout = _layout(stored, channel, labels)
        return _values(decoded(handle, stored, image), stored, layout, channel, labels)


def _layout(stored: Stored, channel: str | None, labels: bool) -> Layout:
    """Refuses what has no single meaning and says what the rest will be."""
    where, kind, dtype = stored.where, stored.kind, stored.dtype
    height, width = stored.shape
    if height < 1 or width < 1:
        raise UserError(
            f"{where}: {height} x {width} px; expected at least one pixel; {EXPORT_AGAIN}"
        )
    if height * width > MAX_PIXELS or height * width * stored.samples > MAX_SAMPLES:
        raise too_large(where, f"{height:,} x {width:,} px of {stored.samples} samples")
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise UserError(
            f"{where}: pixels of type {dtype}; expected integers or real numbers; convert it to 8 or 16 bit"
        )
    sample = _chosen(stored, channel)
    colour = kind == "colour" and sample is None
    if labels:
        _check_labels(stored)
    elif kind == "white" and dtype.kind not in "bu":
        raise UserError(
            f"{where}: {dtype} pixels marked as white-is-zero; expected unsigned ones, whose maximum is known; in Fiji "
            "choose Edit > Invert, or save it with zero as black"
        )
    elif kind == "table":
        assert stored.table is not None
        coloured = int(_coloured(stored.table).sum())
        if 2 * coloured > len(stored.table):
            raise _table_error(stored, f"{coloured} of its {len(stored.table)} entries are")
        dtype = stored.table.dtype
    elif stored.bits < 8:
        dtype = np.dtype(np.uint8)
    elif colour and dtype.kind in "ui" and dtype.itemsize > 4:
        raise UserError(
            f"{where}: colour of {stored.bits} bits; expected at most 32; convert it to 8 or 16 bit"
        )
    if dtype.kind == "b":
        dtype = np.dtype(np.uint8)
    notices: tuple[str, ...] = ()
    if colour and stored.planes:
        notices = (
            "three planes marked as red, green and blue were mixed to gray; if they are three frames, planes or "
            "channels, save them as a stack of gray images, or choose one with channel=",
        )
    return Layout(stored.shape, dtype.newbyteorder("="), colour, notices)


def _check_labels(stored: Stored) -> None:
    where = stored.where
    if stored.lossy:
        raise UserError(
            f"{where}: a label image in a compression that may change numbers, as JPEG does; expected the numbers as "
            "they were made; export it again as PNG, or as TIFF with LZW, Deflate or no compression"
        )
    found = None
    if stored.dtype.kind == "f":
        found = str(stored.dtype)
    elif stored.kind == "colour":
        found = "colours"
    if found:
        raise UserError(
            f"{where}: found {found}, expected a label image: gray, whole numbers, 0 where nothing is labelled; "
            f"{_AS_LABELS}"
        )
    if stored.kind == "white":
        raise UserError(
            f"{where}: a label image marked as white-is-zero, so it is not clear which numbers are meant; expected "
            "black-is-zero; save it as 8-bit gray PNG (from Python as uint8, not bool) and check that 0 is background"
        )


def _chosen(stored: Stored, channel: str | None) -> int | None:
    """The index of the wanted sample; None: the only one, or colour to be mixed."""
    unknown = [
        stored.samples - len(stored.extras) + i for i, a in enumerate(stored.extras) if not a
    ]
    base = [0, 1, 2] if stored.kind == "colour" else [0]
    if channel is None:
        if unknown:
            several = [*base, *unknown]
            raise UserError(
                f"{stored.where}: {len(several)} samples a pixel, which are several channels; expected one gray value "
                f"or a colour; choose one with channel=, {several[0]} to {several[-1]}"
            )
        return None
    name = str(channel).strip().lower()
    choices = [str(i) for i in (*base, *unknown)]
    if stored.kind == "colour" and name in _COLOURS:
        return _COLOURS.index(name)
    if name not in choices:
        names = [*choices, *(_COLOURS if stored.kind == "colour" else ())]
        raise UserError(
            f"{stored.where}: channel={channel}; expected {'one of ' if names[1:] else 'only '}{', '.join(names)}, the "
            f"samples of its pixels; {'choose one of them' if names[1:] else 'leave channel= out for it'}"
        )
    return int(name)


def _values(
    array: np.ndarray, stored: Stored, layout: Layout, channel: str | None, labels: bool
) -> np.ndarray:
    """Values of (height, width[, samples]) in the stored units."""
    expected = stored.shape if stored.samples == 1 else (*stored.shape, stored.samples)
    if array.shape == (*stored.shape, 1):
        array = array[..., 0]
    if array.shape != expected or array.dtype.newbyteorder("=") != stored.dtype:
        raise UserError(
            f"{stored.where}: decoded to {array.dtype} {array.shape}, expected {stored.dtype} {expected} as its "
            f"header says; it is damaged: {EXPORT_AGAIN}"
        )
    if array.ndim == 3:
        first = stored.samples - len(stored.extras)
        for index, alpha in enumerate(stored.extras, first):
            if alpha:
                _check_opaque(array[..., index], stored)
        sample = _chosen(stored, channel)
        array = array[..., sample or 0] if sample is not None or first == 1 else array[..., :3]
    if labels:
        return np.ascontiguousarray(array, layout.dtype)
    if stored.kind == "table":
        return _through_table(array, stored)
    if stored.bits < 8:
        top = 2**stored.bits - 1
        spread = np.rint(np.arange(top + 1) * (255 / top)).astype(np.uint8)
        array = spread[array.astype(np.uint8)]
    if stored.kind == "white":
        top = 255 if stored.bits < 8 else 2**stored.bits - 1
        array = np.array(top, array.dtype) - array
    if array.ndim == 3:
        array = _luma(array)
    return np.ascontiguousarray(array, layout.dtype)


def _check_opaque(alpha: np.ndarray, stored: Stored) -> None:
    top = 1 if alpha.dtype.kind == "f" else 2**stored.bits - 1
    if alpha.dtype.kind == "i" or not (alpha == top).all():
        raise _transparent(stored.where)


def _transparent(where: str) -> UserError:
    return UserError(
        f"{where}: some pixels are transparent; expected opaque ones; flatten it (in GIMP: Image > Flatten Image; in "
        "Fiji: Image > Type > 8-bit) and save it again"
    )


def _luma(array: np.ndarray) -> np.ndarray:
    """(height, width, 3) to (height, width) of the same type; gray stays exactly what it is."""
    red, green, blue = (array[..., i] for i in range(3))
    if array.dtype.kind == "f":
        mixed = array.astype(np.float64) @ np.array(GRAY_WEIGHTS)
        return np.where((red == green) & (green == blue), red, mixed).astype(array.dtype)
    # in thousandths, so that no rounding of the weights can tip a half
    kind = np.int32 if array.dtype.itemsize <= 2 else np.int64
    total = np.full(red.shape, 500, kind)
    for weight, plane in zip(GRAY_WEIGHTS, (red, green, blue), strict=True):
        total += plane.astype(kind) * round(1000 * weight)
    return (total // 1000).astype(array.dtype)


def _coloured(table: np.ndarray) -> np.ndarray:
    coloured: np.ndarray = (table != table[:, :1]).any(1)
    return coloured


def _table_error(stored: Stored, found: str) -> UserError:
    return UserError(
        f"{stored.where}: a colour table (LUT) in which {found} coloured, so its gray values are not clear; expected "
        f"gray or RGB; {MAKE_GRAY}"
    )


def _through_table(indices: np.ndarray, stored: Stored) -> np.ndarray:
    table = stored.table
    assert table is not None
    used = np.flatnonzero(np.bincount(indices.ravel()))
    if used[-1] >= len(table):
        raise UserError(
            f"{stored.where}: found the index {used[-1]} into a colour table of {len(table)} entries; it is damaged: "
            f"{EXPORT_AGAIN}"
        )
    coloured = int(_coloured(table[used]).sum())
    if coloured:
        raise _table_error(stored, f"{coloured} of {len(used)} used entries are")
    if stored.opaque is not None and not stored.opaque[used].all():
        raise _transparent(stored.where)
    return np.ascontiguousarray(table[indices.astype(np.intp), 0])
