"""The report's page: whole in itself, says what it must, and gives away nothing to what stands in it."""

from __future__ import annotations

import base64
import copy
import html
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.evaluate.page import page as draw
from components.shared import contracts, inference
from components.shared.metric_catalogue import FIGURES, KEY
from components.shared.reporting import formatting, plots
from tests.components.evaluate import scenes
from tests.components.evaluate.scenes import Scene

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
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two classes, a model in service, new patients, subgroups of which some are too small."""
    made = scenes.make(tmp_path_factory.mktemp("page"), patients=240, champion=True, core=False)
    scenes.change(made.root / "dataset", "age", lambda row, _: (-1, 10, 30, 50, 80)[row // 20 % 5])
    scenes.add_int8(made.root / "model", 1.05)
    scenes.change_metadata(made.root / "model", parameters={"epochs": 3, "train_options": {"ema": 0.99}})
    made.run(precision="int8")
    return made


@pytest.fixture(scope="module")
def page(scene: Scene) -> str:
    return scene.page


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Six findings, a model in service, new patients."""
    names = ["Atelectasis", "Cardiomegaly", "Effusion", "Pleural_Thickening", "Mass", "Hernia"]
    made = scenes.make(
        tmp_path_factory.mktemp("several"), 240, names, champion=True, core=False, wrong=0, task="multilabel"
    )
    kinds = [[], [0], [2, 5], [0, 2], [1, 3], [4]]
    scenes.change(made.root / "dataset", "labels", lambda row, _: kinds[(row // 20 + row) % 6])
    made.run()
    return made


def again(scene: Scene, metrics: dict[str, Any]) -> str:
    """The page of these metrics, from the records of a scene."""
    sources = {
        "dataset": contracts.read_record("dataset", scene.root / "dataset" / "dataset.json"),
        "split": contracts.read_record("split", scene.root / "splits" / "split.json"),
        "model": inference.read_bundle(scene.root / "model"),
    }
    pictures = {entry["file"]: (scene.report / entry["file"]).read_bytes() for entry in metrics["explanations"]}
    none_wrong = {"answers": 0, "images": 0, "rows": [], "service": None}
    return draw(metrics, sources, {}, {}, none_wrong, None, pictures)


def rows(page: str, table: str) -> list[list[str]]:
    """The text of each cell of the tables of a kind, row by row."""
    found = re.findall(rf'<table class="{table}">(.*?)</table>', page, re.DOTALL)
    assert found, table
    lines = [line for each in found for line in re.findall(r"<tr[^>]*>(.*?)</tr>", each, re.DOTALL)]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in lines]
    return [[" ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in line] for line in cells]


@pytest.mark.slow
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
    assert page.index("</h1>") < page.index("<!-- decision -->") < page.index("Summary</h2>")


def test_it_says_what_a_clinician_asks(page: str) -> None:
    for words in (
        "tested on 96 images of 48 patients",
        "Compared with the model in service",
        "Locked core: 48 images of 24 patients",
        "Test patients",
        "ROC curve",
        "Precision-recall curve",
        "Calibration",
        "By class",
        "Subgroups",
        "Explanations",
        "Does the model rely on non-anatomical cues?",
        "By acquisition site",
        "too small",
        "As shipped and as trained",
        "Thresholds",
        "Difference between the best and the worst group",
        "Errors",
        "Data quality",
        "Speed and size",
        "patients were resampled (bootstrap)",
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
            {"augmentation": ["rotated by up to 15°", "noise <of> up to 3 %"]},
            "its amount was random: rotated by up to 15°; noise &lt;of&gt; up to 3 %.",
        ),
        ({"augmentation": []}, "Training images were used unchanged."),
        ({}, "Each time a training image was used, it was changed at random."),
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
    assert "<summary>Training images" not in page


def test_names_from_the_data_are_only_text(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    scenes.change(tmp_path / "dataset", "site", lambda *_: "<script>alert(1)</script>")
    scene.run()
    assert "<script>" not in scene.page
    assert "&lt;script&gt;" in scene.page


def test_numbers_as_they_are_written() -> None:
    assert formatting.number("accuracy", 0.9312) == "93.1 %"
    assert formatting.number("auc", 0.9686) == "0.969"
    assert formatting.number("kappa", -0.2) == "−0.200"
    assert formatting.number("kappa", -0.00001) == "0.000"
    assert formatting.number("auc", None) == "–"
    assert formatting.interval("accuracy", {"low": 0.9, "high": 0.95}) == "90.0 to 95.0 %"
    assert formatting.interval("auc", {"low": None, "high": None}) == "no interval"
    assert [formatting.chance(p) for p in (None, 0.0004, 0.0321, 0.456, 1.0)] == [
        "–",
        "< 0.001",
        "0.032",
        "0.46",
        "1.00",
    ]
    gap = {"gap": 0.05, "low": 0.0, "high": 0.125}
    assert formatting.gap("accuracy", gap) == {"value": "5.0 points", "interval": "0.0 to 12.5"}
    assert formatting.gap("auc", gap) == {"value": "0.050", "interval": "0.000 to 0.125"}
    assert formatting.size(4_512_000) == "4.5 MB"
    assert formatting.count(1, "patient") == "1 patient"


@pytest.mark.parametrize(
    ("name", "low", "high", "verdict"),
    [
        ("accuracy", 0.01, 0.03, "better"),
        ("accuracy", -0.03, -0.01, "worse"),
        ("accuracy", -0.01, 0.01, "no difference shown"),
        ("brier", -0.03, -0.01, "better"),
        ("brier", 0.01, 0.03, "worse"),
        ("calibration_error", -0.03, -0.01, "better"),
        ("auc", None, None, "too few patients"),
    ],
)
def test_what_a_difference_shows(name: str, low: float | None, high: float | None, verdict: str) -> None:
    pair = {"ours": 0.9, "theirs": 0.88, "difference": 0.02, "low": low, "high": high}
    said = formatting.difference(name, pair)
    assert said["verdict"] == verdict
    assert said["difference"] == ("+2.0 points" if name == "accuracy" else "+0.020")


def test_a_handful_of_patients_shows_nothing_of_two_models(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, patients=60, champion=True, core=False)
    scene.run()
    groups = scene.metrics["comparison"]["populations"]
    few = sum(groups[name]["patients"] < 20 for name in ("core", "new", "all"))
    assert few > 0
    assert scene.page.count("too few patients") == (4 + 7) * few  # headline and further figures


def test_each_figure_stands_beside_that_of_the_model_in_service(scene: Scene, page: str) -> None:
    found = [line for line in rows(page, "stack figures") if len(line) == 6 and line[0] != "Figure"]
    names = ("accuracy", "auc", "sensitivity", "specificity")
    further = ("balanced_accuracy", "precision", "f1", "pr_auc", "kappa", "brier", "calibration_error")
    expected = []
    for several in (names, further):
        for group in ("core", "new", "all"):
            pairs, figures = scene.metrics["comparison"]["populations"][group], scene.metrics[group]["figures"]
            for name in several:
                pair, ours = pairs[name], figures[name]
                service = {"low": pair["theirs_low"], "high": pair["theirs_high"]}
                told = formatting.difference(name, pair)
                expected.append(
                    [
                        FIGURES[name].title,
                        f"{formatting.number(name, ours['value'])} {formatting.interval(name, ours)}",
                        f"{formatting.number(name, pair['theirs'])} {formatting.interval(name, service)}",
                        f"{told['difference']} {told['interval']}",
                        f"{formatting.chance(pair['p'])} {formatting.TESTS[pair['test']]}",
                        told["verdict"],
                    ]
                )
    assert found == expected
    assert {line[4].rpartition(" ")[2] for line in found} == {"McNemar", "DeLong", "bootstrap"}


def test_the_first_model_has_nothing_beside_it(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    scene.run()
    assert "No model is in service yet" in scene.page
    assert "In service" not in scene.page
    shown = {line[0]: line[1:3] for line in rows(scene.page, "stack plain")[1:]}
    brier = scene.metrics["all"]["figures"]["brier"]
    assert shown["Brier score"] == [formatting.number("brier", brier["value"]), formatting.interval("brier", brier)]
    assert len(shown) == 7


def test_a_model_in_service_that_could_not_be_loaded_is_told_of(scene: Scene) -> None:
    why = "The model in service could not be loaded: <its graph> is not in the bundle."
    metrics = {**scene.metrics, "comparison": None}
    shown = again(scene, {**metrics, "service_error": why})
    brier = {line[0]: line[1] for line in rows(shown, "stack plain")}["Brier score"]
    assert brier == formatting.number("brier", metrics["all"]["figures"]["brier"]["value"])
    assert metrics["core"]["figures"]["brier"] != metrics["all"]["figures"]["brier"]
    assert html.escape(why) in shown
    assert "Not compared with the model in service." in shown
    assert "No model is in service yet" not in shown
    assert "Not compared" not in again(scene, metrics)


def test_where_it_may_be_operated(scene: Scene, page: str) -> None:
    points = scene.metrics["operating_points"]
    shown = rows(page, "stack points")[1:]
    assert [line[0] for line in shown] == ["In use (from validation)", "At 90 % specificity", "At 95 % specificity"]
    for line, point in zip(shown, points, strict=True):
        assert line[1] == f"{point['threshold']:.3f}"
        for cell, name in zip(line[2:], ("sensitivity", "specificity"), strict=True):
            assert cell == f"{formatting.number(name, point[name]['value'])} {formatting.interval(name, point[name])}"


def test_subgroups_have_all_figures_and_small_ones_their_reason(scene: Scene, page: str) -> None:
    groups = scene.metrics["subgroups"]
    shown = rows(page, "stack subgroups")[1:]
    assert len(shown) == len(groups)
    assert {group["too_small"] for group in groups} == {True, False}
    for line, group in zip(shown, groups, strict=True):
        assert ("too small" in line[1]) == group["too_small"]
        assert group["why"] in line[1]
        for cell, name in zip(line[4:], KEY, strict=True):
            figure = group["figures"][name]
            assert cell.startswith(formatting.NONE if figure is None else formatting.number(name, figure["value"]))


def test_gaps_say_who_is_ahead_and_frame_what_is_more_than_chance(scene: Scene) -> None:
    metrics = copy.deepcopy(scene.metrics)
    gap = {"field": "sex", "figure": "accuracy", "best": "F", "worst": "M", "gap": 0.2, "high": 0.3}
    metrics["gaps"] = [{**gap, "low": 0.0}, {**gap, "figure": "auc", "low": 0.1}]
    shown = again(scene, metrics)
    line = rows(shown, "stack gaps")[1]
    assert line == [
        "Sex", "20.0 points 0.0 to 30.0 female over male", "0.200 0.100 to 0.300 female over male", "–", "–",
    ]  # fmt: skip
    assert shown.count('class="v framed"') == 1
    assert scene.metrics["gaps"]
    fields = {gap["field"] for gap in scene.metrics["gaps"]}
    assert len(rows(scene.page, "stack gaps")) == 1 + len(fields)


def test_the_data_and_the_speed_are_told_of(scene: Scene) -> None:
    metrics = copy.deepcopy(scene.metrics)
    metrics["data"] = {"images": 90, "quarantined": 10, "warnings": {"no age": 4}, "guessed": 12, "leakage": 0}
    metrics["latency"] = {"milliseconds": 12.34, "p95": 120.6, "threads": 2, "images": 40}
    facts = dict(rows(again(scene, metrics), "facts"))
    assert facts["Quarantined files (reasons in quarantine.csv)"] == "10 (10.0 % of all files)"
    assert facts["Warning: no age"] == "4"
    assert facts["Images whose patient was guessed from names"] == "12"
    assert facts["Test patients or images that are also in training"] == "none"
    assert facts["Time per image"] == "12 ms (median), 121 ms (95th percentile)"
    assert facts["train_options.ema"] == "0.99"
    assert facts["Model in service"] == scenes.DIGESTS["champion"]


@pytest.mark.slow
def test_findings_have_their_own_words(several: Scene) -> None:
    metrics, shown = several.metrics, several.page
    confused = rows(shown, "stack confused")[1:]
    for line, name in zip(confused, metrics["classes"], strict=True):
        (left, alarms), (missed, found) = metrics["all"]["confusion_by_class"][name]
        assert [cell.split()[0] for cell in line[1:]] == [str(n) for n in (found, missed, alarms, left)]
    points, micro = (rows(each, "stack points")[1:] for each in shown.split("Over all decisions</h3>"))
    assert [line[0] for line in points] == metrics["classes"]
    auc = metrics["all"]["micro"]["auc"]
    assert micro[3][::2] == ["AUC", f"{formatting.number('auc', auc['value'])} {formatting.interval('auc', auc)}"]
    assert any(line[0] == "All findings right" for line in rows(shown, "stack figures"))
    assert "right class" not in shown
    assert shown.count('<figure role="img"') == 18


def test_lines_can_be_told_apart_without_colour() -> None:
    ours = {"fpr": [0, 0.1, 1], "tpr": [0, 0.8, 1]}
    theirs = {"fpr": [0, 0.3, 1], "tpr": [0, 0.7, 1]}
    both, alone = (plots.roc(ours, other, (0.1, 0.8), "roc") for other in (theirs, None))
    for words in ("this model", "in service", "threshold in use"):
        assert (f">{words}<" in both) == (f">{words}<" in alone or words == "in service")
    dashes = [len(re.findall("stroke-dasharray", each)) for each in (both, alone)]
    assert dashes == [1, 0]
    squares = both.count("<use") - alone.count("<use")
    assert squares == plots.MARKERS
    assert ">in service<" not in plots.roc(ours, theirs, None, "roc", small=True)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["scene", "several"])
def test_nothing_is_wider_than_the_screen(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    text = request.getfixturevalue(which).page.replace("<details", "<details open")
    widths = (390, 768, 1280)
    frames = "".join(
        f'<iframe style="width:{width}px;height:600px" srcdoc="{html.escape(text)}"></iframe>' for width in widths
    )
    asks = (
        "<script>onload = () => { document.title = [...document.querySelectorAll('iframe')].map(frame => {"
        " const root = frame.contentDocument.documentElement; return root.scrollWidth - root.clientWidth}).join(' ')"
        "}</script>"
    )
    (tmp_path / "asked.html").write_text(f"<!doctype html><title></title>{frames}{asks}", encoding="utf-8")
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900",
            "--dump-dom", f"file://{tmp_path / 'asked.html'}",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>([-\d ]+)</title>", done.stdout)
    assert title is not None
    assert title[1].split() == ["0"] * len(widths)
