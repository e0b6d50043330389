"""Runs one stage by hand: `python -m components <stage> --help`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from components.shared import environment
from components.shared.contracts import Manifest
from components.shared.errors import exit_code, is_foreseen
from components.shared.parsing.json_documents import parse_json
from components.shared.privacy.redaction import printable, protect_process
from components.shared.runtime import events, work
from components.shared.runtime.interface import Interface, Parameter, read, stages
from components.shared.storage import artifacts
from components.shared.storage.store import open_store


def main(argv: list[str]) -> int:
    """Run the stage that the arguments name; gives the exit status."""
    protect_process()
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(__doc__.strip() + "\n\nStages:\n" + "".join(f"  {n:9} {read(n).summary}\n" for n in stages()))
        return 0
    try:
        interface = read(argv[0])
        arguments = vars(_parser(interface).parse_args(argv[1:]))
        events.configure_logging()
        return _run(interface, arguments)
    except Exception as error:
        if environment.get("MEDLOOP_TRACEBACK") or not is_foreseen(error):
            raise
        sys.stderr.write(f"{argv[0]}: {printable(str(error))}\n")
        return exit_code(error)


def _run(interface: Interface, arguments: dict[str, object]) -> int:
    store = str(arguments.pop("store"))
    several = {name: [Path(path) for path in cast("list[str]", arguments.pop(name))] for name in interface.several}
    single = [name for name in (*interface.inputs, *interface.outputs) if name not in several]
    paths = {name: Path(str(arguments.pop(name))) for name in single}
    inputs = {name: _manifest(paths[name], store) for name in interface.inputs if name in paths}
    inputs |= {name: _together(given, store) for name, given in several.items()}
    done = work.step(interface.stage, store, inputs, {k: v for k, v in arguments.items() if v is not None})
    for name, manifest in done.outputs.items():
        if paths[name].is_dir():
            artifacts.lay_out(open_store(store), manifest, paths[name], copy=True)
        else:
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            paths[name].write_bytes(manifest.encode())
    sys.stdout.write(json.dumps(done.values) + "\n")
    return 0


def _manifest(path: Path, store: str) -> Path:
    """The manifest file of an input: the file itself, or for a directory one made of its files."""
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. Name a manifest that a step wrote, or a directory of files.")
    if path.is_file():
        return path
    manifest = artifacts.gather(open_store(store), path)
    return open_store(store).fetch(manifest.digest)


def _together(paths: list[Path], store: str) -> Path:
    """The manifest file of several artifacts."""
    found = [Manifest.decode(_manifest(path, store).read_bytes(), path.name) for path in paths]
    return open_store(store).fetch(artifacts.together(open_store(store), found).digest)


def _parser(interface: Interface) -> argparse.ArgumentParser:
    typed = environment.get("MEDLOOP_USAGE") or f"python -m components {interface.stage}"  # an image is run otherwise
    parser = argparse.ArgumentParser(typed, description=interface.summary)
    parser.add_argument("--store", required=True, help="where objects lie: a directory or s3://bucket/prefix")
    for name in interface.inputs:
        words = "in: a manifest, or a directory of files" + "; may be given several times" * (name in interface.several)
        action = "append" if name in interface.several else "store"
        parser.add_argument(f"--{name}", required=True, metavar="PATH", action=action, help=words)
    for name in interface.outputs:
        words = "out: the manifest to write, or a directory that exists, to be filled with the files themselves"
        parser.add_argument(f"--{name}", required=True, metavar="PATH", help=words)
    for parameter in interface.parameters.values():
        notes = [parameter.help, parameter.bounds, "" if parameter.required else f"default {parameter.default!r}"]
        parser.add_argument(
            f"--{parameter.name.replace('_', '-')}",
            dest=parameter.name,
            type=_reader(parameter),
            required=parameter.required,
            metavar=parameter.type.__name__.upper(),
            help="; ".join(note for note in notes if note).replace("%", "%%"),
        )
    return parser


def _reader(parameter: Parameter) -> Callable[[str], Any]:
    def from_text(text: str) -> Any:
        if parameter.type is str:
            return text
        try:
            return parse_json(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {parameter.type.__name__} in JSON") from None

    return from_text


if __name__ == "__main__":
    # Python as the first process of a container would not be ended by it; and so scratch directories go.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
