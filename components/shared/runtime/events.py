"""Events: one JSON line each in containers and under the runner, a sentence in a terminal."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from components.shared import environment
from components.shared.errors import is_foreseen
from components.shared.privacy.redaction import printable, redact

log = logging.getLogger("medloop")


def sentence(error: Exception) -> str:
    """Return the text of an error without a file's name that the system put in, which may be a patient's.

    For a fault of ours it names the kind of error and the place.
    """
    if not is_foreseen(error):
        place = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(f", {Path(frame.filename).name} line {frame.lineno}" for frame in place)
        return f"{type(error).__name__}: {redact(str(error))} (a fault in medloop{where}; please report it)"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror or type(error).__name__}, on a file whose name is not written down here."
    if isinstance(error, OSError) and len(error.args) > 1:
        return redact(str(error.args[1]))
    return redact(str(error)) or type(error).__name__


def event(what: str, stage: str, **fields: Any) -> None:
    """Tell those who watch (a person, the runner, a log collector) that something happened in a stage."""
    log.info(what, extra={"fields": {"stage": stage, **fields}})


def progress(stage: str, done: float, total: int, note: str = "") -> None:
    """Tell how far a stage has come: `done` of `total`, and a word about it, which may say first what is counted."""
    event("progress", stage, done=done, total=total, note=note)


class JsonLines(logging.Formatter):
    """One JSON object a line, with the event's name, its fields, and level where it is not the usual one."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = {"event": record.getMessage(), "at": round(record.created, 3), **fields}
        if record.levelno != logging.INFO:
            line["level"] = record.levelname
        return printable(json.dumps(line, ensure_ascii=False, default=str))


class Sentences(logging.Formatter):
    """A line for people."""

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
    """Send medloop's events to standard error: sentences in a terminal, JSON lines elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    human = sys.stderr.isatty() and environment.get("MEDLOOP_LOG") != "json"
    handler.setFormatter(Sentences() if human else JsonLines())
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
