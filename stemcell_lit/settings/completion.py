"""Completion of a command line in a shell: commands, keys, and what a key or group takes.

`eval "$(stemcell-lit -sc install=bash)"` makes bash ask for it at the Tab key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError
from stemcell_lit.settings.command_table import COMMANDS, SETTINGS
from stemcell_lit.settings.conf import OPTION, choices_of, groups_of, use
from stemcell_lit.settings.keys import Key, keys_of
from stemcell_lit.settings.options import CFG, INFO

HOW = 'eval "$(stemcell-lit -sc install=bash)" in bash; uninstall=bash takes it back'

# What is completed may hold `=`, at which bash has cut the word: it is given the part behind it alone. Where nothing
# is known, files are listed. A value is followed by a blank, a key is not.
_SCRIPT = r"""
_stemcell_lit() {
    local line="${COMP_LINE:0:COMP_POINT}" word before IFS=$'\n'
    word="${line##* }"
    before=""
    case "$word" in *=*) before="${word%"${word##*=}"}" ;; esac
    COMPREPLY=($(command stemcell-lit -sc query=bash -- "$line" 2>/dev/null))
    if [ "${#COMPREPLY[@]}" -eq 0 ]; then
        COMPREPLY=($(compgen -f -- "${word#"$before"}"))
        compopt -o filenames 2>/dev/null
    else
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
    case "${COMPREPLY[*]}" in *=) compopt -o nospace 2>/dev/null ;; esac
}
complete -F _stemcell_lit stemcell-lit
"""


def shell_completion(words: Sequence[str]) -> list[str]:
    """The lines that `-sc install=bash`, `-sc uninstall=bash` or `-sc query=bash -- LINE` print.

    Raises:
        UserError: other words.
    """
    what = words[0] if words else ""
    if what == "query=bash":
        return complete(words[-1] if "--" in words[1:-1] else "")
    if what == "uninstall=bash":
        return ["complete -r stemcell-lit", "unset -f _stemcell_lit"]
    if what != "install=bash":
        raise UserError(f"-sc {printable(what)}: expected: {HOW}")
    return [_SCRIPT.strip()]


def complete(line: str) -> list[str]:
    """What the last word of a command line can become, whole words; empty where nothing is known, as of paths."""
    *before, word = re.split(r"\s+", line.lstrip())
    if len(before) <= 1:
        return _beginning(word, [*COMMANDS, "--help", "--version"])
    command = before[1]
    if command not in SETTINGS:
        return []
    folder = next((b for a, b in pairwise(before) if a in (OPTION, "-cd")), None)
    folder = next((w.partition("=")[2] for w in before if w.startswith(f"{OPTION}=")), folder)
    use(folder)
    if before[-1] in ("--cfg", "-c"):
        return _beginning(word, CFG)
    if before[-1] in ("--info", "-i"):
        return _beginning(word, INFO)
    key, equals, value = word.partition("=")
    if equals:
        values = _values(command, key)
        start = value.rpartition(",")[0]
        return _beginning(word, [f"{key}={start and start + ','}{v}" for v in values])
    if word.startswith("-"):
        return _beginning(word, ["--help", "--cfg", "--info", OPTION, *COMMANDS[command].flags])
    names = [f"{name}=" for name in {**keys_of(command), **dict.fromkeys(groups_of(command))}]
    given = {w.partition("=")[0] for w in before}
    return _beginning(word, sorted(n for n in names if n[:-1] not in given))


def _values(command: str, key: str) -> list[str]:
    """What a key or group takes, where it can be listed."""
    known: Key | None = keys_of(command).get(key)
    if key in groups_of(command):
        return choices_of(key)
    if known is None:
        return []
    if known.bound.choices:
        return [str(c) for c in known.bound.choices]
    return ["true", "false"] if known.kind is bool else []


def _beginning(word: str, legal: Iterable[str]) -> list[str]:
    return [text for text in legal if text.startswith(word)]
