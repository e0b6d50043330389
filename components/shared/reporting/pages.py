"""The Jinja environment of all HTML pages: escaped output, and an error for an undefined name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def template(folder: Path, name: str) -> Template:
    """Return a template of this folder; it can include the folder's other templates."""
    return _environment(folder).get_template(name)


@cache
def _environment(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
