"""Which image each stage runs in: ours below a registry's address, or one that a team brings; pinned by digest."""

from __future__ import annotations

import re
from collections.abc import Iterable

from components.shared.errors import UsageError
from components.shared.runtime.interface import nearest, stages
from components.stage import image

REFERENCE = re.compile(
    r"(?:(?P<host>(?:[\w.-]+\.[\w.-]+|localhost|[\w.-]+(?=:\d))(?::\d+)?)/)?"
    r"(?P<path>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
"""An image's name: where it is, what it is called, its tag, its digest."""


def choose(where: str, brought: Iterable[str]) -> dict[str, str]:
    """The image of each stage: medloop's own below `where` (registry/prefix:tag), or the one of `stage=image`."""
    prefix, tag = _split(where)
    images = {stage: image(stage) for stage in stages()}
    if prefix or tag:
        name = f"{prefix}/medloop-" if prefix else "medloop-"
        images = {stage: f"{name}{stage}:{tag or 'latest'}" for stage in images}
    for assignment in brought:
        stage, equals, name = assignment.partition("=")
        if not equals or not name:
            raise UsageError(f"--image takes stage=image, and got {assignment!r}. Write, say, --image train=mine:1.0.")
        if stage not in images:
            raise UsageError(f"There is no stage {stage!r}.{nearest(stage, images)} Stages: {', '.join(images)}.")
        images[stage] = name
    for name in images.values():
        if not REFERENCE.fullmatch(name):
            raise UsageError(f"{name!r} is no name of an image. Write registry/path/name:tag in small letters.")
    return images


def _split(where: str) -> tuple[str, str]:
    prefix, colon, tag = where.rstrip("/").rpartition(":")
    port = tag.isdigit() and "/" not in prefix and (prefix == "localhost" or "." in prefix)
    return (prefix.rstrip("/"), tag) if colon and "/" not in tag and not port else (where.rstrip("/"), "")
