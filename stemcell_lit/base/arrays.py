"""The doors of arrays and tables that are read back: their headers are believed only where the file agrees."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stemcell_lit.base.formats import check_regular, told
from stemcell_lit.errors import UserError

MOST_ROWS = 50_000_000
MOST_COLUMNS = 2_000
MOST_CELLS = 500_000_000  # rows times columns
MOST_TEXT = 65_536  # bytes of one value; a short file may claim gigabytes of them
MOST_TABLE = 8 << 30  # bytes of a table once it is unpacked

_BROKEN = (OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError)


def map_array(file: Path, shape: Sequence[int], remedy: str, dtype: type = np.uint8) -> np.ndarray:
    """A memory-mapped array of a .npy file, of this type.

    The file's size is compared with its header first: what lies behind the end of a short file would end the program
    (SIGBUS) when it is touched.

    Returns:
        Read-only, in C order.

    Raises:
        UserError: no regular file, no array, pickled objects, another shape or type, cut short or with bytes behind.
    """
    check_regular(file, remedy)
    try:
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            readers = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            if version not in readers:
                raise ValueError(f"version {version} of the format")
            found, fortran, kind = readers[version](stream, max_header_size=10_000)
            begin, size = stream.tell(), os.fstat(stream.fileno()).st_size
    except (
        Exception
    ) as error:  # numpy hands the header to the reader of Python, which raises many kinds
        raise UserError(f"{file}: not a readable array ({told(error)}); {remedy}") from error
    expected = tuple(int(n) for n in shape)
    if kind != np.dtype(dtype) or fortran or tuple(found) != expected:
        order = ", columns first" if fortran else ""
        raise UserError(
            f"{file}: holds {kind} {list(found)}{order}, expected {np.dtype(dtype)} {list(expected)}; {remedy}"
        )
    wanted = begin + math.prod(expected) * kind.itemsize
    if size != wanted:
        raise UserError(
            f"{file}: has {size:,} bytes, expected {wanted:,} for {list(expected)}; {remedy}"
        )
    try:
        mapped: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        return mapped
    except _BROKEN as error:
        raise UserError(f"{file}: not a readable array ({told(error)}); {remedy}") from error


KINDS = {
    "text": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or _is_words(t),
    "whole": pa.types.is_integer,
    "number": lambda t: pa.types.is_floating(t) or pa.types.is_integer(t),
}


def _is_words(kind: pa.DataType) -> bool:
    words: bool = pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)
    return words


def read_table(
    file: Path, columns: Mapping[str, str], remedy: str, rows: int | None = None
) -> pd.DataFrame:
    """A table of a Parquet file.

    Args:
        file: of `DataFrame.to_parquet`.
        columns: name -> text, whole or number; more may be there, of these kinds or true and false.
        remedy: what to do where it does not fit.
        rows: how many it must have; None: any number.

    Returns:
        All its columns. Text columns hold no nulls; numbers may be NaN.

    Raises:
        UserError: no regular file, no Parquet, too large, a column missing, twice or of another kind, other rows.
    """
    check_regular(file, remedy)
    try:
        with pq.ParquetFile(file) as opened:
            about, schema = opened.metadata, opened.schema_arrow
            _bounded(file, about, schema, remedy)
            _of_kinds(file, schema, columns, remedy)
            if rows is not None and about.num_rows != rows:
                raise UserError(f"{file}: has {about.num_rows} rows, expected {rows}; {remedy}")
            _short_texts(file, schema, remedy)
            table = pd.read_parquet(file)
    except UserError:
        raise
    except (*_BROKEN, RecursionError, OverflowError, pa.ArrowException, NotImplementedError) as e:
        raise UserError(f"{file}: not a readable table ({told(e)}); {remedy}") from e
    if not isinstance(table.index, pd.RangeIndex) or list(table.columns) != schema.names:
        raise UserError(f"{file}: has an index of its own, expected plain columns; {remedy}")
    if len(table) != about.num_rows:
        raise UserError(
            f"{file}: has {len(table)} rows, its header says {about.num_rows}; {remedy}"
        )
    for name, kind in columns.items():
        if kind != "number" and table[name].isna().any():
            raise UserError(f"{file}: column {name} has empty values, expected none; {remedy}")
    return table


def _bounded(file: Path, about: pq.FileMetaData, schema: pa.Schema, remedy: str) -> None:
    unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    for found, limit, what in (
        (about.num_rows, MOST_ROWS, "rows"),
        (len(schema.names), MOST_COLUMNS, "columns"),
        (about.num_row_groups, 1_000_000, "groups of rows"),
        (about.num_rows * len(schema.names), MOST_CELLS, "values"),
        (unpacked, MOST_TABLE, "bytes"),
    ):
        if not 0 <= found <= limit:
            raise UserError(
                f"{file}: claims {found:,} {what}, expected at most {limit:,}; {remedy}"
            )


def _of_kinds(file: Path, schema: pa.Schema, columns: Mapping[str, str], remedy: str) -> None:
    twice = sorted({n for n in schema.names if schema.names.count(n) > 1})
    missing = [name for name in columns if name not in schema.names]
    if twice or missing:
        found = f"has {twice[:5]} twice" if twice else f"lacks the columns {missing[:20]}"
        raise UserError(f"{file}: {found}; {remedy}")
    for column in schema:
        plain = any(fits(column.type) for fits in KINDS.values())
        wanted = columns.get(column.name)
        if wanted is not None and not KINDS[wanted](column.type):
            raise UserError(
                f"{file}: column {column.name} is of type {column.type}, expected {_NAMES[wanted]}; {remedy}"
            )
        if not (plain or pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
            raise UserError(
                f"{file}: column {column.name[:60]} is of type {str(column.type)[:60]}, expected text or numbers; "
                f"{remedy}"
            )


_NAMES = {"text": "text", "whole": "whole numbers", "number": "numbers"}


def _short_texts(file: Path, schema: pa.Schema, remedy: str) -> None:
    """Refuses a table whose texts are bombs, by the words that it is packed into."""
    names = [c.name for c in schema if KINDS["text"](c.type)]
    if not names:
        return
    words = pq.read_table(file, columns=names, read_dictionary=names)
    for name in names:
        for chunk in words[name].chunks:
            kept = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
            longest = pc.max(pc.binary_length(kept)).as_py() or 0
            if longest > MOST_TEXT:
                raise UserError(
                    f"{file}: column {name} holds a text of {longest:,} bytes, expected at most {MOST_TEXT:,}; {remedy}"
                )
