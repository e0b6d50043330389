"""Figures of a model's performance: name, meaning, direction, range and use of each.

A new figure needs the function that computes it (in evaluate/point_metrics.py, or in
shared/statistics/bootstrapped_metrics.py if its interval is resampled) and one record here. Reports, policies, model
cards and the command line read the records.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """One figure; `name` is its key in metrics.json and its name in policies."""

    name: str
    meaning: str
    """Explanation with {n} of 100, {what} for the class or finding, {off} percentage points, and {mean} for a sentence
    on the mean over classes."""
    meaning_of_findings: str = ""
    """Explanation for multilabel tasks, if it differs."""
    spelling: str = ""
    """Name inside a sentence, if it is not `name` with spaces."""
    heading: str = ""
    """Name in tables, if it is not the name inside a sentence with a capital."""
    synonyms: tuple[str, ...] = ()
    """Names of the same figure in other tools."""
    low: float = 0.0
    high: float = 1.0
    """Range of the value."""
    lower_is_better: bool = False
    percent: bool = False
    """Whether it is written in per cent."""
    one_sided: bool = False
    """Whether, with two classes, it describes the positive class alone."""
    key: bool = False
    """Whether it is a card of the report, and computed and gated for subgroups."""
    headline: int = 0
    """Row in the first table of a report; 0 puts it among the further figures."""
    column: bool = False
    """Whether the report's table of classes has a column for it."""
    per_class: bool = False
    """Whether a policy can limit it for one class."""
    compared: bool = False
    """Whether a policy can limit its loss against the model in service."""
    micro: int = 0
    """Row in the table of figures over all decisions together; 0 if it is not computed that way."""

    @property
    def phrase(self) -> str:
        """Name inside a sentence."""
        return self.spelling or self.name.replace("_", " ")

    @property
    def title(self) -> str:
        """Name in tables."""
        return self.heading or f"{self.phrase[0].upper()}{self.phrase[1:]}"


# fmt: off
FIGURES = {figure.name: figure for figure in (
    Definition(
        "accuracy", "Of 100 images like these, it names the right class for about {n}.",
        "Of 100 decisions on whether a finding is present, about {n} are right.",
        percent=True, key=True, headline=1, compared=True),
    Definition(
        "exact_match", "Of 100 images like these, it is right on every finding for about {n}.",
        heading="All findings right", percent=True, headline=2),
    Definition(
        "balanced_accuracy", "If all classes were equally frequent, it would be right for about {n} of 100 images.",
        "If each finding were present in half of the images, about {n} of 100 decisions would be right.",
        percent=True, compared=True),
    Definition(
        "sensitivity", "Of 100 images with {what}, it finds about {n}.{mean}", synonyms=("recall",),
        percent=True, one_sided=True, key=True, headline=4, column=True, per_class=True, micro=2),
    Definition(
        "specificity", "Of 100 images without {what}, it correctly excludes this for about {n}.{mean}",
        percent=True, one_sided=True, key=True, headline=5, column=True, per_class=True),
    Definition(
        "precision", "Of 100 images that it reports as {what}, about {n} are. This depends on how frequent the class "
        "is among the images.{mean}", percent=True, one_sided=True, column=True, per_class=True, micro=1),
    Definition(
        "f1", "The harmonic mean of sensitivity and precision; 1 is best.{mean}", spelling="F1",
        one_sided=True, column=True, per_class=True, micro=3),
    Definition(
        "auc", "Given one image with {what} and one without, it ranks them correctly in about {n} of 100 pairs; by "
        "chance it would in 50.{mean}", spelling="AUC", synonyms=("roc_auc",),
        key=True, headline=3, column=True, per_class=True, compared=True, micro=4),
    Definition(
        "pr_auc", "The mean precision over all thresholds; by chance it would be the share of {what}.{mean}",
        spelling="PR-AUC", synonyms=("average_precision",), one_sided=True, per_class=True, micro=5),
    Definition(
        "kappa", "Agreement with the labels beyond what chance would give; 1 is full agreement, 0 is chance.",
        heading="Cohen’s kappa", low=-1.0),
    Definition(
        "weighted_kappa", "Agreement beyond chance, with more weight on larger errors.",
        low=-1.0, headline=6),
    Definition(
        "brier", "The mean squared error of the predicted probabilities; 0 is best.", spelling="Brier score",
        high=2.0, lower_is_better=True, compared=True),
    Definition(
        "calibration_error", "The predicted probabilities are off by {off} percentage points on average.{mean}",
        synonyms=("ece",), lower_is_better=True, per_class=True),
)}
# fmt: on
"""Every figure by name, in the order of model cards and of a report's further figures."""

HEADLINE = sorted((name for name, figure in FIGURES.items() if figure.headline), key=lambda n: FIGURES[n].headline)
"""Figures of a report's first table, in its order."""
KEY = tuple(name for name in HEADLINE if FIGURES[name].key)
"""Figures that come first everywhere, and that each subgroup has."""
MICRO = sorted((name for name, figure in FIGURES.items() if figure.micro), key=lambda name: FIGURES[name].micro)
"""Figures that are also computed over all decisions together."""
SUMMARY = ("accuracy", "auc")
"""Figures that sum a model up in one line."""
