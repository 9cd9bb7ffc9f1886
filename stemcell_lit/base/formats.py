"""The door of every text file that is read back: bounded, typed, and with one sentence for whatever is wrong with it.

`read_json` takes a *form*, which says what a file must hold. Forms are built from the functions below::

    STORE = record({"format": exactly(1), "classes": listing(text(), least=1)}, {"scales": listing(whole(1, 64))})

A form is a function of (value, where) that returns nothing and raises `Wrong` at the first thing that does not fit.
No file is read but regular ones, none beyond a size, no value beyond a depth: a pipe, a device or a bomb is refused
before it can hang the program.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from stemcell_lit.errors import UserError

Form = Callable[[Any, str], None]

MOST_BYTES = 64 << 20  # of a JSON file; a result of 10,000 groups has less than 2 MB
MOST_DEPTH = 40
MOST_VALUES = 4_000_000


class Wrong(ValueError):
    """A value that does not fit its form: where it stands, what was found, what was expected."""

    def __init__(self, where: str, found: str, expected: str):
        super().__init__(f"{where or 'the file'} is {found}, expected {expected}")


def shown(value: Any) -> str:
    """A value in one short line, whatever its size: nothing of it is walked through that is not shown."""
    if isinstance(value, str | int | float | bool) or value is None:
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
            return "a huge number"
        text = repr(value[:61] if isinstance(value, str) else value)
        return text if len(text) <= 60 else text[:59] + "…"
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}"
    return f"of type {type(value).__name__}"


# --- forms ----------------------------------------------------------------------------------------------------------


def text(most: int = 4096, pattern: str | None = None, told: str = "") -> Form:
    """Text without NUL, of at most so many characters; with a pattern, all of it must match."""
    expected = told or ("text" if pattern is None else f"text of the form {pattern}")

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str):
            raise Wrong(where, shown(value), expected)
        if len(value) > most:
            raise Wrong(where, f"text of {len(value)} characters", f"at most {most}")
        if "\0" in value or (pattern is not None and not re.fullmatch(pattern, value)):
            raise Wrong(where, shown(value), expected)

    return check


def whole(low: int = 0, high: int = 1 << 53) -> Form:
    """A whole number from `low` to `high`."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Wrong(where, shown(value), f"a whole number from {low} to {high}")

    return check


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Form:
    """A finite number from `low` to `high`; with `above`, `low` itself is too little."""
    bounds = f"{'above' if above else 'from'} {low:g} " if low > -math.inf else ""
    bounds += f"{'up ' if bounds else ''}to {high:g}" if high < math.inf else ""

    def check(value: Any, where: str) -> None:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or not low <= value <= high:
            raise Wrong(where, shown(value), f"a number {bounds}".rstrip())
        if above and value == low:
            raise Wrong(where, shown(value), f"a number {bounds}".rstrip())

    return check


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Wrong(where, shown(value), "true or false")


def exactly(*choices: Any) -> Form:
    """One of some plain values."""

    def check(value: Any, where: str) -> None:
        if not any(type(value) is type(c) and value == c for c in choices):
            raise Wrong(where, shown(value), " or ".join(map(repr, choices)))

    return check


def maybe(form: Form) -> Form:
    """A form, or null."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            form(value, where)

    return check


def listing(form: Form, least: int = 0, most: int = 1_000_000, *, unique: bool = False) -> Form:
    """A list of values of one form."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise Wrong(where, shown(value), "a list")
        if not least <= len(value) <= most:
            raise Wrong(where, f"a list of {len(value)}", f"from {least} to {most} in it")
        for i, item in enumerate(value):
            form(item, f"{where}[{i}]")
        if unique and len(set(map(repr, value))) < len(value):
            raise Wrong(where, f"a list of {len(value)} with one of them twice", "each once")

    return check


def mapping(form: Form, most: int = 100_000, keys: Form | None = None) -> Form:
    """Names with values of one form."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise Wrong(where, shown(value), "a mapping")
        if len(value) > most:
            raise Wrong(where, f"a mapping of {len(value)}", f"at most {most} in it")
        for key, item in value.items():
            (keys or text())(key, f"a name in {where}")
            form(item, _below(where, key))

    return check


def record(
    required: Mapping[str, Form], optional: Mapping[str, Form] | None = None, *, more: bool = True
) -> Form:
    """A mapping with known names.

    Args:
        required: name -> form.
        optional: the same of names that may be missing.
        more: whether other names may be there; what they hold is not looked at, and nothing may use it.
    """
    optional = optional or {}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise Wrong(where, shown(value), f"a mapping with {', '.join(required)}")
        missing = [key for key in required if key not in value]
        if missing:
            raise Wrong(where, f"without {', '.join(missing)}", "a value for it")
        strange = [k for k in value if k not in required and k not in optional]
        if strange and not more:
            raise Wrong(where, f"with {shown(strange[0])}", "no such name")
        for known in (required, optional):
            for key, form in known.items():
                if key in value:
                    form(value[key], _below(where, key))

    return check


def settings(defaults: Mapping[str, Any], bounds: Mapping[str, Form]) -> Form:
    """Settings of the types that their defaults have; none of other names, and any may be missing.

    `defaults` are those of a dataclass; `bounds` are forms of what sizes or numbers something.
    """
    forms = {name: bounds.get(name) or _like(value) for name, value in defaults.items()}
    return record({}, forms, more=False)


def _like(value: Any) -> Form:
    if isinstance(value, bool):
        return flag
    if isinstance(value, int):
        return whole(-(1 << 53))
    if isinstance(value, float):
        return number()
    if isinstance(value, list):
        return listing(_like(value[0]) if value else whole(), most=1000)
    return text()


def matrix(form: Form, rows: int | None = None, columns: int | None = None) -> Form:
    """A list of lists, of these lengths where they are given."""
    row = listing(form, *((0, 100_000) if columns is None else (columns, columns)))
    return listing(row, *((0, 100_000) if rows is None else (rows, rows)))


HASH = text(64, "[0-9a-f]{4,64}", "a hash in hexadecimal digits")
NAME = text(256)
MOST_CLASSES = 10_000
CLASSES = listing(NAME, least=1, most=MOST_CLASSES, unique=True)
UM_PER_PX = maybe(number(0, 1e6, above=True))
CURVE = listing(mapping(maybe(number())))


def inside(value: Any, where: str) -> None:
    """A path within the file's own folder: relative, with no way up."""
    text(1024)(value, where)
    parts = PurePosixPath(value).parts
    if not parts or value.startswith("/") or ".." in parts or "\\" in value or ":" in value:
        raise Wrong(where, shown(value), "a path inside the folder of this file")


def beside(value: Any, where: str) -> None:
    """The name of a file in the same folder."""
    inside(value, where)
    if len(PurePosixPath(value).parts) != 1:
        raise Wrong(where, shown(value), "the name of a file beside this one")


def present(value: Any, where: str) -> None:
    """Anything at all; another form looks at it."""


def anything(value: Any, where: str) -> None:
    """Any plain value: text, numbers, true, false, null, lists and mappings with text for names."""
    left = MOST_VALUES
    stack = [(value, where, 0)]
    while stack:
        item, place, depth = stack.pop()
        left -= 1
        if left < 0 or depth > MOST_DEPTH:
            what = f"more than {MOST_VALUES} values" if left < 0 else f"deeper than {MOST_DEPTH}"
            raise Wrong(where, f"of {what}", "less")
        if isinstance(item, Mapping):
            for key, below in item.items():
                if not isinstance(key, str):
                    raise Wrong(place, f"with the name {shown(key)}", "text for names")
                stack.append((below, place, depth + 1))
        elif isinstance(item, list):
            stack += [(below, place, depth + 1) for below in item]
        elif not isinstance(item, str | int | float | bool | None):
            raise Wrong(place, shown(item), "a plain value")


def _below(where: str, key: str) -> str:
    short = key if len(key) <= 60 else key[:59] + "…"
    return f"{where}.{short}" if where else short


def fits(form: Form, value: Any, file: Path, remedy: str) -> Any:
    """The value, where it has the form.

    Raises:
        UserError: it has not; names the file, the place, what was found and expected, and the remedy.
    """
    try:
        form(value, "")
    except Wrong as error:
        raise UserError(f"{file}: {error}; {remedy}") from error
    return value


# --- files ----------------------------------------------------------------------------------------------------------


def read_bytes(file: Path, most: int, remedy: str) -> bytes:
    """The content of a regular file. Pipes, devices and folders are refused without waiting for them.

    Raises:
        UserError: no such file, not a regular one, too large, or not readable.
    """
    try:
        # a pipe without a writer would block for ever where it is opened in the plain way
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            about = os.fstat(stream.fileno())
            if not stat.S_ISREG(about.st_mode):
                kind = "a folder" if stat.S_ISDIR(about.st_mode) else "no regular file"
                raise UserError(f"{file}: is {kind}, expected a file; {remedy}")
            if about.st_size > most:
                raise UserError(
                    f"{file}: has {about.st_size:,} bytes, expected at most {most:,}; {remedy}"
                )
            content = stream.read(most + 1)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; {remedy}") from error
    except IsADirectoryError as error:
        raise UserError(f"{file}: is a folder, expected a file; {remedy}") from error
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        told = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{file}: not readable ({told}); {remedy}") from error
    if len(content) > most:  # it grew while it was read
        raise UserError(f"{file}: has more than {most:,} bytes; {remedy}")
    return content


def is_regular(file: Path) -> bool:
    """Whether a regular file is there, links followed; false also where a link leads nowhere or in a circle."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError):
        return False


def told(error: BaseException) -> str:
    """What a library says of a file that it cannot read, in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}".rstrip(": ")


def check_regular(file: Path, remedy: str) -> None:
    """Refuses what is no regular file, before anything opens it: a pipe would wait for ever.

    Raises:
        UserError: nothing is there, or something else.
    """
    if not is_regular(file):
        found = "is no regular file" if os.path.lexists(file) else "no such file"
        raise UserError(f"{file}: {found}; {remedy}")


def read_text(file: Path, most: int, remedy: str) -> str:
    """The content of a regular UTF-8 file.

    Raises:
        UserError: as `read_bytes`, or not UTF-8.
    """
    content = read_bytes(file, most, remedy)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: byte {error.start} is no UTF-8, expected a text in UTF-8; {remedy}"
        ) from error


def parse_json(content: str) -> Any:
    """The value of a JSON text, without NaN and infinity, without a name twice, not deeper than `MOST_DEPTH`.

    Raises:
        ValueError: any of these, or no JSON.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            names = [key for key, _ in found]
            twice = next(key for key in made if names.count(key) > 1)
            raise ValueError(f"the name {shown(twice)} is there twice")
        return made

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    def real(word: str) -> float:
        value = float(word)
        if not math.isfinite(value):
            raise ValueError(f"{word[:40]} is too large a number")
        return value

    try:
        made = json.loads(
            content, object_pairs_hook=pairs, parse_constant=constant, parse_float=real
        )
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MOST_DEPTH}") from error
    anything(made, "")
    return made


def read_json(file: Path, form: Form, remedy: str, most: int = MOST_BYTES) -> Any:
    """The value of a JSON file that has a form.

    Raises:
        UserError: it cannot be read, is no JSON, or has not the form.
    """
    content = read_text(file, most, remedy)
    try:
        value = parse_json(content)
    except Wrong as error:
        raise UserError(f"{file}: {error}; {remedy}") from error
    except ValueError as error:
        told = "it is empty" if not content.strip() else str(error)
        raise UserError(f"{file}: not readable as JSON ({told}); {remedy}") from error
    return fits(form, value, file, remedy)


def versioned(version: int, form: Form) -> Form:
    """A form whose `format` is looked at first: a file of another version has other names, and lacks none."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise Wrong(where, shown(value), "a mapping")
        if "format" not in value:
            raise Wrong(where, "without format", f"format {version}")
        found = value["format"]
        if type(found) is not int or found != version:
            error = Wrong("format", shown(found), str(version))
            error.args = (f"format {shown(found)}, this version reads {version}",)
            raise error
        form(value, where)

    return check
