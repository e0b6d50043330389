"""Single test images of a report: errors, and images with explanation maps."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluate.explanations import KINDS, verdict
from components.evaluate.figure_tables import IN_USE
from components.shared.reporting.formatting import NONE, count

ID_DIGITS = 12
"""Digits of an image id on the page: enough to find the image in predictions.parquet."""
TITLES = {
    "confident right": "Correct with the highest confidence",
    "confident wrong": "Wrong with the highest confidence",
    "uncertain": "Lowest confidence",
}

Metrics = Mapping[str, Any]
Row = dict[str, Any]


def explained(entries: Sequence[Metrics], pictures: Mapping[str, bytes]) -> Row | None:
    """Return the explained images by kind, the wrong ones apart, each with its picture and prediction."""
    if not entries:
        return None
    images = [
        {
            **entry,
            "id": entry["image_id"][:ID_DIGITS],
            "png": base64.b64encode(pictures[entry["file"]]).decode(),
            "percent": probability(entry["probability"]),
            "correlations": ", ".join(f"{value:.2f}" for value in entry["sanity"].values()) or NONE,
        }
        for entry in entries
    ]
    kinds = [{"title": TITLES[kind], "images": [image for image in images if image["kind"] == kind]} for kind in KINDS]
    return {
        "wrong": kinds[1]["images"],
        "others": [kind for kind in (kinds[0], kinds[2]) if kind["images"]],
        "occluded": images[0]["method"] == "occlusion",
        "verdict": verdict(entries),
    }


def mistakes(errors: Metrics, metrics: Metrics) -> Row:
    """Summarise the wrong answers, and list the most confident ones if there are more than pictures."""
    pictured = {entry["image_id"] for entry in metrics["explanations"] if entry["kind"] == "confident wrong"}
    rows = [
        {
            **row,
            "id": row["image_id"][:ID_DIGITS],
            "percent": probability(row["probability"]),
            "pictured": row["image_id"] in pictured,
            "service_right": row["service"] == row["label"],
        }
        for row in errors["rows"]
    ]
    return {
        "sentence": _error_count(errors, metrics),
        "service": _in_service(errors),
        "threshold": _threshold(metrics) if errors["answers"] else "",
        "rows": rows if errors["answers"] > len(pictured) else [],
        "listed": "All errors are" if errors["answers"] <= len(rows) else f"The {len(rows)} most confident errors are",
    }


def probability(value: float) -> str:
    """Format a probability; never round up to 100 %."""
    return f"{100 * value:.1f} %" if value < 0.9995 else "over 99.9 %"


def _error_count(errors: Metrics, metrics: Metrics) -> str:
    images, wrong = metrics["all"]["images"], errors["images"]
    if not wrong:
        return f"The model is right on all {images:,} test images."
    if metrics["task"] == "multilabel":
        are = "is" if errors["answers"] == 1 else "are"
        return (
            f"{count(errors['answers'], 'answer')} on {count(wrong, 'image')} {are} wrong: the model missed a finding "
            f"or predicted one that is absent. All answers are right on {images - wrong:,} of {count(images, 'image')}."
        )
    return f"{wrong:,} of {count(images, 'image')} {'is' if wrong == 1 else 'are'} misclassified."


def _threshold(metrics: Metrics) -> str:
    """Explain why a predicted class can have a probability below one half, where that is so."""
    positive = metrics["positive"]
    used = [p["threshold"] for p in metrics["operating_points"] if p["at"] == IN_USE]
    if not positive or not used or abs(used[0] - 0.5) < 0.005:
        return ""
    return (
        f"{positive} is predicted if its probability is at least {100 * used[0]:.1f} %, so a predicted class can have "
        "a probability below 50 %. Confidence is measured as the distance from this threshold."
    )


def _in_service(errors: Metrics) -> str:
    if not errors["service"] or not errors["answers"]:
        return ""
    right, wrong = errors["service"]["right"], errors["service"]["wrong"]
    return (
        f"The model in service is right on {right:,} of these {errors['answers']:,}, and wrong on {wrong:,} on which "
        "this model is right."
    )
