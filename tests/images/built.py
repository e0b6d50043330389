"""The images under test: those that MEDLOOP_IMAGES names (registry/prefix:tag), or what `make images` calls them."""

from __future__ import annotations

import os
import subprocess
from functools import cache

import pytest

from components.shared.runtime.code_and_package_versions import code_version
from workflows.image_names import choose

WHERE = os.environ.get("MEDLOOP_IMAGES", "")
ISOLATED = (
    "--rm",
    "--network=none",
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)


def image(name: str) -> str:
    """The name of a stage's image, or of the service's."""
    return choose(WHERE, [])["split"].replace("medloop-split", f"medloop-{name}")


def docker(*arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    """What a docker command said, and how it ended."""
    command = ["docker", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=240)


def python(name: str, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What Python says to this in an image that may write nothing and reaches nothing."""
    return docker("run", *ISOLATED, *options, "--interactive", "--entrypoint=python3", image(name), "-", given=code)


@cache
def why_not(name: str) -> str:
    """Why an image cannot be tested, or nothing."""
    code = (
        f"from components.shared.runtime.code_and_package_versions import code_version; print(code_version({name!r}))"
    )
    try:
        done = python(name, code)
    except FileNotFoundError:
        return "there is no docker command on this machine"
    if done.returncode:
        return (
            f"{image(name)} does not run here ({done.stderr.strip().partition(chr(10))[0]}); build it with: make images"
        )
    if done.stdout.strip() != code_version(name):
        return f"{image(name)} was made of other code; build it with: make images"
    return ""


def require(name: str) -> None:
    """Skip the test where this image cannot be tested."""
    if reason := why_not(name):
        pytest.skip(reason)
