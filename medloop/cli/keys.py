"""`medloop keys`: the hash key and the signing keys."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medloop.cli.options import AsJson, Reason
from medloop.operations.keys import (
    describe_key,
    make_pair,
    refuse_among_scans,
    require_key,
    restore_key,
    write_key,
    write_stage_keys,
)

app = typer.Typer(
    name="keys",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Manage the hash key and signing keys.",
)

Copy = Annotated[Path, typer.Argument(metavar="FILE", help="Copy of the key.")]


@app.command(short_help="Show the id and origin of the hash key, never the key itself.")
def show(as_json: AsJson = False) -> None:
    """Show the id and origin of the hash key, the number of rotations, and whether it matches the store."""
    from medloop.settings import read_settings

    state = describe_key(read_settings())
    typer.echo(json.dumps(asdict(state), indent=1) if as_json else state.sentence)


@app.command(short_help="Write a copy of the hash key to a file.")
def backup(copy: Copy) -> None:
    """Write the hash key to a new file that only you can read.

    With the key, hashes can be traced to patients; without it, no later run can use the store. Keep the copy where
    you keep passwords, apart from the store.

    \b
        medloop keys backup /media/safe/medloop.key
    """
    from medloop.settings import read_settings

    settings = read_settings()
    key = require_key(settings)
    if not copy.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"The directory {copy.absolute().parent} does not exist. Create it, mount its drive, or name another file."
        )
    refuse_among_scans(settings, copy)
    write_key(copy, key)
    typer.echo(
        f"The key {key.id} was copied to {copy}, readable only by you. It is not encrypted: keep it where you keep "
        "passwords, apart from the store."
    )


@app.command(short_help="Restore the hash key from a copy.")
def restore(copy: Copy) -> None:
    """Restore the hash key from a copy.

    A key that differs from the current key or from the key of the store is refused, unless it is a rotation of it.

    \b
        medloop keys restore /media/safe/medloop.key
    """
    from medloop.settings import read_settings

    typer.echo(restore_key(read_settings(), copy))


@app.command(short_help="Rotate the hash key; every patient stays in the same split.")
def rotate(
    reason: Reason,
    to: Annotated[
        Path | None, typer.Option(help="File for the new key; required if MEDLOOP_HASH_KEY contains the old one.")
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take over the lock. Use only if the other run has stopped.")
    ] = False,
) -> None:
    """Add a new secret to the hash key, so that the old key alone cannot resolve new ids.

    The latest split is converted, so that every patient stays in the same split, and the rotation is recorded in the
    release log. Existing artifacts keep their ids. The next run hashes all names again. After an interruption, run
    the same command again.

    \b
        medloop keys rotate --reason "a laptop with the key was lost"
    """
    from medloop.operations.hash_key_rotation import rotate as rotate_key
    from medloop.settings import read_settings

    typer.echo(rotate_key(read_settings(), reason, to, take_over))


@app.command(short_help="Create a key pair for signatures.")
def pair(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="File for the private key; in MEDLOOP_HOME by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key pair that signs and verifies decisions and releases.

    The private key goes to a new file that only you can read and is not shown. The public key is printed.

    \b
        medloop keys pair /media/safe/signing.key
        export MEDLOOP_SIGNING_KEY="$(cat /media/safe/signing.key)"
    """
    from medloop.settings import read_settings

    settings = read_settings()
    pair = make_pair(settings, file or settings.signing_key_file)
    if as_json:
        typer.echo(json.dumps(asdict(pair), indent=1))
        return
    typer.echo(
        f"The private key {pair.id} is in {pair.file}, readable only by you. It is not encrypted: keep it where you "
        f'keep passwords, apart from the store.\n\nTo sign:    export MEDLOOP_SIGNING_KEY="$(cat {pair.file})"\n'
        f"To verify:  export MEDLOOP_VERIFY_KEYS={pair.public}"
    )


@app.command(name="stages", short_help="Write a signing key for each stage except resolve, gate, deploy and reject.")
def stage_keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New directory for one key file per stage.")],
) -> None:
    """Write one signing key per stage, for clusters, where training must not have the main signing key.

    The keys are derived from MEDLOOP_SIGNING_KEY, so the same command writes the same keys. Each key signs the results
    of one stage and cannot release a model. `medloop run` passes them to its stages itself.

    \b
        medloop keys stages stage-keys
        kubectl create secret generic medloop-stages --from-file=stage-keys
    """
    names = write_stage_keys(folder)
    typer.echo(
        f"The keys of {', '.join(names)} are in {folder}, readable only by you. Create the secret from which each "
        "stage gets MEDLOOP_STAGE_KEY, then remove the directory:\n\n  kubectl create secret generic medloop-stages "
        f"--from-file={folder}\n\nThe default cluster file uses this secret. Public keys do not change."
    )
