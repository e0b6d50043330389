"""Writes a bill of materials of each image (CycloneDX, JSON) into build/sbom: `python -m images.sbom --help`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from images import inventory
from images.build import LABEL, ROOT, names, reference


def bill(image: str) -> str:
    """The bill of materials of an image, in CycloneDX JSON. The same image always gives the same text."""
    about = json.loads(_docker("image", "inspect", image))[0]
    inside = ("run", "--rm", "--interactive", "--network=none", "--read-only", "--entrypoint=python3", image, "-")
    found = json.loads(_docker(*inside, given=Path(inventory.__file__).read_text(encoding="utf-8")))
    labels = about["Config"]["Labels"] or {}
    itself = Component(
        name=labels.get(LABEL + "title", image),
        version=labels.get(LABEL + "version"),
        description=labels.get(LABEL + "description"),
        type=ComponentType.CONTAINER,
        bom_ref=about["Id"],
        purl=PackageURL("oci", None, image.rpartition("/")[2].partition(":")[0], about["Id"]),
    )
    parts = [_system(found["system"])] if found["system"] else []
    parts.append(_package("generic", "python", found["python"], ["PSF-2.0"]))
    parts += [_package("pypi", one["name"], one["version"], one["licences"]) for one in found["pypi"]]
    distribution = found["system"].get("id", "debian")
    series = {"distro": f"{distribution}-{found['system']['version_id']}"} if "version_id" in found["system"] else {}
    parts += [
        _package(
            "deb", one["name"], one["version"], one["licences"], distribution, {"arch": one["architecture"], **series}
        )
        for one in found["deb"]
    ]
    made = datetime.fromisoformat(about["Created"])
    bom = Bom(
        components=parts,
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, about["Id"]),
        metadata=BomMetaData(component=itself, timestamp=made),
    )
    bom.register_dependency(itself, parts)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1) + "\n"


def _system(told: dict[str, str]) -> Component:
    name, version = told.get("id", "linux"), told.get("version_id")
    return Component(
        name=name,
        version=version,
        description=told.get("pretty_name"),
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=f"system:{name}@{version}",
    )


def _package(
    kind: str,
    name: str,
    version: str,
    licences: list[str],
    space: str | None = None,
    more: dict[str, str] | None = None,
) -> Component:
    purl = PackageURL(kind, space, name, version, more)
    return Component(name=name, version=version, purl=purl, bom_ref=purl.to_string(), licenses=_licences(licences))


def _licences(told: list[str]) -> list[License]:
    """The licences in the form that the schema wants: one expression alone, or any number of names."""
    made = [LicenseFactory().make_from_string(words) for words in told]
    if len(made) > 1:
        return [DisjunctiveLicense(name=x.value) if isinstance(x, LicenseExpression) else x for x in made]
    return made


def _docker(*arguments: str, given: str = "") -> str:
    done = subprocess.run(["docker", *arguments], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`docker {arguments[0]}` says: {done.stderr.strip()}")
    return done.stdout


def main(argv: list[str]) -> int:
    """Write the bills of what the arguments name; gives the exit status."""
    parser = argparse.ArgumentParser("python -m images.sbom", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a stage, or serve; all by default")
    parser.add_argument("--tag", default="latest", help="that of the images (default latest)")
    parser.add_argument("--registry", default="", help="what stands before their names")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "sbom", help="the directory to write to")
    asked = parser.parse_args(argv)
    asked.output.mkdir(parents=True, exist_ok=True)
    for name in asked.names or names():
        image = reference(name, asked.registry, asked.tag)
        path = asked.output / f"medloop-{name}.cdx.json"
        try:
            text = bill(image)
        except (RuntimeError, FileNotFoundError) as error:
            sys.stderr.write(f"There is no bill of {image}: {error}\nBuild the images first, with: make images\n")
            return 1
        path.write_text(text, encoding="utf-8")
        print(f"{path}  {_summary(text)}")
    return 0


def _summary(text: str) -> str:
    parts: list[dict[str, Any]] = json.loads(text)["components"]
    kinds = [part.get("purl", "").partition("/")[0] for part in parts]
    return f"{kinds.count('pkg:pypi')} Python and {kinds.count('pkg:deb')} Debian packages"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
