"""Single test images for the page: those that the model got wrong, and what it looked at."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluate.explain import KINDS, verdict
from components.evaluate.headlines import IN_USE
from components.shared.reporting.wording import NONE, count

DIGITS = 12
"""So many of an image id's digits stand on the page: enough to find it in predictions.parquet."""
TITLES = {"confident right": "Right, and surest", "confident wrong": "Wrong, and surest", "uncertain": "Least sure"}

Metrics = Mapping[str, Any]
Row = dict[str, Any]


def explained(entries: Sequence[Metrics], pictures: Mapping[str, bytes]) -> Row | None:
    """The explained images by kind, the wrong ones apart, each with its picture and what the model said of it."""
    if not entries:
        return None
    shown = [
        {
            **entry,
            "id": entry["image_id"][:DIGITS],
            "png": base64.b64encode(pictures[entry["file"]]).decode(),
            "said": probability(entry["probability"]),
            "checked": ", ".join(f"{value:.2f}" for value in entry["sanity"].values()) or NONE,
        }
        for entry in entries
    ]
    kinds = [{"title": TITLES[kind], "images": [entry for entry in shown if entry["kind"] == kind]} for kind in KINDS]
    return {
        "wrong": kinds[1]["images"],
        "others": [kind for kind in (kinds[0], kinds[2]) if kind["images"]],
        "occluded": shown[0]["method"] == "occlusion",
        "verdict": verdict(entries),
    }


def mistakes(found: Metrics, metrics: Metrics) -> Row:
    """The wrong answers in a sentence, and a table of the surest of them where they are more than the pictures."""
    pictured = {entry["image_id"] for entry in metrics["explanations"] if entry["kind"] == "confident wrong"}
    rows = [
        {
            **row,
            "id": row["image_id"][:DIGITS],
            "said": probability(row["probability"]),
            "pictured": row["image_id"] in pictured,
            "service_right": row["service"] == row["label"],
        }
        for row in found["rows"]
    ]
    return {
        "sentence": _counted(found, metrics),
        "service": _in_service(found),
        "threshold": _threshold(metrics) if found["answers"] else "",
        "rows": rows if found["answers"] > len(pictured) else [],
        "listed": "All of them stand" if found["answers"] <= len(rows) else f"The {len(rows)} surest stand",
    }


def probability(value: float) -> str:
    """A probability as it is written: never as certain as it is not."""
    return f"{100 * value:.1f} %" if value < 0.9995 else "over 99.9 %"


def _counted(found: Metrics, metrics: Metrics) -> str:
    images, wrong = metrics["all"]["images"], found["images"]
    if not wrong:
        return f"None: it is right on all {images:,} images of the test."
    if metrics["task"] == "multilabel":
        are = "is" if found["answers"] == 1 else "are"
        return (
            f"{count(found['answers'], 'answer')} on {count(wrong, 'image')} {are} wrong: a finding that is there was "
            f"not called, or one that is not there was. On {images - wrong:,} of {count(images, 'image')} all is right."
        )
    return f"{wrong:,} of {count(images, 'image')} {'is' if wrong == 1 else 'are'} called wrong."


def _threshold(metrics: Metrics) -> str:
    """Why an answer may have a probability below one half, where that is so."""
    positive = metrics["positive"]
    used = [p["threshold"] for p in metrics["operating_points"] if p["at"] == IN_USE]
    if not positive or not used or abs(used[0] - 0.5) < 0.005:
        return ""
    return (
        f"{positive} is called from a probability of {100 * used[0]:.1f} % on: so an answer may be given at less than "
        "50 %, and how sure it is goes by the distance from there."
    )


def _in_service(found: Metrics) -> str:
    if not found["service"] or not found["answers"]:
        return ""
    right, wrong = found["service"]["right"], found["service"]["wrong"]
    return (
        f"The model in service has {right:,} of these {found['answers']:,} right, and gets {wrong:,} wrong that this "
        "model has right."
    )
