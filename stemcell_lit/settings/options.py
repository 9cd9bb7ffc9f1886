"""Options beside the settings, as Hydra's users know them: `--config-dir`, `--cfg`, `--info`, `-m`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError
from stemcell_lit.settings.conf import OPTION

CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# option -> its other spellings
_WITH_VALUE = {OPTION: ("-cd",), "--cfg": ("-c",), "--info": ("-i",), "--package": ("-p",)}
_ALONE = {"--multirun": ("-m",), "--run": ("-r",), "--resolve": ()}
_NAMES = {
    spelling: name
    for name, others in (_WITH_VALUE | _ALONE).items()
    for spelling in (name, *others)
}


@dataclass
class Options:
    """What stands beside the settings of a command line."""

    words: list[str] = field(default_factory=list)  # the settings themselves
    folder: str | None = None  # of own settings
    several: bool = False  # a sweep
    cfg: str | None = None  # print what is composed: one of CFG
    info: str | None = None  # print how: one of INFO
    package: str | None = None  # the part of it to print
    resolve: bool = False  # with its references followed

    @property
    def shows(self) -> bool:
        """Whether the settings are shown, and nothing runs."""
        return self.cfg is not None or self.info is not None


def options_of(words: Sequence[str]) -> Options:
    """Tells options from settings, wherever they stand.

    Raises:
        UserError: an option without its value, or with one that it does not take.
    """
    found, rest = Options(), list(words)
    while rest:
        word = rest.pop(0)
        spelled, equals, value = word.partition("=")
        name = _NAMES.get(spelled)
        if name is None:
            found.words.append(word)
            continue
        if name in _ALONE:
            if equals:
                raise UserError(f"{printable(word)}: takes no value; write {spelled}")
            found.several |= name == "--multirun"
            found.resolve |= name == "--resolve"
            continue
        if not equals:
            value = _next(rest, name)
        if not value:
            expected = {OPTION: "DIR", "--cfg": "|".join(CFG), "--package": "GROUP"}[name]
            raise UserError(f"{printable(word)}: has no value; write {spelled} {expected}")
        if name == OPTION:
            if found.folder not in (None, value):
                raise UserError(f"{printable(word)}: one folder of own settings can be given")
            found.folder = value
        elif name == "--cfg":
            found.cfg = _one_of(spelled, value, CFG)
        elif name == "--info":
            found.info = _one_of(spelled, value, INFO)
        else:
            found.package = value
    if (found.package or found.resolve) and found.cfg is None:
        raise UserError("--package and --resolve go with --cfg job")
    return found


def _next(rest: list[str], name: str) -> str:
    """The value of an option in a word of its own; `--info` can do without."""
    if name == "--info":
        return rest.pop(0) if rest and rest[0] in INFO else "all"
    if rest and not rest[0].startswith("-") and (name == OPTION or "=" not in rest[0]):
        return rest.pop(0)
    return ""


def _one_of(spelled: str, value: str, legal: Sequence[str]) -> str:
    if value not in legal:
        raise UserError(f"{spelled} {printable(value)}: expected one of {', '.join(legal)}")
    return value
