"""The door of YAML files: no tags, few aliases, bounded; and names that YAML takes for something else are found."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from stemcell_lit.base.formats import MOST_DEPTH, read_text
from stemcell_lit.errors import UserError

MOST_BYTES = 256 << 10
MOST_VALUES = 10_000
MOST_ALIASES = 64


def yaml_node(file: Path, remedy: str) -> yaml.Node | None:
    """The tree of a YAML file before its values are made; None where it is empty.

    Raises:
        UserError: it cannot be read, is no YAML, has tags of its own, or too many values, aliases or levels.
    """
    content = read_text(file, MOST_BYTES, remedy)
    values = aliases = depth = 0
    try:
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            values += isinstance(event, yaml.NodeEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            tag = getattr(event, "tag", None)
            place = f"line {event.start_mark.line + 1 if event.start_mark else 0}"
            if tag and not tag.startswith("tag:yaml.org,2002:") and tag != "!":
                raise UserError(f"{file}: {place} has the tag {tag[:60]}, expected none; {remedy}")
            if tag and tag.startswith("tag:yaml.org,2002:python"):
                raise UserError(f"{file}: {place} has a tag of Python, expected none; {remedy}")
            for found, limit, what in (
                (values, MOST_VALUES, "values"),
                (aliases, MOST_ALIASES, "aliases"),
                (depth, MOST_DEPTH, "levels"),
            ):
                if found > limit:
                    raise UserError(f"{file}: has more than {limit:,} {what}; {remedy}")
        node = yaml.compose(content, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        told = f"line {mark.line + 1}: {getattr(error, 'problem', error)}" if mark else str(error)
        raise UserError(f"{file}: not readable as YAML ({told}); {remedy}") from error
    if node is not None:
        _bounded(node, file, remedy)
    return node


def _bounded(root: yaml.Node, file: Path, remedy: str) -> None:
    """Refuses a tree that grows beyond bounds, or never ends, where its aliases are written out."""
    left = MOST_VALUES
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        left -= 1
        if left < 0 or depth > MOST_DEPTH:
            raise UserError(
                f"{file}: its aliases (*name) make more than {MOST_VALUES:,} values or {MOST_DEPTH} levels; {remedy}"
            )
        if isinstance(node, yaml.SequenceNode):
            stack += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            stack += [(item, depth + 1) for pair in node.value for item in pair]


def read_yaml(file: Path, remedy: str) -> Any:
    """The plain values of a YAML file; as `yaml_node`, by the safe loader alone."""
    node = yaml_node(file, remedy)
    try:
        return node and yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{file}: not readable as YAML ({told}); {remedy}") from error


def unquoted(node: yaml.Node, names: Collection[str]) -> tuple[int, str, str] | None:
    """The first value that YAML takes for something else than text below some keys of the top, such as `yes`.

    Args:
        node: of a file.
        names: keys below which all must be text; an empty value (`subsets:`, `moves: null`) is legal.

    Returns:
        line (from 1), how it is written, what YAML takes it for; None where all is text.
    """
    if not isinstance(node, yaml.MappingNode):
        return None
    kinds = {"bool": "true or false", "null": "nothing", "int": "a number", "float": "a number"}
    kinds |= {"timestamp": "a date", "merge": "a merge", "value": "a default"}
    for key, value in node.value:
        if key.value not in names or not isinstance(value, yaml.CollectionNode):
            continue
        stack = [value]
        while stack:
            found = stack.pop()
            if isinstance(found, yaml.MappingNode):
                stack += [item for pair in reversed(found.value) for item in reversed(pair)]
            elif isinstance(found, yaml.SequenceNode):
                stack += reversed(found.value)
            elif not found.tag.endswith(":str"):
                kind = found.tag.rsplit(":", 1)[-1]
                mark = found.start_mark
                return (mark.line + 1 if mark else 0), found.value, kinds.get(kind, kind)
    return None
