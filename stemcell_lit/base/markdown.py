"""Texts of a user's in Markdown, and tables of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence


def in_markdown(text: object) -> str:
    """A text as itself in a table's cell or a line: no new cell, line, code, link, emphasis or HTML."""
    plain = re.sub(r"[\x00-\x1f\x7f]+", " ", str(text))
    plain = re.sub(r"([\\|`*])", r"\\\1", plain)
    plain = plain.replace("&", "&amp;").replace(">", "&gt;").replace("](", "]\\(")
    return re.sub("<(?! )", "&lt;", plain)  # before a blank it opens no HTML, as in `< 0.001`


def markdown_table(
    header: Sequence[object], rows: Iterable[Sequence[object]], right: Collection[str] = ()
) -> list[str]:
    """The lines of a table; every cell is shown as itself.

    Columns whose names are in `right` are aligned to the right.
    """
    bars = ["---:" if name in right else "---" for name in header]
    head, *body = (list(map(in_markdown, cells)) for cells in (header, *rows))
    return [f"| {' | '.join(cells)} |" for cells in (head, bars, *body)]
