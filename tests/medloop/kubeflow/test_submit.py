"""A run on a Kubeflow server: started once and for all, watched to its end, and every refusal a sentence."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from medloop.kubeflow.cluster_file import SHIPPED, read_cluster
from medloop.kubeflow.follow import Outcome, follow
from medloop.kubeflow.login import connect
from medloop.kubeflow.submit import RunRequest
from medloop.kubeflow.submit import submit as begin
from medloop.settings import Kubeflow
from tests.e2e.loop import ROOT, wait_for
from tests.medloop.kubeflow import kfp_server as served
from tests.medloop.kubeflow.kfp_runs import Step
from tests.medloop.kubeflow.kfp_server import COOKIE, TOKEN, KfpServer, kfp_server
from tests.medloop.kubeflow.kfp_stories import REFUSED, RELEASED, fails, refusal, released, says, upto, works
from tests.medloop.test_cli import medloop, refused
from workflows.image_names import choose

ORDER = ("--source", "/scans", "--store", "s3://loop/chest", "--images", "registry.example/m:1", "--no-pin")
WATCHED = (*ORDER, "--wait", "--poll", "0.05")


@pytest.fixture
def kfp() -> Iterator[KfpServer]:
    with kfp_server() as server:
        yield server


def submit(
    home: Path, kfp: KfpServer, *arguments: str, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    return medloop(home, "submit", *arguments, status=status, KF_PIPELINES_ENDPOINT=kfp.host, **environment)


def flat(*told: str) -> str:
    """What was printed, less the breaks of its lines."""
    return " ".join(" ".join(told).split())


def test_a_run_is_started_with_its_package_its_parameters_and_who_asked(kfp: KfpServer, tmp_path: Path) -> None:
    told = submit(tmp_path, kfp, *ORDER, "--set", "epochs=3", "--set", "train_options.augment=0", "--name", "a try")
    (run,) = kfp.runs.values()
    run_id = run.about["run_id"]
    assert told.stdout.split() == [run_id, f"{kfp.host}/#/runs/details/{run_id}"]
    given = run.about["runtime_config"]["parameters"]
    assert (given["source"], given["store"], given["by"]) == ("/scans", "s3://loop/chest", getpass.getuser())
    assert (given["epochs"], given["learning_rate"], given["train_options"]) == (3, 2e-3, {"augment": 0.0})
    assert isinstance(given["epochs"], int)
    assert run.about["display_name"] == "a try"
    assert kfp.experiments[run.about["experiment_id"]]["display_name"] == "medloop"
    spec = kfp.versions[run.about["pipeline_version_reference"]["pipeline_version_id"]]["pipeline_spec"]
    executors = spec["pipeline_spec"]["deploymentSpec"]["executors"]
    assert executors["exec-train"]["container"]["image"] == "registry.example/m/medloop-train:1"

    # The same again finds the package; another image makes another one.
    told = submit(tmp_path, kfp, *ORDER, "--json")
    assert json.loads(told.stdout)["run"] in kfp.runs
    assert len(kfp.pipelines) == len(kfp.versions) == 1
    submit(tmp_path, kfp, *ORDER, "--image", "train=registry.example/ours:2")
    assert (len(kfp.pipelines), len(kfp.versions), len(kfp.runs)) == (1, 2, 3)
    assert len({run.about["pipeline_version_reference"]["pipeline_version_id"] for run in kfp.runs.values()}) == 2


@pytest.fixture(scope="module")
def order() -> RunRequest:
    """What is to be run, for those who ask the server in this process."""
    arguments = {"source": "/scans", "store": "s3://loop/chest"}
    return RunRequest("retrain", choose("r.example/m:1", []), read_cluster(None), arguments, "medloop", "a run")


def test_one_run_at_a_time_holds_a_store(kfp: KfpServer, order: RunRequest) -> None:
    server = connect(Kubeflow(endpoint=kfp.host))
    kfp.script = [Step("resolve", "RUNNING", 600)]
    run_id = begin(server, order)
    for same in ("s3://loop/chest", "s3://loop/chest/"):
        with pytest.raises(RuntimeError, match="Only one run at a time can use a store") as refused:
            begin(server, replace(order, arguments={**order.arguments, "store": same}))
        assert run_id in str(refused.value)
    assert len(kfp.runs) == 1
    kfp.script = None
    begin(server, replace(order, arguments={**order.arguments, "store": "s3://loop/knee"}))
    kfp.play(run_id, [("resolve", "FAILED")])
    begin(server, order)
    assert len(kfp.runs) == 3


def test_a_release_is_watched_to_its_end(kfp: KfpServer, tmp_path: Path) -> None:
    kfp.script = released()
    done = submit(tmp_path, kfp, *WATCHED)
    (run_id,) = kfp.runs
    told = flat(done.stdout)
    for stage in ("resolve", "ingest", "split", "train", "evaluate", "gate", "quantize", "deploy"):
        assert f"✓ {stage} " in told
    assert told.count("✓ evaluate ") == 2
    assert "halves" in told
    assert RELEASED["sentence"] in told
    assert f"{kfp.host}/#/runs/details/{run_id}" in told
    assert "a line of a library" not in told


def test_a_refusal_is_a_result_and_json_says_all(kfp: KfpServer, tmp_path: Path) -> None:
    kfp.script = refusal()
    done = submit(tmp_path, kfp, *WATCHED, "--json")
    told = json.loads(done.stdout)
    assert (told["state"], told["outcome"], told["sentence"]) == ("succeeded", "refused", REFUSED["sentence"])
    assert told["run"] in kfp.runs
    assert "✓ train" in done.stderr


def test_a_failure_names_the_stage_its_reason_and_its_last_lines(tmp_path: Path) -> None:
    """Through the page's server, with a log-in by cookie; the executor was tried three times."""
    with kfp_server(prefix="/pipeline", login="cookie") as kfp:
        kfp.script = [
            *upto("train"),
            *fails("train", "first reason"),
            *fails("train", "again"),
            *fails("train", "No GPU"),
        ]
        done = submit(tmp_path, kfp, *WATCHED, "--json", status=1, MEDLOOP_KFP_COOKIES=COOKIE)
        told = json.loads(done.stdout)
        assert (told["state"], told["failed_stage"], told["why"]) == ("failed", "train", "No GPU")
        assert told["last_lines"][-1] == "the very last line"
        (run_id,) = kfp.runs
        shown = flat(done.stderr)
        assert "✗ train failed: first reason" in shown
        assert "The stage train failed. No GPU" in shown
        assert f"medloop replay {run_id} train" in shown
        assert COOKIE.partition("=")[2] not in done.stdout + done.stderr


def test_ctrl_c_leaves_the_run_alone(kfp: KfpServer, tmp_path: Path) -> None:
    kfp.script = [*works("resolve"), Step("ingest", "RUNNING", 600, says("started", "ingest", key="k"))]
    command = [sys.executable, "-m", "medloop.cli.main", "submit", *WATCHED]
    environment = {**os.environ, "MEDLOOP_HOME": str(tmp_path), "KF_PIPELINES_ENDPOINT": kfp.host}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as watching:
        wait_for(lambda: any("/log" in request.path for request in kfp.requests), 60)
        watching.send_signal(signal.SIGINT)
        printed, complaint = watching.communicate(timeout=30)
    (run_id,) = kfp.runs
    assert watching.returncode == 130, printed + complaint
    assert "the run continues" in complaint
    assert f"/#/runs/details/{run_id}" in complaint
    assert "Traceback" not in complaint
    assert not any(request.path.endswith(":terminate") for request in kfp.requests)


def test_watching_has_an_end_of_its_own(kfp: KfpServer, tmp_path: Path) -> None:
    kfp.script = [Step("resolve", "RUNNING", 600)]
    done = submit(tmp_path, kfp, *WATCHED, "--timeout", "0s", status=1)
    (run_id,) = kfp.runs
    assert f"The run {run_id} is running after 0 s. The run continues unwatched" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--source", "/scans", "--no-pin"), "a directory of this machine, which a cluster cannot access"),
        (("--store", "s3://b/p", "--no-pin"), "No source was given"),
        ((*ORDER, "--set", "epoch=3"), "Did you mean 'epochs'?"),
        ((*ORDER, "--service-account", "My Account"), "--service-account is 'My Account'"),
        ((*ORDER, "--image", "trian=x/y:1"), "Did you mean 'train'?"),
        ((*ORDER, "--images", "registry.example/Team:1"), "in lower case"),
        ((*WATCHED, "--timeout", "90 minutes"), "--timeout: '90 minutes' is not a duration"),
        ((*ORDER, "--timeout", "5m"), "Add --wait"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_server_is_asked(
    arguments: tuple[str, ...], words: str, kfp: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.host)
    assert words in refused("submit", *arguments)
    assert kfp.requests == []


def test_no_server_is_named(tmp_path: Path) -> None:
    settings = {"KF_PIPELINES_ENDPOINT": "", "KUBECONFIG": str(tmp_path / "none")}
    done = medloop(tmp_path, "submit", *ORDER, status=1, **settings)
    assert "Set KF_PIPELINES_ENDPOINT" in done.stderr
    assert "KUBECONFIG" in done.stderr


def test_a_server_too_old_for_what_is_asked_gets_nothing(tmp_path: Path) -> None:
    with kfp_server(tag="2.14.0") as kfp:
        done = submit(tmp_path, kfp, *ORDER, status=1)
        assert "is Kubeflow Pipelines 2.14.0, but the cluster file requires 2.16 or newer" in done.stderr
        assert not kfp.pipelines
        plain = tmp_path / "plain.yaml"
        gone: dict[str, Any] = {stage: {"secrets": dict.fromkeys(names)} for stage, names in placed_secrets().items()}
        gone["all"] |= {"user": -1, "group": -1, "non_root": False}
        plain.write_text(yaml.safe_dump(gone))
        submit(tmp_path, kfp, *ORDER, "--cluster", str(plain))
        assert len(kfp.runs) == 1


def placed_secrets() -> dict[str, dict[str, Any]]:
    """The secrets that the shipped file gives to each stage."""
    shipped = yaml.safe_load(SHIPPED.read_text())
    return {stage: asked["secrets"] for stage, asked in shipped.items() if "secrets" in asked}


def test_a_lost_answer_says_that_the_run_may_exist(
    kfp: KfpServer, order: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = KfpServer.create_run

    def losing(own: KfpServer, request: Any) -> Any:
        own.losses = 1
        return plain(own, request)

    routes = tuple((verb, path, losing if work is plain else work) for verb, path, work in served.ROUTES)
    monkeypatch.setattr(served, "ROUTES", routes)
    kfp.script = []
    server = connect(Kubeflow(endpoint=kfp.host))
    with pytest.raises(ConnectionError, match="may have succeeded: check with `medloop runs`"):
        begin(server, order)
    (run_id,) = kfp.runs
    with pytest.raises(RuntimeError, match=run_id):  # the run that was begun holds the store
        begin(server, order)


def test_a_token_and_its_errors(tmp_path: Path) -> None:
    with kfp_server(login="token", multi_user=True) as kfp:
        settings: dict[str, Any] = {"MEDLOOP_KFP_TOKEN": TOKEN, "MEDLOOP_KFP_NAMESPACE": "team"}
        done = submit(tmp_path, kfp, *WATCHED, **settings)
        assert TOKEN not in done.stdout + done.stderr
        (run,) = kfp.runs.values()
        assert kfp.experiments[run.about["experiment_id"]]["namespace"] == "team"
        assert "?ns=team" in done.stdout
        for wrong, words in (({"MEDLOOP_KFP_TOKEN": "old"}, "401"), ({"MEDLOOP_KFP_NAMESPACE": "other"}, "403")):
            done = submit(tmp_path, kfp, *ORDER, status=1, **{**settings, **wrong})
            assert words in done.stderr
            assert "MEDLOOP_KFP_" in done.stderr
            assert TOKEN not in done.stderr
        assert len(kfp.runs) == 1


# What the watching says and does not say, with the server in this process and its runs begun by hand.


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("package")
    medloop(home, "compile", "--output", str(home / "retrain.yaml"))
    return home / "retrain.yaml"


def watch(kfp: KfpServer, package: Path, script: list[Step], **settings: Any) -> tuple[Outcome, list[str], list[str]]:
    """Start a run with that script and watch it: how it ended, the events, and what was said besides."""
    run_id = start(kfp, package, script)
    events: list[str] = []
    said: list[str] = []
    server = connect(Kubeflow(endpoint=kfp.host))

    def hear(event: dict[str, Any]) -> None:
        events.append(f"{event['stage']} {event['event']}")

    asked = {"pause": 0.02, "timeout": 20.0, **settings}
    return follow(server, run_id, hear, said.append, **asked), events, said


def start(kfp: KfpServer, package: Path, script: list[Step] | None) -> str:
    documents = [*yaml.safe_load_all(package.read_text())]
    kfp.script = script
    body = {
        "display_name": "by hand",
        "pipeline_spec": {"pipeline_spec": documents[0], "platform_spec": documents[1]},
        "runtime_config": {"parameters": {"source": "/scans", "store": "s3://b/p"}},
    }
    return connect(Kubeflow(endpoint=kfp.host)).start(body)


def test_events_come_once_and_in_order_as_the_log_grows(kfp: KfpServer, package: Path) -> None:
    script = [
        Step("resolve", "RUNNING", 0.15, says("started", "resolve", key="k")),
        Step("resolve", "RUNNING", 0.15, says("progress", "resolve", done=1, total=2, note="")[:20]),
        Step("resolve", "RUNNING", 0.15, says("progress", "resolve", done=1, total=2, note="")[20:]),
        Step("resolve", "SUCCEEDED", 0.0, says("finished", "resolve", seconds=1, values={}).rstrip()),
        *works("ingest", 0.1),
    ]
    done, events, said = watch(kfp, package, script)
    for stage in ("resolve", "ingest"):  # between stages the order is that of looking, where the machine is slow
        heard = [event for event in events if event.startswith(stage)]
        assert heard == [f"{stage} started", f"{stage} progress", f"{stage} finished"]
    assert done.state == "SUCCEEDED"
    assert said[0] in ("run       pending", "run       running", "run       succeeded")


def test_a_try_that_failed_before_one_that_did_not_is_no_failure(kfp: KfpServer, package: Path) -> None:
    done, events, _ = watch(kfp, package, [*upto("train"), *fails("train", "node lost", 0.1), *works("train", 0.1)])
    assert (done.state, done.failed) == ("SUCCEEDED", None)
    assert [event for event in events if event.startswith("train")] == [
        "train started",
        "train failed",
        "train started",
        "train progress",
        "train finished",
    ]


@pytest.mark.parametrize("archive", [False, True])
def test_an_image_that_cannot_be_pulled_is_told_while_it_waits(kfp: KfpServer, package: Path, archive: bool) -> None:
    kfp.archive = archive
    with pytest.raises(TimeoutError) as tired:
        watch(kfp, package, [*upto("train"), Step("train", "PENDING")], timeout=0.5, pending_seconds=0.1)
    assert "running after" in str(tired.value)
    told = watch_said(kfp, package, [*upto("train"), Step("train", "PENDING")])
    (word,) = [line for line in told if "has been pending" in line]
    assert word.startswith("train has been pending")
    assert ("no node has enough resources" if archive else "trying and failing to pull image") in word
    assert next(reversed(kfp.runs)) in word


def watch_said(kfp: KfpServer, package: Path, script: list[Step]) -> list[str]:
    """What is said of a run that does not come on."""
    run_id, said = start(kfp, package, script), list[str]()
    with pytest.raises(TimeoutError):
        follow(connect(Kubeflow(endpoint=kfp.host)), run_id, lambda _: None, said.append, 0.02, 0.5, 0.1)
    return said


def test_a_run_that_nobody_takes_up_is_told_once(kfp: KfpServer, package: Path) -> None:
    told = watch_said(kfp, package, [])
    assert [line for line in told if "No step has started" in line] == told[-1:]
    assert "The workflow controller may be down" in told[-1]


def test_a_stage_that_dies_without_a_word_is_named(kfp: KfpServer, package: Path) -> None:
    done, _, said = watch(kfp, package, [*upto("ingest"), Step("ingest", "FAILED", 0.0, "Killed\n")])
    assert done.failed is not None
    assert (done.failed.name, done.failed.why, [*done.failed.last_lines]) == ("ingest", "", ["Killed"])
    assert "ingest    failed" in said


def test_a_stage_that_could_not_be_prepared_is_named(kfp: KfpServer, package: Path) -> None:
    done, _, _ = watch(kfp, package, [*upto("ingest"), Step("ingest-driver", "FAILED")])
    assert done.failed is not None
    assert done.failed.name == "ingest"
    assert "its driver failed" in done.failed.why


@pytest.mark.parametrize("ending", ["FAILED", "CANCELED"])
def test_a_run_that_was_ended_from_outside_is_not_blamed_on_a_stage(kfp: KfpServer, package: Path, ending: str) -> None:
    kfp.stops_as = ending
    run_id = start(kfp, package, [*upto("train"), Step("train", "RUNNING", 600, says("started", "train", key="k"))])
    server, said = connect(Kubeflow(endpoint=kfp.host)), list[str]()

    def stop(event: dict[str, Any]) -> None:
        if event["stage"] == "train":
            server._request("POST", f"runs/{run_id}:terminate")

    done = follow(server, run_id, stop, said.append, 0.02, 20)
    assert (done.state, done.stopped) == (ending, True)


def test_a_server_that_is_away_for_a_while_is_asked_again(kfp: KfpServer, package: Path) -> None:
    run_id = start(kfp, package, [*works("resolve", 0.2)])
    server, said = connect(Kubeflow(endpoint=kfp.host)), list[str]()
    server._client.configuration.retries.total = 0
    kfp.unavailable, kfp.resets = 2, 1
    assert follow(server, run_id, lambda _: None, said.append, 0.02, 20).state == "SUCCEEDED"
    kfp.unavailable = 10**6
    with pytest.raises(ConnectionError, match="reports an internal error"):
        follow(server, run_id, lambda _: None, said.append, 0.02, 20, unreachable_seconds=0.1)


def test_of_two_submits_at_the_same_moment_one_goes_on(kfp: KfpServer, tmp_path: Path) -> None:
    kfp.pace = 5.0
    command = [sys.executable, "-m", "medloop.cli.main", "submit", "--source", "/x", "--store", "s3://race/x"]
    environment = {**os.environ, "MEDLOOP_HOME": str(tmp_path), "KF_PIPELINES_ENDPOINT": kfp.host}
    both = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert "Only one run at a time can use a store" in "".join(told)
    going_on = [run for run in kfp.runs.values() if run.state(time.time()) in ("PENDING", "RUNNING")]
    assert len(going_on) == 1


@pytest.mark.parametrize("option", ["--name", "--experiment"])
def test_a_run_has_a_name_of_some_length(option: str, kfp: KfpServer, tmp_path: Path) -> None:
    for text in ("", " ", "x" * 129):
        arguments = ("--source", "/x", "--store", "s3://r/x", option, text)
        done = medloop(tmp_path, "submit", *arguments, status=2, KF_PIPELINES_ENDPOINT=kfp.host)
        assert "1 to 128 characters" in done.stderr
    assert kfp.runs == {}
