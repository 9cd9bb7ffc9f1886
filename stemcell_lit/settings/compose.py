"""From the words of a user to the composed configuration of a command."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import OmegaConf

from stemcell_lit.base.yamls import read_yaml
from stemcell_lit.errors import UserError
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.conf import conf_dir, files_of, is_own
from stemcell_lit.settings.group_keys import HierarchyConfig, MethodConfig
from stemcell_lit.settings.keys import keys_of
from stemcell_lit.settings.own import check_chosen, check_file, chosen, register_own
from stemcell_lit.settings.words import nearest, read


def methods() -> dict[str, MethodConfig]:
    """What the files of the group `method` say of each, in the order of the table.

    One of the user's own that cannot be read is left out, as in `hierarchies`.

    Raises:
        UserError: a built-in file that says what no method has.
    """
    found = {}
    for file in files_of("method"):
        if is_own(file):
            try:
                check_file(file, "method", named=True)
            except UserError:
                continue
        plain = read_yaml(file, "mend the file")
        told = plain.get("method") if isinstance(plain, dict) else None
        try:
            found[file.stem] = typed(OmegaConf.create(told or {}), MethodConfig)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
    return dict(sorted(found.items(), key=lambda item: item[1].rank))


def without_generated() -> list[str]:
    """Names of the methods whose files name no patches of a generator among their parts."""
    made = {"generated", "shuffled"}
    return [n for n, m in methods().items() if not made & set(m.parts or ())]


def hierarchies() -> dict[str, HierarchyConfig]:
    """The trees of the group `hierarchy` by name, the flat one last.

    One that cannot be read is left out: whoever chooses it is told why, and nobody else is stopped by it.
    """
    found = {}
    for file in sorted(files_of("hierarchy"), key=lambda f: f.stem == "flat"):
        with contextlib.suppress(UserError):
            check_file(file, "hierarchy")
            plain = read_yaml(file, "mend the file")
            found[file.stem] = typed(OmegaConf.create(plain or {}), HierarchyConfig)
    return found


@functools.cache  # a third of a second, and `reproduce` composes every method
def register() -> None:
    """Makes the typed schemas known to Hydra."""
    from hydra.core.config_store import ConfigStore

    from stemcell_lit.settings.command_table import SETTINGS

    for name, node in SETTINGS.items():
        ConfigStore.instance().store(name=f"{name}_command", node=node)
    register_own()


def compose(command: str, words: Sequence[str]) -> Any:
    """The composed configuration of a command.

    Raises:
        UserError: an unknown key, a value of the wrong type, an unknown choice.
    """
    from hydra import compose as hydra_compose
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides, own = parted(command, read(command, words))
    with composing(command, overrides):
        config = hydra_compose(command, overrides=overrides)
        for word in own:
            parsed = OverridesParser.create().parse_override(word)
            OmegaConf.update(config, parsed.key_or_group, parsed.value())
    return config


@contextlib.contextmanager
def composing(command: str, overrides: Sequence[str]) -> Iterator[None]:
    """Hydra, ready to compose a command.

    Raises:
        UserError: what anything within raises, in a line.
    """
    from hydra import initialize_config_dir

    register()
    check_chosen(overrides)
    try:
        with chosen(overrides), initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:  # of any kind: only what the user gave and conf/ are read here
        raise UserError(
            f"{one_line(error)} (`stemcell-lit {command} --help` lists the keys)"
        ) from error


def parted(command: str, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """What Hydra may compose, and the rest.

    A key of a command may be called as a group is (`deliver method=`): Hydra would take its value for a file's name.
    """
    own = [
        o
        for o in overrides
        if (key := o.partition("=")[0]) in keys_of(command) and (conf_dir() / key).is_dir()
    ]
    return [o for o in overrides if o not in own], own


def one_line(error: BaseException) -> str:
    """What Hydra and OmegaConf say of settings that do not fit, in a line."""
    from omegaconf.errors import KeyValidationError

    if isinstance(error, RecursionError):
        return "a setting refers to itself"
    causes = [str(error) or type(error).__name__, str(error.__cause__ or "")]
    lines = [line.strip() for cause in causes for line in cause.splitlines()]
    noise = (
        "Config search path",
        "provider=",
        "full_key",
        "reference_type",
        "object_type",
        "Set the env",
        "To append to",  # keys are not added here
    )
    text = " ".join(dict.fromkeys(x for x in lines if x and not x.startswith(noise)))
    lost = re.search(r"Could not find '([\w/]+)/([^/']+)' Available options in '[^']*': (.+)", text)
    if lost:
        group, name, there = lost[1], lost[2], lost[3].split()
        near = nearest(name, there, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{group}={name}: no such choice{hint} (there are {', '.join(there)})"
    if "KeyValidationError" in text or isinstance(error.__cause__, KeyValidationError):
        text += "; YAML takes 1, yes and no for a number or a truth: quote such a name ('1')"
    return text.replace(
        "is not in struct", "is not a name there; new ones stand in a file of conf/"
    )
