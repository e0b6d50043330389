"""The report's page: whole in itself, says what it must, and gives away nothing to what stands in it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from components.evaluate import wording
from tests.components.evaluate import scenes

VOID = {"meta", "br", "link", "img", "hr"}


class Balance(HTMLParser):
    """Collects ids and resources, and fails where tags are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.resources: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action"):
                self.resources.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    scene = scenes.make(tmp_path_factory.mktemp("page"), champion=True, core=False)
    scenes.add_int8(scene.root / "model", 1.05)
    scene.run(precision="int8")
    return scene.page


def test_it_is_whole_and_fetches_nothing(page: str) -> None:
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert len(balance.ids) == len(set(balance.ids)) > 0
    inner = [resource for resource in balance.resources if not resource.startswith("data:image/png;base64,")]
    assert all(resource.startswith("#") and resource[1:] in balance.ids for resource in inner)
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert balance.tags.isdisjoint({"script", "iframe", "link", "object"})
    assert len(page) < 300_000 + 200_000 * page.count("<img")


def test_it_has_a_place_for_the_decision_near_the_top(page: str) -> None:
    assert page.count("<!-- decision -->") == 1
    assert page.index("</h1>") < page.index("<!-- decision -->") < page.index("In short")


def test_it_says_what_a_clinician_asks(page: str) -> None:
    for words in (
        "tested on 48 images of 24 patients",
        "Compared with the model in service",
        "Locked core: 24 images of 12 patients",
        "Who was tested",
        "ROC curve",
        "Precision and recall",
        "Calibration",
        "By class",
        "By group of patients",
        "What it looked at",
        "Does it read what is no anatomy?",
        "By acquisition site",
        "too small",
        "As shipped and as trained",
        "patients were drawn, not images",
        "Of 100 images with PNEUMONIA",
        "model in service",
        scenes.DIGESTS["model"],
        scenes.DIGESTS["splits"],
        "onnxruntime ",
    ):
        assert words in page, words
    assert page.count("<svg") == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"augmentation": ["turned by up to 15°", "noise <of> up to 3 %"]},
            "which of these changes it got, and how much of each: turned by up to 15°; noise &lt;of&gt; up to 3 %.",
        ),
        ({"augmentation": []}, "Each time a training image was shown, it was shown as it is."),
        ({}, "Each time a training image was shown, chance decided anew how it was changed."),
    ],
)
def test_it_shows_what_the_network_saw(tmp_path: Path, fields: dict[str, list[str]], said: str) -> None:
    scene = scenes.make(tmp_path)
    drawn = io.BytesIO()
    Image.linear_gradient("L").save(drawn, "PNG")
    (tmp_path / "model" / "docs").mkdir()
    (tmp_path / "model" / "docs" / "augmentation.png").write_bytes(drawn.getvalue())
    scenes.change_metadata(tmp_path / "model", **fields)
    scene.run(explained=0)
    balance = Balance()
    balance.feed(scene.page)
    assert balance.open == []
    shown = [resource for resource in balance.resources if not resource.startswith("#")]
    assert [resource.partition(",")[0] for resource in shown] == ["data:image/png;base64"]
    assert base64.b64decode(shown[0].partition(",")[2]) == drawn.getvalue()
    assert said in scene.page


def test_without_a_sheet_it_says_nothing_of_it(page: str) -> None:
    assert "What the network saw" not in page


def test_names_from_the_data_are_only_text(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    scenes.change(tmp_path / "dataset", "site", lambda *_: "<script>alert(1)</script>")
    scene.run()
    assert "<script>" not in scene.page
    assert "&lt;script&gt;" in scene.page


def test_numbers_as_they_are_written() -> None:
    assert wording.number("accuracy", 0.9312) == "93.1 %"
    assert wording.number("auc", 0.9686) == "0.969"
    assert wording.number("kappa", -0.2) == "−0.200"
    assert wording.number("kappa", -0.00001) == "0.000"
    assert wording.number("auc", None) == "–"
    assert wording.interval("accuracy", {"low": 0.9, "high": 0.95}) == "90.0 to 95.0 %"
    assert wording.interval("auc", {"low": None, "high": None}) == "no interval"
    assert wording.size(4_512_000) == "4.5 MB"
    assert wording.count(1, "patient") == "1 patient"


@pytest.mark.parametrize(
    ("name", "low", "high", "verdict"),
    [
        ("accuracy", 0.01, 0.03, "better"),
        ("accuracy", -0.03, -0.01, "worse"),
        ("accuracy", -0.01, 0.01, "no difference shown"),
        ("brier", -0.03, -0.01, "better"),
        ("brier", 0.01, 0.03, "worse"),
        ("auc", None, None, "cannot be told"),
    ],
)
def test_what_a_difference_shows(name: str, low: float | None, high: float | None, verdict: str) -> None:
    pair = {"ours": 0.9, "theirs": 0.88, "difference": 0.02, "low": low, "high": high}
    said = wording.difference(name, pair)
    assert said["verdict"] == verdict
    assert said["difference"] == ("+2.0 points" if name == "accuracy" else "+0.020")


def test_a_handful_of_patients_shows_nothing_of_two_models(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, patients=60, champion=True, core=False)
    scene.run()
    groups = scene.metrics["comparison"]["populations"]
    few = sum(groups[name]["patients"] < 20 for name in ("core", "new", "all"))
    assert few > 0
    assert scene.page.count("too few patients") == (4 + 7) * few  # headline and further figures
