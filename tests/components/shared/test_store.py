"""The store keeps its promises in a directory and on a real S3 server alike."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

from components.shared.contracts import digest
from components.shared.storage.store import Store, open_store
from tests.components.shared.faults import racing
from tests.components.shared.servers import BUCKET, S3Server, client, free_port, minio, moto, rclone

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone(tmp_path_factory.mktemp("rclone")) as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The server, with an environment that leads to it."""
    for name, value in {**server.environment, "MEDLOOP_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("s3")
    return open_store(f"s3://{BUCKET}/{tmp_path.name}")


def place_of(store: Store, name: str, request: pytest.FixtureRequest) -> Path:
    """The file in which the store keeps what it calls so."""
    if not store.uri.startswith("s3://"):
        return Path(store.uri) / name
    server: S3Server = request.getfixturevalue("server")
    return server.folder / store.uri.removeprefix("s3://") / name


def object_name(content: bytes) -> str:
    return f"objects/{digest(content)[:2]}/{digest(content)}"


def damage(path: Path, content: bytes = b"damaged") -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def in_a_process(code: str, warnings: str = "error") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", warnings, "-c", textwrap.dedent(code)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_bytes_and_files_come_back_as_they_went_in(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"of a file")
    kept = [store.put_bytes(b"of bytes"), store.put_file(file), store.put_bytes(b"")]
    assert [(blob.digest, blob.size) for blob in kept] == [
        (digest(c), len(c)) for c in (b"of bytes", b"of a file", b"")
    ]
    assert [store.get(blob.digest) for blob in kept] == [b"of bytes", b"of a file", b""]
    assert all(store.has(blob.digest) for blob in kept)


def test_another_process_finds_the_same_objects(store: Store) -> None:
    blob = store.put_bytes(b"shared")
    assert open_store(store.uri).get(blob.digest) == b"shared"


def test_many_objects_come_in_the_order_in_which_they_were_asked_for(store: Store) -> None:
    contents = [f"content {number}".encode() for number in range(40)]
    blobs = [store.put_bytes(content) for content in contents]
    assert [path.read_bytes() for path in store.fetch_all(blob.digest for blob in blobs)] == contents


def test_a_kept_object_is_not_written_again(store: Store, request: pytest.FixtureRequest) -> None:
    store.put_bytes(b"once")
    place = place_of(store, object_name(b"once"), request)
    os.utime(place, ns=(10**18, 10**18))
    store.put_bytes(b"once")
    assert place.stat().st_mtime_ns == 10**18


def test_a_fetched_object_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    assert store.fetch(store.put_bytes(b"safe").digest).stat().st_mode & 0o222 == 0


def test_a_damaged_object_is_refused_by_name(store: Store, request: pytest.FixtureRequest) -> None:
    blob = store.put_bytes(b"whole")
    damage(place_of(store, object_name(b"whole"), request))
    with pytest.raises(OSError, match=f"{blob.digest[:12]}.*(damaged|changed)"):
        open_store(store.uri).get(blob.digest)


def test_a_damaged_copy_in_the_cache_is_fetched_again(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{BUCKET}/{tmp_path.name}"
    blob = open_store(uri).put_bytes(b"whole")
    cached = open_store(uri).fetch(blob.digest)
    assert cached.is_relative_to(tmp_path / "cache")
    damage(cached)
    assert open_store(uri).get(blob.digest) == b"whole"


def test_a_cached_object_needs_no_server(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{BUCKET}/{tmp_path.name}"
    blob = open_store(uri).put_bytes(b"near")
    open_store(uri).fetch(blob.digest)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert open_store(uri).get(blob.digest) == b"near"


def test_others_do_not_see_what_the_cache_holds(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "machine" / "cache"
    monkeypatch.setenv("MEDLOOP_CACHE", str(cache))
    store = open_store(f"s3://{BUCKET}/seen")
    store.get(store.put_bytes(b"a scan").digest)
    assert cache.stat().st_mode & 0o077 == 0


def test_a_password_in_the_address_is_refused_unshown() -> None:
    with pytest.raises(ValueError, match="contains a user or a password") as refused:
        open_store("s3://me:geheim@bucket/prefix")
    assert "geheim" not in str(refused.value)


def test_a_missing_object_is_named_with_what_to_do(store: Store) -> None:
    assert not store.has("0" * 64)
    with pytest.raises(FileNotFoundError, match=r"object 000000000000 is not in .*run again"):
        store.get("0" * 64)


def test_records_are_read_replaced_and_deleted(store: Store) -> None:
    assert store.read("runs/1.json") is None
    store.write("runs/1.json", b"one")
    store.write("runs/1.json", b"two")
    assert store.read("runs/1.json") == b"two"
    store.delete("runs/1.json")
    store.delete("runs/1.json")
    assert store.read("runs/1.json") is None


def test_names_are_those_below_the_prefix_in_order(store: Store) -> None:
    for name in ("runs/2/b.json", "runs/10.json", "runs/1.json", "runs2/3.json", "other"):
        store.write(name, b"x")
    assert store.names("runs") == ["runs/1.json", "runs/10.json", "runs/2/b.json"]
    assert store.names("nothing") == []


def test_a_record_is_created_once_in_a_directory(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.create("releases/1", b"first")
    for data in (b"second", b"first"):
        with pytest.raises(FileExistsError):
            store.create("releases/1", data)
    assert store.read("releases/1") == b"first"


def test_of_processes_that_race_for_a_record_one_wins(tmp_path: Path) -> None:
    code = f"""
        import sys
        from components.shared.storage.store import open_store
        store = open_store({str(tmp_path)!r})
        me = sys.stdin.readline().strip()
        print("ready", flush=True)
        sys.stdin.readline()
        won = []
        for number in range(200):
            try:
                store.create(f"race/{{number:03d}}", me.encode())
                won.append(number)
            except FileExistsError:
                pass
        print(won)
    """
    racers = [in_a_process(code) for _ in range(2)]
    for name, racer in zip("ab", racers, strict=True):
        assert racer.stdin is not None
        assert racer.stdout is not None
        racer.stdin.write(f"{name}\n")
        racer.stdin.flush()
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = []
    for racer in racers:
        out, err = racer.communicate()
        assert racer.returncode == 0, err
        won.append(set(map(int, filter(None, out.strip(" []\n").split(", ")))))
    assert won[0] | won[1] == set(range(200))
    assert not won[0] & won[1]
    store = open_store(str(tmp_path))
    assert {n for n in range(200) if store.read(f"race/{n:03d}") == b"a"} == won[0]


def test_a_directory_creates_once_and_rclone_does_not(store: Store) -> None:
    assert store.creates_once() is not store.uri.startswith("s3://")
    assert store.names("probe") == []


@pytest.mark.slow
@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("kind", [moto, minio, racing])
def test_concurrent_writers_show_whether_a_server_creates_once(
    kind: Callable[[Path], AbstractContextManager[S3Server]],
    versioned: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with kind(tmp_path / "server") as server:
        if versioned:
            client(server).set_bucket_versioning(BUCKET, VersioningConfig(ENABLED))
        for name, value in {**server.environment, "MEDLOOP_CACHE": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        store = open_store(f"s3://{BUCKET}/prefix")
        assert store.creates_once() is not (kind is racing)
        assert [*client(server).list_objects(BUCKET, recursive=True, include_version=True)] == []
        store.create("once", b"first")
        for data in (b"second", b"first"):
            with pytest.raises(FileExistsError):
                store.create("once", data)
        assert store.read("once") == b"first"


@pytest.mark.parametrize("what", ["read", "has", "write", "create", "names", "delete", "get", "put_file"])
def test_wrong_keys_are_called_that(what: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(f"s3://{BUCKET}/wrong")
    arguments = {"write": (b"x",), "create": (b"x",)}.get(what, ())
    name = {"put_file": Path(__file__), "get": "0" * 64, "has": "0" * 64}.get(what, "name")
    with pytest.raises(PermissionError, match=r"refused the keys.*AWS_SECRET_ACCESS_KEY"):
        getattr(store, what)(name, *arguments)


@pytest.mark.parametrize("what", ["read", "write", "create", "names", "put_bytes"])
def test_a_missing_bucket_is_called_that(what: str, s3: S3Server) -> None:
    store = open_store("s3://no-such-bucket/prefix")
    arguments = {"write": ("name", b"x"), "create": ("name", b"x"), "put_bytes": (b"x",)}.get(what, ("name",))
    with pytest.raises(OSError, match=r"no bucket 'no-such-bucket' at .*medloop storage init.*MEDLOOP_STORE"):
        getattr(store, what)(*arguments)


@pytest.mark.parametrize("uri", ["", "ftp://host/x", "s3://", "s3:///prefix", "s3://b/a?x", "s3://b/a#x"])
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="The store's address is"):
        open_store(uri)


WRITES = """
    import sys
    from components.shared.storage.store import open_store
    store = open_store({root!r})
    for write in (lambda: store.put_bytes(b"x" * 3_000_000), lambda: store.create("r/1", b"x" * 3_000_000)):
        try:
            write()
        except OSError as error:
            print(type(error).__name__, error)
        else:
            sys.exit("it was written")
    try:
        print(store.creates_once())
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_a_store_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lies where another user cannot reach it
        Path(folder).chmod(0o755)
        root = Path(folder) / "store"
        open_store(str(root)).write("there/before", b"x")
        everything = [root, *root.rglob("*")]
        for path in everything:
            path.chmod(0o555)
        # Permissions do not bind root: the process becomes nobody after it has loaded what root alone may read.
        become = "import os, components.shared.storage.store\nif os.getuid() == 0: os.setuid(65534)\n"
        command = [sys.executable, "-c", become + textwrap.dedent(WRITES.format(root=str(root)))]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        for path in everything:
            path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    sentences = done.stdout.splitlines()
    assert len(sentences) == 3
    for sentence in sentences:
        assert sentence.startswith("PermissionError")
        assert f"The store {root} cannot be written" in sentence
        assert "MEDLOOP_STORE" in sentence


def test_a_full_store_says_so_and_keeps_no_half_object(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    mount = f"mount -t tmpfs -o size=1m none {root}"
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no small file system can be mounted here: {tried.stderr.strip()}")
    run = '"$@"; status=$?; find "$0" -type f; exit $status'
    writes = [sys.executable, "-c", textwrap.dedent(WRITES.format(root=str(root)))]
    command = ["unshare", "-rm", "sh", "-c", f"{mount} && {run}", str(root), *writes]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, *rest = done.stdout.splitlines()
    for sentence in (first, second):
        assert sentence.startswith("OSError")
        assert f"The store {root} is full. Free space" in sentence
    assert rest == ["True"], "small records still fit, and nothing else is left"


def test_a_root_that_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="cannot be written"):
        open_store(str(tmp_path / "file")).create("name", b"x")


def test_a_writer_that_is_killed_leaves_no_half_object(tmp_path: Path) -> None:
    code = f"""
        from components.shared.storage.store import open_store
        store = open_store({str(tmp_path)!r})
        number = 0
        while True:
            number += 1
            store.put_bytes(str(number).encode() * 200_000)
            store.write("runs/1", str(number).encode() * 200_000)
    """
    for _ in range(3):
        with in_a_process(code) as writer:
            before = len([*tmp_path.rglob("objects/*/*")])
            deadline = time.monotonic() + 30
            while len([*tmp_path.rglob("objects/*/*")]) < before + 5:
                assert time.monotonic() < deadline
                assert writer.poll() is None
                time.sleep(0.01)
            writer.send_signal(signal.SIGKILL)
        objects = [*tmp_path.rglob("objects/*/*")]
        assert all(digest(path.read_bytes()) == path.name for path in objects)
        record = (tmp_path / "runs" / "1").read_bytes()
        assert record == record[: len(record) // 200_000] * 200_000
        for path in objects:
            path.unlink()  # so that the next writer has something to do


def test_only_a_regular_file_is_read_and_nothing_is_waited_for(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    folder = tmp_path / "store" / "releases"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "00000001.json")
    (folder / "00000002.json").symlink_to("/dev/zero")
    (folder / "00000003.json").mkdir()
    (folder / "00000004.json").write_bytes(b"x" * 100)
    (folder / "00000005.json").symlink_to(folder / "00000004.json")
    for number, kind in ((1, "a FIFO"), (2, "a device"), (3, "a directory")):
        with pytest.raises(ValueError, match=rf"0000000{number}\.json is {kind}; it must be a file"):
            store.read(f"releases/0000000{number}.json", 1000)
    with pytest.raises(ValueError, match="is larger than 99 bytes"):
        store.read("releases/00000004.json", 99)
    assert store.read("releases/00000005.json", 100) == b"x" * 100
    assert len(store.numbered("releases")) == 5


def test_numbered_records_stand_in_the_order_of_their_numbers_and_foreign_names_are_left_out(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    ours = ["a/9998.json", "a/9999.json", "a/10000.json"]
    for name in (
        *ours,
        "a/0000.json",
        "a/00010000.json",
        "a/+9999.json",
        "a/.DS_Store",
        "a/b/0001.json",
        "a/９９９９.json",
    ):
        store.write(name, b"")
    assert store.numbered("a", 4) == ours


def test_an_object_that_is_a_fifo_is_missing_and_one_that_changes_is_verified_again(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    blob = store.put_bytes(b"sound")
    path = store.fetch(blob.digest)
    path.chmod(0o644)
    path.write_bytes(b"other")
    with pytest.raises(OSError, match="does not match its digest"):
        store.fetch(blob.digest)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match="is not in"):
        store.fetch(blob.digest)


def modes(root: Path) -> dict[str, set[int]]:
    """The permissions that folders and files of a directory have."""
    found = [root, *root.rglob("*")]
    return {
        what: {path.stat().st_mode & 0o7777 for path in found if path.is_dir() is (what == "folders")}
        for what in ("folders", "files")
    }


def fill(store: Store) -> None:
    store.put_bytes(b"a scan")
    store.write("views/one.json", b"1")
    store.create("releases/00000001.json", b"1")
    with store.making() as path:
        path.write_bytes(b"a shard")
        store.put_file(path)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_store_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        fill(open_store(str(tmp_path / "store")))
    finally:
        os.umask(before)
    assert modes(tmp_path / "store") == {"folders": {0o700}, "files": {0o400}}


@pytest.mark.parametrize(
    ("root", "folders", "files"), [(0o2770, 0o2770, 0o440), (0o770, 0o770, 0o440), (0o2750, 0o2750, 0o440)]
)
def test_a_store_that_its_owner_opened_to_a_group_stays_open_to_it(
    tmp_path: Path, root: int, folders: int, files: int
) -> None:
    place = tmp_path / "store"
    place.mkdir()
    place.chmod(root)
    fill(open_store(str(place)))
    assert modes(place) == {"folders": {folders}, "files": {files}}


@pytest.mark.parametrize("root", [0o755, 0o775, 0o777])
def test_a_store_that_an_earlier_version_left_open_is_closed_when_it_is_opened(tmp_path: Path, root: int) -> None:
    place = tmp_path / "store"
    (place / "objects").mkdir(parents=True)
    place.chmod(root)
    open_store(str(place))
    assert place.stat().st_mode & 0o7777 == 0o700
    (tmp_path / "scans").mkdir(mode=0o755)
    (tmp_path / "scans").chmod(0o755)
    open_store(str(tmp_path / "scans"))  # no store: a slip in an address must not close somebody's folder
    assert (tmp_path / "scans").stat().st_mode & 0o777 == 0o755
