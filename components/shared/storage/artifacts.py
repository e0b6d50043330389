"""Artifacts as directories: lay out the files of a manifest, and gather the files of a directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from components.shared.contracts import Manifest
from components.shared.errors import DamagedError
from components.shared.storage.store import Store

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def lay_out(store: Store, manifest: Manifest, folder: Path, copy: bool = False) -> None:
    """Create a directory of an artifact's files: links to the read-only objects, or copies.

    Each file is created relative to its directory's handle and never through a link, so nothing is written elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = store.fetch_all(blob.digest for blob in manifest.files.values())
    with _open_folder(str(folder)) as root:
        for name, source in zip(manifest.files, sources, strict=True):
            *above, last = name.split("/")
            with contextlib.ExitStack() as handles:
                handle = root
                for part in above:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=handle)
                    handle = handles.enter_context(_open_folder(part, handle))
                _put(source, last, handle, copy)


@contextlib.contextmanager
def _open_folder(path: str, parent: int | None = None) -> Iterator[int]:
    """Yield a handle of a directory; below a parent it must not be a link."""
    handle = os.open(path, _FOLDER if parent is not None else _FOLDER & ~os.O_NOFOLLOW, dir_fd=parent)
    try:
        yield handle
    finally:
        os.close(handle)


def _put(source: Path, name: str, folder: int, copy: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        if copy or stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)  # from an earlier call
    if not copy:
        os.symlink(source.resolve(), name, dir_fd=folder)
        return
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder)
    with source.open("rb") as content, os.fdopen(target, "wb") as file:
        shutil.copyfileobj(content, file, 2**20)


def combine(store: Store, manifests: Iterable[Manifest]) -> Manifest:
    """Return the combined manifest of several artifacts, stored; return a single combined manifest unchanged."""
    members = [*manifests]
    if len(members) == 1 and members[0].parts:
        check_parts(store, members[0])
        return members[0]
    manifest = Manifest.of(members)
    store.put_bytes(manifest.encode())
    return manifest


def check_parts(store: Store, manifest: Manifest) -> None:
    """Raise a PermissionError unless a combined manifest has exactly the files of its parts."""
    parts = [Manifest.decode(store.get(part), "a part") for part in manifest.parts]
    if any(part.parts for part in parts) or Manifest.of(parts) != manifest:
        raise PermissionError(
            "A combined artifact does not have the files of its parts: it was changed. Run again to recreate it."
        )


def gather(store: Store, folder: Path) -> Manifest:
    """Store a directory's files and their manifest; return the manifest.

    Links are followed only to objects of the store, as created by `lay_out`: others could add unintended files.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not store.owns(path.resolve()):
            raise DamagedError(
                f"The artifact's file {name[:80]!r} is a link to a file outside of it. Replace it by the file."
            )
        if path.is_file():
            files[name] = store.put_file(path)
    manifest = Manifest(files)
    store.put_bytes(manifest.encode())
    Manifest.decode(manifest.encode(), "the artifact")  # raises an error for names that later steps would refuse
    return manifest
