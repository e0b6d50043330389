"""Figures of a data set that need no pixels: counts, leakage, quarantine, warnings."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.shared.contracts import read_record
from components.shared.datasets.dataset import Data
from components.shared.errors import RefusedError
from medloop.dataset_report.counts import FIELDS, SPLITS, UNKNOWN, Rows
from medloop.dataset_report.report_input import ReportInput

DIGITS = 12
"""Number of digits shown of a keyed id."""
EXAMPLES = 6
"""Number of ids and details shown per reason."""
MAX_COUNTED_FINDINGS = 24
"""Maximum number of findings whose co-occurrence is counted."""

Figures = dict[str, Any]


def figures(inputs: ReportInput, data: Data, rows: Rows) -> Figures:
    """Return all figures of a data set, as values for JSON."""
    about = data.about
    return {
        "of": inputs.label,
        "dataset": {
            "name": about["name"],
            "task": about["task"],
            "classes": data.classes,
            "artifact": inputs.artifacts.get("dataset", ""),
            "fingerprint": about["fingerprint"],
            "source_revision": about.get("source_revision", ""),
            "key_id": about["key_id"],
            "shards": len(about["shards"]),
            "bytes": sum(shard["bytes"] for shard in about["shards"]),
        },
        "decoding": about.get("decoding", {}),
        "split": _split(inputs, rows),
        "all": rows.count(rows.all.mask),
        "by_class": [{"value": group.name, **rows.count(group.mask)} for group in rows.classes],
        **{f"by_{field}": _by(rows, field) for field in FIELDS},
        "pixels": _pixels(data),
        "findings": _findings(rows) if about["task"] != "classification" else None,
        "leakage": _leakage(rows),
        "duplicates": _duplicates(rows, rows.roots),
        "near_duplicates": _near(rows),
        "left_out_as_asked": about.get("counts", {}).get("left_out") or {},
        "quarantine": _reasons(inputs.dataset / "quarantine.csv"),
        "warnings": _reasons(inputs.dataset / "warnings.csv"),
    }


def _split(inputs: ReportInput, rows: Rows) -> Figures | None:
    if inputs.splits is None:
        return None
    about = read_record("split", inputs.splits / "split.json")
    if about["dataset"] != rows.data.about["fingerprint"]:
        raise RefusedError(
            f"The split belongs to a data set with the fingerprint {about['dataset'][:DIGITS]}, but this data set has "
            f"{rows.data.about['fingerprint'][:DIGITS]}. Name a data set and a split that belong together."
        )
    why = Counter(rows.why[rows.split == len(SPLITS)].tolist())
    return {
        "version": about["version"],
        "artifact": inputs.artifacts.get("splits", ""),
        "fingerprint": about["fingerprint"],
        "left_out": dict(sorted(why.items())),
    }


def _by(rows: Rows, field: str) -> list[Figures]:
    """The counts of each value of a field, and how many images of each class it has."""
    return [
        {
            "value": group.name,
            **rows.count(group.mask),
            "classes": {of.name: int((group.mask & of.mask).sum()) for of in rows.classes},
        }
        for group in rows.by(field)
    ]


def _pixels(data: Data) -> Figures:
    """Bit depths with their number of images, the range of sizes, and how many images are frames of longer files."""
    bits = Counter(data.column("bits").tolist())
    sides = np.stack([data.column("width"), data.column("height")])
    return {
        "bits": {str(depth): number for depth, number in sorted(bits.items())},
        "longest_side": _range(sides.max(axis=0)),
        "shortest_side": _range(sides.min(axis=0)),
        "frames": int((data.column("frame") >= 0).sum()),
    }


def _range(values: NDArray[Any]) -> Figures:
    if not len(values):
        return {"least": None, "median": None, "most": None}
    return {"least": int(values.min()), "median": float(np.median(values)), "most": int(values.max())}


def _findings(rows: Rows) -> Figures:
    """Count the findings per image, and the co-occurrence of findings."""
    masks = np.stack([group.mask for group in rows.classes[:-1]])
    per_image = np.bincount(masks.sum(axis=0), minlength=1)
    together = masks.astype(np.float32) @ masks.T.astype(np.float32) if len(masks) <= MAX_COUNTED_FINDINGS else None
    return {
        "per_image": {str(number): int(images) for number, images in enumerate(per_image) if images},
        "together": together.astype(int).tolist() if together is not None else None,
    }


def _leakage(rows: Rows) -> Figures | None:
    """Count the patients, images and groups of near duplicates in more than one split."""
    if not rows.has_split:
        return None
    return {
        "patients": len(rows.in_several_splits(rows.patients)),
        "identical_images": len(rows.in_several_splits(rows.codes("pixel_digest")[1])),
        "near_duplicates": len(rows.in_several_splits(rows.near)),
    }


def _duplicates(rows: Rows, roots: NDArray[np.int64]) -> Figures:
    """Count the images that equal an earlier one, their groups, and the groups with several patients."""
    later = np.flatnonzero(roots >= 0)
    groups = np.unique(roots[later])
    across = np.unique(roots[later][rows.patients[later] != rows.patients[roots[later]]])
    return {"images": len(later), "groups": len(groups), "groups_of_several_patients": len(across)}


def near_groups(rows: Rows) -> list[list[int]]:
    """Return the groups of near duplicates that are not all identical, as rows of the index, ordered by id."""
    members = defaultdict(list)
    for row in np.flatnonzero(rows.near >= 0).tolist():
        members[int(rows.near[row])].append(row)
    pixels = rows.codes("pixel_digest")[1]
    several = (group for group in members.values() if len(set(pixels[group].tolist())) > 1)
    return sorted((sorted(group, key=rows.ids.__getitem__) for group in several), key=lambda g: rows.ids[g[0]])


def _near(rows: Rows) -> Figures:
    groups = near_groups(rows)
    across = sum(len(set(rows.patients[group].tolist())) > 1 for group in groups)
    return {"images": sum(map(len, groups)), "groups": len(groups), "groups_of_several_patients": across}


def _reasons(path: Path) -> list[Figures]:
    """Return a table of problems grouped by reason, most frequent first, with details and example ids."""
    if not path.exists():
        return []
    reasons = []
    by_reason = pd.read_csv(path, dtype=str, keep_default_na=False).groupby("reason", sort=False)
    for reason, lines in sorted(by_reason, key=lambda item: (-len(item[1]), item[0])):
        details = Counter(lines["detail"])
        ids = lines[lines.columns.intersection(["image_id", "patient_id"])].map(lambda name: name[:DIGITS])
        first = ids.assign(detail=lines["detail"])[(ids != "").any(axis=1) & ~ids.duplicated()]
        reasons.append(
            {
                "reason": reason,
                "count": len(lines),
                "details": [{"detail": text, "count": n} for text, n in details.most_common(EXAMPLES)],
                "further_details": max(0, len(details) - EXAMPLES),
                "examples": [{k: v for k, v in row.items() if v} for row in first.head(EXAMPLES).to_dict("records")],
            }
        )
    return reasons


def known_share(shown: Figures, field: str) -> float:
    """Return the share of images for which a field is known."""
    known = sum(entry["images"] for entry in shown[f"by_{field}"] if entry["value"] != UNKNOWN)
    return float(known / max(1, shown["all"]["images"]))
