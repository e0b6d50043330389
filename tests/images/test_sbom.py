"""The bill of materials: valid by the field's own schema, complete against what the image itself says, repeatable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from images.build import names
from images.inventory import debian_packages
from images.sbom import bill
from tests.images.built import docker, image, python, require

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return str(request.param)


def purls(text: str, kind: str) -> dict[str, dict[str, Any]]:
    """The parts of one kind, by name."""
    parts = json.loads(text)["components"]
    return {part["name"]: part for part in parts if part.get("purl", "").startswith(f"pkg:{kind}/")}


def test_a_bill_is_valid_and_lists_what_the_image_holds(name: str) -> None:
    text = bill(image(name))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    code = "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    installed = json.loads(python(name, code).stdout)
    listed = purls(text, "pypi")
    assert {key: part["version"] for key, part in listed.items() if key in installed} == installed
    for part in listed.values():
        assert part["purl"].endswith(f"@{part['version']}")
    about = json.loads(text)["metadata"]["component"]
    assert about["name"] == f"medloop-{name}"
    assert about["type"] == "container"
    assert about["bom-ref"] == docker("image", "inspect", "--format={{.Id}}", image(name)).stdout.strip()
    everything = next(one for one in json.loads(text)["dependencies"] if one["ref"] == about["bom-ref"])["dependsOn"]
    assert {part["bom-ref"] for part in json.loads(text)["components"]} == set(everything)


def test_a_bill_knows_the_base_image_and_licences_and_is_the_same_each_time() -> None:
    require("split")
    text = bill(image("split"))
    assert text == bill(image("split"))
    told = docker("run", "--rm", "--entrypoint=dpkg-query", image("split"), "-Wf", "${Package} ${Version}\n").stdout
    debian = purls(text, "deb")
    assert {key: part["version"] for key, part in debian.items()} == dict(line.split() for line in told.splitlines())
    assert purls(text, "generic")["python"]["version"].startswith("3.")
    python_parts = purls(text, "pypi")
    assert python_parts["minio"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert "BSD-3-Clause" in python_parts["numpy"]["licenses"][0]["expression"]
    assert [key for key, part in python_parts.items() if not part.get("licenses")] == []


def test_a_base_that_is_not_debian_has_no_debian_packages(tmp_path: Path) -> None:
    assert list(debian_packages(tmp_path)) == []


def test_packages_that_were_removed_or_whose_licence_is_prose_are_told_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    paragraphs = [
        "Package: one\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2-3\nDescription: a\n more\n .\n",
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n",
        "Package: two\nStatus: install ok installed\nArchitecture: all\nVersion: 2\n",
    ]
    (tmp_path / "var/lib/dpkg/status").write_text("\n".join(paragraphs))
    for package, text in (
        ("one", "Format: x\n\nLicense: GPL-2+\n text\nLicense: GPL-2+\nLicense: Expat\n"),
        ("two", "Prose.\nLicense: x\n"),
    ):
        (tmp_path / "usr/share/doc" / package).mkdir(parents=True)
        (tmp_path / "usr/share/doc" / package / "copyright").write_text(text)
    assert [*debian_packages(tmp_path)] == [
        {"name": "one", "version": "1:2-3", "architecture": "amd64", "licences": ["Expat", "GPL-2+"]},
        {"name": "two", "version": "2", "architecture": "all", "licences": []},
    ]


def test_an_image_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    require("split")
    command = [sys.executable, "-W", "error", "-m", "images.sbom", "split", "--tag=never-built", f"--output={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "There is no bill of medloop-split:never-built" in done.stderr
    assert "make images" in done.stderr
    assert list(tmp_path.iterdir()) == []
