"""Redact secrets and escape control characters in output, and make new files private.

Only this module defines what is secret. It uses only the standard library.
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
"""Names of environment variables with secret values: MEDLOOP_SIGNING_KEY, AWS_SECRET_ACCESS_KEY,
MLFLOW_TRACKING_TOKEN and others with such endings."""

WHOLE_ADDRESSES = ("MEDLOOP_NOTIFY_URL",)
"""Environment variables with addresses whose path is secret too: webhooks have their token there."""

MIN_LENGTH, MIN_LENGTH_OF_OTHERS = 4, 8
"""Minimum length of secrets to redact, in variables that medloop and its libraries read and in others. Shorter values
would match everywhere."""
_KNOWN_PREFIXES = ("MEDLOOP_", "AWS_", "MLFLOW_", "KF_")

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
"""Patterns of secrets, each with words of which every match contains one, so that most texts are skipped quickly."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Redactor:
    """Replaces secrets of an environment, and texts like secrets, by ***."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._values = _compile_alternatives(tuple(_secrets(environment)))

    def __call__(self, text: str) -> str:
        text = self._values.sub(HIDDEN, text)
        lowered = text.lower()
        for words, pattern, replacement in _PATTERNS:
            if any(word in lowered for word in words):
                text = pattern.sub(replacement, text)
        return text


def redact(text: str, variables: Mapping[str, str] | None = None) -> str:
    """Return the text without secrets; use a `Redactor` for many texts."""
    return Redactor(environment.everything() if variables is None else variables)(text)


def redact_all(value: Any, variables: Mapping[str, str] | None = None) -> Any:
    """Return a JSON value with `redact` applied to each text in it."""
    return _change_texts(value, Redactor(environment.everything() if variables is None else variables))


def _change_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _change_texts(item, change) for name, item in value.items()}
    return [_change_texts(item, change) for item in value] if isinstance(value, list | tuple) else value


def printable(text: str) -> str:
    """Return the text as one line, with control characters as JSON escapes.

    Untrusted text then cannot start a new line or move a terminal's cursor.
    """
    if text.isprintable():
        return text
    text = _COLOUR.sub("", text)
    return "".join(char if char.isprintable() or char in "\u00a0\u202f\u3000" else _escape(char) for char in text)


def printable_all(value: Any) -> Any:
    """Return a JSON value with `printable` applied to each text in it."""
    return _change_texts(value, printable)


def one_line(text: str, what: str) -> str:
    """Return the text, or raise a ValueError if it is not printable on one line."""
    if printable(text) != text:
        raise UsageError(
            f"{what} contains a line break or a control character: {printable(text)!r}. Write it as plain text on one "
            "line."
        )
    return text


def protect_process() -> None:
    """Make new files private, and redact this process's output."""
    os.umask(0o077)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Redacted):
            setattr(sys, name, _Redacted(stream))


class _Redacted:
    """A text stream that redacts secrets in everything written to it."""

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
    for name, value in environment.items():
        if NAMES.search(name):
            values = [value, *_PEM_LINE.findall(value), *(value.split(":") if _HEXADECIMAL.fullmatch(value) else ())]
        elif "://" in value or name in WHOLE_ADDRESSES:
            values = [*_secrets_in_address(value, name in WHOLE_ADDRESSES)]
        else:
            continue
        minimum = MIN_LENGTH if name.startswith(_KNOWN_PREFIXES) else MIN_LENGTH_OF_OTHERS
        yield from (item for item in values if len(item) >= minimum)


def _secrets_in_address(address: str, is_secret: bool) -> Iterator[str]:
    """Yield the password and login in an address, or all of it if it is secret."""
    rest = address.rpartition("://")[2]
    if is_secret:
        yield address
        yield rest.partition("/")[2]
    authority = rest.partition("/")[0] if "@" in rest.partition("/")[0] else rest
    login, values, _ = authority.rpartition("@")
    if values:
        user, _, password = login.partition(":")
        yield password or user
        yield base64.b64encode(unquote(login).encode()).decode()


@lru_cache(8)
def _compile_alternatives(values: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern that matches these values in every encoding."""
    forms = {
        form
        for value in values
        for form in (value, value.strip(), unquote(value), quote(value, safe=""), json.dumps(value)[1:-1])
        if len(form) >= MIN_LENGTH
    }
    return re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)) or r"(?!)")
