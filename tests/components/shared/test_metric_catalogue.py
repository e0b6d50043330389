"""A figure is one function and one record: everything that shows, compares or limits figures reads the records."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from components.evaluate.point_metrics import estimates
from components.gate.policy import FALLING, OF_A_CLASS, RISING
from components.shared.metric_catalogue import FIGURES, HEADLINE, KEY, MICRO
from components.shared.statistics.bootstrapped_metrics import Measure, Predictions, equal_weights

ROOT = Path(__file__).resolve().parents[3]
RECORD = """    Definition(
        "npv", "Of 100 images that it clears of {what}, about {n} are free of it.{mean}", spelling="NPV", percent=True,
        per_class=True),
"""
FUNCTION = """            "npv": share(
                self.images - self.actual - self.predicted + self.both, self.images - self.predicted
            ),
"""
ADDED = {
    "components/shared/metric_catalogue.py": ('    Definition(\n        "f1"', RECORD),
    "components/evaluate/point_metrics.py": ('            "sensitivity": sensitivity', FUNCTION),
}
"""By file, the text before which something is added."""
USE = """
import sys
from pathlib import Path
from components.deploy import card
from components.gate.gate import decide
from components.gate.policy import complete_policy
from tests.components.evaluate import scenes

scene = scenes.make(Path(sys.argv[1]), 80, champion=True)
scene.run(resamples=200)
metrics = scene.metrics
name = metrics["classes"][1]
value, low = (metrics["all"]["figures"]["npv"][end] for end in ("value", "low"))
assert 0 < low < value < 1
assert metrics["all"]["per_class"][name]["npv"]["value"] == value
assert "lower" in metrics["comparison"]["populations"]["all"]["npv"]
assert "<th>NPV</th>" in scene.page
assert f"Of 100 images that it clears of {name}, about {100 * value:.0f} are free of it." in scene.page
decision = decide(metrics, complete_policy({"floors": {"npv": 1, f"npv@{name}": 0.1}}), 1, 0.0, "e" * 64)
checks = {check["name"]: check for check in decision["checks"]}
assert checks["floors.npv"]["sentence"].startswith("NPV is at least")
assert [checks["floors.npv"]["passed"], checks[f"floors.npv@{name}"]["passed"]] == [False, True]
about = card.VersionRecords(metrics=metrics)
assert f"| NPV | {value:.3f} ({low:.3f} to" in card.render("v2", {}, decision, about, about, "v1")
"""


@pytest.mark.slow
def test_a_new_figure_is_one_function_and_one_record(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "components", tmp_path / "components", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (anchor, text) in ADDED.items():
        before, found, after = (tmp_path / name).read_text(encoding="utf-8").partition(anchor)
        assert found, name
        (tmp_path / name).write_text(before + text + anchor + after, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", USE, str(tmp_path / "scene")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("several", [False, True])
def test_every_computed_figure_has_a_record(several: bool) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (60, 3)) if several else rng.integers(0, 3, 60)
    probabilities = rng.dirichlet(np.ones(3), 60)
    predicted = (probabilities > 0.4).astype(np.int64) if several else probabilities.argmax(axis=1)
    scored = Predictions(labels, predicted, probabilities, np.arange(60) // 2)
    computed = [*estimates(scored), *Measure(scored, ordered=not several)(equal_weights(scored))]
    assert {name.removeprefix("micro/").partition("/")[0] for name in computed} == set(FIGURES) - (
        {"weighted_kappa"} if several else {"exact_match"}
    )
    assert {name for name in computed if name.startswith("micro/")} == {f"micro/{name}" for name in MICRO}
    assert {name for name in OF_A_CLASS if f"{name}/0" not in computed} == set()


def test_the_records_agree_with_each_other() -> None:
    assert all(name == figure.name for name, figure in FIGURES.items())
    assert KEY == ("accuracy", "auc", "sensitivity", "specificity")
    assert [FIGURES[name].headline for name in HEADLINE] == [*range(1, len(HEADLINE) + 1)]
    assert [FIGURES[name].micro for name in MICRO] == [*range(1, len(MICRO) + 1)]
    assert {*RISING, *FALLING} == {*FIGURES, *(f"micro_{name}" for name in MICRO)}


@pytest.mark.parametrize("file", ["docs/gate.md", "components/gate/policy.yaml"])
def test_the_documentation_of_policies_names_every_figure(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert [name for name in FIGURES if name not in text] == []
