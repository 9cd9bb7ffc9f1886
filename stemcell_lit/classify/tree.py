"""The tree of stages as the settings give it, checked, and what a node of it learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemcell_lit.base import formats as form
from stemcell_lit.data.datamodule import ALWAYS, Scope
from stemcell_lit.errors import UserError
from stemcell_lit.settings.group_keys import HierarchyConfig


@dataclass(frozen=True)
class Node:
    """A stage's place in the tree.

    Attributes:
        name: `root`, `root/cells`, `root/cells/late`.
        groups: target -> its classes.
        window: hours (first, last) in which it learns and speaks.
        leaves: the classes below it in the hierarchy's order, where its stage learns these; empty where it learns the
            groups. (In that order the root of any tree is the flat classifier, and shares its artifact.)
    """

    name: str
    groups: dict[str, list[str]]
    window: tuple[float, float] = ALWAYS
    leaves: tuple[str, ...] = ()

    @property
    def targets(self) -> dict[str, list[str]]:
        """What its stage learns to tell apart, in the order of its answers: its groups, or the classes below them."""
        return {c: [c] for c in self.leaves} or self.groups

    @property
    def classes(self) -> list[str]:
        """All classes below it."""
        return [c for members in self.groups.values() for c in members]

    @property
    def scope(self) -> Scope:
        """What its stage sees of the patches."""
        return Scope(self.targets, self.window)


def _tree(value: Any, where: str) -> None:
    """Form of a tree: groups with a class, a list of classes, or a tree; or by_time with its two sides."""
    form.mapping(_below)(value, where)
    if not value:
        raise form.Wrong(where, "empty", "at least one group")
    if "by_time" in value:
        sides = value["by_time"]
        form.record({"early": _below, "late": _below}, more=False)(sides, f"{where}.by_time")
        if len(value) > 1:
            raise form.Wrong(where, f"by_time with {len(value) - 1} groups beside it", "it alone")


def _below(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        _tree(value, where)
    elif isinstance(value, str):
        form.NAME(value, where)
    else:
        form.listing(form.NAME, least=1, most=form.MOST_CLASSES)(value, where)


def followers(value: Any, where: str) -> None:
    """A form: the classes that may follow one, or `any`."""
    if value != "any":
        form.listing(form.NAME)(value, where)


def check_texts(config: HierarchyConfig) -> None:
    """Refuses names of classes and groups that YAML took for something else, such as yes for true.

    Raises:
        UserError: names the place and the value, and says to quote it.
    """
    parts: dict[str, Any] = {"tree": config.tree, "moves": config.moves, "subsets": config.subsets}
    stack = [(name, value) for name, value in parts.items() if value]
    while stack:
        where, value = stack.pop()
        if isinstance(value, Mapping):
            for key, below in value.items():
                stack += [(where, key), (f"{where}.{key}", below)]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            stack += [(where, item) for item in value]
        elif not isinstance(value, str):
            shown = {True: "true (yes, on)", False: "false (no, off)", None: "nothing"}
            told = shown[value] if value is None or value is True or value is False else value
            raise UserError(
                f"hierarchy={config.name}: {where} holds {told}, which is no text, expected names of classes; quote "
                "it in the YAML, such as 'yes', '1' or 'null'"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def check_names(part: Any, where: str) -> None:
    """Refuses what YAML took for a number or a truth: the names of classes are text."""
    if isinstance(part, Mapping):
        for name, below in part.items():
            check_names(below, f"{where}.{name}")
    elif isinstance(part, list):
        for below in part:
            check_names(below, where)
    elif not isinstance(part, str):
        raise UserError(
            f"{where} holds {part!r}, expected names; YAML takes yes, no and 1 for a truth or a number, so quote the "
            "names of such classes ('yes')"
        )


def _mapping(below: Any) -> dict[str, Any]:
    """A sub-tree in its long form: a class alone or a list of classes become a mapping."""
    if isinstance(below, str):
        return {below: below}
    if isinstance(below, Sequence):
        if len(set(below)) < len(below):
            raise UserError(f"hierarchy: {list(below)} names a class twice")
        return {name: name for name in below}
    return dict(below)


def _union(by_time: Mapping[str, Any]) -> dict[str, Any]:
    return {**_mapping(by_time["early"]), **_mapping(by_time["late"])}


def classes_of(tree: Mapping[str, Any]) -> list[str]:
    """Classes in a tree, in its order."""
    if "by_time" in tree:
        sides = tree["by_time"]
        if set(sides) != {"early", "late"}:
            raise UserError(f"hierarchy: by_time has {sorted(sides)}, expected early and late")
        return list(dict.fromkeys(classes_of(_union(sides))))
    found: list[str] = []
    for below in tree.values():
        found += [below] if isinstance(below, str) else classes_of(_mapping(below))
    twice = sorted(c for c, n in Counter(found).items() if n > 1)
    if twice:
        raise UserError(
            f"hierarchy: {twice} are in the tree twice; each class belongs to one group of a node"
        )
    return found


def _switches(tree: Mapping[str, Any], name: str) -> Any:
    """(name, by_time mapping) of every node that the time switches."""
    if "by_time" in tree:
        yield name, tree["by_time"]
        return
    for group, below in tree.items():
        if not isinstance(below, str):
            yield from _switches(_mapping(below), f"{name}/{group}")
