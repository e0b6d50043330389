"""The card of a released version: what it is for, how it was judged, its limits, and what changed.

It is written when the model is released, out of what the run left: a bundle is judged before its figures are known, so
its own README cannot tell them. The last chapter follows the order in which regulators ask for planned changes:
description of modifications, modification protocol, impact assessment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.figures import FIGURES, SUMMARY
from components.shared.ledger.model_registry import CARD
from components.shared.ledger.release_log import Entry
from components.shared.parsing.json_documents import parse_json

if TYPE_CHECKING:
    from components.shared.storage.store import Store

Record = Mapping[str, Any]

TITLES = {n: f"{f.phrase}{' (less is better)' if f.lower_is_better else ''}" for n, f in FIGURES.items()}
GROUPS = {"all": "all test images", "core": "the locked core", "new": "new since the version before"}

INTENDED = (
    "To sort images like those that it was tested on (below) into these {task}, as a help to a reader who sees the "
    "image, too. medloop is not a medical device: who puts this model to use answers for it, and states the "
    "intended patients, users and place in the workflow. Not for other parts of the body, other machines or other "
    "patients than the data below show."
)
ELSEWHERE = (
    "- The test patients come from the same sources as those it learned from. At another hospital, or when machines or "
    "patients change, figures may be lower."
)
PROTOCOL = (
    "- Trained, tested and judged by the same pipeline as every version. Test patients are locked away, and the "
    "decision was taken by a policy that was set before{name} (its digest: {policy})."
)


@dataclass(frozen=True)
class Told:
    """What is known of one version: its bundle, figures, data and split; empty where the store has it no more."""

    bundle: Record = field(default_factory=dict)
    metrics: Record = field(default_factory=dict)
    dataset: Record = field(default_factory=dict)
    split: Record = field(default_factory=dict)


def told_of(store: Store, record: Record) -> Told:
    """What the store holds of that which an entry of the log, or the like of it, names."""
    metadata = _record(store, record.get("model"), "configs/metadata.json")
    return Told(
        _mapping(metadata.get("medloop")),
        _record(store, record.get("report"), "metrics.json"),
        _record(store, record.get("dataset"), "dataset.json"),
        _record(store, record.get("split"), "split.json"),
    )


def keep(store: Store, version: str, record: Record, verdict: Record, before: Entry | None) -> str:
    """Write the card of the version that this record is about to release; gives the digest of its artifact."""
    now = told_of(store, record)
    earlier = told_of(store, before.record) if before else None
    words = write(version, record, verdict, now, earlier, before.version if before else "")
    manifest = Manifest({CARD: store.put_bytes(words.encode())})
    return store.put_bytes(manifest.encode()).digest


def write(version: str, record: Record, verdict: Record, now: Told, earlier: Told | None, name_before: str) -> str:
    """The card, as Markdown."""
    chapters = [
        _opening(version, record, verdict, now),
        _data(now),
        _figures(now),
        _subgroups(now),
        _limits(verdict, now),
        _changes(record, verdict, now, earlier, name_before),
        _origin(record),
    ]
    return "\n\n".join("\n".join(lines) for lines in chapters) + "\n"


def _opening(version: str, record: Record, verdict: Record, now: Told) -> list[str]:
    classes = [str(name) for name in _list(now.bundle.get("classes")) or _list(now.metrics.get("classes"))]
    asked = _mapping(now.bundle.get("preprocess")).get("size")
    size = f" of {asked} pixels a side" if asked else ""
    task = "findings" if now.bundle.get("task") == "multilabel" else "classes"
    what = f"tells {len(classes)} {task} apart: {', '.join(map(_plain, classes))}" if classes else "classifies images"
    served = f"Served as {record.get('precision')} by {record.get('runtime')}."
    return [
        f"# Model card: medloop {version}",
        "",
        f"A {_plain(str(now.bundle.get('architecture', 'classifier')))} network for images{size} that {what}. {served}",
        "",
        f"**The decision.** {_plain(str(record.get('sentence') or verdict.get('sentence', '')))}",
        "",
        "## Intended use",
        "",
        INTENDED.format(task=task),
    ]


def _data(now: Told) -> list[str]:
    lines = ["## Data", ""]
    counts, images, patients = (
        _mapping(record.get(name))
        for record, name in ((now.dataset, "counts"), (now.split, "images"), (now.split, "patients"))
    )
    if counts:
        lines.append(
            f"- The data set {_plain(str(now.dataset.get('name', '')))!r}: {_count(counts, 'images')} images of "
            f"{_count(counts, 'patients')} patients; {_count(counts, 'quarantined')} images were set aside, "
            f"{_count(counts, 'duplicates')} are copies of others."
        )
    names = {"train": "Learned from", "val": "Threshold, temperature and best epoch chosen on", "test": "Tested on"}
    lines += [
        f"- {words} {_count(images, side)} images of {_count(patients, side)} patients." if patients
        else f"- {words} {_count(images, side)} images."
        for side, words in names.items() if side in images
    ]  # fmt: skip
    by_class = _mapping(_mapping(now.metrics.get("all")).get("by_class"))
    if by_class:
        lines.append(
            "- Test images: " + ", ".join(f"{_plain(name)} {number}" for name, number in by_class.items()) + "."
        )
    lines += [f"- {_plain(str(warning))}" for warning in _list(now.split.get("warnings"))]
    found = _mapping(now.metrics.get("data"))
    if found:
        lines.append(f"- Leaks between the sides that were found: {found.get('leakage', 'not counted')}.")
    if len(lines) == 2:
        lines.append("The records of the data set and of the split are not in the store.")
    return [*lines, "", "No patient is on two sides, and the test patients stay in the test for good."]


def _figures(now: Told) -> list[str]:
    confidence = now.metrics.get("confidence")
    level = f"{100 * confidence:g} %" if isinstance(confidence, int | float) else "their"
    populations = {name: _mapping(now.metrics.get(name)) for name in GROUPS}
    shown = {name: found for name, found in populations.items() if found.get("figures")}
    lines = ["## Figures", ""]
    if not shown:
        return [*lines, "The report's figures are not in the store."]
    lines += [f"With {level} intervals, over patients. Measured on the graph that is served.", ""]
    heads = [f"{GROUPS[n]} ({f.get('images')} images, {f.get('patients')} patients)" for n, f in shown.items()]
    lines += [f"| figure | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, title in TITLES.items():
        cells = [_figure(_mapping(found["figures"]).get(name)) for found in shown.values()]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cell or '–' for cell in cells)} |")
    if now.metrics.get("positive"):
        lines += ["", f"Sensitivity and precision are those of {_plain(str(now.metrics['positive']))}."]
    points = [_mapping(point) for point in _list(now.metrics.get("operating_points"))]
    if points:
        lines += ["", "| operating point | threshold | sensitivity | specificity |", "|---|---|---|---|"]
    several = len({str(point.get("class")) for point in points}) > 1
    lines += [
        f"| {_plain(str(point.get('at', '')))}{', ' + _plain(str(point.get('class'))) if several else ''} | "
        f"{_number(point.get('threshold'))} | "
        f"{_figure(point.get('sensitivity')) or '–'} | {_figure(point.get('specificity')) or '–'} |"
        for point in points
    ]
    speed = _mapping(now.metrics.get("latency"))
    if speed:
        lines += ["", f"One image takes {_number(speed.get('milliseconds'))} ms on {speed.get('threads')} threads."]
    return lines


def _subgroups(now: Told) -> list[str]:
    rows = [_mapping(row) for row in _list(now.metrics.get("subgroups"))]
    lines = ["## Subgroups", ""]
    if not rows:
        return [*lines, "Nothing is known of the test patients by which they could be divided."]
    heads = [FIGURES[name].phrase for name in SUMMARY]
    lines += [f"| group | patients | images | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for row in rows:
        figures = _mapping(row.get("figures")) or row
        small = " (too few to tell)" if row.get("too_small") else ""
        lines.append(
            f"| {row.get('field')}: {_plain(str(row.get('value')))}{small} | {row.get('patients')} "
            f"| {row.get('images')} | {' | '.join(_figure(figures.get(name)) or '–' for name in SUMMARY)} |"
        )
    gaps = [_mapping(gap) for gap in _list(now.metrics.get("gaps"))]
    lines += [""] * bool(gaps)
    lines += [
        f"- {_plain(str(gap.get('field')))}: {TITLES.get(str(gap.get('figure')), gap.get('figure'))} differs by "
        f"{_interval(gap.get('gap'), gap)} between {_plain(str(gap.get('best')))} and {_plain(str(gap.get('worst')))}."
        for gap in gaps
    ]
    return lines


def _limits(verdict: Record, now: Told) -> list[str]:
    lines = ["## Limits", ""]
    rows = [_mapping(row) for row in _list(now.metrics.get("subgroups"))]
    small = [f"{row.get('field')} {_plain(str(row.get('value')))}" for row in rows if row.get("too_small")]
    if small:
        lines.append(f"- Too few test patients to tell how it does on: {', '.join(small)}.")
    if any(row.get("value") == "unknown" for row in rows):
        lines.append("- Of some test patients sex, age, site or view are unknown.")
    quarantined = _mapping(now.dataset.get("counts")).get("quarantined")
    if quarantined:
        lines.append(f"- {quarantined} images could not be used, and nobody knows how it does on such.")
    sentence = _mapping(now.metrics.get("shortcuts")).get("sentence")
    if sentence:
        lines.append(f"- {_plain(str(sentence))}")
    budget = _mapping(verdict.get("budget")).get("sentence")
    if budget:
        lines.append(f"- {_plain(str(budget))}")
    several = now.bundle.get("task") == "multilabel"
    lines += [
        ELSEWHERE,
        "- It tells of these findings alone: an image without any of them may show another one."
        if several
        else "- An image is always put into one of these classes, also one that shows none of them.",
    ]
    return lines


def _changes(record: Record, verdict: Record, now: Told, earlier: Told | None, before: str) -> list[str]:
    lines = [
        f"## What changed since {before}" if before else "## What changed",
        "",
        "### Description of modifications",
        "",
    ]
    lines += [*_modifications(now, earlier)] if earlier else ["- This is the first version: there is none before it."]
    lines += ["", "### Modification protocol", ""]
    policy = _mapping(verdict.get("policy")).get("name")
    lines += [
        PROTOCOL.format(name=f", {_plain(str(policy))!r}" if policy else "", policy=record.get("policy") or "unknown"),
        "",
        "| check | found | limit | |",
        "|---|---|---|---|",
    ]
    for check in (_mapping(check) for check in _list(verdict.get("checks"))):
        passed = "passed" if check.get("passed") else "failed"
        bound = f"{check.get('bound', '')} {_number(check.get('limit'))}".strip()
        lines.append(f"| {_plain(str(check.get('title', '')))} | {_number(check.get('value'))} | {bound} | {passed} |")
    lines += ["", "### Impact assessment", ""]
    lines += [*_impact(now, before)]
    lines.append(
        f"- If it does harm: `medloop rollback --reason WHY` puts {before} back at once."
        if before
        else "- If it does harm: there is no version to go back to; stop the service."
    )
    return lines


def _modifications(now: Told, earlier: Told) -> Iterator[str]:
    for what, new, old in (
        ("Network", now.bundle.get("architecture"), earlier.bundle.get("architecture")),
        ("Classes", now.bundle.get("classes"), earlier.bundle.get("classes")),
        ("Threshold", now.bundle.get("threshold"), earlier.bundle.get("threshold")),
        ("Images of the data set", *(_mapping(t.dataset.get("counts")).get("images") for t in (now, earlier))),
        ("Patients of the data set", *(_mapping(t.dataset.get("counts")).get("patients") for t in (now, earlier))),
        ("Images learned from", *(_mapping(t.split.get("images")).get("train") for t in (now, earlier))),
        ("Images tested on", *(_mapping(t.split.get("images")).get("test") for t in (now, earlier))),
    ):
        if new != old:
            yield f"- {what}: {_value(old)} before, {_value(new)} now."
    for kind in ("preprocess", "parameters"):
        new, old = (_mapping(each.bundle.get(kind)) for each in (now, earlier))
        for name in sorted({*new, *old}):
            if new.get(name) != old.get(name):
                yield f"- {kind}, {_plain(name)}: {_value(old.get(name))} before, {_value(new.get(name))} now."
    prints = [_mapping(each.bundle.get("fingerprints")).get("dataset") for each in (now, earlier)]
    if prints[0] == prints[1]:
        yield "- The data it learned from are the same."
    else:
        yield "- It learned from other data: see the counts."


def _impact(now: Told, before: str) -> Iterator[str]:
    populations = _mapping(_mapping(now.metrics.get("comparison")).get("populations"))
    found = {name: _mapping(populations.get(name)) for name in GROUPS if _mapping(populations.get(name))}
    if not found:
        why = now.metrics.get("service_error")
        lost = f": that could not be loaded ({_plain(str(why)).rstrip('.')})" if why else ""
        yield (
            f"- It was not compared with {before} on the same images{lost}."
            if before
            else "- Nothing was in service before it."
        )
        return
    yield "Differences from the version in service on the same images, this one less that one."
    yield ""
    yield f"| figure | {' | '.join(GROUPS[name] for name in found)} |"
    yield "|---" * (1 + len(found)) + "|"
    for figure, title in TITLES.items():
        pairs = [_mapping(group.get(figure)) for group in found.values()]
        cells = [
            _interval(pair["difference"], pair, "+.3f") if isinstance(pair.get("difference"), int | float) else ""
            for pair in pairs
        ]
        if any(cells):
            yield f"| {title} | {' | '.join(cell or '–' for cell in cells)} |"
    disagree = [f"{group.get('disagree', '–')} of {group.get('images', '–')} images" for group in found.values()]
    yield f"| the two disagree about | {' | '.join(disagree)} |"
    yield ""


def _origin(record: Record) -> list[str]:
    names = ("model", "decision", "report", "dataset", "split", "code", "run", "by")
    return [
        "## Where it comes from",
        "",
        *(f"- {name}: {_plain(str(record[name]))}" for name in names if record.get(name)),
    ]


def _record(store: Store, digest: Any, name: str) -> Record:
    """A file of an artifact, as JSON; nothing where the store has it not, or it is something else."""
    try:
        manifest = Manifest.decode(store.get(str(digest)), name)
        return _mapping(parse_json(store.get(manifest.files[name].digest)))
    except (OSError, ValueError, KeyError):
        return {}


def _mapping(value: Any) -> Record:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(counts: Record, name: str) -> str:
    value = counts.get(name)
    return f"{value:,}" if isinstance(value, int) else "?"


def _figure(value: Any) -> str:
    """A figure with its interval, or nothing."""
    found = _mapping(value)
    return _interval(found.get("value"), found) if isinstance(found.get("value"), int | float) else ""


def _interval(value: Any, around: Record, form: str = ".3f") -> str:
    low, high = around.get("low"), around.get("high")
    shown = format(value, form) if isinstance(value, int | float) else "?"
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return shown
    return f"{shown} ({low:{form}} to {high:{form}})"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else "–"


def _value(value: Any) -> str:
    """A value in a sentence."""
    if isinstance(value, list):
        return ", ".join(_plain(str(each)) for each in value)
    if isinstance(value, Mapping):
        return contracts.fingerprint(value)[:12]
    return "nothing" if value is None else _plain(str(value))


def _plain(text: str) -> str:
    """A text that is no Markdown, whoever wrote it: names of classes come from folders."""
    return " ".join("".join(f"\\{letter}" if letter in r"\`*_[]<>|#" else letter for letter in text).split())
