"""Background of a report: shortcut checks, the shipped graph, data quality, speed and lineage."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluate.shortcuts import COPIES
from components.evaluate.subgroup_tables import sites
from components.shared.metric_catalogue import SUMMARY
from components.shared.reporting.formatting import NONE, count, number, size, written

Metrics = Mapping[str, Any]


def shipped(comparison: Metrics | None, precision: str) -> dict[str, str] | None:
    """Format the difference between the shipped and the trained graph; None where they are the same."""
    if comparison is None:
        return None
    return {
        "precision": precision,
        "agreement": f"{100 * comparison['agreement']:.1f} %",
        "difference": f"{comparison['largest_probability_difference']:.3f}",
        "accuracy": number("accuracy", comparison["accuracy"]),
        "accuracy_trained": number("accuracy", comparison["accuracy_float32"]),
        "size": size(comparison["bytes"]),
        "size_trained": size(comparison["bytes_float32"]),
        "ratio": f"{comparison['bytes'] / comparison['bytes_float32']:.2f}",
    }


def shortcuts(results: Metrics) -> dict[str, Any]:
    """Format the figures on copies of the images and by site."""
    tested = f"{count(results['images'], 'image')} of {count(results['patients'], 'patient')}"
    sampled = results["images"] < results["of_images"]
    return {
        "sentence": results["sentence"],
        "tested": f"{tested}, sampled from the {results['of_images']:,} test images" if sampled else f"all {tested}",
        "copies": [
            {"name": words.capitalize(), **{name: written(name, results[copy][name]) for name in SUMMARY}}
            for copy, words in COPIES.items()
        ],
        "sites": sites(results["sites"]),
    }


def augmented(model: Metrics, sheet: bytes | None) -> dict[str, str] | None:
    """Return the sheet of training images with a sentence about their augmentation; None without a sheet."""
    if sheet is None:
        return None
    transforms = model.get("augmentation")
    if transforms:
        sentence = (
            "Each time a training image was used, each of these transforms was applied or skipped at random, and its "
            f"amount was random: {'; '.join(transforms)}."
        )
    elif transforms is None:
        sentence = "Each time a training image was used, it was changed at random."
    else:
        sentence = "Training images were used unchanged."
    return {"png": base64.b64encode(sheet).decode(), "sentence": sentence}


def data_quality(data: Metrics) -> list[tuple[str, str]]:
    """List images, quarantined files, warnings of ingest, and leakage between test and training."""
    images, quarantined, leaks = (data[name] for name in ("images", "quarantined", "leakage"))
    known = images is not None and quarantined is not None
    share = (
        f" ({100 * quarantined / (images + quarantined):.1f} % of all files)" if known and images + quarantined else ""
    )
    warnings = [(f"Warning: {reason}", f"{n:,}") for reason, n in sorted(data["warnings"].items())]
    return [
        ("Images in the dataset", NONE if images is None else f"{images:,}"),
        ("Quarantined files (reasons in quarantine.csv)", NONE if quarantined is None else f"{quarantined:,}{share}"),
        *(warnings or [("Warnings", "none")]),
        *([("Images whose patient was guessed from names", f"{data['guessed']:,}")] * bool(data["guessed"])),
        ("Test patients or images that are also in training", "none" if leaks == 0 else f"{leaks:,}"),
    ]


def speed(metrics: Metrics) -> list[tuple[str, str]]:
    """List the time that the graph takes for one image, and its size."""
    latency, subject = metrics["latency"], metrics["subject"]
    measured = f"{count(latency['images'], 'image')}, one at a time, with {count(latency['threads'], 'CPU thread')}"
    return [
        ("Time per image", f"{_time(latency['milliseconds'])} (median), {_time(latency['p95'])} (95th percentile)"),
        ("Measured on", f"{measured} of the machine that ran the evaluation"),
        ("Size of the graph", f"{size(subject['model_bytes'])}, {subject['precision']}"),
    ]


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.2g} ms"


def lineage(metrics: Metrics, sources: Metrics) -> list[tuple[str, str]]:
    """List the digests and settings of model, data and test."""
    subject, model = metrics["subject"], sources["model"]
    return [
        ("Model", subject["model"]),
        ("Model in service", subject["champion"] or "none"),
        ("Architecture", str(model["architecture"])),
        ("Precision and size", f"{subject['precision']}, {size(subject['model_bytes'])}"),
        ("Runtime", subject["runtime"]),
        ("Dataset", subject["dataset"]),
        ("Dataset fingerprint", str(sources["dataset"]["fingerprint"])),
        ("Split", subject["split"]),
        ("Split version", str(sources["split"]["version"])),
        ("Trained on split version", str(model["fingerprints"]["split_version"])),
        ("Decision threshold", _threshold(model["threshold"], metrics["classes"])),
        ("Temperature", f"{model['temperature']:.4g}"),
        ("Intervals", f"{metrics['resamples']:,} resamples of patients, seed {metrics['seed']}"),
    ]


def _threshold(threshold: float | Sequence[float] | None, classes: Sequence[str]) -> str:
    if threshold is None:
        return NONE
    if isinstance(threshold, Sequence):
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(classes, threshold, strict=True))
    return f"{threshold:.4g}"


def parameters(values: Metrics, prefix: str = "") -> list[tuple[str, str]]:
    """List all training parameters, nested ones by their path."""
    rows: list[tuple[str, str]] = []
    for name, value in sorted(values.items()):
        if isinstance(value, dict):
            rows += parameters(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", f"{value}"))
    return rows
