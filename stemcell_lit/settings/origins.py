"""Where each value of a command's settings comes from: what `stemcell-lit config` shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from stemcell_lit.base.terminal import printable, shell_word
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.command_table import SETTINGS
from stemcell_lit.settings.compose import compose, composing, parted
from stemcell_lit.settings.conf import conf_dir
from stemcell_lit.settings.keys import keys_of
from stemcell_lit.settings.quoting import override
from stemcell_lit.settings.words import read

DEFAULT, TYPED = "default", "command line"


@dataclass(frozen=True)
class Value:
    """A key's value in a composed configuration."""

    key: str
    value: Any  # None, a number, a text, lists and mappings of them; `???`: it must be given
    default: Any  # what it is where nothing sets it
    origin: str  # what set it last: default, a file such as conf/gan/small.yaml, or command line

    @property
    def changed(self) -> bool:
        """Whether it differs from the default."""
        return bool(self.value != self.default)


def origins(command: str, words: Sequence[str]) -> list[Value]:
    """Every key of a command with its value and what set it last, in the order of the schema.

    Raises:
        UserError: as the command itself would for these words, except that keys which must be given may be left out.
    """
    config = compose(command, words)
    kind = SETTINGS[command]
    whole = config.copy()
    for key in OmegaConf.missing_keys(whole):  # all are texts: any one will do for the others' sake
        OmegaConf.update(whole, key, "x")
    typed(whole, kind)
    values = OmegaConf.to_container(config, resolve=True)
    defaults = OmegaConf.to_container(OmegaConf.structured(kind))
    setters = list(_layers(command, read(command, words)))
    found = []
    for key in keys_of(command):
        last = [name for name, keys in setters if any(_within(k, key) for k in keys)]
        origin = last[-1] if last else DEFAULT
        found.append(Value(key, _at(values, key), _at(defaults, key), origin))
    return found


def lines_of(command: str, values: Sequence[Value]) -> list[str]:
    """A line for each: those that differ from the default first, with a star; then the others."""
    lines = []
    for changed in (True, False):
        for v in values:
            if v.changed is changed:
                told = (
                    f" ({_literal(v.default)} by default)" if changed and v.default != "???" else ""
                )
                missing = v.value == "???"
                word = f"{v.key}=..." if missing else shell_word(override(v.key, v.value))
                origin = "must be given" if missing else v.origin
                lines.append(f"{'*' if changed else ' '} {word:<34}  {printable(origin)}{told}")
    return lines


def _literal(value: Any) -> str:
    return override("", value)[1:]


def _layers(command: str, overrides: Sequence[str]) -> Iterator[tuple[str, set[str]]]:
    """What sets values in the order in which Hydra puts one over the other, with the keys that each sets.

    The schema is left out: it is below all.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    overrides, own = parted(command, overrides)
    for word in own:
        yield TYPED, {word.partition("=")[0]}
    with composing(command, overrides):
        loader: Any = GlobalHydra.instance().config_loader()
        chosen = loader.compute_defaults_list(command, list(overrides), RunMode.RUN)
        for default in chosen.defaults:
            if default.config_path is None or default.config_path.startswith("hydra/"):
                continue
            loaded = loader._load_single_config(default, loader.repository)
            if loaded.path.startswith(("file://", "own://")):
                keys = set(_leaves(OmegaConf.to_container(loaded.config), ""))
                yield _file(loaded.path, default.config_path), keys
        for parsed in OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)):
            group = loader.repository.group_exists(parsed.key_or_group)
            value = parsed.value()
            if not (group and (value is None or isinstance(value, str | list))):
                yield TYPED, set(_leaves({parsed.key_or_group: _plain(value)}, ""))


def _file(folder: str, name: str) -> str:
    """A file of settings, below `conf/` where it is one of ours; one of the user's own by its path."""
    if folder.startswith("own://"):
        return folder.removeprefix("own://")
    place = Path(folder.removeprefix("file://"))
    return f"{'conf' if place == conf_dir() else place}/{name.removesuffix('.yaml')}.yaml"


def _plain(value: Any) -> Any:
    """A value of Hydra's grammar, its quoted texts as keys of mappings made plain."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _leaves(value: Any, prefix: str) -> Iterator[str]:
    """Dotted keys of all that is not a mapping, or an empty one."""
    if not isinstance(value, Mapping) or (not value and prefix):
        yield prefix
        return
    for key, inside in value.items():
        yield from _leaves(inside, f"{prefix}.{key}" if prefix else str(key))


def _within(set_key: str, key: str) -> bool:
    """Whether what is set is a key or lies inside its mapping."""
    return set_key == key or set_key.startswith(f"{key}.")


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values
