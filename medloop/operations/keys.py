"""Key management: describe, back up and restore the hash key; create signing keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.shared.errors import RefusedError, UnavailableError, UsageError

if TYPE_CHECKING:
    from components.shared.privacy.keyed_hash import HashKey
    from medloop.settings import Settings

RUNS = 20
"""Number of recent runs whose sources must not contain a copy of the key."""


@dataclass(frozen=True)
class KeyState:
    """Public facts about the current hash key, and the id of the store's key."""

    id: str
    where: str
    links: int
    store: str
    sentence: str


def write_stage_keys(folder: Path) -> list[str]:
    """Write the signing key of each stage to a file named after the stage; return the stages."""
    from components.shared.ledger import signing
    from components.shared.ledger.stage_signing import RELEASING, VARIABLE, for_stages
    from components.shared.runtime.stage_interface import stages

    keys = for_stages(name for name in stages() if name not in RELEASING)
    if not keys:
        raise UsageError(
            f"{signing.VARIABLE} is not set, and the keys of the stages are derived from it. Set it to a key created "
            "by `medloop keys pair`."
        )
    if folder.exists():
        raise FileExistsError(f"{folder} already exists. Name a new directory.")
    folder.mkdir(mode=0o700, parents=True)
    for name, variables in keys.items():
        write_secret(folder / name, variables[VARIABLE])
    return [*keys]


@dataclass(frozen=True)
class KeyPair:
    """Public facts about a new key pair."""

    id: str
    public: str
    file: str


def make_pair(settings: Settings, file: Path) -> KeyPair:
    """Create a key pair, with the private key in a file that only its owner can read."""
    from components.shared.ledger import signing
    from medloop.settings import prepare_home

    if file == settings.signing_key_file:
        prepare_home(settings)
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"The directory {file.absolute().parent} does not exist. Create it, or name another file."
        )
    refuse_among_scans(settings, file)
    signer, private = signing.make()
    write_secret(file, private)
    return KeyPair(signer.id, signer.public, str(file))


def describe_key(settings: Settings) -> KeyState:
    """Describe the current hash key and whether it matches the store."""
    from components.shared.ledger import release_log
    from components.shared.privacy import keyed_hash
    from components.shared.storage.store import open_store

    key, origin = current_key(settings)
    store_key = release_log.key_id(release_log.read_log(open_store(settings.store)))
    public = keyed_hash.parse(keyed_hash.SYNTHETIC).id
    if key is None:
        sentence = "There is no hash key yet; the first run on real scans creates one."
        if store_key == public:
            sentence = "The scans of this store are synthetic and use a public key, so no copy is needed."
        elif store_key:
            sentence = f"The hash key {store_key} of this store is missing. Restore it: medloop keys restore FILE"
        return KeyState("", "", 0, store_key, sentence)
    links = len(key.links)
    rotated = f", rotated {links - 1} time{'s' * (links != 2)}" if links > 1 else ""
    sentence = f"{key.id}, from {origin}{rotated}."
    if store_key == public:
        sentence += " The store uses the public key of synthetic scans."
    elif store_key and store_key != key.id:
        sentence += f" The store uses another key: {store_key}. Restore that key: medloop keys restore FILE"
    elif store_key:
        sentence += " The store uses this key."
    return KeyState(key.id, origin, links, store_key, sentence)


def current_key(settings: Settings) -> tuple[HashKey | None, str]:
    """Return the current hash key, if any, and where it comes from."""
    from components.shared.privacy import keyed_hash
    from medloop.settings import finish_rotation

    if settings.hash_key:
        return keyed_hash.parse(settings.hash_key), keyed_hash.VARIABLE
    finish_rotation(settings)
    if settings.key_file.exists():
        return read_key(settings.key_file), str(settings.key_file)
    return None, ""


def restore_key(settings: Settings, copy: Path) -> str:
    """Restore the hash key from a copy and return a sentence about the result."""
    from components.shared.ledger import release_log
    from components.shared.privacy import keyed_hash
    from components.shared.storage.store import open_store
    from medloop.settings import prepare_home

    if settings.hash_key:
        raise UnavailableError(
            f"{keyed_hash.VARIABLE} is set and has priority over files. Unset it, or set it to the key in {copy}."
        )
    restored = read_key(copy)
    current, origin = current_key(settings)
    if current == restored:
        return f"The key {restored.id} is already in {origin}. Nothing was changed."
    if current and not restored.extends(current):
        older = " The copy is from before a rotation of this key." if current.extends(restored) else ""
        raise RefusedError(
            f"{copy} contains the key {restored.id}, but the current key is {current.id}, in {origin}.{older} Nothing "
            "was changed. To start a new loop with the other key, set MEDLOOP_HOME to another directory."
        )
    store_key = release_log.key_id(release_log.read_log(open_store(settings.store)))
    if store_key and store_key != restored.id:
        raise RefusedError(
            f"{copy} contains the key {restored.id}, but the store uses the key {store_key}. Nothing was changed. "
            "Restore a copy of that key."
        )
    prepare_home(settings)
    place_key(settings.key_file, restored)
    return f"The key {restored.id} was restored to {settings.key_file}."


def read_key(path: Path) -> HashKey:
    """Return the key in a file; raise an error that names the file if there is none."""
    from components.shared.privacy import keyed_hash

    try:
        return keyed_hash.parse(path.read_text(encoding="ascii", errors="replace"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise type(error)(
            f"The key file {path} does not exist. Name the file that `medloop keys backup` wrote. If you have no copy "
            "of the key, set MEDLOOP_HOME to another directory to start a new loop."
        ) from None
    except ValueError:
        raise RefusedError(
            f"{path} contains no hash key, which is one or more groups of 64 hexadecimal digits joined by colons. "
            "Name the file that `medloop keys backup` wrote."
        ) from None


def place_key(path: Path, key: HashKey) -> None:
    """Write a key atomically to a file that only its owner can read, and sync it to disk."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    write_key(part, key)
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_key(path: Path, key: HashKey) -> None:
    """Write a key to a new file that only its owner can read."""
    write_secret(path, key.text + "\n")


def write_secret(path: Path, text: str) -> None:
    """Write a secret to a new file that only its owner can read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FileExistsError(f"{path} already exists. Nothing was overwritten; name a new file.") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def refuse_among_scans(settings: Settings, copy: Path) -> None:
    """Raise RefusedError if the copy would be in the source of a recent run."""
    from components.shared.storage.store import open_store
    from medloop.runner.run import recent

    folder = copy.absolute().parent.resolve()
    sources = [str(run.record["arguments"]["source"]) for run in recent(open_store(settings.store), RUNS)]
    if any("://" not in source and folder.is_relative_to(Path(source).resolve()) for source in sources if source):
        raise RefusedError(
            f"{folder} is in the source of a run. Anyone who gets the scans would also get the key, and could trace "
            "hashes to patients. Name a file in another directory."
        )


def require_key(settings: Settings) -> HashKey:
    """Return the current hash key; raise UnavailableError if there is none."""
    key, _ = current_key(settings)
    if key is None:
        raise UnavailableError(describe_key(settings).sentence)
    return key
