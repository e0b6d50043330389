"""The version of a stage's code: a digest of all modules it imports, without comments, docstrings and formatting."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from components.shared.contracts import digest, fingerprint
from components.shared.runtime.stage_interface import COMPONENTS, stages

ROOT = COMPONENTS.parent
CACHE = COMPONENTS / "__pycache__" / f"code_version.{sys.implementation.cache_tag}.json"
CACHED = 1000
"""Number of modules above which the cache is emptied."""
DISTRIBUTIONS = {
    "PIL": "pillow",
    "gdcm": "python-gdcm",
    "mlflow": "mlflow-skinny",
    "multipart": "python-multipart",
    "openjpeg": "pylibjpeg-openjpeg",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Names of distributions that differ from their package's name."""
INTERFACES = "component*.py"
"""Files with a stage's typed interface for the pipeline only."""


@cache
def code_version(stage: str) -> str:
    """Return the digest of all code that a stage imports and of the versions of the packages that it imports.

    Templates and other files in the folders of these modules count, too.
    """
    files = reached(ROOT, stage)
    code = {path.relative_to(ROOT).as_posix(): _read_module(path).digest for path in files}
    for folder in sorted({path.parent for path in files}):
        for path in folder.iterdir():
            if path.is_file() and path.suffix not in (".py", ".pyc", ".md"):
                code[path.relative_to(ROOT).as_posix()] = digest(path.read_bytes())
    versions = package_versions(stage)
    _save()
    return fingerprint([code, versions])


def package_versions(stage: str) -> dict[str, str]:
    """Return the installed version of each package that a stage imports, by its import name."""
    names = {name for path in reached(ROOT, stage) for name in _packages(path)}
    return {name: installed(DISTRIBUTIONS.get(name, name)) for name in sorted(names)}


@cache
def reached(root: Path, stage: str, typing: bool = False) -> tuple[Path, ...]:
    """Return the files of a stage, except its interface, and all modules of this repository that they import.

    With `typing`, include imports for type checking only.
    """
    folder = root / "serving" if stage == "serve" else root / "components" / stage
    waiting = [path for path in sorted(folder.rglob("*.py")) if not path.match(INTERFACES)]
    seen = {*waiting}
    while waiting:
        for module in imports(waiting.pop(), root, typing):
            file = module_file(module, root) if is_own(module, stage) else None
            if file and file not in seen:
                seen.add(file)
                waiting.append(file)
    return tuple(sorted(seen))


def is_own(module: str, stage: str) -> bool:
    """Return whether a stage may import this module of this repository."""
    own = "serving" if stage == "serve" else f"components.{stage}"
    return module == "components" or f"{module}.".startswith((f"{own}.", "components.shared."))


def imports(path: Path, root: Path, typing: bool = False) -> Iterator[str]:
    """Yield every module that a file imports; with `typing`, also those for type checking only."""
    package = [*path.relative_to(root).parent.parts]
    for level, name, inner, for_typing in _read_module(path).imports:
        if for_typing and not typing:
            continue
        base = package[: len(package) - level + 1] if level else []
        module = ".".join([*base, *([name] if name else [])])
        full = f"{module}.{inner}" if inner else module
        yield full if "." not in module or module_file(full, root) else module


def module_file(module: str, root: Path) -> Path | None:
    """Return the file of a module of this repository, or None."""
    path = root.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


class _Module(NamedTuple):
    """Imports of a module, and the digest of its syntax tree without docstrings, comments and formatting."""

    digest: str
    imports: list[list[Any]]


@cache
def _read_module(path: Path) -> _Module:
    content = path.read_bytes()
    name = digest(content)
    if name not in _cache():
        _cache()[name] = _parse(content, path)
        _added.append(name)
    return _cache()[name]


def _parse(content: bytes, path: Path) -> _Module:
    tree, imports = ast.parse(content, str(path)), []
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, typing = waiting.pop()
        if isinstance(node, ast.Import):
            imports += [[0, alias.name, "", typing] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports += [[node.level, node.module or "", alias.name, typing] for alias in node.names]
        typing = typing or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_docstring(line)]  # type: ignore[attr-defined]
        waiting += [(child, typing) for child in ast.iter_child_nodes(node)]
    return _Module(digest(ast.dump(tree).encode()), sorted(imports))


def _is_docstring(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


_added: list[str] = []
"""Keys of the cache that are not in its file yet."""


@cache
def _cache() -> dict[str, _Module]:
    """Return parsed modules by the digest of their source: parsing takes longer than some stages' work."""
    try:
        known = {name: _Module(*module) for name, module in json.loads(CACHE.read_bytes()).items()}
        return known if len(known) < CACHED else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save() -> None:
    """Write the cache to Python's folder for bytecode."""
    if not _added or sys.dont_write_bytecode:
        return
    _added.clear()
    with contextlib.suppress(OSError):
        CACHE.parent.mkdir(exist_ok=True)
        part = CACHE.with_name(f"{CACHE.name}.{os.getpid()}")
        part.write_text(json.dumps(_cache()), encoding="utf-8")
        part.replace(CACHE)


@cache
def _packages(path: Path) -> tuple[str, ...]:
    names = {name.partition(".")[0] for name in imports(path, ROOT)}
    return tuple(sorted(names - sys.stdlib_module_names - {"components", "serving"}))


@cache
def installed(distribution: str) -> str:
    """Return the installed version of a distribution, or "absent"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":  # fills the cache while an image is built: containers cannot write it
    for name in stages():
        code_version(name)
