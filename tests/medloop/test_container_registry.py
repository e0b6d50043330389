"""Images are pinned by the digest that their registry names, with the log-in that Docker has for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.shared.runtime.stage_interface import stages
from tests.components.shared.servers import free_port
from tests.medloop.oci_registry import BASIC, PASSWORD, Registry, oci_registry
from tests.medloop.test_cli import medloop
from workflows.container_registry import digest, pin
from workflows.image_names import choose


@pytest.fixture(autouse=True)
def _no_login_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture
def registry() -> Iterator[Registry]:
    with oci_registry() as server:
        yield server


def log_in(folder: Path, registry: Registry, **other: object) -> None:
    (folder / "docker").mkdir(exist_ok=True)
    config = {"auths": {registry.address: {"auth": BASIC.removeprefix("Basic ")}}, **other}
    (folder / "docker" / "config.json").write_text(json.dumps(config))


def test_a_tag_becomes_the_digest_that_it_names_now(registry: Registry) -> None:
    first = registry.push("team/medloop-train:1.0", "one")
    name = f"{registry.address}/team/medloop-train"
    assert digest(f"{name}:1.0") == f"{name}@{first}"
    second = registry.push("team/medloop-train:1.0", "two")
    assert digest(f"{name}:1.0") == f"{name}@{second}" != f"{name}@{first}"
    latest = registry.push("team/medloop-train:latest", "three")
    assert digest(name) == f"{name}@{latest}"


def test_what_is_pinned_stays_and_nobody_is_asked(registry: Registry) -> None:
    name = f"{registry.address}/x@sha256:{'a' * 64}"
    assert pin({"train": name}) == {"train": name}
    assert registry.requests == []


def test_a_registry_that_names_no_digest_is_believed_by_its_bytes(registry: Registry) -> None:
    registry.names_digests = False
    held = registry.push("x:1", "one")
    assert digest(f"{registry.address}/x:1").endswith(held)


@pytest.mark.parametrize("login", ["anonymous", "token", "basic"])
def test_a_login_of_docker_is_used_where_one_is_wanted(login: str, registry: Registry, tmp_path: Path) -> None:
    registry.login = login  # type: ignore[assignment]
    held = registry.push("x:1", "one")
    if login != "anonymous":
        with pytest.raises(PermissionError, match=f"docker login {registry.address}") as refused:
            digest(f"{registry.address}/x:1")
        assert f"{registry.address}/x:1" in str(refused.value)
        log_in(tmp_path, registry)
    assert digest(f"{registry.address}/x:1").endswith(held)


def test_a_wrong_login_is_refused_without_showing_it(registry: Registry, tmp_path: Path) -> None:
    registry.login = "token"
    log_in(tmp_path, registry)
    registry.forbidden = True
    with pytest.raises(PermissionError, match="does not let you read") as refused:
        digest(f"{registry.address}/x:1")
    assert PASSWORD not in str(refused.value)
    assert BASIC.split()[1] not in str(refused.value)


def test_a_helper_for_logins_that_is_not_there_is_named(registry: Registry, tmp_path: Path) -> None:
    held = registry.push("x:1", "one")
    log_in(tmp_path, registry, credsStore="nowhere-to-be-found")
    assert digest(f"{registry.address}/x:1").endswith(held)  # as long as no log-in is wanted
    registry.login = "token"
    with pytest.raises(PermissionError, match="credsStore"):
        digest(f"{registry.address}/x:1")


def test_a_token_service_that_is_none_counts_as_no_login(registry: Registry) -> None:
    registry.login, registry.broken_grants = "anonymous", True
    with pytest.raises(PermissionError, match="docker login"):
        digest(f"{registry.address}/x:1")


def test_an_image_that_is_not_there_is_named(registry: Registry) -> None:
    with pytest.raises(FileNotFoundError, match=r"The image .*/x:2 is not in its registry\. Push it with"):
        digest(f"{registry.address}/x:2")


def test_a_registry_in_trouble_or_not_there(registry: Registry) -> None:
    registry.failing = 1
    with pytest.raises(OSError, match=f"{registry.address} returned 500 for"):
        digest(f"{registry.address}/x:1")
    nobody = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match="Connection refused") as refused:
        digest(f"{nobody}/x:1")
    assert f"{nobody}/x:1" in str(refused.value)
    assert "--no-pin" in str(refused.value)


@pytest.mark.parametrize(
    ("where", "train"),
    [
        ("", "medloop-train:latest"),
        ("registry.example/m:1.0", "registry.example/m/medloop-train:1.0"),
        ("registry.example/m/", "registry.example/m/medloop-train:latest"),
        ("127.0.0.1:5000", "127.0.0.1:5000/medloop-train:latest"),
        ("127.0.0.1:5000/m:2", "127.0.0.1:5000/m/medloop-train:2"),
        ("localhost:5000/", "localhost:5000/medloop-train:latest"),
        ("team:7", "team/medloop-train:7"),
    ],
)
def test_where_the_images_are(where: str, train: str) -> None:
    assert choose(where, [])["train"] == train


@pytest.mark.parametrize(
    ("brought", "words"),
    [
        ("train", "write stage=image"),
        ("train=", "write stage=image"),
        ("trian=x:1", "Did you mean 'train'?"),
        ("train=UPPER/x", "lower case"),
        ("train=x:1@sha256:abc", "not a valid image name"),
        ("train=x y", "not a valid image name"),
    ],
)
def test_names_that_are_none(brought: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        choose("", [brought])
    assert brought.partition("=")[0] in str(refused.value) or brought.partition("=")[2] in str(refused.value)


@pytest.mark.slow
def test_a_package_holds_each_image_by_its_digest_and_equals_itself(registry: Registry, tmp_path: Path) -> None:
    held = {stage: registry.push(f"m/medloop-{stage}:1.0", stage) for stage in stages()}
    own = registry.push("ours/net:3", "own")
    arguments = ("--images", f"{registry.address}/m:1.0", "--image", f"train={registry.address}/ours/net:3")
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    for output in (one, two):
        medloop(tmp_path, "compile", "--output", str(output), *arguments)
    assert one.read_bytes() == two.read_bytes()
    spec = next(yaml.safe_load_all(one.read_text()))
    images = {
        name.removeprefix("exec-"): each["container"] for name, each in spec["deploymentSpec"]["executors"].items()
    }
    assert images["gate"]["image"] == f"{registry.address}/m/medloop-gate@{held['gate']}"
    assert images["evaluate-2"]["image"] == f"{registry.address}/m/medloop-evaluate@{held['evaluate']}"
    assert images["train"]["image"] == f"{registry.address}/ours/net@{own}"
    told = {each["name"]: each.get("value") for each in images["train"]["env"]}
    assert told["MEDLOOP_IMAGE"] == images["train"]["image"]

    registry.images.clear()
    done = medloop(tmp_path, "compile", "--output", str(one), *arguments, status=1)
    assert "Push it with" in done.stderr
    before = len(registry.requests)
    medloop(tmp_path, "compile", "--output", str(one), *arguments, "--no-pin")
    assert f"{registry.address}/m/medloop-gate:1.0" in one.read_text()
    assert len(registry.requests) == before


@pytest.mark.slow
def test_images_of_this_machine_are_left_with_a_word(tmp_path: Path) -> None:
    output = tmp_path / "p.yaml"
    done = medloop(tmp_path, "compile", "--output", str(output), "--image", "train=mine:1")
    assert "10 images (medloop-deploy:latest, …) without a registry cannot be pinned by digest" in done.stderr
    assert "image: mine:1" in output.read_text()
