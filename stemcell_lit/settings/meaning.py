"""What a setting means for a result: declared once, beside its default in `stemcell_lit.settings.groups`."""

from __future__ import annotations

import typing
from dataclasses import fields, is_dataclass
from functools import cache

from stemcell_lit.settings.roles import Role, _role


@cache
def role_of(key: str) -> Role:
    """The role of a setting of a trial, such as `trainer.devices`; that of the names inside a mapping is the mapping's.

    A setting inside a group has the role that says more of it: `trainer.accelerator` is `WHERE`, though all of
    `trainer` is `REPEAT`. What is not known makes another result.
    """
    from stemcell_lit.settings.commands import RunCommand

    found, owner = Role.RESULT, RunCommand
    for name in key.split("."):
        of = {f.name: f for f in fields(owner)} if is_dataclass(owner) else {}
        if name not in of:
            break
        own = _role(of[name])
        found = found if own is Role.RESULT else own
        if not found.counts:
            break
        owner = typing.get_type_hints(owner)[name]
    return found


def own_keys(command: str) -> set[str]:
    """Keys of a command that makes many trials which a single trial does not know, or which it sets for each."""
    from stemcell_lit.settings import commands

    of = {
        "reproduce": (commands.ReproduceCommand, "method seed split.fold out experiment"),
        "judge": (
            commands.JudgeCommand,
            "gan select split.fold out artifacts gan.images hierarchy",
        ),
    }
    kind, set_for_each = of[command]
    trial = {f.name for f in fields(commands.RunCommand)}
    return {f.name for f in fields(kind)} - trial | set(set_for_each.split())
