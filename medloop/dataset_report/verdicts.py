"""Conclusions from the figures of a data set: leakage, missing classes, unknown metadata, imbalance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.shared.reporting.formatting import count
from components.shared.reporting.left_out import left_out
from medloop.dataset_report.counts import SPLITS, UNKNOWN
from medloop.dataset_report.statistics import Figures, known_share

MIN_IMBALANCE = 0.25
"""Minimum difference between a class's share in a group and overall that is reported."""
SMALL = 20
"""Minimum number of patients in a group to report its imbalance."""
FIELDS = {"sex": "sex", "age": "age", "site": "site", "view": "view"}


@dataclass(frozen=True)
class Verdict:
    """A conclusion: its state (ok, note or problem) and a sentence."""

    state: str
    says: str


def verdicts(shown: Figures) -> list[Verdict]:
    """Return all conclusions: problems first, then notes, then what is in order."""
    results = [
        *_leakage(shown),
        *_missing_classes(shown),
        *_quarantine(shown),
        *_patients(shown),
        *_unknown(shown),
        *_imbalance(shown),
    ]
    return sorted(results, key=lambda verdict: ("problem", "note", "ok").index(verdict.state))


def _leakage(shown: Figures) -> list[Verdict]:
    leakage = shown["leakage"]
    if leakage is None:
        return [Verdict("note", "There is no split yet.")]
    results = []
    for name, one, many in (
        ("patients", "patient is", "patients are"),
        ("identical_images", "image is", "images are"),
        ("near_duplicates", "group of near duplicates is", "groups of near duplicates are"),
    ):
        number = leakage[name]
        words = f"{number:,} {one if number == 1 else many} in more than one split"
        if number:
            results.append(Verdict("problem", f"{words}, so test results would be too good. Create the split again."))
        else:
            results.append(Verdict("ok", f"{words}."))
    return results


def _missing_classes(shown: Figures) -> list[Verdict]:
    results = []
    for entry in shown["by_class"]:
        splits = entry.get("sides", {})
        without = [split for split in SPLITS if split in splits and not splits[split]["images"]]
        if not entry["images"]:
            results.append(Verdict("problem", f"There is no image of class {entry['value']}."))
        elif without:
            results.append(Verdict("problem", f"There is no image of {entry['value']} in {' and '.join(without)}."))
    return results


def _quarantine(shown: Figures) -> list[Verdict]:
    results = []
    quarantined = sum(entry["count"] for entry in shown["quarantine"])
    if quarantined:
        reasons = ", ".join(f"{entry['count']:,} {entry['reason']}" for entry in shown["quarantine"])
        files = shown["all"]["images"] + quarantined
        were = "was" if quarantined == 1 else "were"
        results.append(Verdict("note", f"{quarantined:,} of {files:,} images {were} quarantined: {reasons}."))
    else:
        results.append(Verdict("ok", "No image was quarantined."))
    if omitted := left_out(shown["left_out_as_asked"]):
        results.append(Verdict("note", f"{omitted}; they are not in the data set."))
    if shown["warnings"]:
        total = sum(entry["count"] for entry in shown["warnings"])
        reasons = ", ".join(f"{entry['reason']} ({entry['count']:,})" for entry in shown["warnings"])
        results.append(Verdict("note", f"{count(total, 'warning')}: {reasons}."))
    for name, what in (("duplicates", "identical to an earlier image"), ("near_duplicates", "similar to another")):
        number, across = shown[name]["images"], shown[name]["groups_of_several_patients"]
        if number:
            several = f", {across:,} of more than one patient" if across else ""
            groups = count(shown[name]["groups"], "group")
            verb = "is" if number == 1 else "are"
            results.append(Verdict("note", f"{count(number, 'image')} {verb} {what} ({groups}{several})."))
    return results


def _patients(shown: Figures) -> list[Verdict]:
    images, patients = shown["all"]["images"], shown["all"]["patients"]
    if images == patients > 1:
        says = "Every image has a different patient. If this is wrong, the split may separate images of one patient."
        return [Verdict("note", says)]
    return []


def _unknown(shown: Figures) -> list[Verdict]:
    shares = {words: known_share(shown, field) for field, words in FIELDS.items()}
    never = [words for words, share in shares.items() if share == 0]
    partly = [f"{words} for {_percent(1 - share)}" for words, share in shares.items() if 0 < share < 0.9]
    results = []
    if never:
        says = f"Unknown for all images: {', '.join(never)}. Bias in these cannot be detected."
        results.append(Verdict("note", says))
    if partly:
        results.append(Verdict("note", f"Unknown: {', '.join(partly)} of the images."))
    return results


def _imbalance(shown: Figures) -> list[Verdict]:
    """Report for each field the group with the most unusual share of a class."""
    overall = {entry["value"]: entry["images"] / max(1, shown["all"]["images"]) for entry in shown["by_class"]}
    results = []
    for field, words in FIELDS.items():
        groups = [entry for entry in shown[f"by_{field}"] if entry["value"] != UNKNOWN and entry["patients"] >= SMALL]
        differences = [
            (abs(share - overall[name]), share, name, entry["value"])
            for entry in groups
            for name, share in class_shares(entry).items()
        ]
        largest = max(differences, default=None)
        if largest and largest[0] >= MIN_IMBALANCE:
            _, share, name, value = largest
            results.append(
                Verdict(
                    "note",
                    f"{_percent(share)} of the images with {words} {value} show {name}, compared with "
                    f"{_percent(overall[name])} of all images. A model may learn the {words} instead of the disease.",
                )
            )
    return results


def class_shares(entry: dict[str, Any]) -> dict[str, float]:
    """Return the share of each class among the images of a group."""
    return {name: images / max(1, entry["images"]) for name, images in entry["classes"].items()}


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
