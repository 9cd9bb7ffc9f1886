"""Every legal key of a command with its type and role, from `settings/group_keys` and `settings/command_keys`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import MISSING, OmegaConf

from stemcell_lit.errors import UserError
from stemcell_lit.settings.field_types import Bound, bound_of, is_first, sentence_of
from stemcell_lit.settings.roles import Role, declared_role


@dataclass(frozen=True)
class Key:
    """A setting."""

    name: str  # such as `stage.lr`
    kind: Any  # its type without `None`
    optional: bool  # whether it may be null
    required: bool  # whether it must be given
    bound: Bound  # of its value or items
    owner: type  # the dataclass that declares it
    sentence: str  # what it means
    first: bool  # whether `--help` shows it among the first

    @property
    def text(self) -> bool:
        """Any text: a path or a name, taken as it stands."""
        return self.kind is str and not self.bound.choices

    @property
    def many(self) -> bool:
        """A list."""
        return typing.get_origin(self.kind) is list

    @property
    def texts(self) -> bool:
        """A list of texts."""
        return self.many and typing.get_args(self.kind) == (str,)

    @property
    def mapping(self) -> bool:
        """Names with values."""
        return typing.get_origin(self.kind) is dict

    @property
    def expected(self) -> str:
        """In words, what its value must be."""
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        items = {int: "whole numbers", float: "numbers", str: "names", Any: "values"}
        if self.bound.choices and not self.many:
            text = f"one of {self.bound}"
        elif self.many:
            text = f"a list of {items[typing.get_args(self.kind)[0]]}, such as [a,b]"
            if not self.texts:
                text = text.replace("[a,b]", "[0,1]")
        elif self.mapping:
            text = "names with values, such as {a:[b,c]}"
        else:
            text = names[self.kind]
        return f"{text}, or null" if self.optional else text

    def accept(self, value: Any, shown: str) -> None:
        """Refuses a value of another type.

        Raises:
            UserError: says what was expected.
        """
        name = self.name.rsplit(".", 1)[-1]
        try:
            config = OmegaConf.structured(self.owner)
            OmegaConf.update(config, name, value, merge=False)
        except Exception as error:  # OmegaConf's own and what conversions raise: all mean the same
            raise UserError(f"{shown}: expected {self.expected}") from error


@cache
def keys_of(command: str) -> dict[str, Key]:
    """Legal keys of a command by name; those of no command for an unknown one."""
    from stemcell_lit.settings.command_table import SETTINGS

    owner = SETTINGS.get(command)
    return {key.name: key for key in _walk(owner, "", command)} if owner else {}


def _walk(owner: type, prefix: str, command: str) -> Iterator[Key]:
    hints = typing.get_type_hints(owner)
    for f in fields(owner):
        kind, name = hints[f.name], f"{prefix}{f.name}"
        if is_dataclass(kind):
            yield from _walk(kind, f"{name}.", command)  # type: ignore[arg-type]
            continue
        optional = isinstance(kind, types.UnionType)
        if optional:
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        required = _required(f)
        first = required or is_first(f, command)
        yield Key(name, kind, optional, required, bound_of(f), owner, sentence_of(f), first)


def _required(f: Field[Any]) -> bool:
    return f.default is not NO_DEFAULT and f.default == MISSING


@cache
def role_of(key: str) -> Role:
    """The role of a setting of a trial, such as `trainer.devices`; that of the names inside a mapping is the mapping's.

    A setting inside a group has the role that says more of it: `trainer.accelerator` is `WHERE`, though all of
    `trainer` is `REPEAT`. What is not known makes another result.
    """
    from stemcell_lit.settings.command_keys import RunCommand

    found, owner = Role.RESULT, RunCommand
    for name in key.split("."):
        of = {f.name: f for f in fields(owner)} if is_dataclass(owner) else {}
        if name not in of:
            break
        own = declared_role(of[name])
        found = found if own is Role.RESULT else own
        if not found.counts:
            break
        owner = typing.get_type_hints(owner)[name]
    return found


def own_keys(command: str) -> set[str]:
    """Keys of a command that makes many trials which a single trial does not know, or which it sets for each."""
    from stemcell_lit.settings import command_keys

    of = {
        "reproduce": (command_keys.ReproduceCommand, "method seed split.fold out experiment"),
        "judge": (
            command_keys.JudgeCommand,
            "gan select split.fold out artifacts gan.images hierarchy",
        ),
    }
    kind, set_for_each = of[command]
    trial = {f.name for f in fields(command_keys.RunCommand)}
    return {f.name for f in fields(kind)} - trial | set(set_for_each.split())
