"""A stage imports its own folder, components.shared, the standard library and its dependency group: nothing else.

The rule is read from the source, and follows every module of components that a stage reaches.
"""

from __future__ import annotations

import re
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from components.shared.runtime.code_and_package_versions import INTERFACES, imports, is_own, reached

ROOT = Path(__file__).resolve().parents[2]
INTERFACE_IMPORTS = ("kfp.dsl", "components.stage")
OURS = ("components", "serving", "workflows", "medloop")
LAYERS = {"components.shared": 0, "components": 1, "serving": 1, "workflows": 2, "medloop": 3}
"""A module imports its own layer and lower ones."""
ROOTS = {"", "components", "components.shared", "medloop"}
"""Folders whose own files stand beside folders that import them."""


def named(distribution: str) -> str:
    """A distribution's name in its one canonical form."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def group(project: dict[str, list[object]], name: str) -> set[str]:
    """The distributions of a dependency group, with those of the groups that it includes."""
    found: set[str] = set()
    for requirement in project[name]:
        if isinstance(requirement, dict):
            found |= group(project, requirement["include-group"])
        else:
            match = re.match(r"[A-Za-z0-9._-]+", str(requirement))
            assert match, requirement
            found.add(named(match[0]))
    return found


def allowed_packages(root: Path, stage: str) -> set[str]:
    """The names that a stage may import besides medloop's own and the standard library's."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    wanted = group(project, stage)
    return {name for name, owners in packages_distributions().items() if {named(owner) for owner in owners} & wanted}


def violations(root: Path, stage: str) -> list[str]:
    """Every import that the rule forbids, with the file in which it stands."""
    packages = allowed_packages(root, stage)
    found = []
    for path in reached(root, stage, typing=True):
        for module in imports(path, root, typing=True):
            top = module.split(".")[0]
            ours = top in OURS
            if not is_own(module, stage) and (ours or not (top in sys.stdlib_module_names or top in packages)):
                found.append(f"{path.relative_to(root)} imports {module}")
    for interface in (root / "components" / stage).glob(INTERFACES):
        for module in imports(interface, root, typing=True):
            top = module.split(".")[0]
            if module not in INTERFACE_IMPORTS and top not in sys.stdlib_module_names:
                found.append(f"{interface.relative_to(root)} imports {module}")
    return sorted(set(found))


def folders(root: Path) -> list[str]:
    """Everything that has an image of its own: the stages, and the service."""
    stages = (path for path in (root / "components").iterdir() if any(path.glob("*.py")) and path.name != "shared")
    return [*sorted(path.name for path in stages), "serve"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", folders(ROOT))
def test_a_stage_imports_only_what_its_image_holds(stage: str) -> None:
    assert violations(ROOT, stage) == []


def test_every_stage_and_the_service_are_looked_at() -> None:
    stages = {"deploy", "evaluate", "gate", "ingest", "merge", "quantize", "reject", "resolve", "split", "train"}
    assert {*stages, "serve"} <= set(folders(ROOT))


def graph(root: Path) -> dict[str, set[str]]:
    """Every module of ours, with those that it imports."""
    files = {path: module_name(path, root) for top in OURS for path in sorted((root / top).rglob("*.py"))}
    names = set(files.values())
    found: dict[str, set[str]] = {}
    for path, name in files.items():
        wanted = {m if m in names else m.rpartition(".")[0] for m in imports(path, root)}
        found[name] = {m for m in wanted if m in names and m != name}
    return found


def module_name(path: Path, root: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def by_folder(modules: dict[str, set[str]], root: Path) -> dict[str, set[str]]:
    """The same graph, of folders."""

    def of(name: str) -> str:
        return name if (root.joinpath(*name.split(".")) / "__init__.py").is_file() else name.rpartition(".")[0]

    found: dict[str, set[str]] = {}
    for name, wanted in modules.items():
        found.setdefault(of(name), set()).update(of(m) for m in wanted if of(m) != of(name))
    return found


def cycle(modules: dict[str, set[str]]) -> list[str]:
    """A cycle of imports, or nothing."""
    try:
        [*TopologicalSorter(modules).static_order()]
    except CycleError as error:
        return [*error.args[1]]
    return []


def test_no_import_runs_upwards() -> None:
    def layer(name: str) -> int:
        return LAYERS["components.shared" if f"{name}.".startswith("components.shared.") else name.partition(".")[0]]

    modules = graph(ROOT)
    assert len(modules) > 150
    assert [f"{name} imports {m}" for name, wanted in modules.items() for m in wanted if layer(m) > layer(name)] == []


def test_no_modules_import_one_another() -> None:
    assert cycle(graph(ROOT)) == []
    assert cycle({"a": {"b"}, "b": {"a"}})


def test_no_folders_import_one_another() -> None:
    below = {name: wanted for name, wanted in by_folder(graph(ROOT), ROOT).items() if name not in ROOTS}
    assert cycle({name: wanted - ROOTS for name, wanted in below.items()}) == []


def test_only_train_imports_torch() -> None:
    files = sorted((ROOT / "components").rglob("*.py"))
    torch = {path for path in files for m in imports(path, ROOT) if m.split(".")[0] in ("torch", "torchvision")}
    assert torch
    assert {path.relative_to(ROOT / "components").parts[0] for path in torch} == {"train"}


def test_the_shared_contracts_need_the_standard_library_alone() -> None:
    for name in ("contracts", "runtime/stage_interface", "privacy/keyed_hash", "storage/image_source"):
        modules = imports(ROOT / "components" / "shared" / f"{name}.py", ROOT)
        others = {m for m in modules if m.split(".")[0] not in sys.stdlib_module_names}
        assert {m for m in others if not m.startswith("components.shared.")} == set(), name


PROJECT = """
[dependency-groups]
common = ["pillow>=10"]
small = [{ include-group = "common" }, "numpy"]
"""
LEGAL = (
    "import json\nfrom PIL import Image\nimport numpy.linalg\nfrom components.shared import kept\nfrom . import more\n"
)
INTERFACE_LEGAL = "from kfp import dsl\nfrom kfp.dsl import Input\nfrom components.stage import stage\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository that keeps the rule."""
    files = {
        "pyproject.toml": PROJECT,
        "components/__init__.py": "",
        "components/stage.py": "",
        "components/shared/__init__.py": "",
        "components/shared/kept.py": "from components.shared.deeper import x\n",
        "components/shared/deeper.py": "import hashlib\n",
        "components/shared/unused.py": "import torch\n",
        "components/small/__init__.py": "",
        "components/small/small.py": LEGAL,
        "components/small/more.py": "",
        "components/small/component.py": INTERFACE_LEGAL,
        "components/other/__init__.py": "",
        "components/other/other.py": "",
        "workflows/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_tree_that_keeps_the_rule_passes(tree: Path) -> None:
    assert violations(tree, "small") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line", "module"),
    [
        ("small/small.py", "import torch", "torch"),
        ("small/more.py", "from torch import nn", "torch.nn"),
        ("small/small.py", "def f():\n    import pyarrow.parquet", "pyarrow.parquet"),
        ("small/small.py", "from components.other import other", "components.other.other"),
        ("small/small.py", "from ..other.other import x", "components.other.other"),
        ("small/small.py", "from workflows import run", "workflows.run"),
        ("small/small.py", "from kfp import dsl", "kfp.dsl"),
        ("small/small.py", "from components.stage import stage", "components.stage"),
        ("small/small.py", "import no_such_package", "no_such_package"),
        ("shared/deeper.py", "import pyarrow", "pyarrow"),
        ("shared/deeper.py", "from components.shared import unused", "torch"),
        ("shared/kept.py", "from workflows import run", "workflows.run"),
        ("small/component.py", "from components.small.small import small", "components.small.small"),
        ("small/component.py", "import numpy", "numpy"),
    ],
)
def test_a_violation_is_named_with_its_file(file: str, line: str, module: str, tree: Path) -> None:
    with (tree / "components" / file).open("a") as opened:
        opened.write(f"{line}\n")
    where = "shared/unused.py" if "unused" in line else file
    assert violations(tree, "small") == [f"components/{where} imports {module}"]
