"""Policies: the limits that a model must meet. Validate changes and merge them into the shipped policy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from components.shared.errors import UsageError
from components.shared.metric_catalogue import FIGURES, KEY, MICRO
from components.shared.parsing.yaml_documents import read_yaml
from components.shared.runtime.stage_interface import nearest

SHIPPED = Path(__file__).parent / "policy.yaml"

FALLING = tuple(name for name, figure in FIGURES.items() if figure.lower_is_better)
"""Figures for which lower is better."""
RISING = (*(name for name in FIGURES if name not in FALLING), *(f"micro_{name}" for name in MICRO))
"""Figures for which higher is better."""
OF_A_CLASS = tuple(name for name, figure in FIGURES.items() if figure.per_class)
"""Figures that can be limited for one class."""
COMPARED = tuple(name for name, figure in FIGURES.items() if figure.compared)
"""Figures that are compared with those of the model in service."""
FIELDS = ("sex", "age", "site", "view", "label_source")
"""Fields that divide the test set into subgroups."""
SYNONYMS = {synonym: name for name, figure in FIGURES.items() for synonym in figure.synonyms}
"""Names of figures in other tools."""
NONE = "none"
"""Spelling of null in pipeline parameters, where a mapping cannot contain null."""
SMALLEST_ERROR = 0.0001
"""Smallest error rate for which evaluate computes a bound of a difference."""

Policy = dict[str, Any]
Rule = Callable[[str, Any], Any]
REQUIREMENT = re.compile(r"\s*(?P<figure>.+?)\s*(?P<sign>>=|<=|>|<|=+|≥|≤)\s*(?P<limit>\S+)\s*%?\s*")


class Requirement(NamedTuple):
    """A line of `require`: a figure, a comparison sign and a limit."""

    figure: str
    sign: str
    limit: float


def complete_policy(changes: Mapping[str, Any]) -> Policy:
    """Return the shipped policy with these changes; raise UsageError for an invalid one.

    Numbers may be given as text or float: inside a dictionary, a pipeline passes 20 as 20.0 or '20'.
    """
    changes = check_changes(changes)
    merged = merge_changes(_shipped(), changes)
    # An entry that was set to null is removed from its table; a limit outside of tables stays null.
    whole = {name: _without_none(value) if isinstance(value, Mapping) else value for name, value in merged.items()}
    if changes and "name" not in changes:
        whole["name"] = f"{whole['name']}, changed"
    budget = whole["budget"]
    if budget["error"] / budget["looks"] < SMALLEST_ERROR * (1 - 1e-9):
        raise UsageError(
            f"The policy's budget spreads an error rate of {budget['error']:g} over {budget['looks']} evaluations, "
            f"which leaves less than {SMALLEST_ERROR:g} for each; reports have no bounds for so small a rate. Set "
            f"budget.looks to at most {math.floor(budget['error'] / SMALLEST_ERROR + 1e-9)}."
        )
    return whole


def check_changes(changes: Mapping[str, Any]) -> Policy:
    """Return the changes with each value in its type; raise UsageError for an unknown name or an invalid value."""
    return _section("policy", changes, _RULES)


def merge_changes(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Policy:
    """Return `base` with `changes` applied: tables entry by entry, anything else as a whole."""
    merged = dict(base)
    for name, value in changes.items():
        inner = merged.get(name)
        merged[name] = (
            merge_changes(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
        )
    return merged


def check_classes(policy: Policy, classes: Iterable[str]) -> None:
    """Raise UsageError if the policy names a class that the data does not have."""
    known = list(classes)
    lines = [parse_requirement(text).figure for text in policy["require"]]
    tables = [policy["floors"], policy["ceilings"], policy["first"]["floors"], policy["first"]["ceilings"]]
    for figure in [*lines, *(name for table in tables for name in table)]:
        _, at, of = figure.partition("@")
        if at and of not in known:
            raise UsageError(
                f"The policy limits {figure!r}, but the data has no class {of!r}.{nearest(of, known)} "
                f"Classes: {', '.join(known)}."
            )


def parse_requirement(text: str) -> Requirement:
    """Return a line of `require`, parsed; raise UsageError for an invalid one."""
    match = REQUIREMENT.fullmatch(text)
    if match is None:
        raise UsageError(
            f"The policy's require contains {text!r}. Write a figure, > or <, and a number: accuracy > 0.9."
        )
    sign = {"≥": ">=", "≤": "<="}.get(match["sign"], match["sign"])
    if "=" in sign and sign not in (">=", "<="):
        raise UsageError(
            f"The policy's require contains {text!r}, but a figure is hardly ever equal to a number. Write >= or <=."
        )
    if text.rstrip().endswith("%"):
        raise UsageError(
            f"The policy's require contains {text!r}, but figures are shares, not per cent. Write 0.9 for 90 %."
        )
    figure = _figure("require", match["figure"], (*RISING, *FALLING))
    return Requirement(figure, sign, _in_range(RISING + FALLING)(f"require's {figure}", match["limit"]))


@cache
def _shipped() -> Policy:
    return check_changes(read_yaml(SHIPPED))


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in table.items()
        if value is not None
    }


def _section(where: str, section: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
    whole = where == "policy"
    subject = "The policy" if whole else f"The policy's {where}"
    if not isinstance(section, Mapping):
        raise UsageError(
            f"{subject} is {section!r}; it must be a mapping with some of: {', '.join(rules)}. See docs/gate.md."
        )
    checked = {}
    for name, value in section.items():
        if name not in rules:
            raise UsageError(
                f"{subject} has no {'section' if whole else 'entry'} {name!r}."
                f"{nearest(str(name), rules)} Allowed: {', '.join(rules)}."
            )
        checked[name] = rules[name](name if whole else f"{where}.{name}", value)
    return checked


def _invalid(where: str, value: Any, rule: str) -> UsageError:
    return UsageError(f"The policy's {where} is {value!r}; it must be {rule}")


def _inner(**rules: Rule) -> Rule:
    return lambda where, value: _section(where, value, rules)


def _table(names: tuple[str, ...], limit: Rule) -> Rule:
    """Return a rule for a mapping from figures to limits."""

    def check(where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _invalid(where, value, "a mapping from figures to limits.")
        checked: dict[str, Any] = {}
        for name, bound in value.items():
            figure = _figure(where, name, names)
            if figure in checked:
                raise UsageError(f"The policy's {where} contains {figure} twice, in two spellings. Keep one of them.")
            checked[figure] = limit(f"{where}.{name}", bound)
        return checked

    return check


def _figure(where: str, name: Any, names: tuple[str, ...]) -> str:
    """Return the normalised name of a figure, with its class if it has one; raise UsageError for an invalid one."""
    figure, at, of = str(name).strip().partition("@")
    figure, of = figure.strip(), of.strip()
    if figure not in names:
        if figure in RISING + FALLING and names not in (COMPARED, KEY):
            section, better = ("ceilings", "lower") if figure in FALLING else ("floors", "higher")
            raise UsageError(f"The policy's {where} contains {figure}, for which {better} is better. Use {section}.")
        meant = f" Did you mean {SYNONYMS[figure]!r}?" if SYNONYMS.get(figure) in names else nearest(figure, names)
        raise UsageError(f"The policy's {where} has no figure {figure!r}.{meant} Allowed: {', '.join(names)}.")
    if not at:
        return figure
    if names in (COMPARED, KEY):
        raise UsageError(f"The policy's {where} contains {name!r}, but allows no class. Write {figure} alone.")
    if figure not in OF_A_CLASS:
        raise UsageError(
            f"The policy's {where} limits {figure} of one class; for a class use: {', '.join(OF_A_CLASS)}."
        )
    if not of:
        raise UsageError(f"The policy's {where} contains {name!r}, without a class after the @. Add the class.")
    return f"{figure}@{of}"


def _number(low: float, high: float, whole: bool = False) -> Rule:
    def check(where: str, value: Any) -> Any:
        number = _as_number(value)
        if number is None or (whole and not number.is_integer()):
            kind = "a whole number" if whole else "a number"
            raise _invalid(where, value, f"{kind} from {low:,.10g} to {high:,.10g}.")
        if not low <= number <= high:
            raise _invalid(where, value, f"from {low:,.10g} to {high:,.10g}. Set it within that range.")
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
            raise _invalid(where, value, f"one of {', '.join(choices)}.{nearest(str(value), choices)}")
        return str(value)

    return check


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value.strip()) <= 80:
        raise _invalid(where, value, "a text of 1 to 80 characters.")
    return value.strip()


def _lines(where: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _invalid(where, value, "a list of lines such as 'accuracy > 0.9'.")
    return [f"{figure} {sign} {limit:.10g}" for figure, sign, limit in map(parse_requirement, value)]


def _fields(where: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise _invalid(where, value, f"a list with some of: {', '.join(FIELDS)}.")
    for name in value:
        if name not in FIELDS:
            raise UsageError(
                f"The policy's {where} has no field {name!r}.{nearest(str(name), FIELDS)} Allowed: {', '.join(FIELDS)}."
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
