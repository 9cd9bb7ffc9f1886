"""What `--help` prints: the commands, and the keys of one."""

from __future__ import annotations

from omegaconf import OmegaConf

from stemcell_lit.settings.command_table import COMMANDS
from stemcell_lit.settings.compose import compose, methods
from stemcell_lit.settings.conf import choices_of, conf_dir, groups_of
from stemcell_lit.settings.keys import keys_of


def usage() -> str:
    """What `stemcell-lit --help` prints."""
    lines = [
        "stemcell-lit: do generated patches and a temporal hierarchy help on your data, by how much, is it real?",
        "",
        "usage: stemcell-lit <command> [key=value ...]      (python -m stemcell_lit does the same)",
        "",
    ]
    for name, command in COMMANDS.items():
        lines += [f"  {name:<10} {command.sentence}", f"             $ {command.example}", ""]
    lines.append(
        "`stemcell-lit <command> --help` lists the keys of a command with their defaults; --version says which this is."
    )
    return "\n".join(lines)


def help_lines(command: str) -> list[str]:
    """The keys of a command with their defaults, bounds and, of groups, choices."""
    config = compose(command, [])
    lines = []
    for group in sorted(set(groups_of(command)) & {p.name for p in conf_dir().iterdir()}):
        if choices_of(group):
            lines.append(f"  {group}= {' | '.join(choices_of(group))}")
        if group == "method":
            lines += [f"    {name:<18} {about.about or ''}" for name, about in methods().items()]
    lines += ["", "keys and defaults (??? must be given):", ""]
    keys = keys_of(command)
    at: list[str] = []
    for line in OmegaConf.to_yaml(config).splitlines():
        name = line.strip().partition(":")[0]
        if not line.strip().startswith("-"):
            at = [*at[: (len(line) - len(line.lstrip())) // 2], name]
        key = keys.get(".".join(at))
        note = str(key.bound) if key is not None and not line.strip().startswith("-") else ""
        lines.append(f"{line}  # {note}" if note else line)
    return lines
