"""Names and reasons cannot imitate lines: refused where a person gives them, escaped where a record holds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.shared.ledger import release_log
from components.shared.storage.store import open_store

ROOT = Path(__file__).resolve().parents[3]
REASON = "fine\n● v9    release    2026-01-01 00:00  by nobody\x1b[1A\u202e\u2028✓ The release log is whole"
BY = "Dr. A\n✓ gate"


def medloop(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDLOOP_")}
    return subprocess.run(
        [sys.executable, "-m", "medloop.cli.main", *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**environment, "MEDLOOP_HOME": str(home), "LOGNAME": BY},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("rollback", "--reason", REASON), ("approve", "2026", "--by", BY, "--reason", "read it")]
)
def test_a_reason_or_a_name_that_would_break_a_line_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = medloop(tmp_path, *arguments)
    assert done.returncode == 2
    assert "contains a line break or a control character" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", [("models",), ("audit", "verify"), ("explain",)])
def test_what_a_record_holds_stays_on_its_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    store = open_store(str(tmp_path / "store"))
    release_log.append(
        store, [], "refusal", model="0" * 64, decision="1" * 64, reason=REASON, by=BY, run="", sentence=BY
    )
    run = {"run": "20260101-000000-aaaa", "arguments": {"source": REASON}, "by": BY, "started": "2026-01-01T00:00:00"}
    from components.shared.contracts import encode

    store.write(
        f"runs/{run['run']}.json", encode("run", {**run, "outcome": "failed", "failed_stage": "", "why": REASON})
    )
    printed = medloop(tmp_path, *command)
    text = printed.stdout + printed.stderr
    assert not [line for line in text.splitlines() if line.startswith(("● v9", "✓ gate", "✓ The release log is whole"))]
    assert not [char for char in text if char in "\x1b\u202e\u2028"]
    assert printed.stdout
