"""Image of each stage: medloop's own in a registry, or a custom one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from components.shared.errors import UsageError
from components.shared.runtime.stage_interface import nearest, stages
from components.stage import image

REFERENCE = re.compile(
    r"(?:(?P<host>(?:[\w.-]+\.[\w.-]+|localhost|[\w.-]+(?=:\d))(?::\d+)?)/)?"
    r"(?P<path>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
"""An image's name: host, path, tag and digest."""


def parse(name: str) -> re.Match[str]:
    """Return the parts of an image's name; raise UsageError if it is invalid."""
    match = REFERENCE.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is not a valid image name. Write registry/path/name:tag in lower case.")
    return match


def choose(registry: str, overrides: Iterable[str]) -> dict[str, str]:
    """Return the image of each stage: medloop's own in `registry` (registry/prefix:tag), or that in `stage=image`."""
    prefix, tag = _split(registry)
    images = {stage: image(stage) for stage in stages()}
    if prefix or tag:
        name = f"{prefix}/medloop-" if prefix else "medloop-"
        images = {stage: f"{name}{stage}:{tag or 'latest'}" for stage in images}
    for assignment in overrides:
        stage, equals, name = assignment.partition("=")
        if not equals or not name:
            raise UsageError(f"--image is {assignment!r}; write stage=image, such as --image train=mine:1.0.")
        if stage not in images:
            raise UsageError(f"There is no stage {stage!r}.{nearest(stage, images)} Stages: {', '.join(images)}.")
        images[stage] = name
    for name in images.values():
        parse(name)
    return images


def _split(registry: str) -> tuple[str, str]:
    prefix, colon, tag = registry.rstrip("/").rpartition(":")
    port = tag.isdigit() and "/" not in prefix and (prefix == "localhost" or "." in prefix)
    return (prefix.rstrip("/"), tag) if colon and "/" not in tag and not port else (registry.rstrip("/"), "")
