"""A refusal is remembered wherever it was raised; a fault of ours never is, and shows where it happened."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components import __main__ as by_hand
from components.shared.contracts import Manifest
from components.shared.errors import (
    DamagedError,
    MedloopError,
    RefusedError,
    UnavailableError,
    UsageError,
    exit_code,
    is_foreseen,
)
from components.shared.runtime import events, work
from components.shared.runtime.stage_interface import read, stages
from components.shared.storage.image_source import open_source
from components.shared.storage.store import Store, open_store

ROOT = Path(__file__).resolve().parents[3]


def mismatch() -> None:
    [*zip([1], [1, 2], strict=True)]


def no_number() -> None:
    int("x")


def unpacking() -> None:
    _, _ = [1, 2, 3][:1]


SLIPS = [mismatch, no_number, unpacking]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def put_in_place(stage: str, raises: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace a stage's work by something that raises; gives a list with an entry for each time that it was tried."""
    tries: list[int] = []

    def function(**_given: Any) -> None:
        tries.append(len(tries))
        raises()

    monkeypatch.setattr(importlib.import_module(f"components.{stage}.{stage}"), stage, function)
    return tries


def arguments(stage: str, store: Store, folder: Path) -> list[str]:
    """What a stage's command line needs, with empty inputs."""
    (folder / "empty").mkdir(exist_ok=True)
    interface = read(stage)
    words = {"int": "1", "float": "1", "str": "x", "bool": "true", "dict": "{}", "list": "[]"}
    required = [p for p in interface.parameters.values() if p.required]
    return [
        stage,
        f"--store={store.uri}",
        *(f"--{name}={folder / 'empty'}" for name in interface.inputs),
        *(f"--{name}={folder / name}.json" for name in interface.outputs),
        *(f"--{p.name.replace('_', '-')}={words[p.type.__name__]}" for p in required),
    ]


def remembered(store: Store) -> list[str]:
    return [name for name in store.names("work") if name.endswith("error.json")]


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("stage", stages())
def test_a_slip_in_a_stage_is_shown_and_not_remembered(
    stage: str, slip: Callable[[], None], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = put_in_place(stage, slip, monkeypatch)
    for _ in range(2):
        with pytest.raises(ValueError) as raised:  # noqa: PT011  # three texts
            by_hand.main(arguments(stage, store, tmp_path))
        assert not isinstance(raised.value, MedloopError)
        assert slip.__name__ in "".join(map(str, raised.traceback))
    assert len(tries) == 2
    assert remembered(store) == []


@pytest.mark.parametrize("stage", sorted(set(stages()) - work.IMPURE))
def test_a_refusal_raised_in_shared_code_is_one_sentence_and_remembered(
    stage: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        Manifest.decode(b"{}", "that file")

    tries = put_in_place(stage, refuse, monkeypatch)
    for _ in range(2):
        assert by_hand.main(arguments(stage, store, tmp_path)) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"{stage}: that file contains a None; a 'manifest' is expected.")
    assert len(tries) == 1
    assert len(remembered(store)) == 1


@pytest.mark.parametrize(
    "error",
    [UnavailableError("The disk is away."), DamagedError("Cut."), UsageError("No."), PermissionError("No."), OSError()],
)
def test_what_does_not_follow_from_the_input_is_not_remembered(
    error: Exception, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise error

    tries = put_in_place("split", away, monkeypatch)
    for _ in range(2):
        assert by_hand.main(arguments("split", store, tmp_path)) == exit_code(error)
    assert len(tries) == 2
    assert remembered(store) == []


def test_what_an_earlier_version_remembered_does_not_stick(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad() -> None:
        raise RefusedError("Bad.")

    tries = put_in_place("split", bad, monkeypatch)
    assert by_hand.main(arguments("split", store, tmp_path)) == 1
    [name] = remembered(store)
    record = json.loads(store.read(name) or b"")
    store.write(name, json.dumps({**record, "schema": 1, "message": "zip() argument 2 is longer"}).encode())
    assert by_hand.main(arguments("split", store, tmp_path)) == 1
    assert len(tries) == 2


def test_the_kind_gives_the_exit_status() -> None:
    kinds = {RefusedError: 1, UnavailableError: 1, DamagedError: 1, UsageError: 2}
    assert {kind: exit_code(kind("x")) for kind in kinds} == kinds
    assert exit_code(OSError("x")) == exit_code(KeyError("x")) == 1
    assert [is_foreseen(error) for error in (RefusedError(), OSError(), ValueError(), RuntimeError())] == [
        True, True, False, False
    ]  # fmt: skip


def test_a_source_that_is_not_named_is_wrong_usage() -> None:
    with pytest.raises(UsageError):
        open_source("ftp://x")


def test_a_fault_is_told_with_its_kind_and_place() -> None:
    try:
        no_number()
    except ValueError as error:
        told = events.sentence(error)
    assert told.startswith(
        "ValueError: invalid literal for int() with base 10: 'x' (a fault in medloop, test_errors.py"
    )


def test_the_command_shows_the_traceback_of_a_fault_and_a_sentence_otherwise(tmp_path: Path) -> None:
    def run(body: str) -> subprocess.CompletedProcess[str]:
        program = (
            "from medloop.cli import main\nfrom components.shared.errors import *\n"
            f"def app(**_):\n    {body}\nmain.app = app\nmain.main()\n"
        )
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    fault = run("int('x')")
    assert (fault.returncode, "Traceback" in fault.stderr, "invalid literal" in fault.stderr) == (1, True, True)
    for kind, status in (("RefusedError", 1), ("UsageError", 2), ("UnavailableError", 1), ("OSError", 1)):
        said = run(f"raise {kind}('The sentence.')")
        assert (said.returncode, said.stderr.strip()) == (status, "medloop: The sentence."), kind
