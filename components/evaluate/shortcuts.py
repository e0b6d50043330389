"""Whether the model reads what is no anatomy: how it does on copies of the test images that lack the one or the other.

A model that tells the classes from an image's borders alone, with its inside made gray, reads markers, shutters,
positioning or exposure. One that does as well on a blurred copy needs no fine structure. One that tells the classes
well over all sites, and no better than chance within each, may have learned which site an image comes from.

What is taken away is made the mean gray of the images that the model was trained on, the same for all. An image's own
mean would carry into the copy what was to be left out: the brightness of lungs into the borders, that of a marker into
the inside.

The copies are no images that the model has been made for, so a low figure on them proves nothing: it is the high ones
that tell. The AUC tells more than the accuracy, since copies may move all probabilities to one side of the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from components.evaluate.estimates import estimates
from components.evaluate.population import Settings, counts
from components.evaluate.subgroups import SMALL, UNKNOWN
from components.shared.figures import SUMMARY
from components.shared.imaging.views import view_parameters
from components.shared.inference import Model
from components.shared.statistics.intervals import Figure
from components.shared.statistics.metrics import Ints, Scored

LIMIT = 500
"""So many images at most are copied; of more, patients are drawn."""
BORDER = 0.16
"""How wide the border is, in parts of the image's sides."""
BLUR = 1 / 32
"""The spread of the blur, in parts of the view's side."""
BATCH = 64
COPIES = {
    "whole": "the images as they are",
    "borders": "borders alone",
    "inside": "without borders",
    "blurred": "blurred",
}
"""What is judged: the sampled images as they are, and their copies."""
STRONG = 0.7
"""An AUC from which on, even at its lower limit, the borders tell so much that no one should overlook it."""
TOLD = 0.25
"""A class whose share differs by this much between two sites is given away by the site."""

Views = NDArray[np.uint8]
Boxes = NDArray[np.int64]
"""For each image where it lies in its view: top, left, height, width."""


def shortcuts(
    model: Model,
    views: Any,
    rows: Ints,
    scored: Scored,
    sizes: Ints,
    sites: Sequence[str],
    groups: Sequence[Mapping[str, Any]],
    settings: Settings,
) -> dict[str, Any]:
    """The figures on copies of the images, and by site, with a sentence on what they mean.

    `views` are those of the data set as this model sees them, `rows` the places of the scored images among them;
    `sizes` holds height and width of each scored image, `sites` where it was taken ("unknown" where that is not known),
    `groups` the subgroups of metrics.json.
    """
    chosen = sample(scored.patients, LIMIT, settings.seed)
    boxes = placed(sizes[chosen], *view_parameters(model.preprocess)[:3])
    some = scored.only(np.isin(np.arange(len(rows)), chosen))
    gray = np.rint(255 * np.asarray(model.preprocess["mean"])).clip(0, 255).astype(np.uint8)
    answers: dict[str, list[NDArray[np.float32]]] = {name: [] for name in COPIES if name != "whole"}
    for start in range(0, len(chosen), BATCH):
        part = views[rows[chosen[start : start + BATCH]]]
        for name, logits in answers.items():
            logits.append(model(copied(part, boxes[start : start + BATCH], name, gray)).logits)
    judged = {"whole": some}
    for name, logits in answers.items():
        probabilities = model.probabilities(np.concatenate(logits))
        judged[name] = Scored(some.labels, model.decide(probabilities), probabilities, some.patients)
    found: dict[str, Any] = {name: figures(each, settings.confidence) for name, each in judged.items()}
    found |= {
        "images": len(chosen),
        "patients": some.number_of_patients,
        "of_images": len(rows),
        "of_patients": scored.number_of_patients,
        "sites": by_site(scored, sites, groups, model.classes),
    }
    return {**found, "sentence": sentence(found, estimates(scored)["auc"].value)}


def sample(patients: Ints, limit: int, seed: int) -> Ints:
    """The places of all images, or of those of patients drawn at random, with as many images as the limit allows."""
    if len(patients) <= limit:
        return np.arange(len(patients))
    images = np.bincount(patients)
    order = np.random.default_rng(seed).permutation(len(images))
    fits = order[np.cumsum(images[order]) <= limit]
    return np.flatnonzero(np.isin(patients, fits if len(fits) else order[:1]))


def placed(sizes: Ints, size: int, fit: str, crop: float) -> Boxes:
    """Where images of these heights and widths lie in their views: a padded view has borders that are no image's."""
    if fit == "stretch":
        return np.tile(np.array([0, 0, size, size]), (len(sizes), 1))
    cut = np.minimum(np.rint(sizes * crop).astype(np.int64), (sizes - 1) // 2)
    kept = sizes - 2 * cut
    inner = np.maximum(1, np.rint(kept * (size / kept.max(axis=1, keepdims=True)))).astype(np.int64)
    return np.concatenate([(size - inner) // 2, inner], axis=1)


def copied(views: Views, boxes: Boxes, how: str, gray: NDArray[np.uint8]) -> Views:
    """Copies of views: borders (the inside made gray), inside (the borders made so), or blurred; padding stays."""
    copies = views.copy()
    for copy, view, (top, left, height, width) in zip(copies, views, boxes, strict=True):
        inner = view[top : top + height, left : left + width]
        down, across = max(1, round(BORDER * height)), max(1, round(BORDER * width))
        core = (slice(top + down, top + height - down), slice(left + across, left + width - across))
        if how == "borders":
            copy[core] = gray
        elif how == "inside":
            copy[top : top + height, left : left + width] = gray
            copy[core] = view[core]
        else:
            blurred = Image.fromarray(np.ascontiguousarray(inner)).filter(ImageFilter.GaussianBlur(BLUR * len(view)))
            copy[top : top + height, left : left + width] = np.asarray(blurred)
    return copies


def figures(scored: Scored, confidence: float) -> dict[str, Figure]:
    """Accuracy and AUC with their intervals."""
    found = estimates(scored)
    return {name: found[name].figure(confidence) for name in SUMMARY}


def by_site(
    scored: Scored, sites: Sequence[str], groups: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """For each known site how many images of which class, and how the model does there; nothing where one is known.

    `groups` are the subgroups of metrics.json: the figures are theirs.
    """
    known = [row for row in groups if row["field"] == "site" and row["value"] != UNKNOWN]
    return [
        {
            "site": row["value"],
            "images": row["images"],
            "patients": row["patients"],
            "by_class": counts(scored.only(np.asarray(sites) == row["value"]), classes)["by_class"],
            "too_small": row["too_small"],
            **{name: row["figures"][name] for name in SUMMARY},
        }
        for row in (known if len(known) > 1 else [])
    ]


def sentence(found: Mapping[str, Any], auc: float) -> str:
    """What the figures mean, in words that need no statistics; `auc` is that of all images."""
    parts = [_of_borders(found["borders"]["auc"]), _of_blur(found["blurred"]["auc"], found["whole"]["auc"])]
    return " ".join(filter(None, [*parts, _of_sites(found["sites"], auc)]))


def _of_borders(auc: Figure) -> str:
    value, low = auc["value"], auc["low"]
    if value is None or low is None:
        return "What the borders tell cannot be said of these images."
    measured = f"(AUC {value:.2f}, at least {low:.2f})"
    if low >= STRONG:
        return (
            f"From the borders alone the model tells the classes well {measured}: it reads something that is no "
            "anatomy, such as markers, shutters, positioning or exposure. Find out what, before anybody relies on it."
        )
    if low > 0.5:
        return (
            f"From the borders alone the model tells the classes better than chance {measured}: in part it may read "
            "something that is no anatomy, such as markers, shutters, positioning or exposure."
        )
    return f"That the borders alone tell it the classes is not shown (AUC {value:.2f}; a coin has 0.50)."


def _of_blur(blurred: Figure, whole: Figure) -> str:
    if None in (blurred["value"], blurred["low"], whole["value"], whole["low"]):
        return ""
    now, before = float(blurred["value"] or 0), float(whole["value"] or 0)
    if before - now < 0.02 and before >= STRONG:
        return (
            f"On blurred copies it does as well (AUC {now:.2f}, as they are {before:.2f}): it needs no fine structure, "
            "only brightness and coarse shape. Where the finding is a fine one, that is no reason to trust it."
        )
    return f"On blurred copies its AUC is {now:.2f}, on the same images as they are {before:.2f}."


def _of_sites(sites: Sequence[Mapping[str, Any]], auc: float) -> str:
    large = [site for site in sites if site["patients"] >= SMALL]
    if len(large) < 2:
        return "The sites are too small to judge each by itself." if sites else ""
    shares = np.array([[n / site["images"] for n in site["by_class"].values()] for site in large])
    apart = float((shares.max(axis=0) - shares.min(axis=0)).max())
    told = (
        f"Sites give the class away: a class’s share differs by {100 * apart:.0f} points between them."
        if apart >= TOLD
        else f"A class’s share differs by at most {100 * apart:.0f} points between sites."
    )
    values = [site["auc"]["value"] for site in large if site["auc"] and site["auc"]["value"] is not None]
    if not values:
        return f"{told} None of them has images of two classes."
    within = f"{min(values):.2f}" if len(values) == 1 else f"{min(values):.2f} to {max(values):.2f}"
    return f"{told} Within a site the AUC is {within}, over all {auc:.2f}."
