"""CSV files for spreadsheets: no text of a user's becomes a formula there.

A spreadsheet runs what begins with `=`, `+`, `-` or `@`, also in a file from somebody else. Such texts get an
apostrophe in front, as spreadsheets write it themselves; numbers stay numbers. `read_csv` takes the apostrophe off
again, so that every text comes back as it was.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stemcell_lit.base.formats import read_text
from stemcell_lit.errors import UserError

MOST_BYTES = 1 << 30

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def as_text(value: str) -> str:
    """A text that no spreadsheet takes for a formula; an apostrophe that hides one gets another in front."""
    if _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return "'" + value
    return value


def as_written(value: str) -> str:
    """The inverse of `as_text`."""
    hidden = value.startswith("'") and _FORMULA.match(value)
    return value[1:] if hidden else value


def to_csv(table: pd.DataFrame, float_format: str | None = None) -> str:
    """A table as CSV whose texts and column names are safe in a spreadsheet."""
    safe = table.rename(columns=lambda name: as_text(str(name))).copy()
    for i, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            column = [as_text(v) if isinstance(v, str) else v for v in table.iloc[:, i]]
            safe.isetitem(i, np.array(column, dtype=object))
    return safe.to_csv(index=False, float_format=float_format)


def read_csv(
    file: Path, columns: Sequence[str], remedy: str, na: Mapping[str, list[str]] | None = None
) -> pd.DataFrame:
    """A table that `to_csv` wrote, its texts as they were.

    `na`: columns of numbers -> texts that mean none; all others are text.

    Raises:
        UserError: not readable, or a column missing.
    """
    content = read_text(file, MOST_BYTES, remedy)
    try:
        # what is not said to be numbers is text, also where a class is called 1 or nan
        kinds: Any = defaultdict(lambda: "str", dict.fromkeys(na or {}, "float64"))
        table = pd.read_csv(
            io.StringIO(content), dtype=kinds, keep_default_na=False, na_values=dict(na or {})
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{file}: not readable as CSV ({error}); {remedy}") from error
    table = table.rename(columns=lambda name: as_written(str(name)))
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"{file}: lacks the columns {missing}; {remedy}")
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name].dtype):
            table[name] = table[name].map(lambda v: as_written(v) if isinstance(v, str) else v)
    return table
