"""Run one stage: `python -m components <stage> --help`."""

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
from components.shared.privacy.secret_redaction import printable, protect_process
from components.shared.runtime import events, work
from components.shared.runtime.stage_interface import Interface, Parameter, read, stages
from components.shared.storage import artifacts
from components.shared.storage.store import open_store


def main(argv: list[str]) -> int:
    """Run the stage that the arguments name; return the exit status."""
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
    inputs |= {name: _combine(members, store) for name, members in several.items()}
    result = work.step(interface.stage, store, inputs, {k: v for k, v in arguments.items() if v is not None})
    for name, manifest in result.outputs.items():
        if paths[name].is_dir():
            artifacts.lay_out(open_store(store), manifest, paths[name], copy=True)
        else:
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            paths[name].write_bytes(manifest.encode())
    sys.stdout.write(json.dumps(result.values) + "\n")
    return 0


def _manifest(path: Path, store: str) -> Path:
    """Return the manifest of an input: the file itself, or the manifest of a directory's files."""
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. Pass a manifest that a step wrote, or a directory of files.")
    if path.is_file():
        return path
    manifest = artifacts.gather(open_store(store), path)
    return open_store(store).fetch(manifest.digest)


def _combine(paths: list[Path], store: str) -> Path:
    manifests = [Manifest.decode(_manifest(path, store).read_bytes(), path.name) for path in paths]
    return open_store(store).fetch(artifacts.combine(open_store(store), manifests).digest)


def _parser(interface: Interface) -> argparse.ArgumentParser:
    # Images set MEDLOOP_USAGE: they are started in another way.
    program = environment.get("MEDLOOP_USAGE") or f"python -m components {interface.stage}"
    parser = argparse.ArgumentParser(program, description=interface.summary)
    parser.add_argument("--store", required=True, help="store of objects: a directory or s3://bucket/prefix")
    for name in interface.inputs:
        text = "input: a manifest, or a directory of files" + "; may be repeated" * (name in interface.several)
        action = "append" if name in interface.several else "store"
        parser.add_argument(f"--{name}", required=True, metavar="PATH", action=action, help=text)
    for name in interface.outputs:
        text = "output: the manifest to write, or an existing directory for the files"
        parser.add_argument(f"--{name}", required=True, metavar="PATH", help=text)
    for parameter in interface.parameters.values():
        notes = [parameter.help, parameter.bounds, "" if parameter.required else f"default {parameter.default!r}"]
        parser.add_argument(
            f"--{parameter.name.replace('_', '-')}",
            dest=parameter.name,
            type=_converter(parameter),
            required=parameter.required,
            metavar=parameter.type.__name__.upper(),
            help="; ".join(note for note in notes if note).replace("%", "%%"),
        )
    return parser


def _converter(parameter: Parameter) -> Callable[[str], Any]:
    def from_text(text: str) -> Any:
        if parameter.type is str:
            return text
        try:
            return parse_json(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {parameter.type.__name__} in JSON") from None

    return from_text


if __name__ == "__main__":
    # Without a handler, Python as the first process of a container ignores SIGTERM. This also removes scratch folders.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
