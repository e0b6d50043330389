"""What stands behind the figures, for the page: shortcuts, the shipped graph, the data's state, speed, lineage."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluate.groups import sites
from components.evaluate.shortcuts import COPIES
from components.shared.figures import SUMMARY
from components.shared.reporting.wording import NONE, count, number, size, written

Metrics = Mapping[str, Any]


def shipped(facts: Metrics | None, precision: str) -> dict[str, str] | None:
    """How far the shipped graph departs from the trained one; nothing where they are the same."""
    if facts is None:
        return None
    return {
        "precision": precision,
        "agreement": f"{100 * facts['agreement']:.1f} %",
        "moved": f"{facts['largest_probability_difference']:.3f}",
        "accuracy": number("accuracy", facts["accuracy"]),
        "accuracy_trained": number("accuracy", facts["accuracy_float32"]),
        "size": size(facts["bytes"]),
        "size_trained": size(facts["bytes_float32"]),
        "share": f"{facts['bytes'] / facts['bytes_float32']:.2f}",
    }


def shortcuts(found: Metrics) -> dict[str, Any]:
    """The figures on copies of the images and by site, as they are written."""
    tested = f"{count(found['images'], 'image')} of {count(found['patients'], 'patient')}"
    drawn = found["images"] < found["of_images"]
    return {
        "sentence": found["sentence"],
        "who": f"{tested}, drawn at random from the {found['of_images']:,} of the test" if drawn else f"all {tested}",
        "copies": [
            {"name": words.capitalize(), **{name: written(name, found[copy][name]) for name in SUMMARY}}
            for copy, words in COPIES.items()
        ],
        "sites": sites(found["sites"]),
    }


def seen(model: Metrics, sheet: bytes | None) -> dict[str, str] | None:
    """The sheet of training images for the page, and in words what was done to the images on it."""
    if sheet is None:
        return None
    changes = model.get("augmentation")
    if changes:
        words = f"chance decided anew which of these changes it got, and how much of each: {'; '.join(changes)}"
    else:
        words = "it was shown as it is" if changes is not None else "chance decided anew how it was changed"
    return {"png": base64.b64encode(sheet).decode(), "words": f"Each time a training image was shown, {words}."}


def soundness(data: Metrics) -> list[tuple[str, str]]:
    """What ingest set aside and warned of, and whether anything of the test leaked into training."""
    images, aside, leaks = (data[name] for name in ("images", "quarantined", "leakage"))
    known = images is not None and aside is not None
    share = f" ({100 * aside / (images + aside):.1f} % of all files)" if known and images + aside else ""
    warnings = [(f"Warned of: {reason}", f"{n:,}") for reason, n in sorted(data["warnings"].items())]
    return [
        ("Images in the dataset", NONE if images is None else f"{images:,}"),
        ("Set aside, with the reason, in quarantine.csv", NONE if aside is None else f"{aside:,}{share}"),
        *(warnings or [("Warnings", "none")]),
        ("Patients or pictures of the test that are in training too", "none" if leaks == 0 else f"{leaks:,}"),
    ]


def speed(metrics: Metrics) -> list[tuple[str, str]]:
    """How long the graph takes for an image, and how large it is."""
    took, subject = metrics["latency"], metrics["subject"]
    how = (
        f"{count(took['images'], 'image')} one by one, on {count(took['threads'], 'thread')} of the evaluating machine"
    )
    return [
        ("One image takes", f"{_time(took['milliseconds'])} (median), 95 of 100 at most {_time(took['p95'])}"),
        ("Measured with", how),
        ("Size of the graph", f"{size(subject['model_bytes'])}, {subject['precision']}"),
    ]


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.2g} ms"


def lineage(metrics: Metrics, sources: Metrics) -> list[tuple[str, str]]:
    """What exactly was tested."""
    subject, model = metrics["subject"], sources["model"]
    return [
        ("Model", subject["model"]),
        ("Model in service", subject["champion"] or "none"),
        ("Architecture", str(model["architecture"])),
        ("Precision and size", f"{subject['precision']}, {size(subject['model_bytes'])}"),
        ("Runtime", subject["runtime"]),
        ("Dataset", subject["dataset"]),
        ("Dataset’s fingerprint", str(sources["dataset"]["fingerprint"])),
        ("Split", subject["split"]),
        ("Split’s version", str(sources["split"]["version"])),
        ("Trained on split version", str(model["fingerprints"]["split_version"])),
        ("Decision threshold", _threshold(model["threshold"], metrics["classes"])),
        ("Temperature", f"{model['temperature']:.4g}"),
        ("Intervals", f"{metrics['resamples']:,} resamples of patients, seed {metrics['seed']}"),
    ]


def _threshold(found: float | Sequence[float] | None, classes: Sequence[str]) -> str:
    """The threshold of the positive class, or those of all findings."""
    if found is None:
        return NONE
    if isinstance(found, Sequence):
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(classes, found, strict=True))
    return f"{found:.4g}"


def parameters(values: Metrics, before: str = "") -> list[tuple[str, str]]:
    """All parameters that the model was trained with, those within others by their path."""
    rows: list[tuple[str, str]] = []
    for name, value in sorted(values.items()):
        if isinstance(value, dict):
            rows += parameters(value, f"{before}{name}.")
        else:
            rows.append((f"{before}{name}", f"{value}"))
    return rows
