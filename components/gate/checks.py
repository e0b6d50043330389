"""The checks a model must pass. What is missing or is no number fails: the gate is closed unless shown otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Metrics = Mapping[str, Any]
Policy = Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """One check: what was found, what is required, and a phrase that says both."""

    name: str
    title: str
    value: float | None
    limit: float
    at_least: bool
    phrase: str

    @property
    def margin(self) -> float | None:
        """By how much the limit is kept; negative where it is not, None where nothing was found."""
        if self.value is None:
            return None
        return self.value - self.limit if self.at_least else self.limit - self.value

    @property
    def passed(self) -> bool:
        """Whether the limit is kept."""
        return self.margin is not None and self.margin >= 0

    def record(self) -> dict[str, Any]:
        """As it stands in decision.json."""
        return {
            "name": self.name,
            "title": self.title,
            "value": self.value,
            "limit": self.limit,
            "bound": "at least" if self.at_least else "at most",
            "margin": None if self.margin is None else round(self.margin, 10),
            "passed": self.passed,
            "sentence": f"{self.phrase[0].upper()}{self.phrase[1:]}.",
        }


def found(metrics: Any, *path: str) -> float | None:
    """The number at this place of the metrics, or None where there is none."""
    for key in path:
        metrics = metrics.get(key) if isinstance(metrics, Mapping) else None
    usable = isinstance(metrics, int | float) and not isinstance(metrics, bool) and math.isfinite(metrics)
    return metrics if usable else None


def judge(metrics: Metrics, policy: Policy) -> list[Check]:
    """All checks of a policy on the metrics of one model."""
    checks = [_patients(metrics, policy), _class_images(metrics, policy)]
    checks += [_score(metrics, name, title, policy[f"min_{name}"]) for name, title in _SCORES.items()]
    checks.append(_calibration(metrics, policy))
    subject = metrics["subject"]
    if subject["champion"] or metrics.get("comparison"):
        checks += [_loss(metrics, name, title, policy[f"max_{name}_loss"]) for name, title in _SCORES.items()]
    if subject["precision"] != "float32":
        checks.append(_agreement(metrics, policy))
    return checks


_SCORES = {"accuracy": "accuracy", "auc": "AUC"}


def _patients(metrics: Metrics, policy: Policy) -> Check:
    value = found(metrics, "all", "patients")
    return _check(
        "test_patients", "Patients in the test", value, policy["min_test_patients"], "{value} patients were tested"
    )


def _class_images(metrics: Metrics, policy: Policy) -> Check:
    images = {name: found(metrics, "all", "by_class", name) for name in metrics["classes"]}
    fewest = min(images, key=lambda name: images[name] or 0)
    said = "{value} test images are of " + fewest + (", the rarest class" if len(images) > 1 else "")
    return _check("class_images", "Images of the rarest class", images[fewest], policy["min_class_images"], said)


def _score(metrics: Metrics, name: str, title: str, limit: float) -> Check:
    value = found(metrics, "all", "figures", name, "low")
    said = f"{title} is at least {{value}} with {_confidence(metrics)} confidence"
    return _check(name, f"{title[0].upper()}{title[1:]}, lower bound", value, limit, said)


def _calibration(metrics: Metrics, policy: Policy) -> Check:
    value = found(metrics, "all", "figures", "calibration_error", "value")
    said = "the calibration error is {value}"
    return _check(
        "calibration_error", "Calibration error", value, policy["max_calibration_error"], said, at_least=False
    )


def _loss(metrics: Metrics, name: str, title: str, allowed: float) -> Check:
    """Whether the model in service is not lost against by more than allowed, on the locked core where there is one."""
    groups = (metrics.get("comparison") or {}).get("populations", {})
    # A core that has shrunk until it lacks a class cannot be compared on; then all test images are what there is.
    lacking = 0 in ((metrics.get("core") or {}).get("by_class") or {}).values()
    group, where = ("core", "the locked core") if groups.get("core") and not lacking else ("all", "all test images")
    value = found(groups, group, name, "low")
    lost = value is not None and value < 0
    some = "is at least {value} above" if value is not None and value >= 0.0005 else "is not below"
    side = "may be up to {loss} below" if lost else some
    said = f"{title} on {where} {side} the model in service’s with {_confidence(metrics)} confidence"
    title = f"{title[0].upper()}{title[1:]} against the model in service, lower bound"
    return _check(f"{name}_difference", title, value, -allowed, said, loss=True)


def _agreement(metrics: Metrics, policy: Policy) -> Check:
    value = found(metrics, "as_trained", "agreement")
    graph = metrics["subject"]["precision"]
    said = f"the share of images that the {graph} graph classes as the trained one does is {{value}}"
    return _check("agreement", "Agreement of shipped and trained graph", value, policy["min_agreement"], said)


def _check(
    name: str, title: str, value: float | None, limit: float, said: str, at_least: bool = True, loss: bool = False
) -> Check:
    if value is None:
        phrase = f"the report has no number for “{title}”, and without it nothing is approved"
    else:
        phrase = _phrase(value, limit, said, at_least, loss)
    return Check(name, title, value, limit, at_least, phrase)


def _phrase(value: float, limit: float, said: str, at_least: bool, loss: bool) -> str:
    gap = abs(value - limit)
    digits = _digits(gap)
    shown, shown_gap = _number(value, digits), _number(gap, digits)
    kept = value >= limit if at_least else value <= limit
    if loss and kept:
        rest = f"; up to {_number(-limit, 3)} below is allowed"
    elif loss:
        rest = f", {shown_gap} more than the allowed {_number(-limit, 3)}"
    elif at_least:
        less, more = ("fewer than", "more than") if isinstance(limit, int) else ("short of", "above")
        rest = f", {shown_gap} {more if kept else less} the required {_number(limit, 3)}"
    else:
        rest = f", {shown_gap} {'below' if kept else 'above'} the allowed {_number(limit, 3)}"
    return said.format(value=shown, loss=_number(-value, digits)) + rest


def _digits(gap: float) -> int:
    """How many decimals are needed to see a gap: three, or more where it is small."""
    return next((digits for digits in range(3, 10) if gap == 0 or round(gap, digits) > 0), 10)


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _confidence(metrics: Metrics) -> str:
    level = found(metrics, "confidence")
    return "unknown" if level is None else f"{100 * level:g} %"
