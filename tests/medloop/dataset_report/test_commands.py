"""`medloop data show`: of a run, of a directory, and what it says where there is nothing to show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.shared.storage.store import open_store
from tests.made import make_dataset, make_split
from tests.medloop.by_hand import RUN, ByHand
from tests.medloop.test_cli import medloop, refused


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> ByHand:
    """A store with a run that came as far as its split, and a later one that has no data set."""
    made = ByHand(tmp_path_factory.mktemp("divided"))
    made.data()
    later = ByHand(made.home, "later")
    later.step("resolve", {}, source=str(made.scans), asked={"epochs": 1.0})
    return made


@pytest.mark.slow
def test_the_latest_run_with_a_data_set_is_shown(divided: ByHand) -> None:
    told = json.loads(medloop(divided.home, "data", "show", "--json").stdout)
    done = {name: value for step in divided.done for name, value in step.values.items()}
    assert told["all"]["images"] == done["images"]
    assert told["all"]["patients"] == done["patients"]
    assert sum(entry["count"] for entry in told["quarantine"]) == done["quarantined"]
    assert {side: told["all"]["sides"][side]["images"] for side in ("train", "val", "test")} == {
        side: done[side] for side in ("train", "val", "test")
    }
    assert told["leakage"]["patients"] == 0
    assert told["page"] == str(divided.home / "runs" / RUN / "data.html")
    assert "<h1>scans</h1>" in Path(told["page"]).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_terminal_gets_a_table_and_the_page(divided: ByHand, tmp_path: Path) -> None:
    output = tmp_path / "new" / "page.html"
    told = medloop(divided.home, "data", "show", RUN[:6], "--output", str(output), COLUMNS="120").stdout
    for words in ("images (patients)", "NORMAL", "female", "quarantined", "unreadable", "0 patients are in more than"):
        assert words in told
    assert told.endswith(f"\n{output}\n")
    assert output.is_file()


@pytest.mark.slow
def test_images_left_out_as_asked_are_told_wherever_a_person_looks(tmp_path: Path) -> None:
    made = ByHand(tmp_path)
    made.data(limit_per_class=10)
    omitted = made.done[2].values["left_out"]["limit_per_class"]
    assert omitted > 0
    words = f"{omitted} left out by request (limit_per_class)"
    assert words in medloop(tmp_path, "data", "show", COLUMNS="200").stdout
    told = json.loads(medloop(tmp_path, "data", "show", "--json").stdout)
    assert told["left_out_as_asked"] == {"limit_per_class": omitted}
    assert told["all"]["sides"]["unused"]["images"] == 0
    assert words in Path(told["page"]).read_text(encoding="utf-8")
    assert f"; {words}." in medloop(tmp_path, "explain").stdout


@pytest.mark.slow
def test_all_that_was_set_aside_or_warned_of_can_be_had_as_files(divided: ByHand, tmp_path: Path) -> None:
    aside, warned = tmp_path / "new" / "aside.csv", tmp_path / "warned.csv"
    page = ("--output", str(tmp_path / "page.html"))
    medloop(divided.home, "data", "show", "--quarantine", str(aside), "--warnings", str(warned), *page)
    files = divided.done[2].outputs["dataset"].files
    assert aside.read_bytes() == divided.store.get(files["quarantine.csv"].digest)
    assert warned.read_bytes() == divided.store.get(files["warnings.csv"].digest)
    assert len(aside.read_text().splitlines()) == 1 + divided.done[2].values["quarantined"]
    assert "which already exists" in refused("data", "show", "--quarantine", str(aside))


@pytest.mark.slow
def test_each_detail_has_a_line_of_its_own(divided: ByHand, tmp_path: Path) -> None:
    page = ("--output", str(tmp_path / "page.html"))
    told = medloop(divided.home, "data", "show", *page, COLUMNS="200").stdout
    for entry in json.loads(medloop(divided.home, "data", "show", *page, "--json").stdout)["quarantine"]:
        for detail in entry["details"]:
            assert f"{detail['count']}  {detail['detail']}" in told
    assert "(and " not in told


@pytest.mark.slow
def test_a_run_that_failed_before_its_split_is_shown_without_sides(tmp_path: Path) -> None:
    made = ByHand(tmp_path)
    made.data()
    store = open_store(str(tmp_path / "store"))
    for name in store.names(f"steps/{RUN}"):
        if name.endswith("-split.json"):
            store.delete(name)
    told = json.loads(medloop(tmp_path, "data", "show", "--json").stdout)
    assert told["split"] is None
    assert told["all"]["images"] > 0


@pytest.mark.slow
def test_a_directory_and_a_manifest_are_shown_too(divided: ByHand, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    data = make_dataset(tmp_path / "dataset", store)
    splits = make_split(tmp_path / "splits", data)
    told = json.loads(
        medloop(tmp_path, "data", "show", "--dataset", str(data), "--splits", str(splits), "--json").stdout
    )
    assert told["all"]["sides"]["train"] == {"images": 48, "patients": 24}
    assert Path(told["page"]).parent == tmp_path / "data"
    manifest = divided.out(divided.done[2], "dataset")
    told = json.loads(medloop(divided.home, "data", "show", "--dataset", str(manifest), "--json").stdout)
    assert told["dataset"]["artifact"] == divided.done[2].outputs["dataset"].digest


@pytest.mark.slow
def test_where_there_is_nothing_to_show_it_says_so(divided: ByHand, tmp_path: Path) -> None:
    assert "medloop run --source" in medloop(tmp_path, "data", "show", status=1).stderr
    assert "There is no run '1999'" in medloop(divided.home, "data", "show", "1999", status=1).stderr
    assert "The run later has no data set" in medloop(divided.home, "data", "show", "later", status=1).stderr
    empty = ByHand(tmp_path)
    empty.scans = divided.scans
    now = empty.step("resolve", {}, source=str(divided.scans), asked={"epochs": 1.0})
    seen = {name: now.values[name] for name in ("revision", "key_id")}
    with pytest.raises(ValueError, match="UNKNOWN"):
        empty.step("ingest", {}, source=str(divided.scans), **seen, classes=["UNKNOWN"])
    assert "has a data set" in medloop(tmp_path, "data", "show", status=1).stderr
    assert "its outcome is 'failed'" in medloop(tmp_path, "data", "show", RUN, status=1).stderr
    told = json.loads(medloop(tmp_path, "data", "show", RUN, "--json", status=1).stdout)
    assert set(told) == {"error"}


@pytest.mark.slow
def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "Name one of them" in refused("data", "show", "abc", "--dataset", str(tmp_path))
    assert "without --dataset" in refused("data", "show", "--splits", str(tmp_path))
    assert "which does not exist" in refused("data", "show", "--dataset", str(tmp_path / "none"))
    assert "no dataset.json" in medloop(tmp_path, "data", "show", "--dataset", str(tmp_path / "empty"), status=1).stderr
