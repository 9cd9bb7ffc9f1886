"""Texts of a user's in Markdown."""

from __future__ import annotations

import re


def in_markdown(text: object) -> str:
    """A text as itself in a table's cell or a line: no new cell, line, code, link, emphasis or HTML."""
    plain = re.sub(r"[\x00-\x1f\x7f]+", " ", str(text))
    plain = re.sub(r"([\\|`*])", r"\\\1", plain)
    return (
        plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("](", "]\\(")
    )
