"""Where the configuration lies, and what can be chosen in it."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of the configuration: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def groups_of(command: str) -> list[str]:
    """Names of a command's groups of settings, each with a file per choice in `conf/`."""
    import yaml

    plain = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    return [name for entry in plain["defaults"] if isinstance(entry, dict) for name in entry]


def choices_of(group: str) -> list[str]:
    """Names of the files of a group."""
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
