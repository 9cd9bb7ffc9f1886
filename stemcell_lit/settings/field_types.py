"""Which values a setting may have: declared once, beside its default in `stemcell_lit.settings.group_keys`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any

from stemcell_lit.errors import UserError

BOUND = "bound"  # the key of a field's metadata
_SENTENCE, _FIRST = "sentence", "first"  # too
LARGEST = 2**63 - 1  # of a whole number: what torch and Parquet hold
SEED = (
    2**31 - 1
)  # of a seed: every generator of random numbers in use takes it, and what is added to it


@dataclass(frozen=True)
class Bound:
    """What a value, or each item of a list, must be."""

    least: float | None = None  # smallest legal number
    above: float | None = None  # number that a legal one is larger than
    most: float | None = None  # largest legal number
    below: float | None = None  # number that a legal one is smaller than
    choices: tuple[str, ...] = ()  # legal texts
    items: tuple[int, int | None] = (0, None)  # legal numbers of items of a list, fewest and most
    unique: bool = False  # whether the items of a list must differ
    # regular expression; texts of this form are legal beside the choices
    pattern: str = ""
    told: str = ""  # the choices in words, where they are too many to list

    def __str__(self) -> str:
        """In words, such as `above 0, to 1`; empty where anything goes."""
        if self.choices:
            return self.told or " | ".join(self.choices)
        words = []
        fewest, most_items = self.items
        if fewest and fewest == most_items:
            words.append(f"{fewest} numbers, each")
        elif fewest:
            words.append("at least one")
        if self.above is not None:
            words.append(f"above {self.above:g}")
        if self.least is not None:
            words.append(_told(self.least) + ("" if self.most is not None else " or more"))
        if self.most is not None:
            words.append(f"to {_told(self.most)}")
        if self.below is not None:
            words.append(f"and below {self.below:g}" if words else f"below {self.below:g}")
        if self.unique:
            words.append("and each once" if words else "each once")
        return " ".join(words)

    def holds(self, value: Any) -> bool:
        """Whether one value, or one item, is legal."""
        if self.choices:
            return value in self.choices or bool(
                self.pattern and re.fullmatch(self.pattern, str(value))
            )
        if not isinstance(value, int | float) or isinstance(value, bool):
            return True
        return not (
            (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.most is not None and value > self.most)
            or (self.below is not None and value >= self.below)
        )


def _field(default: Any, bound: Bound) -> Any:
    metadata = {BOUND: bound}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def with_metadata(default: Any, **more: Any) -> Any:
    """A field with more metadata than it has.

    Args:
        default: a field, such as `number(0)`; a class, whose instance is the default; or the default itself.
        more: its metadata, beside what it has.
    """
    if isinstance(default, type):
        return field(default_factory=default, metadata=more)
    if not isinstance(default, Field):
        return field(default=default, metadata=more)
    metadata = {**default.metadata, **more}
    if default.default is MISSING:
        factory: Any = default.default_factory
        return field(default_factory=factory, metadata=metadata)
    return field(default=default.default, metadata=metadata)


def setting(sentence: str, default: Any, *, first: bool | str = False) -> Any:
    """A key of a command with what it means, which `--help` prints: around whatever else makes the field.

    Args:
        sentence: in plain words, with its unit, and what null means; bounds and choices are printed beside it.
        default: as in `with_metadata`.
        first: whether it is among the ten keys that `--help` shows first: of every command that has it, or of those
            named, such as `run train`. A key that must be given always is.
    """
    return with_metadata(default, **{_SENTENCE: sentence, _FIRST: first})


def sentence_of(of: Field[Any]) -> str:
    """What a field says of itself, empty where it says nothing."""
    return str(of.metadata.get(_SENTENCE, ""))


def is_first(of: Field[Any], command: str) -> bool:
    """Whether `--help` of a command shows this field first."""
    found = of.metadata.get(_FIRST, False)
    return command in found.split() if isinstance(found, str) else bool(found)


def number(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field that holds a number between bounds. NaN and infinity are legal nowhere."""
    return _field(default, Bound(least, above, most, below))


def numbers(
    default: list[Any],
    *,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    items: tuple[int, int | None] = (0, None),
    unique: bool = False,
) -> Any:
    """A field that holds a list of numbers, each between bounds."""
    return _field(default, Bound(least, None, most, below, items=items, unique=unique))


def share(default: float | None) -> Any:
    """A field that holds a number from 0 to 1."""
    return number(default, least=0, most=1)


def random_seed() -> Any:
    """A field that holds the seed of random numbers, 0 where none is given."""
    return number(0, least=0, most=SEED)


def choice(default: str, *others: str) -> Any:
    """A field that holds one of some texts."""
    return _field(default, Bound(choices=(default, *others)))


def choice_or(default: str, *others: str, pattern: str, told: str) -> Any:
    """A field that holds one of some texts, or a text that matches a regular expression.

    Args:
        default: one of them.
        others: the rest.
        pattern: of further legal texts.
        told: what is legal, in words.
    """
    return _field(default, Bound(choices=(default, *others), pattern=pattern, told=told))


def choices(default: list[str], *legal: str) -> Any:
    """A field that holds a list of some texts."""
    return _field(default, Bound(choices=legal))


def names(default: list[str] | None) -> Any:
    """A field that holds a list of names, at least one, each once."""
    return _field(default, Bound(items=(1, None), unique=True))


def bound_of(of: Any) -> Bound:
    """That of a dataclass's field; one that anything meets where none is declared."""
    found: Bound = of.metadata.get(BOUND, Bound())
    return found


def check(config: Any, prefix: str = "") -> None:
    """Checks every value of a settings dataclass against its bound; `prefix`, such as `stage.`, begins its keys.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
    for f in fields(config):
        key, value = f"{prefix}{f.name}", getattr(config, f.name)
        if is_dataclass(value):
            check(value, f"{key}.")
            continue
        for leaf in _leaves(value):
            problem = _illegal(leaf)
            if problem:
                raise UserError(f"{key}={_shown(leaf)}: {problem}")
        bound, many = bound_of(f), isinstance(value, list)
        if value is None or (bound == Bound()):
            continue
        wrong = [v for v in (value if many else [value]) if not bound.holds(v)]
        if not wrong and many:
            count, (fewest, most) = len(value), bound.items
            twice = bound.unique and len(set(map(str, value))) < count
            wrong = [value] if count < fewest or count > (most or count) or twice else []
        if wrong:
            few = "some" if many else "one"
            expected = f"{few} of {bound}" if bound.choices else str(bound)
            expected += _nearest(wrong[0], bound)
            raise UserError(f"{key}={_shown(value)}: expected {expected}")


def _nearest(value: Any, bound: Bound) -> str:
    """The choices that a text looks like, upper and lower case alike."""
    lower = {c.lower(): c for c in bound.choices}
    near = difflib.get_close_matches(str(value).lower(), list(lower), 3, 0.7)
    return f"; did you mean {' or '.join(lower[n] for n in near)}?" if near else ""


def _told(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:g}"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from (*_leaves(k), *_leaves(v))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for v in value:
            yield from _leaves(v)
    else:
        yield value


def _illegal(value: Any) -> str:
    """What is wrong with a value wherever it stands; empty: nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if isinstance(value, int) and abs(value) > LARGEST:
        return "the number is too large"
    if isinstance(value, str):
        if value == "":
            return "expected a text that is not empty"
        if "\0" in value:
            return "holds a NUL character, which no name can"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return "the name is not UTF-8; rename the file or folder"
    return ""
