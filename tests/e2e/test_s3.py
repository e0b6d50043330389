"""The whole loop over S3 storage of which five in a hundred requests fail."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from components.shared.contracts import Manifest, digest
from components.shared.storage.store import open_store
from tests.components.shared.faults import faulty
from tests.components.shared.servers import BUCKET, KEY, SECRET, S3Server, client, minio, moto, rclone
from tests.e2e.loop import QUICK, Place, outputs, states
from tests.medloop.by_hand import ByHand

Kind = Callable[[Path], AbstractContextManager[S3Server]]
RATE = 0.05


def over(server: S3Server, place: Place) -> Place:
    """The place, with its store in the server's bucket and the keys in a file."""
    file = place.home / "credentials"
    file.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    extra = {
        "MEDLOOP_STORE": f"s3://{BUCKET}/loop",
        "MEDLOOP_CACHE": str(place.home / "cache"),
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_REGION": server.region,
        "AWS_SHARED_CREDENTIALS_FILE": str(file),
    }
    return dataclasses.replace(place, extra=extra)


def contents(server: S3Server, prefix: str) -> dict[str, bytes]:
    """What the bucket holds below a prefix, read past the proxy and the store."""
    plain = client(server)
    names = [str(item.object_name) for item in plain.list_objects(BUCKET, prefix, recursive=True)]
    held = {}
    for name in names:
        answer = plain.get_object(BUCKET, name)
        held[name] = answer.read()
        answer.release_conn()
    return held


@pytest.mark.parametrize("kind", [moto, minio])
def test_the_loop_releases_over_a_store_that_fails_now_and_then(kind: Kind, place: Place, tmp_path: Path) -> None:
    with kind(tmp_path / "server") as server, faulty(server, RATE, seed=6) as (broken, faults):
        run = over(broken, place).run()
        assert run["outcome"] == "released"
        requests = sum(faults.requests.values())
        assert requests > 200
        assert faults.total >= requests // 100 * 5, f"of {requests} requests {faults.total} were broken"
        objects = contents(server, "loop/objects/")
        assert len(objects) > 30
        assert [name for name, content in objects.items() if name.rpartition("/")[2] != digest(content)] == []
        assert len(contents(server, "loop/releases/")) == 1
        models = over(server, place).models()
    assert models["in_service"] == "v1"


def test_a_server_that_overwrites_carries_the_loop_to_deploy_which_refuses(place: Place, tmp_path: Path) -> None:
    with rclone(tmp_path / "server") as server, faulty(server, RATE, seed=7) as (broken, faults):
        run = over(broken, place).run(status=1)
        assert run["outcome"] == "failed"
        assert states(run)["gate"] == "finished"
        assert states(run)["deploy"] == "failed"
        assert "support If-None-Match" in str(run)
        assert faults.total >= 5
        objects = contents(server, "loop/objects/")
        assert [name for name, content in objects.items() if name.rpartition("/")[2] != digest(content)] == []
        assert contents(server, "loop/releases/") == {}


def test_scans_in_a_bucket_make_the_run_that_their_directory_makes(place: Place, tmp_path: Path) -> None:
    with moto(tmp_path / "server") as server, faulty(server, RATE, seed=8) as (broken, faults):
        for path in place.scans.rglob("*"):
            if path.is_file():
                name = f"new scans/{path.relative_to(place.scans).as_posix()}"
                client(server).fput_object(BUCKET, name, str(path))
        there = over(broken, place)
        there = dataclasses.replace(there, extra={k: v for k, v in there.extra.items() if k != "MEDLOOP_STORE"})
        address = f"s3://{BUCKET}/new scans"
        run = there.run(source=address)
        assert run["outcome"] == "released"
        assert not (place.home / "hash.key").exists(), "copies of synthetic scans have the public key"
        gets = faults.requests["get"]
        planned = json.loads(there.medloop("plan", "--source", address, *QUICK, "--json").stdout)
        assert {step["stage"]: step["state"] for step in planned}["ingest"] == "reused"
        assert faults.requests["get"] == gets, "to plan, no scan is fetched"
        assert faults.requests["put"] == faults.requests["create"] == 0, "a source is never written"
    # The names of the source differ, and so do the records of the data set; its rows do not.
    _, here = ByHand(place.home).data()
    there_made = open_store(str(place.home / "store")).get(outputs(run, "merge")["dataset"])
    ours, theirs = (Manifest.decode(data, "dataset").files for data in (here["dataset"].read_bytes(), there_made))
    assert ours["index.parquet"].digest == theirs["index.parquet"].digest
