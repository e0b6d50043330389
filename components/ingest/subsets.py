"""Which classes the published labels come to, and which images are taken: label map, classes, and limit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from components.ingest.parameters import SourceParameters
from components.ingest.tables import Table
from components.shared.errors import RefusedError
from components.shared.privacy.redaction import one_line
from components.shared.runtime.interface import nearest

NEGATIVE = ("normal", "negative", "healthy", "benign", "control", "no finding", "clear")
"""Names of classes that mean the absence of a finding; such a class goes first, and is not the one looked for."""

NOT_ASKED, MAPPED_OUT, SEVERAL, BEYOND = "of no class asked for", "label_map", "of several classes", "limit_per_class"
"""Why images are left out on purpose: the option that asks for it, or what the options say of them."""

TOLD = 50
"""Of more labels than these a message gives the number alone: they may be anything, and so may name patients."""


FEW, MANY = 3, 20
"""A label of a table that fewer images have, among more than so many, may be a value of another column."""


class Meaning(NamedTuple):
    """What a published label comes to: positions in the classes, or why its images are left out or set aside."""

    labels: tuple[int, ...] = ()
    left_out: str = ""
    problem: tuple[str, str] | None = None


def order_classes(names: Iterable[str], first: str = "") -> list[str]:
    """The classes in the order of their labels: one that means no finding first, the others by name."""
    return sorted(set(names), key=lambda name: (name != first, name.lower() not in NEGATIVE, name))


class Choice:
    """The classes of a data set, chosen from the labels that its images have."""

    def __init__(self, parameters: SourceParameters, published: Mapping[str, int], what: str, table: Table) -> None:
        """`published` counts the images of each label as it is written; `what` is what a label is called."""
        self._lines = table.label_lines if "label" in table.columns else {}
        self._table = table.name
        self._parameters = parameters
        self._what = what
        self._found: Counter[str] = Counter()
        for label, count in published.items():
            for part in set(self.parts(label)):
                self._found[part] += count
        self._images = sum(published.values())
        self._check_labels()
        self.classes = self._classes()
        self._places = {name: place for place, name in enumerate(self.classes)}

    def parts(self, label: str) -> list[str]:
        """The single labels in one as it is written."""
        if not self._parameters.separator:
            return [label]
        return [part for text in label.split(self._parameters.separator) if (part := text.strip())]

    def warnings(self) -> list[tuple[str, str]]:
        """What the labels give rise to."""
        if not self._parameters.multilabel:
            return []
        doubtful = [name for name in self.classes if name.lower() in NEGATIVE]
        detail = "is taken for a finding; if it means that there is none, name it with ingest_options no_finding"
        return [("no finding", f"{name!r} {detail}") for name in doubtful]

    def meaning(self, label: str) -> Meaning:
        """What a label as it is written comes to."""
        parameters, parts = self._parameters, self.parts(label)
        if parameters.no_finding and parameters.no_finding in parts and len(set(parts)) > 1:
            return Meaning(problem=("contrary label", "it is labelled with a finding and with none"))
        if any(parameters.label_map.get(part) == "" for part in parts):
            return Meaning(left_out=MAPPED_OUT)
        chosen = {self._places.get(parameters.label_map.get(part, part), -1) for part in parts} - {-1}
        if parameters.multilabel:
            return Meaning(tuple(sorted(chosen)))
        if not chosen:
            return Meaning(left_out=NOT_ASKED)
        return Meaning(left_out=SEVERAL) if len(chosen) > 1 else Meaning((chosen.pop(),))

    def _check_labels(self) -> None:
        parameters, found = self._parameters, self._found
        if any(not label.isprintable() and max(label) >= "\ud800" for label in found):
            raise RefusedError(
                f"The name of a {self._what} is not in UTF-8, and a class must have a name that can be written down. "
                "Rename it, or give the labels in a table."
            )
        for label in found:
            one_line(label, f"The name of a {self._what}")
        if len(found) > 10 and len(found) * 2 > self._images:
            raise RefusedError(
                f"{self._images} images have {len(found)} different {self._what}s, and so those are no classes. Check "
                "what the labels are read from: ingest_options columns, label_pattern, separator, or the folders."
            )
        if parameters.no_finding and parameters.no_finding not in found:
            raise RefusedError(
                f"No image has the label {parameters.no_finding!r}, which no_finding names."
                f"{self._nearest(parameters.no_finding, found)} {self._listed(found)} Name one of those, or none."
            )
        none = parameters.no_finding if parameters.multilabel else ""
        unknown = [name for name in found if parameters.label_map and name not in parameters.label_map and name != none]
        if unknown:
            name, others = max(unknown, key=lambda label: (found[label], label)), len(unknown) - 1
            count = f"{found[name]} image{'s' * (found[name] != 1)}"
            called = f"the label {name!r}" if len(found) <= TOLD and self._is_shown(name) else "a label"
            called += self._line_of(name)
            more = f" Nor does it name {others} more." if others else ""
            raise RefusedError(
                f"label_map does not name {called} of {count}.{self._nearest(name, parameters.label_map)}{more} Map it "
                "to a class, or to '' to leave its images out."
            )

        rare = [name for name in found if not self._is_shown(name) and name not in parameters.classes]
        if rare and not (parameters.label_map or parameters.classes) and self._images > MANY:
            raise RefusedError(
                f"A label{self._line_of(rare[0])} has {found[rare[0]]} of {self._images} images, and is not shown here "
                "since it may come from another column. If it is a class, name all classes with ingest_options "
                "classes; if not, correct that line."
            )

    def _is_shown(self, label: str) -> bool:
        """Whether a label may be quoted: one that few lines of a table have may be a value of another column."""
        return not self._lines or self._found[label] >= FEW

    def _line_of(self, label: str) -> str:
        """Where the table has this label, to be added to a sentence; nothing where no table has it."""
        lines = [line for text, line in self._lines.items() if label in self.parts(text)]
        return f" in line {min(lines)} of {self._table}" if lines else ""

    def _classes(self) -> list[str]:
        parameters = self._parameters
        none = parameters.no_finding if parameters.multilabel else ""
        mapped = {parameters.label_map.get(label, label) for label in self._found if label != none} - {""}
        found = order_classes(mapped, parameters.label_map.get(parameters.no_finding, parameters.no_finding))
        missing = [name for name in parameters.classes if name not in found]
        if missing:
            raise RefusedError(
                f"The source has no {self._what} {missing[0]!r}; {self._listed(found, 'it has')}"
                f"{self._nearest(missing[0], found)} Name those."
            )
        names = list(dict.fromkeys(parameters.classes)) or found
        least = 1 if parameters.multilabel else 2
        if len(names) < least:
            several = "s" * (len(names) != 1)
            raise RefusedError(
                f"The source has {len(names)} {self._what}{several}{': ' + names[0] if names else ''}; a classifier "
                f"needs at least {least}. Put each class's images into a folder of its own, or say with ingest_options "
                "columns or label_pattern where the labels stand."
            )
        return names

    def _listed(self, names: Iterable[str], verb: str = "There are") -> str:
        listed = list(names)
        shown = [name for name in listed if name not in self._found or self._is_shown(name)]
        more = f" and {len(listed) - len(shown)} of fewer than {FEW} images each" if shown != listed else ""
        return f"{verb} {', '.join(shown) + more if len(listed) <= TOLD else len(listed)}."

    def _nearest(self, name: str, known: Iterable[str]) -> str:
        return nearest(name, known) if len(self._found) <= TOLD else ""


def within_limit(
    images: Sequence[tuple[str, str, tuple[int, ...]]], limit: int, order: Callable[[str], str]
) -> list[bool]:
    """Which images (patient, published side, labels) are taken where each class has a limit on each side.

    Patients come in an order that their keyed hash alone gives, each with all images; an image is taken while one of
    its classes, or the absence of any, is below the limit. So patients are whole but for the last of a class, and a
    new patient changes who is taken at the end of that order only.
    """
    of_patient: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, (patient, side, _) in enumerate(images):
        of_patient[side, patient].append(place)
    ranks = {patient: order(patient) for patient, _, _ in images}
    count: Counter[tuple[str, int]] = Counter()
    taken = [False] * len(images)
    for side, patient in sorted(of_patient, key=lambda key: (key[0], ranks[key[1]])):
        for place in of_patient[side, patient]:
            groups = [(side, label) for label in images[place][2]] or [(side, -1)]
            if any(count[group] < limit for group in groups):
                taken[place] = True
                count.update(groups)
    return taken
