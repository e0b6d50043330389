"""Decoding processes for tests, and what they give of a file."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from components.ingest import file_formats
from components.shared.imaging.decode_sandbox import Decoder, EndedError, Template, limit_resources, limits
from components.shared.imaging.image_files import Decoding


def work(data: bytes, how: dict[str, Any]) -> bytes:
    """The shapes of a file's masters, or why it is refused."""
    shapes, refused = [], ""
    with limit_resources(limits(data)):
        try:
            shapes = [master.pixels.shape for master in file_formats.read_images(data, Decoding(**how))]
        except ValueError as error:
            refused = str(error)
    return json.dumps([shapes, refused]).encode()


@contextmanager
def watched(decoder: Decoder) -> Iterator[list[float]]:
    """The CPU seconds and the kilobytes of memory that a process has at the most taken, looked at every few ms."""
    most, done = [decoder.seconds, 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], decoder.seconds)
            with suppress(OSError):
                for line in Path(f"/proc/{decoder._pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM"):
                        most[1] = max(most[1], float(line.split()[1]))

    thread = threading.Thread(target=watch)
    thread.start()
    yield most
    done.set()
    thread.join()


class Outcome(NamedTuple):
    """What becomes of a file."""

    shapes: list[list[int]]
    refused: str


class Decoders:
    """A decoding process, and another one where a file ended it."""

    def __init__(self, function: str = "tests.components.shared.decoders:work") -> None:
        self._template = Template(function)
        self._decoder: Decoder | None = None
        self.seconds, self.mebibytes = 0.0, 0.0

    def outcome(self, data: bytes, **how: Any) -> Outcome:
        """What becomes of a file; leaves the CPU seconds and the most memory, that of the process itself included."""
        self._decoder = self._decoder or Decoder(self._template)
        before = self._decoder.seconds
        self._decoder.send(data, how)
        with watched(self._decoder) as most:
            try:
                shapes, refused = json.loads(self._decoder.receive())
                self.seconds = self._decoder.seconds - before
            except EndedError as end:
                shapes, refused = [], end.sentence()
                self.seconds = most[0] - before
                self._decoder.close()
                self._decoder = None
        self.mebibytes = most[1] / 1024
        return Outcome(shapes, refused)

    def close(self) -> None:
        if self._decoder:
            self._decoder.close()
        self._template.close()
