"""The commands of keys: show the hash key without telling it, keep a copy, put it back, rotate it; make a pair."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.options import AsJson, Reason

if TYPE_CHECKING:
    from components.shared.keys import HashKey
    from workflows.settings import Settings

app = typer.Typer(
    name="keys",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Keep and rotate the hash key; make one to sign with.",
)

RUNS = 20
"""Of so many runs a copy of the key must not be in the source."""

Copy = Annotated[Path, typer.Argument(metavar="FILE", help="The copy of the key.")]


@dataclass(frozen=True)
class State:
    """What may be said of the key at hand, and the id of the one that the store was made with."""

    id: str
    where: str
    links: int
    store: str
    sentence: str


@app.command(short_help="Show the key's id and where it comes from, never the key.")
def show(as_json: AsJson = False) -> None:
    """Show the id of the key at hand, where it comes from, how often it was rotated, and whether the store fits it."""
    from workflows.settings import read_settings

    found = state(read_settings())
    typer.echo(json.dumps(asdict(found), indent=1) if as_json else found.sentence)


@app.command(short_help="Write a copy of the key to a file.")
def backup(copy: Copy) -> None:
    """Write the key to a new file that only you may read. Whoever has it can find out whom a hash stands for, and
    without it no later run fits the store: keep it apart from the store, as you keep passwords.

    \b
        medloop keys backup /media/safe/medloop.key
    """
    from workflows.settings import read_settings

    settings = read_settings()
    key = _at_hand(settings)
    if not copy.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no directory {copy.absolute().parent} for the copy. Make it, attach the drive that it is on, or "
            "name a file elsewhere."
        )
    _refuse_among_scans(settings, copy)
    write_key(copy, key)
    typer.echo(
        f"The key {key.id} is now in {copy}, readable for you alone. It is not encrypted: keep it where you keep "
        "passwords, apart from the store."
    )


@app.command(short_help="Put a copy of the key back.")
def restore(copy: Copy) -> None:
    """Put the key back from its copy. Another key than the one that is there, or that the store knows, is refused;
    one that came of it by rotation takes its place.

    \b
        medloop keys restore /media/safe/medloop.key
    """
    from workflows.settings import read_settings

    typer.echo(put_back(read_settings(), copy))


@app.command(short_help="Add a new secret to the key, and carry the split on.")
def rotate(
    reason: Reason,
    to: Annotated[
        Path | None, typer.Option(help="Where to write the new key, if MEDLOOP_HASH_KEY gives the old.")
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the loop from a run that has surely ended.")
    ] = False,
) -> None:
    """Add a new secret to the key: ids that are made from now on tell nothing to those who have the old one alone.

    The latest split is carried on, so that every patient stays on their side, and the release log says so. What was
    made before keeps its ids. The next run hashes all names anew. Interrupted, the same command goes on.

    \b
        medloop keys rotate --reason "a laptop with the key was lost"
    """
    from workflows.rotation import rotate as turn
    from workflows.settings import read_settings

    typer.echo(turn(read_settings(), reason, to, take_over))


@app.command(short_help="Make a pair of keys for signatures.")
def pair(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where the private key is to lie; in the home by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a private key that signs decisions and releases, in a new file that only you may read, and print its public
    key, which those need who verify. The private key itself is not shown.

    \b
        medloop keys pair /media/safe/signing.key
        export MEDLOOP_SIGNING_KEY="$(cat /media/safe/signing.key)"
    """
    from workflows.settings import read_settings

    settings = read_settings()
    made = make_pair(settings, file or settings.signing_key_file)
    if as_json:
        typer.echo(json.dumps(asdict(made), indent=1))
        return
    typer.echo(
        f"The private key {made.id} is in {made.file}, readable for you alone. It is not encrypted: keep it where you "
        f'keep passwords, apart from the store.\n\nWho signs:     export MEDLOOP_SIGNING_KEY="$(cat {made.file})"\n'
        f"Who verifies:  export MEDLOOP_VERIFY_KEYS={made.public}"
    )


@app.command(name="stages", short_help="Write a key for each stage that does not release.")
def stage_keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory; each file in it is a stage's key.")],
) -> None:
    """Write the keys with which the stages sign what they did, where the signing key itself must not be: on a cluster.
    They follow from the signing key, so the same command gives the same keys. Each signs for one stage alone, and none
    can release a model. `medloop run` hands them out by itself.

    \b
        medloop keys stages stage-keys
        kubectl create secret generic medloop-stages --from-file=stage-keys
    """
    names = write_stage_keys(folder)
    typer.echo(
        f"The keys of {', '.join(names)} are in {folder}, readable for you alone. Put them where each stage finds its "
        f"own in MEDLOOP_STAGE_KEY, then remove the directory:\n\n  kubectl create secret generic medloop-stages "
        f"--from-file={folder}\n\nThe shipped cluster file takes them from there. Public keys stay as they are."
    )


def write_stage_keys(folder: Path) -> list[str]:
    """Write the key of each stage into a file of its name; return the stages."""
    from components.shared import signing
    from components.shared.interface import stages
    from components.shared.stage_keys import RELEASING, VARIABLE, for_stages

    given = for_stages(name for name in stages() if name not in RELEASING)
    if not given:
        raise ValueError(
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
    from components.shared import signing
    from workflows.settings import prepare_home

    if file == settings.signing_key_file:
        prepare_home(settings)
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no directory {file.absolute().parent} for the key. Make it, or name another."
        )
    _refuse_among_scans(settings, file)
    signer, private = signing.make()
    write_secret(file, private)
    return Made(signer.id, signer.public, str(file))


def state(settings: Settings) -> State:
    """What may be said of the key at hand."""
    from components.shared import keys, releases
    from components.shared.store import open_store

    key, where = present(settings)
    made_with = releases.key_id(releases.read_log(open_store(settings.store)))
    public = keys.parse(keys.SYNTHETIC).id
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
    from components.shared import keys
    from workflows.settings import finish_rotation

    if settings.hash_key:
        return keys.parse(settings.hash_key), keys.VARIABLE
    finish_rotation(settings)
    if settings.key_file.exists():
        return read_key(settings.key_file), str(settings.key_file)
    return None, ""


def put_back(settings: Settings, copy: Path) -> str:
    """Make the key in this file the one at hand; gives the sentence that says what was done."""
    from components.shared import keys, releases
    from components.shared.store import open_store
    from workflows.settings import prepare_home

    if settings.hash_key:
        raise RuntimeError(
            f"{keys.VARIABLE} is set, and counts before any file. Take it out of the environment, or set it to the key "
            f"in {copy}."
        )
    wanted = read_key(copy)
    now, where = present(settings)
    if now == wanted:
        return f"The key {wanted.id} is in {where} already. Nothing was changed."
    if now and not wanted.extends(now):
        older = " It is an earlier state of that key, from before a rotation." if now.extends(wanted) else ""
        raise ValueError(
            f"{copy} holds the key {wanted.id}, and here is the key {now.id}, in {where}.{older} Nothing was changed; "
            "to begin a new loop with that key set MEDLOOP_HOME to another directory."
        )
    made_with = releases.key_id(releases.read_log(open_store(settings.store)))
    if made_with and made_with != wanted.id:
        raise ValueError(
            f"{copy} holds the key {wanted.id}, and the store was made with the key {made_with}. Nothing was changed; "
            "put back a copy of that key."
        )
    prepare_home(settings)
    place_key(settings.key_file, wanted)
    return f"The key {wanted.id} is in {settings.key_file} now."


def read_key(path: Path) -> HashKey:
    """The key in a file, or a ValueError that names the file."""
    from components.shared import keys

    try:
        return keys.parse(path.read_text(encoding="ascii", errors="replace"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise type(error)(
            f"There is no file {path} with a hash key. Name the file that `medloop keys backup` wrote; without any "
            "copy of the key begin a new loop, with MEDLOOP_HOME set to another directory."
        ) from None
    except ValueError:
        raise ValueError(
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


def _refuse_among_scans(settings: Settings, copy: Path) -> None:
    """Whoever gets the scans would get the key with them, so no copy of it lies in the source of a run."""
    from components.shared.store import open_store
    from workflows.run import recent

    folder = copy.absolute().parent.resolve()
    sources = [str(run.record["arguments"]["source"]) for run in recent(open_store(settings.store), RUNS)]
    known = any("://" not in source and folder.is_relative_to(Path(source).resolve()) for source in sources if source)
    if known:
        raise ValueError(
            f"{folder} belongs to the source of a run, and whoever gets the scans would get the key with them, and so "
            "know whom each hash stands for. Name a file in another directory."
        )


def _at_hand(settings: Settings) -> HashKey:
    key, _ = present(settings)
    if key is None:
        raise RuntimeError(state(settings).sentence)
    return key
