"""Options and error handling that several commands share."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from typer.core import TyperCommand

from components.shared.privacy.secret_redaction import one_line, printable, redact

Source = Annotated[
    str,
    typer.Option("--source", "-s", help="Directory of images or s3://bucket/prefix, with one subfolder per class."),
]
Policy = Annotated[str, typer.Option("--policy", help="Release policy: a YAML file or the name of a built-in policy.")]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="[RUN]", help="Run id or its first characters, or a version such as v2; the latest run by default."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and only JSON, to standard output.")]


def _one_line(_: typer.Context, option: typer.CallbackParam, value: str) -> str:
    with exit_on_value_error():
        return one_line(value, f"--{option.name}")


Reason = Annotated[
    str, typer.Option("--reason", callback=_one_line, help="Reason, on one line; recorded in the release log.")
]
By = Annotated[str, typer.Option("--by", callback=_one_line, help="Name of the approver; recorded in the release log.")]
Runner = Annotated[
    str, typer.Option("--runner", help="subprocess (on this machine) or docker (in the image of each stage).")
]
Registry = Annotated[str, typer.Option("--images", help="Location of the stage images: registry/prefix:tag.")]


@dataclass(frozen=True)
class RunOptions:
    """The source and the parameters of a run."""

    source: Source = ""
    params: Annotated[
        Path | None,
        typer.Option(
            "--params",
            "-p",
            help="YAML file of parameters that differ from the defaults, or the name of a built-in one.",
        ),
    ] = None
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Parameter as name=value; can be repeated.")
    ] = None
    policy: Policy = ""

    def settle(self, defaults: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return all parameters of a run; exit with a message if they are invalid."""
        from workflows.parameters import settle

        with exit_on_value_error():
            return settle(self.source or None, self.params, self.assignments or [], defaults or {}, self.policy)


@dataclass(frozen=True)
class ImageOptions:
    """The container images of the stages."""

    registry: Registry = ""
    overrides: Annotated[
        list[str] | None,
        typer.Option("--image", help="Custom image for one stage, as stage=image; can be repeated."),
    ] = None

    def choose(self) -> dict[str, str]:
        """Return the image of each stage; exit with a message if a name is invalid."""
        from medloop.settings import read_settings
        from workflows.image_names import choose

        with exit_on_value_error():
            return choose(self.registry or read_settings().images, self.overrides or [])


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn each field of a dataclass parameter of the command into an option."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: p.annotation for name, p in signature.parameters.items() if is_dataclass(p.annotation)
    }

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        options = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**values, **options)

    parameters = [option for parameter in signature.parameters.values() for option in _options(parameter)]
    vars(expanded)["__signature__"] = signature.replace(parameters=parameters)
    return expanded


def _options(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as parameters, and any other parameter unchanged."""
    group = parameter.annotation
    if not is_dataclass(group):
        return [parameter]
    hints = get_type_hints(group, include_extras=True)
    return [parameter.replace(name=f.name, annotation=hints[f.name], default=f.default) for f in fields(group)]


class WithParameters(TyperCommand):
    """A command whose help ends with the main parameters of a run."""

    def format_epilog(self, _context: Any, formatter: Any) -> None:
        """Write the list, which is read only when the help is shown."""
        from workflows.parameters import describe_first

        formatter.write(f"\n{describe_first(formatter.width)}\n")


@contextmanager
def exit_on_value_error() -> Iterator[None]:
    """Print the message of a ValueError and exit with status 2."""
    try:
        yield
    except ValueError as error:
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """Print the message and exit with status 2 (invalid usage)."""
    print_error(message)
    raise typer.Exit(2)


def print_error(message: str) -> None:
    """Print an error message; with --json also as JSON on standard output."""
    # Continuation lines are indented, so that text from outside cannot imitate a message of medloop.
    sys.stderr.write("medloop: " + "\n  ".join(map(printable, message.splitlines())) + "\n")
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": redact(message)}))


def check_runner(runner: str) -> None:
    """Exit with status 2 if the runner is unknown."""
    if runner not in ("subprocess", "docker"):
        refuse(f"--runner is {runner!r}; it must be subprocess or docker.")


def install_hint(package: str) -> str:
    """Return how to install a missing package, or "" if no extra of medloop contains it."""
    from importlib import metadata

    from components.shared.runtime.code_and_package_versions import DISTRIBUTIONS

    top = package.partition(".")[0]
    distribution = DISTRIBUTIONS.get(top, top).lower()
    requirements = [line.partition(";") for line in metadata.requires("medloop") or []]
    extras = [
        condition
        for name, _, condition in requirements
        if name.strip().lower() == distribution and "extra" in condition
    ]
    if not extras:
        return ""
    extra = "serve" if sys.argv[1:2] == ["serve"] and any("serve" in condition for condition in extras) else "local"
    return (
        f"This command needs the package {top}, which is not installed. Install it with: pip install 'medloop[{extra}]'"
    )
