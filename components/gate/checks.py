"""Checks of a model's metrics against a policy. A missing or non-numeric figure fails its check.

Each check has the name of the policy entry that requires it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.gate.policy import parse_requirement
from components.shared.metric_catalogue import FIGURES

Metrics = Mapping[str, Any]
Policy = Mapping[str, Any]

BOUNDS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}
VALUE, LOSS = "\0", "\1"
"""Placeholders for numbers in a phrase; names of classes and sites cannot contain them."""
CONFIDENCE = 0.95
"""Minimum confidence of the bounds that are compared with limits."""


@dataclass(frozen=True)
class Check:
    """One check: the measured value, the limit, and a phrase that states both."""

    name: str
    title: str
    value: float | None
    limit: float
    sign: str
    phrase: str
    excused: bool = False
    """Whether the check passes without a value, because there is nothing to compare."""

    @property
    def margin(self) -> float | None:
        """Distance to the limit; negative if the limit is violated, None if there is no value."""
        if self.value is None:
            return None
        return self.value - self.limit if self.sign in (">", ">=") else self.limit - self.value

    @property
    def passed(self) -> bool:
        if self.margin is None:
            return self.excused
        return self.margin > 0 or (self.margin == 0 and self.sign in (">=", "<="))

    def record(self) -> dict[str, Any]:
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


def read_number(metrics: Any, *path: str) -> float | None:
    """Return the finite number at this path of the metrics, or None."""
    for key in path:
        metrics = metrics.get(key) if isinstance(metrics, Mapping) else None
    if isinstance(metrics, bool) or not isinstance(metrics, int | float):
        return None
    return metrics if -sys.float_info.max <= metrics <= sys.float_info.max else None  # false for NaN, too


def run_checks(metrics: Metrics, policy: Policy, look: int, spent: float) -> list[Check]:
    """Return all checks of a complete policy on one model's metrics.

    `look` is the index of this evaluation on the locked test set; `spent` is the error rate that earlier ones spent.
    """
    subject = metrics["subject"]
    failure = _load_failure(metrics)
    checks = [*_budget(policy, look, spent), _patients(metrics, policy), _class_images(metrics, policy)]
    checks += _report_confidence(metrics)
    checks += _limits(metrics, policy, "")
    if not subject["champion"] or (failure and policy["without_service"] == "allow"):
        checks += _limits(metrics, policy["first"], "first.")
    checks += [_requirement(metrics, number, text) for number, text in enumerate(policy["require"])]
    if failure:
        checks.append(_without_service(policy, failure))
    elif subject["champion"] or metrics.get("comparison"):
        checks += [
            _difference(metrics, figure, margin, _lower_bound(metrics, figure, policy))
            for figure, margin in policy["non_inferiority"].items()
        ]
    checks += _subgroups(metrics, policy["subgroups"])
    checks += _cost(metrics, policy)
    checks += _data(metrics, policy["data"])
    if subject["precision"] != "float32":
        checks.append(_agreement(metrics, policy))
    return checks


def _load_failure(metrics: Metrics) -> str:
    """Return why the model in service could not be loaded; "" if it was loaded or there is none."""
    reason = metrics.get("service_error")
    return (
        reason if isinstance(reason, str) and metrics["subject"]["champion"] and not metrics.get("comparison") else ""
    )


def error_at_this_look(policy: Policy) -> float:
    """Return the probability of a wrong release that one evaluation may spend; it is the same for each."""
    return float(policy["budget"]["error"] / policy["budget"]["looks"])


def _lower_bound(metrics: Metrics, figure: str, policy: Policy) -> tuple[float, float | None]:
    """Return the largest error rate that this evaluation may spend and the report has a bound for, with the bound."""
    allowed = error_at_this_look(policy)
    groups = (metrics.get("comparison") or {}).get("populations") or {}
    lower = ((groups.get("core") or {}).get(figure) or {}).get("lower")
    pairs = [pair for pair in lower if _is_pair(pair)] if isinstance(lower, list) else []
    within = [pair for pair in pairs if pair[0] <= allowed * (1 + 1e-9)]
    if not within:
        return allowed, None
    error, bound = max(within, key=lambda pair: float(pair[0]))
    return float(error), read_number(bound)


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and read_number(pair[0]) is not None


def _budget(policy: Policy, look: int, spent: float) -> Iterator[Check]:
    planned = policy["budget"]["looks"]
    if look <= planned:
        phrase = f"this is evaluation {look} of {planned} planned on this locked test set"
    else:
        phrase = (
            f"this is evaluation {look} on this locked test set, and {planned} were planned: no model is approved on "
            "it any more. Use a new locked test set, or raise budget.looks in the policy"
        )
    yield Check("budget.looks", "Evaluations on the locked test set", look, planned, "<=", phrase)
    error, cost = policy["budget"]["error"], error_at_this_look(policy)
    # Earlier evaluations may have cost more, under another policy.
    if look <= planned and spent + cost > error * (1 + 1e-9):
        phrase = (
            f"earlier evaluations spent an error rate of {spent:.3g}, this one costs {cost:.2g}, and the policy allows "
            f"{error:g} in total: no model is approved on this locked test set any more. Use a new one, or raise "
            "budget.error in the policy"
        )
        yield Check("budget.error", "Error rate spent on the locked test set", spent + cost, error, "<=", phrase)


def _patients(metrics: Metrics, policy: Policy) -> Check:
    value, limit = read_number(metrics, "all", "patients"), policy["counts"]["patients"]
    return _check("counts.patients", "Test patients", value, limit, f"the test set has {VALUE} patients")


def _class_images(metrics: Metrics, policy: Policy) -> Check:
    images = {name: read_number(metrics, "all", "by_class", name) for name in metrics["classes"]}
    fewest = min(images, key=lambda name: images[name] or 0)
    rarest = ", the rarest class" if len(images) > 1 else ""
    phrase = f"{VALUE} test images are of {fewest}{rarest}"
    limit = policy["counts"]["class_images"]
    return _check("counts.class_images", "Test images of the rarest class", images[fewest], limit, phrase)


def _report_confidence(metrics: Metrics) -> Iterator[Check]:
    """Yield a failed check if the report's intervals are narrower than the limits assume.

    Otherwise a parameter of the run could loosen its policy.
    """
    value = read_number(metrics, "confidence")
    if value is None or value < CONFIDENCE:
        phrase = f"the report's bounds have a confidence of {VALUE}"
        yield _check("confidence", "Confidence of the bounds", value, CONFIDENCE, phrase)


def _limits(metrics: Metrics, table: Policy, prefix: str) -> Iterator[Check]:
    """Yield a check of the lower bound for each floor, and of the upper bound for each ceiling."""
    confidence = _confidence(metrics)
    for section, end, bound, sign in (("floors", "low", "lower", ">="), ("ceilings", "high", "upper", "<=")):
        for figure, limit in table[section].items():
            value, title = read_number(metrics, *_path(figure), end), _title(figure)
            phrase = f"{title} is {BOUNDS[sign]} {VALUE} with {confidence} confidence"
            label = f"{_capital(title)}, {bound} bound"
            yield _check(f"{prefix}{section}.{figure}", label, value, limit, phrase, sign)


def _requirement(metrics: Metrics, number: int, text: str) -> Check:
    figure, sign, limit = parse_requirement(text)
    value, title = read_number(metrics, *_path(figure), "value"), _title(figure)
    return _check(f"require.{number}", f"{_capital(title)}", value, limit, f"{title} is {VALUE}", sign)


def _without_service(policy: Policy, reason: str) -> Check:
    allowed = policy["without_service"] == "allow"
    phrase = f"the model in service could not be loaded, so there is no comparison with it ({reason.rstrip('.')}); "
    if allowed:
        phrase += "the policy allows that, and the limits for a first model apply instead"
    else:
        phrase += "restore it, or set `without_service: allow` in the policy"
    return Check("without_service", "The model in service can be loaded", None, 1, ">=", phrase, allowed)


def _difference(metrics: Metrics, figure: str, allowed: float, bound: tuple[float, float | None]) -> Check:
    """Return the check that a figure is not worse than the model in service's by more than the allowed margin.

    `bound` is the error rate, and the lower bound of the difference on the locked core at that rate.
    """
    error, value = bound
    title = _title(figure)
    if metrics["subject"]["model"] == metrics["subject"]["champion"]:
        label = f"{_capital(title)} against the model in service"
        same = "this model is already in service"
        return Check(f"non_inferiority.{figure}", label, None, -allowed, ">=", same, excused=True)
    below, above = ("above", "below") if FIGURES[figure].lower_is_better else ("below", "above")
    name = f"{_capital(title)} against the model in service, lower bound"
    if value is None:
        groups = (metrics.get("comparison") or {}).get("populations") or {}
        core = "on the locked core" if groups.get("core") else "on the locked core, which has no images left"
        phrase = f"the report has no number for “{name}” {core} at an error rate of {error:.2g}, which is required"
        return Check(f"non_inferiority.{figure}", name, None, -allowed, ">=", phrase)
    if value < 0:
        difference = f"may be up to {LOSS} {below}"
    elif value >= 0.0005:
        difference = f"is at least {VALUE} {above}"
    else:
        difference = f"is not {below}"
    confidence = f"{100 * (1 - error):.10g} % confidence"
    text = f"{title} on the locked core {difference} that of the model in service with {confidence}"
    phrase = _loss_phrase(value, -allowed, text, below)
    if value < -allowed:
        phrase += _too_few_patients(metrics, figure)
    return Check(f"non_inferiority.{figure}", name, value, -allowed, ">=", phrase)


def _too_few_patients(metrics: Metrics, figure: str) -> str:
    """Return a note if the measured difference is not a loss, and only the number of patients is too small."""
    core = metrics["comparison"]["populations"]["core"]
    difference, patients = read_number(core, figure, "difference"), read_number(core, "patients")
    if difference is None or patients is None:
        return ""
    if (-difference if FIGURES[figure].lower_is_better else difference) < 0:
        return ""
    better = f"better by {abs(difference):.3f}" if difference else "equal"
    return (
        f" (on the core’s {patients:.0f} patients it was {better}; more patients are needed to show that it is not "
        "worse)"
    )


def _subgroups(metrics: Metrics, limits: Policy) -> Iterator[Check]:
    subgroups = metrics.get("subgroups")
    groups = [group for group in subgroups if _is_limited(group, limits)] if isinstance(subgroups, list) else []
    groups = [group for group in groups if group.get("value") != "unknown"]
    judged = [group for group in groups if group.get("too_small") is False]
    small = len(groups) - len(judged)
    rest = f"; {small} subgroup{' is' if small == 1 else 's are'} too small to be judged" if small else ""
    confidence = _confidence(metrics)
    for figure, limit in limits["floors"].items():
        title = _title(figure)
        name, label = f"subgroups.floors.{figure}", f"{_capital(title)} of the weakest subgroup, lower bound"
        if not isinstance(subgroups, list) or judged:
            lows = [
                (read_number(group, "figures", figure, "low"), f"{group['field']} {group.get('value')}")
                for group in judged
            ]
            value, which = min(lows, key=lambda low: -math.inf if low[0] is None else low[0], default=(None, ""))
            phrase = f"{title} in the weakest subgroup, {which}, is at least {VALUE} with {confidence} confidence"
            yield _check(name, label, value, limit, phrase, rest=rest)
        else:
            yield Check(name, label, None, limit, ">=", _unknown(limits, rest), True)
    for figure, limit in limits["max_gap"].items():
        yield _gap(metrics, limits, figure, limit, judged, rest)


def _unknown(limits: Policy, rest: str) -> str:
    """Return why no subgroup could be judged."""
    fields = ", ".join(limits["fields"]) or "none"
    return f"not known: no subgroup could be judged{rest or f'; the data name no groups in the fields {fields}'}"


def _gap(metrics: Metrics, limits: Policy, figure: str, limit: float, judged: list[Any], rest: str) -> Check:
    title = _title(figure)
    name, label = f"subgroups.max_gap.{figure}", f"Widest gap in {title} between subgroups"
    reported = metrics.get("gaps")
    every = reported if isinstance(reported, list) else []
    gaps = [gap for gap in every if _is_limited(gap, limits) and gap.get("figure") == figure]
    fields = [group["field"] for group in judged]
    if isinstance(reported, list) and not gaps and len(set(fields)) == len(fields):  # one group in each field
        return Check(name, label, None, limit, "<=", f"no two subgroups could be compared{rest}", True)
    widest: Mapping[str, Any] = max(gaps, key=_width, default={})
    value, low, high = (read_number(widest, name) for name in ("gap", "low", "high"))
    interval = "" if low is None or high is None else f" ({_number(low, 3)} to {_number(high, 3)})"
    between = f"{widest.get('field')} {widest.get('best')} and {widest.get('worst')}"
    phrase = f"{title} differs by {VALUE}{interval} between {between}"
    return _check(name, label, value, limit, phrase, "<=", rest)


def _width(gap: Mapping[str, Any]) -> float:
    """Return the width of a gap; infinity if it has no number, so that it is not overlooked."""
    width = read_number(gap, "gap")
    return math.inf if width is None else width


def _is_limited(group: Any, limits: Policy) -> bool:
    return isinstance(group, Mapping) and group.get("field") in limits["fields"]


def _cost(metrics: Metrics, policy: Policy) -> Iterator[Check]:
    if policy["latency_ms"] is not None:
        value = read_number(metrics, "latency", "milliseconds")
        phrase = f"one image takes {VALUE} ms"
        yield _check("latency_ms", "Milliseconds for one image", value, policy["latency_ms"], phrase, "<=")
    if policy["model_mb"] is not None:
        size = read_number(metrics, "subject", "model_bytes")
        value = None if size is None else size / 1e6
        yield _check("model_mb", "Megabytes of the graph", value, policy["model_mb"], f"the graph has {VALUE} MB", "<=")


def _data(metrics: Metrics, limits: Policy) -> Iterator[Check]:
    if "max_quarantined_share" in limits:
        images, aside = (read_number(metrics, "data", name) for name in ("images", "quarantined"))
        value = None if images is None or aside is None or images + aside <= 0 else aside / (images + aside)
        phrase, limit = f"the share of quarantined images is {VALUE}", limits["max_quarantined_share"]
        yield _check("data.max_quarantined_share", "Share of quarantined images", value, limit, phrase, "<=")
    if "max_leakage" in limits:
        value = read_number(metrics, "data", "leakage")
        phrase = f"the number of leaks between splits is {VALUE}"
        yield _check("data.max_leakage", "Leaks between splits", value, limits["max_leakage"], phrase, "<=")


def _agreement(metrics: Metrics, policy: Policy) -> Check:
    value = read_number(metrics, "as_trained", "agreement")
    graph = metrics["subject"]["precision"]
    phrase = f"the share of images that the {graph} graph classifies as the trained one does is {VALUE}"
    return _check("agreement", "Agreement of shipped and trained graph", value, policy["agreement"], phrase)


def _path(figure: str) -> tuple[str, ...]:
    name, at, of = figure.partition("@")
    if at:
        return "all", "per_class", of, name
    if name.startswith("micro_"):
        return "all", "micro", name.removeprefix("micro_")
    return "all", "figures", name


def _title(figure: str) -> str:
    name, at, of = figure.partition("@")
    micro = "micro " if name.startswith("micro_") else ""
    return f"{micro}{FIGURES[name.removeprefix('micro_')].phrase}{f' for {of}' if at else ''}"


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _check(
    name: str, title: str, value: float | None, limit: float, text: str, sign: str = ">=", rest: str = ""
) -> Check:
    if value is None:
        phrase = f"the report has no number for “{title}”, which is required"
    else:
        phrase = _phrase(value, limit, text, sign) + rest
    return Check(name, title, value, limit, sign, phrase)


def _phrase(value: float, limit: float, text: str, sign: str) -> str:
    gap = abs(value - limit)
    digits = _digits(gap)
    shown, shown_gap = _number(value, digits), _number(gap, digits)
    if sign in (">", ">="):
        less, more = ("fewer than", "more than") if isinstance(limit, int) else ("short of", "above")
        kept, relation, word = value > limit, more if value >= limit else less, "required"
    else:
        kept, relation, word = value < limit, "below" if value <= limit else "above", "allowed"
    if not kept and gap == 0:
        rest = f"; it must be {BOUNDS[sign]} {_number(limit, 3)}"
    else:
        rest = f", {shown_gap} {relation} the {word} {_number(limit, 3)}"
    return text.replace(VALUE, shown) + rest


def _loss_phrase(value: float, limit: float, text: str, below: str) -> str:
    gap = abs(value - limit)
    digits = _digits(gap)
    shown = text.replace(VALUE, _number(value, digits)).replace(LOSS, _number(-value, digits))
    if value >= limit:
        return f"{shown}; up to {_number(-limit, 3)} {below} is allowed"
    return f"{shown}, {_number(gap, digits)} more than the allowed {_number(-limit, 3)}"


def _digits(gap: float) -> int:
    """Return the number of decimals that show a gap: three, or more if the gap is small."""
    return next((digits for digits in range(3, 10) if gap == 0 or round(gap, digits) > 0), 10)


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _confidence(metrics: Metrics) -> str:
    level = read_number(metrics, "confidence")
    return "unknown" if level is None else f"{100 * level:g} %"
