"""`medloop storage init` makes a bucket ready on real servers, says what it did, and leaves alone what is of others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from tests.components.shared.faults import Answer, faulty
from tests.components.shared.servers import BUCKET, S3Server, client, minio, moto, rclone

ROOT = Path(__file__).resolve().parents[2]
Kind = Callable[[Path], AbstractContextManager[S3Server]]
PARTS = ["bucket", "versions", "encryption", "rule broken-uploads", "rule old-versions", "rule probes"]


@pytest.fixture(scope="module", params=[moto, minio])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with request.param(tmp_path_factory.mktemp("server") / "data") as running:
        yield running


def medloop(server: S3Server, store: str, *arguments: str, status: int = 0, **settings: str) -> str:
    """What the command prints, and says of what is wrong; it must end with this status and leak no warning."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MEDLOOP_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "medloop.cli.main", *arguments],
        env={**inherited, **server.environment, "MEDLOOP_STORE": store, "COLUMNS": "160", **settings},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + (done.stderr if "--json" not in arguments else "")


def states(server: S3Server, store: str, *arguments: str, status: int = 0) -> dict[str, str]:
    """The state of each item, as `storage init --json` says it."""
    said = json.loads(medloop(server, store, "storage", "init", "--json", *arguments, status=status))
    return {item["part"]: item["state"] for item in said["items"]}


def parts(server: S3Server) -> list[str]:
    """What there is to do on this server: MinIO removes broken uploads by itself."""
    is_minio = client(server)._execute("GET", BUCKET).headers.get("Server") == "MinIO"
    return [part for part in PARTS if not (is_minio and part == "rule broken-uploads")]


@pytest.mark.slow
def test_a_bucket_is_made_and_set_up_once(server: S3Server) -> None:
    store = "s3://made-by-init/loop"
    plain = client(server)
    assert set(states(server, store, "--dry-run").values()) == {"will be"}
    assert not plain.bucket_exists("made-by-init"), "a dry run changes nothing"
    first = states(server, store)
    assert set(first) >= set(parts(server))
    assert set(first.values()) == {"done"}
    assert plain.get_bucket_versioning("made-by-init").status == "Enabled"
    encryption = plain.get_bucket_encryption("made-by-init")
    assert encryption is not None
    assert encryption.rule.sse_algorithm == "AES256"
    rules = plain.get_bucket_lifecycle("made-by-init").rules
    assert {rule.rule_id: rule.rule_filter.prefix for rule in rules} == {
        f"medloop-{part.removeprefix('rule ')}-loop": "loop/probe/" if part == "rule probes" else "loop/"
        for part in parts(server)
        if part.startswith("rule")
    }
    assert [rule.rule_id for rule in rules if rule.expiration] == ["medloop-probes-loop"], "nothing in use expires"
    assert set(states(server, store).values()) == {"is"}
    assert set(states(server, store, "--dry-run").values()) == {"is"}
    said = medloop(server, store, "storage", "init")
    assert "✓ set  versions" in said
    assert "noncurrent versions are deleted after 90 days below loop/" in said


@pytest.mark.slow
def test_rules_of_others_and_of_other_prefixes_stay(server: S3Server) -> None:
    plain = client(server)
    plain.make_bucket("shared")
    others = Rule(ENABLED, rule_filter=Filter(prefix="logs/"), rule_id="theirs", expiration=Expiration(days=30))
    plain.set_bucket_lifecycle("shared", LifecycleConfig([others]))
    states(server, "s3://shared/chest")
    states(server, "s3://shared/hand/left")
    states(server, "s3://shared/hand-left")
    assert set(states(server, "s3://shared/hand/left").values()) == {"is"}, "each prefix has rules of its own"
    rules = {rule.rule_id: rule for rule in plain.get_bucket_lifecycle("shared").rules}
    names = [part.removeprefix("rule ") for part in parts(server) if part.startswith("rule")]
    assert set(rules) == {
        "theirs",
        *(f"medloop-{name}-{prefix}" for name in names for prefix in ("chest", "hand%2Fleft", "hand-left")),
    }
    assert rules["theirs"].expiration.days == 30
    assert rules["theirs"].rule_filter.prefix == "logs/"


@pytest.mark.slow
def test_a_rule_of_ours_that_was_changed_is_set_right(server: S3Server) -> None:
    plain = client(server)
    plain.make_bucket("changed")
    states(server, "s3://changed/loop")
    wrong = Rule(ENABLED, rule_filter=Filter(prefix=""), rule_id="medloop-probes-loop", expiration=Expiration(days=1))
    plain.set_bucket_lifecycle("changed", LifecycleConfig([wrong]))
    assert states(server, "s3://changed/loop", "--dry-run")["rule probes"] == "will be"
    assert states(server, "s3://changed/loop")["rule probes"] == "done"
    (rule,) = [rule for rule in plain.get_bucket_lifecycle("changed").rules if rule.rule_id == "medloop-probes-loop"]
    assert rule.rule_filter.prefix == "loop/probe/"


@pytest.mark.slow
def test_a_store_without_a_prefix_has_the_bucket_to_itself(server: S3Server) -> None:
    assert set(states(server, "s3://whole-bucket").values()) == {"done"}
    assert set(states(server, "s3://whole-bucket").values()) == {"is"}


@pytest.mark.slow
def test_a_server_that_cannot_is_told_item_by_item(tmp_path: Path) -> None:
    with rclone(tmp_path / "server") as server:
        first = states(server, "s3://made-by-init/loop", status=1)
        assert first == {part: "done" if part == "bucket" else "cannot" for part in PARTS}
        assert states(server, "s3://made-by-init/loop", status=1)["bucket"] == "is"
        assert "The server does not support this setting." in medloop(
            server, "s3://made-by-init", "storage", "init", status=1
        )


@pytest.mark.slow
def test_keys_without_the_right_are_told_so(tmp_path: Path) -> None:
    with moto(tmp_path) as server, faulty(server) as (proxied, faults):
        faults.force("get", Answer(403, "AccessDenied"))
        said = medloop(proxied, f"s3://{BUCKET}", "storage", "init", status=1)
        assert "✗ failed   versions" in said
        assert "The access key lacks the permission; docs/storage.md lists" in said
        assert "✓ changed  encryption" in said
        faults.force("list", Answer(403, "AccessDenied"))
        said = medloop(proxied, f"s3://{BUCKET}", "storage", "init", status=1)
        assert f"medloop: The keys may not list objects in the bucket '{BUCKET}'" in said


@pytest.mark.slow
def test_a_directory_needs_nothing(tmp_path: Path) -> None:
    server = S3Server("", tmp_path)
    said = medloop(server, str(tmp_path / "store"), "storage", "init")
    assert said == f"The store {tmp_path / 'store'} is a directory and needs no setup; the first run creates it.\n"
    assert json.loads(medloop(server, str(tmp_path / "store"), "storage", "init", "--json"))["items"] == []


# What the doctor says of a store in a bucket.


def findings(server: S3Server, store: str, tmp_path: Path, status: int = 1) -> dict[str, dict[str, str]]:
    said = json.loads(medloop(server, store, "doctor", "--json", status=status, MEDLOOP_HOME=str(tmp_path / "home")))
    return {finding["part"]: finding for finding in said if finding["part"].startswith("store")}


@pytest.mark.slow
def test_the_doctor_looks_at_every_operation_and_the_clock(server: S3Server, tmp_path: Path) -> None:
    found = findings(server, f"s3://{BUCKET}/doctor", tmp_path, status=0)
    assert {part: finding["state"] for part, finding in found.items()} == {
        "store": "ok",
        "store, clock": "ok",
        "store, create once": "ok",
    }


@pytest.mark.slow
def test_the_doctor_names_a_missing_bucket_and_what_to_do(server: S3Server, tmp_path: Path) -> None:
    found = findings(server, "s3://no-such-bucket/doctor", tmp_path)["store"]
    assert found["state"] == "problem"
    assert found["means"] == f"There is no bucket 'no-such-bucket' at {server.endpoint} (NoSuchBucket)"
    assert found["remedy"].startswith("Create it with `medloop storage init`")


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "state"), [(90, "note"), (-600, "problem"), (86400, "problem")])
def test_the_doctor_tells_by_how_much_the_clock_is_off(seconds: int, state: str, tmp_path: Path) -> None:
    with moto(tmp_path) as server, faulty(server) as (proxied, faults):
        faults.clock = seconds
        found = findings(proxied, f"s3://{BUCKET}/x", tmp_path, status=int(state == "problem"))
    assert found["store"]["state"] == "ok"
    assert found["store, clock"]["state"] == state
    assert f"{'behind' if seconds > 0 else 'ahead of'} the store's" in found["store, clock"]["means"]
    assert "NTP" in found["store, clock"]["remedy"]


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "named"), [("put", "write"), ("list", "list"), ("delete", "delete")])
def test_the_doctor_names_the_right_that_is_missing(operation: str, named: str, tmp_path: Path) -> None:
    with moto(tmp_path) as server, faulty(server) as (proxied, faults):
        faults.force(operation, Answer(403, "AccessDenied", "Access Denied."))
        found = findings(proxied, f"s3://{BUCKET}/x", tmp_path)["store"]
    assert found["state"] == "problem"
    assert found["means"].startswith(f"The keys may not {named} objects in the bucket '{BUCKET}'")
    assert "docs/storage.md" in found["remedy"]


@pytest.mark.slow
def test_the_doctor_says_that_rclone_overwrites(tmp_path: Path) -> None:
    with rclone(tmp_path / "server") as server:
        found = findings(server, f"s3://{BUCKET}/x", tmp_path)
    assert found["store"]["state"] == "ok"
    assert found["store, create once"]["state"] == "problem"
    assert f" at {server.endpoint}" in found["store, create once"]["means"]
    assert "docs/storage.md" in found["store, create once"]["remedy"]
