"""A classifier network of the user's own: `stage.network=module:package.attribute`.

Its code runs when it is imported. So it is named in the user's own settings alone: no store and no checkpoint can name
one, however they came here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from stemcell_lit.base.ownership import sha256
from stemcell_lit.errors import UserError

EXPECTED = "a callable of (outputs, width, dropout, channels) that returns a torch.nn.Module"


def check_allowed(name: str, allowed: str | None) -> None:
    """Refuses a network that the user's settings do not name.

    Args:
        name: `package.attribute`.
        allowed: what the settings name.

    Raises:
        UserError: another one, or none.
    """
    if name != allowed:
        raise UserError(
            f"stage.network=module:{name}: a network of somebody's own, whose code runs when it is imported; a file "
            f"cannot ask for that, only you can: look at the code, then give allow_module={name}"
        )


def maker(name: str) -> Callable[..., nn.Module]:
    """Imports a user's callable; the working folder is looked at after everything that is installed.

    Args:
        name: `package.attribute`.

    Raises:
        UserError: there is no such module or attribute, it is no callable, or importing it fails.
    """
    where, _, attribute = name.rpartition(".")
    make = getattr(_imported(name), attribute, None)
    if not callable(make):
        found = f"is {type(make).__name__}" if make is not None else "is not there"
        raise UserError(
            f"stage.network=module:{name}: {attribute} of {where} {found}, expected {EXPECTED}"
        )

    def build(outputs: int, width: int, dropout: float, channels: int) -> nn.Module:
        try:
            # on a real device also where sizes alone are asked for: few networks outside this project are built without
            with torch.device("cpu"):
                made: Any = make(outputs, width=width, dropout=dropout, channels=channels)
        except Exception as error:
            raise UserError(
                f"stage.network=module:{name}: could not be built ({_told(error)}); expected {EXPECTED}"
            ) from error
        if not isinstance(made, nn.Module) or not any(True for _ in made.parameters()):
            raise UserError(
                f"stage.network=module:{name}: gave {type(made).__name__}, expected a torch.nn.Module with weights"
            )
        return made

    return build


def source_hash(name: str) -> str:
    """SHA-256 of the file that defines a user's network, so that another version of it is another network.

    Raises:
        UserError: as `maker`.
    """
    file = getattr(_imported(name), "__file__", None)
    return sha256(Path(file)) if file else "built in"


def _imported(name: str) -> ModuleType:
    where = name.rpartition(".")[0]
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(where)
    except Exception as error:
        raise UserError(
            f"stage.network=module:{name}: {where} cannot be imported ({_told(error)}); expected a module that is "
            f"installed or lies in the working folder, {here}"
        ) from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
