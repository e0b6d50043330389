"""`medloop keys`: the hash key of this home, and keys to sign with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medloop.cli.options import AsJson, Reason

if TYPE_CHECKING:
    pass

from medloop.operations.keys import (
    key_at_hand,
    make_pair,
    put_back,
    refuse_among_scans,
    state,
    write_key,
    write_stage_keys,
)

app = typer.Typer(
    name="keys",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Keep and rotate the hash key; make one to sign with.",
)

Copy = Annotated[Path, typer.Argument(metavar="FILE", help="The copy of the key.")]


@app.command(short_help="Show the key's id and where it comes from, never the key.")
def show(as_json: AsJson = False) -> None:
    """Show the id of the key at hand, where it comes from, how often it was rotated, and whether the store fits it."""
    from medloop.settings import read_settings

    found = state(read_settings())
    typer.echo(json.dumps(asdict(found), indent=1) if as_json else found.sentence)


@app.command(short_help="Write a copy of the key to a file.")
def backup(copy: Copy) -> None:
    """Write the key to a new file that only you may read. Whoever has it can find out whom a hash stands for, and
    without it no later run fits the store: keep it apart from the store, as you keep passwords.

    \b
        medloop keys backup /media/safe/medloop.key
    """
    from medloop.settings import read_settings

    settings = read_settings()
    key = key_at_hand(settings)
    if not copy.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no directory {copy.absolute().parent} for the copy. Make it, attach the drive that it is on, or "
            "name a file elsewhere."
        )
    refuse_among_scans(settings, copy)
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
    from medloop.settings import read_settings

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
    from medloop.operations.rotation import rotate as turn
    from medloop.settings import read_settings

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
    from medloop.settings import read_settings

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
