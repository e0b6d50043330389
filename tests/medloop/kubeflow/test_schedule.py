"""A schedule on a Kubeflow server: pinned, never twice at once, in parts where clocks change, replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from medloop.kubeflow import cron
from medloop.kubeflow.cluster_file import read_cluster
from medloop.kubeflow.login import connect
from medloop.kubeflow.schedules import schedule, unschedule
from medloop.kubeflow.submit import RunRequest
from medloop.settings import Kubeflow
from tests.medloop.kubeflow import kfp_server as served
from tests.medloop.kubeflow.kfp_checks import INTERNAL, Refusal
from tests.medloop.kubeflow.kfp_runs import Step
from tests.medloop.kubeflow.kfp_server import KfpServer, kfp_server
from tests.medloop.test_cli import medloop, refused
from workflows.image_names import choose

LOOP = ("--source", "/scans", "--store", "s3://loop/chest", "--images", "registry.example/m:1", "--no-pin")


@pytest.fixture
def kfp() -> Iterator[KfpServer]:
    with kfp_server() as server:
        yield server


def ask(home: Path, kfp: KfpServer, *arguments: str, status: int = 0, **environment: str) -> tuple[str, str]:
    done = medloop(home, "schedule", *arguments, status=status, KF_PIPELINES_ENDPOINT=kfp.host, **environment)
    return done.stdout, done.stderr


def test_a_schedule_is_pinned_and_never_overlaps_nor_catches_up(kfp: KfpServer, tmp_path: Path) -> None:
    told, _ = ask(tmp_path, kfp, "--cron", "0 3 * * MON", *LOOP, "--set", "epochs=3")
    (made,) = kfp.recurringruns.values()
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (made["max_concurrency"], made["no_catchup"], made["status"]) == ("1", True, "ENABLED")
    assert made["display_name"] == "medloop-retrain"
    assert f"{kfp.host}/#/recurringrun/details/{made['recurring_run_id']}" in told
    assert "Next: Mon " in told
    assert "UTC" in told
    (version,) = kfp.versions
    assert made["pipeline_version_reference"]["pipeline_version_id"] == version
    assert made["runtime_config"]["parameters"]["epochs"] == 3
    kfp.script = [Step("resolve", "RUNNING", 60)]
    first = kfp.fire(made["recurring_run_id"])
    assert first is not None
    assert kfp.fire(made["recurring_run_id"]) is None
    kfp.play(first, [("resolve", "FAILED")])

    # Another package, another time: what was there is replaced, and the runs of then are left.
    told, _ = ask(
        tmp_path, kfp, "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", *LOOP, "--image", "train=r.example/o:2",
        "--json",
    )  # fmt: skip
    parts = json.loads(told)["schedules"]
    assert {part["id"] for part in parts} == set(kfp.recurringruns)
    assert len(parts) == 11
    assert len(kfp.versions) == 2
    assert {each["pipeline_version_reference"]["pipeline_version_id"] for each in kfp.recurringruns.values()} == {
        next(reversed(kfp.versions))
    }
    assert first in kfp.runs
    bounds = [each["trigger"]["cron_schedule"] for each in kfp.recurringruns.values()]
    assert "start_time" not in bounds[0]
    assert "end_time" not in bounds[-1]
    assert all(one["end_time"] <= two["start_time"] for one, two in pairwise(bounds))
    assert all(each["end_time"].endswith("59Z") for each in bounds[:-1])

    told, _ = ask(tmp_path, kfp, "--remove", "--json")
    assert json.loads(told) == {"removed": "medloop-retrain", "parts": 11}
    assert kfp.recurringruns == {}
    _, complaint = ask(tmp_path, kfp, "--remove", status=1)
    assert "There is no schedule 'medloop-retrain'. Existing schedules: none." in complaint


def test_a_server_that_keeps_the_same_clock_needs_one_part(kfp: KfpServer, tmp_path: Path) -> None:
    zone: dict[str, Any] = {"MEDLOOP_KFP_TIMEZONE": "Europe/Berlin"}
    told, _ = ask(tmp_path, kfp, "--cron", "0 3 1 * *", "--timezone", "Europe/Berlin", *LOOP, **zone)
    (made,) = kfp.recurringruns.values()
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 1 * *"}}
    assert "CE" in told  # CET or CEST
    told, _ = ask(tmp_path, kfp, "--remove")
    assert told.startswith("medloop-retrain was removed (1 part)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (LOOP, "Set it with --cron"),
        (("--cron", "0 0 30 2 *", *LOOP), "which never matches"),
        (("--cron", "0 0 3 * * MON", *LOOP), "6 fields"),
        (("--cron", "0 25 * * *", *LOOP), "hour '25'"),
        (("--cron", "0 3 * * *", "--timezone", "Europe/Berln", *LOOP), "Did you mean 'Europe/Berlin'?"),
        (("--cron", "0 3 1 * *", "--timezone", "Asia/Tokyo", *LOOP), "MEDLOOP_KFP_TIMEZONE"),
        (("--cron", "0 3 * * *", "--name", "My Nightly", *LOOP), "--name is 'My Nightly'"),
        (("--cron", "0 3 * * *", "--service-account", "x_y", *LOOP), "--service-account is 'x_y'"),
        (("--remove", "--name", "Ä"), "--name is 'Ä'"),
        (("--cron", "0 3 * * *", "--source", "/scans", "--no-pin"), "a directory of this machine"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_server_is_asked(
    arguments: tuple[str, ...], words: str, kfp: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.host)
    assert words in refused("schedule", *arguments)
    assert kfp.requests == []


def test_a_server_zone_that_is_none_is_told(kfp: KfpServer, tmp_path: Path) -> None:
    _, complaint = ask(tmp_path, kfp, "--cron", "0 3 * * *", *LOOP, status=2, MEDLOOP_KFP_TIMEZONE="Mars/Crater")
    assert "There is no time zone 'Mars/Crater'" in complaint


# In this process: the order is the same, and the compiling is done once.


@pytest.fixture(scope="module")
def order() -> RunRequest:
    arguments = {"source": "/scans", "store": "s3://loop/chest"}
    return RunRequest("retrain", choose("r.example/m:1", []), read_cluster(None), arguments, "medloop", "nightly")


def parts(zone: str) -> list[cron.Span]:
    return cron.spans(cron.read("0 3 * * *"), cron.zone(zone), UTC, datetime.now(UTC))


@pytest.mark.parametrize("mishap", ["refused", "lost"])
def test_what_goes_wrong_half_way_leaves_the_schedule_before_alone(
    mishap: str, kfp: KfpServer, order: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = connect(Kubeflow(endpoint=kfp.host))
    (before,) = schedule(server, order, parts("UTC"))
    plain, calls = KfpServer.create_recurring_run, iter(range(100))

    def third_goes_wrong(own: KfpServer, request: Any) -> Any:
        if next(calls) == 2:
            own.recurringruns[before["id"]]["updated_at"] = "2030-01-01T00:00:00Z"  # it has just begun a run
            if mishap == "refused":
                raise Refusal(INTERNAL, "no more of these", "Failed to create a recurring run")
            own.losses = 1
        return plain(own, request)

    routes = tuple((verb, path, third_goes_wrong if work is plain else work) for verb, path, work in served.ROUTES)
    monkeypatch.setattr(served, "ROUTES", routes)
    with pytest.raises(ConnectionError, match="internal error" if mishap == "refused" else "may have succeeded"):
        schedule(server, order, parts("Europe/Berlin"))
    assert [*kfp.recurringruns] == [before["id"]]


def test_schedules_of_other_names_and_of_others_are_left_alone(kfp: KfpServer, order: RunRequest) -> None:
    from dataclasses import replace

    server = connect(Kubeflow(endpoint=kfp.host))
    schedule(server, order, parts("UTC"))
    schedule(server, replace(order, name="nightly-knee"), parts("Europe/Berlin"))
    foreign = dict(next(iter(kfp.recurringruns.values())))
    kfp.recurringruns["foreign"] = {**foreign, "recurring_run_id": "foreign", "description": "by hand"}
    schedule(server, order, parts("UTC"))
    assert len(kfp.recurringruns) == 1 + 11 + 1
    assert unschedule(server, "nightly-knee") == 11
    assert unschedule(server, "nightly") == 1
    assert [*kfp.recurringruns] == ["foreign"]
    with pytest.raises(ValueError, match=r"There is no schedule 'nightl'\. Existing schedules: nightly"):
        unschedule(server, "nightl")
