"""A stage's code version follows what the code means, and only the code that the stage reaches."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.shared.runtime.code_and_package_versions import code_version, package_versions
from components.shared.runtime.stage_interface import COMPONENTS, stages

PROGRAM = (
    "from components.shared.runtime.stage_interface import stages\n"
    "from components.shared.runtime.code_and_package_versions import code_version\n"
    "for stage in stages(): print(stage, code_version(stage))\n"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code."""
    shutil.copytree(COMPONENTS, tmp_path / "components", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def versions(tree: Path) -> dict[str, str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tree, capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


def changed(tree: Path, before: dict[str, str]) -> set[str]:
    return {stage for stage, version in versions(tree).items() if version != before[stage]}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} holds no {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.slow
def test_comments_docstrings_and_formatting_change_no_version(tree: Path) -> None:
    before = versions(tree)
    assert set(before) == set(stages())
    for path in sorted((tree / "components").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        path.write_text(f"# A comment.\n\n\n{text}\n# Another.\n", encoding="utf-8")
    shared = tree / "components" / "shared"
    edit(shared / "errors.py", '    """Base of', '    """The base of')
    edit(shared / "imaging" / "views.py", '"""', '"""Reworded. ')
    assert changed(tree, before) == set()


@pytest.mark.slow
def test_a_change_of_code_changes_the_stages_that_reach_it(tree: Path) -> None:
    before = versions(tree)
    edit(tree / "components" / "gate" / "gate.py", "LATE = 0.75", "LATE = 0.7")
    assert changed(tree, before) == {"gate"}
    for file in (tree / "components" / "split").glob("*.py"):
        file.write_text(file.read_text(encoding="utf-8") + "\nX = 1\n", encoding="utf-8")
    assert changed(tree, before) == {"gate", "split"}
    with (tree / "components" / "train" / "component.py").open("a") as opened:
        opened.write("X = 1\n")
    assert changed(tree, before) == {"gate", "split"}


@pytest.mark.slow
def test_the_store_and_the_runtime_change_no_training(tree: Path) -> None:
    before = versions(tree)
    for name in ("storage/s3.py", "storage/store.py", "runtime/work.py", "ledger/release_log.py"):
        with (tree / "components" / "shared" / name).open("a") as file:
            file.write("X = 1\n")
    assert not changed(tree, before) & {"split", "merge", "train", "evaluate", "quantize"}
    assert "deploy" in changed(tree, before)


@pytest.mark.slow
def test_a_template_counts_for_the_stages_that_render_it(tree: Path) -> None:
    before = versions(tree)
    with next((tree / "components" / "evaluate").glob("*.j2")).open("a") as file:
        file.write("more")
    assert changed(tree, before) == {"evaluate"}
    edit(tree / "components" / "deploy" / "card.py", '"""', '"""Reworded. ')
    assert changed(tree, before) == {"evaluate"}


def test_the_versions_are_those_of_the_packages_that_a_stage_imports() -> None:
    assert {"numpy", "torch", "onnx"} <= set(package_versions("train"))
    assert "torch" not in package_versions("evaluate")
    assert "minio" not in package_versions("train")
    absent = {
        stage: name for stage in stages() for name, version in package_versions(stage).items() if version == "absent"
    }
    assert absent == {}  # else a package has a distribution of another name, and its version would not count
    assert code_version("split") == code_version("split")
