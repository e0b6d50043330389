"""What an artifact names stays in its folder, whoever wrote the manifest."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from components.shared import contracts
from components.shared.contracts import Blob, Manifest
from components.shared.parsing import safe_names
from components.shared.storage.artifacts import gather, lay_out
from components.shared.storage.store import Store, open_store

HOSTILE: tuple[str, ...] = (
    "..",
    ".",
    "",
    "/",
    "//etc",
    "a\\..\\b",
    "C:",
    "C:\\x",
    "\0",
    "a\0b",
    "nul",
    "COM1.txt",
    "x ",
    " x",
    "x.",
)
HOSTILE += ("a\nb", "\u202ex", "\ud800", "a" * 300, "/".join("d" * 40), "sub/../../x", "./x", "x/./y", "x//y", "x/")


def hostile_names(count: int, seed: int = 7) -> list[str]:
    """So many names, each with something in it that no artifact of medloop has."""
    draw = random.Random(seed)
    plain = ("models", "configs", "x", "é", "model.onnx")
    made: dict[str, None] = {}
    while len(made) < count:
        parts = draw.choices(plain, k=draw.randrange(0, 4))
        parts.insert(draw.randrange(len(parts) + 1), draw.choice(HOSTILE))
        if draw.random() < 0.3:
            parts = [*[".."] * draw.randrange(1, 12), *parts, str(len(made))]
        made.setdefault("/".join(parts))
    return [*made]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def encoded(name: str, blob: Blob) -> bytes:
    """The bytes of a manifest with this name, canonical as far as it can be encoded at all."""
    record = {"kind": "manifest", "schema": 1, "files": {name: {"digest": blob.digest, "size": blob.size}}}
    return (json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def test_two_thousand_hostile_names_put_nothing_outside_of_their_folder(store: Store, tmp_path: Path) -> None:
    blob = store.put_bytes(b"print('from the store')")
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    before = everything_below(tmp_path)
    for name in hostile_names(2000):
        with pytest.raises(ValueError, match=r"refused|is not a JSON"):
            lay_out(store, Manifest.decode(encoded(name, blob), "the model"), folder)
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize("name", ["models/model.onnx", "é/ü.json", "explanations/0001.png", "00001/dataset.json"])
def test_plain_names_are_laid_out_as_they_are(store: Store, tmp_path: Path, name: str) -> None:
    manifest = Manifest({name: store.put_bytes(b"content")})
    lay_out(store, Manifest.decode(manifest.encode(), "the model"), tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == b"content"


@pytest.mark.parametrize("pair", [("a", "a/b"), ("a/b", "A/B"), ("x/y/z", "x/y")])
def test_names_that_would_take_each_others_place_are_refused(store: Store, pair: tuple[str, str]) -> None:
    manifest = Manifest(dict.fromkeys(pair, store.put_bytes(b"")))
    with pytest.raises(ValueError, match="also the name of another file"):
        Manifest.decode(manifest.encode(), "the model")


def test_more_files_than_an_artifact_may_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has 100,001 files; the maximum is 100,000"):
        safe_names.check_names((str(number) for number in range(safe_names.MAX_FILES + 1)), "the model")


@pytest.mark.parametrize("digest", ["../../etc/passwd", "A" * 64, "0" * 63, "", "/etc/passwd"])
def test_what_is_no_digest_names_no_object(store: Store, digest: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        store.get(digest)
    with pytest.raises(ValueError, match="not a valid manifest"):
        Manifest.decode(Manifest({"x": Blob(digest, 1)}).encode(), "the model")


@pytest.mark.parametrize("copy", [True, False])
def test_nothing_is_written_through_a_link_that_was_planted(store: Store, tmp_path: Path, copy: bool) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    folder.mkdir()
    (folder / "models").symlink_to(outside)
    manifest = Manifest({"models/model.onnx": store.put_bytes(b"content")})
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        lay_out(store, manifest, folder, copy)
    assert not any(outside.iterdir())


def test_a_copy_takes_the_place_of_a_link_and_leaves_what_it_led_to(store: Store, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_text("mine")
    folder.mkdir()
    (folder / "file").symlink_to(victim)
    lay_out(store, Manifest({"file": store.put_bytes(b"theirs")}), folder, copy=True)
    assert victim.read_text() == "mine"
    assert (folder / "file").read_text() == "theirs"


def test_a_link_that_leads_out_of_an_output_is_not_gathered(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "hash.key"
    secret.write_text("secret")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.onnx").symlink_to(secret)
    with pytest.raises(ValueError, match="link to a file outside"):
        gather(store, folder)
    assert not store.has(contracts.digest(b"secret"))


def test_inputs_that_were_laid_out_as_links_can_be_handed_on(store: Store, tmp_path: Path) -> None:
    manifest = Manifest({"models/model.onnx": store.put_bytes(b"content")})
    lay_out(store, manifest, tmp_path / "in")
    assert gather(store, tmp_path / "in") == manifest


def test_nothing_is_written_where_a_folder_of_the_store_is_a_link(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    store.write("releases/x.json", b"")
    (tmp_path / "store" / "runs").symlink_to(outside)
    with pytest.raises(PermissionError, match="is a link"):
        store.write("runs/2026.json", b"{}")
    with pytest.raises(ValueError, match="leads out of the store"):
        store.read("work/../../outside/x")
    assert not any(outside.iterdir())
