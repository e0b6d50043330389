"""What is to be said of a data set before anybody trains on it: leaks, gaps, what leans to one side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.shared.reporting.formatting import count
from components.shared.reporting.left_out import left_out
from medloop.dataset_report.groups import SIDES, UNKNOWN
from medloop.dataset_report.show import Figures, known_share

LEAN = 0.25
"""A group whose share of a class is this far from that of all images is told."""
SMALL = 20
"""A group of fewer patients is not judged."""
FIELDS = {"sex": "sex", "age": "age", "site": "site", "view": "view"}


@dataclass(frozen=True)
class Verdict:
    """One thing looked at: ok, note (to be known) or problem, and a sentence."""

    state: str
    says: str


def verdicts(shown: Figures) -> list[Verdict]:
    """What was looked at, problems first, then what is to be known, then what is well."""
    found = [*_leaks(shown), *_missing(shown), *_aside(shown), *_patients(shown), *_unknown(shown), *_leans(shown)]
    return sorted(found, key=lambda verdict: ("problem", "note", "ok").index(verdict.state))


def _leaks(shown: Figures) -> list[Verdict]:
    leakage = shown["leakage"]
    if leakage is None:
        return [Verdict("note", "There is no split, so no image has a side yet.")]
    found = []
    for name, one, many in (
        ("patients", "patient stands", "patients stand"),
        ("identical_images", "image stands", "images stand"),
        ("near_duplicates", "group of images that look the same stands", "groups of images that look the same stand"),
    ):
        number = leakage[name]
        words = f"{number:,} {one if number == 1 else many} on more than one side"
        if number:
            leak = "what is learned on one leaks to the other. Make the split anew."
            found.append(Verdict("problem", f"{words}: {leak}"))
        else:
            found.append(Verdict("ok", f"{words}."))
    return found


def _missing(shown: Figures) -> list[Verdict]:
    """Classes that a side, or the whole data set, has no image of."""
    found = []
    for entry in shown["by_class"]:
        sides = entry.get("sides", {})
        without = [side for side in SIDES if side in sides and not sides[side]["images"]]
        if not entry["images"]:
            found.append(Verdict("problem", f"No image is of class {entry['value']}."))
        elif without:
            found.append(Verdict("problem", f"No image of {entry['value']} stands in {' and '.join(without)}."))
    return found


def _aside(shown: Figures) -> list[Verdict]:
    found = []
    aside = sum(entry["count"] for entry in shown["quarantine"])
    if aside:
        reasons = ", ".join(f"{entry['count']:,} {entry['reason']}" for entry in shown["quarantine"])
        files = shown["all"]["images"] + aside
        were = "was" if aside == 1 else "were"
        found.append(Verdict("note", f"{aside:,} of {files:,} images {were} set aside: {reasons}."))
    else:
        found.append(Verdict("ok", "No image was set aside."))
    if omitted := left_out(shown["left_out_as_asked"]):
        found.append(Verdict("note", f"{omitted}; they are no part of the data set."))
    if shown["warnings"]:
        total = sum(entry["count"] for entry in shown["warnings"])
        reasons = ", ".join(f"{entry['reason']} ({entry['count']:,})" for entry in shown["warnings"])
        found.append(Verdict("note", f"{count(total, 'warning')}: {reasons}."))
    for name, what in (("duplicates", "identical to an earlier one"), ("near_duplicates", "much like another")):
        number, across = shown[name]["images"], shown[name]["groups_of_several_patients"]
        if number:
            of = f", {across:,} of more than one patient" if across else ""
            groups = count(shown[name]["groups"], "group")
            found.append(Verdict("note", f"{count(number, 'image')} {_is(number)} {what} ({groups}{of})."))
    return found


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _patients(shown: Figures) -> list[Verdict]:
    images, patients = shown["all"]["images"], shown["all"]["patients"]
    if images == patients > 1:
        says = "Every image is a patient of its own. If patients have several images, the split would part them."
        return [Verdict("note", says)]
    return []


def _unknown(shown: Figures) -> list[Verdict]:
    """What is not known of many images cannot be looked at for bias."""
    shares = {words: known_share(shown, field) for field, words in FIELDS.items()}
    never = [words for words, share in shares.items() if share == 0]
    partly = [f"{words} of {_percent(1 - share)}" for words, share in shares.items() if 0 < share < 0.9]
    found = []
    if never:
        found.append(Verdict("note", f"Not known of any image: {', '.join(never)}. Nobody can look for bias there."))
    if partly:
        found.append(Verdict("note", f"Not known: {', '.join(partly)} of the images."))
    return found


def _leans(shown: Figures) -> list[Verdict]:
    """For each field the group whose share of a class is farthest from that of all images, where that is far."""
    overall = {entry["value"]: entry["images"] / max(1, shown["all"]["images"]) for entry in shown["by_class"]}
    found = []
    for field, words in FIELDS.items():
        groups = [entry for entry in shown[f"by_{field}"] if entry["value"] != UNKNOWN and entry["patients"] >= SMALL]
        leans = [
            (abs(share - overall[name]), share, name, entry["value"])
            for entry in groups
            for name, share in class_shares(entry).items()
        ]
        far = max(leans, default=None)
        if far and far[0] >= LEAN:
            _, share, name, value = far
            found.append(
                Verdict(
                    "note",
                    f"Of the images with {words} {value}, {_percent(share)} show {name}; of all images "
                    f"{_percent(overall[name])}. A model may learn the {words} in place of the disease.",
                )
            )
    return found


def class_shares(entry: dict[str, Any]) -> dict[str, float]:
    """The share of each class among the images of a group."""
    return {name: images / max(1, entry["images"]) for name, images in entry["classes"].items()}


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
