"""Files of settings that a user has written: what they may hold, and how Hydra comes to them.

Hydra would read any YAML without bounds, follow `${...}` and put `_target_` or `hydra.` wherever a file says. So these
files come through `base/yamls` and are looked at before Hydra sees them: they set keys of this program, and choose
among its groups. They name no code, unless the user has named the file: see `chosen`.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from stemcell_lit.base.terminal import printable
from stemcell_lit.base.yamls import read_yaml, unquoted, yaml_node
from stemcell_lit.errors import UserError
from stemcell_lit.settings.conf import (
    choices_of,
    conf_dir,
    file_of,
    groups,
    is_own,
    is_path,
    own_dir,
    refuse_choice,
)
from stemcell_lit.settings.keys import Key, keys_of
from stemcell_lit.settings.words import nearest

_TEXTS = ("tree", "moves", "subsets")  # keys of a hierarchy below which all are names
_EVERYWHERE = ("experiment", "method", "profile")  # groups whose files set keys of any group
_CODE = re.compile(r"_(target|args|partial|recursive|convert)_")
_MODULE = "module:"  # of `stage.network`: code of the user's own
_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{")  # one that is not escaped
_DEFAULT = re.compile(r"(?:(?:override|optional) +)*/?([a-z_]+)")
_HEADER = re.compile(r"#\s*@package\s+(\S+)")

_named: frozenset[Path] = frozenset()  # files of the user's that the command line names itself


def check_file(file: Path, group: str, *, named: bool = False) -> None:
    """Looks at a file of settings before Hydra reads it.

    Args:
        file: of whoever.
        group: whose choice it is.
        named: whether the user has named it, and so means what it says of code.

    Raises:
        UserError: it is no plain YAML, its names of classes need quotes or, in a file of the user's own, something
            that does not belong there.
    """
    remedy = "mend the file"
    node = yaml_node(file, remedy)
    found = unquoted(node, _TEXTS) if node and group == "hierarchy" else None
    if found:
        line, written, kind = found
        raise UserError(
            f"{file}: line {line}: {written or 'an empty place'} is {kind} to YAML, expected the name of a "
            f"class or group; quote it: '{written}'"
        )
    if not is_own(file):
        return
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{file}: holds no settings, expected KEY: VALUE as in conf/{group}")
    _check_header(file, group)
    _check_words(file, node, named or file.resolve() in _named)
    plain = read_yaml(file, remedy)
    for entry in _defaults(plain, file):
        _check_default(entry, file)
    prefix = "" if group in _EVERYWHERE else f"{group}."
    node.value = [pair for pair in node.value if pair[0].value != "defaults"]
    for line, key, value in _leaves(node, prefix, file):
        _check_key(file, line, key, value, prefix)
        if key == "hierarchy.tree" and not prefix and "hierarchy" not in dict(as_words(file)):
            raise UserError(
                f"{file}: line {line}: tree: would join that of another file; choose the one to begin with, as in "
                "defaults: [override /hierarchy: flat]"
            )
    _check_name(file, group, plain)


def check_chosen(overrides: Sequence[str]) -> None:
    """Looks at the files of groups that a command line chooses, before anything is made.

    Raises:
        UserError: see `check_file`.
    """
    for group, choice in _choices(overrides):
        file = file_of(group, choice)
        if file is not None and file.is_file():  # else whoever composes says which there are
            check_file(file, group, named=_is_meant(group, choice))


@contextlib.contextmanager
def chosen(overrides: Sequence[str]) -> Iterator[None]:
    """While a command line is composed: the files that it names may name a network of the user's own.

    One that came with a folder and takes the place of a built-in file unseen may not.
    """
    global _named
    before = _named
    files = (file_of(g, choice) for g, choice in _choices(overrides) if _is_meant(g, choice))
    _named = frozenset(file.resolve() for file in files if file is not None)
    try:
        yield
    finally:
        _named = before


def _is_meant(group: str, choice: str) -> bool:
    """Whether no built-in file can have been meant."""
    built_in = conf_dir() / group / f"{choice.removesuffix('.yaml')}.yaml"
    return is_path(choice) or not built_in.is_file()


def name_of(group: str, choice: str) -> str:
    """What the results call a choice: itself, or the name that the file at its path gives.

    Raises:
        UserError: there is no such file, or it gives none.
    """
    if not is_path(choice):
        return choice
    file = Path(choice)
    refuse_choice(group, choice, printable(choice))
    check_file(file, group, named=True)
    return str(_name_in(group, read_yaml(file, "mend the file")))


def as_words(file: Path) -> list[tuple[str, Any]]:
    """What the defaults list of a file chooses: groups and their choices."""
    plain = read_yaml(file, "mend the file")
    return [
        (_DEFAULT.fullmatch(key)[1], value)  # type: ignore[index]
        for entry in _defaults(plain, file)
        if isinstance(entry, dict)
        for key, value in entry.items()
        if _DEFAULT.fullmatch(str(key))
    ]


def _check_header(file: Path, group: str) -> None:
    """Refuses a header that would put the settings elsewhere."""
    wanted = "_global_" if group in _EVERYWHERE else group
    for line in file.read_text("utf-8", "replace").splitlines()[:20]:
        found = _HEADER.match(line.strip())
        if found and found[1] not in (wanted, *(["_group_"] if wanted == group else [])):
            raise UserError(
                f"{file}: is put at {printable(found[1])[:60]}, expected # @package {wanted}, or no such line"
            )


def _check_words(file: Path, root: yaml.Node, named: bool) -> None:
    """Refuses what would call code or refer to something else."""
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, is_key = stack.pop()
        place = f"{file}: line {node.start_mark.line + 1 if node.start_mark else 0}"
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                stack += [(value, False), (key, True)]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(item, False) for item in node.value]
        elif is_key and _CODE.fullmatch(node.value):
            raise UserError(f"{place}: {node.value}: which code is called cannot be set here")
        elif not is_key and _REFERENCE.search(node.value):
            raise UserError(
                f"{place}: {printable(node.value)[:60]}: values stand here as they are; write \\${{ for a text with "
                "${"
            )
        elif not is_key and _MODULE in node.value and not named:
            raise UserError(
                f"{place}: {printable(node.value)[:60]}: names code of somebody's own, and your command does not name "
                "this file; choose it by its path, or give stage.network= yourself"
            )


def _defaults(plain: Any, file: Path) -> list[Any]:
    found = plain.get("defaults", [])
    if not isinstance(found, list):
        raise UserError(f"{file}: defaults: expected a list, such as [override /mix: balance]")
    return found


def _check_default(entry: Any, file: Path) -> None:
    """Refuses what a defaults list cannot choose here: other than groups of this program and names in them."""
    pairs = list(entry.items()) if isinstance(entry, dict) else [(None, entry)]
    for key, value in pairs:
        group = _DEFAULT.fullmatch(str(key)) if key is not None else None
        legal = key is None or (group is not None and group[1] in groups())
        names = value if isinstance(value, list) else [value]
        if not legal or len(pairs) > 1 or not all(_is_name(n) for n in names):
            shown = printable(entry)[:80]
            raise UserError(
                f"{file}: defaults: {shown}: expected `- override /GROUP: NAME` with a group of conf/ and a name in it"
            )


def _is_name(value: Any) -> bool:
    return value is None or (
        isinstance(value, str) and re.fullmatch(r"[\w.+-]+", value) is not None
    )


def _leaves(
    node: yaml.MappingNode, prefix: str, file: Path
) -> Iterator[tuple[int, str, yaml.Node]]:
    """Line, dotted key and value of each setting in a file."""
    for key, value in node.value:
        line = key.start_mark.line + 1 if key.start_mark else 0
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{file}: line {line}: expected KEY: VALUE")
        if "." in key.value:
            first, _, rest = key.value.partition(".")
            raise UserError(
                f"{file}: line {line}: {printable(key.value)}: settings stand in one another here, as {first}: "
                f"{{{rest}: VALUE}}"
            )
        name = f"{prefix}{key.value}"
        if name in _sections() and isinstance(value, yaml.MappingNode):
            yield from _leaves(value, f"{name}.", file)
        else:
            yield line, name, value


@functools.cache
def _keys() -> dict[str, Key]:
    """Keys of all commands."""
    from stemcell_lit.settings.command_table import SETTINGS

    return {name: key for command in SETTINGS for name, key in keys_of(command).items()}


@functools.cache
def _sections() -> frozenset[str]:
    return frozenset(
        ".".join(k.split(".")[:n]) for k in _keys() for n in range(1, k.count(".") + 1)
    )


def _check_key(file: Path, line: int, key: str, node: yaml.Node, prefix: str) -> None:
    """Refuses a key that there is not, or a value of another type."""
    place, shown = f"{file}: line {line}", printable(key.removeprefix(prefix))
    known = _keys().get(key)
    if known is None:
        legal = [k for k in (*_keys(), *sorted(_sections())) if k.startswith(prefix)]
        near = nearest(key.removeprefix(prefix), [k.removeprefix(prefix) for k in legal])
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{place}: {shown}: no such key{hint}")
    if isinstance(node, yaml.ScalarNode):
        value = yaml.SafeLoader("").construct_object(node)
        if value is not None or not (known.mapping or known.many):
            known.accept(value, f"{place}: {shown}: {printable(node.value)[:60]}")
    elif isinstance(node, yaml.MappingNode) != known.mapping or not (known.mapping or known.many):
        raise UserError(f"{place}: {shown}: expected {known.expected}")


def _check_name(file: Path, group: str, plain: dict[str, Any]) -> None:
    """Refuses a file without the name that results show, or with another than that of the file in a folder."""
    if f"{group}.name" not in _keys():
        return
    name = _name_in(group, plain)
    inside = "method: {name: NAME}" if group == "method" else "name: NAME"
    if not isinstance(name, str) or not name.strip():
        raise UserError(
            f"{file}: gives no name, which the results would show; write {inside}, such as {printable(file.stem)}"
        )
    own = own_dir()
    if own is not None and file.parent == own / group and name != file.stem:
        raise UserError(
            f"{file}: gives the name {printable(name)}, expected that of the file, {printable(file.stem)}"
        )


def _name_in(group: str, plain: Any) -> Any:
    part = plain.get("method") if group == "method" else plain
    return part.get("name") if isinstance(part, dict) else None


def _choices(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Group and choice, for each that a command line names."""
    for override in overrides:
        group = override.lstrip("+~").partition("=")[0]
        if group in groups():
            for name in _names(override, choices_of(group)):
                if "\0" not in name:
                    yield group, name


def _names(override: str, there: Sequence[str]) -> list[str]:
    """The files that an override of a group names, such as `hierarchy=choice(a,b)`, among those that are there."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, QuotedString, Transformer
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
        value = parsed.value()
        if isinstance(value, Glob):
            return value.filter(list(there))
        if parsed.is_sweep_override():
            value = list(parsed.sweep_iterator(transformer=Transformer.identity))
    except (HydraException, RecursionError):
        return []  # whoever composes says what is wrong
    names = [
        n
        for v in (value if isinstance(value, list) else [value])
        for n in (v if isinstance(v, list) else [v])
    ]
    return [n.text if isinstance(n, QuotedString) else str(n) for n in names]


def register_own() -> None:
    """Makes Hydra look for the files of a group among the user's own first, and at the paths that are chosen."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.object_type import ObjectType
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult, ConfigSource
    from hydra.plugins.search_path_plugin import SearchPathPlugin
    from omegaconf import OmegaConf

    class OwnSource(ConfigSource):
        """The user's own files; `hierarchy/mine` is a name, `hierarchy//home/me/mine.yaml` a path."""

        @staticmethod
        def scheme() -> str:
            return "own"

        def _file(self, config_path: str) -> tuple[str, Path | None]:
            group, _, choice = config_path.partition("/")
            if group not in groups() or not choice:
                return group, None
            file = file_of(group, choice)
            ours = file is not None and (is_path(choice) or is_own(file)) and file.is_file()
            return group, file if ours else None

        def load_config(self, config_path: str) -> ConfigResult:
            group, file = self._file(config_path)
            assert file is not None  # Hydra has asked `is_config`
            check_file(file, group)
            header = {"package": "_global_" if group in _EVERYWHERE else None}
            return ConfigResult(self.provider, f"own://{file}", OmegaConf.load(file), header)

        def available(self) -> bool:
            return True

        def is_group(self, config_path: str) -> bool:
            own = own_dir()
            return own is not None and config_path in groups() and (own / config_path).is_dir()

        def is_config(self, config_path: str) -> bool:
            return self._file(config_path)[1] is not None

        def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
            there = choices_of(config_path) if results_filter != ObjectType.GROUP else []
            return [name for name in there if self.is_config(f"{config_path}/{name}")]

    class OwnSearchPath(SearchPathPlugin):
        """Puts the user's own files before the built-in ones, and before no other program's."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            main = next((p.path for p in search_path.get_path() if p.provider == "main"), "")
            if main and main.removeprefix("file://") == str(conf_dir()):
                search_path.prepend(provider="own", path=f"own://{own_dir() or ''}", anchor="main")

    for plugin in (OwnSource, OwnSearchPath):
        Plugins.instance().register(plugin)
