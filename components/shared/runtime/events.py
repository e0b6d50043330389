"""Log events of stages: as JSON lines in containers and under the runner, as text in a terminal."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from components.shared import environment
from components.shared.errors import is_foreseen
from components.shared.privacy.secret_redaction import printable, redact

log = logging.getLogger("medloop")


def sentence(error: Exception) -> str:
    """Return the text of an error without the name of a file, which may be a patient's.

    For a fault in medloop, return the error's type and place.
    """
    if not is_foreseen(error):
        place = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(f", {Path(frame.filename).name} line {frame.lineno}" for frame in place)
        return f"{type(error).__name__}: {redact(str(error))} (a fault in medloop{where}; please report it)"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror or type(error).__name__}, on a file whose name is not shown."
    if isinstance(error, OSError) and len(error.args) > 1:
        return redact(str(error.args[1]))
    return redact(str(error)) or type(error).__name__


def event(what: str, stage: str, **fields: Any) -> None:
    """Log an event of a stage with its fields."""
    log.info(what, extra={"fields": {"stage": stage, **fields}})


def progress(stage: str, done: float, total: int, note: str = "") -> None:
    """Log the progress of a stage: `done` of `total`, with a note, which may begin with the unit."""
    event("progress", stage, done=done, total=total, note=note)


class JsonLines(logging.Formatter):
    """Format an event as one line of JSON: its name, its fields, and its level if it is not INFO."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = {"event": record.getMessage(), "at": round(record.created, 3), **fields}
        if record.levelno != logging.INFO:
            line["level"] = record.levelname
        return printable(json.dumps(line, ensure_ascii=False, default=str))


class Sentences(logging.Formatter):
    """Format an event as one line of text."""

    def format(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, "fields", {}))
        stage = fields.pop("stage", "")
        if record.getMessage() == "progress":
            return printable(f"{stage:9} {fields['done']}/{fields['total']} {fields['note']}")
        shown = {name: value for name, value in fields.items() if name not in ("key", "outputs", "spent")}
        values = shown.pop("values", {})
        rest = " ".join(f"{name}={value}" for name, value in {**shown, **values}.items())
        return printable(f"{stage:9} {record.getMessage()} {rest}".rstrip())


def configure_logging() -> None:
    """Send medloop's events to standard error: as text in a terminal, as JSON lines elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    human = sys.stderr.isatty() and environment.get("MEDLOOP_LOG") != "json"
    handler.setFormatter(Sentences() if human else JsonLines())
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
