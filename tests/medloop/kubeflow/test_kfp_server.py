"""The server for tests speaks the API that the published client understands, and refuses in its shapes."""

# KFP reads annotations that a type checker cannot.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,valid-type"

import json
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
import urllib3
from kfp import compiler, dsl, kubernetes
from kfp.client import Client

from tests.medloop.kubeflow.kfp_runs import Step
from tests.medloop.kubeflow.kfp_server import COOKIE, TOKEN, KfpServer, kfp_server, own_certificate

IMAGE = "registry.example/stage:1"


@dsl.container_component
def ingest(source: str, done: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image=IMAGE, args=[source, done])


@dsl.container_component
def train(data: str, rate: float, good: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image=IMAGE, args=[data, rate, good])


@dsl.container_component
def deploy(data: str):
    return dsl.ContainerSpec(image=IMAGE, args=[data])


@dsl.pipeline(name="small")
def small(source: str, rate: float = 0.1) -> None:
    data = ingest(source=source)
    model = train(data=data.outputs["done"], rate=rate).set_retry(2)
    kubernetes.add_toleration(model, key="gpu")
    with dsl.If(model.outputs["good"] == "yes"):
        deploy(data=source)
    with dsl.Else():
        deploy(data="nothing")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("package") / "small.yaml"
    compiler.Compiler().compile(small, str(path))
    return str(path)


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "none"))


@pytest.fixture
def kfp() -> Iterator[KfpServer]:
    with kfp_server() as server:
        yield server


def client(kfp: KfpServer, **settings: Any) -> Client:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Client(host=kfp.host, **{"namespace": "team", **settings})


def start(caller: Client, package: str, **settings: Any) -> str:
    arguments = {"source": "s3://scans"}
    return str(caller.create_run_from_pipeline_package(package, arguments, run_name="a run", **settings).run_id)


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def tasks(kfp: KfpServer, run_id: str) -> dict[str, str]:
    details = client(kfp).get_run(run_id).run_details.task_details
    return {detail.display_name: detail.state for detail in details}


def test_from_an_upload_to_a_finished_run(kfp: KfpServer, package: str) -> None:
    caller = client(kfp)
    pipeline = caller.upload_pipeline(package, "retrain")
    version = caller.upload_pipeline_version(package, "second", pipeline_id=pipeline.pipeline_id)
    assert caller.get_pipeline_id("retrain") == pipeline.pipeline_id
    assert [each.name for each in caller.list_pipeline_versions(pipeline.pipeline_id).pipeline_versions] == [
        "retrain",
        "second",
    ]
    assert "platform_spec" in version.pipeline_spec
    experiment = caller.create_experiment("nightly")
    assert caller.create_experiment("nightly").experiment_id == experiment.experiment_id
    kfp.pace = 0.05
    run = caller.run_pipeline(
        experiment.experiment_id,
        "a run",
        pipeline_id=pipeline.pipeline_id,
        version_id=version.pipeline_version_id,
        params={"source": "s3://scans", "rate": 1},
    )
    assert run.state == "PENDING"
    assert run.finished_at.year == 1970
    done = caller.wait_for_run_completion(run.run_id, 20, sleep_duration=0)
    assert done.state == "SUCCEEDED"
    assert [moment.state for moment in done.state_history] == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert done.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert done.runtime_config.parameters == {"source": "s3://scans", "rate": 1}
    sent = next(each for each in kfp.requests if each.path == "/apis/v2beta1/runs" and each.method == "POST")
    assert sent.json["experiment_id"] == experiment.experiment_id


def test_the_tasks_of_a_run_lead_to_their_pods_and_logs(kfp: KfpServer, package: str) -> None:
    caller = client(kfp)
    run_id = start(caller, package)
    details = caller.get_run(run_id).run_details.task_details
    names = {detail.display_name: detail for detail in details}
    assert {"root-driver", "root", "ingest-driver", "ingest", "executor", "executor(0)", "deploy"} <= names.keys()
    assert names["condition-3"].state == "SKIPPED"
    assert "deploy-2" not in names
    assert all(detail.pod_name is None and detail.error is None for detail in details)
    workflow, _, number = names["ingest"].child_tasks[0].pod_name.rpartition("-")
    assert workflow in names
    pod = f"{workflow}-system-container-impl-{number}"
    assert kfp.pods(run_id)[pod] == "SUCCEEDED"
    logs = f"{kfp.host}/apis/v1alpha1/runs/{run_id}/nodes/{{}}/log"
    assert get(logs.format(pod)) == (200, "ingest works\n")
    status, words = get(logs.format("no-such-pod"))
    assert status == 200
    assert "Failed to read logs" in json.loads(words)["error_message"]


@pytest.mark.parametrize(
    ("script", "state", "seen"),
    [
        (
            [("ingest", "SUCCEEDED"), ("train", "FAILED"), ("train", "FAILED"), ("condition-branches-1", "OMITTED")],
            "FAILED",
            {"train": "FAILED", "executor(1)": "FAILED", "condition-branches-1": None},
        ),
        ([("ingest", "PENDING")], "RUNNING", {"ingest": "RUNNING", "executor": "PENDING"}),
        ([("ingest-driver", "FAILED")], "FAILED", {"ingest-driver": "FAILED"}),
        ([("ingest", "CACHED")], "SUCCEEDED", {"ingest": "SUCCEEDED", "executor": "SKIPPED"}),
        ([("ingest", "RUNNING"), ("", "CANCELED")], "CANCELED", {"ingest": "CANCELED"}),
    ],
)
def test_a_run_does_what_its_script_says(
    kfp: KfpServer, package: str, script: list[Any], state: str, seen: dict[str, str]
) -> None:
    run_id = start(client(kfp), package)
    kfp.play(run_id, script)
    assert client(kfp).get_run(run_id).state == state
    assert seen.items() <= tasks(kfp, run_id).items()


def test_a_run_that_nobody_takes_up_waits_without_tasks(kfp: KfpServer, package: str) -> None:
    kfp.script = []
    run = client(kfp).get_run(start(client(kfp), package))
    assert (run.state, run.run_details) == ("PENDING", None)


def test_an_image_that_cannot_be_pulled_is_told_in_the_log_alone(kfp: KfpServer, package: str) -> None:
    kfp.archive, kfp.script = False, [Step("ingest", "PENDING")]
    run_id = start(client(kfp), package)
    pod = next(name for name, state in kfp.pods(run_id).items() if state == "PENDING")
    assert "trying and failing to pull image" in get(f"{kfp.host}/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log")[1]


def test_terminating_and_retrying(kfp: KfpServer, package: str) -> None:
    kfp.script = [Step("ingest", "RUNNING", 60)]
    caller = client(kfp)
    run_id = start(caller, package)
    caller.terminate_run(run_id)
    assert caller.get_run(run_id).state == "CANCELING"
    assert caller.wait_for_run_completion(run_id, 20, sleep_duration=0).state == "FAILED"
    with pytest.raises(kfp_server_api.ApiException) as refused:
        caller.terminate_run(run_id)
    assert refused.value.status == 400
    kfp.script = [Step("ingest", "SUCCEEDED")]
    caller._run_api.run_service_retry_run(run_id)
    assert [moment.state for moment in caller.get_run(run_id).state_history][-2:] == ["RUNNING", "SUCCEEDED"]


def test_lists_come_in_pages_sorted_and_filtered(kfp: KfpServer, package: str) -> None:
    caller = client(kfp)
    ids = [start(caller, package) for _ in range(5)]
    caller.archive_run(ids[0])
    page = caller.list_runs(page_size=3, sort_by="created_at desc")
    assert [run.run_id for run in page.runs] == ids[:1:-1]
    rest = caller.list_runs(page_size=3, page_token=page.next_page_token)
    assert [run.run_id for run in rest.runs] == ids[1::-1]
    assert rest.next_page_token is None
    predicate = {"key": "storage_state", "operation": "NOT_EQUALS", "stringValue": "ARCHIVED"}
    assert caller.list_runs(filter=json.dumps({"predicates": [predicate]})).total_size == 4
    assert caller.list_runs(experiment_id=caller.create_experiment("empty").experiment_id).runs is None
    with pytest.raises(kfp_server_api.ApiException, match="Invalid sorting field"):
        caller.list_runs(sort_by="beauty")


def test_recurring_runs(kfp: KfpServer, package: str) -> None:
    caller = client(kfp)
    experiment = caller.create_experiment("nightly").experiment_id
    settings: dict[str, Any] = {"pipeline_package_path": package, "params": {"source": "x"}, "no_catchup": True}
    made = caller.create_recurring_run(experiment, "nightly", cron_expression="0 0 3 * * MON-FRI", **settings)
    assert (made.status, made.max_concurrency, made.no_catchup) == ("ENABLED", "1", True)
    assert made.trigger.cron_schedule.cron == "0 0 3 * * MON-FRI"
    assert [each.recurring_run_id for each in caller.list_recurring_runs().recurring_runs] == [made.recurring_run_id]
    kfp.script = []
    first = kfp.fire(made.recurring_run_id)
    assert caller.list_runs().runs[0].recurring_run_id == made.recurring_run_id
    assert first is not None
    assert kfp.fire(made.recurring_run_id) is None
    caller.disable_recurring_run(made.recurring_run_id)
    assert caller.get_recurring_run(made.recurring_run_id).status == "DISABLED"
    caller.delete_recurring_run(made.recurring_run_id)
    assert caller.list_recurring_runs(experiment_id=experiment).recurring_runs is None
    for cron, words in [
        ("CRON_TZ=Europe/Berlin 0 0 3 * * *", "Expected 5 to 6 fields, found 7"),
        ("0 0 25 * * *", "End of range (25) above maximum (23): 25"),
        ("0 0 3 * * 7", "End of range (7) above maximum (6): 7"),
        ("@fortnightly", "Unrecognized descriptor: @fortnightly"),
    ]:
        with pytest.raises(kfp_server_api.ApiException) as refused:
            caller.create_recurring_run(experiment, "nightly", cron_expression=cron, **settings)
        assert refused.value.status == 400
        assert words in json.loads(refused.value.body)["details"][0]["message"]
    with pytest.raises(kfp_server_api.ApiException, match=r"at least 1 and at most 10\. Received 11"):
        caller.create_recurring_run(experiment, "n", cron_expression="@daily", max_concurrency=11, **settings)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "parameter source is not optional, yet has neither default value nor user provided value"),
        ({"source": "x", "fast": True}, "parameter(s) provided are not required by pipeline: fast"),
        ({"source": 1}, "input parameter source requires type string"),
        ({"source": "x", "rate": True}, "input parameter rate requires type double or integer"),
    ],
)
def test_parameters_are_checked(kfp: KfpServer, package: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(kfp_server_api.ApiException) as refused:
        client(kfp).create_run_from_pipeline_package(package, given)
    body = json.loads(refused.value.body)
    assert (refused.value.status, body["code"]) == (400, 3)
    assert words in body["details"][0]["message"]
    assert words in body["message"]
    assert "error" not in body


def test_other_refusals(kfp: KfpServer, package: str, tmp_path: Path) -> None:
    caller = client(kfp)
    caller.upload_pipeline(package, "retrain")
    with pytest.raises(kfp_server_api.ApiException) as refused:
        caller.upload_pipeline(package, "retrain")
    assert refused.value.status == 409
    assert "error_message" in json.loads(refused.value.body)
    (tmp_path / "bad.yaml").write_text("pipelineInfo: {name: x}\nschemaVersion: 2.1.0\nrooot: {}\n")
    with pytest.raises(kfp_server_api.ApiException) as refused:
        caller.upload_pipeline(str(tmp_path / "bad.yaml"), "bad")
    assert refused.value.status == 400
    assert "invalid v2 pipeline spec" in refused.value.body
    with pytest.raises(kfp_server_api.ApiException) as refused:
        caller.get_run("nothing")
    assert refused.value.status == 404
    assert json.loads(refused.value.body)["details"][0]["message"] == "Run nothing not found"
    assert get(f"{kfp.host}/apis/v2beta1/no-such-thing") == (404, '{"code": 5, "message": "Not Found"}')
    kfp.tag = "2.5.0"
    assert json.loads(get(f"{kfp.host}/apis/v2beta1/no-such-thing")[1])["error"] == "Not Found"


def test_logins(package: str) -> None:
    with kfp_server(login="token", multi_user=True) as kfp:
        with pytest.raises(kfp_server_api.ApiException) as refused:
            client(kfp).list_runs()
        assert (refused.value.status, json.loads(refused.value.body)["code"]) == (401, 16)
        caller = client(kfp, existing_token=TOKEN)
        assert start(caller, package, namespace="team") in kfp.runs
        with pytest.raises(kfp_server_api.ApiException) as refused:
            caller.list_runs(namespace="other")
        assert (refused.value.status, json.loads(refused.value.body)["code"]) == (403, 7)
    with kfp_server(login="mesh") as kfp:
        assert get(f"{kfp.host}/apis/v2beta1/healthz") == (403, "RBAC: access denied")
        assert get(f"{kfp.host}/apis/v2beta1/healthz", authorization="Bearer old")[0] == 401
    with kfp_server(login="cookie", prefix="/pipeline") as kfp:
        status, page = get(f"{kfp.host}/apis/v2beta1/healthz")
        assert (status, page[:15]) == (200, "<!DOCTYPE html>")
        assert client(kfp).list_experiments().experiments is None
        caller = client(kfp, cookies=COOKIE)
        assert [each.display_name for each in caller.list_experiments().experiments] == ["Default"]
        assert json.loads(get(f"{kfp.host}/apis/v2beta1/healthz", cookie=COOKIE)[1])["apiServerTagName"] == "2.17.0"
        run_id = start(caller, package)
        pod = next(iter(kfp.pods(run_id)))
        assert get(f"{kfp.host}/k8s/pod/logs?podname={pod}&runid={run_id}", cookie=COOKIE)[0] == 200
        assert get(f"{kfp.host}/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", cookie=COOKIE)[1][:15] == page[:15]


def test_tls(tmp_path: Path) -> None:
    with kfp_server(certificate=own_certificate(tmp_path)) as kfp:
        assert client(kfp, ssl_ca_cert=str(tmp_path / "server.pem")).list_experiments().total_size == 1
        with pytest.raises(urllib3.exceptions.MaxRetryError, match="CERTIFICATE_VERIFY_FAILED"):
            client(kfp).list_experiments()


def test_mishaps(kfp: KfpServer, package: str) -> None:
    caller = client(kfp)
    kfp.unavailable = 1
    with pytest.raises(kfp_server_api.ApiException) as refused:
        caller.list_runs()
    assert refused.value.status == 503
    kfp.resets = 2
    assert caller.list_runs().runs is None  # urllib3 asks again
    kfp.losses = 1
    experiment = caller.create_experiment("Default").experiment_id
    kfp.losses = 1
    with pytest.raises(urllib3.exceptions.ProtocolError):
        caller.run_pipeline(experiment, "lost", package, {"source": "x"})
    assert [run.display_name for run in caller.list_runs().runs] == ["lost"]
    health = json.loads(get(f"{kfp.host}/apis/v2beta1/healthz")[1])
    assert health == {
        "commit_sha": "0" * 40,
        "tag_name": "2.17.0",
        "multi_user": False,
        "pipeline_store": "database",
    }
    kfp.version_1_only = True
    assert get(f"{kfp.host}/apis/v2beta1/healthz")[0] == 404
    assert get(f"{kfp.host}/apis/v1beta1/healthz")[0] == 200
