"""Whatever comes, in whatever order: a patient keeps their side, and nothing of the test is ever trained on."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.components.split.loop import Image, Loop, Row, base, found

TASKS = ("classification", "multilabel")
PROMPT = [HealthCheck.filter_too_much, HealthCheck.too_slow]


@dataclass(frozen=True)
class Step:
    """One run of the loop: its images, shuffled by `order`, and what was asked for."""

    images: list[Image]
    order: int
    parameters: dict[str, Any]

    def shuffled(self, order: int) -> list[Image]:
        return [self.images[place] for place in np.random.default_rng(order).permutation(len(self.images))]


@st.composite
def steps(draw: st.DrawFn, task: str) -> list[Step]:
    """Runs on a source that grows and shrinks: pictures come twice, alike, officially, and under another patient."""
    start = base() if task == "classification" else found(16)
    people = sorted({image.patient for image in start})
    pictures = [image.name for image in start]
    labels: st.SearchStrategy[Any] = st.integers(0, 1)
    if task == "multilabel":
        labels = st.lists(st.integers(0, 2), max_size=2, unique=True).map(tuple)
    images, made = {image.name: image for image in start}, []
    for run in range(draw(st.integers(2, 4))):
        if run:
            for number in range(draw(st.integers(0, 8))):
                name = draw(st.sampled_from([f"extra{run}-{number}", *pictures[:6]]))
                images[name] = Image(
                    name,
                    draw(st.sampled_from([f"new{number % 5}", f"new{run}-{number}", *people])),
                    images[name].label if name in images else draw(labels),
                    draw(st.sampled_from(["", "", "twin", *pictures[::3]])),
                    draw(st.sampled_from(["", "", "train", "val", "test"])),
                    draw(st.sampled_from(["", "", "alike1", "alike2"])),
                )
            for name in draw(st.lists(st.sampled_from(sorted(images)), max_size=4)):
                if draw(st.booleans()):
                    images.pop(name, None)
                elif name in images:
                    images[name] = replace(images[name], near=draw(st.sampled_from(["", "alike1"])))
        folds = draw(st.sampled_from([0, 0, 2, 3]))
        parameters = {"folds": folds, "fold": draw(st.integers(0, max(0, folds - 1)))}
        made.append(Step(list(images.values()), draw(st.integers(0, 99)), parameters))
    return made


def run(loop: Loop, step: Step, order: int, parts: int = 1) -> dict[str, Row] | None:
    """The rows of a step; None where it is refused because a side would lack a class, which is not asked here."""
    try:
        return loop.split(step.shuffled(order), parts, **step.parameters)
    except ValueError as error:
        if "The split has" in str(error):
            raise
        return None


@dataclass
class Past:
    """What was once so; folds as long as their number is the same."""

    sides: dict[str, str] = field(default_factory=dict)
    folds: dict[str, int] = field(default_factory=dict)
    number_of_folds: int = 0
    tested: set[str] = field(default_factory=set)


def check(loop: Loop, step: Step, rows: dict[str, Row], past: Past) -> None:
    assert set(rows) == {image.name for image in step.images}
    assert past.sides.items() <= loop.patients.items()
    past.sides = loop.patients
    count = step.parameters["folds"]
    of = {"patient": defaultdict(set), "picture": defaultdict(set), "near": defaultdict(set)}  # type: ignore[var-annotated]
    if count and count != past.number_of_folds:
        past.folds, past.number_of_folds = {}, count
    for image in step.images:
        row = rows[image.name]
        side, basis = row["side"], loop.patients[image.patient]
        if side:
            assert (side == "test") == (basis == "test")
            assert count or side == basis
            assert not count or side != "val" or row["fold"] == step.parameters["fold"]
            for what, sides in of.items():
                sides[getattr(image, what)].add(side)
            if side == "test":
                past.tested |= {image.name, image.picture}
            else:
                assert not past.tested & {image.name, image.picture}
        if count:
            assert past.folds.setdefault(image.patient, row["fold"]) == row["fold"]
            assert (row["fold"] < 0) == (basis == "test")
    of["near"].pop("", None)
    assert all(len(sides) == 1 for found in of.values() for sides in found.values())


def go_through(task: str, made: Sequence[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        straight, other = Loop(Path(folder, "a"), task), Loop(Path(folder, "b"), task)
        past = Past()
        for step in made:
            rows = run(straight, step, step.order)
            again = run(other, step, step.order + 1, parts=3)
            assert (rows is None) == (again is None)
            if rows is None:
                continue
            assert straight.bytes == other.bytes
            check(straight, step, rows, past)
            told = straight.bytes
            run(straight, step, step.order + 2)
            assert straight.bytes == told


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=PROMPT)
@given(made=steps("classification"))
def test_any_growth_and_any_order_of_classes(made: list[Step]) -> None:
    go_through("classification", made)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=PROMPT)
@given(made=steps("multilabel"))
def test_any_growth_and_any_order_of_findings(made: list[Step]) -> None:
    go_through("multilabel", made)


@pytest.mark.slow
@settings(max_examples=2, deadline=None, suppress_health_check=PROMPT)
@given(task=st.sampled_from(TASKS), seed=st.integers(0, 2**31 - 1), folds=st.sampled_from([0, 5]))
def test_in_three_years_of_monthly_growth_no_patient_changes_side(task: str, seed: int, folds: int) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        loop, past = Loop(Path(folder), task, seed=seed), Past()
        images: list[Image] = base(20) if task == "classification" else found(40)
        for month in range(36):
            images += list(newcomers(rng, task, month, images))
            if month % 6 == 5:  # some scans leave the archive
                images = [image for image in images if rng.random() > 0.02]
            step = Step(images, month, {"folds": folds, "fold": month % max(1, folds)})
            rows = run(loop, step, month)
            assert rows is not None
            check(loop, step, rows, past)
        present = [loop.patients[patient] for patient in {image.patient for image in images}]
        assert np.mean([side == "test" for side in present]) == pytest.approx(0.25, abs=0.03)
        assert np.mean([side == "val" for side in present]) == pytest.approx(0.15, abs=0.03)
        for label in range(3 if task == "multilabel" else 2):
            having = [loop.patients[patient] for patient in {i.patient for i in images if label in i.labels}]
            assert np.mean([side == "test" for side in having]) == pytest.approx(0.25, abs=0.06)


def newcomers(rng: np.random.Generator, task: str, month: int, images: Sequence[Image]) -> Iterator[Image]:
    """A month's images: of new patients mostly; some known patients come again, and some pictures."""
    for number in range(int(rng.integers(5, 15))):
        label: int | tuple[int, ...] = int(rng.integers(0, 2))
        if task == "multilabel":
            label = tuple(np.flatnonzero(rng.random(3) < (0.3, 0.2, 0.1)).tolist())
        one = Image(f"month{month}-{number}", f"month{month}-{number}", label, sex="MF"[number % 2], age=20 + number)
        other = images[int(rng.integers(len(images)))]
        if rng.random() < 0.2:
            one = replace(one, patient=other.patient, label=other.label)
        elif rng.random() < 0.05:
            one = replace(one, pixels=other.picture, label=other.label)
        elif rng.random() < 0.05:
            one = replace(one, near=other.name)
        yield one
