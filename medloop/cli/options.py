"""What the commands share: options that several take, parameters settled from them, and how they refuse."""

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

from components.shared.privacy.redaction import one_line, printable, redact

Source = Annotated[
    str, typer.Option("--source", "-s", help="Directory of images, or s3://bucket/prefix: a folder for each class.")
]
Policy = Annotated[str, typer.Option("--policy", help="The gate's policy: a YAML file, or a shipped one's name.")]
RunName = Annotated[str, typer.Argument(metavar="[RUN]", help="A run's id or its beginning; the latest by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]


def _one_line(_: typer.Context, option: typer.CallbackParam, value: str) -> str:
    with refusal():
        return one_line(value, f"--{option.name}")


Reason = Annotated[
    str, typer.Option("--reason", callback=_one_line, help="Why, on one line; it is written into the release log.")
]
By = Annotated[str, typer.Option("--by", callback=_one_line, help="Who approves; it is written into the release log.")]
Runner = Annotated[str, typer.Option("--runner", help="subprocess: on this machine; docker: in the stage's image.")]
ImagesAt = Annotated[str, typer.Option("--images", help="Where the images are: registry/prefix:tag.")]


@dataclass(frozen=True)
class RunOptions:
    """The source and the parameters of a run."""

    source: Source = ""
    params: Annotated[
        Path | None, typer.Option("--params", "-p", help="YAML file of parameters; holds overrides only.")
    ] = None
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="One parameter, as name=value. Repeat for more.")
    ] = None
    policy: Policy = ""

    def settle(self, defaults: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return all parameters of a run; exit with a sentence if they are invalid."""
        from workflows.parameters import settle

        with refusal():
            return settle(self.source or None, self.params, self.assignments or [], defaults or {}, self.policy)


@dataclass(frozen=True)
class ImageOptions:
    """The container images of the stages."""

    where: ImagesAt = ""
    brought: Annotated[
        list[str] | None,
        typer.Option("--image", help="An image of your own for a stage, as stage=image. Repeat for more."),
    ] = None

    def choose(self) -> dict[str, str]:
        """Return the image of each stage; exit with a sentence if a name is invalid."""
        from medloop.settings import read_settings
        from workflows.image_names import choose

        with refusal():
            return choose(self.where or read_settings().images, self.brought or [])


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make each field of a dataclass that the command takes an option of its own."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: p.annotation for name, p in signature.parameters.items() if is_dataclass(p.annotation)
    }

    @functools.wraps(command)
    def expanded(**given: Any) -> None:
        options = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**given, **options)

    parameters = [option for each in signature.parameters.values() for option in _options(each)]
    vars(expanded)["__signature__"] = signature.replace(parameters=parameters)
    return expanded


def _options(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as parameters, and any other parameter as it is."""
    group = parameter.annotation
    if not is_dataclass(group):
        return [parameter]
    hints = get_type_hints(group, include_extras=True)
    return [parameter.replace(name=f.name, annotation=hints[f.name], default=f.default) for f in fields(group)]


class WithParameters(TyperCommand):
    """A command whose help ends with a run's first parameters, read when it is asked for."""

    def format_epilog(self, _context: Any, formatter: Any) -> None:
        """Write the list."""
        from workflows.parameters import describe_first

        formatter.write(f"\n{describe_first(formatter.width)}\n")


@contextmanager
def refusal() -> Iterator[None]:
    """Exit with the sentence of a ValueError, as `refuse` does."""
    try:
        yield
    except ValueError as error:
        refuse(str(error))


def refuse(sentence: str) -> NoReturn:
    """End, because what was asked makes no sense."""
    tell(sentence)
    raise typer.Exit(2)


def tell(sentence: str) -> None:
    """Say what went wrong, as JSON too where that was asked for."""
    # A line that text from outside breaks is indented: it cannot pass for a message of its own.
    sys.stderr.write("medloop: " + "\n  ".join(map(printable, sentence.splitlines())) + "\n")
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": redact(sentence)}))


def check_runner(runner: str) -> None:
    """Refuse a runner that there is not."""
    if runner not in ("subprocess", "docker"):
        refuse(f"--runner is {runner!r}, and must be subprocess or docker.")


def extra_missing(package: str) -> str:
    """Return which extra of medloop's wheel brings a package that is not installed; nothing if none does."""
    from importlib import metadata

    from components.shared.runtime.stage_code import DISTRIBUTIONS

    top = package.partition(".")[0]
    wanted = DISTRIBUTIONS.get(top, top).lower()
    needs = [need.partition(";") for need in metadata.requires("medloop") or []]
    extras = [condition for name, _, condition in needs if name.strip().lower() == wanted and "extra" in condition]
    if not extras:
        return ""
    extra = "serve" if sys.argv[1:2] == ["serve"] and any("serve" in condition for condition in extras) else "local"
    return (
        f"This command needs the package {top}, which is not installed. Install it with: pip install 'medloop[{extra}]'"
    )
