"""One reader of every table that a user gives: CSV as spreadsheets, R, pandas and trackers write it.

Encoding, delimiter and the decimal sign are found where only one reading fits, else refused by name. Every cell is
text: `NA`, `None` and `007` are what they say, and only an empty cell is missing. Numbers are read where they are
asked for, and what is none is refused with its line.

    table = read_table(Path("patches.csv"), ["path", "label"], ["frame", "time_h"])
    table.rows["label"], table.whole("frame"), table.numbers("time_h", least=0)
"""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stemcell_lit.base.formats import read_bytes
from stemcell_lit.errors import UserError
from stemcell_lit.patches.column_names import find_columns, word
from stemcell_lit.patches.decoding import decoded_text
from stemcell_lit.patches.labels import check_looks, clean_label, clean_name, why_no_name

SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".xlsx", ".xls", ".ods")  # the last three are refused
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
MAX_BYTES = 2**27
LONGEST_LINE = 100_000  # characters
LONGEST_PATH = 4096
UNITS_ROWS = 3  # that trackers write below the header
NUMBERS = ("frame", "time_h", "x", "y", "size", "coverage")
# Other names of what we read, spelt without blanks and signs: a hint, never a guess
_ALIASES = {
    "path": "file filename filepath image imagename imagepath name picture crop",
    "label": "class classname category target annotation phenotype state celltype",
    "group": "well plate field fov position donor patient experiment series site mouse slide replicate batch",
    "track": "trackid cell cellid lineage particle object objectid trajectory",
    "movie": "film video sequence",
    "frame": "frames frameno framenumber timepoint slice tindex",
    "time_h": "hours hour time t timeh timehours timeinhours hpi h times timesec timemin minutes min seconds sec",
    "x": "posx positionx xpx centroidx cx xm",
    "y": "posy positiony ypx centroidy cy ym",
    "coverage": "foreground confluence",
}
_HINTS = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MISSING = {"na", "n/a", "nan", "null", "none", "inf", "infinity"}


@dataclass(frozen=True)
class Table:
    """A table in memory."""

    path: Path  # its file
    # text; the wanted columns that are there, cleaned, and `line`, where each row stands in the file
    rows: pd.DataFrame
    delimiter: str = ","  # between its fields
    hours: float = 1.0  # what one of the column `time_h` is, in hours

    def whole(self, column: str, least: int = 0) -> np.ndarray:
        """int64 (rows,): a column of whole numbers; `3.0` is 3.

        Raises:
            UserError: a cell is no whole number, or below `least`.
        """
        values = self._parsed(column, True)
        bad = (values != np.floor(values)) | (np.abs(values) > 2**53) | (values < least)
        if bad.any():
            self._refuse(column, bad, f"a whole number from {least}")
        return values.astype(np.int64)

    def numbers(
        self, column: str, least: float | None = None, most: float | None = None
    ) -> np.ndarray:
        """float64 (rows,): a column of finite numbers.

        Raises:
            UserError: a cell is no number, or not from `least` to `most`.
        """
        values = self._parsed(column, False)
        if column == "time_h":
            values = values * self.hours if self.hours >= 1 else values / round(1 / self.hours)
        low, high = -math.inf if least is None else least, math.inf if most is None else most
        bad = (values < low) | (values > high)
        if bad.any():
            self._refuse(
                column,
                bad,
                f"a number from {low:g}" + ("" if most is None else f" to {high:g}"),
            )
        return values

    def once(self, rows: pd.DataFrame, key: Sequence[str], what: str) -> pd.DataFrame:
        """Rows that say the same of one thing: the first of them, with a notice.

        Args:
            rows: with `line`, and what was read of each.
            key: the columns that tell things apart.
            what: a row is one of these, for messages.

        Raises:
            UserError: rows of one thing that differ.
        """
        said = [str(c) for c in rows if c != "line"]
        kept = rows.drop_duplicates(said)
        twice = kept[kept.duplicated(list(key), keep=False)]
        if len(twice):
            first = twice.iloc[0]
            same = (twice[list(key)] == first[list(key)]).all(axis=1)
            other = twice[same].iloc[1]
            column = next(c for c in said if not _same(first[c], other[c]))
            name = ", ".join(str(first[k]) for k in key)
            raise UserError(
                f"{self.path}: lines {first['line']} and {other['line']} are both about {name}: {column} "
                f"{first[column]!r} and {other[column]!r}; expected one row a {what}; remove the wrong one"
            )
        if len(kept) < len(rows):
            again = rows.loc[rows.index.difference(kept.index), "line"]
            warnings.warn(
                f"{self.path}: {len(again)} rows repeat an earlier one and count once, first line {again.iloc[0]}",
                stacklevel=2,
            )
        return kept.reset_index(drop=True)

    def _refuse(self, column: str, bad: np.ndarray, expected: str, do: str = "correct it") -> None:
        row = self.rows.iloc[int(np.flatnonzero(bad)[0])]
        raise UserError(
            f"{self.path}: line {row['line']}, column {column}: found {row[column]!r}, expected {expected}; {do}"
        )

    def _parsed(self, column: str, whole: bool) -> np.ndarray:
        codes, cells = pd.factorize(self.rows[column])
        texts = [str(c).replace("\u2212", "-") for c in cells]  # the minus of typesetters
        sign = self._decimal_sign(column, texts, whole)
        texts = [t.replace(sign, ".") for t in texts]
        values = np.array([float(t) if _NUMBER.fullmatch(t) else math.nan for t in texts])
        bad = ~np.isfinite(values)[codes]
        if bad.any():
            self._refuse(column, bad, "a finite number")
        return values[codes]

    def _decimal_sign(self, column: str, texts: list[str], whole: bool) -> str:
        """Comma or point, where the column tells it from one between thousands."""
        commas, points = (np.array([sign in t for t in texts], bool) for sign in ",.")
        do = "write numbers with a decimal point and nothing between thousands"
        of = {text: i for i, text in enumerate(texts)}
        if commas.any() and points.any():
            mixed = self.rows[column].map(lambda t: "," in t).to_numpy()
            self._refuse(column, mixed, "one decimal sign in the column, found comma and point", do)
        if not (commas.any() or points.any()):
            return "."
        sign = "," if commas.any() else "."
        like = [bool(_thousands(t, sign)) for t in texts]
        marked = commas if sign == "," else points
        several = np.array([t.count(sign) > 1 for t in texts], bool)
        if several.any():
            row = self.rows[column].map(lambda t: several[of[t.replace("\u2212", "-")]]).to_numpy()
            self._refuse(column, row, "a number", do)
        unclear = all(like[i] for i in np.flatnonzero(marked))
        if sign == ".":  # the usual sign: doubtful only where others write it between thousands
            foreign = self.delimiter != "," or self._has_decimal_commas(column)
            unclear &= foreign and (whole or not marked.all() or self._has_decimal_commas(column))
        if unclear:
            row = self.rows[column].map(lambda t: sign in t).to_numpy()
            self._refuse(
                column, row, f"a number whose {sign!r} is surely decimal or surely of thousands", do
            )
        return sign

    def _has_decimal_commas(self, column: str) -> bool:
        others = [c for c in self.rows if c in NUMBERS and c != column]
        return any(self.rows[c].str.fullmatch(r"[+-]?[0-9]+,[0-9]+").any() for c in others)


def read_table(
    path: Path,
    needed: Sequence[str],
    known: Sequence[str] = (),
    *,
    gaps: bool = False,
    bare: Sequence[str] = (),
    columns: Mapping[str, str | None] | None = None,
) -> Table:
    """Reads a CSV.

    Columns are found by name, upper or lower case; those that are not wanted are named in a notice. Lines of comments
    (`#`) before the header, `sep=;`, blank lines, row names and up to three lines of units or long names below the
    header are left out.

    Args:
        path: a regular file of at most 128 MiB.
        needed: columns that must be there.
        known: columns that may be there.
        gaps: whether cells of known columns may be empty.
        bare: columns, the label among them, whose cells may be empty in a row without a label.
        columns: our names of columns -> theirs, see `column_names`; None: each must have ours.

    Raises:
        UserError: it cannot be read in one way only; says which of encoding, delimiter, quotes or row is at fault.
    """
    lines = _lines(path)
    theirs = {n: t for n, t in (columns or {}).items() if t is not None}
    found = _Header.find(path, lines, [theirs.get(name, name) for name in needed])
    other = find_columns(found.names, list(dict.fromkeys((*needed, *known))), columns, str(path))
    absent = {name for name, there in (columns or {}).items() if there is None}
    wanted = found.columns(needed, [n for n in known if n not in absent], other.places)
    for sentence in other.said:
        warnings.warn(f"{path}: {sentence}", stacklevel=2)
    records = _records(path, lines, found)
    if not records:
        raise UserError(f"{path}: no rows; expected one per patch")
    rows = pd.DataFrame(
        {name: [fields[i].strip() for _, fields in records] for name, i in wanted.items()}
    )
    rows["line"] = np.array([line for line, _ in records], np.int64)
    rows = rows.iloc[_units(path, rows, records) :].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{path}: no rows but names and units; expected one per patch")
    _say_ignored(path, found.names, wanted, records)
    for column in wanted:
        if column not in NUMBERS:
            _clean(path, rows, column)
        empty = (rows[column] == "").to_numpy()
        if column in bare:
            empty = empty & (rows["label"] != "").to_numpy()
        if empty.any() and (column in needed or not gaps):
            line = rows["line"].iloc[int(np.flatnonzero(empty)[0])]
            raise UserError(
                f"{path}: line {line} has no {column}; fill it in or remove the line"
                + ("" if column in needed else f", or remove the column {column}")
            )
        if column not in NUMBERS and column != "path":
            named = rows.loc[rows[column] != "", [column, "line"]].drop_duplicates(column)
            places = ((name, f"line {line}") for name, line in named.itertuples(index=False))
            check_looks(places, f"{path}: column {column}", separators=column == "label")
    return Table(path, rows, found.delimiter, other.hours)


def column_names(path: Path) -> list[str]:
    """The names of a CSV's columns, in lower case; empty where there are none.

    Raises:
        UserError: as `read_table`.
    """
    lines = _lines(path)
    best: list[str] = []
    for delimiter in DELIMITERS:
        found = _Header.read(path, lines, delimiter)
        if found and len(found.names) > len(best):
            best = [n.casefold() for n in found.names]
    return best


def _lines(path: Path) -> list[str]:
    """The physical lines of a file, with their ends."""
    data = read_bytes(path, MAX_BYTES, "give the path of a CSV file, or divide a large one")
    lines = list(io.StringIO(decoded_text(data, path), newline=""))
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE:
            raise UserError(
                f"{path}: line {number} is longer than {LONGEST_LINE:,} characters; expected a CSV with a row a line"
            )
    return lines


@dataclass(frozen=True)
class _Header:
    """The first line that names columns: where, under which delimiter, and the names."""

    path: Path
    delimiter: str
    names: list[str]
    first: int  # position of its line
    rest: int  # of the line after it

    @classmethod
    def find(cls, path: Path, lines: list[str], needed: Sequence[str]) -> _Header:
        """The header under the delimiter that shows the needed columns."""
        found = [h for h in (cls.read(path, lines, d) for d in DELIMITERS) if h is not None]
        if not found:
            raise UserError(f"{path}: is empty; expected columns {', '.join(needed)}")

        def fit(header: _Header) -> tuple[int, int]:
            names = {n.casefold() for n in header.names}
            return sum(n.casefold() in names for n in needed), len(header.names)

        best = max(found, key=fit)
        if len(best.names) == 1 and (fit(best)[0] < len(needed) or len(best.names[0].split()) > 1):
            raise UserError(
                f"{path}: line {best.first + 1}: found the delimiter of no CSV in {best.names[0][:60]!r}, expected "
                f"columns {', '.join(needed)} with one of {', '.join(DELIMITERS.values())} between them; save it again "
                "as CSV (UTF-8)"
            )
        return best

    @classmethod
    def read(cls, path: Path, lines: list[str], delimiter: str) -> _Header | None:
        """The header under this delimiter; None where there are only comments and blanks."""
        for at, line in enumerate(lines):
            text = line.strip().strip("\ufeff")
            named = re.fullmatch(r'"?sep=(.)"?', text.casefold()) if at == 0 else None
            if named or re.fullmatch(r'"?sep="?', text.casefold()) or not text.strip(delimiter):
                continue
            if text.startswith("#") and not re.match(r"#\s*(path|frame)\b", text.casefold()):
                continue
            body = [line.lstrip("\ufeff \t#") if text.startswith("#") else line, *lines[at + 1 :]]
            reader = csv.reader(
                iter(body), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t"
            )
            try:
                fields = next(reader)
            except csv.Error:
                return None
            names = [re.sub(r"\s+", " ", clean_name(n)) for n in fields]
            return cls(path, delimiter, names, at, at + reader.line_num)
        return None

    def columns(
        self, needed: Sequence[str], known: Sequence[str], other: Mapping[str, int]
    ) -> dict[str, int]:
        """Wanted name -> its position; `other` are those that are called otherwise."""
        wanted = {}
        for name in dict.fromkeys((*needed, *known)):
            if name in other:
                wanted[name] = other[name]
                continue
            same = [i for i, n in enumerate(self.names) if n == name]
            same = same or [i for i, n in enumerate(self.names) if n.casefold() == name.casefold()]
            if len(same) > 1:
                raise UserError(
                    f"{self.path}: line {self.first + 1}: found {len(same)} columns {name!r}, expected one; rename or "
                    "remove the others"
                )
            if same:
                wanted[name] = same[0]
            elif name in needed:
                shown = ", ".join(n for n in self.names if n)[:300]
                hint = next((n for n in self.names if _hint(n) == name), None)
                raise UserError(
                    f"{self.path}: column {name!r} is missing, found {shown} (between them: "
                    f"{DELIMITERS[self.delimiter]}); expected {', '.join(needed)}"
                    + (
                        f"; rename {hint!r} to {name!r} if it is that, or give columns={{{name}:{word(hint)}}}"
                        if hint
                        else ""
                    )
                )
        return wanted


def _records(path: Path, lines: list[str], header: _Header) -> list[tuple[int, list[str]]]:
    """(line, fields) of each row, as many fields as the header has names."""
    width, delimiter = len(header.names), header.delimiter
    body = lines[header.rest :]
    reader = csv.reader(
        iter(body), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t"
    )
    found: list[tuple[int, list[str]]] = []
    before = 0
    try:
        for fields in reader:
            start, before = before, reader.line_num
            if reader.line_num - start > 1:
                _check_quoted(path, body[start : reader.line_num], header, header.rest + start + 1)
            if any(f.strip() for f in fields):
                found.append((header.rest + start + 1, fields))
    except csv.Error as error:
        raise UserError(
            f"{path}: line {header.rest + before + 1}: quotes that do not pair ({error}); expected CSV as RFC 4180 has "
            "it; close the quote, or write a quote inside a field twice"
        ) from error
    longer = [fields for _, fields in found if len(fields) == width + 1 and fields[-1].strip()]
    if len(longer) == len(found) and _counts([fields[0] for _, fields in found]):
        found = [(line, fields[1:]) for line, fields in found]  # R's row names have no header
    for line, fields in found:
        if any(f.strip() for f in fields[width:]):
            raise UserError(
                f"{path}: line {line}: found {len(fields)} fields, the header names {width} columns with "
                f"{DELIMITERS[delimiter]} between them; put a field that holds the delimiter in quotes, or name "
                "the column"
            )
        others = [d for d in DELIMITERS if d in fields[0] and d != delimiter]
        if len(fields) == 1 < width and others:
            raise UserError(
                f"{path}: line {line}: found the delimiter {DELIMITERS[others[0]]}, the header has "
                f"{DELIMITERS[delimiter]}; expected one delimiter throughout; save it again as CSV"
            )
        fields[width:] = [""] * max(0, width - len(fields))
    return found


def _check_quoted(path: Path, lines: list[str], header: _Header, number: int) -> None:
    """Refuses a field over several lines if these look like rows that an open quote swallowed."""
    for line in lines[1:]:
        if line.count(header.delimiter) >= max(1, len(header.names) - 1):
            raise UserError(
                f"{path}: line {number}: a quote opens a field that goes on over {len(lines)} lines that look like "
                "rows; close the quote, or take the line breaks out"
            )


def _units(path: Path, rows: pd.DataFrame, records: list[tuple[int, list[str]]]) -> int:
    """How many lines of units or long names follow the header."""
    numeric = [c for c in NUMBERS if c in rows]
    count = 0
    for i in range(min(UNITS_ROWS + 1, len(rows))):
        row = rows.iloc[i]
        cells = [row[c] for c in numeric if row[c]]
        name = str(row.get("path", "")).casefold()
        if not cells or not all(map(_is_unit, cells)) or re.search(r"\.[a-z]{3,4}$|[/\\]", name):
            break
        count += 1
        shown = ", ".join(f.strip() for f in records[i][1])[:80]
        warnings.warn(
            f"{path}: line {row['line']} ({shown}) tells names or units, no data, and is left out",
            stacklevel=3,
        )
    return count


def _is_unit(cell: str) -> bool:
    """Whether a cell is a unit or a column's long name, certainly no number and no missing value."""
    word = cell.strip("()[]{} .").casefold()
    return (
        len(cell) <= 40
        and word not in _MISSING
        and bool(re.search(r"[^\W\d_]", word))
        and not re.search(r"\d", re.sub(r"[\^_-]?\d", "", word) if cell[0] in "([" else word)
    )


def _say_ignored(
    path: Path, names: list[str], wanted: dict[str, int], records: list[tuple[int, list[str]]]
) -> None:
    said = []
    for i, name in enumerate(names):
        if i in wanted.values():
            continue
        if not name or re.fullmatch(r"Unnamed: \d+", name):
            cells = [fields[i].strip() for _, fields in records]
            if not any(cells) or _counts(cells):
                continue  # a trailing comma, or row names
        hint = _hint(name)
        rename = hint and hint not in wanted
        said.append(
            f"{name or 'without a name'} (rename it {hint} if it is that)"
            if rename
            else name or "without a name"
        )
    if said:
        more = f" and {len(said) - 12} more" if len(said) > 12 else ""
        warnings.warn(
            f"{path}: columns that are not used: {', '.join(said[:12])}{more}", stacklevel=3
        )


def _hint(name: str) -> str | None:
    bare = re.sub(r"[\(\[].*?[\)\]]", "", name).casefold()
    return _HINTS.get(re.sub(r"[\W_]", "", bare)) or _HINTS.get(
        re.sub(r"[\W_]", "", name.casefold())
    )


def _clean(path: Path, rows: pd.DataFrame, column: str) -> None:
    """Cleans the names of a column in place."""
    codes, cells = pd.factorize(rows[column])
    clean = clean_label if column == "label" else str if column == "path" else clean_name
    names = [clean(str(c)) for c in cells]
    for i, name in enumerate(names):
        if column == "path":
            bad = len(name) > LONGEST_PATH or any(ord(c) < 32 for c in name)
            reason = "is no file name" if bad else ""
        else:
            reason = why_no_name(name) if name else ""
        if reason:
            line = rows["line"].iloc[int(np.flatnonzero(codes == i)[0])]
            raise UserError(
                f"{path}: line {line}, column {column}: found {name[:80]!r}, which {reason}; correct it"
            )
    rows[column] = np.array(names, object)[codes]


def _counts(cells: Sequence[str]) -> bool:
    """Whether cells are the numbers of rows, from 0 or 1."""
    return any(all(c.strip() == str(i) for i, c in enumerate(cells, start)) for start in (0, 1))


def _thousands(text: str, sign: str) -> bool:
    return bool(re.fullmatch(rf"[+-]?[1-9][0-9]{{0,2}}\{sign}[0-9]{{3}}", text))


def _same(a: object, b: object) -> bool:
    return a == b or (a != a and b != b)  # two NaN are the same
