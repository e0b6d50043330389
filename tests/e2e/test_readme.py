"""What the README shows works as it stands there, in a copy of the project, from top to bottom."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.loop import README, ROOT, shown_as


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project's files in another place, with the environment that the tests run in."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    assert (tmp_path / ".venv" / ".installed").exists(), "install with `make install`; the README begins there"
    for name in ("pyproject.toml", "constraints.txt", "hashes.txt"):
        os.utime(tmp_path / name, (0, 0))  # installed is what runs this test
    return tmp_path


@pytest.mark.timeout(1500)
def test_every_command_of_the_readme_works(copy: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MEDLOOP_", "MLFLOW_"))}
    port = str(free_port())
    shown = shown_as("sh")
    assert len(shown) >= 8
    for block in shown:
        script = "make --dry-run test\n" if block.strip() == "make test" else block.replace("8080", port)
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=copy, env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if "predict" in script:
            assert '"prediction"' in done.stdout
            assert '"model_version"' in done.stdout
        if "policy.floors.accuracy=0.999" in script:
            assert "short of the required 0.999" in " ".join(done.stdout.split())


def test_the_readme_names_every_command() -> None:
    from typer.main import get_command

    from medloop.cli.main import app

    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert len(names) > 15
    assert {name for name in names if f"medloop {name}" not in README} == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs"])
def test_what_the_pages_link_to_is_there(page: str) -> None:
    pages = [ROOT / page] if page.endswith(".md") else sorted((ROOT / page).glob("*.md"))
    for path in pages:
        fences = re.findall(r"^ *```.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert {fence for fence in fences if not re.fullmatch(r" *```\w*", fence)} == set(), f"{path.name}: a fence"
        assert len(fences) % 2 == 0, f"{path.name}: a code block has no end"
        links = re.findall(r"\]\(((?!https?:)[^)#]*)(#[^)]*)?\)", path.read_text(encoding="utf-8"))
        for link, anchor in links:
            target = (path.parent / link) if link else path
            assert target.exists(), f"{path.name} links to {link}"
            if anchor and target.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor[1:] in slugs, f"{path.name} links to {link}{anchor}"
