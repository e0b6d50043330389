"""Runs that nobody started from here: told by what their steps wrote down, and listed as a server knows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.shared.contracts import decode, encode
from components.shared.ledger import release_log
from components.shared.runtime.step_log import StepRecord
from components.shared.storage.store import Store, open_store
from medloop.kubeflow.login import connect
from medloop.runner.explain import training_cost
from medloop.runner.run import find, recent
from medloop.settings import Kubeflow
from tests.medloop.by_hand import RUN, ByHand
from tests.medloop.kubeflow.kfp_runs import Step
from tests.medloop.kubeflow.kfp_server import kfp_server
from tests.medloop.test_cli import medloop


def test_a_finished_run_is_told_like_one_of_this_machine(finished: ByHand) -> None:
    (listed,) = json.loads(medloop(finished.home, "runs", "--json").stdout)
    assert (listed["run"], listed["state"]) == (RUN, "released")
    assert listed["what"].startswith("v1: ")
    for columns in ("50", "80", "200"):
        told = medloop(finished.home, "runs", COLUMNS=columns).stdout
        assert RUN in told
        assert " released" in told
    explained = medloop(finished.home, "explain").stdout
    assert f"Run {RUN}" in explained
    assert "by a pod" in explained
    assert f"Source: {finished.scans}" in explained
    assert "images of" in explained
    assert "✓" in explained
    page = Path(medloop(finished.home, "report", RUN[:6]).stdout.strip())
    assert "<html" in page.read_text(encoding="utf-8")
    record = json.loads(medloop(finished.home, "explain", "--json").stdout)
    assert [step["stage"] for step in record["stages"]] == [
        *("resolve", "ingest", "merge", "split", "train", "evaluate", "gate", "quantize", "evaluate", "gate", "deploy"),
    ]
    assert record["in_service"] == "v1"
    assert record["arguments"]["epochs"] == 1.0


def test_steps_leave_no_page_without_a_run(finished: ByHand) -> None:
    before = finished.store.names("steps")
    quiet = ByHand(finished.home, run="")
    quiet.scans = finished.scans
    quiet.step("resolve", {}, source=str(finished.scans))
    assert finished.store.names("steps") == before


class Pages:
    """Pages of a run, written as steps write them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, run: str = RUN) -> None:
        monkeypatch.setenv("MEDLOOP_RUN", run)
        self.run, self.store = run, open_store(str(folder / "store"))

    def page(self, stage: str, *states: str, key: str = "", **fields: Any) -> StepRecord:
        made = StepRecord(self.store, stage)
        made.write(
            "started", key=key or f"key of {stage}", inputs={}, parameters=fields.pop("parameters", {}), code="c"
        )
        for state in states:
            if state == "failed":
                made.fail("a reason")
            else:
                made.write(state, seconds=1.0, outputs={}, **{"values": {}, **fields})
        return made

    def outcome(self) -> str:
        return str(find(self.store, self.run).record["outcome"])


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pages:
    return Pages(tmp_path, monkeypatch)


END = {"outcome": "released", "version": "v1", "sentence": "v1: all is well."}


def test_a_run_goes_on_until_its_last_step_says_otherwise(pages: Pages) -> None:
    first = pages.page("resolve")
    assert pages.outcome() == "running"
    first.write("finished", seconds=1.0, outputs={}, values={})
    assert pages.outcome() == "running"
    pages.page("train", "failed")
    record = find(pages.store).record
    assert (record["outcome"], record["failed_stage"], record["why"]) == ("failed", "train", "a reason")


def test_a_step_that_was_tried_again_is_no_failure(pages: Pages) -> None:
    pages.page("resolve", "finished")
    pages.page("train", "failed")
    pages.page("train")  # its node was lost: it says nothing any more
    assert pages.outcome() == "running"
    pages.page("train", "finished")
    pages.page("deploy", "finished", values=END)
    record = find(pages.store).record
    assert (record["outcome"], record["sentence"]) == ("released", END["sentence"])
    assert [step["state"] for step in record["stages"]] == ["finished", "failed", "started", "finished", "finished"]


def test_a_step_that_was_killed_is_named_once_another_followed(pages: Pages) -> None:
    pages.page("resolve")
    pages.page("deploy", "failed")
    record = find(pages.store).record
    assert (record["outcome"], record["failed_stage"]) == ("failed", "resolve")
    assert record["why"] == "It ended without a reason."


def test_a_deploy_at_work_is_no_failure(pages: Pages) -> None:
    pages.page("resolve", "finished")
    last = pages.page("deploy")
    assert pages.outcome() == "running"
    last.write("finished", seconds=1.0, outputs={}, values=END)
    assert pages.outcome() == "released"


@pytest.mark.parametrize(
    "changed",
    [
        {"values": None}, {"values": {}}, {"values": 3}, {"outputs": None}, {"seconds": None}, {"key": None}, {"at": 3},
        {"stage": None}, {"parameters": []}, {"stage": "../train"}, {"inputs": {"../../x": "a"}},
        {"parameters": {"a/b": 1}},
    ],
)  # fmt: skip
def test_a_page_that_was_changed_is_not_believed(changed: dict[str, Any], pages: Pages) -> None:
    pages.page("resolve", "finished")
    pages.page("deploy", "finished", values=END)
    name = pages.store.names(f"steps/{RUN}")[-1]
    record = json.loads(pages.store.read(name) or b"")
    pages.store.write(name, json.dumps({**record, **changed}).encode())
    assert pages.outcome() == "unknown"
    assert "one record of its steps is damaged" in find(pages.store).record["why"]
    assert [step["stage"] for step in find(pages.store).stages] == ["resolve"]


def test_a_refusal_is_a_result(pages: Pages) -> None:
    pages.page("resolve", "reused", parameters={"source": "s3://scans", "asked": {"epochs": "3"}})
    pages.page("reject", "finished", values={"version": "", "sentence": "Refused."}, parameters={"by": "someone"})
    record = find(pages.store).record
    assert (record["outcome"], record["by"], record["arguments"]["source"]) == ("refused", "someone", "s3://scans")
    assert record["runner"] == "cluster"


@pytest.mark.slow
def test_runs_of_here_and_there_are_listed_together_the_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Pages(tmp_path, monkeypatch)
    there.page("resolve", "failed")
    store = there.store
    old = {"run": "20200101-000000-aaaa", "arguments": {"source": "/s"}, "by": "me", "started": "2020-01-01T00:00:00"}
    store.write("runs/20200101-000000-aaaa.json", encode("run", {**old, "outcome": "running"}))
    new = {**old, "run": "29990101-000000-bbbb", "outcome": "released"}
    store.write("runs/29990101-000000-bbbb.json", encode("run", new))
    store.write("runs/20210101-000000-cccc.json", b"damaged")
    store.write("steps/stray.json", b"{}")
    store.write(f"steps/{RUN}/20260101-000000.000001-split.json", b"damaged")
    assert [run.id for run in recent(store)] == [new["run"], RUN, old["run"]]
    listed = json.loads(medloop(tmp_path, "runs", "--json", "--limit", "10").stdout)
    assert [run["state"] for run in listed] == ["released", "unknown", "interrupted"]
    assert "one record of its steps is damaged" in listed[1]["what"]


@pytest.mark.slow
def test_an_empty_store_has_no_runs(tmp_path: Path) -> None:
    assert medloop(tmp_path, "runs").stdout == "There is no run yet.\n"
    assert json.loads(medloop(tmp_path, "runs", "--json").stdout) == []


def test_pages_are_records_of_their_kind(pages: Pages) -> None:
    pages.page("resolve", "finished")
    (name,) = pages.store.names("steps")
    record = decode("step", pages.store.read(name) or b"", name)
    assert record["run"] == RUN
    assert record["image"] == ""


@pytest.mark.slow
def test_the_runs_of_a_server_are_listed_the_newest_first(tmp_path: Path) -> None:
    with kfp_server() as kfp:
        server = connect(Kubeflow(endpoint=kfp.host))
        package = tmp_path / "p.yaml"
        medloop(tmp_path, "compile", "--output", str(package))
        pipeline, version = server.upload("medloop-retrain", package, "0" * 64)
        for number in range(105):
            kfp.script = [Step("resolve", "RUNNING", 600)] if number % 2 else None
            reference = {"pipeline_id": pipeline, "pipeline_version_id": version}
            given = {"parameters": {"source": "s", "store": "s3://b"}}
            server.start(
                {"display_name": f"run {number}", "pipeline_version_reference": reference, "runtime_config": given}
            )
        settings: dict[str, Any] = {"KF_PIPELINES_ENDPOINT": kfp.host}
        listed = json.loads(medloop(tmp_path, "runs", "--json", "--limit", "103", **settings).stdout)
        assert [run["what"] for run in listed] == [f"run {number}" for number in range(104, 1, -1)]
        assert {run["state"] for run in listed} == {"succeeded", "running"}
        assert next(run["took"] for run in listed if run["state"] == "running") == "–"
        told = medloop(tmp_path, "runs", "--limit", "1", COLUMNS="200", **settings).stdout
        assert next(reversed(kfp.runs)) in told
        assert "run 104" in told


def test_what_a_run_left_is_removed_unless_it_is_at_work(tmp_path: Path) -> None:
    """A home may hold runs of several stores: the lease of one store says nothing about the other's."""
    from medloop.runner.run import _claimed, _clear_unclaimed

    (tmp_path / "tmp").mkdir()
    with _claimed(tmp_path):
        _clear_unclaimed(tmp_path)
        assert (tmp_path / "tmp").is_dir()
    _clear_unclaimed(tmp_path)
    assert not (tmp_path / "tmp").exists()


def test_device_hours_are_told_and_cost_what_the_price_of_the_moment_says(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDLOOP_DEVICE_PRICE", raising=False)
    pages.page("resolve", "finished")
    assert training_cost(find(pages.store, pages.run)) == ""
    pages.page("train", "finished", spent={"device_seconds": 5400.0})
    assert training_cost(find(pages.store, pages.run)) == "The training took 1.5 device hours."
    monkeypatch.setenv("MEDLOOP_DEVICE_PRICE", "2")
    monkeypatch.setenv("MEDLOOP_CURRENCY", "EUR")
    cost = training_cost(find(pages.store, pages.run))
    assert cost == "The training took 1.5 device hours, at 2 EUR an hour 3.00 EUR."
    monkeypatch.setenv("MEDLOOP_DEVICE_PRICE", "2 EUR")
    with pytest.raises(ValueError, match="MEDLOOP_DEVICE_PRICE is '2 EUR'"):
        training_cost(find(pages.store, pages.run))


def test_a_training_that_was_done_before_cost_this_run_nothing(pages: Pages) -> None:
    pages.page("train", "reused", spent={"device_seconds": 36.0})
    told = training_cost(find(pages.store, pages.run))
    assert told == "The training took 0.01 device hours. It was reused from an earlier run at no cost."


def test_a_page_whose_spent_time_was_changed_is_not_told_of(pages: Pages) -> None:
    pages.page("train", "finished", spent={"device_seconds": "long"})
    assert training_cost(find(pages.store, pages.run)) == ""


@pytest.mark.parametrize("run", ["..", "../../x", "a b", "-x"])
def test_a_run_whose_id_would_lead_elsewhere_is_not_listed(run: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "store" / "runs").mkdir(parents=True)
    record = {"run": run, "arguments": {"decision": "", "run": run}, "by": "x", "started": "x", "outcome": "released"}
    (tmp_path / "store" / "runs" / f"{run.replace('/', '_')}.json").write_bytes(encode("run", record))
    store.write("runs/20260101-000000-aaaa.json", encode("run", record))
    with pytest.raises(ValueError, match="an invalid run id"):
        find(store, "20260101")


@pytest.mark.slow
def test_a_run_that_broke_off_outside_of_its_stages_can_be_explained(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way, as a full disk is")
    (tmp_path / "scans").mkdir()
    done = medloop(tmp_path, "run", "--source", str(tmp_path / "scans"), status=1)
    assert "Traceback" not in done.stderr
    assert "It failed outside its stages: " in medloop(tmp_path, "explain").stdout
    store = open_store(str(tmp_path / "store"))
    assert find(store).record["why"] not in ("", "It ended without a reason.")
    # As versions before wrote it.
    about = {"run": "20990101-old", "arguments": {"source": "x"}, "by": "x", "started": "2099", "outcome": "failed"}
    store.write("runs/20990101-old.json", encode("run", about))
    told = medloop(tmp_path, "explain", "20990101-old").stdout
    assert "It failed outside its stages: It ended without a reason." in told
    assert "20990101-old" in medloop(tmp_path, "runs").stdout


def started(store: Store, run: str, order: int, logged: bool) -> None:
    about = {"run": run, "arguments": {"source": "x"}, "by": "x", "started": run, "outcome": "refused", "order": order}
    store.write(f"runs/{run}.json", encode("run", {name: value for name, value in about.items() if value}))
    if logged:
        release_log.append(store, release_log.read_log(store), "refusal", run=run, model="m", sentence="x")


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "as versions before wrote them"])
def test_the_latest_run_is_that_of_the_log_and_not_of_a_clock_that_was_wrong(tmp_path: Path, counted: bool) -> None:
    store = open_store(str(tmp_path / "store"))
    number = iter(range(1, 9)) if counted else iter([0] * 9)
    started(store, "20261101-right", next(number), logged=True)
    assert find(store).id == "20261101-right"
    started(store, "20301101-ahead", next(number), logged=True)
    assert find(store).id == "20301101-ahead"
    started(store, "20261102-right", next(number), logged=True)
    assert find(store).id == "20261102-right"
    started(store, "20261103-failed", next(number), logged=False)
    assert find(store).id == "20261103-failed"
    started(store, "20201101-behind", next(number), logged=True)
    assert find(store).id == ("20201101-behind" if counted else "20261103-failed")
    assert find(store, "2030").id == "20301101-ahead"


def test_a_run_that_failed_under_a_wrong_clock_is_not_the_latest_for_ever(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    started(store, "20301101-ahead", 1, logged=False)
    assert find(store).id == "20301101-ahead"
    started(store, "20261101-right", 2, logged=True)
    assert find(store).id == "20261101-right"
    started(store, "20261102-failed", 3, logged=False)
    assert find(store).id == "20261102-failed"
