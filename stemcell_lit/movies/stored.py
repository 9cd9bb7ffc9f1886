"""What is stored in a picture's file, in terms that TIFF, PNG, JPEG and BMP share.

Headers alone are read here, and samples are decoded in the units in which they are stored;
`pictures` turns them into values.
"""

from __future__ import annotations

import io
import math
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from PIL import Image

from stemcell_lit.errors import UserError

MAX_PIXELS = 2**28  # 16,384 x 16,384; a header that says more is damaged or a bomb
MAX_FILE_BYTES = 2**32
MAX_CHUNKS = 2**20

# Pillow warns above this and refuses above twice as much
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


MAKE_GRAY = (
    "in Fiji choose Image > Lookup Tables > Grays to keep the stored numbers, or Image > Type > RGB Color to keep "
    "the colours, and save it again"
)
EXPORT_AGAIN = "copy it again from its origin or export it as 8- or 16-bit gray TIFF or PNG"
_MAGIC = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP or AVI"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x89HDF", "HDF5"),
    (b"%PDF", "PDF"),
    (b"<", "text such as HTML or SVG"),
)
_PNG = b"\x89PNG\r\n\x1a\n"
# Bit depths that each PNG colour type can have (PNG specification, 11.2.2)
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_JPEG_COMPRESSIONS = (6, 7, 33007, 34892)
_JPEG_PADDING = 16  # bytes after the end mark, to whole words
# These may change the numbers: the JPEG family, JPEG 2000, JPEG XR, WebP, JPEG XL, LERC
_LOSSY = {
    *_JPEG_COMPRESSIONS,
    33003,
    33004,
    33005,
    34712,
    22610,
    34934,
    34927,
    50001,
    34887,
    50002,
    52546,
}
_PHOTOMETRICS = {
    4: "a transparency mask",
    5: "CMYK colours",
    6: "YCbCr colours",
    8: "CIELab colours",
    9: "ICCLab colours",
    10: "ITULab colours",
    32803: "raw values of a colour filter array",
    32844: "LogL values",
    32845: "LogLuv colours",
    34892: "linear raw values",
}


@dataclass(frozen=True)
class Stored:
    """What is in a file, in terms that all formats share."""

    where: str
    shape: tuple[int, int]
    dtype: np.dtype
    bits: int  # of a sample; values lie in 0 to 2^bits - 1 if they are unsigned
    # gray, white (zero is white), table (indices into `table`) or colour (red, green, blue)
    kind: str
    extras: tuple[bool, ...] = ()  # for each sample after gray or blue whether it is alpha
    table: np.ndarray | None = None  # the colours of the indices, (entries, 3) of uint8 or uint16
    # for each entry of the table whether it is opaque; None: all are
    opaque: np.ndarray | None = None
    planes: bool = False  # colour is stored plane by plane
    lossy: bool = False  # its compression may change numbers

    @property
    def samples(self) -> int:
        """Samples of a pixel."""
        return (3 if self.kind == "colour" else 1) + len(self.extras)


def stored_page(page: Any, where: str) -> Stored:
    """What the tags of a TIFF page say (TIFF 6.0)."""
    key = page.keyframe
    if key.axes not in ("YX", "YXS", "SYX") or key.imagedepth != 1:
        raise UserError(
            f"{where}: a page with axes {key.axes}, expected a gray or colour image (YX, YXS); export it again"
        )
    orientation = key.tags.get(274)
    if orientation is not None:
        _check_upright(orientation.value, where)
    photometric, samples = int(key.photometric), int(key.samplesperpixel)
    extras = tuple(int(e) in (1, 2) for e in key.extrasamples)
    compression = int(key.compression)
    kind = {0: "white", 1: "gray", 2: "colour", 3: "table"}.get(photometric)
    if photometric == 6 and compression in _JPEG_COMPRESSIONS and not extras:
        kind = "colour" if samples == 3 and int(key.planarconfig) == 1 else None
    base = 3 if kind == "colour" else 1
    extras += (False,) * (samples - base - len(extras))  # what nothing describes
    bits = key.bitspersample
    if (
        kind is None
        or samples != base + len(extras)
        or (kind == "table" and extras)
        or not isinstance(bits, int)
        or key.dtype is None
    ):
        found = _PHOTOMETRICS.get(
            photometric, f"pixels of photometric interpretation {photometric}"
        )
        found = (
            found if kind is None else "indices into a colour table" if kind == "table" else kind
        )
        raise UserError(
            f"{where}: {found} with {samples} samples of {bits} bits (sample format {key.sampleformat}); expected "
            "gray, or red, green and blue; convert it to 8- or 16-bit gray or RGB (in Fiji: Image > Type) and save it"
        )
    axes = dict(zip(key.axes, key.shape, strict=True))
    stored = Stored(
        where,
        (int(axes["Y"]), int(axes["X"])),
        np.dtype(key.dtype).newbyteorder("="),
        int(bits),
        kind,
        extras,
        planes=kind == "colour" and int(key.planarconfig) == 2,
        lossy=compression in _LOSSY,
    )
    return replace(stored, table=_page_table(page, stored)) if kind == "table" else stored


def check_segments(page: Any, where: str) -> None:
    """Refuses a TIFF page of which strips or tiles are absent or cut: decoders fill them in silence.

    Raises:
        UserError: it says how many.
    """
    expected = math.prod(page.keyframe.chunked)
    counts = page.databytecounts[:expected]
    absent = expected - sum(1 for o, n in zip(page.dataoffsets, counts, strict=False) if o and n)
    if absent:
        raise UserError(
            f"{where}: {absent} of its {expected} strips or tiles hold no data; expected a whole picture; "
            f"{EXPORT_AGAIN}"
        )
    if int(page.keyframe.compression) not in _JPEG_COMPRESSIONS:
        return
    handle = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, counts, strict=False):
        handle.seek(offset + max(0, count - _JPEG_PADDING))
        if b"\xff\xd9" not in handle.read(min(count, _JPEG_PADDING)):
            raise UserError(
                f"{where}: JPEG data without its end; expected a whole picture; it is truncated: {EXPORT_AGAIN}"
            )


def _page_table(page: Any, stored: Stored) -> np.ndarray:
    """The colour table of a TIFF, (entries, 3): uint8 where its 16-bit entries say no more."""
    own = page.aspage()  # the keyframe has the table of another frame
    table = None if own.colormap is None else np.asarray(own.colormap)
    if table is None or table.shape != (3, 2**stored.bits) or stored.dtype.kind not in "bu":
        raise UserError(
            f"{stored.where}: marked as indices into a colour table, but {'no' if table is None else 'no fitting'} "
            f"table is there; {MAKE_GRAY}"
        )
    table = table.T.astype(np.uint16)
    high = table >> 8
    # 8-bit colours are written as v * 257 (the standard) or as v * 256 (Fiji and others)
    if ((table == high * 257).all() and table.any()) or (
        (table == high * 256).all() and high.any()
    ):
        return high.astype(np.uint8)
    if table.max() < 256:
        raise UserError(
            f"{stored.where}: a colour table whose entries are all below 256, though they should fill 16 bits; it is "
            f"not clear which gray is meant; {MAKE_GRAY}"
        )
    return table


def _check_upright(orientation: object, where: str) -> None:
    """Class maps and tables count rows from the top, so that nothing may be turned in silence."""
    if orientation in range(2, 9):
        raise UserError(
            f"{where}: its orientation tag says that it is shown turned or mirrored ({orientation}); expected an "
            "upright picture (1); save it upright, or remove the tag if the stored rows are right"
        )


def too_large(where: str, found: str) -> UserError:
    """The refusal of a header that says more than a picture can have."""
    return UserError(
        f"{where}: its header says {found}; expected at most {MAX_PIXELS:,} px; if that is true cut it into parts, "
        f"else {EXPORT_AGAIN}"
    )


@contextmanager
def one_sentence(where: str) -> Iterator[None]:
    """Whatever goes wrong inside is said in one sentence that names the picture."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{where}: no such file; expected a picture; correct its path") from error
    except PermissionError as error:
        raise UserError(
            f"{where}: this user may not read it; expected a readable picture; change its permissions"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"{where}: too large for the memory that is free; expected a picture that fits; cut it into parts"
        ) from error
    except Exception as error:  # every decoder has errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{where}: cannot be decoded ({reason}); it is truncated or damaged: {EXPORT_AGAIN}"
        ) from error


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A regular file, opened; anything else would be waited for or never end."""
    with one_sentence(str(file)):
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
            raise UserError(f"{file}: {kind}, expected a picture; give the path of a file")
        if status.st_size == 0:
            raise UserError(f"{file}: the file is empty (0 bytes); copy it again or remove it")
        if status.st_size > MAX_FILE_BYTES:
            raise UserError(
                f"{file}: {status.st_size:,} bytes, expected one picture of at most {MAX_FILE_BYTES:,}; {EXPORT_AGAIN}"
            )
        with file.open("rb") as handle:
            yield handle


def stored_file(handle: BinaryIO, where: str) -> tuple[Stored, Image.Image | None]:
    """What a file's header says, and what Pillow has opened unless it is a PNG."""
    start = handle.read(32)
    if start.startswith(_PNG):
        return _stored_png(handle, where), None
    if not start.startswith((b"\xff\xd8\xff", b"BM")):
        found = next((name for magic, name in _MAGIC if start.startswith(magic)), "unknown")
        raise UserError(
            f"{where}: its content is {found}, expected PNG, JPEG or BMP; "
            + ("name it .tif" if "TIFF" in found else EXPORT_AGAIN)
        )
    handle.seek(0)
    try:
        image = Image.open(handle, formats=("JPEG", "BMP"))
    except Image.DecompressionBombError as error:
        raise too_large(where, "more than can be") from error
    if getattr(image, "n_frames", 1) != 1:
        raise _several(where)
    width, height = image.size
    kind = {"1": "gray", "L": "gray", "P": "table", "RGB": "colour", "RGBA": "colour"}.get(
        image.mode
    )
    if kind is None:
        raise UserError(
            f"{where}: {image.mode} colours, expected gray or RGB; convert it to gray or RGB and save it again"
        )
    _check_upright(image.getexif().get(274), where)
    table = None
    if image.mode == "P":
        table = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    dtype = np.dtype(bool if image.mode == "1" else np.uint8)
    bits = 1 if image.mode == "1" else 8
    alpha = (True,) if image.mode == "RGBA" else ()
    lossy = image.format != "BMP"
    return Stored(where, (height, width), dtype, bits, kind, alpha, table, lossy=lossy), image


def _several(where: str) -> UserError:
    return UserError(
        f"{where}: holds several images or an animation; expected one picture; save each as a file of its own"
    )


def _stored_png(handle: BinaryIO, where: str) -> Stored:
    """What the chunks of a PNG say."""
    handle.seek(len(_PNG))
    chunks: dict[bytes, bytes] = {}
    for _ in range(MAX_CHUNKS):
        head = handle.read(8)
        if len(head) < 8:
            raise ValueError("it ends before its last chunk")
        length, name = struct.unpack(">I4s", head)
        if name == b"IEND":
            break
        if name in (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"eXIf"):
            chunks.setdefault(name, handle.read(length))
            length = 0 if len(chunks[name]) == length else length
            handle.seek(4, io.SEEK_CUR)
        else:
            handle.seek(length + 4, io.SEEK_CUR)
    else:
        raise ValueError(f"more than {MAX_CHUNKS:,} chunks")
    width, height, bits, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    if bits not in _PNG_DEPTHS.get(colour, ()):
        raise ValueError(f"bit depth {bits} of colour type {colour}")
    if struct.unpack(">I", chunks.get(b"acTL", b"\0\0\0\1")[:4])[0] != 1:
        raise _several(where)
    if b"eXIf" in chunks:
        exif = Image.Exif()
        exif.load(chunks[b"eXIf"])
        _check_upright(exif.get(274), where)
    dtype = np.dtype(np.uint8 if bits <= 8 else np.uint16)
    stored = Stored(where, (height, width), dtype, bits, "colour" if colour in (2, 6) else "gray")
    if colour == 3:
        table = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
        opaque = np.ones(len(table), bool)
        alpha = np.frombuffer(chunks.get(b"tRNS", b""), np.uint8)[: len(table)]
        opaque[: len(alpha)] = alpha == 255
        return replace(stored, kind="table", table=table, opaque=opaque)
    if colour >= 4 or b"tRNS" in chunks:
        return replace(stored, extras=(True,))
    return stored


def decoded(handle: BinaryIO, stored: Stored, image: Image.Image | None) -> np.ndarray:
    """The samples of a file in the units in which they are stored."""
    if image is not None:
        return np.asarray(image)
    handle.seek(0)
    if stored.kind == "table":  # libpng would apply the table
        with Image.open(handle, formats=("PNG",)) as indexed:
            return np.asarray(indexed)
    array = imagecodecs.png_decode(handle.read())
    if stored.bits < 8:
        step = 255 // (2**stored.bits - 1)
        array = array // np.uint8(step)
    return array
