"""The store in a bucket survives what networks and servers do, and explains what it cannot survive."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from minio.credentials import StaticProvider
from minio.minioadmin import MinioAdmin

from components.shared.contracts import digest
from components.shared.ledger import release_log
from components.shared.storage import s3
from components.shared.storage.store import Store, open_store
from tests.components.shared.faults import KINDS, Answer, Faults, faulty
from tests.components.shared.servers import (
    BUCKET,
    KEY,
    SECRET,
    S3Server,
    certified,
    free_port,
    make_bucket,
    minio,
    moto,
    rclone,
    speaking,
)

Kind = Callable[[Path], AbstractContextManager[S3Server]]
ALWAYS = 10  # tries
WORKERS, ROUNDS = 6, 100


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture
def faults(behind: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Faults]:
    """A proxy before a server that keeps If-None-Match, an environment that leads to it, keys that can be renewed."""
    with faulty(behind) as (server, made):
        lead_to(server, monkeypatch, tmp_path)
        yield made


@pytest.fixture
def store(faults: Faults, tmp_path: Path) -> Store:
    return quick(tmp_path)


def lead_to(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that leads to the server, with the keys in a file."""
    file = tmp_path / "credentials"
    file.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_REGION", server.region)


def quick(tmp_path: Path, prefix: str = "", pause: float = 0.001, patience: float = 60.0) -> Store:
    """The store of this test, that waits hardly between tries."""
    prefix = prefix or tmp_path.name
    backend = s3.connect(BUCKET, prefix, pause=pause, patience=patience)
    return Store(f"s3://{BUCKET}/{prefix}", backend, tmp_path / "cache")


# One fault at a time: each operation gives what it gives without it.


@pytest.mark.slow
@pytest.mark.parametrize("fault", KINDS)
def test_every_operation_survives_every_fault(fault: str, store: Store, faults: Faults, tmp_path: Path) -> None:
    def meets(operation: str) -> None:
        if not KINDS[fault] or operation in KINDS[fault]:
            faults.force(operation, fault, fault)

    meets("has")
    meets("put")
    blob = store.put_bytes(b"some content" * 999)
    meets("has")
    assert store.has(blob.digest)
    meets("get")
    assert store.get(blob.digest) == b"some content" * 999
    meets("put")
    store.write("runs/1.json", b"a record")
    meets("create")
    store.create("releases/1.json", b"created once")
    meets("create")
    with pytest.raises(FileExistsError):
        store.create("releases/1.json", b"another")
    meets("get")
    meets("get")
    assert store.read("releases/1.json") == b"created once"
    meets("list")
    assert store.names("runs") == ["runs/1.json"]
    meets("delete")
    store.delete("runs/1.json")
    assert store.read("runs/1.json") is None
    assert faults.total >= 2, "the faults were injected"


def test_a_record_created_with_a_lost_answer_has_still_one_winner(store: Store, faults: Faults) -> None:
    faults.force("create", "reset after")
    store.create("releases/1.json", b"same words")
    # The same words of another writer, whose first try never arrived, do not make it the winner.
    faults.force("create", "reset before")
    with pytest.raises(FileExistsError):
        store.create("releases/1.json", b"same words")
    assert faults.injected == {("reset after", "create"): 1, ("reset before", "create"): 1}


def test_two_writers_that_meet_are_told_who_won(store: Store, faults: Faults) -> None:
    faults.force("create", Answer(409, "ConditionalRequestConflict", "Another request is in progress."))
    store.create("releases/1.json", b"x")
    assert store.read("releases/1.json") == b"x"


def test_a_download_goes_on_where_it_was_cut(store: Store, faults: Faults, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(400_000)
    blob = store.put_bytes(content)
    faults.force("get", "cut", "cut")
    assert store.get(blob.digest) == content
    ranges = [headers.get("Range") for _, operation, headers in faults.seen if operation == "get"]
    assert ranges == [None, "bytes=200000-", "bytes=300000-"]


def test_an_object_cut_in_the_store_is_written_anew(store: Store) -> None:
    content = b"whole" * 100
    store.write(f"objects/{digest(content)[:2]}/{digest(content)}", content[:100])
    assert store.get(store.put_bytes(content).digest) == content


def test_a_body_that_hardly_moves_is_asked_for_again(faults: Faults, tmp_path: Path) -> None:
    store = quick(tmp_path, patience=0.5)
    store.write("runs/1.json", b"quick" * 10)
    faults.drip = 0.3
    faults.force("get", "slow")
    assert store.read("runs/1.json") == b"quick" * 10
    assert faults.requests["get"] == 2


def test_a_server_that_says_nothing_is_asked_again(faults: Faults, tmp_path: Path) -> None:
    store = quick(tmp_path, patience=0.5)
    store.write("runs/1.json", b"quick" * 10)
    faults.drip = 2.0
    faults.force("get", "slow")
    assert store.read("runs/1.json") == b"quick" * 10
    assert faults.requests["get"] == 2


@pytest.mark.slow
def test_the_pause_that_a_server_asks_for_is_kept(store: Store, faults: Faults) -> None:
    faults.force("get", Answer(503, "SlowDown", headers={"Retry-After": "1"}))
    assert store.read("runs/1.json") is None
    (first, *_), (second, *_) = faults.seen
    assert second - first >= 1


@pytest.mark.slow
def test_long_lists_come_whole_page_by_page(store: Store, faults: Faults, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = [f"work/{number:04d}" for number in range(1100)]
        list(pool.map(lambda name: store.write(name, b"x"), names))
    faults.force("list", "cut", "503", "cut, no length")
    faults.force("list", "", "cut, no length", "reset after")
    assert store.names("work") == names


@pytest.mark.slow
def test_big_files_go_in_parts_that_are_sent_again_alone(store: Store, faults: Faults, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(random.Random(2).randbytes(2 * s3.PART + 1000))
    faults.force("begin", "503")
    faults.force("part", "cut upload", "reset after", "503", "reset before")
    faults.force("complete", "cut, no length")
    blob = store.put_file(file)
    assert faults.requests["part"] == 3 + 4, "each part, and each fault"
    assert open_store(store.uri).fetch(blob.digest).read_bytes() == file.read_bytes()


def test_parts_that_were_joined_with_a_lost_answer_are_found(store: Store, faults: Faults, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(random.Random(3).randbytes(s3.PART + 1))
    faults.force("complete", "reset after")
    blob = store.put_file(file)
    assert faults.requests["begin"] == 1, "it was not sent twice"
    assert open_store(store.uri).fetch(blob.digest).read_bytes() == file.read_bytes()


def test_an_error_after_a_200_is_one(store: Store, faults: Faults, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(random.Random(4).randbytes(s3.PART + 1))
    faults.force("complete", Answer(200, "InternalError"))
    blob = store.put_file(file)
    assert faults.requests["complete"] == 2
    assert store.has(blob.digest)


def test_a_record_that_is_not_what_was_written_is_refused(store: Store, faults: Faults) -> None:
    store.write("runs/1.json", b"a whole record")
    faults.force("get", *["cut record"] * ALWAYS)
    with pytest.raises(ConnectionError, match=r"runs/1.json does not match its checksum \(7 bytes arrived\)"):
        store.read("runs/1.json")


def test_a_list_that_is_always_cut_is_no_empty_list(store: Store, faults: Faults) -> None:
    faults.force("list", *["cut, no length"] * ALWAYS)
    with pytest.raises(ConnectionError, match=r"not complete XML.*not its console"):
        store.names("runs")


# What does not pass is said at once, with what to do.


def test_a_busy_server_is_called_that(store: Store, faults: Faults) -> None:
    faults.force("any", *["503"] * ALWAYS)
    with pytest.raises(ConnectionError, match=r"on all 10 attempts: SlowDown, Please reduce.*wait, or check"):
        store.read("runs/1.json")
    assert faults.requests["get"] == ALWAYS


def test_a_server_that_is_not_there_is_called_that(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    store = quick(tmp_path)
    for what, arguments in (("read", ("name",)), ("create", ("name", b"x"))):
        with pytest.raises(ConnectionError, match=r"127.0.0.1:\d+ did not respond.*refused.*Check the endpoint"):
            getattr(store, what)(*arguments)


@pytest.mark.parametrize(
    ("operation", "act", "named"),
    [
        ("get", lambda store: store.read("x"), "read"),
        ("put", lambda store: store.write("x", b""), "write"),
        ("create", lambda store: store.create("x", b""), "write"),
        ("list", lambda store: store.names("x"), "list"),
        ("delete", lambda store: store.delete("x"), "delete"),
        ("any", lambda store: store.has("0" * 64), "read"),
    ],
)
def test_missing_rights_are_named(
    operation: str, act: Callable[[Store], None], named: str, store: Store, faults: Faults
) -> None:
    refusal = Answer(403, "AccessDenied", "Access Denied.")
    faults.force(operation, refusal, refusal)
    with pytest.raises(PermissionError, match=rf"may not {named} objects in the bucket 'bucket' at .*docs/storage.md"):
        act(store)
    assert sum(faults.requests.values()) == 1 + (operation == "any"), "it is not tried again"


def test_a_wrong_region_is_named_with_the_right_one(store: Store, faults: Faults) -> None:
    code, words = "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'"
    for answer in (
        Answer(400, code, words, extra="<Region>eu-west-1</Region>"),
        Answer(400, code, words),
        Answer(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}),
    ):
        faults.force("get", answer)
        with pytest.raises(OSError, match=r"bucket' at .* is in the region 'eu-west-1'.*Set AWS_REGION=eu-west-1"):
            store.read("x")


def test_minio_names_its_region_and_refuses_wrong_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with minio(tmp_path / "server", "eu-west-1") as server:
        lead_to(server, monkeypatch, tmp_path)
        store = quick(tmp_path)
        store.write("runs/1.json", b"x")
        assert not store.has("0" * 64)
        with pytest.raises(OSError, match=r"no bucket 'missing'"):
            Store("", s3.connect("missing", ""), None).write("x", b"")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        for act in (lambda: quick(tmp_path).read("runs/1.json"), lambda: quick(tmp_path).has("0" * 64)):
            with pytest.raises(OSError, match="Set AWS_REGION=eu-west-1"):
                act()
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(PermissionError, match="refused the keys: InvalidAccessKeyId"):
            quick(tmp_path).has("0" * 64)


@pytest.mark.slow
def test_the_rights_that_the_docs_list_suffice_and_each_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "storage.md").read_text()
    policy = json.loads(page.partition("```json\n")[2].partition("```")[0])
    with minio(tmp_path / "server") as server:
        make_bucket(server, "models")
        person = MinioAdmin(
            endpoint=urlsplit(server.endpoint).netloc, credentials=StaticProvider(KEY, SECRET), secure=False
        )
        person.user_add("loop", "loops-secret")
        person.policy_add("rights", policy=policy)
        person.policy_set("rights", "loop")
        lead_to(server, monkeypatch, tmp_path)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "loop")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "loops-secret")
        store = Store("s3://models/chest", s3.connect("models", "chest"), tmp_path / "cache")
        file = tmp_path / "file"
        file.write_bytes(random.Random(5).randbytes(s3.PART + 1))
        assert store.creates_once()
        assert store.fetch(store.put_file(file).digest).read_bytes() == file.read_bytes()
        assert not store.has("0" * 64)
        store.write("runs/1.json", b"x")
        assert store.names("runs") == ["runs/1.json"]
        store.delete("runs/1.json")
        with pytest.raises(PermissionError, match=r"may not write objects in the bucket 'models'.*docs/storage.md"):
            Store("", s3.connect("models", "hand"), None).write("x", b"x")
        policy["Statement"] = policy["Statement"][:1]
        policy["Statement"][0]["Action"] = ["s3:PutObject"]
        person.policy_add("rights", policy=policy)
        for what, named in (("read", "read"), ("delete", "delete"), ("names", "list")):
            with pytest.raises(PermissionError, match=rf"may not {named} objects in the bucket 'models'"):
                getattr(store, what)("runs/1.json")
        with pytest.raises(PermissionError, match="may not read objects in the bucket 'models'"):
            store.has("0" * 64)


def test_a_full_server_is_called_that(store: Store, faults: Faults) -> None:
    faults.force("put", Answer(507, "XMinioStorageFull", "Storage backend has reached its minimum free drive."))
    with pytest.raises(OSError, match=r"is full: XMinioStorageFull.*Free some space"):
        store.write("x", b"")


# Clocks.


@pytest.mark.parametrize("ahead", [-3600 * 5, 3600 * 24 * 40])
def test_requests_are_dated_by_the_servers_clock_where_this_one_is_off(
    ahead: float, store: Store, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    faults.clock = ahead
    with caplog.at_level(logging.WARNING):
        store.write("runs/1.json", b"x")
        assert store.has(store.put_bytes(b"y").digest)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"this machine's clock is {'5.0 hours ahead of' if ahead < 0 else '40 days behind'} the store's" in said
    assert "set the clock (with NTP)" in said
    skew = store.skew()
    assert skew is not None
    assert abs(skew + ahead) < 60


def test_a_clock_that_cannot_be_allowed_for_is_told_by_how_much(store: Store, faults: Faults) -> None:
    faults.clock = 22 * 60
    faults.force("get", *["skewed"] * ALWAYS)
    with pytest.raises(PermissionError, match=r"clock is 2[12] minutes behind the store's.*Set this machine's clock"):
        store.read("x")


# Keys.


def test_keys_that_expired_are_read_again_from_their_file(
    store: Store, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.read("x") is None
    file = tmp_path / "credentials"
    file.write_text(f"[default]\naws_access_key_id = newer\naws_secret_access_key = {SECRET}\n")
    faults.force("get", "expired")
    assert store.read("x") is None
    used = [headers["authorization"].partition("Credential=")[2].split("/")[0] for headers in lower(faults)]
    assert used[0] == KEY
    assert used[-1] == "newer"


def lower(faults: Faults) -> list[dict[str, str]]:
    """The headers of the requests that were seen, with names in small letters."""
    return [{name.lower(): value for name, value in headers.items()} for _, _, headers in faults.seen]


def test_keys_that_expired_in_the_environment_are_called_that(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "short-lived")
    store = quick(tmp_path)
    assert not store.has("0" * 64)
    faults.force("any", "expired", "expired")
    with pytest.raises(PermissionError, match=r"have expired.*come from AWS_ACCESS_KEY_ID.*AWS_SESSION_TOKEN"):
        store.has("0" * 64)
    assert {headers["x-amz-security-token"] for headers in lower(faults)} == {"short-lived"}


def test_keys_whose_file_gives_no_new_ones_are_called_that(store: Store, faults: Faults, tmp_path: Path) -> None:
    faults.force("get", *["expired"] * ALWAYS)
    with pytest.raises(PermissionError, match=r"have expired.*'default' in .*credentials.*renew them there"):
        store.read("x")


# The environment.


def test_the_profile_chooses_the_keys(faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "credentials").open("a") as file:
        file.write("[ward]\naws_access_key_id = wards\naws_secret_access_key = x\naws_session_token = token\n")
    monkeypatch.setenv("AWS_PROFILE", "ward")
    assert quick(tmp_path).read("x") is None
    assert "Credential=wards/" in lower(faults)[-1]["authorization"]
    assert lower(faults)[-1]["x-amz-security-token"] == "token"
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(PermissionError, match=r"No keys for the store: the profile 'other' in .*docs/storage.md"):
        quick(tmp_path).read("x")


def test_half_of_the_keys_is_none(faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    with pytest.raises(PermissionError, match="No keys for the store: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        quick(tmp_path).read("x")


def test_no_keys_at_all_is_said(faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").unlink()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PermissionError, match=r"No keys for the store: the environment.*Set AWS_ACCESS_KEY_ID"):
        quick(tmp_path).read("x")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(PermissionError, match="No keys for the store: the machine's role"):
        quick(tmp_path).read("x")


def test_a_container_is_given_keys_and_given_them_again_when_they_expired(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").unlink()
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    keys = {"AccessKeyId": KEY, "SecretAccessKey": SECRET, "Token": "of-the-role", "Expiration": until}
    with speaking(json.dumps(keys)) as (address, asked):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{address}keys")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let-me")
        store = quick(tmp_path)
        assert store.read("x") is None
        assert store.read("x") is None
        faults.force("get", "expired")
        assert store.read("x") is None
    assert asked == ["GET /keys", "GET /keys"]
    assert {headers["x-amz-security-token"] for headers in lower(faults)} == {"of-the-role"}


def test_a_web_identity_is_exchanged_for_keys(faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("a-secret-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/medloop")
    monkeypatch.setenv("AWS_ROLE_SESSION_NAME", "a-session")
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    keys = f"<AccessKeyId>{KEY}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>"
    keys += f"<SessionToken>of-the-role</SessionToken><Expiration>{until}</Expiration>"
    answer = "AssumeRoleWithWebIdentityRes"
    space = "https://sts.amazonaws.com/doc/2011-06-15/"
    words = (
        f'<{answer}ponse xmlns="{space}"><{answer}ult><Credentials>{keys}</Credentials></{answer}ult></{answer}ponse>'
    )
    with speaking(words) as (address, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", address)
        store = quick(tmp_path)
        store.write("runs/1.json", b"x")
        faults.force("get", "expired")
        assert store.read("runs/1.json") == b"x"
    assert len(asked) == 2
    for words in ("POST /", "a-secret-token", "role%2Fmedloop", "a-session", "AssumeRoleWithWebIdentity"):
        assert words in asked[0]
    assert {headers["x-amz-security-token"] for headers in lower(faults)} == {"of-the-role"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://{faults.upstream}/")  # it answers, and gives no keys
    with pytest.raises(PermissionError, match="No keys for the store: the web identity") as refusal:
        quick(tmp_path).read("x")
    assert "a-secret-token" not in str(refusal.value)
    (tmp_path / "token").unlink()
    with pytest.raises(PermissionError, match="No keys for the store: the web identity"):
        quick(tmp_path).read("x")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("AWS_ENDPOINT_URL", "localhost:9000", "must have http:// or https:// and a host"),
        ("AWS_ENDPOINT_URL_S3", "ftp://host", "AWS_ENDPOINT_URL_S3 is 'ftp://host'; it must have"),
        ("AWS_ENDPOINT_URL", "http://host/bucket", "Write http://host, and the bucket in MEDLOOP_STORE"),
        ("AWS_ENDPOINT_URL", "http://key:word@host", "contains more than a server. Write http://host,"),
        ("AWS_ENDPOINT_URL", "http://host:x", "its port is invalid"),
        ("AWS_S3_ADDRESSING_STYLE", "host", "must be auto, path or virtual"),
        ("AWS_CA_BUNDLE", "/no/such/file", "there is no such file"),
        ("AWS_REGION", "no region!", "invalid region"),
    ],
)
def test_a_setting_that_is_none_is_refused(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=sentence):
        open_store(f"s3://{BUCKET}")


def test_a_bucket_name_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bucket is 'My_Bucket'.*Check MEDLOOP_STORE"):
        open_store("s3://My_Bucket/prefix")


@pytest.mark.parametrize(
    ("endpoint", "style", "begins"),
    [
        ("http://s3.hospital.example:9000", "", "http://s3.hospital.example:9000/bucket/"),
        ("http://s3.hospital.example:9000", "virtual", "http://bucket.s3.hospital.example:9000/"),
        ("", "", "https://bucket.s3.eu-west-1.amazonaws.com/"),
        ("", "path", "https://s3.eu-west-1.amazonaws.com/bucket/"),
    ],
)
def test_the_bucket_stands_in_the_path_or_in_the_host(
    endpoint: str, style: str, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "eu-west-1", "AWS_S3_ADDRESSING_STYLE": style}
    for name, value in {**settings, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    assert s3.connect(BUCKET, "").client.presigned_get_object(BUCKET, "name").startswith(f"{begins}name?")


def test_the_environment_names_the_region_in_two_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1")
    monkeypatch.delenv("AWS_REGION", raising=False)
    assert s3.connect(BUCKET, "").client.region == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert s3.connect(BUCKET, "").client.region == "eu-central-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert s3.connect(BUCKET, "").client.region == "eu-west-1"


def test_the_authority_that_signed_the_servers_certificate_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, certificate, key = certified(tmp_path)
    with rclone(tmp_path / "server", "--cert", str(certificate), "--key", str(key)) as server:
        lead_to(server, monkeypatch, tmp_path)
        with pytest.raises(ConnectionError, match=r"certificate of https://.* is not trusted .*Set AWS_CA_BUNDLE"):
            quick(tmp_path).read("x")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        store = quick(tmp_path)
        assert store.get(store.put_bytes(b"in secret").digest) == b"in secret"
        store.create("releases/1.json", b"x")
        assert store.read("releases/1.json") == b"x"


def test_a_server_without_tls_is_called_that(faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{faults.upstream}")
    with pytest.raises(ConnectionError, match=r"does not use TLS\. Write http:// in AWS_ENDPOINT_URL"):
        quick(tmp_path).read("x")


# Many faults.


@pytest.mark.slow
@pytest.mark.parametrize("kind", [moto, minio])
def test_a_thousand_faults_lose_and_damage_nothing(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with kind(tmp_path / "server") as server, faulty(server, rate=0.2, seed=4) as (broken, faults):
        lead_to(broken, monkeypatch, tmp_path)
        store = quick(tmp_path, "many")
        won: dict[str, list[int]] = {}

        def work(worker: int) -> dict[str, bytes]:
            draw = random.Random(worker)
            kept: dict[str, bytes] = {}
            for number in range(ROUNDS):
                content = draw.randbytes(draw.choice((0, 10, 3_000, 200_000)))
                blob = store.put_bytes(content)
                kept[blob.digest] = content
                assert store.has(blob.digest)
                assert store.get(blob.digest) == content
                mine = f"runs/{worker}/{number}.json"
                store.write(mine, content[:5_000])
                assert store.read(mine) == content[:5_000]
                contested = f"releases/{number}.json"
                try:
                    store.create(contested, b"same words" if number % 2 else str(worker).encode())
                    won.setdefault(contested, []).append(worker)
                except FileExistsError:
                    pass
                if number % 3 == 0:
                    store.delete(mine)
                    assert store.read(mine) is None
                if number % 2 == 0:
                    there = [f"runs/{worker}/{n}.json" for n in range(number + 1) if n % 3]
                    assert store.names(f"runs/{worker}") == sorted(there)
            return kept

        with ThreadPoolExecutor(WORKERS) as pool:
            kept = {name: content for made in pool.map(work, range(WORKERS)) for name, content in made.items()}
        assert faults.total >= 1000, faults.injected
        assert {fault for fault, _ in faults.injected} == set(KINDS)
        hit = {operation for _, operation in faults.injected}
        assert hit >= {"put", "get", "has", "list", "create", "delete"}

        lead_to(server, monkeypatch, tmp_path)
        store = Store(store.uri, s3.connect(BUCKET, "many"), tmp_path / "another-cache")
        assert sorted(store.names("objects")) == sorted(f"objects/{name[:2]}/{name}" for name in kept)
        for name, content in kept.items():
            assert store.get(name) == content
        assert {name: len(winners) for name, winners in won.items()} == {
            f"releases/{number}.json": 1 for number in range(ROUNDS)
        }
        for number in range(0, ROUNDS, 2):
            (winner,) = won[f"releases/{number}.json"]
            assert store.read(f"releases/{number}.json") == str(winner).encode()
    assert [record.message for record in caplog.records if record.name.startswith(("urllib3", "minio"))] == []


@pytest.mark.slow
def test_a_server_that_cuts_what_it_keeps_is_made_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with rclone(tmp_path / "server") as server, faulty(server, rate=0.2, seed=5) as (broken, faults):
        lead_to(broken, monkeypatch, tmp_path)
        store = quick(tmp_path, "many")
        contents = [random.Random(number).randbytes(number * 997) for number in range(60)]
        with ThreadPoolExecutor(4) as pool:
            blobs = list(pool.map(store.put_bytes, contents))
        assert [store.get(blob.digest) for blob in blobs] == contents
        assert faults.total >= 20
    for blob, content in zip(blobs, contents, strict=True):
        kept = server.folder / BUCKET / "many" / "objects" / blob.digest[:2] / blob.digest
        assert kept.read_bytes() == content


def test_folder_markers_and_large_records_are_told_apart_from_entries(store: Store) -> None:
    store.write("releases/", b"")  # as consoles make it, so that a folder is shown
    store.write("releases/.DS_Store", b"x")
    first = release_log.append(store, [], "seal", reason="a test", by="someone")
    assert release_log.read_log(store) == [first]
    assert release_log.foreign_names(store) == ["releases/", "releases/.DS_Store"]
    store.write("releases/00000002.json", b" " * (release_log.ENTRY_BYTES + 1))
    with pytest.raises(ValueError, match=r"broken at releases/00000002\.json: .* is larger than 1,048,576 bytes"):
        release_log.read_log(store)
