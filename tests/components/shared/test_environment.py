"""One module reads the environment, and one page lists what it reads."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

from components.shared import environment

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("components", "medloop", "serving", "workflows")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
PRODUCT = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
NAME = re.compile(r"(?:MEDLOOP|AWS|KF_PIPELINES|MLFLOW|CUBLAS|OMP)_[A-Z0-9_]*[A-Z0-9]")


def test_no_other_module_reads_the_environment() -> None:
    for path, tree in PRODUCT.items():
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        used = bool(names & {"environ", "environb", "getenv", "putenv", "unsetenv"})
        assert used == (path == Path(environment.__file__)), path


def test_the_page_lists_every_variable_that_is_read() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    read = set()
    for tree in PRODUCT.values():
        strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        read |= {text for text in strings if isinstance(text, str) and NAME.fullmatch(text)}
    elsewhere = {"MLFLOW_DISABLE_TELEMETRY", "MLFLOW_TRACKING_TOKEN", "AWS_CONFIG_FILE"}
    assert read - elsewhere - set(re.findall(r"`([A-Z0-9_]+)`", page)) == set()
    assert set(re.findall(r"`(MEDLOOP_[A-Z0-9_]+)`", page)) <= read


def test_a_block_with_other_variables_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOP_HOME", "before")
    monkeypatch.delenv("MEDLOOP_STORE", raising=False)
    with environment.replaced({"MEDLOOP_HOME": "within", "MEDLOOP_STORE": "s"}):
        assert (environment.get("MEDLOOP_HOME"), environment.get("MEDLOOP_STORE")) == ("within", "s")
    assert os.environ["MEDLOOP_HOME"] == "before"
    assert environment.get("MEDLOOP_STORE", "default") == "default"
