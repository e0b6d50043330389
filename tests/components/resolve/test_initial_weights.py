"""The weights that a training begins with come into the store from wherever they lie, or a sentence says why not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from components.resolve import initial_weights
from components.shared.storage.store import Store, open_store
from tests.components.shared import servers

CONTENT = b"weights of a network" * 100


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trained elsewhere" / "models" / "model.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return path


def test_a_path_and_a_bundles_directory_and_a_file_address_lead_to_the_same(store: Store, file: Path) -> None:
    digest = initial_weights.store_weights(str(file), store)
    assert store.get(digest) == CONTENT
    assert initial_weights.store_weights(str(file.parent.parent), store) == digest
    assert initial_weights.store_weights(file.as_uri(), store) == digest
    file.unlink()
    assert initial_weights.store_weights(digest, store) == digest, "what was kept before is named by its digest"


def test_weights_in_a_bucket(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.rclone(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        folder = tmp_path / "s3" / servers.BUCKET / "nets"
        folder.mkdir()
        (folder / "resnet18.pth").write_bytes(CONTENT)
        (folder / "bundle" / "models").mkdir(parents=True)
        (folder / "bundle" / "models" / "model.pt").write_bytes(CONTENT)
        digest = initial_weights.store_weights(f"s3://{servers.BUCKET}/nets/resnet18.pth", store)
        assert store.get(digest) == CONTENT
        assert initial_weights.store_weights(f"s3://{servers.BUCKET}/nets/bundle", store) == digest
        with pytest.raises(FileNotFoundError, match=r"There are no weights at s3://.*/nets/resnet19\.pth\. Check"):
            initial_weights.store_weights(f"s3://{servers.BUCKET}/nets/resnet19.pth", store)


@pytest.fixture
def served() -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/resnet18.pth"
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(CONTENT) if known else 0))
            self.end_headers()
            if known:
                self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_weights_on_a_server(store: Store, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = initial_weights.store_weights(f"{served}/resnet18.pth", store)
    assert store.get(digest) == CONTENT
    with pytest.raises(OSError, match=r"/other\.pth: the server returned status 404"):
        initial_weights.store_weights(f"{served}/other.pth", store)
    monkeypatch.setattr(initial_weights, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="have more than the maximum of 1,000 bytes"):
        initial_weights.store_weights(f"{served}/resnet18.pth", store)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("nowhere/model.pt", r"There are no weights at nowhere/model\.pt\. Give the path"),
        ("ftp://there/model.pt", r"weights is ftp://there/model\.pt, but the scheme ftp is not supported"),
        ("https://me:secret@there/model.pt", r"an address at there that contains credentials, but parameters"),
        ("https://there/model.pt?X-Amz-Signature=1", r"an address at there that contains credentials"),
        ("0" * 64, r"weights is the digest 000000000000, but the store"),
    ],
)
def test_what_leads_nowhere_is_told(address: str, sentence: str, store: Store) -> None:
    with pytest.raises((ValueError, OSError), match=sentence):
        initial_weights.store_weights(address, store)


@pytest.mark.slow
def test_a_server_that_is_not_there_is_told(store: Store) -> None:
    with pytest.raises(OSError, match=r"\(MaxRetryError\)\. Check the address"):
        initial_weights.store_weights(f"http://127.0.0.1:{servers.free_port()}/model.pt", store)


def test_a_file_too_large_is_told(store: Store, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial_weights, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"have 2,000 bytes; the maximum is 1,000"):
        initial_weights.store_weights(str(file), store)
