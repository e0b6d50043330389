"""A stage's interface, read from the source of its function without importing anything.

The default and the limits of a parameter are in that function's signature, or in the fields of a dataclass that the
signature names (a record). The command line, the pipeline, the work key and the help texts all read them here.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from components.shared.errors import UsageError

COMPONENTS = Path(__file__).resolve().parents[2]
REQUIRED = object()
TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict, "list": list}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a stage."""

    name: str
    type: type
    default: Any
    limit: tuple[float, float] | None
    choices: tuple[str, ...] | None
    help: str

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def bounds(self) -> str:
        """The limits in words; "" if there are none."""
        if self.limit:
            low, high = (f"{int(end)}" if end == int(end) else f"{end:g}" for end in self.limit)
            return f"from {low} to {high}"
        return "one of " + ", ".join(self.choices) if self.choices else ""

    def check(self, value: Any) -> Any:
        """Return the value in this parameter's type; raise UsageError if it is not allowed."""
        value = self._typed(value)
        if self.limit and not self.limit[0] <= value <= self.limit[1]:
            raise UsageError(f"{self.name} is {value}; it must be {self.bounds}. Set it within that range.")
        if self.choices and value not in self.choices:
            raise UsageError(f"{self.name} is {value!r}; it must be {self.bounds}.{nearest(str(value), self.choices)}")
        return value

    def _typed(self, value: Any) -> Any:
        wanted = self.type
        problem = UsageError(f"{self.name} is {value!r}; it must be {_TYPE_NAMES[wanted]}. Give a value of that type.")
        if isinstance(value, bool) and wanted is not bool:
            raise problem
        if wanted is float and isinstance(value, str):  # YAML reads 1e-3 as text
            try:
                value = float(value)
            except ValueError:
                raise problem from None
        if wanted is float and isinstance(value, int | float):
            try:
                value = float(value)
            except OverflowError:
                raise problem from None
            if math.isnan(value):  # it would pass every comparison with a limit
                raise problem
            return value
        if wanted is int and isinstance(value, float) and value.is_integer():
            return int(value)  # pipelines pass integers inside dictionaries as floats
        if not isinstance(value, wanted):
            raise problem
        return value


_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}


class Record(NamedTuple):
    """A dataclass whose fields are parameters of a stage."""

    module: str
    name: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Interface:
    """Inputs, outputs and parameters of a stage; `several` are the inputs that consist of several artifacts."""

    stage: str
    summary: str
    inputs: tuple[str, ...]
    several: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    records: Mapping[str, Record]
    """Arguments of the function that group parameters."""
    takes_work: bool

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of every parameter: the given ones, checked, and defaults for the rest."""
        unknown = sorted(set(values) - set(self.parameters))
        if unknown:
            raise UsageError(
                f"{self.stage} has no parameter {unknown[0]!r}.{nearest(unknown[0], self.parameters)} "
                f"Parameters: {', '.join(sorted(self.parameters))}."
            )
        missing = [name for name, p in self.parameters.items() if p.required and name not in values]
        if missing:
            raise UsageError(f"{self.stage} requires the parameter {missing[0]}, which has no default. Set it.")
        return {name: p.check(values.get(name, p.default)) for name, p in self.parameters.items()}

    def arguments(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of the stage's function, with parameters grouped in their records."""
        rest = dict(parameters)
        records = {
            argument: getattr(importlib.import_module(module), name)(**{field: rest.pop(field) for field in fields})
            for argument, (module, name, fields) in self.records.items()
        }
        return {**rest, **records}


def nearest(name: str, known: Any) -> str:
    """Return a suggestion of the most similar known name, or ""."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def stages() -> list[str]:
    """Return the names of all stages: the folders with a component.py."""
    return sorted(path.parent.name for path in COMPONENTS.glob("*/component.py"))


@cache
def read(stage: str) -> Interface:
    """Return the interface of a stage, read from the source of its function."""
    path = COMPONENTS / stage / f"{stage}.py"
    if stage not in stages() or not path.is_file():
        raise UsageError(f"There is no stage {stage!r}.{nearest(stage, stages())} Stages: {', '.join(stages())}.")
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == stage)
    doc = ast.get_docstring(function) or ""
    helps = {name: words for _, name, words in re.findall(r"^( *)(\w+): (.+(?:\n\1 +.+)*)", doc, flags=re.MULTILINE)}
    paths: dict[str, list[str]] = {"In": [], "Ins": [], "Out": []}
    takes_work = False
    for argument in function.args.args:
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        if annotation in paths:
            paths[annotation].append(argument.arg)
        elif annotation == "Work":
            takes_work = True
        else:
            raise TypeError(f"{path}: {argument.arg} must be In, Ins, Out or Work; parameters are keyword-only.")
    imported = {name.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    parameters: dict[str, Parameter] = {}
    records: dict[str, Record] = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        name, kind = argument.arg, argument.annotation
        if kind is None:
            raise TypeError(f"The parameter {name} has no annotation.")
        if isinstance(kind, ast.Name) and (module := imported.get(kind.id)):
            fields = _fields(module, kind.id)
            records[name] = Record(module, kind.id, tuple(fields))
            parameters |= fields
        else:
            parameters[name] = _parameter(name, kind, default, helps.get(name, ""))
    inputs, several, outputs = (*paths["In"], *paths["Ins"]), tuple(paths["Ins"]), tuple(paths["Out"])
    return Interface(stage, doc.split("\n\n")[0], inputs, several, outputs, parameters, records, takes_work)


def _fields(module: str, record: str) -> dict[str, Parameter]:
    """Return the fields of a dataclass as parameters; the docstring below a field is its help."""
    path = COMPONENTS.parent.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == record)
    return {
        (name := ast.unparse(field.target)): _parameter(
            name, field.annotation, field.value, ast.literal_eval(below.value)
        )
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


def _parameter(name: str, annotation: ast.expr, default: ast.expr | None, help: str) -> Parameter:
    limit, choices = None, None
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        assert isinstance(annotation.slice, ast.Tuple)
        parts = annotation.slice.elts
        annotation, mark = parts[0], parts[1]
        assert isinstance(mark, ast.Call)
        values = [ast.literal_eval(value) for value in mark.args]
        if ast.unparse(mark.func) == "Between":
            limit = (float(values[0]), float(values[1]))
        else:
            choices = tuple(values[0])
    kind = TYPES[ast.unparse(annotation).split("[")[0]]
    return Parameter(name, kind, _value(default), limit, choices, " ".join(help.split()))


def _value(default: ast.expr | None) -> Any:
    if isinstance(default, ast.Call):  # field(default_factory=list)
        return TYPES[ast.unparse(default.keywords[0].value)]()
    return REQUIRED if default is None else ast.literal_eval(default)


def default(stage: str, parameter: str) -> Any:
    """Return the default of a stage's parameter."""
    return read(stage).parameters[parameter].default
