"""Decoding processes for tests, and what they give of a file."""

from __future__ import annotations

import json
import resource
from typing import Any, NamedTuple

from components.ingest import readers
from components.shared.decoder import Decoder, EndedError, Template, limited, limits
from components.shared.pixels import Decoding


def work(data: bytes, how: dict[str, Any]) -> bytes:
    """The shapes of a file's masters, or why it is refused; and the most memory that the process has had, in MiB."""
    shapes, refused = [], ""
    with limited(limits(data)):
        try:
            shapes = [master.pixels.shape for master in readers.read(data, Decoding(**how))]
        except ValueError as error:
            refused = str(error)
    return json.dumps([shapes, refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]).encode()


class Outcome(NamedTuple):
    """What becomes of a file."""

    shapes: list[list[int]]
    refused: str


class Decoders:
    """A decoding process, and another one where a file ended it."""

    def __init__(self, function: str = "tests.components.shared.decoders:work") -> None:
        self._template = Template(function)
        self._decoder: Decoder | None = None

    def outcome(self, data: bytes, **how: Any) -> Outcome:
        self._decoder = self._decoder or Decoder(self._template)
        self._decoder.send(data, how)
        try:
            shapes, refused, _ = json.loads(self._decoder.receive())
        except EndedError as end:
            self._decoder.close()
            self._decoder = None
            return Outcome([], end.sentence())
        return Outcome(shapes, refused)

    def close(self) -> None:
        if self._decoder:
            self._decoder.close()
        self._template.close()
