"""The commands of keys: show the hash key without telling it, keep a copy, put it back, rotate it; make a pair."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.shared.errors import RefusedError, UnavailableError, UsageError

if TYPE_CHECKING:
    from components.shared.privacy.hash_keys import HashKey
    from medloop.settings import Settings

RUNS = 20
"""Of so many runs a copy of the key must not be in the source."""


@dataclass(frozen=True)
class State:
    """What may be said of the key at hand, and the id of the one that the store was made with."""

    id: str
    where: str
    links: int
    store: str
    sentence: str


def write_stage_keys(folder: Path) -> list[str]:
    """Write the key of each stage into a file of its name; return the stages."""
    from components.shared.ledger import signing
    from components.shared.ledger.stage_keys import RELEASING, VARIABLE, for_stages
    from components.shared.runtime.interface import stages

    given = for_stages(name for name in stages() if name not in RELEASING)
    if not given:
        raise UsageError(
            f"{signing.VARIABLE} is not set, and the keys of stages follow from it. Set it: `medloop keys pair` makes "
            "one."
        )
    if folder.exists():
        raise FileExistsError(f"{folder} exists already. Name a new directory.")
    folder.mkdir(mode=0o700, parents=True)
    for name, variables in given.items():
        write_secret(folder / name, variables[VARIABLE])
    return [*given]


@dataclass(frozen=True)
class Made:
    """What may be told of a new pair of keys."""

    id: str
    public: str
    file: str


def make_pair(settings: Settings, file: Path) -> Made:
    """A new private key in a file that only its owner may read."""
    from components.shared.ledger import signing
    from medloop.settings import prepare_home

    if file == settings.signing_key_file:
        prepare_home(settings)
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no directory {file.absolute().parent} for the key. Make it, or name another."
        )
    refuse_among_scans(settings, file)
    signer, private = signing.make()
    write_secret(file, private)
    return Made(signer.id, signer.public, str(file))


def state(settings: Settings) -> State:
    """What may be said of the key at hand."""
    from components.shared.ledger import release_log
    from components.shared.privacy import hash_keys
    from components.shared.storage.store import open_store

    key, where = present(settings)
    made_with = release_log.key_id(release_log.read_log(open_store(settings.store)))
    public = hash_keys.parse(hash_keys.SYNTHETIC).id
    if key is None:
        says = "There is no hash key yet; the first run on real scans makes one."
        if made_with == public:
            says = "The scans of this store are synthetic: they have a public key, of which no copy is needed."
        elif made_with:
            says = f"The hash key {made_with} of this store is not here. Put it back: medloop keys restore FILE"
        return State("", "", 0, made_with, says)
    links = len(key.links)
    rotated = f", rotated {links - 1} time{'s' * (links != 2)}" if links > 1 else ""
    says = f"{key.id}, from {where}{rotated}."
    if made_with == public:
        says += " The store was made with the public key of synthetic scans."
    elif made_with and made_with != key.id:
        says += f" The store was made with another: {made_with}. Put that one back: medloop keys restore FILE"
    elif made_with:
        says += " The store was made with it."
    return State(key.id, where, links, made_with, says)


def present(settings: Settings) -> tuple[HashKey | None, str]:
    """The key at hand, if there is one, and where it comes from."""
    from components.shared.privacy import hash_keys
    from medloop.settings import finish_rotation

    if settings.hash_key:
        return hash_keys.parse(settings.hash_key), hash_keys.VARIABLE
    finish_rotation(settings)
    if settings.key_file.exists():
        return read_key(settings.key_file), str(settings.key_file)
    return None, ""


def put_back(settings: Settings, copy: Path) -> str:
    """Make the key in this file the one at hand; gives the sentence that says what was done."""
    from components.shared.ledger import release_log
    from components.shared.privacy import hash_keys
    from components.shared.storage.store import open_store
    from medloop.settings import prepare_home

    if settings.hash_key:
        raise UnavailableError(
            f"{hash_keys.VARIABLE} is set, and counts before any file. Take it out of the environment, or set it to "
            f"the key in {copy}."
        )
    wanted = read_key(copy)
    now, where = present(settings)
    if now == wanted:
        return f"The key {wanted.id} is in {where} already. Nothing was changed."
    if now and not wanted.extends(now):
        older = " It is an earlier state of that key, from before a rotation." if now.extends(wanted) else ""
        raise RefusedError(
            f"{copy} holds the key {wanted.id}, and here is the key {now.id}, in {where}.{older} Nothing was changed; "
            "to begin a new loop with that key set MEDLOOP_HOME to another directory."
        )
    made_with = release_log.key_id(release_log.read_log(open_store(settings.store)))
    if made_with and made_with != wanted.id:
        raise RefusedError(
            f"{copy} holds the key {wanted.id}, and the store was made with the key {made_with}. Nothing was changed; "
            "put back a copy of that key."
        )
    prepare_home(settings)
    place_key(settings.key_file, wanted)
    return f"The key {wanted.id} is in {settings.key_file} now."


def read_key(path: Path) -> HashKey:
    """The key in a file, or a ValueError that names the file."""
    from components.shared.privacy import hash_keys

    try:
        return hash_keys.parse(path.read_text(encoding="ascii", errors="replace"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise type(error)(
            f"There is no file {path} with a hash key. Name the file that `medloop keys backup` wrote; without any "
            "copy of the key begin a new loop, with MEDLOOP_HOME set to another directory."
        ) from None
    except ValueError:
        raise RefusedError(
            f"{path} holds no hash key: 64 hexadecimal digits are expected, or several times 64 with colons between. "
            "Name the file that `medloop keys backup` wrote."
        ) from None


def place_key(path: Path, key: HashKey) -> None:
    """Put a key into a file that only its owner may read, whole or not at all; it is on the disk when this ends."""
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
    """Write a key to a new file that only its owner may read."""
    write_secret(path, key.text + "\n")


def write_secret(path: Path, text: str) -> None:
    """Write a secret to a new file that only its owner may read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FileExistsError(f"{path} is there already. It was left as it is; name a new file.") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def refuse_among_scans(settings: Settings, copy: Path) -> None:
    """Raise if the copy would lie among the scans of a recent run."""
    """Whoever gets the scans would get the key with them, so no copy of it lies in the source of a run."""
    from components.shared.storage.store import open_store
    from medloop.runner.run import recent

    folder = copy.absolute().parent.resolve()
    sources = [str(run.record["arguments"]["source"]) for run in recent(open_store(settings.store), RUNS)]
    known = any("://" not in source and folder.is_relative_to(Path(source).resolve()) for source in sources if source)
    if known:
        raise RefusedError(
            f"{folder} belongs to the source of a run, and whoever gets the scans would get the key with them, and so "
            "know whom each hash stands for. Name a file in another directory."
        )


def key_at_hand(settings: Settings) -> HashKey:
    """Return this home's hash key; raise if there is none."""
    key, _ = present(settings)
    if key is None:
        raise UnavailableError(state(settings).sentence)
    return key
