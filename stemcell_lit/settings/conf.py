"""Where the settings lie, and what can be chosen in them: a folder of the user's own, then the built-in ones.

That folder is what `--config-dir` names, else `conf/` in the working folder. Only the files of its groups count, such
as `conf/hierarchy/mine.yaml`.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError

OPTION = "--config-dir"
_given: Path | None = None  # what the option names; one command runs in a process


def conf_dir() -> Path:
    """The folder of the built-in settings: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def use(folder: str | None) -> None:
    """Takes the folder of `--config-dir`; None: none is given, and `conf/` in the working folder counts.

    Raises:
        UserError: it is no folder, or none with settings.
    """
    global _given
    _given = None
    if folder is None:
        return
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"{OPTION} {printable(folder)}: no such folder; expected one with a folder for each group of yours, such "
            "as DIR/hierarchy/mine.yaml"
        )
    if not _own_groups(path):
        below = path / "conf"
        hint = f"; did you mean {OPTION} {printable(below)}?" if _own_groups(below) else ""
        raise UserError(
            f"{OPTION} {printable(folder)}: holds no file of a group, such as hierarchy/mine.yaml{hint}"
        )
    _given = path.absolute()


def own_dir() -> Path | None:
    """The folder of the user's own settings, absolute; None: there is none, or it is the built-in one."""
    if _given is not None:
        return None if _same(_given, conf_dir()) else _given
    try:
        here = Path.cwd() / "conf"
    except OSError:  # the working folder has been deleted
        return None
    return here if _own_groups(here) and not _same(here, conf_dir()) else None


def notice() -> str | None:
    """What to say where `conf/` of the working folder counts without having been asked for."""
    own = own_dir()
    if own is None or _given is not None:
        return None
    hidden = [
        f"{group}/{file.stem}"
        for group in _own_groups(own)
        for file in _files(own / group)
        if (conf_dir() / group / file.name).is_file()
    ]
    said = f"own settings: {printable(own)} comes before the built-in ones"
    return f"{said}, and hides {', '.join(map(printable, sorted(hidden)))}" if hidden else said


def for_jobs() -> list[str]:
    """The words with which a job in another process or folder finds the same settings."""
    own = own_dir()
    return [] if own is None else [f"{OPTION}={own}"]


def groups() -> list[str]:
    """Names of all groups of settings, of whatever command."""
    return sorted(p.name for p in conf_dir().iterdir() if p.is_dir() and p.name != "hydra")


def groups_of(command: str) -> list[str]:
    """Names of a command's groups of settings, each with a file per choice."""
    import yaml

    plain = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    return [name for entry in plain["defaults"] if isinstance(entry, dict) for name in entry]


def choices_of(group: str) -> list[str]:
    """Names of the files of a group, the user's own among them."""
    return sorted({p.stem for folder in _folders() for p in _files(folder / group)})


def files_of(group: str) -> list[Path]:
    """The file of each choice of a group, by name; one of the user's own hides a built-in one of its name."""
    return [file for name in choices_of(group) if (file := file_of(group, name))]


def file_of(group: str, choice: str) -> Path | None:
    """The file of a choice: what lies at its path, else the user's own of its name, else the built-in one."""
    if is_path(choice):
        return Path(choice)
    name = choice.removesuffix(".yaml")
    files = (folder / group / f"{name}.yaml" for folder in _folders())
    return next((file for file in files if file.is_file()), None)


def is_own(file: Path) -> bool:
    """Whether a file is none of the built-in ones."""
    return not _same(file.parent.parent, conf_dir())


def is_path(choice: str) -> bool:
    """Whether a choice is the path of a file, instead of a name of `conf/GROUP`."""
    return "/" in choice


def refuse_choice(group: str, choice: str, shown: str) -> None:
    """Refuses a name that no file has, or a path where no file lies.

    Raises:
        UserError: the choices that there are, and the nearest.
    """
    if "\0" in choice or "${" in choice:
        raise UserError(f"{shown}: expected a name or the path of a file, without NUL and ${{")
    file = file_of(group, choice)
    if file is not None and file.is_file():
        if is_path(choice) and file.suffix != ".yaml":
            raise UserError(f"{shown}: expected a file whose name ends with .yaml")
        return
    if is_path(choice):
        there = "is a folder" if file is not None and file.is_dir() else "no such file"
        raise UserError(f"{shown}: {there}; expected a YAML file as in conf/{group}")
    names = choices_of(group)
    near = difflib.get_close_matches(choice, names, 1, 0.6)
    beside = f"{choice.removesuffix('.yaml')}.yaml"
    if not near and Path(beside).is_file():
        near = [f"./{beside}"]
    hint = f", did you mean {printable(near[0])}?" if near else ";"
    raise UserError(
        f"{shown}: no such choice{hint} expected one of {', '.join(map(printable, names))}, or the path of a file "
        "(./mine.yaml)"
    )


def _folders() -> list[Path]:
    own = own_dir()
    return [conf_dir()] if own is None else [own, conf_dir()]


def _own_groups(folder: Path) -> list[str]:
    return [group for group in groups() if _files(folder / group)]


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*.yaml") if p.name[0] != "."]


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False
