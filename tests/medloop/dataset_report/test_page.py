"""A data set's page: whole in itself, true to its figures, and without a name or a whole id."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.shared.storage.store import Store, open_store
from medloop.dataset_report import shown_images
from medloop.dataset_report.page import write
from medloop.dataset_report.pictures import as_data_url, brightness
from medloop.dataset_report.verdicts import verdicts
from tests.components.evaluate.test_page import VOID, Balance
from tests.made import make_dataset, make_split
from tests.medloop.dataset_report.made import change, look, one_shard_for_each_patient, tell


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def data(tmp_path: Path, store: Store) -> Path:
    return make_dataset(tmp_path / "dataset", store)


@pytest.fixture
def splits(tmp_path: Path, data: Path) -> Path:
    return make_split(tmp_path / "splits", data)


def written(data: Path, splits: Path | None, store: Store) -> str:
    shown, rows = look(data, splits, store)
    write(data / "page" / "data.html", shown, verdicts(shown), rows)
    return (data / "page" / "data.html").read_text(encoding="utf-8")


def pictures(page: str) -> list[str]:
    return re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)


@pytest.mark.slow
def test_it_is_whole_and_fetches_nothing(data: Path, splits: Path, store: Store) -> None:
    page = written(data, splits, store)
    balance = Balance()
    assert "img" in VOID
    balance.feed(page)
    assert balance.open == []
    assert balance.resources != []
    assert all(resource.startswith("data:image/jpeg;base64,") for resource in balance.resources)
    assert balance.tags.isdisjoint({"script", "iframe", "link", "object"})
    assert not re.search(r"https?://|@import|url\(", page)
    assert (data / "page" / "data.html").stat().st_mode & 0o077 == 0


def test_it_shows_a_sheet_of_every_class_and_its_figures(data: Path, splits: Path, store: Store) -> None:
    page = written(data, splits, store)
    assert page.count("24 of 40 images") == 2
    shown = pictures(page)
    assert len(shown) == 48
    for text in shown:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert (image.size, image.mode) == ((128, 128), "L")
    assert page.count("<svg") == 3 * (1 + 2 + 2)  # all, two classes, two sites
    for words in ("80 images of 40 patients", "0 patients are in more than one split.", "Longest side", "1024"):
        assert words in page


def test_the_same_data_gives_the_same_page(data: Path, splits: Path, store: Store) -> None:
    assert written(data, splits, store) == written(data, splits, store)


def test_no_whole_id_stands_there(data: Path, splits: Path, store: Store) -> None:
    page = written(data, splits, store)
    _, rows = look(data, splits, store)
    assert sum(name[:12] in page for name in rows.ids) == 48
    assert [name for name in [*rows.ids, *rows.codes("patient_id")[0]] if name[:13] in page] == []


def test_names_from_the_data_are_only_text(tmp_path: Path, store: Store) -> None:
    data = make_dataset(tmp_path / "odd", store, classes=["<b>bold</b>", "a & b"])
    change(data, lambda rows: [row.update(site="<script>alert(1)</script>") for row in rows[:40]])
    (data / "quarantine.csv").write_text("image_id,reason,detail\nabc,<i>odd</i>,<u>very</u>\n")
    (data / "warnings.csv").write_text("image_id,patient_id,reason,detail\n,0123456789abcdef,<s>many</s>,\n")
    page = written(data, make_split(tmp_path / "splits", data), store)
    for raw in ("<b>bold", "<script>", "<i>odd", "<u>very", "<s>many", "0123456789abc"):
        assert raw not in page
    for escaped in (
        "&lt;b&gt;bold&lt;/b&gt;",
        "a &amp; b",
        "&lt;script&gt;",
        "&lt;i&gt;odd",
        "&lt;u&gt;very",
        "patient 0123456789ab<",
    ):
        assert escaped in page


def test_a_data_set_without_a_split_or_anything_known(data: Path, store: Store) -> None:
    change(data, lambda rows: [row.update(sex="", age=-1, site="", view="", modality="") for row in rows])
    (data / "warnings.csv").unlink()
    page = written(data, None, store)
    assert "There is no split" in page
    assert "Unknown for all images: sex, age, site, view, modality." in page
    assert page.count("<svg") == 3 * 3


def test_findings_overlap_and_no_finding_has_a_sheet(data: Path, splits: Path, store: Store) -> None:
    change(data, lambda rows: [row.update(labels=([], [0], [0, 1])[place % 3]) for place, row in enumerate(rows)])
    tell(data, task="multilabel", classes=["Mass", "Edema", "Hernia"])
    page = written(data, splits, store)
    assert "Co-occurrence of findings" in page
    assert "<h3>no finding" in page
    assert "None of these images is in the shards" in page  # of Hernia there is none


@pytest.mark.slow
def test_look_alikes_stand_side_by_side(data: Path, splits: Path, store: Store) -> None:
    def plant(rows: list[dict[str, object]]) -> None:
        rows[2].update(pixel_digest=rows[0]["pixel_digest"], duplicate_of=rows[0]["image_id"], labels=[1])
        rows[4]["near"] = rows[16]["near"] = min(str(rows[4]["image_id"]), str(rows[16]["image_id"]))

    change(data, plant)
    page = written(data, splits, store)
    assert "Identical pixels" in page
    assert "two patients, conflicting labels" in page
    assert "two patients, two splits" in page
    assert page.count('<div class="pair">') == 2


def test_images_that_were_warned_of_are_shown(data: Path, splits: Path, store: Store) -> None:
    _, rows = look(data, splits, store)
    lines = [f"{rows.ids[3]},,text-like border,", f"{'f' * 32},,text-like border,", f",{'e' * 32},many images,"]
    (data / "warnings.csv").write_text("\n".join(["image_id,patient_id,reason,detail", *lines]) + "\n")
    page = written(data, splits, store)
    assert len(pictures(page)) == 49
    last = page.rindex('<figure class="picture">')
    assert rows.ids[3][:12] in page[last:]
    assert "<span>text-like border</span>" in page[last:]
    assert "patient eeeeeeeeeeee" in page


def test_only_few_shards_are_read_and_only_those_fetched(data: Path, splits: Path, store: Store) -> None:
    one_shard_for_each_patient(data, store)
    shown, rows = look(data, splits, store)
    drawn = shown_images.draw(rows, rows.classes)
    assert len(drawn.shards) == shown_images.SHARDS < len(rows.data.about["shards"]) == 40
    assert all(
        rows.patients[sheet[:6]].tolist() == list(dict.fromkeys(rows.patients[sheet[:6]])) for sheet in drawn.sheets
    )
    for place, shard in enumerate(rows.data.about["shards"]):
        if place not in drawn.shards:
            store.delete(f"objects/{shard['digest'][:2]}/{shard['digest']}")
    write(data / "data.html", shown, verdicts(shown), rows)
    assert "taken from 12 of 40 shards" in (data / "data.html").read_text()


def test_brightness_of_any_depth_and_of_colours() -> None:
    gray = np.full((300, 200), 100, np.uint8)
    assert brightness(gray)[100] == 1
    assert brightness(gray.astype(np.uint16) * 257)[100] == 1
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:4] = (0, 255, 0)
    assert (brightness(colours)[0], brightness(colours)[150]) == (0.5, 0.5)
    with Image.open(io.BytesIO(base64.b64decode(as_data_url(colours).partition(",")[2]))) as image:
        assert image.mode == "RGB"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it_without_a_complaint(
    width: int, tmp_path: Path, data: Path, splits: Path, store: Store
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    page = written(data, splits, store)
    asks = (
        "<script>document.title = document.documentElement.scrollWidth + ' '"
        " + [...document.images].filter(image => image.naturalWidth == 128).length</script>"
    )
    (tmp_path / "asked.html").write_text(page.replace("</body>", f"{asks}</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
            "--dump-dom", f"file://{tmp_path / 'asked.html'}",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert title is not None
    assert int(title[1]) <= width
    assert int(title[2]) == 48
