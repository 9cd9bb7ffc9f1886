"""Words of the command line, `key=value`: read as users type them.

Hydra's grammar takes `= , ( ) # [ ]`, blanks and most letters for its own in values that are not quoted. A value of a
key that holds plain text (a path, a name) is therefore taken as it stands, from the first `=` to the end; one in quotes
of Hydra's grammar means what is inside them. `${...}` in it is text, too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError
from stemcell_lit.settings.command_table import COMMANDS
from stemcell_lit.settings.conf import groups_of, is_path, refuse_choice
from stemcell_lit.settings.keys import Key, keys_of
from stemcell_lit.settings.quoting import command_word, literal, override, unescaped

_OPEN = ("experiment", "profile")  # groups that may be left out


def read(command: str, words: Sequence[str], *, several: bool = False) -> list[str]:
    """A user's words as overrides in Hydra's grammar. What is in it already stays as it is.

    `several`: whether a key may have several values (`-m`).

    Raises:
        UserError: a word that is no setting of this command, with the right spelling.
    """
    keys, first = keys_of(command), COMMANDS[command].first
    if first and words and "=" not in words[0] and words[0][:1] not in ("", "-", "+", "~"):
        words = [f"{first}={words[0]}", *words[1:]]
    _whole(command, words)
    found = []
    for word in located(command, words, several=several):
        key, _, value = word.partition("=")
        if key.lstrip("+~").startswith(("hydra.", "hydra/")):
            found.append(_of_hydra(word))
            continue
        if key.startswith("++") and _holds_names(key[2:], keys):
            key, word = key[2:], word[2:]  # read before
        if key[:1] in ("+", "~"):
            raise UserError(_only_set(command, word))
        known = _known(command, key, keys)
        if not value.strip():
            null = f"; {key}=null leaves it open" if known and known.optional else ""
            raise UserError(f"{key}= has no value; write {key}=VALUE without blanks around ={null}")
        if key in _OPEN and value.strip() == "null":
            found = [w for w in found if w.partition("=")[0] != key]  # Hydra has no word for it
            continue
        sign = "++" if _holds_names(key, keys) else ""  # new names are no new keys
        found.append(sign + _read(command, key, value, known, several))
    given = {w.lstrip("+").partition("=")[0] for w in words}
    if "hierarchy.tree" in given and "hierarchy" not in given:
        raise UserError(
            "hierarchy.tree= would join the tree of the default hierarchy; write hierarchy=flat beside it"
        )
    return found


def _only_set(command: str, word: str) -> str:
    return (
        f"{printable(word)}: keys are neither added nor removed, only set: every key is there already "
        f"(`stemcell-lit {command} --help`)"
    )


# options of Hydra that name other settings than these
_FOLDERS = ("--config-path", "-cp", "--config-name", "-cn")


def _elsewhere(word: str) -> str:
    return (
        f"{printable(word)}: settings of your own lie in conf/ of the working folder, in --config-dir DIR, or are "
        "chosen by their path, such as hierarchy=./mine.yaml"
    )


def located(command: str, words: Sequence[str], *, several: bool = False) -> list[str]:
    """Words in which files that are chosen by their path have absolute ones, as jobs in other folders need them.

    Raises:
        UserError: a choice that there is not.
    """
    groups, found = groups_of(command), []
    for word in words:
        key, _, value = word.partition("=")
        if key in groups and value and value[0] not in "{[":
            word = _choice(key, value, several)
        elif key in _LISTS and value[:1] == "[" and (items := _items(value[1:-1])):
            names = [text_of(item) for item in items]
            if any(map(is_path, names)):
                word = override(key, [_absolute(_LISTS[key], name, word) for name in names])
        found.append(word)
    return found


# keys that list choices of a group
_LISTS = {"methods": "method", "gans": "gan", "selects": "select"}


def _choice(group: str, value: str, several: bool) -> str:
    """A word that chooses of a group, its paths absolute."""
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString

    word, text = f"{group}={value}", text_of(value)
    parsed = _parsed(word)
    one = parsed is None or not parsed.is_sweep_override()
    if is_path(text) and (one or Path(text).is_file()):
        if one and parsed is not None and not Path(text).exists():
            text = _plain(parsed.value())  # Hydra's sweepers write `my\\ tree.yaml`
        return override(group, _absolute(group, text, word))
    sweep = parsed._value if parsed is not None else None
    if not several or not isinstance(sweep, ChoiceSweep):
        return word
    names = [v.text if isinstance(v, QuotedString) else v for v in sweep.list]
    for name in names:
        if isinstance(name, str):
            refuse_choice(group, name, printable(word))
    if not any(isinstance(n, str) and is_path(n) for n in names):
        return word
    if sweep.tags or sweep.shuffle:
        raise UserError(f"{printable(word)}: with paths, write {group}=choice(a,./b.yaml) alone")
    inside = [literal(_absolute(group, n, word) if isinstance(n, str) else n) for n in names]
    return f"{group}=choice({','.join(inside)})"


def _absolute(group: str, choice: str, word: str) -> str:
    if not is_path(choice):
        return choice
    refuse_choice(group, choice, printable(word))
    return str(Path(choice).absolute())


def _whole(command: str, words: Sequence[str]) -> None:
    """Refuses words that are no `key=value`, and says what they look like."""
    for i, word in enumerate(words):
        key, equals, value = word.partition("=")
        after = words[i + 1] if i + 1 < len(words) else ""
        if key in _FOLDERS:
            raise UserError(_elsewhere(word))
        if word.startswith("-"):
            name = re.sub(r"\W+", "_", key.lstrip("-"))
            given = value if equals else after if "=" not in after else ""
            shown = command_word(name, given) if given else f"{name}=VALUE"
            raise UserError(f"{printable(word)}: settings have no dashes; write {shown}")
        if not key.strip():
            last = words[i - 1] if i and "=" not in words[i - 1] else "KEY"
            shown = command_word(last, value or after or "VALUE")
            raise UserError(f"{printable(word)}: no blanks around =; write {shown}")
        if equals and (key != key.strip() or value[:1].isspace()):
            shown = command_word(key.strip(), value.strip() or "VALUE")
            raise UserError(f"{printable(word)}: no blanks around =; write {shown}")
        if equals and not value and after and "=" not in after:
            raise UserError(
                f"{key}= {printable(after)}: no blanks around =; write {command_word(key, after)}"
            )
        if equals:
            rest = _until_setting(words[i + 1 :])
            if rest and rest[0] != "=":
                _in_pieces(command, key, value, rest)
            continue
        if word[0] in "+~":
            raise UserError(_only_set(command, word))
        if after[:1] == "=":
            value = after[1:] or (words[i + 2] if i + 2 < len(words) else "VALUE")
            raise UserError(
                f"{printable(word)} {printable(after)}: no blanks around =; write {command_word(word, value)}"
            )
        required = [k.name for k in keys_of(command).values() if k.required]
        set_already = {w.partition("=")[0] for w in words}
        open_keys = [k for k in required if k not in set_already]
        name = word if word in keys_of(command) else (open_keys or ["KEY"])[0]
        shown = f"{name}=VALUE" if name == word else command_word(name, word)
        raise UserError(f"{printable(word)}: expected key=value; did you mean {shown}?")


def _until_setting(words: Sequence[str]) -> list[str]:
    found: list[str] = []
    for word in words:
        if re.match(r"[\w./+~@-]+=", word) or word.startswith("-"):
            break
        found.append(word)
    return found


def _in_pieces(command: str, key: str, value: str, rest: Sequence[str]) -> None:
    """The shell has cut a value at its blanks: one in brackets, or a path."""
    known = keys_of(command).get(key)
    whole = " ".join([value, *rest])
    if value[:1] in "[{" and value[:1]:
        tight = re.sub(r"\s*([,\[\]{}:])\s*", r"\1", whole)
        raise UserError(
            f"{printable(key)}={printable(value)}: the shell has cut this at a blank; leave the blanks out "
            f"({printable(key)}={printable(tight)}) or quote it: {command_word(key, whole)}"
        )
    if known is not None and known.text:
        raise UserError(
            f"{printable(rest[0])}: expected key=value; a value with blanks stands in quotes: "
            f"{command_word(key, whole)}"
        )


def _known(command: str, key: str, keys: Mapping[str, Key]) -> Key | None:
    """The key; None for a group or part of a mapping. Refuses others with the nearest legal ones."""
    if key in keys:
        return keys[key]
    if _holds_names(key, keys):
        return None
    groups = groups_of(command)
    sections = {".".join(k.split(".")[:n]) for k in keys for n in range(1, k.count(".") + 1)}
    if key in groups or key in sections:
        return None
    near = nearest(key, [*keys, *groups])
    hint = f"; did you mean {' or '.join(f'{k}=' for k in near)}?" if near else ""
    raise UserError(
        f"{printable(key)}: no such key{hint} (`stemcell-lit {command} --help` lists them)"
    )


def _holds_names(key: str, keys: Mapping[str, Key]) -> bool:
    """Whether a key is a mapping whose names are the user's, such as a tree, or lies inside one."""
    parts = key.split(".")
    above = (keys.get(".".join(parts[:n])) for n in range(1, len(parts) + 1))
    return any(k is not None and k.mapping for k in above)


def nearest(word: str, legal: Sequence[str], most: int = 3) -> list[str]:
    """Legal names that a misspelt one may mean, the likeliest first."""
    last: dict[str, list[str]] = {}
    for name in legal:
        last.setdefault(name.rsplit(".", 1)[-1].lower(), []).append(name)
    found = difflib.get_close_matches(word, legal, most, 0.75)
    part = word.rsplit(".", 1)[-1].lower()
    if not found:
        for short in difflib.get_close_matches(part, list(last), most, 0.8):
            found += last[short]
    return list(dict.fromkeys(found))[:most]


def _read(command: str, key: str, value: str, known: Key | None, several: bool) -> str:
    word = f"{key}={value}"
    if known is not None and known.text:
        if known.optional and value.lower() == "null":
            return word
        if value.lower() == "null":
            raise UserError(f"{key}=null: this key needs a value; for the name write {key}=./null")
        if several and _is_sweep(word):
            if re.match(r"(choice|glob)\(", value):
                return word
            _check_sweep_of_text(key, value)
        return override(key, text_of(value))
    if known is not None and known.texts and value[0] == "[" and value[-1] == "]":
        items = _items(value[1:-1])
        if items is not None:
            return override(key, [text_of(item) for item in items])
    return _of_grammar(command, key, value, known, several)


def text_of(value: str) -> str:
    """What the value of a plain key means: itself, or what is inside quotes of Hydra's grammar."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        from hydra.core.override_parser.types import QuotedString

        parsed = _parsed(f"key={value}")
        if parsed is not None and isinstance(parsed._value, QuotedString):
            return unescaped(parsed._value.text)
    return value


def _items(inside: str) -> list[str] | None:
    """Items of a list of texts, at its commas outside quotes; None: it holds lists or quotes in an odd place."""
    if not inside.strip():
        return []
    item = r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^,'"\[\]{}\s](?:[^,\[\]{}]*[^,\[\]{}\s])?)\s*"""
    if not re.fullmatch(rf"{item}(?:,{item})*", inside, re.DOTALL):
        return None
    return [m[1] for m in re.finditer(rf"{item}(?:,|\Z)", inside, re.DOTALL)]


def _check_sweep_of_text(key: str, value: str) -> None:
    parts = [p.strip() for p in value.split(",")]
    if not Path(value).exists() and all(Path(p).exists() for p in parts):
        raise UserError(
            f"{key}={printable(value)}: a comma belongs to the name here; for a sweep over several write "
            f"{command_word(key, f'choice({value})')}"
        )


def _is_sweep(word: str) -> bool:
    parsed = _parsed(word)
    return parsed is not None and parsed.is_sweep_override()


def _parsed(word: str) -> Any:
    """Hydra's reading of a word; None where its grammar has none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, RecursionError):
        return None


_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+\Z")


def _of_grammar(command: str, key: str, value: str, known: Key | None, several: bool) -> str:
    """A word whose value has Hydra's grammar: checked against the key's type."""
    word = f"{key}={value}"
    parsed = _parsed(word)
    listed = known is not None and known.many
    if known is not None and known.kind is float and not several and _DECIMAL_COMMA.match(value):
        point = value.replace(",", ".")
        raise UserError(f"{word}: numbers have a decimal point; write {key}={point}")
    if parsed is None:
        right = ""
        if value.count("[") != value.count("]") or value.count("{") != value.count("}"):
            right = "; a bracket is not closed"
        elif listed:
            right = f"; write {key}=[a,b] and put items with signs or blanks in quotes: {key}=['a b','c']"
        elif known is not None:
            right = f"; expected {known.expected}"
        raise UserError(f"{printable(word)}: not understood{right}")
    if parsed.is_sweep_override():
        if several:
            return word
        if listed and "[" not in value:
            raise UserError(
                f"{printable(word)}: a list stands in brackets; write {command_word(key, f'[{value}]')}"
            )
        once = " or a list in brackets" if listed else ""
        raise UserError(
            f"{printable(word)}: expected one value{once}; several make a sweep, `stemcell-lit run -m ...`"
        )
    if known is not None:
        try:
            content = parsed.value()
        except Exception as error:  # Hydra's functions, such as int(x), raise what they like
            raise UserError(f"{printable(word)}: expected {known.expected}") from error
        known.accept(content, printable(word))
    elif key in groups_of(command):
        _check_group(key, parsed.value(), printable(word))
    return word


def _check_group(group: str, value: Any, shown: str) -> None:
    if isinstance(value, dict):
        return
    refuse_choice(group, _plain(value), shown)


def _plain(value: Any) -> str:
    from hydra.core.override_parser.types import QuotedString

    return value.text if isinstance(value, QuotedString) else str(value)


# what of Hydra's settings names code
_CODE = re.compile(
    r"hydra\.(launcher\.(done|plan|returned|task)|callbacks|job_logging|hydra_logging)\b"
    r"|(^|\.)_(target|args|partial|recursive|convert)_$"
)
_OURS = "hydra.callbacks.stemcell_return._target_=hydra_plugins.stemcell_lit_launcher.ReturnValue"


def _of_hydra(word: str) -> str:
    """A word for Hydra itself. Names of code are not taken from a user: they would be imported and called."""
    key, _, value = word.lstrip("+~").partition("=")
    if key.startswith("hydra.searchpath"):
        raise UserError(_elsewhere(word))
    if key.startswith("hydra/sweeper") and re.search(r"\bbasic\b", value):
        raise UserError(
            f"{printable(word)}: Hydra's own writes over files of yours; leave it out, then every combination of the "
            "values runs, too"
        )
    if word.lstrip("+") != _OURS and (_CODE.search(key) or "_target_" in value):
        raise UserError(f"{printable(word)}: which code is called cannot be set here; leave it out")
    return word
