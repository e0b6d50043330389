"""Copy the initial weights of a training into the store, so that later stages use exactly this version."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from components.shared.errors import RefusedError

if TYPE_CHECKING:
    from components.shared.storage.store import Store

MAX_BYTES = 4 * 2**30
"""Maximum size of a file of weights in bytes."""
IN_BUNDLE = "models/model.pt"


def store_weights(address: str, store: Store) -> str:
    """Copy the weights at a path or address into the store; return their digest.

    A directory must be a model bundle with the weights in models/model.pt. A digest in the store is returned as it is.
    """
    if re.fullmatch("[0-9a-f]{64}", address):
        if not store.has(address):
            raise RefusedError(
                f"weights is the digest {address[:12]}, but the store {store.uri} has no such object. Give a path."
            )
        return address
    parts = urlsplit(address)
    if parts.username or any(word in parts.query.lower() for word in ("sig", "token", "key", "password", "credential")):
        raise RefusedError(
            f"weights is an address at {parts.hostname} that contains credentials, but parameters are recorded. Put "
            "the file into a bucket whose keys are in the environment, or give a path."
        )
    if parts.scheme in ("", "file"):
        return _from_file(Path(unquote(parts.path) if parts.scheme else address), address, store)
    if parts.scheme not in ("s3", "http", "https"):
        raise RefusedError(
            f"weights is {address}, but the scheme {parts.scheme} is not supported. Give a path, or an s3:// or "
            "https:// address."
        )
    with tempfile.TemporaryDirectory(prefix="medloop-weights-") as folder:
        path = Path(folder) / "weights"
        (_from_bucket if parts.scheme == "s3" else _from_server)(address, path)
        return store.put_file(path).digest


def _from_file(path: Path, address: str, store: Store) -> str:
    path = path / IN_BUNDLE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no weights at {address}. Give the path of a file of weights or of a model bundle. Containers "
            "cannot read local files: for them, give an s3:// or https:// address."
        )
    if path.stat().st_size > MAX_BYTES:
        raise RefusedError(
            f"The weights at {address} have {path.stat().st_size:,} bytes; the maximum is {MAX_BYTES:,}."
        )
    return store.put_file(path).digest


def _from_bucket(address: str, path: Path) -> None:
    from components.shared.storage import s3

    bucket, _, name = address.removeprefix("s3://").partition("/")
    folder, _, name_ = name.rpartition("/")
    bucket_client = s3.connect(bucket, folder, of="source")
    size = bucket_client.size(name_)
    if size is None:
        name_ = f"{name_}/{IN_BUNDLE}".lstrip("/")
        size = bucket_client.size(name_)
    if size is None:
        raise FileNotFoundError(f"There are no weights at {address}. Check the bucket, the prefix and the name.")
    if size > MAX_BYTES:
        raise RefusedError(f"The weights at {address} have {size:,} bytes; the maximum is {MAX_BYTES:,}.")
    bucket_client.download(name_, path)


def _from_server(address: str, path: Path) -> None:
    import urllib3  # needed only for https addresses

    retries = urllib3.Retry(3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    try:
        with urllib3.PoolManager(timeout=30, retries=retries).request(
            "GET", address, preload_content=False
        ) as response:
            if response.status != 200:
                raise OSError(
                    f"Cannot download the weights at {address}: the server returned status {response.status}."
                )
            with path.open("wb") as file:
                for chunk in response.stream(2**20):
                    file.write(chunk)
                    if file.tell() > MAX_BYTES:
                        raise RefusedError(
                            f"The weights at {address} have more than the maximum of {MAX_BYTES:,} bytes."
                        )
    except urllib3.exceptions.HTTPError as error:
        raise OSError(
            f"Cannot download the weights at {address} ({type(error).__name__}). Check the address."
        ) from None
