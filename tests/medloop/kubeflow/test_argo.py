"""What KFP's own compiler and driver make of the packages: each setting is looked for where Kubernetes will find it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.shared.runtime.stage_interface import stages
from tests.medloop.kubeflow import argo
from tests.medloop.kubeflow.argo import Task, Workflow, compiled, workflow
from tests.medloop.test_cli import medloop

pytestmark = pytest.mark.timeout(argo.BUILD_SECONDS)

CLUSTER = """
all:
  image_pull_secrets: [registry]
train:
  cpu: 500m
  cpu_limit: 4
  memory: 8Gi
  accelerators: 2
  shared_memory: 2Gi
  node_selector: {pool: gpu}
  tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
  spot: true
  retries: 3
  backoff: 1m
  backoff_factor: 3
  timeout: 1h
  user: 1234
  group: 5678
  image_pull_policy: Always
  labels: {team: radiology}
  annotations: {note: a}
  environment: {LEVEL: info}
  secrets: {EXTRA: other/token, MAYBE: "other/more?"}
  secret_files: {/etc/authority: "authority?"}
  volumes: {/cache: claim}
"""
ASKED = {"source": "s3://scans", "store": "s3://store"}


def compile_package(folder: Path, *arguments: str) -> Path:
    output = folder / "retrain.yaml"
    images = ("--images", "registry.example/ml:1.2.3", "--no-pin")
    medloop(folder, "compile", "--output", str(output), *images, *arguments)
    return output


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settled")
    (folder / "cluster.yaml").write_text(CLUSTER)
    return compile_package(folder, "--cluster", str(folder / "cluster.yaml"))


@pytest.fixture(scope="module")
def settled(package: Path) -> Workflow:
    """The retraining pipeline, placed by a cluster file that sets all there is for one stage."""
    return workflow(package, **ASKED)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The retraining pipeline with nothing but the defaults."""
    return workflow(compile_package(tmp_path_factory.mktemp("shipped")), **ASKED)


@pytest.fixture(scope="module")
def train(settled: Workflow) -> Task:
    return settled.pod("train")


@pytest.fixture(scope="module")
def plain(settled: Workflow) -> Task:
    """A stage without settings of its own: what train has and this has not came from train's settings."""
    return settled.pod("split")


def test_resources_and_accelerators(train: Task, plain: Task) -> None:
    assert train.limits == {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "2"}
    assert train.requests == {"cpu": "500m", "memory": "8Gi"}
    assert "nvidia.com/gpu" not in plain.limits


def test_training_on_a_node_that_has_a_gpu_asks_for_it_by_name(settled: Workflow, shipped: Workflow) -> None:
    assert (settled.pod("train").inputs["device"], shipped.pod("train").inputs["device"]) == ("cuda", "auto")


def test_scheduling(train: Task, plain: Task) -> None:
    assert train.node_selector == {"pool": "gpu"}
    assert train.tolerations[0] == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    spot = [toleration["key"] for toleration in train.tolerations[1:]]
    assert "karpenter.sh/capacity-type" in spot
    assert "cloud.google.com/gke-spot" in spot
    assert (plain.node_selector, plain.tolerations) == ({}, [])


def test_retries_with_back_off(train: Task, plain: Task, settled: Workflow) -> None:
    assert train.retry["limit"] == "3"
    assert {name: train.retry["backoff"][name] for name in ("duration", "factor")} == {"duration": "60", "factor": "3"}
    # tasks with retries share a template, and each keeps its own numbers
    assert plain.retry["limit"] == "2"
    assert settled.pod("deploy").retry["limit"] == "1"


def test_the_back_off_s_factor_is_a_whole_number(shipped: Workflow) -> None:
    # Argo reads nothing else there, and says so only at the first retry
    assert [task.name for task in shipped.tasks.values() if not task.retry["backoff"]["factor"].isdigit()] == []


def test_the_time_for_all_attempts_covers_each_of_them(shipped: Workflow) -> None:
    short = [
        task.name
        for task in shipped.tasks.values()
        if int(task.retry["backoff"]["maxDuration"]) < (int(task.retry["limit"]) + 1) * (task.deadline or 0)
    ]
    assert short == []


def test_time_limit(train: Task, shipped: Workflow) -> None:
    assert train.deadline == 3600
    assert [task.name for task in shipped.tasks.values() if not task.deadline] == []


def test_shared_memory_and_claims(train: Task, plain: Task) -> None:
    assert train.mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert train.mounts["/cache"]["persistentVolumeClaim"]["claimName"] == "claim"
    assert {"/dev/shm", "/cache"} & set(plain.mounts) == set()


def test_secrets_come_as_environment_and_files_and_nowhere_else(train: Task, plain: Task) -> None:
    assert train.secrets["EXTRA"] == ("other", "token", False)
    assert train.secrets["MAYBE"] == ("other", "more", True)
    assert (
        train.secrets["MEDLOOP_HASH_KEY"] == plain.secrets["MEDLOOP_HASH_KEY"] == ("medloop", "MEDLOOP_HASH_KEY", True)
    )
    assert train.mounts["/etc/authority"]["secret"] == {"secretName": "authority", "optional": True}
    assert train.env["LEVEL"] == "info"
    assert {"EXTRA", "LEVEL"} & {*plain.secrets, *plain.env} == set()


def test_a_step_knows_its_run_by_its_pod_s_label(shipped: Workflow) -> None:
    for task in shipped.tasks.values():
        assert task.fields["MEDLOOP_RUN"] == "metadata.labels['pipeline/runid']"
        assert task.labels["pipeline/runid"] == argo.RUN


def test_security_context(train: Task, shipped: Workflow) -> None:
    assert {name: train.security[name] for name in ("runAsUser", "runAsGroup")} == {
        "runAsUser": 1234,
        "runAsGroup": 5678,
    }
    for task in shipped.tasks.values():
        assert task.security["runAsNonRoot"] is True
        assert task.security["runAsUser"] == 10001
        # KFP's own part
        assert task.security["allowPrivilegeEscalation"] is False
        assert task.security["capabilities"] == {"drop": ["ALL"]}


def test_images_and_how_they_are_pulled(settled: Workflow, train: Task, plain: Task) -> None:
    for task in settled.tasks.values():
        assert task.image == f"registry.example/ml/medloop-{task.stage}:1.2.3"
    assert train.pull_secrets == plain.pull_secrets == ["registry"]
    assert (train.pull_policy, plain.pull_policy) == ("Always", "")


def test_labels_and_annotations(train: Task, plain: Task) -> None:
    assert train.labels["team"] == "radiology"
    assert train.annotations["note"] == "a"
    assert "team" not in plain.labels


def test_caching_is_left_to_work_keys(settled: Workflow, shipped: Workflow) -> None:
    assert [task.name for made in (settled, shipped) for task in made.tasks.values() if task.caching] == []


def test_each_stage_stands_in_the_workflow(shipped: Workflow) -> None:
    assert {task.stage for task in shipped.tasks.values()} == set(stages())
    assert len(shipped.stage("evaluate")) == 2


def test_a_model_is_deployed_on_one_branch_and_refused_on_the_others(shipped: Workflow) -> None:
    (deploy,) = shipped.stage("deploy")
    refused = [task.path for task in shipped.stage("reject")]
    assert len({tuple(path) for path in [deploy.path, *refused]}) == 3


def test_the_run_s_parameters_reach_the_stages(package: Path) -> None:
    made = workflow(package, **ASKED, epochs=7, train_options={"weight_decay": 0.05})
    assert made.pod("train").inputs["epochs"] == 7
    assert made.pod("train").inputs["options"] == {"weight_decay": 0.05}
    assert made.pod("ingest").inputs["source"] == "s3://scans"
    assert {task.inputs["store"] for task in made.tasks.values()} == {"s3://store"}


def test_a_run_without_a_required_parameter_is_refused(package: Path) -> None:
    done = compiled(package, store="s3://store")
    assert done.returncode == 1
    assert "parameter source is not optional" in done.stderr


def test_a_setting_that_the_server_does_not_know_is_refused(package: Path, tmp_path: Path) -> None:
    spec, platform = yaml.safe_load_all(package.read_text())
    platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]["soon"] = True
    newer = tmp_path / "newer.yaml"
    newer.write_text(yaml.safe_dump_all([spec, platform]))
    done = compiled(newer, **ASKED)
    assert done.returncode == 1
    assert 'unknown field "soon"' in done.stderr
