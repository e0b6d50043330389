"""Shortcut checks: whether the model relies on non-anatomical cues.

The model is run on copies of the test images from which parts were removed. A model that separates the classes from the
borders alone, with the inside gray, uses markers, shutters, positioning or exposure. A model that performs equally well
on blurred copies needs no fine structure. A model that separates the classes well over all sites, but not better than
chance within each, may have learned to recognise the site.

Removed parts are filled with the mean gray of the training images. The mean of the image itself would leak what was to
be removed: the brightness of the lungs into the borders copy, the brightness of a marker into the inside copy.

The model was not trained on such copies, so low figures on them prove nothing; only high ones do. The AUC is more
informative than the accuracy, because copies can shift all probabilities to one side of the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from components.evaluate.metrics_record import Settings, counts
from components.evaluate.point_metrics import estimates
from components.evaluate.subgroups import MIN_PATIENTS, UNKNOWN
from components.shared.imaging.views import view_parameters
from components.shared.inference import Model
from components.shared.metric_catalogue import SUMMARY
from components.shared.statistics.bootstrapped_metrics import Ints, Predictions
from components.shared.statistics.intervals import Figure

LIMIT = 500
"""Maximum number of images to copy; of more, patients are sampled."""
BORDER = 0.16
"""Width of the border, as a share of the image's height and width."""
BLUR = 1 / 32
"""Standard deviation of the blur, as a share of the view's size."""
BATCH = 64
COPIES = {
    "whole": "original images",
    "borders": "borders only",
    "inside": "without borders",
    "blurred": "blurred",
}
"""The sampled images and their copies, with their titles in the report."""
STRONG_AUC = 0.7
"""Lower limit of the AUC on borders from which the report warns."""
SHARE_GAP = 0.25
"""Difference of a class's share between two sites from which the site predicts the class."""

Views = NDArray[np.uint8]
Boxes = NDArray[np.int64]
"""Position of each image in its view: top, left, height, width."""


def shortcuts(
    model: Model,
    views: Any,
    rows: Ints,
    predictions: Predictions,
    sizes: Ints,
    sites: Sequence[str],
    groups: Sequence[Mapping[str, Any]],
    settings: Settings,
) -> dict[str, Any]:
    """Compute the figures on copies of the images and by site, with a sentence that summarises them.

    views: the data set's images, preprocessed for this model
    rows: position of each scored image in `views`
    sizes: height and width of each scored image
    sites: where each scored image was taken, or "unknown"
    groups: the subgroups of metrics.json
    """
    chosen = sample(predictions.patients, LIMIT, settings.seed)
    boxes = image_boxes(sizes[chosen], *view_parameters(model.preprocess)[:3])
    sampled = predictions.subset(np.isin(np.arange(len(rows)), chosen))
    gray = np.rint(255 * np.asarray(model.preprocess["mean"])).clip(0, 255).astype(np.uint8)
    answers: dict[str, list[NDArray[np.float32]]] = {name: [] for name in COPIES if name != "whole"}
    for start in range(0, len(chosen), BATCH):
        part = views[rows[chosen[start : start + BATCH]]]
        for name, logits in answers.items():
            logits.append(model(make_copies(part, boxes[start : start + BATCH], name, gray)).logits)
    copies = {"whole": sampled}
    for name, logits in answers.items():
        probabilities = model.probabilities(np.concatenate(logits))
        copies[name] = Predictions(sampled.labels, model.decide(probabilities), probabilities, sampled.patients)
    results: dict[str, Any] = {name: figures(copy, settings.confidence) for name, copy in copies.items()}
    results |= {
        "images": len(chosen),
        "patients": sampled.number_of_patients,
        "of_images": len(rows),
        "of_patients": predictions.number_of_patients,
        "sites": by_site(predictions, sites, groups, model.classes),
    }
    return {**results, "sentence": summarise(results, estimates(predictions)["auc"].value)}


def sample(patients: Ints, limit: int, seed: int) -> Ints:
    """Return the positions of all images or, above the limit, those of randomly drawn patients."""
    if len(patients) <= limit:
        return np.arange(len(patients))
    images = np.bincount(patients)
    order = np.random.default_rng(seed).permutation(len(images))
    fits = order[np.cumsum(images[order]) <= limit]
    return np.flatnonzero(np.isin(patients, fits if len(fits) else order[:1]))


def image_boxes(sizes: Ints, size: int, fit: str, crop: float) -> Boxes:
    """Return the positions of images of these sizes in their views, which can be padded."""
    if fit == "stretch":
        return np.tile(np.array([0, 0, size, size]), (len(sizes), 1))
    cut = np.minimum(np.rint(sizes * crop).astype(np.int64), (sizes - 1) // 2)
    kept = sizes - 2 * cut
    inner = np.maximum(1, np.rint(kept * (size / kept.max(axis=1, keepdims=True)))).astype(np.int64)
    return np.concatenate([(size - inner) // 2, inner], axis=1)


def make_copies(views: Views, boxes: Boxes, kind: str, gray: NDArray[np.uint8]) -> Views:
    """Return copies of views: "borders" has a gray inside, "inside" gray borders; padding stays."""
    copies = views.copy()
    for copy, view, (top, left, height, width) in zip(copies, views, boxes, strict=True):
        inner = view[top : top + height, left : left + width]
        down, across = max(1, round(BORDER * height)), max(1, round(BORDER * width))
        core = (slice(top + down, top + height - down), slice(left + across, left + width - across))
        if kind == "borders":
            copy[core] = gray
        elif kind == "inside":
            copy[top : top + height, left : left + width] = gray
            copy[core] = view[core]
        else:
            blurred = Image.fromarray(np.ascontiguousarray(inner)).filter(ImageFilter.GaussianBlur(BLUR * len(view)))
            copy[top : top + height, left : left + width] = np.asarray(blurred)
    return copies


def figures(predictions: Predictions, confidence: float) -> dict[str, Figure]:
    """Return accuracy and AUC with their intervals."""
    by_name = estimates(predictions)
    return {name: by_name[name].figure(confidence) for name in SUMMARY}


def by_site(
    predictions: Predictions, sites: Sequence[str], groups: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return image counts and figures of each known site; empty if fewer than two are known.

    The figures are taken from `groups`, the subgroups of metrics.json.
    """
    known = [row for row in groups if row["field"] == "site" and row["value"] != UNKNOWN]
    return [
        {
            "site": row["value"],
            "images": row["images"],
            "patients": row["patients"],
            "by_class": counts(predictions.subset(np.asarray(sites) == row["value"]), classes)["by_class"],
            "too_small": row["too_small"],
            **{name: row["figures"][name] for name in SUMMARY},
        }
        for row in (known if len(known) > 1 else [])
    ]


def summarise(results: Mapping[str, Any], auc: float) -> str:
    """Explain the figures in sentences that need no statistics; `auc` is that of all test images."""
    parts = [_of_borders(results["borders"]["auc"]), _of_blur(results["blurred"]["auc"], results["whole"]["auc"])]
    return " ".join(filter(None, [*parts, _of_sites(results["sites"], auc)]))


def _of_borders(auc: Figure) -> str:
    value, low = auc["value"], auc["low"]
    if value is None or low is None:
        return "The AUC on the borders alone cannot be computed from these images."
    measured = f"(AUC {value:.2f}, lower limit {low:.2f})"
    if low >= STRONG_AUC:
        return (
            f"The model separates the classes well from the borders alone {measured}: it relies on non-anatomical "
            "cues, such as markers, shutters, positioning or exposure. Find the cause before the model is used."
        )
    if low > 0.5:
        return (
            f"The model separates the classes better than chance from the borders alone {measured}: it may partly rely "
            "on non-anatomical cues, such as markers, shutters, positioning or exposure."
        )
    return f"There is no evidence that the model uses the borders alone (AUC {value:.2f}; chance gives 0.50)."


def _of_blur(blurred: Figure, whole: Figure) -> str:
    if None in (blurred["value"], blurred["low"], whole["value"], whole["low"]):
        return ""
    now, before = float(blurred["value"] or 0), float(whole["value"] or 0)
    if before - now < 0.02 and before >= STRONG_AUC:
        return (
            f"On blurred copies the model performs equally well (AUC {now:.2f}, unblurred {before:.2f}): it uses only "
            "brightness and coarse shape. If the finding is a fine structure, do not trust the model."
        )
    return f"On blurred copies the AUC is {now:.2f}, on the same images unblurred {before:.2f}."


def _of_sites(sites: Sequence[Mapping[str, Any]], auc: float) -> str:
    large = [site for site in sites if site["patients"] >= MIN_PATIENTS]
    if len(large) < 2:
        return "The sites are too small to evaluate each on its own." if sites else ""
    shares = np.array([[n / site["images"] for n in site["by_class"].values()] for site in large])
    apart = float((shares.max(axis=0) - shares.min(axis=0)).max())
    shares_sentence = f"The share of a class differs by up to {100 * apart:.0f} percentage points between sites"
    shares_sentence += ", so the site is a cue for the class." if apart >= SHARE_GAP else "."
    values = [site["auc"]["value"] for site in large if site["auc"] and site["auc"]["value"] is not None]
    if not values:
        return f"{shares_sentence} No site has images of two classes."
    within = f"{min(values):.2f}" if len(values) == 1 else f"{min(values):.2f} to {max(values):.2f}"
    return f"{shares_sentence} Within a site the AUC is {within}, over all sites {auc:.2f}."
