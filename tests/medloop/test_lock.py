"""Two runs never hold the loop at once, and a run that died holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from components.shared.contracts import decode, encode
from components.shared.storage.directory import Directory
from components.shared.storage.store import Store, open_store, record_number
from medloop.runner.lock import holder, lease

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def newest(store: Store) -> dict[str, Any]:
    name = store.names("lease")[-1]
    return decode("lease", store.read(name) or b"", name)


def test_foreign_files_do_not_count_and_something_else_than_a_file_is_told(store: Store) -> None:
    with lease(store, "run-1"):
        pass
    folder = Path(store.uri) / "lease"
    for name in (".DS_Store", ".nfs01", "zzz.json", "00000001.json~"):
        (folder / name).write_text("not a lease")
    with lease(store, "run-2"):
        assert (newest_number(store), holder(store)) == (2, "run-2")
    os.mkfifo(folder / "00000003.json")
    assert holder(store) == ""
    with pytest.raises(RuntimeError, match=r"The lock record lease/00000003.json is damaged"), lease(store, "run-3"):
        pass
    (folder / "00000003.json").unlink()
    store.write("lease/00000003.json", encode("lease", {"run": "half a record"}))
    with pytest.raises(RuntimeError, match=r"The lock record lease/00000003.json is damaged"), lease(store, "run-3"):
        pass
    (folder / "00000003.json").unlink()
    (folder / "00000003.json").mkdir()
    with lease(store, "run-3", take_over=True):
        assert (newest_number(store), holder(store)) == (4, "run-3")


def newest_number(store: Store) -> int:
    return record_number(store.numbered("lease")[-1], "lease")


HOLDER = """
    import sys
    from components.shared.storage.store import open_store
    from medloop.runner.lock import lease
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with lease(open_store({root!r}), {run!r}) as held:
            if {group}:
                held.hand_to({group})
            print("held", flush=True)
            sys.stdin.readline()
    except RuntimeError as error:
        print(error, flush=True)
"""


class Holder:
    """A run in a process of its own, that reaches for the loop when told to."""

    def __init__(self, store: Store, run: str, group: int = 0) -> None:
        code = textwrap.dedent(HOLDER.format(root=store.uri, run=run, group=group))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hear() == "ready"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def tell(self) -> None:
        """Let it go on."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """What it says next."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def reach(self) -> str:
        """What comes of its reaching for the loop."""
        self.tell()
        return self.hear()


def test_a_second_run_is_refused_while_the_first_lives(store: Store) -> None:
    with Holder(store, "run-1") as first:
        assert first.reach() == "held"
        before = newest(store)
        with pytest.raises(RuntimeError, match=r"The run run-1 holds the lock.*--take-over"), lease(store, "run-2"):
            pass
        with Holder(store, "run-3") as third:
            assert third.reach().startswith(f"The run run-1 holds the lock of this store (on {before['host']}, process")
        assert newest(store) == before, "the first is unharmed"
        first.tell()
        assert first.process.wait() == 0
    with lease(store, "run-4"):
        assert newest(store)["run"] == "run-4"


def test_the_loop_of_a_run_that_was_killed_is_taken_over(store: Store) -> None:
    with Holder(store, "run-1") as first:
        assert first.reach() == "held"
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        assert not newest(store)["released"]
        with lease(store, "run-2"):
            assert newest(store)["run"] == "run-2"


def test_the_hold_lasts_while_the_engine_lives_though_its_starter_died(store: Store) -> None:
    engine = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        with Holder(store, "run-1", group=engine.pid) as first:
            assert first.reach() == "held"
            first.process.kill()
            first.process.wait()
            stopping = r"run-1 holds the lock.* has ended, and its last stage is still stopping\. Repeat"
            with pytest.raises(RuntimeError, match=stopping), lease(store, "run-2"):
                pass
            engine.kill()
            engine.communicate()
            with lease(store, "run-2"):
                assert newest(store)["run"] == "run-2"
    finally:
        engine.kill()
        engine.communicate()


def test_the_loop_is_given_back_whatever_ends_the_run(store: Store) -> None:
    with pytest.raises(KeyError), lease(store, "run-1"):
        raise KeyError
    assert newest(store)["released"]
    with lease(store, "run-2"):
        assert not newest(store)["released"]
    assert newest(store)["released"]


def test_a_person_may_take_over_from_one_that_lives(store: Store) -> None:
    with Holder(store, "run-1") as first:
        assert first.reach() == "held"
        with lease(store, "run-2", take_over=True):
            first.tell()  # the first ends, and does not give back what is no longer its own
            assert first.process.wait() == 0
            assert newest(store)["run"] == "run-2"
            with pytest.raises(RuntimeError, match="run-2 holds the lock"), lease(store, "run-3"):
                pass


@pytest.mark.parametrize(("field", "value", "free"), [("host", "another-machine", False), ("boot", "before", True)])
def test_only_the_machine_itself_can_tell_that_a_run_has_ended(
    field: str, value: str, free: bool, store: Store
) -> None:
    with Holder(store, "run-1") as first:
        assert first.reach() == "held"
        first.process.kill()
        first.process.wait()
        name = store.names("lease")[-1]
        store.write(name, encode("lease", {**newest(store), field: value}))
        if free:
            with lease(store, "run-2"):
                assert newest(store)["run"] == "run-2"
        else:
            with pytest.raises(RuntimeError, match="on another-machine"), lease(store, "run-2"):
                pass


def test_a_restart_of_the_machine_ends_a_run_whose_process_number_lives_again(store: Store) -> None:
    with lease(store, "run-1"):
        pass
    name = store.names("lease")[-1]
    alive = {**newest(store), "released": False, "starter": os.getpid(), "group": os.getpgrp()}
    store.write(name, encode("lease", alive))
    with pytest.raises(RuntimeError, match="run-1 holds"), lease(store, "run-2"):
        pass
    store.write(name, encode("lease", {**alive, "boot": "an earlier one"}))
    with lease(store, "run-2"):
        assert newest(store)["run"] == "run-2"


@pytest.mark.slow
def test_of_two_that_reach_for_it_at_once_one_wins(store: Store) -> None:
    for number in range(5):
        with Holder(store, f"a{number}") as one, Holder(store, f"b{number}") as other:
            one.tell()
            other.tell()
            heard = sorted([one.hear(), other.hear()], key=lambda said: said != "held")
            assert heard[0] == "held"
            assert "Another run acquired the lock" in heard[1] or "holds the lock" in heard[1]


def test_one_that_comes_late_does_not_take_a_number_that_was_used_and_cleared(store: Store) -> None:
    """Between its look at the leases and its claim, one run came and went and another holds the loop."""
    with lease(store, "run-0"):
        pass

    class Slow(Directory):
        """A directory whose first creation comes only after others have held the loop."""

        waited = False

        def create(self, name: str, data: bytes) -> None:
            if not self.waited:
                self.waited = True
                with lease(store, "run-1"):
                    pass
                holding.__enter__()
            super().create(name, data)

    holding = lease(store, "run-2")
    slow = Store(store.uri, Slow(Path(store.uri)), None)
    with pytest.raises(RuntimeError, match="Another run acquired the lock"), lease(slow, "run-3"):
        pass
    assert newest(store)["run"] == "run-2"
    assert not newest(store)["released"]
    holding.__exit__(None, None, None)
    with lease(store, "run-4"):
        assert newest(store)["run"] == "run-4"


def test_old_leases_are_cleared_away(store: Store) -> None:
    for number in range(4):
        with lease(store, f"run-{number}"):
            assert len(store.names("lease")) == 1
