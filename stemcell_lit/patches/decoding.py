"""Bytes of a table to text, in the one encoding that fits."""

from __future__ import annotations

import codecs
import re
import warnings
from pathlib import Path

from stemcell_lit.errors import UserError

# UTF-32 first: its little-endian mark begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHERS = (
    (b"PK\x03\x04", "a spreadsheet or ZIP file"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"PAR1", "a Parquet file"),
)
_SAVE = "save the table as CSV UTF-8"
# Letters of western European names, and the signs of units; other bytes mean another code page
_WESTERN = re.compile(rb"[\x09\x0a\x0d\x20-\x7e\xa0\xa7\xb0-\xb5\xb7\xc0-\xd6\xd8-\xf6\xf8-\xff]*")
_FOREIGN = re.compile(rb"[\xc0-\xff]{3}")  # no western word has three accented letters in a row
_UTF8 = re.compile(rb"[\xc3-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}")


def decoded_text(data: bytes, path: Path) -> str:
    """Text of UTF-8, of UTF-16 or UTF-32 with their mark, or else of Windows Western where only that fits.

    Raises:
        UserError: it is in another encoding, or no text.
    """
    for magic, kind in _OTHERS:
        if data.startswith(magic):
            raise UserError(f"{path}: is {kind}, expected a CSV; {_SAVE}")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding:
            raise UserError(
                f"{path}: begins as {encoding.removesuffix('-sig')} text, and byte {error.start} is none; expected one "
                f"encoding; {_SAVE}"
            ) from error
        text = _western(data, error.start, path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{path}: line {line} holds NUL, as UTF-16 without its mark or a file that is no text has; expected UTF-8; "
            f"{_SAVE}"
        )
    return text


def _western(data: bytes, start: int, path: Path) -> str:
    line = data.count(b"\n", 0, start) + 1
    found = f"{path}: line {line}: byte {data[start]:#x} is no UTF-8"
    if _UTF8.search(data):
        raise UserError(
            f"{found}, other bytes are; expected one encoding throughout, where parts of several files were put "
            f"together; {_SAVE}"
        )
    if not _WESTERN.fullmatch(data) or _FOREIGN.search(data):
        raise UserError(f"{found}, and its encoding cannot be told; expected UTF-8; {_SAVE}")
    text = data.decode("cp1252")
    words = [w for w in re.findall(r"[^\s,;\t|\"]+", text) if not w.isascii()]
    warnings.warn(
        f"{path}: is not UTF-8 and read as Windows Western (cp1252), in which it holds "
        f"{', '.join(repr(w) for w in dict.fromkeys(words[:1000]) if w)[:120]}; {_SAVE} if that is wrong",
        stacklevel=4,
    )
    return text
