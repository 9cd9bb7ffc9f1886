"""`init`: a tree over the classes of a store, an experiment with it, and a page of the commands that use them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stemcell_lit.base.files import write_whole
from stemcell_lit.base.terminal import printable
from stemcell_lit.base.yamls import read_yaml
from stemcell_lit.classify.tree import classes_of
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.conf import conf_dir
from stemcell_lit.settings.group_keys import HierarchyConfig
from stemcell_lit.settings.own import check_file
from stemcell_lit.settings.patch_keys import InitCommand
from stemcell_lit.settings.quoting import command_line, escaped

EXAMPLE = ("debris", "dense", "spread", "differentiated")
_NAME = re.compile(r"[A-Za-z_][\w-]{0,59}", re.ASCII)
METHODS = ("flat", "flat_sampler", "classic", "flat_gan", "hierarchy")
TIMED = ("time_only", "flat_temporal", "temporal", "temporal_gan")


def start(config: InitCommand) -> list[Path]:
    """Writes a project; nothing that is there is replaced.

    Returns:
        the files, in the order in which to read them.

    Raises:
        UserError: something else is in their places, no name can be had, or classes that no YAML can hold.
    """
    folder = Path(config.folder)
    name = _name(config.name, folder)
    store = PatchStore.open(config.store) if config.store else None
    classes = store.classes if store else list(EXAMPLE)
    hours = median_hours(store) if store else None
    place = f"stores/{name}" if config.store is None else _from(folder, config.store)
    texts = {
        folder / "conf" / "hierarchy" / f"{name}.yaml": hierarchy_text(
            name, classes, hours, bool(store)
        ),
        folder / "conf" / "experiment" / f"{name}.yaml": experiment_text(
            name, place, hours is not None
        ),
        folder / "README.md": _page(name, place, store is not None),
    }
    tree = next(iter(texts))
    _check_tree(tree.name, texts[tree], classes, hours)
    for file, text in texts.items():
        if os.path.lexists(file) and not _is(file, text):
            raise UserError(
                f"{file}: is there already, and nothing is written over it; take another folder or name="
            )
    for file, text in texts.items():
        write_whole(file, text)
    return [*list(texts)[2:], *list(texts)[:2]]


def median_hours(store: PatchStore) -> dict[str, float] | None:
    """Hours at which half of a class's patches are seen, the earliest class first; None: some class has no times."""
    times = store.manifest.groupby("label")["time_h"].median()
    found = {c: float(times.get(c, float("nan"))) for c in store.classes}
    if any(hours != hours for hours in found.values()):
        return None
    return dict(sorted(found.items(), key=lambda item: item[1]))


def hierarchy_text(
    name: str, classes: Sequence[str], hours: Mapping[str, float] | None, known: bool
) -> str:
    """A file of `conf/hierarchy` over some classes; it reads back as them, whatever their names.

    Args:
        name: of the file, without its ending.
        classes: in the order to keep.
        hours: median hours of each class, the earliest first; None: there are no times.
        known: whether the classes are those of a store; else they are an example.
    """
    lines = (
        []
        if known
        else ["# AN EXAMPLE: the classes below are not yours. Put your own in their places."]
    )
    lines += [
        f"# The tree over your classes; chosen by hierarchy={name}. Names in quotes mean themselves.",
        f"name: {name}",
        "# What the clock may say: none | window | prior (p(class | hours)) | path (along tracks, with `moves`)",
        f"temporal: {'prior' if hours else 'none'}",
        "",
        "# As it stands, one network tells all classes apart. A group makes a stage of its own: what is told apart",
        "# together goes into one, as in",
        f"#   cells: [{', '.join(map(_text, classes[-2:]))}]",
        "tree:",
        *(f"  {_quoted(c)}: {_text(c)}" for c in classes),
        "",
    ]
    if hours is None:
        why = "the patches have no times" if known else "it is not known here"
        lines += [
            f"# Which class may follow which along a track, used by temporal: path. Open, for {why}. As in",
            "#   moves: {a: [b], b: []}    never back; `debris: any` floats by",
            "moves: null",
        ]
    else:
        lines += [
            "# A GUESS, CHECK IT: which class may follow which along a track, in the order of their median hours; used",
            "# by temporal: path alone, which never goes back. `any` in place of a list: it floats by, as debris does.",
            "moves:",
        ]
        order = list(hours)
        for i, label in enumerate(order):
            after = ", ".join(map(_text, order[i + 1 : i + 2]))
            lines.append(f"  {_quoted(label)}: [{after}] # median {hours[label]:.4g} h")
    return "\n".join(lines) + "\n"


def experiment_text(name: str, store: str, timed: bool) -> str:
    """A file of `conf/experiment` that compares methods with that tree."""
    methods = [*METHODS, *TIMED] if timed else METHODS
    return f"""# @package _global_
# What is compared; chosen by experiment={name}. `stemcell-lit reproduce --help` lists all keys and methods.
defaults:
  - override /hierarchy: {name}
methods: # flat is what the others are measured against
{chr(10).join(f"  - {m}" for m in methods)}
seeds: [0, 1]
data:
  store: {_text(store)} # seen from the folder in which you type commands
"""


def _page(name: str, store: str, known: bool) -> str:
    """README.md: the commands, to be typed in the folder of the project."""
    out = f"results/{name}"
    steps = [
        ("Your labelled patches become a store.", "import", {"source": "my_crops", "store": store}),
        (
            "Which method is better, by how much, and is it real?",
            "reproduce",
            {"experiment": name, "out": out},
        ),
        ("One model of the best method.", "deliver", {"out": out}),
        (
            "Class maps of a new movie.",
            "predict",
            {"movie": "movie.tif", "checkpoint": f"{out}/model", "out": f"maps/{name}"},
        ),
    ]
    about = (
        "the classes of its store"
        if known
        else "an example of classes, to be replaced by yours before the second command"
    )
    lines = [
        f"# {name}",
        "",
        f"`conf/hierarchy/{name}.yaml` has a tree over {about}; `conf/experiment/{name}.yaml` says what is compared.",
        "Commands typed in this folder find both; from elsewhere, add `--config-dir` with the path of `conf`.",
        "",
    ]
    for i, (sentence, command, settings) in enumerate(steps, 1):
        done = " (done)" if known and command == "import" else ""
        lines += [f"{i}. {sentence}{done}", "", f"       {command_line(command, settings)}", ""]
    return "\n".join(lines)


def _name(given: str | None, folder: Path) -> str:
    name = given if given is not None else re.sub(r"[^\w-]+", "_", folder.resolve().name)
    if not _NAME.fullmatch(name):
        raise UserError(
            f"name={printable(name)}: expected letters, digits and _, a letter first; give name=NAME"
        )
    for group in ("hierarchy", "experiment"):
        if (conf_dir() / group / f"{name}.yaml").is_file():
            raise UserError(f"name={name}: is that of a built-in {group}; give another name=")
    return name


def _from(folder: Path, store: str) -> str:
    """The path of a store from a folder that it lies in or beside, else absolute."""
    inside = Path(store).resolve()
    near = folder.resolve()
    return str(inside.relative_to(near)) if inside.is_relative_to(near) else str(inside)


def _quoted(text: str) -> str:
    """A text in YAML, on one line and in quotes: never a number, a truth or a comment."""
    dumped: str = yaml.safe_dump(
        text, default_style='"', allow_unicode=True, width=float("inf"), line_break="\n"
    )
    return dumped.strip()


def _text(text: str) -> str:
    """The same as a value: `${` in it is text."""
    return _quoted(escaped(text))


def _is(file: Path, text: str) -> bool:
    """Whether a file holds just this: an earlier call has written it."""
    try:
        return file.is_file() and file.read_bytes() == text.encode("utf-8")
    except OSError:
        return False


def _check_tree(
    name: str, text: str, classes: Sequence[str], hours: Mapping[str, float] | None
) -> None:
    """Refuses classes whose names a file of settings cannot hold, such as `_target_`; nothing is written yet."""
    from omegaconf import OmegaConf

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(text, encoding="utf-8")
        try:
            check_file(file, "hierarchy")
            plain: Any = read_yaml(file, "rename the class")
            found = typed(OmegaConf.create(plain), HierarchyConfig)
            same = classes_of(found.tree) == list(classes)
            told = "other classes are read"
        except UserError as error:
            same, told = False, str(error).removeprefix(f"{file}: ")
    if not same or set(found.moves or hours or {}) != set(hours or {}):
        shown = ", ".join(map(printable, classes))
        raise UserError(
            f"classes {shown}: one has a name that a file of settings cannot hold ({told}); give it another and import "
            "again"
        )
