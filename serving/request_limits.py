"""Limits of requests: sizes of files and batches, and concurrent requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.connection_limits import most_connections


@dataclass(frozen=True)
class Limits:
    """Limits of one request (bytes of a file; files and bytes of a batch) and of concurrent requests."""

    file_bytes: int = 64 * 2**20
    files: int = 64
    batch_bytes: int = 512 * 2**20
    at_once: int = field(default_factory=lambda: most_connections() // 2)
