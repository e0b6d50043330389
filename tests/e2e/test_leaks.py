"""Thirty kinds of secrets and of patients' values are planted; no artifact, log, answer, database or process has one.

A loop that ends well, one that fails, a service and the commands that look at them are run, under the tracer where
there is one: they also look up no host and write nothing outside their folders.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from bench import egress
from components.shared.ledger.stage_signing import derive
from components.shared.privacy.secret_redaction import NAMES
from tests.components.shared.signers import Pair
from tests.e2e.leaks import forms, found, found_in
from tests.e2e.loop import QUICK, Place
from tests.e2e.test_privacy import PLANTED, plant

pytestmark = pytest.mark.timeout(900)

PAIR = Pair()
PASSWORD = "pAss/w0rd-5150"
SECRETS = {
    "MEDLOOP_HASH_KEY": "5eed" * 16,
    "MEDLOOP_SIGNING_KEY": "".join(PAIR.private.splitlines()[1:-1]),
    "MEDLOOP_KFP_TOKEN": "kfptoken5150",
    "MEDLOOP_KFP_COOKIES": "kfpcookie5150",
    "MEDLOOP_NOTIFY_URL": "hookpath5150",
    "AWS_SECRET_ACCESS_KEY": "awssecret5150",
    "AWS_SESSION_TOKEN": "awssession5150",
    "MLFLOW_TRACKING_PASSWORD": "trackingpassword5150",
    "MLFLOW_TRACKING_TOKEN": "trackingtoken5150",
    "MLFLOW_TRACKING_URI": PASSWORD,
    "HTTPS_PROXY": "proxypassword5150",
    **{f"of the stage {stage}": derive(PAIR.signer, stage).text.split(":")[2] for stage in ("train", "evaluate")},
}
"""Variables, and the part of each that nothing may show."""

VALUES = {
    **PLANTED,
    "wigglesworth": "a surname under sex in patients.csv",
    "cadwallader": "a surname under age in patients.csv",
    "featherstone": "the name of a file that is sent to the service",
}
"""Words of patients, and where each stands."""


@dataclass
class Loop:
    """A home over the planted source, and all that was said and seen there."""

    place: Place
    source: Path
    base: Path
    said: list[str] = field(default_factory=list)
    commands: set[str] = field(default_factory=set)

    def leaks(self, words: list[str]) -> list[str]:
        """Each word that stands in what was written, said or seen."""
        needles = {word: forms(word) for word in words}
        heard = {"what was said": "\n".join(self.said), "the command line of a process": "\n".join(self.commands)}
        hits = [f"{word} in {where}" for where, text in heard.items() for word in found(text.encode(), needles)]
        return hits + found_in(self.base / "home", words)


def settings(tracking: str) -> dict[str, str]:
    """An environment with every secret in its place."""
    named = {name: value for name, value in SECRETS.items() if NAMES.search(name)}
    return {
        **named,
        "MEDLOOP_SIGNING_KEY": PAIR.private,
        "MEDLOOP_VERIFY_KEYS": PAIR.public,
        "MEDLOOP_NOTIFY_URL": f"http://127.0.0.1:9/services/{SECRETS['MEDLOOP_NOTIFY_URL']}",
        "HTTPS_PROXY": f"http://someone:{SECRETS['HTTPS_PROXY']}@127.0.0.1:9",
        **({"MLFLOW_TRACKING_URI": tracking} if tracking else {}),
    }


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """All that is done over the planted source."""
    base = tmp_path_factory.mktemp("leaks")
    inherited = egress.environment(base, TMPDIR=str(base / "home" / "tmp"))
    (base / "home" / "tmp").mkdir()
    place = Place(base / "home", {**inherited, **settings("")})
    source = base / "scans"
    place.medloop("synth", str(source), "--patients", "24", "--reports")
    plant(source)
    shift(source)
    done = Loop(place, source, base)
    watching = threading.Event()
    watcher = threading.Thread(target=watch, args=(done, watching))
    watcher.start()
    try:
        act(done)
    finally:
        watching.set()
        watcher.join()
    return done


def act(done: Loop) -> None:
    run = ("--source", str(done.source), *QUICK, "--set", "epochs=1", "--policy", "lenient")
    say(done, "run", "run", *run)
    # The tracking server does not answer, and its address holds a password.
    login = f"http://someone:{quote(PASSWORD, safe='')}@127.0.0.1:9"
    broken = Loop(Place(done.base / "home", {**done.place.extra, **settings(login)}), done.source, done.base, done.said)
    say(broken, "again", "run", *run, "--set", "policy.floors.accuracy=0.1", "--json")
    for command in (["doctor"], ["audit", "verify"]):
        say(broken, command[0], *command, status=None)
    say(done, "explain", "explain", "--json")
    harmed = done.base / "harmed"
    shutil.copytree(done.source, harmed)
    table = harmed / "patients.csv"
    table.write_text(table.read_text().replace("\n", ",Wigglesworth\n", 3).replace(",Wigglesworth", "", 1))
    say(broken, "failed", "run", "--source", str(harmed), *QUICK, status=1)
    images = sorted(path for path in done.source.rglob("*") if path.suffix in (".png", ".dcm", ".jpg"))[:12]
    sent = done.base / "sent"
    sent.mkdir()
    for number, path in enumerate(images):
        shutil.copy(path, sent / f"Featherstone_{number}{path.suffix}")
    (sent / "Featherstone_broken.png").write_bytes(images[0].read_bytes()[:99])
    if egress.available():
        log, answers = egress.serve(done.base / "traces" / "serve", done.place.environment(), sorted(sent.iterdir()))
        done.said += [log, *answers]


def say(done: Loop, name: str, *arguments: str, status: int | None = 0) -> None:
    """Run a command, under the tracer where there is one, and keep what it says."""
    command = [sys.executable, "-m", "medloop.cli.main", *arguments]
    if egress.available():
        command = egress.traced(command, done.base / "traces" / name)
    ended = subprocess.run(
        command, capture_output=True, text=True, env=done.place.environment(), cwd=egress.ROOT, check=False
    )
    assert status is None or ended.returncode == status, f"{arguments}: {ended.stdout}\n{ended.stderr}"
    done.said.append(ended.stdout + ended.stderr)


def shift(source: Path) -> None:
    """Let some lines of the table have a name where sex and age should stand."""
    with (source / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[4]["sex"], rows[9]["age"] = "Wigglesworth", "Cadwallader"
    with (source / "patients.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def watch(done: Loop, ended: threading.Event) -> None:
    """Note the command line of every process that works for this home."""
    while not ended.wait(0.3):
        for process in done.place.processes():
            try:
                line = Path(f"/proc/{process}/cmdline").read_bytes()
            except OSError:
                continue
            done.commands.add(line.replace(b"\0", b" ").decode(errors="replace"))


@pytest.fixture(scope="module")
def leaks(loop: Loop) -> list[str]:
    """All that a look through everything finds, once for all kinds."""
    return loop.leaks([*SECRETS.values(), *VALUES])


def test_enough_was_done_to_leak(loop: Loop) -> None:
    assert len(SECRETS) + len(VALUES) >= 30
    log = json.loads(loop.place.medloop("models", "--json").stdout)["log"]
    assert {entry["kind"] for entry in log} >= {"release"}
    assert any("components" in line or "executor_main" in line for line in loop.commands)
    heard = "\n".join(loop.said)
    assert "1 entry for sex in patients.csv (line 6) is neither M nor F" in heard
    assert "notification not delivered" in "".join(p.read_text() for p in (loop.base / "home").rglob("log.txt"))
    assert "***@127.0.0.1:9" in heard  # the address is told, and the password is not
    assert (loop.base / "home" / "tracking.db").is_file()


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_of_the_environment_is_nowhere(name: str, leaks: list[str]) -> None:
    assert [leak for leak in leaks if leak.startswith(f"{SECRETS[name]} in ")] == []


@pytest.mark.parametrize("word", VALUES)
def test_a_value_of_a_patient_is_nowhere(word: str, leaks: list[str]) -> None:
    assert [leak for leak in leaks if leak.startswith(f"{word} in ")] == [], f"It stands in {VALUES[word]}."


@pytest.mark.skipif(not egress.available(), reason="this machine has no strace that may trace")
def test_nothing_is_looked_up_or_written_elsewhere(loop: Loop) -> None:
    for folder in sorted((loop.base / "traces").iterdir()):
        seen = egress.read(folder, [loop.base / "home"])  # temporary files lie there, too
        assert (folder.name, seen.lookups, seen.connections, seen.files) == (folder.name, [], [], [])


def test_all_that_was_written_is_private(loop: Loop) -> None:
    home = loop.base / "home"
    known = ("store", "runs", "cache", "tracking.db", "heads.json")
    paths = [path for name in known for path in (home / name, *(home / name).rglob("*")) if not path.is_symlink()]
    assert len(paths) > 100
    assert [str(path) for path in paths if path.lstat().st_mode & 0o077] == []
    assert (home / ".gitignore").read_text() == "*\n"
