"""The checks a model must pass. What is missing or is no number fails: the gate is closed unless shown otherwise.

Each check bears the name of the place in the policy that asks for it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.gate.policy import line
from components.shared.figures import FIGURES

Metrics = Mapping[str, Any]
Policy = Mapping[str, Any]

BOUNDS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}
VALUE, LOSS = "\0", "\1"
"""Where the numbers go in a sentence: by marks that no name of a class or a site holds."""
CONFIDENCE = 0.95
"""With which confidence limits are held against bounds, at least."""


@dataclass(frozen=True)
class Check:
    """One check: what was found, what is required, and a phrase that says both."""

    name: str
    title: str
    value: float | None
    limit: float
    sign: str
    phrase: str
    excused: bool = False
    """There is nothing to judge, and the policy does not ask for it then."""

    @property
    def margin(self) -> float | None:
        """By how much the limit is kept; negative where it is not, None where nothing was found."""
        if self.value is None:
            return None
        return self.value - self.limit if self.sign in (">", ">=") else self.limit - self.value

    @property
    def passed(self) -> bool:
        """Whether the limit is kept."""
        if self.margin is None:
            return self.excused
        return self.margin > 0 or (self.margin == 0 and self.sign in (">=", "<="))

    def record(self) -> dict[str, Any]:
        """As it stands in decision.json."""
        return {
            "name": self.name,
            "title": self.title,
            "value": self.value,
            "limit": self.limit,
            "bound": BOUNDS[self.sign],
            "margin": None if self.margin is None else round(self.margin, 10),
            "passed": self.passed,
            "sentence": f"{_capital(self.phrase)}.",
        }


def found(metrics: Any, *path: str) -> float | None:
    """The number at this place of the metrics, or None where there is none."""
    for key in path:
        metrics = metrics.get(key) if isinstance(metrics, Mapping) else None
    if isinstance(metrics, bool) or not isinstance(metrics, int | float):
        return None
    return metrics if -sys.float_info.max <= metrics <= sys.float_info.max else None  # NaN is not, either


def judge(metrics: Metrics, policy: Policy, look: int, spent: float) -> list[Check]:
    """All checks of a whole policy on the metrics of one model, at this look, when those before spent so much."""
    subject = metrics["subject"]
    lost = unloadable(metrics)
    checks = [*_budget(policy, look, spent), _patients(metrics, policy), _class_images(metrics, policy)]
    checks += _sure_enough(metrics)
    checks += _limits(metrics, policy, "")
    if not subject["champion"] or (lost and policy["without_service"] == "allow"):
        checks += _limits(metrics, policy["first"], "first.")
    checks += [_line(metrics, number, text) for number, text in enumerate(policy["require"])]
    if lost:
        checks.append(_without_service(policy, lost))
    elif subject["champion"] or metrics.get("comparison"):
        allowed = policy["non_inferiority"].items()
        checks += [_difference(metrics, figure, margin, level(metrics, figure, policy)) for figure, margin in allowed]
    checks += _subgroups(metrics, policy["subgroups"])
    checks += _machine(metrics, policy)
    checks += _data(metrics, policy["data"])
    if subject["precision"] != "float32":
        checks.append(_agreement(metrics, policy))
    return checks


def unloadable(metrics: Metrics) -> str:
    """Why the model in service could not be loaded, or nothing: then it was, or there is none."""
    why = metrics.get("service_error")
    return why if isinstance(why, str) and metrics["subject"]["champion"] and not metrics.get("comparison") else ""


def error_at_this_look(policy: Policy) -> float:
    """The chance of a wrong release that one look may take: the same for each."""
    return float(policy["budget"]["error"] / policy["budget"]["looks"])


def level(metrics: Metrics, figure: str, policy: Policy) -> tuple[float, float | None]:
    """The largest error rate within what this look may take for which the report bounds a difference, and the bound."""
    allowed = error_at_this_look(policy)
    groups = (metrics.get("comparison") or {}).get("populations") or {}
    lower = ((groups.get("core") or {}).get(figure) or {}).get("lower")
    pairs = [pair for pair in lower if _is_pair(pair)] if isinstance(lower, list) else []
    within = [pair for pair in pairs if pair[0] <= allowed * (1 + 1e-9)]
    if not within:
        return allowed, None
    error, bound = max(within, key=lambda pair: float(pair[0]))
    return float(error), found({"bound": bound}, "bound")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and found({"error": pair[0]}, "error") is not None


def _budget(policy: Policy, look: int, spent: float) -> Iterator[Check]:
    planned = policy["budget"]["looks"]
    if look <= planned:
        phrase = f"this is look {look} of {planned} planned at this locked test"
    else:
        phrase = (
            f"this is look {look} at this locked test, and {planned} were planned: nothing more is approved on it "
            "until there is a new locked test set, or a person raises budget.looks in the policy"
        )
    yield Check("budget.looks", "Looks at the locked test", look, planned, "<=", phrase)
    error, each = policy["budget"]["error"], error_at_this_look(policy)
    if look <= planned and spent + each > error * (
        1 + 1e-9
    ):  # under other policies looks cost more than under this one
        phrase = (
            f"the looks before spent an error rate of {spent:.3g}, this one costs {each:.2g}, and the policy grants "
            f"{error:g} in all: nothing more is approved on this locked test until there is a new one, or a person "
            "raises budget.error in the policy"
        )
        yield Check("budget.error", "Error rate spent on the locked test", spent + each, error, "<=", phrase)


def _patients(metrics: Metrics, policy: Policy) -> Check:
    value, limit = found(metrics, "all", "patients"), policy["counts"]["patients"]
    return _check("counts.patients", "Patients in the test", value, limit, f"{VALUE} patients were tested")


def _class_images(metrics: Metrics, policy: Policy) -> Check:
    images = {name: found(metrics, "all", "by_class", name) for name in metrics["classes"]}
    fewest = min(images, key=lambda name: images[name] or 0)
    said = f"{VALUE} test images are of " + fewest + (", the rarest class" if len(images) > 1 else "")
    limit = policy["counts"]["class_images"]
    return _check("counts.class_images", "Images of the rarest class", images[fewest], limit, said)


def _sure_enough(metrics: Metrics) -> Iterator[Check]:
    """Bounds that hold less often than limits are meant for: a run's parameter must not loosen what its policy asks."""
    value = found(metrics, "confidence")
    if value is None or value < CONFIDENCE:
        said = f"the report's bounds hold with a confidence of {VALUE}"
        yield _check("confidence", "Confidence of the bounds", value, CONFIDENCE, said)


def _limits(metrics: Metrics, table: Policy, prefix: str) -> Iterator[Check]:
    """Floors on lower bounds, and ceilings on upper ones."""
    confidence = _confidence(metrics)
    for figure, limit in table["floors"].items():
        value, title = found(metrics, *_place(figure), "low"), _title(figure)
        said = f"{title} is at least {VALUE} with {confidence} confidence"
        yield _check(f"{prefix}floors.{figure}", f"{_capital(title)}, lower bound", value, limit, said)
    for figure, limit in table["ceilings"].items():
        value, title = found(metrics, *_place(figure), "high"), _title(figure)
        said = f"{title} is at most {VALUE} with {confidence} confidence"
        yield _check(f"{prefix}ceilings.{figure}", f"{_capital(title)}, upper bound", value, limit, said, "<=")


def _line(metrics: Metrics, number: int, text: str) -> Check:
    figure, sign, limit = line(text)
    value, title = found(metrics, *_place(figure), "value"), _title(figure)
    return _check(f"require.{number}", f"{_capital(title)}", value, limit, f"{title} is {VALUE}", sign)


def _without_service(policy: Policy, why: str) -> Check:
    said = f"the model in service could not be loaded, so nothing is compared with it ({why.rstrip('.')})"
    if policy["without_service"] == "allow":
        phrase = f"{said}; the policy allows that, and the limits for a first model hold instead"
    else:
        phrase = f"{said}; put it in order, or let the policy say `without_service: allow`"
    allowed = policy["without_service"] == "allow"
    return Check("without_service", "The model in service can be loaded", None, 1, ">=", phrase, allowed)


def _difference(metrics: Metrics, figure: str, allowed: float, at: tuple[float, float | None]) -> Check:
    """Whether the model in service is not lost against by more than allowed, on the locked core."""
    error, value = at
    title = _title(figure)
    if metrics["subject"]["model"] == metrics["subject"]["champion"]:
        label = f"{_capital(title)} against the model in service"
        same = "this very model is in service already, and cannot be worse than itself"
        return Check(f"non_inferiority.{figure}", label, None, -allowed, ">=", same, excused=True)
    below, above = ("above", "below") if FIGURES[figure].lower_is_better else ("below", "above")
    lost = value is not None and value < 0
    some = f"is at least {VALUE} {above}" if value is not None and value >= 0.0005 else f"is not {below}"
    side = f"may be up to {LOSS} {below}" if lost else some
    said = f"{title} on the locked core {side} the model in service’s with {100 * (1 - error):.10g} % confidence"
    name = f"{_capital(title)} against the model in service, lower bound"
    if value is None:
        groups = (metrics.get("comparison") or {}).get("populations") or {}
        where = "on the locked core" if groups.get("core") else "on a locked core, of which no image is left"
        phrase = (
            f"the report has no number for “{name}” {where} at an error rate of {error:.2g}, and without it nothing is "
            "approved"
        )
        return Check(f"non_inferiority.{figure}", name, None, -allowed, ">=", phrase)
    phrase = _of_loss(value, -allowed, said, below)
    if value < -allowed:
        phrase += _too_few(metrics, figure)
    return Check(f"non_inferiority.{figure}", name, value, -allowed, ">=", phrase)


def _too_few(metrics: Metrics, figure: str) -> str:
    """A word for a model that was not seen to be worse: what is lacking then are patients."""
    core = metrics["comparison"]["populations"]["core"]
    seen, patients = found(core, figure, "difference"), found(core, "patients")
    if seen is None or patients is None or (-seen if FIGURES[figure].lower_is_better else seen) < 0:
        return ""
    better = f"better by {abs(seen):.3f}" if seen else "equal"
    return (
        f" (on the core’s {patients:.0f} patients it was {better}; it takes more of them to show that it is no worse)"
    )


def _subgroups(metrics: Metrics, asked: Policy) -> Iterator[Check]:
    listed = metrics.get("subgroups")
    groups = [group for group in listed if _in(group, asked)] if isinstance(listed, list) else []
    judged = [group for group in groups if group.get("too_small") is False]
    small = len(groups) - len(judged)
    rest = f"; {_small(small)}" if small else ""
    confidence = _confidence(metrics)
    for figure, limit in asked["floors"].items():
        title = _title(figure)
        name, label = f"subgroups.floors.{figure}", f"{_capital(title)} of the weakest subgroup, lower bound"
        if not isinstance(listed, list) or judged:
            lows = [(found(group, "figures", figure, "low"), _called(group)) for group in judged]
            value, which = min(lows, key=lambda low: -math.inf if low[0] is None else low[0], default=(None, ""))
            said = f"{title} in the weakest subgroup, {which}, is at least {VALUE} with {confidence} confidence"
            yield _check(name, label, value, limit, said, rest=rest)
        else:
            yield Check(name, label, None, limit, ">=", f"no subgroup could be judged{rest or ': there is none'}", True)
    for figure, limit in asked["max_gap"].items():
        yield _gap(metrics, asked, figure, limit, judged, rest)


def _gap(metrics: Metrics, asked: Policy, figure: str, limit: float, judged: list[Any], rest: str) -> Check:
    title = _title(figure)
    name, label = f"subgroups.max_gap.{figure}", f"Widest gap in {title} between subgroups"
    listed = metrics.get("gaps")
    every = listed if isinstance(listed, list) else []
    gaps = [gap for gap in every if _in(gap, asked) and gap.get("figure") == figure]
    fields = [group["field"] for group in judged if group.get("value") != "unknown"]
    if isinstance(listed, list) and not gaps and len(set(fields)) == len(fields):  # no field has two of them
        return Check(name, label, None, limit, "<=", f"no two subgroups could be compared{rest}", True)
    widest: Mapping[str, Any] = max(gaps, key=_width, default={})
    value, low, high = (found(widest, name) for name in ("gap", "low", "high"))
    interval = "" if low is None or high is None else f" ({_number(low, 3)} to {_number(high, 3)})"
    between = f"{widest.get('field')} {widest.get('best')} and {widest.get('worst')}"
    said = f"{title} differs by {VALUE}{interval} between {between}"
    return _check(name, label, value, limit, said, "<=", rest)


def _width(gap: Mapping[str, Any]) -> float:
    """How wide a gap is; one without a number is the widest, so that it is not passed over."""
    width = found(gap, "gap")
    return math.inf if width is None else width


def _in(group: Any, asked: Policy) -> bool:
    return isinstance(group, Mapping) and group.get("field") in asked["fields"]


def _called(group: Mapping[str, Any]) -> str:
    return f"{group['field']} {group.get('value')}"


def _small(number: int) -> str:
    return "1 subgroup is too small to be judged" if number == 1 else f"{number} subgroups are too small to be judged"


def _machine(metrics: Metrics, policy: Policy) -> Iterator[Check]:
    if policy["latency_ms"] is not None:
        value = found(metrics, "latency", "milliseconds")
        said = f"one image takes {VALUE} ms"
        yield _check("latency_ms", "Milliseconds for one image", value, policy["latency_ms"], said, "<=")
    if policy["model_mb"] is not None:
        size = found(metrics, "subject", "model_bytes")
        value = None if size is None else size / 1e6
        yield _check("model_mb", "Megabytes of the graph", value, policy["model_mb"], f"the graph has {VALUE} MB", "<=")


def _data(metrics: Metrics, asked: Policy) -> Iterator[Check]:
    if "max_quarantined_share" in asked:
        images, aside = (found(metrics, "data", name) for name in ("images", "quarantined"))
        value = None if images is None or aside is None or images + aside <= 0 else aside / (images + aside)
        said, limit = f"the share of images that were set aside is {VALUE}", asked["max_quarantined_share"]
        yield _check("data.max_quarantined_share", "Share of images set aside", value, limit, said, "<=")
    if "max_leakage" in asked:
        value = found(metrics, "data", "leakage")
        said = f"{VALUE} leaks between the sides were found"
        yield _check("data.max_leakage", "Leaks between the sides", value, asked["max_leakage"], said, "<=")


def _agreement(metrics: Metrics, policy: Policy) -> Check:
    value = found(metrics, "as_trained", "agreement")
    graph = metrics["subject"]["precision"]
    said = f"the share of images that the {graph} graph classes as the trained one does is {VALUE}"
    return _check("agreement", "Agreement of shipped and trained graph", value, policy["agreement"], said)


def _place(figure: str) -> tuple[str, ...]:
    """Where the metrics have a figure."""
    name, at, of = figure.partition("@")
    if at:
        return "all", "per_class", of, name
    if name.startswith("micro_"):
        return "all", "micro", name.removeprefix("micro_")
    return "all", "figures", name


def _title(figure: str) -> str:
    """A figure in words, as it stands within a sentence."""
    name, at, of = figure.partition("@")
    micro = "micro " if name.startswith("micro_") else ""
    return f"{micro}{FIGURES[name.removeprefix('micro_')].phrase}{f' for {of}' if at else ''}"


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _check(
    name: str, title: str, value: float | None, limit: float, said: str, sign: str = ">=", rest: str = ""
) -> Check:
    if value is None:
        phrase = f"the report has no number for “{title}”, and without it nothing is approved"
    else:
        phrase = _phrase(value, limit, said, sign) + rest
    return Check(name, title, value, limit, sign, phrase)


def _phrase(value: float, limit: float, said: str, sign: str) -> str:
    gap = abs(value - limit)
    digits = _digits(gap)
    shown, shown_gap = _number(value, digits), _number(gap, digits)
    if sign in (">", ">="):
        less, more = ("fewer than", "more than") if isinstance(limit, int) else ("short of", "above")
        kept, side, word = value > limit, more if value >= limit else less, "required"
    else:
        kept, side, word = value < limit, "below" if value <= limit else "above", "allowed"
    if not kept and gap == 0:
        rest = f", and must be {BOUNDS[sign]} {_number(limit, 3)}"
    else:
        rest = f", {shown_gap} {side} the {word} {_number(limit, 3)}"
    return _said(said, value=shown) + rest


def _of_loss(value: float, limit: float, said: str, below: str) -> str:
    gap = abs(value - limit)
    digits = _digits(gap)
    shown = _said(said, value=_number(value, digits), loss=_number(-value, digits))
    if value >= limit:
        return f"{shown}; up to {_number(-limit, 3)} {below} is allowed"
    return f"{shown}, {_number(gap, digits)} more than the allowed {_number(-limit, 3)}"


def _said(said: str, value: str, loss: str = "") -> str:
    return said.replace(VALUE, value).replace(LOSS, loss)


def _digits(gap: float) -> int:
    """How many decimals are needed to see a gap: three, or more where it is small."""
    return next((digits for digits in range(3, 10) if gap == 0 or round(gap, digits) > 0), 10)


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _confidence(metrics: Metrics) -> str:
    level = found(metrics, "confidence")
    return "unknown" if level is None else f"{100 * level:g} %"
