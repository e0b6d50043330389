"""The cluster file: every key, its good and its bad values, how files are merged, and what Kubeflow is asked for."""

# KFP reads annotations that a type checker cannot.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl

from components.shared.runtime.stage_interface import stages
from medloop.kubeflow.cluster_file import SHIPPED, kubernetes_name, read_cluster
from tests.medloop.kubeflow.kfp_checks import read_package
from tests.medloop.test_cli import medloop
from workflows.image_names import choose
from workflows.package import compile_package, defaults_on, oldest_server
from workflows.placement import SPOT_TAINTS, Placement, seconds

GOOD: dict[str, list[Any]] = {
    "cpu": [1, 0.5, "2.5", "500m"],
    "cpu_limit": [4, "1500m"],
    "memory": ["4Gi", "500M", 1073741824, "2Ti", "64Ki", "100K"],
    "accelerator": ["nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.5gb"],
    "accelerators": [0, 1, 3, 8],
    "shared_memory": ["2Gi", "500M", "1.5Gi"],
    "node_selector": [{}, {"cloud.google.com/gke-accelerator": "nvidia-l4"}, {"pool": ""}],
    "tolerations": [
        [],
        [{"key": "gpu", "operator": "Exists"}],
        [{"operator": "Exists"}],
        [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "seconds": 30}],
    ],
    "spot": [True, False],
    "retries": [0, 5],
    "backoff": ["30s", 90, "2m"],
    "backoff_factor": [1, 2, 10],
    "timeout": ["90s", "2h", "1d", 3600, "0"],
    "user": [-1, 10001],
    "group": [-1, 10001],
    "non_root": [True, False],
    "image_pull_policy": ["Always", "IfNotPresent", "Never"],
    "image_pull_secrets": [[], ["registry-login", "other.one"]],
    "labels": [{"team": "radiology", "example.org/cost-centre": "A_1.2"}],
    "annotations": [{"sidecar.istio.io/inject": "false"}],
    "environment": [{"HTTP_PROXY": "http://proxy:3128", "_X1": ""}],
    "secrets": [{"AWS_ACCESS_KEY_ID": "store/key_id", "TOKEN": "a.b/TOKEN?"}],
    "secret_files": [{"/var/run/aws": "store", "/ca": "authority?"}],
    "volumes": [{"/scans": "scans-claim"}],
}

BAD: dict[str, list[tuple[Any, str]]] = {
    "cpu": [("4Gi", "500m"), (-1, "500m"), ("0.5m", "500m"), ("", "500m"), (True, "500m"), ([1], "500m")],
    "cpu_limit": [("four", "500m")],
    "memory": [("4Gb", "4Gi"), ("1.5Gi", "whole number"), ("500m", "4Gi"), ("4 Gi", "4Gi"), (None, "4Gi")],
    "accelerator": [("nvidia gpu", "letters"), ("-x", "letters"), ("Nvidia.com/gpu", "letters"), ("a" * 64, "63")],
    "accelerators": [(-1, "from 0 to 64"), (65, "from 0 to 64"), ("1", "whole number"), (True, "whole number")],
    "shared_memory": [("lots", "quantity")],
    "node_selector": [(["a"], "mapping"), ({"pool": 5}, "quotes"), ({"a b": "c"}, "63"), ({"a": "b c"}, "63")],
    "tolerations": [
        ({"key": "a"}, "list"),
        (["a"], "mapping"),
        ([{}], "mapping"),
        ([{"kay": "a"}], "no key 'kay'"),
        ([{"key": "a", "operator": "Is"}], "Equal, Exists"),
        ([{"key": "a", "effect": "NoWay"}], "NoExecute"),
        ([{"key": "a", "operator": "Exists", "value": "b"}], "must have no value"),
        ([{"operator": "Equal", "value": "b"}], "must be Exists"),
        ([{"key": "a", "value": 1}], "quotes"),
        ([{"key": "a", "effect": "NoExecute", "seconds": True}], "whole number"),
        ([{"key": "a", "effect": "NoSchedule", "seconds": 3}], "only with the effect NoExecute"),
    ],
    "spot": [("yes", "true or false"), (1, "true or false")],
    "retries": [(-1, "from 0 to 100"), (1.5, "whole number"), ("2", "whole number")],
    "backoff": [("soon", "90s"), (-3, "90s"), ("1.5h", "90s"), ("99999999d", "a year"), ("٣h", "90s")],
    "backoff_factor": [(0, "from 1 to 10"), (11, "from 1 to 10"), (2.5, "whole number"), ("2", "whole number")],
    "timeout": [("2 hours", "2h"), (None, "2h"), ("", "2h")],
    "user": [(-2, "from -1"), ("root", "whole number"), (2**31, "to 2147483647")],
    "group": [(2.0, "whole number")],
    "non_root": [("true", "true or false")],
    "image_pull_policy": [("always", "IfNotPresent"), ("Sometimes", "IfNotPresent")],
    "image_pull_secrets": [("login", "list"), (["My Login"], "lower-case letters"), ([True], "lower-case letters")],
    "labels": [
        ({"pipeline/runid": "x"}, "reserved by Kubeflow"),
        ({"team": "a b"}, "63"),
        ({"team": "x" * 64}, "63"),
        ({"team": True}, "quotes"),
        (3, "mapping"),
    ],
    "annotations": [({"a": 1}, "quotes"), ({"a/b/c": "x"}, "slash")],
    "environment": [
        ({"AWS_SECRET_ACCESS_KEY": "x"}, "use `secrets`"),
        ({"MEDLOOP_RUN": "x"}, "medloop sets MEDLOOP_RUN itself"),
        ({"1X": "a"}, "names of environment variables"),
        ({"X": 1}, "quotes"),
        ({"A-B": "c"}, "names"),
    ],
    "secrets": [
        ({"X": "only"}, "secret/key"),
        ({"X": "Big/key"}, "lower-case letters"),
        ({"X": "a/b/c"}, "secret/key"),
    ],
    "secret_files": [
        ({"relative": "x"}, "absolute paths"),
        ({"/x": "Under_score"}, "lower-case letters"),
        ({"/": "x"}, "absolute paths"),
    ],
    "volumes": [({"/a:b": "claim"}, "absolute paths"), ({"/a": "Claim"}, "lower-case letters")],
}


@dsl.container_component
def work():
    return dsl.ContainerSpec(image="registry.example/x:1")


def package_of_one(place: Placement, path: Path) -> str:
    """The package of a single step that is placed so."""

    @dsl.pipeline(name="one-step")
    def one_step() -> None:
        place.apply(work())

    compiler.Compiler().compile(one_step, str(path))
    return path.read_text()


def cluster(folder: Path, content: Any) -> dict[str, Placement]:
    file = folder / "cluster.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return read_cluster(file)


def test_every_key_has_its_good_and_bad_values_here() -> None:
    keys = {each.name for each in dataclasses.fields(Placement)}
    assert GOOD.keys() == BAD.keys() == keys


@pytest.mark.parametrize("key", GOOD)
def test_good_values_are_taken_and_a_server_takes_them_too(key: str, tmp_path: Path) -> None:
    for value in GOOD[key]:
        place = cluster(tmp_path, {"gate": {key: value}})["gate"]
        read_package(package_of_one(place, tmp_path / "one.yaml"))


@pytest.mark.parametrize(("key", "value", "words"), [(k, v, w) for k, cases in BAD.items() for v, w in cases])
def test_a_bad_value_is_named_with_its_place_its_limit_and_what_to_write(
    key: str, value: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"cluster\.yaml: gate\.{key} is ") as refused:
        cluster(tmp_path, {"gate": {key: value}})
    told = str(refused.value)
    assert repr(value) in told
    assert words in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"trian": {"cpu": 1}}, "Did you mean 'train'?"),
        ({"train": {"gpus": 1}}, "there is no such key"),
        ({"train": {"memmory": "1Gi"}}, "Did you mean 'memory'?"),
        ({"train": {5: 1}}, "there is no such key"),
        ({5: {"cpu": 1}}, "there is no stage 5"),
        ({"train": ["cpu"]}, "must contain mappings"),
        (["train"], "must contain mappings"),
        ("train", "must contain mappings"),
        ("train: {cpu: 1", "not valid YAML"),
        ("train:\n\tcpu: 1\n", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("train: {cpu: 1}\ntrain: {accelerators: 1}\n", "'train' occurs more than once"),
        ("all: {timeout: 1:30}", "all.timeout is '1:30'"),
        (
            {"train": {"volumes": {"/dev/shm": "claim"}}},
            "train mounts /dev/shm, which is the path of its shared_memory",
        ),
    ],
)
def test_a_file_that_is_none_is_told(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cluster\.yaml") as refused:
        cluster(tmp_path, content)
    assert words in str(refused.value)


def test_a_file_that_is_not_there_or_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The cluster file .* does not exist"):
        read_cluster(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"all: {labels: {team: caf\xe9}}")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_cluster(tmp_path / "latin.yaml")


def test_what_is_shipped_is_valid_and_whole() -> None:
    shipped = read_cluster(None)
    assert list(shipped) == stages()
    assert shipped["train"].spot
    assert shipped["train"].memory == "16Gi"
    assert all(place.non_root and place.user > 0 and place.timeout for place in shipped.values())
    assert set(yaml.safe_load(SHIPPED.read_text())) <= {"all", *stages()}


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert cluster(tmp_path, "") == cluster(tmp_path, "all:\ntrain:\n") == read_cluster(None)


def test_own_words_go_before_shipped_ones_and_mappings_are_merged(tmp_path: Path) -> None:
    places = cluster(
        tmp_path,
        {
            "all": {"cpu": 1, "secrets": {"AWS_REGION": None, "EXTRA": "mine/key"}, "labels": {"a": "all", "b": "all"}},
            "train": {"labels": {"a": "train"}, "tolerations": [{"operator": "Exists"}]},
            "gate": {"secrets": {"AWS_REGION": "mine/region"}},
        },
    )
    assert places["train"].cpu == places["gate"].cpu == "1"  # the shipped one for train is less near than my `all`
    assert places["train"].memory == "16Gi"
    assert places["train"].labels == {"a": "train", "b": "all"}
    assert places["gate"].labels == {"a": "all", "b": "all"}
    assert "AWS_REGION" not in places["train"].secrets
    assert places["gate"].secrets["AWS_REGION"] == "mine/region"
    assert places["train"].secrets["EXTRA"] == "mine/key"
    assert "AWS_ACCESS_KEY_ID" in places["train"].secrets
    assert places["train"].tolerations == ({"operator": "Exists"},)


def test_a_package_asks_for_all_of_it(tmp_path: Path) -> None:
    places = cluster(
        tmp_path,
        {
            "train": {
                "accelerators": 2, "cpu_limit": 8, "node_selector": {"pool": "gpu"}, "annotations": {"a": "b"},
                "labels": {"c": "d"}, "image_pull_policy": "Always", "image_pull_secrets": ["login"],
                "environment": {"X": "y"}, "secret_files": {"/ca": "authority?"}, "volumes": {"/scans": "claim"},
            }
        },
    )  # fmt: skip
    output = tmp_path / "p.yaml"
    compile_package("retrain", choose("r.example/m:1", []), places, output)
    spec, platform = read_package(output.read_text())
    assert platform is not None
    train = spec["deploymentSpec"]["executors"]["exec-train"]["container"]
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    resources = train["resources"]
    assert resources["accelerator"] == {
        "count": "2",
        "resourceCount": "2",
        "resourceType": "nvidia.com/gpu",
        "type": "nvidia.com/gpu",
    }
    assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == ("4", "8")
    assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == "16Gi"
    assert {"name": "X", "value": "y"} in train["env"]
    task = spec["root"]["dag"]["tasks"]["train"]
    assert task["cachingOptions"] == {}
    assert task["retryPolicy"]["maxRetryCount"] == 5
    assert asked["activeDeadlineSeconds"] == str(48 * 3600)
    assert asked["nodeSelector"] == {"labels": {"pool": "gpu"}}
    assert {each["key"] for each in asked["tolerations"]} == {key for key, _ in SPOT_TAINTS}
    assert asked["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
    assert asked["securityContext"] == {"runAsGroup": "10001", "runAsNonRoot": True, "runAsUser": "10001"}
    assert asked["podMetadata"] == {"annotations": {"a": "b"}, "labels": {"c": "d"}}
    assert asked["imagePullPolicy"] == "Always"
    (run,) = asked["fieldPathAsEnv"]
    assert run == {"name": "MEDLOOP_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}
    assert {each["mountPath"] for each in asked["pvcMount"]} == {"/scans"}
    assert asked["secretAsVolume"][0]["optional"] is True
    keys = {name for each in asked["secretAsEnv"] for name in (pair["envVar"] for pair in each["keyToEnv"])}
    assert {"MEDLOOP_HASH_KEY", "AWS_SECRET_ACCESS_KEY"} <= keys
    assert spec["root"]["inputDefinitions"]["parameters"]["device"]["defaultValue"] == "cuda"
    others = [each for name, each in spec["deploymentSpec"]["executors"].items() if name != "exec-train"]
    assert all("accelerator" not in each["container"]["resources"] for each in others)


def test_the_oldest_server_follows_from_what_is_asked_for() -> None:
    def needs(**asked: Any) -> tuple[int, int]:
        return oldest_server({"train": Placement(**asked)})

    assert needs() == needs(accelerators=1, spot=True, retries=3) == (2, 14)
    assert needs(secrets={"X": "a/b"}) == needs(secret_files={"/x": "a"}) == (2, 15)
    assert needs(user=0) == needs(non_root=True) == needs(group=5, secrets={"X": "a/b"}) == (2, 16)
    assert defaults_on({"train": Placement(accelerators=1)}) == {"device": "cuda"}
    assert defaults_on({"train": Placement()}) == {}


@pytest.mark.parametrize("name", ["a", "a-1", "registry.login", "x" * 63, "0"])
def test_names_that_kubernetes_allows(name: str) -> None:
    assert kubernetes_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a..b", "a.-b", ".a", "a b", "ä", "a/b", "x" * 254])
def test_names_that_kubernetes_does_not_allow(name: str) -> None:
    with pytest.raises(ValueError, match="a valid Kubernetes name"):
        kubernetes_name(name)


def test_durations() -> None:
    assert [seconds(text) for text in ("90", "30s", "10m", "2h", "1d")] == [90, 30, 600, 7200, 86400]


def test_the_command_line_says_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {memory: lots}")
    arguments = ("compile", "--output", str(tmp_path / "p.yaml"))
    done = medloop(tmp_path, *arguments, "--cluster", str(tmp_path / "mine.yaml"), status=2)
    assert "mine.yaml: train.memory is 'lots'" in done.stderr
    done = medloop(tmp_path, *arguments, status=2, MEDLOOP_CLUSTER=str(tmp_path / "none.yaml"))
    assert "The cluster file" in done.stderr
    assert "Did you mean 'retrain'?" in medloop(tmp_path, "compile", "retain", status=2).stderr


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"cpu": 8, "cpu_limit": 2}, "cpu_limit is 2, which is less than cpu"),
        ({"cpu": "500m", "cpu_limit": "250m"}, "cpu_limit is 250m, which is less than cpu"),
        ({"user": 0}, r"user is 0 \(root\), but non_root is true"),
        ({"volumes": {"/tmp": "scans"}}, "/tmp is used by the image"),
        ({"secret_files": {"/medloop": "authority"}}, "/medloop is used by the image"),
    ],
)
def test_what_no_cluster_takes_together_is_refused(place: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cluster.yaml: train: {words}"):
        cluster(tmp_path, {"train": place})


def test_root_is_possible_for_those_who_say_so(tmp_path: Path) -> None:
    assert cluster(tmp_path, {"train": {"user": 0, "non_root": False}})["train"].user == 0
