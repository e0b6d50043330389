"""What is installed is what was pinned: packages by hash, actions by commit, bases named in one place, no GPL."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from images import licences
from images.choose_constraints import PLATFORM, pins
from images.hashes import FILE, hashes

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_each_pinned_package_has_a_hash_of_that_version_and_no_host_is_named() -> None:
    found = [LINE.fullmatch(line) for line in lines(FILE)]
    assert all(found)
    held = {canonical(match[1]): match[2] for match in found if match}
    pinned = {
        canonical(name): version for name, version in (line.split("==") for line in lines(ROOT / "constraints.txt"))
    }
    assert held == pinned
    assert "://" not in FILE.read_text(encoding="utf-8")


def test_hashes_are_written_from_a_report_of_pip() -> None:
    item = {
        "metadata": {"name": "one", "version": "1.2"},
        "download_info": {"url": "https://host.example/one.whl", "archive_info": {"hashes": {"sha256": "ab" * 32}}},
    }
    text = hashes(json.dumps({"install": [item]}))
    assert lines_of(text) == [f"one==1.2 --hash=sha256:{'ab' * 32}"]
    assert "host.example" not in text


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("asked", "here", "file"),
    [
        ("yes", PLATFORM, "hashes.txt"),
        ("required", PLATFORM, "hashes.txt"),
        ("no", PLATFORM, "constraints.txt"),
        ("yes", ("CPython", "3.12", "Linux", "x86_64", "glibc"), "constraints.txt"),
        ("yes", ("CPython", "3.11", "Linux", "aarch64", "glibc"), "constraints.txt"),
        ("yes", ("CPython", "3.11", "Linux", "x86_64", ""), "constraints.txt"),
    ],
)
def test_hashes_are_used_where_they_hold_and_it_is_said_where_they_do_not(
    asked: str, here: tuple[str, ...], file: str
) -> None:
    found, why = pins(asked, here)
    assert found == file
    assert ("by version" in why) is (file == "constraints.txt")


def test_pip_refuses_a_file_with_another_hash(tmp_path: Path) -> None:
    """As `make install` and the images use it: constraints with hashes, and requirements without."""
    package = tmp_path / "one-1.0-py3-none-any.whl"
    build_wheel(package)
    constraints = tmp_path / "hashes.txt"
    statuses = {}
    for name, digest in (("right", sha256(package)), ("wrong", "0" * 64)):
        constraints.write_text(f"one==1.0 --hash=sha256:{digest}\n")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-index", "--quiet"]
        done = subprocess.run(
            [*command, "--find-links", str(tmp_path), "-c", str(constraints), "one"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        statuses[name] = done.returncode, "DO NOT MATCH THE HASHES" in done.stderr
    assert statuses == {"right": (0, False), "wrong": (1, True)}


def build_wheel(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("one.py", "")
        wheel.writestr("one-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1.0\n")
        wheel.writestr("one-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("one-1.0.dist-info/RECORD", "")


def sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_actions_are_pinned_by_commit_with_their_version_beside() -> None:
    for path in (ROOT / ".github" / "workflows").iterdir():
        used = re.findall(r"uses: *(.+)", path.read_text(encoding="utf-8"))
        assert used
        for action in used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v[\d.]+", action), action


def test_each_image_is_built_on_a_base_that_an_argument_names() -> None:
    """So it can be given by digest (docs/images.md), and both have the same one."""
    bases = set()
    for path in (ROOT / "images").glob("*.Dockerfile"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"^FROM (.+)$", text, re.MULTILINE) == ["${BASE}"]
        bases |= set(re.findall(r"^ARG BASE=(.+)$", text, re.MULTILINE))
    assert len(bases) == 1


def test_no_package_is_under_the_gpl_and_each_says_what_it_is_under() -> None:
    packages = list(licences.installed())
    assert len(packages) > 100
    assert [each for each in packages if not each.licence] == []
    assert [each for each in packages if licences.COPYLEFT.search(each.licence)] == []
    for licence in ("GPL-3.0-only", "AGPL-3.0", "GNU General Public License v3", "GNU Affero General Public License"):
        assert licences.COPYLEFT.search(licence)


def test_the_page_of_licences_is_as_it_would_be_written_now() -> None:
    """Rows of packages that are not installed on this platform cannot be checked."""
    written = licences.PAGE.read_text(encoding="utf-8")
    assert written.startswith(licences.HEAD)
    rows = set(written.splitlines())
    assert [row for row in licences.page().splitlines() if row not in rows] == []
