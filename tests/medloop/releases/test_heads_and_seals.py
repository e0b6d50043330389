"""The audit finds each kind of tampering with the release log and with what it names, and says so in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from components.shared import contracts
from components.shared.contracts import Manifest, digest, encode
from components.shared.ledger import release_log, signing
from components.shared.storage.store import open_store
from medloop.cli.main import main as run_command
from medloop.operations import doctor
from medloop.releases.log_verification import verify_log
from medloop.settings import read_settings
from tests import tracking_database
from tests.components.deploy.test_deploy import Candidate
from tests.components.shared.decisions import decision, state
from tests.components.shared.signers import Pair, use
from tests.components.shared.steps import step


class Loop:
    """A home whose log has a release, a refusal, a second release and a rollback."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, pair: Pair | None = None) -> None:
        self.home, self.patch, self.pair = home, patch, pair
        self.store = open_store(str(home / "store"))

    def live(self) -> None:
        """Write those four."""
        Candidate(self.home / "one", self.store).deploy()
        refused = {
            "decision": decision(self.home / "bad", self.store, self.model("refused"), "refused"),
            "state": state(self.home / "seen", self.store, request="request-2"),
        }
        step("reject", self.store, refused, run="run-2", by="someone")
        Candidate(self.home / "two", self.store, gain=9).deploy()
        log = release_log.read_log(self.store)
        fields = {name: log[0].record[name] for name in ("version", "model", "runtime", "precision")}
        release_log.append(self.store, log, "rollback", **fields, reason="a test", by="Dr. B")

    def copy(self, home: Path, patch: pytest.MonkeyPatch) -> Loop:
        """The same in another home, at which the commands look from now on."""
        shutil.copytree(self.home / "store", home / "store")
        patch.setenv("MEDLOOP_HOME", str(home))
        use(patch, self.pair, *([self.pair] if self.pair else []))
        return Loop(home, patch, self.pair)

    def model(self, name: str) -> str:
        return self.store.put_bytes(Manifest({"a": self.store.put_bytes(name.encode())}).encode()).digest

    def entry(self, number: int) -> Path:
        path = Path(self.store.uri) / "releases" / f"{number:08d}.json"
        if path.exists():
            path.chmod(0o644)
        return path

    def object(self, entry: int, name: str, file: str = "") -> Path:
        """The file in the store of what an entry names, or of one file of it."""
        found = str(release_log.read_chain(self.store)[entry - 1].record[name])
        if file:
            found = Manifest.decode(self.store.get(found), name).files[file].digest
        path = Path(self.store.uri) / "objects" / found[:2] / found
        path.chmod(0o644)
        return path

    def problems(self) -> list[str]:
        return verify_log(open_store(self.store.uri), signing.verifier())[0].problems


def medloop(*arguments: str, status: int = 0) -> str:
    """What a command prints, in this process, which is quicker."""
    from medloop.cli.main import app

    done = CliRunner().invoke(app, arguments)
    error = done.exception
    if isinstance(error, SystemExit) or error is None:
        assert done.exit_code == status, done.output
        return done.output
    assert status == 1, repr(error)
    return str(error.args[-1])


def lived(home: Path, pair: Pair | None) -> Loop:
    with pytest.MonkeyPatch.context() as patch:
        use(patch, pair, *([pair] if pair else []))
        made = Loop(home, patch, pair)
        made.live()
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Loop]:
    """Two such homes, with every entry signed and with none; those who change one work on a copy."""
    folders = {signed: tmp_path_factory.mktemp("audit") for signed in (True, False)}
    return {signed: lived(folder, Pair() if signed else None) for signed, folder in folders.items()}


@pytest.fixture
def plain(made: dict[bool, Loop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    return made[False].copy(tmp_path / "home", monkeypatch)


@pytest.fixture
def loop(made: dict[bool, Loop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """With every entry signed."""
    return made[True].copy(tmp_path / "home", monkeypatch)


@pytest.fixture
def ours(loop: Loop) -> Pair:
    assert loop.pair
    return loop.pair


def rewrite(loop: Loop, number: int, **changes: Any) -> None:
    """Change an entry, and make the chain whole again behind it, as one would who may write into the store."""
    before = ""
    for n in range(1, len(loop.store.names("releases")) + 1):
        record = json.loads(loop.entry(n).read_bytes())
        if n == number:
            record |= changes
        if n >= number:
            record["before"] = before if n > number or n == 1 else record["before"]
            loop.entry(n).write_bytes(encode("release", record))
        before = digest(loop.entry(n).read_bytes())


def changed(loop: Loop) -> None:
    path = loop.entry(2)
    path.write_bytes(path.read_bytes().replace(b'"by": "someone"', b'"by": "anybody"'))


def removed(loop: Loop) -> None:
    loop.entry(2).unlink()


def beginning_removed(loop: Loop) -> None:
    loop.entry(1).unlink()


def renumbered(loop: Loop) -> None:
    loop.entry(2).unlink()
    for number in (3, 4):
        loop.entry(number).rename(loop.entry(number - 1))


def swapped(loop: Loop) -> None:
    two, three = (loop.entry(number).read_bytes() for number in (2, 3))
    loop.entry(2).write_bytes(three)
    loop.entry(3).write_bytes(two)


def doubled(loop: Loop) -> None:
    loop.entry(5).write_bytes(loop.entry(4).read_bytes())


def cut(loop: Loop) -> None:
    loop.entry(2).write_bytes(loop.entry(2).read_bytes()[:50])


def emptied(loop: Loop) -> None:
    loop.entry(3).write_bytes(b"")


def far_ahead(loop: Loop) -> None:
    (loop.entry(1).parent / "99999999.json").write_text("{}")


def a_fifo(loop: Loop) -> None:
    os.mkfifo(loop.entry(5))


def a_directory(loop: Loop) -> None:
    loop.entry(2).unlink()
    loop.entry(2).mkdir()


def a_device(loop: Loop) -> None:
    loop.entry(5).symlink_to("/dev/zero")


def a_large_one(loop: Loop) -> None:
    with loop.entry(5).open("wb") as file:
        file.truncate(2**33)


TAMPERED: list[tuple[Callable[[Loop], None], list[str]]] = [
    (removed, ["Entry 2 is missing: it was removed."]),
    (beginning_removed, ["Entry 1 is missing: it was removed."]),
    (renumbered, ["The file of entry 2 contains entry 3", "The file of entry 3 contains"]),
    (swapped, ["The file of entry 2 contains entry 3", "The file of entry 3 contains"]),
    (doubled, ["The file of entry 5 contains entry 4"]),
    (cut, ["Entry 2 was changed or truncated: entry 2 is not a JSON release"]),
    (emptied, ["Entry 3 was changed or truncated: entry 3 is not a JSON release"]),
    (far_ahead, ["Entries 5 to 99999998 are missing", "Entry 99999999 was changed or truncated"]),
    (a_fifo, ["Entry 5 cannot be read. The release log is broken at releases/00000005.json", "is a FIFO"]),
    (a_directory, ["Entry 2 cannot be read. The release log is broken at releases/00000002.json", "is a directory"]),
    (a_device, ["Entry 5 cannot be read. The release log is broken at releases/00000005.json", "is a device"]),
    (a_large_one, ["Entry 5 cannot be read. The release log is broken at releases/00000005.json", "is larger than"]),
]


@pytest.mark.slow
def test_a_log_as_it_was_written_is_whole(loop: Loop, ours: Pair) -> None:
    said = medloop("audit", "verify")
    assert "✓ The release log of" in said
    assert "4 entries (4 with trusted signatures)" in said
    found = json.loads(medloop("audit", "verify", "--json"))
    assert (found["entries"], found["signed"], found["problems"]) == (4, 4, [])
    assert found["objects"] >= 3 + 3 + 3 + 1
    assert found["head"] == release_log.head(release_log.read_log(loop.store))


@pytest.mark.parametrize(("tamper", "sentences"), TAMPERED)
@pytest.mark.parametrize("signed", [False, True])
def test_each_kind_of_tampering_is_found(
    tamper: Callable[[Loop], None],
    sentences: list[str],
    signed: bool,
    made: dict[bool, Loop],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = made[signed].copy(tmp_path / "home", monkeypatch)
    assert loop.problems() == []
    tamper(loop)
    problems = loop.problems()
    if tamper in (a_fifo, a_directory, a_device, a_large_one):
        problems = ["; ".join(problems)] * len(sentences)
    assert len(problems) == len(sentences), problems
    assert all(sentence in problem for sentence, problem in zip(sentences, problems, strict=True)), problems
    problems = loop.problems()
    said = medloop("audit", "verify", status=1)
    assert all(f"✗ {problem}" in said for problem in problems)


def test_a_changed_entry_is_found_by_the_chain_and_named_by_its_signature(loop: Loop, ours: Pair) -> None:
    changed(loop)
    assert loop.problems() == [
        (
            "Entry 2 of the release log does not match its signature: one of them was changed. "
            "Restore it from a copy, or create it again."
        )
    ]
    use(loop.patch, None)
    assert loop.problems() == ["Entry 3 does not contain the hash of entry 2: one of them was changed."]


def test_a_log_written_anew_from_an_entry_on_is_found_by_signatures_alone(loop: Loop, ours: Pair) -> None:
    rewrite(loop, 2, by="anybody")
    problems = loop.problems()
    said = [f"Entry {number} of the release log does not match its signature" for number in (4, 3, 2)]
    assert [problem.partition(":")[0] for problem in problems] == said
    use(loop.patch, None)
    assert loop.problems() == []


def test_the_newest_entry_changed_is_found_by_its_signature_or_by_a_head(loop: Loop, ours: Pair) -> None:
    kept = release_log.head(release_log.read_log(loop.store))
    path = loop.entry(4)
    path.write_bytes(path.read_bytes().replace(b"Dr. B", b"Dr. C"))
    assert "Entry 4 of the release log does not match its signature" in loop.problems()[0]
    use(loop.patch, None)
    assert loop.problems() == []
    said = medloop("audit", "verify", "--head", kept, status=1)
    assert f"The log does not contain the head {kept[:16]}… (recorded in --head)" in said


def test_a_cut_off_end_is_found_by_each_head_that_was_written_down(loop: Loop, ours: Pair) -> None:
    printed = medloop("audit", "head").splitlines()
    kept = printed[-1]
    assert printed[0].startswith("entry 4 of ")
    assert kept == release_log.head(release_log.read_log(loop.store))
    assert "✓" in medloop("audit", "verify", "--head", kept)
    loop.entry(4).unlink()
    assert loop.problems() == []
    said = medloop("audit", "verify", "--head", kept, status=1)
    assert said.count("The log ends with entry 3: it was truncated") == 2
    assert "heads.json, entry 4" in said
    assert "(recorded in --head)" in said
    again = medloop("audit", "verify", status=1)  # it is not forgotten by having been told
    assert "heads.json, entry 4" in again
    assert "lacks entry 4 as recorded in" in medloop("audit", "head", status=1)
    medloop("audit", "head", "--accept")
    assert "✓" in medloop("audit", "verify")


def test_an_earlier_head_still_holds_when_the_log_has_grown(loop: Loop, ours: Pair) -> None:
    earlier = release_log.read_log(loop.store)[1].hash
    assert "✓" in medloop("audit", "verify", "--head", earlier[:16].upper())
    for slip in ("abc", "3f9a1c2b7d40e5f6…x", "not a hash at all"):
        assert "must be 16 to 64 hexadecimal digits" in medloop("audit", "verify", "--head", slip, status=1)
    assert "✓" in medloop("audit", "verify", "--head", f"{earlier[:20]}…")


def test_a_whole_log_that_is_gone_is_found_by_its_head(loop: Loop, ours: Pair) -> None:
    medloop("audit", "verify")
    for number in range(1, 5):
        loop.entry(number).unlink()
    assert "The log is empty" in medloop("audit", "verify", status=1)


@pytest.mark.slow
def test_the_tracking_server_remembers_a_head(loop: Loop, ours: Pair, tmp_path: Path) -> None:
    loop.patch.setenv("MLFLOW_TRACKING_URI", tracking_database.place_in(tmp_path))
    medloop("models", "--rebuild")
    loop.entry(4).unlink()
    medloop("models", "--rebuild")  # drawn anew from the shorter log, it still knows the longer one
    said = medloop("audit", "verify", status=1)
    assert "recorded in the tracking server, entry 4" in said


@pytest.mark.parametrize(
    ("entry", "name", "file"),
    [
        (1, "decision", ""),
        (1, "decision", "decision.json"),
        (1, "decision", "page.html"),
        (1, "report", "metrics.json"),
        (1, "model", "models/model.onnx"),
        (2, "decision", "decision.json"),
        (3, "model", ""),
    ],
)
def test_what_an_entry_names_must_be_there_unchanged(loop: Loop, ours: Pair, entry: int, name: str, file: str) -> None:
    path = loop.object(entry, name, file)
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert any(f"The {name} of entry {entry} is missing or was changed" in said for said in loop.problems())
    path.unlink()
    (problem, *_) = loop.problems()
    assert f"The {name} of entry" in problem
    assert "is not in" in problem


def test_an_entry_that_names_the_decision_about_another_model_is_told(plain: Loop) -> None:
    log = release_log.read_chain(plain.store)
    rewrite(plain, 3, decision=log[0].record["decision"])
    assert "The decision of entry 3 belongs to another model or report." in plain.problems()
    rewrite(plain, 3, decision=log[1].record["decision"])
    assert any("is 'refused', but the entry releases the model" in said for said in plain.problems())


def test_without_public_keys_it_says_what_it_could_not_see(plain: Loop) -> None:
    said = medloop("audit", "verify")
    assert "Signatures were not verified" in said
    assert "No head was recorded outside the log" in said
    assert "No head was recorded outside the log" not in medloop("audit", "verify")


def test_a_log_that_began_unsigned_is_sealed_up_to_the_head_that_was_looked_at(plain: Loop) -> None:
    ours = Pair()
    log = release_log.read_log(plain.store)
    assert "MEDLOOP_SIGNING_KEY is not set" in medloop(
        "audit", "seal", "--head", release_log.head(log), "--reason", "x", status=1
    )
    use(plain.patch, ours, ours)
    assert "Entry 4 of the release log is not signed" in medloop("models", status=1)
    assert any("Entry 1 of the release log is not signed" in said for said in plain.problems())
    wrong = medloop("audit", "seal", "--head", log[2].hash, "--reason", "x", status=1)
    assert f"The head of the release log is {log[3].hash}, entry 4" in wrong
    said = medloop("audit", "seal", "--head", log[3].hash, "--reason", "Dr. B read all four")
    assert said == f"Entries 1 to 4 were sealed with the key {ours.id}, by entry 5.\n"
    assert plain.problems() == []
    assert "Dr. B read all four" in medloop("models")
    changed(plain)
    assert plain.problems() == ["Entry 3 does not contain the hash of entry 2: one of them was changed."]


def test_a_seal_does_not_cover_an_entry_that_was_changed_after_it_was_signed(loop: Loop, ours: Pair) -> None:
    rewrite(loop, 4, by="anybody")
    head = release_log.head(release_log.read_chain(loop.store))
    said = medloop("audit", "seal", "--head", head, "--reason", "x", status=1)
    assert "Entry 4 of the release log does not match its signature" in said


def test_a_pair_of_keys_is_made_and_only_the_public_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLOOP_HOME", str(tmp_path / "home"))
    said = medloop("keys", "pair")
    path = tmp_path / "home" / "signing.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    private = path.read_text()
    body = "".join(private.splitlines()[1:-1])
    assert body
    assert body not in said
    assert str(path) in said
    monkeypatch.setenv(signing.VARIABLE, private)
    ours = signing.signer()
    assert ours
    assert ours.public in said
    assert ours.id in said
    assert "already exists" in medloop("keys", "pair", status=1)
    made = json.loads(medloop("keys", "pair", str(tmp_path / "other.key"), "--json"))
    assert set(made) == {"id", "public", "file"}
    assert made["id"] != ours.id
    assert "does not exist" in medloop("keys", "pair", str(tmp_path / "none" / "key"), status=1)
    assert {file.name for file in (tmp_path / "home").iterdir()} == {"signing.key", ".gitignore"}


def test_models_refuses_a_log_whose_signatures_do_not_hold(loop: Loop, ours: Pair) -> None:
    said = medloop("models")
    assert f"signed {ours.id}" in said
    assert "accuracy 0.900 (0.860 – 0.930), AUC 0.960 (0.930 – 0.980); 240 test images of 120 patients" in said
    changed(loop)
    assert "does not follow" in medloop("models", status=1)
    use(loop.patch, None, Pair())
    removed(loop)
    loop.entry(3).unlink()
    loop.entry(4).unlink()
    assert f"is signed with the key {ours.id}, but MEDLOOP_VERIFY_KEYS trusts" in medloop("models", status=1)


def test_the_command_line_ends_with_a_sentence_and_no_traceback(
    loop: Loop, ours: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    use(loop.patch, None, Pair())
    loop.patch.setattr("sys.argv", ["medloop", "models"])
    with pytest.raises(SystemExit) as ended:
        run_command()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("medloop: Entry 4 of the release log is signed with the key")


def test_the_record_of_heads_is_of_its_schema(loop: Loop, ours: Pair) -> None:
    medloop("audit", "verify")
    record = contracts.read_record("heads", loop.home / "heads.json")
    assert record["heads"][loop.store.uri]["entry"] == 4


FOREIGN = (".DS_Store", ".nfs0000000000000001", "00000001.json~", "00000005.json.part", "1.json", "notes/00000005.json")


@pytest.mark.slow
def test_foreign_files_in_the_folder_of_the_log_are_told_and_stop_nothing(loop: Loop, ours: Pair) -> None:
    for name in FOREIGN:
        path = loop.entry(1).parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("not an entry")
    found, log = verify_log(loop.store, signing.verifier())
    assert (found.entries, len(log), found.problems) == (4, 4, [])
    said = medloop("audit", "verify")
    assert said.count("contains 6 files that are not entries") == 1
    assert "'releases/.DS_Store'" in said
    assert len(json.loads(medloop("models", "--json"))["log"]) == 4
    medloop("promote", "v2", "--reason", "a test")
    assert len(release_log.read_log(loop.store)) == 5
    told = {finding.part: finding for finding in doctor.run_checks(read_settings())}
    assert told["release log"].state == "ok"
    assert "contains 6 files that are not entries" in told["release log, folder"].means


VERIFY = """
import os, typer.testing
from medloop.cli.main import app
runner = typer.testing.CliRunner()
runner.invoke(app, ["audit", "verify"])  # permissions do not bind root: load what root alone may read, then be nobody
os.environ["MEDLOOP_HOME"] = os.environ["READ_ONLY"]
if os.getuid() == 0: os.setuid(65534)
done = runner.invoke(app, ["audit", "verify"])
print(done.exit_code, done.output, done.exception)
"""


def test_an_audit_works_on_a_home_and_a_store_that_may_not_be_written(loop: Loop, ours: Pair) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lies where another user cannot reach it
        home = Path(folder) / "home"
        shutil.copytree(loop.home, home)
        everything = [Path(folder), home, *home.rglob("*")]
        for path in everything:
            path.chmod(0o555 if path.is_dir() else 0o444)
        environment = {**os.environ, "READ_ONLY": str(home)}
        command = [sys.executable, "-c", VERIFY]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        for path in everything:
            path.chmod(0o755)
    assert done.stdout.startswith("0 "), done.stdout + done.stderr
    assert "is intact: 4 entries" in done.stdout
    assert "The head could not be written to" in done.stdout
    assert "Permission denied" in done.stdout
