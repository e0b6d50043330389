"""Select classes and images by the parameters label_map, classes and limit_per_class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from components.ingest.parameters import SourceParameters
from components.ingest.source_table import Table
from components.shared.errors import RefusedError
from components.shared.privacy.secret_redaction import one_line
from components.shared.runtime.stage_interface import nearest

NEGATIVE = ("normal", "negative", "healthy", "benign", "control", "intact", "no finding", "clear")
"""Names of classes that mean no finding; such a class comes first and is the negative class."""

NOT_SELECTED, MAPPED_OUT, SEVERAL, BEYOND = (
    "of no class asked for",
    "label_map",
    "of several classes",
    "limit_per_class",
)
"""Reasons for leaving images out."""

MAX_QUOTED = 50
"""With more labels than this, messages give only their number: so many labels may be patients' names."""

RARE, MIN_IMAGES = 3, 20
"""A table's label with fewer images than RARE, among more than MIN_IMAGES, may be a value of another column."""


class Meaning(NamedTuple):
    """What a label means: positions in the classes, or why its images are not used."""

    labels: tuple[int, ...] = ()
    left_out: str = ""
    problem: tuple[str, str] | None = None


def order_classes(names: Iterable[str], first: str = "") -> list[str]:
    """Return the classes: one that means no finding first, the others by name."""
    return sorted(set(names), key=lambda name: (name != first, name.lower() not in NEGATIVE, name))


class ClassSelection:
    """The classes of a data set, selected from the labels of its images."""

    def __init__(self, parameters: SourceParameters, published: Mapping[str, int], kind: str, table: Table) -> None:
        """`published` is the number of images by label; messages call a label `kind`."""
        self._label_lines = table.label_lines if "label" in table.columns else {}
        self._table = table.name
        self._parameters = parameters
        self._kind = kind
        self._counts: Counter[str] = Counter()
        for label, count in published.items():
            for part in set(self.parts(label)):
                self._counts[part] += count
        self._images = sum(published.values())
        self._check_labels()
        self.classes = self._classes()
        self._positions = {name: position for position, name in enumerate(self.classes)}

    def parts(self, label: str) -> list[str]:
        """Split a label as published at the separator."""
        if not self._parameters.separator:
            return [label]
        return [part for text in label.split(self._parameters.separator) if (part := text.strip())]

    def warnings(self) -> list[tuple[str, str]]:
        """Return a warning for each multilabel class whose name means no finding."""
        if not self._parameters.multilabel:
            return []
        doubtful = [name for name in self.classes if name.lower() in NEGATIVE]
        detail = "counts as a finding; if it means no finding, set ingest_options no_finding to it"
        return [("no finding", f"{name!r} {detail}") for name in doubtful]

    def meaning(self, label: str) -> Meaning:
        """Return the meaning of a label as published."""
        parameters, parts = self._parameters, self.parts(label)
        if parameters.no_finding and parameters.no_finding in parts and len(set(parts)) > 1:
            return Meaning(problem=("contrary label", "it has both a finding and the label for no finding"))
        if any(parameters.label_map.get(part) == "" for part in parts):
            return Meaning(left_out=MAPPED_OUT)
        chosen = {self._positions.get(parameters.label_map.get(part, part), -1) for part in parts} - {-1}
        if parameters.multilabel:
            return Meaning(tuple(sorted(chosen)))
        if not chosen:
            return Meaning(left_out=NOT_SELECTED)
        return Meaning(left_out=SEVERAL) if len(chosen) > 1 else Meaning((chosen.pop(),))

    def _check_labels(self) -> None:
        parameters, counts = self._parameters, self._counts
        if any(not label.isprintable() and max(label) >= "\ud800" for label in counts):
            raise RefusedError(
                f"The name of a {self._kind} is not in UTF-8, so it cannot be the name of a class. Rename it, or "
                "provide the labels in a table."
            )
        for label in counts:
            one_line(label, f"The name of a {self._kind}")
        if len(counts) > 10 and len(counts) * 2 > self._images:
            raise RefusedError(
                f"{self._images} images have {len(counts)} different {self._kind}s, too many to be classes. Check "
                "where labels are read from: ingest_options columns, label_pattern, separator, or the folders."
            )
        if parameters.no_finding and parameters.no_finding not in counts:
            raise RefusedError(
                f"no_finding is {parameters.no_finding!r}, but no image has that label."
                f"{self._suggestion(parameters.no_finding, counts)} {self._describe_labels(counts)} Use one of those, "
                "or leave it empty."
            )
        mapped = {*parameters.label_map, parameters.no_finding if parameters.multilabel else ""}
        unknown = [name for name in counts if name not in mapped]
        if parameters.label_map and unknown:
            name, others = max(unknown, key=lambda label: (counts[label], label)), len(unknown) - 1
            count = f"{counts[name]} image{'s' * (counts[name] != 1)}"
            label = f"the label {name!r}" if len(counts) <= MAX_QUOTED and self._is_shown(name) else "a label"
            label += self._line_of(name)
            more = f" It also lacks {others} other label{'s' * (others != 1)}." if others else ""
            raise RefusedError(
                f"label_map does not contain {label} of {count}.{self._suggestion(name, parameters.label_map)}{more} "
                "Map it to a class, or to '' to leave its images out."
            )
        rare = [name for name in counts if not self._is_shown(name) and name not in parameters.classes]
        if rare and not (parameters.label_map or parameters.classes) and self._images > MIN_IMAGES:
            raise RefusedError(
                f"A label{self._line_of(rare[0])} has {counts[rare[0]]} of {self._images} images; it is not shown here "
                "because it may come from another column. If it is a class, list all classes in ingest_options "
                "classes; if not, correct that line."
            )

    def _is_shown(self, label: str) -> bool:
        """Whether messages may quote a label; rare ones may come from another column."""
        return not self._label_lines or self._counts[label] >= RARE

    def _line_of(self, label: str) -> str:
        """Return " in line N of TABLE" for a label of the table, else an empty text."""
        lines = [line for text, line in self._label_lines.items() if label in self.parts(text)]
        return f" in line {min(lines)} of {self._table}" if lines else ""

    def _classes(self) -> list[str]:
        parameters = self._parameters
        no_finding = parameters.no_finding if parameters.multilabel else ""
        mapped = {parameters.label_map.get(label, label) for label in self._counts if label != no_finding} - {""}
        available = order_classes(mapped, parameters.label_map.get(parameters.no_finding, parameters.no_finding))
        missing = [name for name in parameters.classes if name not in available]
        if missing:
            raise RefusedError(
                f"The source has no {self._kind} {missing[0]!r}; {self._describe_labels(available, 'it has')}"
                f"{self._suggestion(missing[0], available)} Correct ingest_options classes."
            )
        names = list(dict.fromkeys(parameters.classes)) or available
        least = 1 if parameters.multilabel else 2
        if len(names) < least:
            several = "s" * (len(names) != 1)
            raise RefusedError(
                f"The source has {len(names)} {self._kind}{several}{': ' + names[0] if names else ''}; a classifier "
                f"needs at least {least}. Put each class's images into a folder of its own, or set ingest_options "
                "columns or label_pattern to where the labels are."
            )
        return names

    def _describe_labels(self, names: Iterable[str], verb: str = "There are") -> str:
        listed = list(names)
        shown = [name for name in listed if name not in self._counts or self._is_shown(name)]
        more = f" and {len(listed) - len(shown)} with fewer than {RARE} images each" if shown != listed else ""
        return f"{verb} {', '.join(shown) + more if len(listed) <= MAX_QUOTED else len(listed)}."

    def _suggestion(self, name: str, known: Iterable[str]) -> str:
        return nearest(name, known) if len(self._counts) <= MAX_QUOTED else ""


def within_limit(
    images: Sequence[tuple[str, str, tuple[int, ...]]], limit: int, hash_patient: Callable[[str], str]
) -> list[bool]:
    """Return which images (patient, split, labels) are within the limit per class.

    Patients are taken in the order of their keyed hashes, with all their images. An image is within the limit while
    one of its classes (or "no finding") is below it. So only a class's last patient may lose images, and adding a
    patient changes the selection only at the end of that order.
    """
    of_patient: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position, (patient, split, _) in enumerate(images):
        of_patient[split, patient].append(position)
    ranks = {patient: hash_patient(patient) for patient, _, _ in images}
    count: Counter[tuple[str, int]] = Counter()
    within = [False] * len(images)
    for split, patient in sorted(of_patient, key=lambda key: (key[0], ranks[key[1]])):
        for position in of_patient[split, patient]:
            groups = [(split, label) for label in images[position][2]] or [(split, -1)]
            if any(count[group] < limit for group in groups):
                within[position] = True
                count.update(groups)
    return within
