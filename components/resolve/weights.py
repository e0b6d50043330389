"""Brings the weights that a training is to begin with into the store, so that later stages read what was there now."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from components.shared.errors import RefusedError

if TYPE_CHECKING:
    from components.shared.storage.store import Store

LIMIT = 4 * 2**30
"""A file of more bytes is no file of weights."""
IN_BUNDLE = "models/model.pt"


def keep(address: str, store: Store) -> str:
    """The digest, in the store, of the weights at a path, a file:, s3: or https: address, or of such a digest.

    A directory is taken for a model bundle, whose weights lie in models/model.pt.
    """
    if re.fullmatch("[0-9a-f]{64}", address):
        if not store.has(address):
            raise RefusedError(f"The store {store.uri} has no object {address[:12]}, which weights names. Name a file.")
        return address
    parts = urlsplit(address)
    if parts.username or any(word in parts.query.lower() for word in ("sig", "token", "key", "password", "credential")):
        raise RefusedError(
            f"weights is an address at {parts.hostname} with credentials in it, and a run's parameters are written "
            "down. Put the file into a bucket whose keys the environment holds, or name a path."
        )
    if parts.scheme in ("", "file"):
        return _of_file(Path(unquote(parts.path) if parts.scheme else address), address, store)
    if parts.scheme not in ("s3", "http", "https"):
        raise RefusedError(
            f"weights is {address}, and {parts.scheme}: is no address that is read. Give a path, or an s3:// or "
            "https:// address."
        )
    with tempfile.TemporaryDirectory(prefix="medloop-weights-") as folder:
        path = Path(folder) / "weights"
        (_from_bucket if parts.scheme == "s3" else _from_server)(address, path)
        return store.put_file(path).digest


def _of_file(path: Path, address: str, store: Store) -> str:
    path = path / IN_BUNDLE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no weights at {address}. Give the path of a file of weights or of a model bundle; a step in a "
            "container sees only what it is given, so put the file where an s3:// or https:// address leads."
        )
    if path.stat().st_size > LIMIT:
        raise RefusedError(f"The weights at {address} have {path.stat().st_size:,} bytes; at most {LIMIT:,} are read.")
    return store.put_file(path).digest


def _from_bucket(address: str, path: Path) -> None:
    from components.shared.storage import s3

    bucket, _, name = address.removeprefix("s3://").partition("/")
    folder, _, last = name.rpartition("/")
    at = s3.connect(bucket, folder, of="source")
    size = at.size(last)
    if size is None:
        last = f"{last}/{IN_BUNDLE}".lstrip("/")
        size = at.size(last)
    if size is None:
        raise FileNotFoundError(f"There are no weights at {address}. Check the bucket, the prefix and the name.")
    if size > LIMIT:
        raise RefusedError(f"The weights at {address} have {size:,} bytes; at most {LIMIT:,} are read.")
    at.download(last, path)


def _from_server(address: str, path: Path) -> None:
    import urllib3  # only those who name a server need the client

    retries = urllib3.Retry(3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    try:
        with urllib3.PoolManager(timeout=30, retries=retries).request("GET", address, preload_content=False) as answer:
            if answer.status != 200:
                raise OSError(f"The weights at {address} cannot be had: the server answers {answer.status}.")
            with path.open("wb") as file:
                for part in answer.stream(2**20):
                    file.write(part)
                    if file.tell() > LIMIT:
                        raise RefusedError(
                            f"The weights at {address} have more than the {LIMIT:,} bytes that are read."
                        )
    except urllib3.exceptions.HTTPError as error:
        raise OSError(f"The weights at {address} cannot be had ({type(error).__name__}). Check the address.") from None
