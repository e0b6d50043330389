"""One template of decoding processes for many tests: it imports the decoders' libraries once instead of each time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from components.ingest import decode_parallel
from components.shared.imaging.decode_sandbox import Template


class Shared(Template):
    """A template that stays after an ingest has closed it."""

    def close(self) -> None:
        """Do nothing: the fixture ends it."""

    def end(self) -> None:
        """End the template."""
        super().close()


@pytest.fixture(scope="module")
def _templates() -> Iterator[dict[str, Shared]]:
    made: dict[str, Shared] = {}
    yield made
    for template in made.values():
        template.end()


@pytest.fixture
def shared_template(_templates: dict[str, Shared], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each ingest take its decoding processes from one template for each function and environment."""

    def template(function: str) -> Shared:
        ignored = "PYTEST_CURRENT_TEST"
        key = repr((function, sorted((name, value) for name, value in os.environ.items() if name != ignored)))
        if key not in _templates:
            _templates[key] = Shared(function)
        return _templates[key]

    monkeypatch.setattr(decode_parallel, "Template", template)
