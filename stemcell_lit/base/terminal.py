"""Text for terminals and shells."""

from __future__ import annotations

import re
import shlex

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def shell_word(word: str) -> str:
    """A word as a shell takes it; what would command a terminal is written as `$'...'` of bash and zsh."""
    if not _CONTROL.search(word):
        return shlex.quote(word)
    body = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _CONTROL.sub(_code, body) + "'"


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}"


def printable(text: object) -> str:
    """Text for a terminal: what would command it (colours, new lines, moves) is shown as its code."""
    return _CONTROL.sub(_code, str(text)).encode("utf-8", "backslashreplace").decode("utf-8")


def printable_lines(error: BaseException) -> str:
    """An error for a terminal: each of its arguments a line, as `printable`."""
    return "\n".join(map(printable, error.args))
