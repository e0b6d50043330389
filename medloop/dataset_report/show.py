"""What there is to know of a data set without looking at a pixel: counts, leaks, what was set aside."""

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
from medloop.dataset_report.choose import Chosen
from medloop.dataset_report.groups import FIELDS, OUT, SIDES, UNKNOWN, Rows

DIGITS = 12
"""How many digits of a keyed id are shown."""
EXAMPLES = 6
"""How many ids, and how many details, are shown of a reason."""
TOGETHER = 24
"""With more findings than this, those that come together are not counted."""

Figures = dict[str, Any]


def figures(chosen: Chosen, data: Data, rows: Rows) -> Figures:
    """Everything that is told of a data set, fit for JSON."""
    about = data.about
    shown: Figures = {
        "of": chosen.whose,
        "dataset": {
            "name": about["name"],
            "task": about["task"],
            "classes": data.classes,
            "artifact": chosen.artifacts.get("dataset", ""),
            "fingerprint": about["fingerprint"],
            "source_revision": about.get("source_revision", ""),
            "key_id": about["key_id"],
            "shards": len(about["shards"]),
            "bytes": sum(shard["bytes"] for shard in about["shards"]),
        },
        "decoding": about.get("decoding", {}),
        "split": _split(chosen, rows),
        "all": rows.count(rows.all.mask),
        "by_class": [{"value": group.name, **rows.count(group.mask)} for group in rows.classes],
        **{f"by_{field}": _by(rows, field) for field in FIELDS},
        "pixels": _pixels(data),
        "findings": _findings(rows) if about["task"] != "classification" else None,
        "leakage": _leakage(rows),
        "duplicates": _alike(rows, rows.roots),
        "near_duplicates": _near(rows),
        "left_out_as_asked": about.get("counts", {}).get("left_out") or {},
        "quarantine": _reasons(chosen.dataset / "quarantine.csv"),
        "warnings": _reasons(chosen.dataset / "warnings.csv"),
    }
    return shown


def _split(chosen: Chosen, rows: Rows) -> Figures | None:
    if chosen.splits is None:
        return None
    about = read_record("split", chosen.splits / "split.json")
    if about["dataset"] != rows.data.about["fingerprint"]:
        raise RefusedError(
            f"The split belongs to a data set with the fingerprint {about['dataset'][:DIGITS]}, and this one has "
            f"{rows.data.about['fingerprint'][:DIGITS]}. Give the two that belong together."
        )
    why = Counter(rows.why[rows.side == len(SIDES)].tolist())
    return {
        "version": about["version"],
        "artifact": chosen.artifacts.get("splits", ""),
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
    """How many findings images have, and how often two come together."""
    masks = np.stack([group.mask for group in rows.classes[:-1]])
    per_image = np.bincount(masks.sum(axis=0), minlength=1)
    together = masks.astype(np.float32) @ masks.T.astype(np.float32) if len(masks) <= TOGETHER else None
    return {
        "per_image": {str(number): int(images) for number, images in enumerate(per_image) if images},
        "together": together.astype(int).tolist() if together is not None else None,
    }


def _leakage(rows: Rows) -> Figures | None:
    """How many patients, images and groups of images that look the same stand on more than one side."""
    if not rows.divided:
        return None
    return {
        "patients": len(rows.on_several_sides(rows.patients)),
        "identical_images": len(rows.on_several_sides(rows.codes("pixel_digest")[1])),
        "near_duplicates": len(rows.on_several_sides(rows.near)),
    }


def _alike(rows: Rows, roots: NDArray[np.int64]) -> Figures:
    """How many images have an earlier one that they equal, in how many groups, of several patients how many."""
    later = np.flatnonzero(roots >= 0)
    groups = np.unique(roots[later])
    across = np.unique(roots[later][rows.patients[later] != rows.patients[roots[later]]])
    return {"images": len(later), "groups": len(groups), "groups_of_several_patients": len(across)}


def near_groups(rows: Rows) -> list[list[int]]:
    """The groups of images that look the same without all being identical, as rows of the index, in order of id."""
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
    """Return a table of problems by reason, the most frequent first: how many, why, and a few keyed ids."""
    if not path.exists():
        return []
    gathered = []
    by_reason = pd.read_csv(path, dtype=str, keep_default_na=False).groupby("reason", sort=False)
    for reason, found in sorted(by_reason, key=lambda item: (-len(item[1]), item[0])):
        details = Counter(found["detail"])
        named = found[found.columns.intersection(["image_id", "patient_id"])].map(lambda name: name[:DIGITS])
        first = named.assign(detail=found["detail"])[(named != "").any(axis=1) & ~named.duplicated()]
        gathered.append(
            {
                "reason": reason,
                "count": len(found),
                "details": [{"detail": text, "count": n} for text, n in details.most_common(EXAMPLES)],
                "further_details": max(0, len(details) - EXAMPLES),
                "examples": [{k: v for k, v in row.items() if v} for row in first.head(EXAMPLES).to_dict("records")],
            }
        )
    return gathered


def known_share(shown: Figures, field: str) -> float:
    """The share of images of which this field is known."""
    known = sum(entry["images"] for entry in shown[f"by_{field}"] if entry["value"] != UNKNOWN)
    return float(known / max(1, shown["all"]["images"]))


def out_of(shown: Figures) -> int:
    """How many images the split leaves out; 0 without one."""
    return int(shown["all"]["sides"][OUT]["images"]) if shown["split"] else 0
