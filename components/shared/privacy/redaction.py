"""What a process may show and leave readable: secrets are replaced, control characters escaped, new files private.

This module alone knows what is secret. Standard library only.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TextIO
from urllib.parse import quote, unquote

from components.shared import environment
from components.shared.errors import UsageError

HIDDEN = "***"

NAMES = re.compile(r"(?:KEY|TOKEN|PASSWORD|PASSWD|SECRET|COOKIES?|CREDENTIALS?)$")
"""Environment variables whose value is a secret: MEDLOOP_SIGNING_KEY, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_TOKEN and
whatever else is named like them."""

WHOLE_ADDRESSES = ("MEDLOOP_NOTIFY_URL",)
"""Addresses of which the path is a secret too: webhooks carry their token there."""

SHORTEST, SHORTEST_OF_OTHERS = 4, 8
"""Shorter values are not searched for, since they would match everywhere: of the variables that medloop and its
libraries read, and of others."""
_READ_HERE = ("MEDLOOP_", "AWS_", "MLFLOW_", "KF_")

_HEXADECIMAL = re.compile(r"[0-9a-f:]+")
_PEM_LINE = re.compile(r"^[A-Za-z0-9+/=]{16,}$", re.MULTILINE)
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (
        ("private key-",),
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        HIDDEN,
    ),
    (("@",), re.compile(r"(?<=://)[^/\s'\"<>]+@"), f"{HIDDEN}@"),
    (
        ("signature=", "credential=", "token=", "sig=", "key=", "keyid=", "password=", "secret="),
        re.compile(
            r"([?&;](?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|(?:\w+[-_])?token|"
            r"api[-_]?key|key|password|secret)=)[^&\s'\"<>]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (
        ("authorization", "security-token", "cookie"),
        re.compile(
            r"(\b(?:proxy-)?authorization\b|\bx-amz-security-token\b|\b(?:set-)?cookie\b)(['\"]?\s*[:=]\s*['\"]?)"
            r"[^'\"\r\n]+",
            re.IGNORECASE,
        ),
        rf"\1\2{HIDDEN}",
    ),
    (("bearer", "basic"), re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
)
"""Forms of secrets, each with words of which one stands in every text that has the form: most texts have none."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Redactor:
    """Replaces by *** every secret of an environment, and all that has a secret's form."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._values = _alternatives(tuple(_secrets(environment)))

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        text = self._values.sub(HIDDEN, text)
        lowered = text.lower()
        for words, pattern, replacement in _PATTERNS:
            if any(word in lowered for word in words):
                text = pattern.sub(replacement, text)
        return text


def redact(text: str, variables: Mapping[str, str] | None = None) -> str:
    """Return the text without the secrets of the environment; for many texts make a `Redactor`."""
    return Redactor(environment.everything() if variables is None else variables)(text)


def redact_all(value: Any, variables: Mapping[str, str] | None = None) -> Any:
    """Return a JSON value with `redact` applied to each text in it."""
    return _each_text(value, Redactor(environment.everything() if variables is None else variables))


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with each text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _each_text(each, change) for name, each in value.items()}
    return [_each_text(each, change) for each in value] if isinstance(value, list | tuple) else value


def printable(text: str) -> str:
    """Return the text as one line, with line breaks, control and direction characters as JSON escapes.

    Text from outside can then neither begin a line of its own nor move the cursor of a terminal.
    """
    if text.isprintable():
        return text
    text = _COLOUR.sub("", text)
    return "".join(char if char.isprintable() or char in "\u00a0\u202f\u3000" else _escape(char) for char in text)


def printable_all(value: Any) -> Any:
    """Return a JSON value with `printable` applied to each text in it."""
    return _each_text(value, printable)


def one_line(text: str, what: str) -> str:
    """Return the text, or raise a ValueError where it could not be written on one line of a log as it is."""
    if printable(text) != text:
        raise UsageError(
            f"{what} contains a line break or a control character: {printable(text)!r}. Write it as plain text on one "
            "line."
        )
    return text


def protect_process() -> None:
    """Make new files private to their owner, and hide secrets in all that this process prints. Call it at start."""
    os.umask(0o077)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Redacted):
            setattr(sys, name, _Redacted(stream))


class _Redacted:
    """A text stream that replaces secrets in what is written to it: events, tracebacks, what libraries print."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._redact = stream, Redactor(environment.everything())

    def write(self, text: str) -> int:
        self._stream.write(self._redact(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escape(char: str) -> str:
    return "\\u007f" if char == "\x7f" else json.dumps(char)[1:-1]


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """The values of an environment that are not to be shown."""
    for name, value in environment.items():
        if NAMES.search(name):
            found = [value, *_PEM_LINE.findall(value), *(value.split(":") if _HEXADECIMAL.fullmatch(value) else ())]
        elif "://" in value or name in WHOLE_ADDRESSES:
            found = [*_of_address(value, name in WHOLE_ADDRESSES)]
        else:
            continue
        shortest = SHORTEST if name.startswith(_READ_HERE) else SHORTEST_OF_OTHERS
        yield from (each for each in found if len(each) >= shortest)


def _of_address(address: str, whole: bool) -> Iterator[str]:
    """The secrets in an address: user and password, also as a header carries them; all of it where that is secret."""
    rest = address.rpartition("://")[2]
    if whole:
        yield address
        yield rest.partition("/")[2]
    authority = rest.partition("/")[0] if "@" in rest.partition("/")[0] else rest
    login, found, _ = authority.rpartition("@")
    if found:
        user, _, password = login.partition(":")
        yield password or user
        yield base64.b64encode(unquote(login).encode()).decode()


@lru_cache(8)
def _alternatives(values: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern of these values in each form in which they may be written down."""
    written = {
        form
        for value in values
        for form in (value, value.strip(), unquote(value), quote(value, safe=""), json.dumps(value)[1:-1])
        if len(form) >= SHORTEST
    }
    return re.compile("|".join(re.escape(form) for form in sorted(written, key=len, reverse=True)) or r"(?!)")
