"""HTML pages from templates: every name is escaped, and a name that a template lacks is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def render(
    template: Path, filters: Mapping[str, Callable[..., Any]] | None = None, /, **values: Any
) -> str:
    """Fills a template of Jinja.

    Args:
        template: the file; lines that hold only a statement leave no blank line.
        filters: of its own, as in `{{ share|percent }}`.
        values: by their names in the template; texts are shown as they are, never as HTML.

    Raises:
        jinja2.UndefinedError: the template uses a name that was not given.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= filters or {}
    return environment.get_template(template.name).render(**values)
