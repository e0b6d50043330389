"""Artifacts as directories: laying out the files that a manifest names, and gathering a directory's files into one."""

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
    """Make a directory of an artifact's files: links to the read-only objects, or copies of one's own.

    Each file is made below a handle of its directory and never through a link, so nothing is written elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = store.fetch_all(blob.digest for blob in manifest.files.values())
    with _opened(str(folder)) as root:
        for name, source in zip(manifest.files, sources, strict=True):
            *above, last = name.split("/")
            with contextlib.ExitStack() as handles:
                place = root
                for part in above:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=place)
                    place = handles.enter_context(_opened(part, place))
                _put(source, last, place, copy)


@contextlib.contextmanager
def _opened(path: str, below: int | None = None) -> Iterator[int]:
    """A handle of a directory that is no link."""
    handle = os.open(path, _FOLDER if below is not None else _FOLDER & ~os.O_NOFOLLOW, dir_fd=below)
    try:
        yield handle
    finally:
        os.close(handle)


def _put(source: Path, name: str, place: int, copy: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        if copy or stat.S_ISLNK(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=place)  # laid out here before
    if not copy:
        os.symlink(source.resolve(), name, dir_fd=place)
        return
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=place)
    with source.open("rb") as content, os.fdopen(target, "wb") as file:
        shutil.copyfileobj(content, file, 2**20)


def together(store: Store, several: Iterable[Manifest]) -> Manifest:
    """Return the manifest that stands for several, kept in the store; itself, where it is one that does so already."""
    members = [*several]
    if len(members) == 1 and members[0].parts:
        check_parts(store, members[0])
        return members[0]
    manifest = Manifest.of(members)
    store.put_bytes(manifest.encode())
    return manifest


def check_parts(store: Store, manifest: Manifest) -> None:
    """Raise a PermissionError unless a manifest that stands for several holds what these hold, and nothing else."""
    parts = [Manifest.decode(store.get(part), "a part") for part in manifest.parts]
    if any(part.parts for part in parts) or Manifest.of(parts) != manifest:
        raise PermissionError(
            "An artifact that stands for several does not hold what these hold: it was changed. Run again to make it "
            "anew."
        )


def gather(store: Store, folder: Path) -> Manifest:
    """Keep a directory's files in the store; return the manifest that names them, itself kept too.

    A link is taken only if it leads to an object of the store, as `lay_out` makes them: another would bring in a file
    that nobody meant to hand on.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not store.owns(path.resolve()):
            raise DamagedError(
                f"The artifact's file {name[:80]!r} is a link that leads out of it. Put the file itself there."
            )
        if path.is_file():
            files[name] = store.put_file(path)
    manifest = Manifest(files)
    store.put_bytes(manifest.encode())
    Manifest.decode(manifest.encode(), "the artifact")  # names that no later step would take are refused here
    return manifest
