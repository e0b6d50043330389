"""A policy: what a model must show. Held against what there is to ask for, and laid over the shipped one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from components.shared.errors import UsageError
from components.shared.figures import FIGURES, KEY, MICRO
from components.shared.parsing.yaml_documents import read_yaml
from components.shared.runtime.interface import nearest

SHIPPED = Path(__file__).parent / "policy.yaml"

FALLING = tuple(name for name, figure in FIGURES.items() if figure.lower_is_better)
"""Figures of which less is better."""
RISING = (*(name for name in FIGURES if name not in FALLING), *(f"micro_{name}" for name in MICRO))
"""Figures of which more is better."""
OF_A_CLASS = tuple(name for name, figure in FIGURES.items() if figure.per_class)
"""Figures that each class has."""
COMPARED = tuple(name for name, figure in FIGURES.items() if figure.compared)
"""Figures in which a model is compared with the one in service."""
FIELDS = ("sex", "age", "site", "view", "label_source")
"""By what subgroups are made."""
SYNONYMS = {synonym: name for name, figure in FIGURES.items() for synonym in figure.synonyms}
"""What other tools call a figure."""
NONE = "none"
"""How null is spelled on the way through a pipeline, which takes none inside a mapping."""
SMALLEST_ERROR = 0.0001
"""The smallest error rate at which evaluate bounds a difference."""

Policy = dict[str, Any]
Rule = Callable[[str, Any], Any]
LINE = re.compile(r"\s*(?P<figure>.+?)\s*(?P<sign>>=|<=|>|<|=+|≥|≤)\s*(?P<limit>\S+)\s*%?\s*")


class Line(NamedTuple):
    """A line of `require`: a figure, how it must stand to a limit, and the limit."""

    figure: str
    sign: str
    limit: float


def settle(given: Mapping[str, Any]) -> Policy:
    """The whole policy that these changes of the shipped one make, or a ValueError that names what is wrong with them.

    The same whatever form its numbers come in: a pipeline hands on 20, inside a dictionary, as 20.0 or as '20'.
    """
    changes = _section("policy", given, _RULES)
    whole = _over(_shipped(), changes)
    if changes and "name" not in changes:
        whole["name"] = f"{whole['name']}, changed"
    budget = whole["budget"]
    if budget["error"] / budget["looks"] < SMALLEST_ERROR * (1 - 1e-9):
        raise UsageError(
            f"The policy's budget spreads an error rate of {budget['error']:g} over {budget['looks']} looks, which "
            f"leaves less than {SMALLEST_ERROR:g} for each, and no report bounds a difference at that. Plan at most "
            f"{math.floor(budget['error'] / SMALLEST_ERROR + 1e-9)} looks."
        )
    return whole


def only_changes(given: Mapping[str, Any]) -> Policy:
    """The same changes with each value in its type, checked as far as they can be without the rest."""
    return _section("policy", given, _RULES)


def over(below: Mapping[str, Any], changes: Mapping[str, Any]) -> Policy:
    """Changes laid over other changes: tables entry by entry, all else as a whole."""
    merged = dict(below)
    for name, value in changes.items():
        inner = merged.get(name)
        merged[name] = over(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return merged


def same_classes(policy: Policy, classes: Iterable[str]) -> None:
    """Refuse a policy that names a class which the data does not have."""
    known = list(classes)
    lines = [line(text).figure for text in policy["require"]]
    tables = [policy["floors"], policy["ceilings"], policy["first"]["floors"], policy["first"]["ceilings"]]
    for figure in [*lines, *(name for table in tables for name in table)]:
        _, at, of = figure.partition("@")
        if at and of not in known:
            raise UsageError(
                f"The policy asks for {figure!r}, and the data has no class {of!r}.{nearest(of, known)} "
                f"Its classes: {', '.join(known)}."
            )


def line(text: str) -> Line:
    """A line of `require`, read."""
    found = LINE.fullmatch(text)
    if found is None:
        raise UsageError(f"The policy's require holds {text!r}. Write a figure, > or <, and a number: accuracy > 0.9.")
    sign = {"≥": ">=", "≤": "<="}.get(found["sign"], found["sign"])
    if "=" in sign and sign not in (">=", "<="):
        raise UsageError(
            f"The policy's require holds {text!r}, and a figure hardly ever equals a number. Write >= or <=."
        )
    if text.rstrip().endswith("%"):
        raise UsageError(
            f"The policy's require holds {text!r}, and figures are shares, not per cent. Write 0.9 for 90 %."
        )
    figure = _figure("require", found["figure"], (*RISING, *FALLING))
    return Line(figure, sign, _in_range(RISING + FALLING)(f"require's {figure}", found["limit"]))


@cache
def _default() -> Policy:
    return _section("policy", read_yaml(SHIPPED), _RULES)


def _shipped() -> Policy:
    return _over({}, _default())


def _over(below: Mapping[str, Any], changes: Mapping[str, Any]) -> Policy:
    """The whole policy: what was taken away is gone from the tables, and a single limit that was is null."""
    merged = over(below, changes)
    return {name: _without_none(value) if isinstance(value, Mapping) else value for name, value in merged.items()}


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in table.items()
        if value is not None
    }


def _section(where: str, given: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(
            f"{_whose(where)} is {given!r}, and must be a mapping with some of: {', '.join(rules)}. See docs/gate.md."
        )
    checked = {}
    for name, value in given.items():
        if name not in rules:
            raise UsageError(
                f"{_whose(where)} has no {'section' if where == 'policy' else 'entry'} {name!r}."
                f"{nearest(str(name), rules)} There are: {', '.join(rules)}."
            )
        checked[name] = rules[name](name if where == "policy" else f"{where}.{name}", value)
    return checked


def _whose(where: str) -> str:
    return "The policy" if where == "policy" else f"The policy's {where}"


def _inner(**rules: Rule) -> Rule:
    return lambda where, value: _section(where, value, rules)


def _table(names: tuple[str, ...], limit: Rule) -> Rule:
    """A rule for a mapping from figures to limits."""

    def check(where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise UsageError(f"The policy's {where} is {value!r}, and must be a mapping from figures to limits.")
        checked: dict[str, Any] = {}
        for name, each in value.items():
            figure = _figure(where, name, names)
            if figure in checked:
                raise UsageError(f"The policy's {where} holds {figure} twice, in two spellings. Keep one of them.")
            checked[figure] = limit(f"{where}.{name}", each)
        return checked

    return check


def _figure(where: str, name: Any, names: tuple[str, ...]) -> str:
    """The name of a figure, with its class where it has one, or a sentence that says what is wrong with it."""
    figure, at, of = str(name).strip().partition("@")
    figure, of = figure.strip(), of.strip()
    if figure not in names:
        if figure in RISING + FALLING and names not in (COMPARED, KEY):
            place, other = ("ceilings", "lower") if figure in FALLING else ("floors", "higher")
            raise UsageError(
                f"The policy's {where} holds {figure}, which is better the {other} it is. Put it under {place}."
            )
        meant = f" Did you mean {SYNONYMS[figure]!r}?" if SYNONYMS.get(figure) in names else nearest(figure, names)
        raise UsageError(f"The policy's {where} knows no figure {figure!r}.{meant} There are: {', '.join(names)}.")
    if not at:
        return figure
    if names in (COMPARED, KEY):
        raise UsageError(f"The policy's {where} holds {name!r}, and takes no class. Leave out what follows {figure}.")
    if figure not in OF_A_CLASS:
        raise UsageError(
            f"The policy's {where} asks for {figure} of a class, and a class has only: {', '.join(OF_A_CLASS)}."
        )
    if not of:
        raise UsageError(f"The policy's {where} holds {name!r} and names no class after the @. Name one.")
    return f"{figure}@{of}"


def _number(low: float, high: float, whole: bool = False) -> Rule:
    def check(where: str, value: Any) -> Any:
        number = _as_number(value)
        if number is None or (whole and not number.is_integer()):
            kind = "a whole number" if whole else "a number"
            raise UsageError(f"The policy's {where} is {value!r}, and must be {kind} from {low:,.10g} to {high:,.10g}.")
        if not low <= number <= high:
            raise UsageError(
                f"The policy's {where} is {number:g}, and must be from {low:,.10g} to {high:,.10g}. "
                "Set it within that range."
            )
        return int(number) if whole else number

    return check


def _in_range(names: tuple[str, ...]) -> Rule:
    figures = [FIGURES[name] for name in names if name in FIGURES]
    return _number(min(figure.low for figure in figures), max(figure.high for figure in figures))


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _or_none(rule: Rule) -> Rule:
    return lambda where, value: None if value in (None, NONE) else rule(where, value)


def _one_of(*choices: str) -> Rule:
    def check(where: str, value: Any) -> str:
        if value not in choices:
            raise UsageError(
                f"The policy's {where} is {value!r}, and must be one of {', '.join(choices)}."
                f"{nearest(str(value), choices)}"
            )
        return str(value)

    return check


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value.strip()) <= 80:
        raise UsageError(f"The policy's {where} is {value!r}, and must be a text of 1 to 80 characters.")
    return value.strip()


def _lines(where: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UsageError(f"The policy's {where} is {value!r}, and must be a list of lines such as 'accuracy > 0.9'.")
    return [f"{read.figure} {read.sign} {read.limit:.10g}" for read in map(line, value)]


def _fields(where: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise UsageError(f"The policy's {where} is {value!r}, and must be a list with some of: {', '.join(FIELDS)}.")
    for name in value:
        if name not in FIELDS:
            raise UsageError(
                f"The policy's {where} knows no field {name!r}.{nearest(str(name), FIELDS)} "
                f"There are: {', '.join(FIELDS)}."
            )
    return list(value)


_SHARE = _or_none(_number(0, 1))
_FLOORS = _table(RISING, _or_none(_in_range(RISING)))
_CEILINGS = _table(FALLING, _or_none(_in_range(FALLING)))
_RULES: dict[str, Rule] = {
    "name": _text,
    "floors": _FLOORS,
    "ceilings": _CEILINGS,
    "first": _inner(floors=_FLOORS, ceilings=_CEILINGS),
    "require": _lines,
    "non_inferiority": _table(COMPARED, _SHARE),
    "subgroups": _inner(fields=_fields, floors=_table(KEY, _SHARE), max_gap=_table(KEY, _SHARE)),
    "latency_ms": _or_none(_number(0.001, 3_600_000)),
    "model_mb": _or_none(_number(0.001, 1_000_000)),
    "data": _inner(max_quarantined_share=_SHARE, max_leakage=_or_none(_number(0, 1_000_000, whole=True))),
    "counts": _inner(patients=_number(1, 1_000_000, whole=True), class_images=_number(1, 1_000_000, whole=True)),
    "agreement": _number(0, 1),
    "budget": _inner(error=_number(SMALLEST_ERROR, 0.5), looks=_number(1, 5000, whole=True)),
    "approval": _inner(needed=_one_of("never", "always"), valid_days=_number(1, 3650, whole=True)),
    "without_service": _one_of("refuse", "allow"),
}
