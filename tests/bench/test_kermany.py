"""The ledger of the official test: no look goes without its line, and no line is lost to another scoring."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench import kermany


def test_each_of_many_scorings_at_once_has_its_line_with_its_own_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "ledger.csv"
    ledger.write_text(f"{','.join(kermany.COLUMNS)}\n")
    monkeypatch.setattr(kermany, "LEDGER", ledger)

    def look(seed: int) -> None:
        line: dict[str, Any] = {"date": "2026-01-02", "commit": "abc", "task": "kermany", "seed": seed}
        kermany.write_down(line)
        kermany.write_down(line, {"accuracy": f"0.{seed:04}", "auc": "0.9"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, range(40)))
    lines = list(csv.DictReader(ledger.read_text().splitlines()))
    assert sorted(int(line["seed"]) for line in lines) == list(range(40))
    assert all(line["accuracy"] == f"0.{int(line['seed']):04}" for line in lines)


def test_a_look_whose_figures_never_came_keeps_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = tmp_path / "ledger.csv"
    ledger.write_text(f"{','.join(kermany.COLUMNS)}\n")
    monkeypatch.setattr(kermany, "LEDGER", ledger)
    line = {"date": "2026-01-02", "commit": "abc", "task": "kermany", "seed": 1}
    kermany.write_down(line)  # and the scoring was killed
    kermany.write_down(line)
    kermany.write_down(line, {"accuracy": "0.9", "auc": "0.95"})
    assert [row["auc"] for row in csv.DictReader(ledger.read_text().splitlines())] == ["", "0.95"]
