"""What `--help` prints, in 80 columns: the commands, and the keys of one with what each means."""

from __future__ import annotations

import inspect
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf

from stemcell_lit.errors import UserError
from stemcell_lit.settings.command_table import COMMANDS, SETTINGS
from stemcell_lit.settings.compose import compose, methods
from stemcell_lit.settings.conf import choices_of, conf_dir, groups_of
from stemcell_lit.settings.keys import Key, keys_of
from stemcell_lit.settings.quoting import override
from stemcell_lit.settings.words import nearest

WIDTH = 80  # of a terminal
_TEXT = 28  # column at which sentences begin
_GROUPS = {  # those without keys of their own
    "experiment": "Settings of a whole table, such as a curve over doses.",
    "profile": "Settings for a purpose: smoke shows in seconds that all runs, gpu suits one GPU a job.",
}


def usage() -> str:
    """What `stemcell-lit --help` prints."""
    lines = [
        "stemcell-lit: do generated patches and a temporal hierarchy help, and how much?",
        "",
        "usage: stemcell-lit <command> [key=value ...]",
        "",
        *(f"  {name:<10} {command.sentence}" for name, command in COMMANDS.items()),
        "",
        "`stemcell-lit <command> --help` explains a command, --version names this one.",
    ]
    return "\n".join(lines)


def help_lines(command: str, about: str = "") -> list[str]:
    """What `stemcell-lit <command> --help` prints.

    Args:
        command: its name.
        about: empty for the keys that matter most, `all`, or a key or section such as `stage`.

    Raises:
        UserError: there is no such key.
    """
    known = COMMANDS[command]
    lines = _wrapped(f"{known.sentence} {known.more}".strip())
    lines += ["", *_example(known.example)]
    if known.settings is None:
        words = [x for word, text in known.words.items() for x in _entry(word, text)]
        return [*lines, "", *words] if words else lines
    lines.append("")
    keys = list(keys_of(command).values())
    values = OmegaConf.to_container(compose(command, []))
    if about in ("", "all"):
        first = sorted((k for k in keys if k.first), key=lambda k: (not k.required, "." in k.name))
        lines += [
            "The keys that matter most, as key=default:"
            if len(first) < len(keys)
            else "Its keys, as key=default:"
        ]
        lines += ["", *_keys(first, values), "", *_choices(command)]
    if about == "":
        rest = len(keys) - len(first)
        more = f"`stemcell-lit {command} --help all` explains all {len(keys)} keys, `--help KEY` one or a section"
        more += f"; `stemcell-lit config {command} ...` shows where each value comes from."
        return [*lines, *_wrapped(more)] if rest else lines[:-1]
    chosen = keys if about == "all" else [k for k in keys if f"{k.name}.".startswith(f"{about}.")]
    if not chosen and about in groups_of(command):
        return _choices(command, about)[2:-1]
    if not chosen:
        near = nearest(about, [*sections_of(command), *(k.name for k in keys)])
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{about}: no such key or section of {command}{hint}")
    lines = lines if about == "all" else []
    titles = sections_of(command)
    of_section: dict[str, list[Key]] = {}
    for key in chosen:
        of_section.setdefault(key.name.rpartition(".")[0], []).append(key)
    for section, of in of_section.items():
        lines += [
            *_wrapped(f"{section}: {titles[section]}" if section else "Of the command itself:"),
            "",
        ]
        lines += [*_keys(of, values), ""]
    return lines[:-1]


def sections_of(command: str) -> dict[str, str]:
    """The sections of a command's keys, such as `data.simulation`, each with its sentence."""
    return dict(_sections(SETTINGS[command], ""))


def _sections(owner: Any, prefix: str) -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(owner)
    for f in fields(owner):
        if is_dataclass(hints[f.name]):
            text = (inspect.getdoc(hints[f.name]) or "").partition("\n")[0]
            yield (
                f"{prefix}{f.name}",
                re.sub(r" \([^()]*`[^()]*\)", "", text),
            )
            yield from _sections(hints[f.name], f"{prefix}{f.name}.")


def _keys(keys: Iterable[Key], values: Any) -> list[str]:
    lines = []
    for key in keys:
        value = values
        for name in key.name.split("."):
            value = value[name]
        legal = str(key.bound) or ("true | false" if key.kind is bool else "")
        word = f"{key.name}=..." if value == "???" else override(key.name, value)
        sentence = f"{key.sentence}; must be given" if value == "???" else key.sentence
        lines += _entry(word, sentence, legal)
    return lines


def _choices(command: str, only: str = "") -> list[str]:
    """The groups of a command, each a choice among files of `conf/`; empty where it has none."""
    plain = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    defaults = {
        k: v for entry in plain["defaults"] if isinstance(entry, dict) for k, v in entry.items()
    }
    titles = {**sections_of(command), **_GROUPS}
    lines = []
    for group in sorted(g for g in groups_of(command) if choices_of(g) and only in ("", g)):
        default = defaults[group]  # None: it may be left out, and cannot be typed
        word = f"{group}=..." if default is None else override(group, default)
        legal = " | ".join(choices_of(group)) if group != "method" else ""  # listed below
        lines += _entry(word, titles.get(group, ""), legal)
        if group == "method":
            for name, about in methods().items():
                lines += _hanging(f"    {name}", 23, about.about or "")
    head = ["Choices, each a file of settings conf/NAME/CHOICE.yaml, as NAME=default:", ""]
    return [*head, *lines, ""] if lines else []


def _entry(word: str, text: str, legal: str = "") -> list[str]:
    """A word with what it means, and with what is legal in brackets."""
    if len(legal) <= 24:  # not broken between lines
        legal = legal.replace(" ", "\xa0")
    lines = _hanging(f"  {word}", _TEXT, f"{text} [{legal}]" if legal else text)
    return [line.replace("\xa0", " ") for line in lines]


def _hanging(head: str, column: int, text: str) -> list[str]:
    """Text that begins at a column: beside its head, or below one that is too long."""
    body = textwrap.wrap(text, WIDTH - column, break_long_words=False, break_on_hyphens=False)
    heads = [head]
    while len(heads[-1]) > WIDTH and "," in heads[-1][40:WIDTH]:  # a long list goes on below
        cut = heads[-1].rindex(",", 0, WIDTH) + 1
        heads[-1:] = [heads[-1][:cut], f"      {heads[-1][cut:]}"]
    if len(head) < column - 1 and body:
        heads, body = [f"{head:<{column}}{body[0]}"], body[1:]
    return [*heads, *(" " * column + line for line in body)]


def _example(words: str) -> list[str]:
    """A command line for the shell, its words on several lines where one is too long."""
    lines = textwrap.wrap(
        f"$ {words}",
        WIDTH - 4,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
