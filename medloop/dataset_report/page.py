"""The page of a data set: one self-contained file that says first what must be known, then shows the images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.shared.reporting.formatting import NONE, count, size
from components.shared.reporting.left_out import left_out
from components.shared.reporting.pages import template
from medloop.dataset_report import drawings
from medloop.dataset_report.groups import NO_FINDING, OUT, SIDES, UNKNOWN, Rows
from medloop.dataset_report.histograms import Histograms, compared, histograms
from medloop.dataset_report.pictures import Pictures
from medloop.dataset_report.sample import Sample, draw
from medloop.dataset_report.show import DIGITS, Figures, out_of
from medloop.dataset_report.verdicts import Verdict, class_shares

FIELDS = {"sex": "Sex", "age": "Age", "site": "Site", "view": "View", "modality": "Modality"}
TASKS = {"classification": "one class an image", "multilabel": "any number of findings an image"}
DECODING = {
    "max_side": "Longest side of a master, in pixels",
    "colour": "Colour",
    "window_center": "Window’s centre",
    "window_width": "Window’s width",
    "frames": "Frames of a file",
}


def write(path: Path, shown: Figures, said: Sequence[Verdict], rows: Rows) -> Histograms:
    """Look at a sample of the images and write the page; gives the histograms that it drew."""
    groups = compared(rows)
    sample = draw(rows, groups, list(_warned(shown, rows)))
    pictures = Pictures(rows.data, sample.shards)
    measured = histograms(rows, groups, sample, pictures)
    text = page(shown, said, rows, sample, pictures, measured)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds pictures of patients
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)
    return measured


def page(
    shown: Figures, said: Sequence[Verdict], rows: Rows, sample: Sample, pictures: Pictures, measured: Histograms
) -> str:
    """The whole page."""
    shelf = {row for sheet in sample.sheets for row in sheet}
    shelf |= set(sample.asked)
    warned = _warned(shown, rows)
    shelf |= {row for pair in [*sample.identical, *sample.near] for row in pair}
    address = pictures.thumbnails(sorted(shelf))
    return template(Path(__file__).parent, "data.html.j2").render(
        shown=shown,
        said=said,
        worst=said[0].state if said else "ok",
        task=TASKS.get(shown["dataset"]["task"], shown["dataset"]["task"]),
        of=f"{count(shown['all']['images'], 'image')} of {count(shown['all']['patients'], 'patient')}",
        headline=_headline(shown),
        left_out=left_out(shown["left_out_as_asked"]),
        sides=list(shown["all"].get("sides", {})),
        by_class=[_row(entry) for entry in shown["by_class"]],
        everyone=_row({"value": "all", **shown["all"]}),
        fields=[
            {"title": words, "rows": [_row(entry) for entry in shown[f"by_{field}"]]}
            for field, words in FIELDS.items()
            if _is_known(shown, field)
        ],
        never=[words.lower() for field, words in FIELDS.items() if not _is_known(shown, field)],
        mixes=_mixes(shown),
        together=_together(shown),
        sheets=[
            {
                "name": group.name,
                "images": count(int(group.mask.sum()), "image"),
                "pictures": [_picture(rows, row, address) for row in sheet],
            }
            for group, sheet in zip(rows.classes, sample.sheets, strict=True)
        ],
        touched=len(sample.shards),
        panels=_panels(measured),
        pairs=[
            {"title": title, "pairs": [_pair(rows, pair, address) for pair in pairs]}
            for title, pairs in (("Identical pixels", sample.identical), ("Look the same", sample.near))
            if pairs
        ],
        warned=[_picture(rows, row, address) | {"says": warned[row]} for row in sample.asked],
        decoding=_decoding(shown),
        lineage=_lineage(shown),
    )


def _is_known(shown: Figures, field: str) -> bool:
    return any(entry["value"] != UNKNOWN for entry in shown[f"by_{field}"])


def _headline(shown: Figures) -> list[dict[str, str]]:
    """The four figures that come first."""
    images, patients = shown["all"]["images"], shown["all"]["patients"]
    rarest = min(shown["by_class"], key=lambda entry: entry["images"])
    aside = sum(entry["count"] for entry in shown["quarantine"])
    left = out_of(shown)
    if shown["split"]:
        sides = [f"{shown['all']['sides'][side]['images']:,} {side}" for side in SIDES]
        divided = f"{', '.join(sides)}; {left:,} {OUT}."
    else:
        divided = "Not divided yet."
    each = f"{images / patients:.1f}" if patients else NONE
    omitted = left_out(shown["left_out_as_asked"])
    seen = f"{count(sum(entry['count'] for entry in shown['warnings']), 'warning')} on what was kept."
    if omitted:
        seen = f"{seen} {omitted}."
    return [
        {"name": "Images", "value": f"{images:,}", "says": divided},
        {"name": "Patients", "value": f"{patients:,}", "says": f"{each} images each, on average."},
        {
            "name": "Rarest class",
            "value": _percent(rarest["images"], images),
            "says": f"{rarest['value']}: {count(rarest['images'], 'image')} of {count(rarest['patients'], 'patient')}.",
        },
        {"name": "Set aside", "value": f"{aside:,}", "says": seen},
    ]


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a table of counts: its figures, and a bar of the sides' shares."""
    sides = entry.get("sides", {})
    whole = max(1, entry["images"])
    return {
        "name": entry["value"],
        "images": f"{entry['images']:,}",
        "patients": f"{entry['patients']:,}",
        "sides": [{"side": side, **counted} for side, counted in sides.items()],
        "bar": [round(100 * counted["images"] / whole, 2) for counted in sides.values()],
    }


def _mixes(shown: Figures) -> dict[str, Any] | None:
    """The share of each class within each group, where anything is known that makes groups."""
    rows = []
    for field, words in FIELDS.items():
        entries = shown[f"by_{field}"] if _is_known(shown, field) else []
        for place, entry in enumerate(entries if len(entries) > 1 else []):
            cells = [_cell(share) for share in class_shares(entry).values()]
            rows.append({"field": words if place == 0 else "", "name": entry["value"], "cells": cells})
    if not rows:
        return None
    classes = [entry["value"] for entry in shown["by_class"]]
    of_all = [_cell(entry["images"] / max(1, shown["all"]["images"])) for entry in shown["by_class"]]
    return {"classes": classes, "rows": [{"field": "All images", "name": "", "cells": of_all}, *rows]}


def _together(shown: Figures) -> dict[str, Any] | None:
    """Which findings come together: in each row, the shares of the images with that finding."""
    findings = shown["findings"]
    if not findings:
        return None
    names = [entry["value"] for entry in shown["by_class"] if entry["value"] != NO_FINDING]
    rows = []
    for place, (name, counts) in enumerate(zip(names, findings["together"] or [], strict=False)):
        cells = [_cell(n / max(1, counts[place])) if k != place else None for k, n in enumerate(counts)]
        rows.append({"name": name, "images": f"{counts[place]:,}", "cells": cells})
    return {"per_image": list(findings["per_image"].items()), "names": names, "rows": rows}


def _cell(share: float) -> dict[str, Any]:
    return {"share": _percent(share, 1), "shade": round(0.34 * share, 3)}


def _warned(shown: Figures, rows: Rows) -> dict[int, str]:
    """The images among the examples of warnings, as rows, each with the reason."""
    named = {
        example["image_id"]: entry["reason"]
        for entry in reversed(shown["warnings"])
        for example in reversed(entry["examples"])
        if "image_id" in example
    }
    place = {name[:DIGITS]: row for row, name in enumerate(rows.ids)} if named else {}
    return {place[name]: reason for name, reason in reversed(named.items()) if name in place}


def _picture(rows: Rows, row: int, address: Mapping[int, str]) -> dict[str, str]:
    return {"id": rows.ids[row][:DIGITS], "side": _side(rows, row), "address": address[row]}


def _side(rows: Rows, row: int) -> str:
    return rows.sides[rows.side[row]] if rows.side[row] >= 0 else ""


def _pair(rows: Rows, pair: tuple[int, int], address: Mapping[int, str]) -> dict[str, Any]:
    one, other = pair
    said = ["the same patient" if rows.patients[one] == rows.patients[other] else "two patients"]
    shows = [{group.name for group in rows.classes if group.mask[row]} for row in pair]
    if shows[0] != shows[1]:
        said.append("contrary labels")
    if {rows.side[one], rows.side[other]} <= set(range(len(SIDES))) and rows.side[one] != rows.side[other]:
        said.append("two sides")
    return {"pictures": [_picture(rows, row, address) for row in pair], "says": ", ".join(said)}


def _panels(measured: Histograms) -> list[dict[str, Any]]:
    """For each group its three histograms, drawn to one scale down the page."""
    groups, edges = measured["groups"], measured["edges"]
    most = edges["longest_side"][-1]
    ticks = {
        "longest_side": [(0.0, "0"), (0.5, f"{most / 2:g}"), (1.0, f"{most:g}")],
        "shape": [(0.0, "1:2 high"), (0.5, "square"), (1.0, "2:1 wide")],
        "brightness": [(0.0, "black"), (0.5, ""), (1.0, "white")],
    }
    tops = {
        name: drawings.peak([group[name] for group in groups], ends=name != "brightness") for name in ticks
    }  # what is quite black is often a border, and would press all else flat
    return [
        {
            "name": group["name"],
            "images": count(group["images"], "image"),
            "drawn": {
                name: drawings.histogram(group[name], groups[0][name] if place else [], tops[name], ticks[name])
                for name in ticks
            },
            "bright": _bright(group),
        }
        for place, group in enumerate(groups)
    ]


def _bright(group: Mapping[str, Any]) -> str:
    if not group["measured"]:
        return "not measured: none in the sample"
    shares = f"black {_percent(group['black'], 1)}, white {_percent(group['white'], 1)}"
    return f"mean {group['mean']:.0f} of 255; {shares}; {count(group['measured'], 'image')}"


def _decoding(shown: Figures) -> list[tuple[str, str]]:
    settings, pixels = shown["decoding"], shown["pixels"]
    lines = [(words, str(settings[name])) for name, words in DECODING.items() if name in settings]
    if not settings.get("window_width") and "window_width" in settings:
        lines = [line for line in lines if not line[0].startswith("Window’s")]
        lines.append(("Window", "each image’s own, where it names one"))
    lines += [(name, str(value)) for name, value in sorted(settings.items()) if name not in DECODING]
    depths = ", ".join(f"{bits} bits: {count(number, 'image')}" for bits, number in pixels["bits"].items())
    lines.append(("Bits of a master", depths or NONE))
    for words, name in (("Longest side", "longest_side"), ("Shortest side", "shortest_side")):
        found = pixels[name]
        if found["median"] is not None:
            told = f"{found['least']} to {found['most']} pixels, {found['median']:g} in the middle"
            if found["least"] == found["most"]:
                told = f"{found['most']} pixels, every image"
            lines.append((f"{words}, as kept", told))
    if pixels["frames"]:
        lines.append(("Frames of longer files", count(pixels["frames"], "image")))
    return lines


def _lineage(shown: Figures) -> list[tuple[str, str]]:
    about, split = shown["dataset"], shown["split"]
    lines = [
        ("Of", shown["of"]),
        ("Data set", about["artifact"]),
        ("Its fingerprint", about["fingerprint"]),
        ("Source’s revision", about["source_revision"]),
        ("Hash key’s id", about["key_id"]),
        ("Masters", f"{count(about['shards'], 'shard')}, {size(about['bytes'])}"),
    ]
    if split:
        lines += [
            ("Split", split["artifact"]),
            ("Its fingerprint", split["fingerprint"]),
            ("Its version", str(split["version"])),
        ]
        if split["left_out"]:
            out = ", ".join(f"{why} {number:,}" for why, number in split["left_out"].items())
            lines.append(("Unused by the split", out))
    return [(name, value) for name, value in lines if value]


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.05:
        return "< 0.1 %"
    return f"{share:.1f} %" if 0 < share < 9.95 else f"{share:.0f} %"
