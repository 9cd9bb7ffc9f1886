"""Settings and commands written so that every value comes back: quoted for Hydra, and for the shell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stemcell_lit.base.terminal import printable, shell_word
from stemcell_lit.errors import UserError
from stemcell_lit.settings.keys import keys_of

_SIMPLE = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")  # text that Hydra's grammar reads as itself


_RESERVED = {"null", "true", "false", "nan", "inf"}


def override(key: str, value: Any) -> str:
    """A setting as Hydra's command line takes it; it reads back as the same value.

    `value` is None, a number, a truth value, a text, a path, or lists and mappings of them.

    Raises:
        UserError: a mapping with keys that Hydra's grammar cannot express.
    """
    return f"{key}={literal(value)}"


def literal(value: Any, quoted: bool = True) -> str:
    """A value in Hydra's grammar; not `quoted`: to be shown and compared, with texts as they are."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(literal(v, quoted) for v in value) + "]"
    if isinstance(value, Mapping):
        for k in value if quoted else ():
            if not _SIMPLE.fullmatch(str(k)) or str(k).lower() in _RESERVED:
                raise UserError(
                    f"{k!r}: a name that the command line cannot hold; write these settings into a file of conf/"
                )
        return "{" + ",".join(f"{k}:{literal(v, quoted)}" for k, v in value.items()) + "}"
    if isinstance(value, int | float) and quoted:
        return repr(value)
    text = str(value)
    if not quoted or (_SIMPLE.fullmatch(text) and text.lower() not in _RESERVED):
        return text
    return _quoted(escaped(text))


def escaped(text: str) -> str:
    """Text in which `${` is text, for OmegaConf; there a backslash counts only before it."""
    return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", text)


def _quoted(text: str) -> str:
    """Text in quotes, for Hydra; there a backslash counts only before a quote."""
    quote = "'" if '"' in text and "'" not in text else '"'
    pattern = rf"(\\*)({quote}|\Z)"
    inside = re.sub(pattern, lambda m: m[1] * 2 + (f"\\{quote}" if m[2] else ""), text)
    return f"{quote}{inside}{quote}"


def command_line(command: str, settings: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """A command to be pasted into a shell, whatever its values hold."""
    pairs = settings.items() if isinstance(settings, Mapping) else settings
    keys = keys_of(command)
    words = []
    for key, value in pairs:
        known = keys.get(key)
        text = str(value)
        plain = known is not None and known.text and not isinstance(value, type(None))
        if plain and _as_it_stands(text):
            words.append(f"{key}={text}")
        else:
            words.append(override(key, value))
    return " ".join(["stemcell-lit", command, *map(shell_word, words)])


def _as_it_stands(text: str) -> bool:
    """Whether the text of a plain key is read as itself without quotes."""
    return text == text.strip() != "" and text.lower() != "null" and text[0] not in "'\"\\"


def plain(text: object) -> str:
    """Text for rich, as `printable` and with brackets that are no markup."""
    from rich.markup import escape

    return escape(printable(text))


def unescaped(text: str) -> str:
    """Undoes `literal`'s escapes; `${` that was not escaped stays."""

    def once(found: re.Match[str]) -> str:
        slashes = len(found[1])
        return found[1][: slashes // 2] + "${" if slashes % 2 else found[0]

    return re.sub(r"(\\*)\$\{", once, text)


def split(words: Sequence[str]) -> list[tuple[str, str]]:
    """Key and value of each word, without the signs in front of a key."""
    pairs = (word.partition("=") for word in words)
    return [(key.lstrip("+~"), value) for key, _, value in pairs]


def command_word(key: str, value: str) -> str:
    """A setting as a user would type it in a shell."""
    return shell_word(f"{key}={value}")
