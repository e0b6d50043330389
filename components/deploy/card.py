"""The model card of a released version: intended use, data, figures, limits, and changes.

The card is written at release, from the run's records: a bundle is finished before its figures are known, so its own
README cannot contain them. The chapter on changes follows the order that regulators require for planned changes:
description of modifications, modification protocol, impact assessment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.ledger.model_registry import CARD
from components.shared.ledger.release_log import Entry
from components.shared.metric_catalogue import FIGURES, SUMMARY
from components.shared.parsing.json_documents import parse_json

if TYPE_CHECKING:
    from components.shared.storage.store import Store

Record = Mapping[str, Any]

TITLES = {n: f"{f.phrase}{' (lower is better)' if f.lower_is_better else ''}" for n, f in FIGURES.items()}
GROUPS = {"all": "all test images", "core": "the locked core", "new": "images added since the previous version"}

INTENDED = (
    "To assign these {task} to images like those of its test set (below), as an aid to a reader who also sees the "
    "image. medloop is not a medical device: whoever uses this model is responsible for it, and defines the "
    "intended patients, users and place in the workflow. Do not use it for other parts of the body, other devices or "
    "other patients than the data below describe."
)
ELSEWHERE = (
    "- The test patients come from the same sources as the training patients. At another hospital, or after a change "
    "of devices or patients, figures may be lower."
)
PROTOCOL = (
    "- Trained, tested and approved by the same pipeline as every version. Test patients are never used for training, "
    "and the decision follows a policy that was set in advance{name} (digest: {policy})."
)


@dataclass(frozen=True)
class VersionRecords:
    """Records of one version: bundle, metrics, data set and split; empty if the store has lost them."""

    bundle: Record = field(default_factory=dict)
    metrics: Record = field(default_factory=dict)
    dataset: Record = field(default_factory=dict)
    split: Record = field(default_factory=dict)


def read_records(store: Store, record: Record) -> VersionRecords:
    """Return what the store holds of the artifacts that an entry of the release log names."""
    metadata = _read_file(store, record.get("model"), "configs/metadata.json")
    return VersionRecords(
        _mapping(metadata.get("medloop")),
        _read_file(store, record.get("report"), "metrics.json"),
        _read_file(store, record.get("dataset"), "dataset.json"),
        _read_file(store, record.get("split"), "split.json"),
    )


def store_card(store: Store, version: str, record: Record, verdict: Record, previous: Entry | None) -> str:
    """Write the card of a version before its release; return the digest of the card's artifact.

    `record` is the content of the release log's next entry, `verdict` the decision, and `previous` what it replaces.
    """
    old = read_records(store, previous.record) if previous else None
    text = render(version, record, verdict, read_records(store, record), old, previous.version if previous else "")
    manifest = Manifest({CARD: store.put_bytes(text.encode())})
    return store.put_bytes(manifest.encode()).digest


def render(
    version: str, record: Record, verdict: Record, new: VersionRecords, old: VersionRecords | None, previous: str
) -> str:
    """Return the card as Markdown; `previous` is the name of the version that it replaces, `old` its records."""
    chapters = [
        _opening(version, record, verdict, new),
        _data(new),
        _figures(new),
        _subgroups(new),
        _limits(verdict, new),
        _changes(record, verdict, new, old, previous),
        _origin(record),
    ]
    return "\n\n".join("\n".join(lines) for lines in chapters) + "\n"


def _opening(version: str, record: Record, verdict: Record, new: VersionRecords) -> list[str]:
    classes = [str(name) for name in _list(new.bundle.get("classes")) or _list(new.metrics.get("classes"))]
    pixels = _mapping(new.bundle.get("preprocess")).get("size")
    size = f" of {pixels}×{pixels} pixels" if pixels else ""
    task = "findings" if new.bundle.get("task") == "multilabel" else "classes"
    names = f"{len(classes)} {task}: {', '.join(map(_plain, classes))}" if classes else "them"
    network = _plain(str(new.bundle.get("architecture", "classifier")))
    served = f"Served as {record.get('precision')} by {record.get('runtime')}."
    return [
        f"# Model card: medloop {version}",
        "",
        f"A {network} network for images{size} that classifies {names}. {served}",
        "",
        f"**The decision.** {_plain(str(record.get('sentence') or verdict.get('sentence', '')))}",
        "",
        "## Intended use",
        "",
        INTENDED.format(task=task),
    ]


def _data(new: VersionRecords) -> list[str]:
    lines = ["## Data", ""]
    counts, images, patients = (
        _mapping(record.get(name))
        for record, name in ((new.dataset, "counts"), (new.split, "images"), (new.split, "patients"))
    )
    if counts:
        lines.append(
            f"- The data set {_plain(str(new.dataset.get('name', '')))!r}: {_count(counts, 'images')} images of "
            f"{_count(counts, 'patients')} patients; {_count(counts, 'quarantined')} images were quarantined, "
            f"{_count(counts, 'duplicates')} are copies of others."
        )
        if guessed := sum(_mapping(counts.get("guessed")).values()):
            lines.append(f"- The patients of {guessed:,} images were guessed from names of files and folders.")
    uses = {"train": "Trained on", "val": "Threshold, temperature and best epoch chosen on", "test": "Tested on"}
    lines += [
        f"- {use} {_count(images, split)} images"
        + (f" of {_count(patients, split)} patients." if patients else ".")
        for split, use in uses.items() if split in images
    ]  # fmt: skip
    by_class = _mapping(_mapping(new.metrics.get("all")).get("by_class"))
    if by_class:
        lines.append(
            "- Test images: " + ", ".join(f"{_plain(name)} {number}" for name, number in by_class.items()) + "."
        )
    lines += [f"- {_plain(str(warning))}" for warning in _list(new.split.get("warnings"))]
    data = _mapping(new.metrics.get("data"))
    if data:
        lines.append(f"- Leaks between splits: {data.get('leakage', 'not counted')}.")
    if len(lines) == 2:
        lines.append("The records of the data set and of the split are not in the store.")
    return [*lines, "", "Each patient is in one split only, and test patients stay in the test set permanently."]


def _figures(new: VersionRecords) -> list[str]:
    confidence = new.metrics.get("confidence")
    level = f"{100 * confidence:g} %" if isinstance(confidence, int | float) else "their"
    populations = {name: _mapping(new.metrics.get(name)) for name in GROUPS}
    shown = {name: population for name, population in populations.items() if population.get("figures")}
    lines = ["## Figures", ""]
    if not shown:
        return [*lines, "The report's figures are not in the store."]
    lines += [f"With {level} intervals, resampled by patient. Measured on the graph that is served.", ""]
    heads = [f"{GROUPS[n]} ({f.get('images')} images, {f.get('patients')} patients)" for n, f in shown.items()]
    lines += [f"| figure | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, title in TITLES.items():
        cells = [_figure(_mapping(population["figures"]).get(name)) for population in shown.values()]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cell or '–' for cell in cells)} |")
    if new.metrics.get("positive"):
        lines += ["", f"Sensitivity and precision refer to {_plain(str(new.metrics['positive']))}."]
    points = [_mapping(point) for point in _list(new.metrics.get("operating_points"))]
    if points:
        lines += ["", "| operating point | threshold | sensitivity | specificity |", "|---|---|---|---|"]
    several = len({str(point.get("class")) for point in points}) > 1
    lines += [
        f"| {_plain(str(point.get('at', '')))}{', ' + _plain(str(point.get('class'))) if several else ''} | "
        f"{_number(point.get('threshold'))} | "
        f"{_figure(point.get('sensitivity')) or '–'} | {_figure(point.get('specificity')) or '–'} |"
        for point in points
    ]
    speed = _mapping(new.metrics.get("latency"))
    if speed:
        lines += ["", f"One image takes {_number(speed.get('milliseconds'))} ms on {speed.get('threads')} threads."]
    return lines


def _subgroups(new: VersionRecords) -> list[str]:
    rows = [_mapping(row) for row in _list(new.metrics.get("subgroups"))]
    lines = ["## Subgroups", ""]
    if not rows:
        return [
            *lines,
            "The data contain no sex, age, site or view that could divide the test patients into subgroups.",
        ]
    heads = [FIGURES[name].phrase for name in SUMMARY]
    lines += [f"| group | patients | images | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for row in rows:
        figures = _mapping(row.get("figures")) or row
        small = " (too few)" if row.get("too_small") else ""
        lines.append(
            f"| {row.get('field')}: {_plain(str(row.get('value')))}{small} | {row.get('patients')} "
            f"| {row.get('images')} | {' | '.join(_figure(figures.get(name)) or '–' for name in SUMMARY)} |"
        )
    gaps = [_mapping(gap) for gap in _list(new.metrics.get("gaps"))]
    lines += [""] * bool(gaps)
    lines += [
        f"- {_plain(str(gap.get('field')))}: {TITLES.get(str(gap.get('figure')), gap.get('figure'))} differs by "
        f"{_interval(gap.get('gap'), gap)} between {_plain(str(gap.get('best')))} and {_plain(str(gap.get('worst')))}."
        for gap in gaps
    ]
    return lines


def _limits(verdict: Record, new: VersionRecords) -> list[str]:
    lines = ["## Limits", ""]
    rows = [_mapping(row) for row in _list(new.metrics.get("subgroups"))]
    small = [f"{row.get('field')} {_plain(str(row.get('value')))}" for row in rows if row.get("too_small")]
    if small:
        lines.append(f"- Too few test patients to measure performance on: {', '.join(small)}.")
    if any(row.get("value") == "unknown" for row in rows):
        lines.append("- Sex, age, site or view of some test patients is unknown.")
    quarantined = _mapping(new.dataset.get("counts")).get("quarantined")
    if quarantined:
        lines.append(f"- {quarantined} images could not be used; performance on such images is unknown.")
    sentence = _mapping(new.metrics.get("shortcuts")).get("sentence")
    if sentence:
        lines.append(f"- {_plain(str(sentence))}")
    budget = _mapping(verdict.get("budget")).get("sentence")
    if budget:
        lines.append(f"- {_plain(str(budget))}")
    several = new.bundle.get("task") == "multilabel"
    lines += [
        ELSEWHERE,
        "- The model detects these findings only: an image without any of them may show another one."
        if several
        else "- The model assigns one of these classes to every image, even to one that shows none of them.",
    ]
    return lines


def _changes(
    record: Record, verdict: Record, new: VersionRecords, old: VersionRecords | None, previous: str
) -> list[str]:
    title = f"## Changes since {previous}" if previous else "## Changes"
    lines = [title, "", "### Description of modifications", ""]
    lines += _modifications(new, old) if old else ["- This is the first version."]
    lines += ["", "### Modification protocol", ""]
    policy = _mapping(verdict.get("policy")).get("name")
    lines += [
        PROTOCOL.format(name=f", {_plain(str(policy))!r}" if policy else "", policy=record.get("policy") or "unknown"),
        "",
        "| check | value | limit | |",
        "|---|---|---|---|",
    ]
    for check in (_mapping(check) for check in _list(verdict.get("checks"))):
        passed = "passed" if check.get("passed") else "failed"
        bound = f"{check.get('bound', '')} {_number(check.get('limit'))}".strip()
        lines.append(f"| {_plain(str(check.get('title', '')))} | {_number(check.get('value'))} | {bound} | {passed} |")
    lines += ["", "### Impact assessment", ""]
    lines += _impact(new, previous)
    lines.append(
        f"- If it does harm: `medloop rollback --reason WHY` restores {previous} at once."
        if previous
        else "- If it does harm: stop the service; there is no earlier version to restore."
    )
    return lines


def _modifications(new: VersionRecords, old: VersionRecords) -> Iterator[str]:
    versions = (new, old)
    for what, value, earlier in (
        ("Network", *(v.bundle.get("architecture") for v in versions)),
        ("Classes", *(v.bundle.get("classes") for v in versions)),
        ("Threshold", *(v.bundle.get("threshold") for v in versions)),
        ("Images in the data set", *(_mapping(v.dataset.get("counts")).get("images") for v in versions)),
        ("Patients in the data set", *(_mapping(v.dataset.get("counts")).get("patients") for v in versions)),
        ("Training images", *(_mapping(v.split.get("images")).get("train") for v in versions)),
        ("Test images", *(_mapping(v.split.get("images")).get("test") for v in versions)),
    ):
        if value != earlier:
            yield f"- {what}: {_value(earlier)} before, {_value(value)} now."
    for kind in ("preprocess", "parameters"):
        values, earlier = (_mapping(v.bundle.get(kind)) for v in versions)
        for name in sorted({*values, *earlier}):
            if values.get(name) != earlier.get(name):
                yield f"- {kind}, {_plain(name)}: {_value(earlier.get(name))} before, {_value(values.get(name))} now."
    prints = [_mapping(v.bundle.get("fingerprints")).get("dataset") for v in versions]
    if prints[0] == prints[1]:
        yield "- The training data are the same."
    else:
        yield "- The training data changed: see the counts."


def _impact(new: VersionRecords, previous: str) -> Iterator[str]:
    compared = _mapping(_mapping(new.metrics.get("comparison")).get("populations"))
    groups = {name: _mapping(compared.get(name)) for name in GROUPS if _mapping(compared.get(name))}
    if not groups:
        error = new.metrics.get("service_error")
        reason = f": {previous} could not be loaded ({_plain(str(error)).rstrip('.')})" if error else ""
        yield (
            f"- It was not compared with {previous} on the same images{reason}."
            if previous
            else "- There was no earlier model in service."
        )
        return
    yield "Differences on the same images: this version minus the previous version in service."
    yield ""
    yield f"| figure | {' | '.join(GROUPS[name] for name in groups)} |"
    yield "|---" * (1 + len(groups)) + "|"
    for figure, title in TITLES.items():
        pairs = [_mapping(group.get(figure)) for group in groups.values()]
        cells = [
            _interval(pair["difference"], pair, "+.3f") if isinstance(pair.get("difference"), int | float) else ""
            for pair in pairs
        ]
        if any(cells):
            yield f"| {title} | {' | '.join(cell or '–' for cell in cells)} |"
    disagree = [f"{group.get('disagree', '–')} of {group.get('images', '–')} images" for group in groups.values()]
    yield f"| the two models disagree on | {' | '.join(disagree)} |"
    yield ""


def _origin(record: Record) -> list[str]:
    names = ("model", "decision", "report", "dataset", "split", "code", "run", "by")
    return [
        "## Origin",
        "",
        *(f"- {name}: {_plain(str(record[name]))}" for name in names if record.get(name)),
    ]


def _read_file(store: Store, digest: Any, name: str) -> Record:
    """Return a JSON file of an artifact; an empty record if it is missing or something else."""
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
    """Return a figure with its interval; "" if it has no value."""
    figure = _mapping(value)
    return _interval(figure.get("value"), figure) if isinstance(figure.get("value"), int | float) else ""


def _interval(value: Any, bounds: Record, form: str = ".3f") -> str:
    low, high = bounds.get("low"), bounds.get("high")
    text = format(value, form) if isinstance(value, int | float) else "?"
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return text
    return f"{text} ({low:{form}} to {high:{form}})"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else "–"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(str(item)) for item in value)
    if isinstance(value, Mapping):
        return contracts.fingerprint(value)[:12]
    return "none" if value is None else _plain(str(value))


def _plain(text: str) -> str:
    """Escape Markdown: names of classes come from folders, and may contain anything."""
    return " ".join("".join(f"\\{letter}" if letter in r"\`*_[]<>|#" else letter for letter in text).split())
