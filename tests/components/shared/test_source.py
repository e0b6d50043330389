"""A source is a listing of images, and its revision tells when one of them changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from components.shared import source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for name in ("A/one.png", "A/two.JPG", "B/deep/three.dcm", "patients.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_images_and_the_table_are_listed_by_name_and_nothing_else(root: Path, tmp_path: Path) -> None:
    for name in ("A/notes.txt", ".hidden/four.png", "A/.five.png", "A/patients.csv", "synth.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    (tmp_path / "outside.png").write_bytes(b"x")
    (root / "A" / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "A" / "dangling.png").symlink_to(tmp_path / "nothing.png")
    names = [entry.name for entry in source.entries(str(root))]
    assert names == ["A/one.png", "A/two.JPG", "B/deep/three.dcm", "patients.csv"]


def test_the_revision_changes_with_every_change_of_a_file(root: Path) -> None:
    def revision() -> str:
        return source.revision(source.entries(str(root)))

    seen = [revision()]
    assert revision() == seen[0]
    (root / "A" / "new.png").write_bytes(b"x")
    seen.append(revision())
    (root / "A" / "new.png").write_bytes(b"xy")
    seen.append(revision())
    os.utime(root / "A" / "new.png", ns=(1, 1))
    seen.append(revision())
    (root / "A" / "new.png").rename(root / "A" / "newer.png")
    seen.append(revision())
    assert len(set(seen)) == len(seen)
    (root / "A" / "newer.png").unlink()
    assert revision() == seen[0]


def test_the_place_of_a_source_does_not_matter(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "elsewhere")
    revisions = {source.revision(source.entries(str(place))) for place in (root, tmp_path / "elsewhere")}
    assert len(revisions) == 1


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("", ValueError, "No source was given"),
        ("nowhere", FileNotFoundError, "There is no source .*nowhere"),
        ("scans/A/one.png", NotADirectoryError, "is a file. Name the directory"),
    ],
)
def test_what_is_no_source_is_called_what_it_is(
    name: str, error: type[Exception], sentence: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=sentence):
        source.entries(name and str(tmp_path / name))
