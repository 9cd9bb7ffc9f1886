"""What another value of a setting makes: declared beside its default."""

from __future__ import annotations

from dataclasses import Field, asdict, fields, is_dataclass
from enum import Enum
from typing import Any

from stemcell_lit.settings.field_types import with_metadata

_KEY = "role"  # of a field's metadata
_QUIET = "quiet"  # too


class Role(Enum):
    """What another value of a setting makes."""

    RESULT = "another result, and another row of the table"
    REPEAT = "another result of the same row: a fold, a seed, another order of sums"
    WHERE = "the same result, from another place or at another speed"
    SHOWN = "the same result, stored, logged or shown otherwise"

    @property
    def counts(self) -> bool:
        """Whether it makes another result, and so another hash."""
        return self in (Role.RESULT, Role.REPEAT)


def repeat(default: Any) -> Any:
    """A field whose other values make other results of the same row.

    Args:
        default: as in `with_metadata`.
    """
    return with_metadata(default, **{_KEY: Role.REPEAT})


def where(default: Any) -> Any:
    """A field that says where from, where or how fast a result is computed; `default` as in `repeat`."""
    return with_metadata(default, **{_KEY: Role.WHERE})


def shown(default: Any) -> Any:
    """A field that says where a result is stored, logged and how it is shown; `default` as in `repeat`."""
    return with_metadata(default, **{_KEY: Role.SHOWN})


def quiet(of: Any) -> Any:
    """A field whose default changes nothing, and is no part of a hash: what was made before it was there stays valid.

    Args:
        of: a field, such as `number(1.0)`, with a plain default.
    """
    return with_metadata(of, **{_QUIET: True})


def determining(settings: Any) -> dict[str, Any]:
    """What of settings makes another result: `dataclasses.asdict` of them, without the rest and quiet defaults."""
    plain = asdict(settings)
    for f in fields(settings):
        value = getattr(settings, f.name)
        silent = f.metadata.get(_QUIET, False) and value == f.default
        if silent or not declared_role(f).counts:
            del plain[f.name]
        elif is_dataclass(value):
            plain[f.name] = determining(value)
    return plain


def declared_role(of: Field[Any]) -> Role:
    """The role that a field declares, `RESULT` where it says nothing."""
    found: Role = of.metadata.get(_KEY, Role.RESULT)
    return found
