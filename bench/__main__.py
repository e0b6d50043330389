"""Runs every benchmark, one after the other: `python -m bench`."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "loop",
    "synth_difficulty",
    "ingest",
    "batches",
    "training",
    "threads",
    "near_duplicates",
    "burned_in_text",
    "connections",
    "tamper",
    "hostile",
    "egress",
    "images",
    "cluster",
    "intervals",
    "non_inferiority",
    "gate_years",
)

for name in BENCHMARKS:
    print(f"\n## bench.{name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True)
