"""A run's parameters: what the pipeline takes, what was asked for, and what is wrong with it, said at once."""

from __future__ import annotations

import ast
import errno
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from components.shared.errors import UsageError
from components.shared.parsing.yaml_documents import parse_yaml, read_yaml
from components.shared.runtime.interface import COMPONENTS, REQUIRED, Parameter, nearest, read, stages

GIVEN_BY_THE_RUN = ("store", "by")
"""Parameters of the pipeline that the command line fills in itself."""

HANDED_ON = ("ingest.source", "ingest.revision", "ingest.key_id", "ingest.part", "evaluate.precision")
"""Parameters of stages that the pipeline hands them itself."""

SUFFIX = "_options"
SHOWN = 200
"""Characters of a value that a refusal repeats."""
POLICY = "policy"


@cache
def networks() -> tuple[str, ...]:
    """The networks that train can build: the functions marked `@network` in its source, which needs torch to run."""
    tree = ast.parse((COMPONENTS / "train" / "models.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return tuple(node.name for node in functions if "network" in map(ast.unparse, node.decorator_list))


@cache
def pipeline_parameters() -> dict[str, Parameter]:
    """What a person may set, by name: the pipeline's own parameters with the default and limits their stage states."""
    tree = ast.parse((Path(__file__).parent / "retrain.py").read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "retrain")
    arguments = function.args.args
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(function.args.defaults))
    found = {}
    for argument, default in zip(arguments, [*defaults, *function.args.defaults], strict=True):
        name = argument.arg
        if name in GIVEN_BY_THE_RUN:
            continue
        if isinstance(default, ast.Call):  # default("stage", "parameter")
            parameter = read(ast.literal_eval(default.args[0])).parameters[ast.literal_eval(default.args[1])]
            found[name] = replace(parameter, choices=networks()) if name == "architecture" else parameter
        elif name == "parts":
            words = "how many parts of the source are ingested side by side, each on a machine of its own on a cluster"
            found[name] = Parameter(name, int, 1, (1, 1000), None, words)
        elif name.endswith(SUFFIX):
            found[name] = Parameter(name, dict, {}, None, None, f"more parameters of {name.removesuffix(SUFFIX)}")
        else:
            found[name] = Parameter(name, str, REQUIRED, None, None, "the directory of images to learn from")
    return found


def option_parameters() -> dict[str, Parameter]:
    """Every parameter that is reached through a stage's options, as `stage_options.name`."""
    direct = pipeline_parameters()
    return {
        f"{stage}{SUFFIX}.{name}": parameter
        for stage in stages()
        if f"{stage}{SUFFIX}" in direct
        for name, parameter in read(stage).parameters.items()
        if name not in direct and f"{stage}.{name}" not in HANDED_ON
    }


def settle(
    source: str | None, file: Path | None, assignments: Iterable[str], defaults: Mapping[str, Any], policy: str = ""
) -> dict[str, Any]:
    """All parameters of a run: the file's, then --policy, the assignments' (`name=value`), then --source; checked.

    `defaults` go before those that the stages state.
    """
    asked: dict[str, Any] = {}
    for name, value in (_read_file(file) if file else {}).items():
        _assign(asked, str(name), value)
    if policy:
        _assign(asked, POLICY, policy)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set takes name=value, and got {assignment!r}. Write, say, --set epochs=5.")
        _assign(asked, name.strip(), _value(name.strip(), text))
    if source:
        asked["source"] = source
    settled = {}
    for name, parameter in pipeline_parameters().items():
        if parameter.required and not asked.get(name):
            raise UsageError(
                "No source was given. Name the directory of images with --source DIR, or s3://bucket/prefix."
            )
        settled[name] = parameter.check(asked.get(name, defaults.get(name, parameter.default)))
    settled[POLICY] = check_policy(settled[POLICY], settled["ingest_options"].get("classes", []))
    settled["parts"] = [f"{number}/{settled['parts']}" for number in range(1, settled["parts"] + 1)]
    settled["source"] = _absolute(settled["source"])
    settled["weights"] = settled["weights"].removeprefix("file://")
    if settled["weights"] and os.path.exists(settled["weights"]):  # noqa: PTH110 - a digest may be no path at all
        settled["weights"] = _absolute(settled["weights"])
    return settled


def _absolute(address: str) -> str:
    return address if "://" in address else str(Path(address).absolute())


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path) or {}
    except FileNotFoundError:
        shipped = sorted(p.stem for p in (Path(__file__).parent / "params").glob("*.yaml"))
        raise UsageError(f"There is no parameter file {path}. Shipped ones: {', '.join(shipped)}.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}; write one `name: value` a line.")
    return content


def read_policy(named: Any) -> dict[str, Any]:
    """What a policy changes of the shipped one: named as a mapping, by the name of one that comes along, or a path."""
    if isinstance(named, Mapping):
        return dict(named)
    if not isinstance(named, str) or not named:
        raise UsageError(f"policy is {named!r}, and must be a policy's name, a file, or a mapping of its sections.")
    shipped = {path.stem: path for path in sorted((Path(__file__).parent / "policies").glob("*.yaml"))}
    if named == "default":
        return {}
    try:
        content = read_yaml(shipped.get(named, Path(named)))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        known = ["default", *shipped]
        raise UsageError(
            f"There is no policy {_short(named)!r}.{nearest(named, known)} Name a YAML file, or one of those that come "
            f"along: {', '.join(known)}."
        ) from None
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"{named} holds a {type(content).__name__}; write the sections of a policy: docs/gate.md.")
    return content or {}


def check_policy(changes: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """The changes that a policy makes, in the form in which a pipeline hands them on; refused where they are wrong.

    Names of classes are held against those that are asked for, if any are; the gate knows the data's own.
    """
    from components.gate import policy

    whole = policy.complete_policy(changes)
    if classes:
        policy.check_classes(whole, [str(name) for name in classes])
    return {name: _handed_on(value) for name, value in policy.check_changes(changes).items()}


def _handed_on(value: Any) -> Any:
    """What a pipeline makes of a value inside a mapping: so that the work that was done is found again."""
    from components.gate.policy import NONE

    if isinstance(value, Mapping):
        return {name: _handed_on(inner) for name, inner in value.items()}
    return NONE if value is None else float(value) if isinstance(value, int) else value


def _assign_policy(asked: dict[str, Any], name: str, value: Any) -> None:
    """Take a policy in place of the one before, or lay one entry (policy.floors.accuracy) over it."""
    from components.gate.policy import merge_changes

    _, _, place = name.partition(".")
    if not place:
        asked[POLICY] = read_policy(value)
        return
    deep = 2 if place.startswith(("first.", "subgroups.")) else 1
    for part in reversed(place.split(".", deep)):  # what is left may be the name of a class, with whatever it holds
        value = {part: value}
    asked[POLICY] = merge_changes(asked.get(POLICY, {}), value)


def _assign(asked: dict[str, Any], name: str, value: Any) -> None:
    direct, options = pipeline_parameters(), option_parameters()
    if name == POLICY or name.startswith(f"{POLICY}."):
        _assign_policy(asked, name, value)
    elif name.endswith(SUFFIX) and name in direct:
        direct[name].check(value)
        for part, inner in value.items():
            _assign(asked, f"{name}.{part}", inner)
    elif name in options:
        stage, _, part = name.partition(".")
        asked.setdefault(stage, {})[part] = options[name].check(value)
    elif name in direct:
        asked[name] = direct[name].check(value)
    else:
        known = [*direct, *options]
        inside = [full for full in options if full.partition(".")[2] == name]
        hint = f" Did you mean {inside[0]!r}?" if inside else nearest(name, known)
        raise UsageError(f"There is no parameter {name!r}.{hint} `medloop params` lists them all.")


def _value(name: str, text: str) -> Any:
    if name == POLICY and not text.lstrip().startswith("{"):
        return text  # a name or a path
    if name.startswith(f"{POLICY}.") and not text.strip():
        raise UsageError(f"--set {name}= gives no value. Give one, or null to take that limit away.")
    parameter = pipeline_parameters().get(name) or option_parameters().get(name)
    if parameter and parameter.type is str:
        return text
    try:
        value = parse_yaml(text)
    except yaml.constructor.ConstructorError as error:
        raise UsageError(f"--set {name}={_short(text)} is not readable: {error.problem}. Mend it.") from None
    except yaml.YAMLError:
        return text
    if isinstance(value, str) and parameter and parameter.type is float:
        try:
            return float(value)  # YAML takes 1e-3 for a text
        except ValueError:
            return value
    return value


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def describe(words: Sequence[str] = (), width: int = 80) -> str:
    """The parameters, each with its default, its limits and what it is for.

    `words` narrow the list to names that hold all of them, such as train and loss.
    """
    direct = {name: each for name, each in pipeline_parameters().items() if not name.endswith(SUFFIX)}
    every = {**direct, **option_parameters()}
    chosen = {name: each for name, each in every.items() if all(word in name for word in words)}
    if not chosen:
        hint = nearest(words[-1], [name.rpartition(".")[2] for name in every])
        raise UsageError(
            f"No parameter's name holds {' and '.join(map(repr, words))}.{hint} `medloop params` lists them all."
        )
    return "\n".join(line for name, each in chosen.items() for line in _lines(name, each, width))


def describe_first(width: int = 80) -> str:
    """The pipeline's own parameters, for the help pages of commands that take all."""
    first = [name for name in pipeline_parameters() if not name.endswith(SUFFIX)]
    lines = [line for name in first for line in _lines(name, pipeline_parameters()[name], width)]
    more = len(option_parameters())
    return "\n".join(
        [
            "Parameters, for --set name=value or a line `name: value` in a file:",
            "",
            *lines,
            "",
            f"The stages have {more} more: `medloop params` lists all of them, `medloop params train` a stage's,",
            "`medloop params train loss` those with both words in their names.",
        ]
    )


def _lines(name: str, parameter: Parameter, width: int) -> list[str]:
    default = "required" if parameter.required else f"default {parameter.default!r}"
    facts = "; ".join(part for part in (default, parameter.bounds) if part)
    head = textwrap.wrap(f"{name}  ({facts})", width, initial_indent="  ", subsequent_indent="      ")
    return [*head, *textwrap.wrap(parameter.help, width, initial_indent="      ", subsequent_indent="      ")]
