"""What the wheel needs and its extras, from the dependency groups of pyproject.toml: each list stands once."""

import tomllib
from pathlib import Path

from setuptools import setup

GROUPS = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]


def requirements(group: str) -> list[str]:
    """Return the requirements of a group and of the groups that it includes."""
    found: set[str] = set()
    for entry in GROUPS[group]:
        found |= {entry} if isinstance(entry, str) else set(requirements(entry["include-group"]))
    return sorted(found)


setup(
    install_requires=requirements("submit"),
    extras_require={extra: requirements(extra) for extra in ("serve", "local")},
)
