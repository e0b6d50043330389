"""Locate a data set and its split, of a run or at given paths, and make their files readable."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.shared.contracts import Manifest, read_record
from components.shared.errors import RefusedError
from components.shared.storage.artifacts import lay_out
from components.shared.storage.store import Store
from medloop.runner.run import Run, find, recent
from medloop.settings import Settings

LATEST = 20
"""Number of latest runs among which one with a data set is searched."""


@dataclass(frozen=True)
class ReportInput:
    """Directories of a data set and its split, and the path of the report."""

    label: str
    dataset: Path
    splits: Path | None
    artifacts: dict[str, str]
    """Digests of the artifacts, where known."""
    page: Path


@contextmanager
def from_run(settings: Settings, store: Store, name: str) -> Iterator[ReportInput]:
    """Make the data set of this run readable, or of the latest run that has one."""
    run = _named(store, name) if name else _latest(store)
    digests = {output: digest for output in ("dataset", "splits") if (digest := _output(run, output))}
    with _scratch_folder() as folder:
        for output, digest in digests.items():
            lay_out(store, Manifest.decode(store.get(digest), output), folder / output)
        splits = folder / "splits" if "splits" in digests else None
        page = settings.runs / run.id / "data.html"
        yield ReportInput(f"the run {run.id}", folder / "dataset", splits, digests, page)


@contextmanager
def from_paths(settings: Settings, store: Store, dataset: Path, splits: Path | None) -> Iterator[ReportInput]:
    """Make a data set and split readable, each given as a directory or a manifest."""
    paths = {"dataset": dataset} | ({"splits": splits} if splits else {})
    digests: dict[str, str] = {}
    with _scratch_folder() as folder:
        for output, path in paths.items():
            if path.is_dir():
                (folder / output).symlink_to(path.absolute())
                continue
            manifest = Manifest.decode(path.read_bytes(), path.name)
            digests[output] = manifest.digest
            lay_out(store, manifest, folder / output)
        _require(folder / "dataset", "dataset.json", dataset, "dataset")
        if splits:
            _require(folder / "splits", "split.json", splits, "splits")
        name = read_record("dataset", folder / "dataset" / "dataset.json")["fingerprint"][:12]
        page = settings.home / "data" / f"{name}.html"
        yield ReportInput(str(dataset), folder / "dataset", folder / "splits" if splits else None, digests, page)


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="medloop-data-") as scratch:
        yield Path(scratch)


def _named(store: Store, name: str) -> Run:
    run = find(store, name)
    if not _output(run, "dataset"):
        raise RefusedError(
            f"The run {run.id} has no data set: its outcome is {run.record['outcome']!r}, and its images were not "
            f"merged. See `medloop explain {run.id}`. Name another run, or leave the name out for the latest run with "
            "a data set."
        )
    return run


def _latest(store: Store) -> Run:
    run = find(store)
    if _output(run, "dataset"):
        return run
    earlier = next((run for run in recent(store, LATEST) if _output(run, "dataset")), None)
    if earlier is None:
        raise RefusedError(
            f"None of the latest {LATEST} runs has a data set; the last one is {run.id}, {run.record['outcome']}. See "
            "`medloop explain`. Name an older run, or run again."
        )
    return earlier


def _output(run: Run, output: str) -> str:
    """Return the digest of this output of the run's last step that has it, or ""."""
    digests = (step["outputs"].get(output) for step in reversed(run.stages) if "outputs" in step)
    return next((digest for digest in digests if digest), "")


def _require(folder: Path, file: str, path: Path, option: str) -> None:
    if not (folder / file).is_file():
        raise RefusedError(
            f"There is no {file} in {path}. Set --{option} to the output of a stage: its directory or its manifest."
        )
