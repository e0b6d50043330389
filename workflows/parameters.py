"""Parameters of a run: names, defaults and limits, values from files and options, and their validation."""

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
from components.shared.runtime.stage_interface import COMPONENTS, REQUIRED, Parameter, nearest, read, stages

SET_BY_COMMAND_LINE = ("store", "by")
"""Parameters of the pipeline that users do not set."""

SET_BY_PIPELINE = ("ingest.source", "ingest.revision", "ingest.key_id", "ingest.part", "evaluate.precision")
"""Parameters of stages that users do not set."""

SUFFIX = "_options"
SHOWN = 200
"""Maximum number of characters of a value in an error message."""
POLICY = "policy"


@cache
def networks() -> tuple[str, ...]:
    """Return the networks of train: the functions marked `@network`, read from its source to avoid importing torch."""
    tree = ast.parse((COMPONENTS / "train" / "models.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return tuple(node.name for node in functions if "network" in map(ast.unparse, node.decorator_list))


@cache
def pipeline_parameters() -> dict[str, Parameter]:
    """Return the pipeline's parameters that users can set, with the default and limits of their stage."""
    tree = ast.parse((Path(__file__).parent / "retrain.py").read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "retrain")
    arguments = function.args.args
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(function.args.defaults))
    parameters = {}
    for argument, default in zip(arguments, [*defaults, *function.args.defaults], strict=True):
        name = argument.arg
        if name in SET_BY_COMMAND_LINE:
            continue
        if isinstance(default, ast.Call):  # default("stage", "parameter")
            parameter = read(ast.literal_eval(default.args[0])).parameters[ast.literal_eval(default.args[1])]
            parameters[name] = replace(parameter, choices=networks()) if name == "architecture" else parameter
        elif name == "parts":
            words = "number of parts of the source that are ingested in parallel, each in its own pod on a cluster"
            parameters[name] = Parameter(name, int, 1, (1, 1000), None, words)
        elif name.endswith(SUFFIX):
            parameters[name] = Parameter(name, dict, {}, None, None, f"more parameters of {name.removesuffix(SUFFIX)}")
        else:
            parameters[name] = Parameter(name, str, REQUIRED, None, None, "directory of images to train on")
    return parameters


def option_parameters() -> dict[str, Parameter]:
    """Return the parameters in the stages' options, as `stage_options.name`."""
    direct = pipeline_parameters()
    return {
        f"{stage}{SUFFIX}.{name}": parameter
        for stage in stages()
        if f"{stage}{SUFFIX}" in direct
        for name, parameter in read(stage).parameters.items()
        if name not in direct and f"{stage}.{name}" not in SET_BY_PIPELINE
    }


def settle(
    source: str | None, file: Path | None, assignments: Iterable[str], defaults: Mapping[str, Any], policy: str = ""
) -> dict[str, Any]:
    """Return all parameters of a run: those of the file, overridden by --policy, by assignments and by --source.

    `defaults` have priority over the defaults of the stages.
    """
    values: dict[str, Any] = {}
    for name, value in (_read_file(file) if file else {}).items():
        _assign(values, str(name), value)
    if policy:
        _assign(values, POLICY, policy)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set is {assignment!r}; write name=value, such as --set epochs=5.")
        _assign(values, name.strip(), _value(name.strip(), text))
    if source:
        values["source"] = source
    settled = {}
    for name, parameter in pipeline_parameters().items():
        if parameter.required and not values.get(name):
            raise UsageError("No source was given. Set it with --source DIR or --source s3://bucket/prefix.")
        settled[name] = parameter.check(values.get(name, defaults.get(name, parameter.default)))
    settled[POLICY] = check_policy(settled[POLICY], settled["ingest_options"].get("classes", []))
    settled["parts"] = [f"{number}/{settled['parts']}" for number in range(1, settled["parts"] + 1)]
    settled["source"] = _absolute(settled["source"])
    settled["weights"] = settled["weights"].removeprefix("file://")
    if settled["weights"] and os.path.exists(settled["weights"]):  # noqa: PTH110 - it may be a digest, not a path
        settled["weights"] = _absolute(settled["weights"])
    return settled


def _absolute(address: str) -> str:
    return address if "://" in address else str(Path(address).absolute())


def _read_file(path: Path) -> dict[str, Any]:
    """Return the content of a parameter file, given as a path or as the name of a built-in one."""
    shipped = {file.stem: file for file in sorted((Path(__file__).parent / "params").glob("*.yaml"))}
    try:
        content = read_yaml(path if path.is_file() else shipped.get(str(path), path)) or {}
    except FileNotFoundError:
        hint = nearest(str(path), shipped)
        raise UsageError(
            f"The parameter file {path} does not exist.{hint} Built-in ones: {', '.join(shipped)}."
        ) from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} contains a {type(content).__name__}; write one `name: value` per line.")
    return content


def read_policy(policy: Any) -> dict[str, Any]:
    """Return the changes of a policy to the default one, given as a mapping, a built-in name or a path."""
    if isinstance(policy, Mapping):
        return dict(policy)
    if not isinstance(policy, str) or not policy:
        raise UsageError(f"policy is {policy!r}; it must be a policy's name, a file, or a mapping of its sections.")
    shipped = {path.stem: path for path in sorted((Path(__file__).parent / "policies").glob("*.yaml"))}
    if policy == "default":
        return {}
    try:
        content = read_yaml(shipped.get(policy, Path(policy)))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        known = ["default", *shipped]
        raise UsageError(
            f"There is no policy {_short(policy)!r}.{nearest(policy, known)} Name a YAML file or a built-in policy: "
            f"{', '.join(known)}."
        ) from None
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"{policy} contains a {type(content).__name__}; write the sections of a policy: docs/gate.md.")
    return content or {}


def check_policy(changes: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Validate the changes of a policy, and return them in the form in which a pipeline passes them on.

    Class names are compared with `classes` if there are any; otherwise the gate compares them with those of the data.
    """
    from components.gate import policy

    whole = policy.complete_policy(changes)
    if classes:
        policy.check_classes(whole, [str(name) for name in classes])
    return {name: _as_passed(value) for name, value in policy.check_changes(changes).items()}


def _as_passed(value: Any) -> Any:
    """Convert a value as a pipeline does, so that work keys match those of earlier runs."""
    from components.gate.policy import NONE

    if isinstance(value, Mapping):
        return {name: _as_passed(inner) for name, inner in value.items()}
    return NONE if value is None else float(value) if isinstance(value, int) else value


def _assign_policy(values: dict[str, Any], name: str, value: Any) -> None:
    """Replace the policy, or override one entry of it, such as policy.floors.accuracy."""
    from components.gate.policy import merge_changes

    _, _, path = name.partition(".")
    if not path:
        values[POLICY] = read_policy(value)
        return
    depth = 2 if path.startswith(("first.", "subgroups.")) else 1
    for part in reversed(path.split(".", depth)):  # the last part may be the name of a class, which may contain dots
        value = {part: value}
    values[POLICY] = merge_changes(values.get(POLICY, {}), value)


def _assign(values: dict[str, Any], name: str, value: Any) -> None:
    direct, options = pipeline_parameters(), option_parameters()
    if name == POLICY or name.startswith(f"{POLICY}."):
        _assign_policy(values, name, value)
    elif name.endswith(SUFFIX) and name in direct:
        direct[name].check(value)
        for part, inner in value.items():
            _assign(values, f"{name}.{part}", inner)
    elif name in options:
        stage, _, part = name.partition(".")
        values.setdefault(stage, {})[part] = options[name].check(value)
    elif name in direct:
        values[name] = direct[name].check(value)
    else:
        known = [*direct, *options]
        inside = [full for full in options if full.partition(".")[2] == name]
        hint = f" Did you mean {inside[0]!r}?" if inside else nearest(name, known)
        raise UsageError(f"There is no parameter {name!r}.{hint} `medloop params` lists them all.")


def _value(name: str, text: str) -> Any:
    if name == POLICY and not text.lstrip().startswith("{"):
        return text  # a name or a path
    if name.startswith(f"{POLICY}.") and not text.strip():
        raise UsageError(f"--set {name}= has no value. Give one, or null to remove the limit.")
    parameter = pipeline_parameters().get(name) or option_parameters().get(name)
    if parameter and parameter.type is str:
        return text
    try:
        value = parse_yaml(text)
    except yaml.constructor.ConstructorError as error:
        raise UsageError(f"--set {name}={_short(text)} is not valid YAML: {error.problem}. Correct it.") from None
    except yaml.YAMLError:
        return text
    if isinstance(value, str) and parameter and parameter.type is float:
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError:
            return value
    return value


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def describe(words: Sequence[str] = (), width: int = 80) -> str:
    """Describe the parameters whose names contain all of `words`, with default, limits and meaning."""
    direct = {name: parameter for name, parameter in pipeline_parameters().items() if not name.endswith(SUFFIX)}
    every = {**direct, **option_parameters()}
    chosen = {name: parameter for name, parameter in every.items() if all(word in name for word in words)}
    if not chosen:
        hint = nearest(words[-1], [name.rpartition(".")[2] for name in every])
        raise UsageError(
            f"No parameter name contains {' and '.join(map(repr, words))}.{hint} `medloop params` lists them all."
        )
    return "\n".join(line for name, parameter in chosen.items() for line in _lines(name, parameter, width))


def describe_first(width: int = 80) -> str:
    """Describe the pipeline's own parameters, for the help of commands that accept all of them."""
    first = [name for name in pipeline_parameters() if not name.endswith(SUFFIX)]
    lines = [line for name in first for line in _lines(name, pipeline_parameters()[name], width)]
    more = len(option_parameters())
    return "\n".join(
        [
            "Parameters, for --set name=value or a line `name: value` in a file:",
            "",
            *lines,
            "",
            f"The stages have {more} more parameters. `medloop params` lists them all; `medloop params WORD ...`",
            "lists those with every word in the name: `medloop params train` (a stage), `medloop params train loss`.",
        ]
    )


def _lines(name: str, parameter: Parameter, width: int) -> list[str]:
    default = "required" if parameter.required else f"default {parameter.default!r}"
    facts = "; ".join(part for part in (default, parameter.bounds) if part)
    head = textwrap.wrap(f"{name}  ({facts})", width, initial_indent="  ", subsequent_indent="      ")
    return [*head, *textwrap.wrap(parameter.help, width, initial_indent="      ", subsequent_indent="      ")]
