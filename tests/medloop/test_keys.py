"""The hash key is shown without being told, kept, put back, and rotated; whatever happens, no patient changes sides."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.shared.contracts import SCHEMAS, Manifest
from components.shared.ledger import release_log
from components.shared.privacy import keyed_hash
from components.shared.storage.store import open_store
from medloop.operations.hash_key_rotation import rotate
from medloop.settings import Settings, hash_key, read_settings
from medloop.synth.synth import MARKER, synth
from tests.e2e.loop import ROOT
from tests.medloop.by_hand import ByHand
from tests.medloop.test_cli import medloop

FIRST = keyed_hash.parse("5c" * 32)
OTHER = keyed_hash.parse("a7" * 32)


def begin(home: Path, key: keyed_hash.HashKey = FIRST, patients: int = 24) -> ByHand:
    """A home with its own key, and scans that count as real ones."""
    made = ByHand(home, key=key.text)
    arrive(made, patients)
    (home / "hash.key").write_text(f"{key.text}\n")
    return made


def arrive(made: ByHand, patients: int) -> None:
    """So many patients are there now."""
    marker = made.scans / MARKER
    if kept := made.home / "marker" if (made.home / "marker").exists() else None:
        kept.replace(marker)
    synth(made.scans, patients=patients, classes=2, seed=7, shift=0.0, reports=False)
    marker.replace(made.home / "marker")


def conclude(made: ByHand) -> dict[str, str]:
    """Resolve, ingest, split, and an entry in the log as a refusal writes it; gives each image's side by its name."""
    now, rows = made.data()
    resolved = json.loads(made.store.get(now.outputs["state"].files["resolved.json"].digest))
    log = release_log.read_log(made.store)
    split = Manifest.decode(rows["splits"].read_bytes(), "split").digest
    fields = {"model": "0" * 64, "decision": "0" * 64, "split": split, "by": "test", "sentence": "Refused."}
    release_log.append(made.store, log, "refusal", **fields, **release_log.beginning(resolved))
    return sides(made)


def sides(made: ByHand) -> dict[str, str]:
    """The side and the patient's part in it, by the file's name, as the newest split of the log has it."""
    key = keyed_hash.parse(made.key)
    names = {key.image(path.relative_to(made.scans).as_posix()): path.name for path in made.scans.rglob("*.*")}
    return {names[row["image_id"]]: f"{row['side']} since {row['since']}" for row in table(made, "splits.parquet")}


def table(made: ByHand, name: str) -> list[dict[str, Any]]:
    split = release_log.newest_split(release_log.read_log(made.store))
    digest = Manifest.decode(made.store.get(split), "split").files[name].digest
    rows: list[dict[str, Any]] = pq.read_table(made.store.fetch(digest)).to_pylist()
    return rows


def settings_of(home: Path) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDLOOP_HOME", str(home))
        patch.delenv(keyed_hash.VARIABLE, raising=False)
        return read_settings()


@pytest.fixture(scope="module")
def split_once(tmp_path_factory: pytest.TempPathFactory) -> ByHand:
    """A home whose log names a split; those who change it work on a copy."""
    made = begin(tmp_path_factory.mktemp("loop") / "home")
    conclude(made)
    return made


@pytest.fixture
def loop(split_once: ByHand, tmp_path: Path) -> ByHand:
    return copy_of(split_once, tmp_path / "home")


def copy_of(made: ByHand, home: Path) -> ByHand:
    shutil.copytree(made.home, home, symlinks=True)
    return ByHand(home, key=made.key)


def at_hand(home: Path) -> keyed_hash.HashKey:
    return keyed_hash.parse(hash_key(settings_of(home), str(home / "scans")))


# What a rotation is


@pytest.mark.slow
def test_after_a_rotation_every_image_is_where_it_was_and_new_ones_come_to_it(loop: ByHand) -> None:
    before = sides(loop)
    assert {side.split()[0] for side in before.values()} >= {"train", "val", "test"}
    patients = len(table(loop, "patients.parquet"))
    said = rotate(settings_of(loop.home), "a test")
    new = at_hand(loop.home)
    assert new.extends(FIRST)
    assert len(new.links) == 2
    assert FIRST.id in said
    assert new.id in said
    assert new.text not in said
    assert FIRST.text not in said
    assert (loop.home / f"hash.key.{FIRST.id}").read_text().strip() == FIRST.text
    assert (loop.home / "hash.key").stat().st_mode & 0o777 == 0o600
    assert not (loop.home / "hash.key.next").exists()

    loop.key = new.text
    assert sides(loop) == before
    after = conclude(loop)  # a whole new ingest and split, from the names, under the new key
    assert after == before
    assert len(table(loop, "patients.parquet")) == patients
    arrive(loop, 30)
    grown = conclude(loop)
    assert {name: grown[name] for name in before} == before
    assert len(grown) > len(before)
    seen = {row["image_id"] for row in table(loop, "seen.parquet")}
    assert len(seen) == len(grown)


@pytest.mark.slow
def test_the_log_tells_of_it_and_models_lists_it(loop: ByHand) -> None:
    medloop(loop.home, "keys", "rotate", "--reason", "a laptop was lost")
    new = at_hand(loop.home)
    entry = release_log.read_log(loop.store)[-1]
    assert entry.kind == "rotation"
    assert (entry.record["key_id"], entry.record["key_id_before"]) == (new.id, FIRST.id)
    assert entry.record["split"] != entry.record["split_before"]
    assert new.text not in json.dumps(entry.record)
    told = medloop(loop.home, "models").stdout
    assert "rotation" in told
    assert f"key {new.id}" in told
    assert "a laptop was lost" in told
    with pytest.raises(ValueError, match=f"key is {FIRST.id}, but this store was made with key {new.id}"):
        loop.data()  # whoever still has the old key is told so


def test_whatever_columns_a_split_comes_to_have_are_carried_on(loop: ByHand) -> None:
    import pyarrow as pa

    from components.shared.storage.artifacts import gather, lay_out
    from medloop.operations.hash_key_rotation import rekey

    newest = release_log.newest_split(release_log.read_log(loop.store))
    folder = loop.home / "wider"
    lay_out(loop.store, Manifest.decode(loop.store.get(newest), "split"), folder, copy=True)
    rows = pq.read_table(folder / "splits.parquet").to_pylist()
    wider = [{**row, "near": row["image_id"], "duplicate_of": "", "look": "ff00", "extra": 7} for row in rows]
    pq.write_table(pa.Table.from_pylist(wider), folder / "splits.parquet")
    about = json.loads((folder / "split.json").read_text())
    (folder / "split.json").write_text(json.dumps({**about, "key_id": FIRST.id, "more": [1]}))
    new = FIRST.rotated()
    split = rekey(loop.store, gather(loop.store, folder).digest, FIRST, new)
    files = Manifest.decode(loop.store.get(split), "split").files
    carried = {
        row["image_id"]: row for row in pq.read_table(loop.store.fetch(files["splits.parquet"].digest)).to_pylist()
    }
    for row in wider:
        image = new.rehash("image", row["image_id"], FIRST)
        patient = new.rehash("patient", row["patient_id"], FIRST)
        assert carried[image] == {**row, "image_id": image, "near": image, "patient_id": patient}
    assert list(carried) == sorted(carried)
    before, after = (
        {row["hash"] for row in pq.read_table(path).to_pylist()}
        for path in (folder / "owners.parquet", loop.store.fetch(files["owners.parquet"].digest))
    )
    assert {new.rehash("image", each, FIRST) if len(each) == 32 else each for each in before} == after
    told = json.loads(loop.store.get(files["split.json"].digest))
    assert (told["key_id"], told["more"], told["version"]) == (new.id, [1], about["version"])


@pytest.mark.slow
def test_a_key_from_the_environment_is_rotated_into_a_file(loop: ByHand, tmp_path: Path) -> None:
    (loop.home / "hash.key").unlink()
    refused = medloop(loop.home, "keys", "rotate", "--reason", "why", status=2, MEDLOOP_HASH_KEY=FIRST.text)
    assert "with --to FILE" in refused.stderr
    place = tmp_path / "new.key"

    def turn(status: int) -> subprocess.CompletedProcess[str]:
        asked = ("--reason", "why", "--to", str(place))
        return medloop(loop.home, "keys", "rotate", *asked, status=status, MEDLOOP_HASH_KEY=FIRST.text)

    told = medloop(
        loop.home, "keys", "rotate", "--reason", "why", "--to", str(place), MEDLOOP_HASH_KEY=FIRST.text
    ).stdout
    new = keyed_hash.parse(place.read_text())
    assert new.extends(FIRST)
    assert new.id == release_log.key_id(release_log.read_log(loop.store))
    assert new.text not in told
    assert place.stat().st_mode & 0o777 == 0o600
    entries = len(release_log.read_log(loop.store))
    medloop(
        loop.home, "keys", "rotate", "--reason", "why", "--to", str(place), MEDLOOP_HASH_KEY=FIRST.text
    )  # the answer was lost
    assert len(release_log.read_log(loop.store)) == entries
    assert keyed_hash.parse(place.read_text()) == new
    place.write_text(OTHER.text)
    refused = medloop(
        loop.home, "keys", "rotate", "--reason", "why", "--to", str(place), status=1, MEDLOOP_HASH_KEY=FIRST.text
    )
    assert "contains another key" in refused.stderr
    assert keyed_hash.parse(place.read_text()) == OTHER


KILLER = """
import os, shutil, signal, sys, threading
from pathlib import Path

import pyarrow.parquet
import components.shared.datasets.parquet_tables
from medloop.operations.hash_key_rotation import rotate
from medloop.settings import read_settings

home, out = Path(sys.argv[1]), Path(sys.argv[2])
WRITES = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}

def child(place, moment):
    count = 0
    def watch(event, arguments):
        nonlocal count
        if threading.current_thread() is not threading.main_thread():
            return  # many writers at once try whether the store creates a record once
        if event in WRITES and arguments and str(arguments[0]).startswith(str(place)):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    os.environ["MEDLOOP_HOME"] = str(place)
    sys.addaudithook(watch)
    rotate(read_settings(), "a test that is killed")
    os._exit(0)

moment, status = 0, 1
while status:
    moment += 1
    place = out / str(moment)
    shutil.copytree(home, place, symlinks=True)
    number = os.fork()
    if not number:
        child(place, moment)
    status = os.waitpid(number, 0)[1]
    assert status in (0, signal.SIGKILL), status
print(moment)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_a_loop_that_goes_on(loop: ByHand, tmp_path: Path) -> None:
    """The process ends before each of its steps on files, one run for every step, and each time all must be well."""
    shutil.rmtree(loop.scans)
    old = {row["patient_id"]: row["side"] for row in table(loop, "patients.parquet")}
    (tmp_path / "killed").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDLOOP_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLER, str(loop.home), str(tmp_path / "killed")],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    moments = int(done.stdout)
    assert moments > 20
    rotated = []
    for moment in range(1, moments + 1):
        left = ByHand(tmp_path / "killed" / str(moment))
        key = at_hand(left.home)
        log = release_log.read_log(left.store)
        assert release_log.key_id(log) == key.id, moment
        # The log's entry is the one moment before which the old key counts, and after it the new one. Which of the
        # numbered moments it falls on differs from run to run.
        assert (key != FIRST) is any(entry.record["what"] == "rotation" for entry in log), moment
        rotated.append(key != FIRST)
        kept = {row["patient_id"]: row["side"] for row in table(left, "patients.parquet")}
        assert kept == {key.rehash("patient", patient, FIRST): side for patient, side in old.items()}, moment
        rotate(settings_of(left.home), "again")
        final = at_hand(left.home)
        assert final.extends(key), moment
        assert len(final.links) == len(key.links) + 1
        kept = {row["patient_id"]: row["side"] for row in table(left, "patients.parquet")}
        assert kept == {final.rehash("patient", patient, FIRST): side for patient, side in old.items()}, moment
        assert not (left.home / "hash.key.next").exists()
    assert set(rotated[:-1]) == {False, True}  # the last one was not killed
    assert (rotated[0], rotated[-1]) == (False, True)


def test_cut_short_after_the_entry_the_same_command_ends_it(loop: ByHand) -> None:
    settings = settings_of(loop.home)
    rotate(settings, "first")
    new = (loop.home / "hash.key").read_text()
    (loop.home / "hash.key").write_text(FIRST.text)  # as a kill between the log and the file leaves it
    (loop.home / "hash.key.next").write_text(new)
    entries = len(release_log.read_log(loop.store))
    assert "interrupted rotation is complete" in rotate(settings, "first")
    assert len(release_log.read_log(loop.store)) == entries
    assert (loop.home / "hash.key").read_text() == new


@pytest.mark.slow
def test_while_a_run_holds_the_loop_nothing_is_rotated(loop: ByHand) -> None:
    from medloop.runner.lock import lease

    with lease(loop.store, "run-1"):
        refused = medloop(loop.home, "keys", "rotate", "--reason", "why", status=1)
    assert "The run run-1 holds the lock" in refused.stderr
    assert at_hand(loop.home) == FIRST


@pytest.mark.slow
def test_a_rotation_that_makes_no_sense_is_refused(loop: ByHand, tmp_path: Path) -> None:
    assert "needs a reason" in medloop(
        loop.home, "keys", "rotate", "--reason", " ", status=2
    ).stderr  # fmt: skip
    assert "no hash key to rotate" in medloop(
        tmp_path / "empty", "keys", "rotate", "--reason", "why", status=1
    ).stderr  # fmt: skip
    (loop.home / "hash.key").write_text(OTHER.text)
    refused = medloop(loop.home, "keys", "rotate", "--reason", "why", status=1).stderr
    assert f"the id {OTHER.id}, but this store uses the key {FIRST.id}" in refused
    assert at_hand(loop.home) == OTHER


@pytest.mark.slow
def test_a_run_that_began_before_a_rotation_does_not_undo_it(loop: ByHand) -> None:
    """A run on a cluster holds no lease: its refusal must not make the old split count again."""
    from tests.components.shared.steps import manifest

    now, _ = loop.data()
    verdict = {
        "kind": "decision", "schema": SCHEMAS["decision"], "outcome": "refused", "sentence": "Refused.", "report": "r",
        "subject": {"model": "m", "dataset": "d", "split": "old"},
    }  # fmt: skip
    folder = loop.home / "decision"
    folder.mkdir()
    (folder / "decision.json").write_text(json.dumps(verdict))
    rotate(settings_of(loop.home), "why")
    entries = len(release_log.read_log(loop.store))
    inputs = {"decision": manifest(loop.store, folder), "state": loop.out(now, "state")}
    with pytest.raises(RuntimeError, match="The hash key was rotated since this run began"):
        loop.step("reject", inputs, by="a pod")
    assert len(release_log.read_log(loop.store)) == entries


# Showing, keeping, putting back


@pytest.mark.slow
def test_show_tells_the_id_and_not_the_key(loop: ByHand) -> None:
    told = medloop(loop.home, "keys", "show")
    assert FIRST.id in told.stdout
    assert "The store uses this key." in told.stdout
    rotate(settings_of(loop.home), "why")
    again = json.loads(medloop(loop.home, "keys", "show", "--json").stdout)
    assert (again["id"], again["links"], again["store"]) == (at_hand(loop.home).id, 2, at_hand(loop.home).id)
    elsewhere = medloop(loop.home, "keys", "show", MEDLOOP_HASH_KEY=OTHER.text).stdout
    assert f"{OTHER.id}, from MEDLOOP_HASH_KEY. The store uses another key: {again['id']}" in elsewhere
    for link in (*at_hand(loop.home).links, *OTHER.links):
        assert link.hex() not in told.stdout + json.dumps(again) + elsewhere


def test_without_a_key_show_says_what_that_means(tmp_path: Path, finished: ByHand) -> None:
    assert "no hash key yet" in medloop(tmp_path, "keys", "show").stdout
    assert "use a public key" in medloop(finished.home, "keys", "show").stdout


@pytest.mark.slow
def test_a_copy_puts_a_lost_key_back(loop: ByHand, tmp_path: Path) -> None:
    kept = tmp_path / "kept.key"
    told = medloop(loop.home, "keys", "backup", str(kept)).stdout
    assert FIRST.text not in told
    assert kept.read_text() == f"{FIRST.text}\n"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "It is not encrypted" in told
    assert "already exists" in medloop(loop.home, "keys", "backup", str(kept), status=1).stderr
    (loop.home / "hash.key").unlink()
    assert f"The hash key {FIRST.id} of this store is missing" in medloop(
        loop.home, "keys", "show"
    ).stdout  # fmt: skip
    medloop(loop.home, "keys", "restore", str(kept))
    assert at_hand(loop.home) == FIRST
    assert (loop.home / "hash.key").stat().st_mode & 0o777 == 0o600
    assert "Nothing was changed" in medloop(loop.home, "keys", "restore", str(kept)).stdout


@pytest.mark.slow
def test_no_copy_lies_among_the_scans_of_a_run(loop: ByHand) -> None:
    source = Path(json.loads(medloop(loop.home, "explain", "--json").stdout)["arguments"]["source"])
    for folder in (source, next(path for path in source.iterdir() if path.is_dir())):
        refused = medloop(loop.home, "keys", "backup", str(folder / "my.key"), status=1).stderr
        assert "is in the source of a run" in refused
        assert not (folder / "my.key").exists()


@pytest.mark.slow
def test_where_there_is_no_directory_or_no_copy_the_sentence_says_what_to_do(loop: ByHand, tmp_path: Path) -> None:
    refused = medloop(loop.home, "keys", "backup", str(tmp_path / "none" / "my.key"), status=1).stderr
    assert f"The directory {tmp_path / 'none'} does not exist" in refused
    assert "Create it" in refused
    refused = medloop(loop.home, "keys", "restore", str(tmp_path / "nix.key"), status=1).stderr
    assert f"The key file {tmp_path / 'nix.key'} does not exist" in refused
    assert "medloop keys backup" in refused


@pytest.mark.slow
def test_another_key_does_not_take_its_place(loop: ByHand, tmp_path: Path) -> None:
    other, none = tmp_path / "other.key", tmp_path / "none.key"
    other.write_text(OTHER.text)
    none.write_text("Zebedee")
    refused = medloop(loop.home, "keys", "restore", str(other), status=1).stderr
    assert f"contains the key {OTHER.id}, but the current key is {FIRST.id}" in refused
    (loop.home / "hash.key").unlink()
    refused = medloop(loop.home, "keys", "restore", str(other), status=1).stderr
    assert f"the store uses the key {FIRST.id}" in refused
    refused = medloop(loop.home, "keys", "restore", str(none), status=1).stderr
    assert "contains no hash key" in refused
    assert "Zebedee" not in refused
    refused = medloop(loop.home, "keys", "restore", str(other), status=1, MEDLOOP_HASH_KEY=FIRST.text).stderr
    assert "MEDLOOP_HASH_KEY is set and has priority over files" in refused
    assert not (loop.home / "hash.key").exists()


@pytest.mark.slow
def test_a_rotated_key_takes_the_place_of_the_old_one_and_not_the_other_way_round(
    split_once: ByHand, tmp_path: Path
) -> None:
    here, there = copy_of(split_once, tmp_path / "here"), copy_of(split_once, tmp_path / "there")
    shutil.rmtree(there.home / "store")
    (there.home / "store").symlink_to(here.home / "store")  # two machines with one store
    old, new = tmp_path / "old.key", tmp_path / "new.key"
    medloop(here.home, "keys", "backup", str(old))
    rotate(settings_of(here.home), "why")
    medloop(here.home, "keys", "backup", str(new))
    medloop(there.home, "keys", "restore", str(new))
    assert at_hand(there.home) == at_hand(here.home) != FIRST
    refused = medloop(there.home, "keys", "restore", str(old), status=1).stderr
    assert "from before a rotation of this key" in refused
    (there.home / "hash.key").unlink()
    refused = medloop(there.home, "keys", "restore", str(old), status=1).stderr
    assert "Restore a copy of that key" in refused
    assert open_store(str(there.home / "store")).names("releases")
