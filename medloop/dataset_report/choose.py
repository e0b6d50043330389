"""Which data set is meant, that of a run or one by its place; and it is laid out for reading."""

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
"""Among how many of the latest runs one with a data set is looked for."""


@dataclass(frozen=True)
class Chosen:
    """A data set and, where there is one, its split: directories to read, whose they are, the page they are to have."""

    whose: str
    dataset: Path
    splits: Path | None
    artifacts: dict[str, str]
    """The digests that name the artifacts, where they are known."""
    page: Path


@contextmanager
def of_run(settings: Settings, store: Store, name: str) -> Iterator[Chosen]:
    """The data set of the run that has this name, or of the latest run that has one."""
    run = _named(store, name) if name else _latest(store)
    digests = {output: digest for output in ("dataset", "splits") if (digest := _output(run, output))}
    with _folders() as folder:
        for output, digest in digests.items():
            lay_out(store, Manifest.decode(store.get(digest), output), folder / output)
        splits = folder / "splits" if "splits" in digests else None
        page = settings.runs / run.id / "data.html"
        yield Chosen(f"the run {run.id}", folder / "dataset", splits, digests, page)


@contextmanager
def at(settings: Settings, store: Store, dataset: Path, splits: Path | None) -> Iterator[Chosen]:
    """The data set in a directory, or the one that a manifest names; its split likewise."""
    given = {"dataset": dataset} | ({"splits": splits} if splits else {})
    digests: dict[str, str] = {}
    with _folders() as folder:
        for output, path in given.items():
            if path.is_dir():
                (folder / output).symlink_to(path.absolute())
                continue
            manifest = Manifest.decode(path.read_bytes(), path.name)
            digests[output] = manifest.digest
            lay_out(store, manifest, folder / output)
        _whole(folder / "dataset", "dataset.json", dataset, "dataset")
        if splits:
            _whole(folder / "splits", "split.json", splits, "splits")
        name = read_record("dataset", folder / "dataset" / "dataset.json")["fingerprint"][:12]
        page = settings.home / "data" / f"{name}.html"
        yield Chosen(str(dataset), folder / "dataset", folder / "splits" if splits else None, digests, page)


@contextmanager
def _folders() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="medloop-data-") as scratch:
        yield Path(scratch)


def _named(store: Store, name: str) -> Run:
    run = find(store, name)
    if not _output(run, "dataset"):
        began = (
            f"it {run.record['outcome']}" if run.record["outcome"] in ("failed", "interrupted") else "so far it went"
        )
        raise RefusedError(
            f"The run {run.id} has no data set: {began} before its images were gathered. "
            f"`medloop explain {run.id}` says why; name another run, or leave the name out for the latest that has one."
        )
    return run


def _latest(store: Store) -> Run:
    run = find(store)
    if _output(run, "dataset"):
        return run
    earlier = next((run for run in recent(store, LATEST) if _output(run, "dataset")), None)
    if earlier is None:
        raise RefusedError(
            f"None of the latest runs (up to {LATEST}) has a data set; the last one is {run.id}, "
            f"{run.record['outcome']}. `medloop explain` says why. Name an older run, or run again."
        )
    return earlier


def _output(run: Run, output: str) -> str:
    """The digest of what the run's last step gave that has this output, or nothing."""
    given = (step["outputs"].get(output) for step in reversed(run.stages) if "outputs" in step)
    return next((digest for digest in given if digest), "")


def _whole(folder: Path, wanted: str, given: Path, option: str) -> None:
    if not (folder / wanted).is_file():
        raise RefusedError(
            f"There is no {wanted} in {given}. Give --{option} what a stage gave: its directory, or its manifest."
        )
