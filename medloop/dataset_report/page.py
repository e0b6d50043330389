"""The HTML report of a data set, as one self-contained file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.shared.reporting.formatting import NONE, count, size
from components.shared.reporting.left_out import left_out
from components.shared.reporting.pages import template
from medloop.dataset_report.counts import NO_FINDING, OUT, SPLITS, UNKNOWN, Rows
from medloop.dataset_report.histogram_svg import histogram, peak
from medloop.dataset_report.histograms import Histograms, compared, histograms
from medloop.dataset_report.pictures import Pictures
from medloop.dataset_report.shown_images import Sample, draw
from medloop.dataset_report.statistics import DIGITS, Figures
from medloop.dataset_report.verdicts import Verdict, class_shares

FIELDS = {"sex": "Sex", "age": "Age", "site": "Site", "view": "View", "modality": "Modality"}
TASKS = {"classification": "one class per image", "multilabel": "any number of findings per image"}
DECODING = {
    "max_side": "Maximum longest side of a master, in pixels",
    "colour": "Colour",
    "window_center": "Window centre",
    "window_width": "Window width",
    "frames": "Frames per file",
}


def write(path: Path, shown: Figures, conclusions: Sequence[Verdict], rows: Rows) -> Histograms:
    """Write the report with a sample of the images, and return its histograms."""
    groups = compared(rows)
    sample = draw(rows, groups, list(_warned(shown, rows)))
    pictures = Pictures(rows.data, sample.shards)
    measured = histograms(rows, groups, sample, pictures)
    text = page(shown, conclusions, rows, sample, pictures, measured)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it contains images of patients
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)
    return measured


def page(
    shown: Figures,
    conclusions: Sequence[Verdict],
    rows: Rows,
    sample: Sample,
    pictures: Pictures,
    measured: Histograms,
) -> str:
    """Return the HTML report."""
    pictured = {row for sheet in sample.sheets for row in sheet} | set(sample.requested)
    pictured |= {row for pair in [*sample.identical, *sample.near] for row in pair}
    warned = _warned(shown, rows)
    urls = pictures.thumbnails(sorted(pictured))
    return template(Path(__file__).parent, "data.html.j2").render(
        shown=shown,
        conclusions=conclusions,
        worst=conclusions[0].state if conclusions else "ok",
        task=TASKS.get(shown["dataset"]["task"], shown["dataset"]["task"]),
        of=f"{count(shown['all']['images'], 'image')} of {count(shown['all']['patients'], 'patient')}",
        headline=_headline(shown),
        left_out=left_out(shown["left_out_as_asked"]),
        splits=list(shown["all"].get("sides", {})),
        by_class=[_row(entry) for entry in shown["by_class"]],
        total=_row({"value": "all", **shown["all"]}),
        fields=[
            {"title": words, "rows": [_row(entry) for entry in shown[f"by_{field}"]]}
            for field, words in FIELDS.items()
            if _is_known(shown, field)
        ],
        unknown=[words.lower() for field, words in FIELDS.items() if not _is_known(shown, field)],
        class_table=_class_table(shown),
        cooccurrence=_cooccurrence(shown),
        sheets=[
            {
                "name": group.name,
                "images": count(int(group.mask.sum()), "image"),
                "pictures": [_picture(rows, row, urls) for row in sheet],
            }
            for group, sheet in zip(rows.classes, sample.sheets, strict=True)
        ],
        shards_read=len(sample.shards),
        panels=_panels(measured),
        pairs=[
            {"title": title, "pairs": [_pair(rows, pair, urls) for pair in pairs]}
            for title, pairs in (("Identical pixels", sample.identical), ("Near duplicates", sample.near))
            if pairs
        ],
        warned=[_picture(rows, row, urls) | {"note": warned[row]} for row in sample.requested],
        decoding=_decoding(shown),
        lineage=_lineage(shown),
    )


def _is_known(shown: Figures, field: str) -> bool:
    return any(entry["value"] != UNKNOWN for entry in shown[f"by_{field}"])


def _headline(shown: Figures) -> list[dict[str, str]]:
    """Return the four main figures."""
    images, patients = shown["all"]["images"], shown["all"]["patients"]
    rarest = min(shown["by_class"], key=lambda entry: entry["images"])
    quarantined = sum(entry["count"] for entry in shown["quarantine"])
    splits = "No split yet."
    if shown["split"]:
        numbers = {name: f"{counts['images']:,}" for name, counts in shown["all"]["sides"].items()}
        splits = f"{', '.join(f'{numbers[name]} {name}' for name in SPLITS)}; {numbers[OUT]} {OUT}."
    average = f"{images / patients:.1f}" if patients else NONE
    omitted = left_out(shown["left_out_as_asked"])
    warnings = f"{count(sum(entry['count'] for entry in shown['warnings']), 'warning')} for the remaining images."
    return [
        {"name": "Images", "value": f"{images:,}", "note": splits},
        {"name": "Patients", "value": f"{patients:,}", "note": f"{average} images per patient on average."},
        {
            "name": "Rarest class",
            "value": _percent(rarest["images"], images),
            "note": f"{rarest['value']}: {count(rarest['images'], 'image')} of {count(rarest['patients'], 'patient')}.",
        },
        {"name": "Quarantined", "value": f"{quarantined:,}", "note": f"{warnings} {omitted}." if omitted else warnings},
    ]


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a table of counts, with the bar of the splits' shares."""
    splits = entry.get("sides", {})
    whole = max(1, entry["images"])
    return {
        "name": entry["value"],
        "images": f"{entry['images']:,}",
        "patients": f"{entry['patients']:,}",
        "splits": [{"name": name, **counts} for name, counts in splits.items()],
        "bar": [round(100 * counts["images"] / whole, 2) for counts in splits.values()],
    }


def _class_table(shown: Figures) -> dict[str, Any] | None:
    """Return the share of each class within each group, or None without known groups."""
    rows = []
    for field, words in FIELDS.items():
        entries = shown[f"by_{field}"] if _is_known(shown, field) else []
        for index, entry in enumerate(entries if len(entries) > 1 else []):
            cells = [_cell(share) for share in class_shares(entry).values()]
            rows.append({"field": words if index == 0 else "", "name": entry["value"], "cells": cells})
    if not rows:
        return None
    classes = [entry["value"] for entry in shown["by_class"]]
    of_all = [_cell(entry["images"] / max(1, shown["all"]["images"])) for entry in shown["by_class"]]
    return {"classes": classes, "rows": [{"field": "All images", "name": "", "cells": of_all}, *rows]}


def _cooccurrence(shown: Figures) -> dict[str, Any] | None:
    """Return for each finding the share of its images with each other finding; None for single-label data."""
    findings = shown["findings"]
    if not findings:
        return None
    names = [entry["value"] for entry in shown["by_class"] if entry["value"] != NO_FINDING]
    rows = []
    for index, (name, counts) in enumerate(zip(names, findings["together"] or [], strict=False)):
        cells = [_cell(n / max(1, counts[index])) if k != index else None for k, n in enumerate(counts)]
        rows.append({"name": name, "images": f"{counts[index]:,}", "cells": cells})
    return {"per_image": list(findings["per_image"].items()), "names": names, "rows": rows}


def _cell(share: float) -> dict[str, Any]:
    return {"share": _percent(share, 1), "shade": round(0.34 * share, 3)}


def _warned(shown: Figures, rows: Rows) -> dict[int, str]:
    """Return the example images of warnings as rows, each with the reason."""
    reasons = {
        example["image_id"]: entry["reason"]
        for entry in reversed(shown["warnings"])
        for example in reversed(entry["examples"])
        if "image_id" in example
    }
    row_of = {name[:DIGITS]: row for row, name in enumerate(rows.ids)} if reasons else {}
    return {row_of[name]: reason for name, reason in reversed(reasons.items()) if name in row_of}


def _picture(rows: Rows, row: int, urls: Mapping[int, str]) -> dict[str, str]:
    split = rows.split_names[rows.split[row]] if rows.split[row] >= 0 else ""
    return {"id": rows.ids[row][:DIGITS], "split": split, "url": urls[row]}


def _pair(rows: Rows, pair: tuple[int, int], urls: Mapping[int, str]) -> dict[str, Any]:
    one, other = pair
    notes = ["same patient" if rows.patients[one] == rows.patients[other] else "two patients"]
    labels = [{group.name for group in rows.classes if group.mask[row]} for row in pair]
    if labels[0] != labels[1]:
        notes.append("conflicting labels")
    if {rows.split[one], rows.split[other]} <= set(range(len(SPLITS))) and rows.split[one] != rows.split[other]:
        notes.append("two splits")
    return {"pictures": [_picture(rows, row, urls) for row in pair], "note": ", ".join(notes)}


def _panels(measured: Histograms) -> list[dict[str, Any]]:
    """Return the three histograms of each group, with the same scale for all groups."""
    groups, edges = measured["groups"], measured["edges"]
    largest = edges["longest_side"][-1]
    ticks = {
        "longest_side": [(0.0, "0"), (0.5, f"{largest / 2:g}"), (1.0, f"{largest:g}")],
        "shape": [(0.0, "1:2 high"), (0.5, "square"), (1.0, "2:1 wide")],
        "brightness": [(0.0, "black"), (0.5, ""), (1.0, "white")],
    }
    # Black is often a border; scaling to that bin would flatten all others.
    tops = {name: peak([group[name] for group in groups], ends=name != "brightness") for name in ticks}
    return [
        {
            "name": group["name"],
            "images": count(group["images"], "image"),
            "histograms": {
                name: histogram(group[name], groups[0][name] if index else [], tops[name], ticks[name])
                for name in ticks
            },
            "brightness": _brightness(group),
        }
        for index, group in enumerate(groups)
    ]


def _brightness(group: Mapping[str, Any]) -> str:
    if not group["measured"]:
        return "not measured: no image in the sample"
    shares = f"black {_percent(group['black'], 1)}, white {_percent(group['white'], 1)}"
    return f"mean {group['mean']:.0f} of 255; {shares}; {count(group['measured'], 'image')}"


def _decoding(shown: Figures) -> list[tuple[str, str]]:
    settings, pixels = shown["decoding"], shown["pixels"]
    lines = [(words, str(settings[name])) for name, words in DECODING.items() if name in settings]
    if not settings.get("window_width") and "window_width" in settings:
        lines = [line for line in lines if not line[0].startswith("Window")]
        lines.append(("Window", "from the header of each image, if present"))
    lines += [(name, str(value)) for name, value in sorted(settings.items()) if name not in DECODING]
    depths = ", ".join(f"{bits} bits: {count(number, 'image')}" for bits, number in pixels["bits"].items())
    lines.append(("Bit depth of the masters", depths or NONE))
    for words, name in (("Longest side", "longest_side"), ("Shortest side", "shortest_side")):
        side = pixels[name]
        if side["median"] is not None:
            extent = f"{side['least']} to {side['most']} pixels, median {side['median']:g}"
            if side["least"] == side["most"]:
                extent = f"{side['most']} pixels for all images"
            lines.append((f"{words} of the masters", extent))
    if pixels["frames"]:
        lines.append(("Frames of multi-frame files", count(pixels["frames"], "image")))
    return lines


def _lineage(shown: Figures) -> list[tuple[str, str]]:
    about, split = shown["dataset"], shown["split"]
    lines = [
        ("Origin", shown["of"]),
        ("Data set", about["artifact"]),
        ("Data set fingerprint", about["fingerprint"]),
        ("Source revision", about["source_revision"]),
        ("Hash key id", about["key_id"]),
        ("Masters", f"{count(about['shards'], 'shard')}, {size(about['bytes'])}"),
    ]
    if split:
        lines += [
            ("Split", split["artifact"]),
            ("Split fingerprint", split["fingerprint"]),
            ("Split version", str(split["version"])),
        ]
        if split["left_out"]:
            unused = ", ".join(f"{why} {number:,}" for why, number in split["left_out"].items())
            lines.append(("Unused by the split", unused))
    return [(name, value) for name, value in lines if value]


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.05:
        return "< 0.1 %"
    return f"{share:.1f} %" if 0 < share < 9.95 else f"{share:.0f} %"
