"""Find the file or patient that has a given hash, by hashing the names at the source."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from components.ingest.source_table import SEPARATORS, encoding_of
from components.shared.contracts import Manifest
from components.shared.errors import NotFoundError, RefusedError, UnavailableError
from components.shared.ledger import release_log
from components.shared.privacy import keyed_hash
from components.shared.privacy.keyed_hash import HashKey
from components.shared.privacy.pseudonyms import FIELDS, read_fields
from components.shared.storage import image_source as sources
from components.shared.storage.image_source import Entry, Source
from components.shared.storage.store import Store
from medloop.runner.run import Run
from medloop.runner.run import find as find_run
from medloop.settings import Settings, hash_key

DICOM = (".dcm", ".dicom")


@dataclass(frozen=True)
class Match:
    """An image with the name of its file, or a patient with name and files."""

    kind: str
    hash: str
    key_id: str
    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Index:
    """Images per patient, and possible frame numbers, from the latest data set."""

    patients: dict[str, set[str]]
    frames: tuple[int, ...]


def find(settings: Settings, store: Store, address: str, beginning: str) -> Match:
    """Return the image or patient whose hash begins so; raise NotFoundError if there are none or several.

    Hashes from before a rotation of the key are found, too.
    """
    run = _latest(store) if address else find_run(store)
    address = address or str(run.record["arguments"]["source"] if run else "")
    key = _key(settings, store, address)
    source = sources.open_source(address)
    entries = source.entries()
    index = _index(store, run, beginning) if run else _Index({}, (-1,))
    matches = [*_images(key, entries, index, beginning), *_patients(key, source, entries, index, beginning)]
    if not matches:
        raise NotFoundError(
            f"No image or patient at the source has a hash that begins with {beginning} under the key {key.id}. It may "
            "have been removed, be at another source (set --source), or belong to a store with another key."
        )
    if len({(match.kind, match.hash) for match in matches}) > 1:
        raise NotFoundError(
            f"{len(matches)} images and patients have a hash that begins with {beginning}. Give more digits."
        )
    return matches[0]


def _latest(store: Store) -> Run | None:
    """Return the latest run, if any; its data set is optional here."""
    try:
        return find_run(store)
    except ValueError:
        return None


def _key(settings: Settings, store: Store, address: str) -> HashKey:
    text = hash_key(settings, address, make=False)
    if not text:
        raise UnavailableError(
            "There is no hash key, which is required to find a hash. Restore it: medloop keys restore FILE"
        )
    key, store_key = keyed_hash.parse(text), release_log.key_id(release_log.read_log(store))
    if store_key not in ("", key.id):
        raise RefusedError(
            f"The current hash key has the id {key.id}, but this store uses the key {store_key}, so its hashes cannot "
            f"be found. Set {keyed_hash.VARIABLE} to that key, or restore it: medloop keys restore FILE"
        )
    return key


def _index(store: Store, run: Run, beginning: str) -> _Index:
    from components.shared.datasets.parquet_tables import read_table

    digests = [step.get("outputs", {}).get("dataset") for step in run.stages]
    latest = next((digest for digest in reversed(digests) if digest and store.has(digest)), None)
    blob = Manifest.decode(store.get(latest), latest[:12]).files.get("index.parquet") if latest else None
    if blob is None:
        return _Index({}, (-1,))
    rows = read_table(store.fetch(blob.digest), columns=["image_id", "patient_id", "frame"]).to_pylist()
    rows = [row for row in rows if row["image_id"].startswith(beginning) or row["patient_id"].startswith(beginning)]
    patients = defaultdict(set)
    for row in rows:
        if row["patient_id"].startswith(beginning):
            patients[row["patient_id"]].add(row["image_id"])
    return _Index(dict(patients), tuple({-1, *(row["frame"] for row in rows)}))


def _images(key: HashKey, entries: list[Entry], index: _Index, beginning: str) -> Iterator[Match]:
    for state in key.earlier_states():
        for entry in entries:
            for frame in index.frames:
                image = state.image(entry.name, frame)
                if image.startswith(beginning):
                    yield Match("image", image, state.id, entry.name, (entry.name,))


def _patients(key: HashKey, source: Source, entries: list[Entry], index: _Index, beginning: str) -> Iterator[Match]:
    images = set().union(*index.patients.values())
    theirs = [entry for entry in entries if any(key.image(entry.name, frame) in images for frame in index.frames)]
    tables = _cells(source, entries)
    for candidates in (_from_names_and_tables, _from_headers):
        files: dict[str, list[str]] = defaultdict(list)
        for name, file in candidates(source, theirs or entries, tables):
            files[name].append(file)
        matches = []
        for state in key.earlier_states():
            for name, files_of_name in files.items():
                patient = state.hash("patient", name)
                if patient.startswith(beginning):
                    all_files = sorted({*files_of_name, *(entry.name for entry in theirs)})
                    matches.append(Match("patient", patient, state.id, name, tuple(all_files)))
        if matches:
            yield from matches
            return
    for patient in index.patients:
        yield Match("patient", patient, key.id, "", tuple(entry.name for entry in theirs))


def _from_names_and_tables(
    _source: Source, entries: Iterable[Entry], tables: dict[str, set[str]]
) -> Iterator[tuple[str, str]]:
    """Yield possible patient names with their file: word sequences of the path, and cells of its row in a table."""
    for entry in entries:
        path = PurePosixPath(entry.name)
        names = {entry.name, *path.parts[:-1], *tables.get(entry.name, ()), *tables.get(path.name, ())}
        for part in (path.stem, *path.parts[:-1]):
            words = [word.span() for word in re.finditer(r"[^\W_]+", part)]
            names |= {part[start:end] for index, (start, _) in enumerate(words) for _, end in words[index:]} | {part}
        yield from ((name, entry.name) for name in names)


def _from_headers(source: Source, entries: Iterable[Entry], _tables: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    from pydicom import dcmread

    tags = [field.attribute for field in FIELDS.values()]
    for entry in entries:
        if not entry.name.lower().endswith(DICOM):
            continue
        with warnings.catch_warnings(), source.file(entry) as path:
            warnings.simplefilter("ignore")
            try:
                patient = read_fields(dcmread(path, stop_before_pixels=True, specific_tags=tags))["patient_id"]
            except Exception:  # noqa: S112 - skip damaged files
                continue
        if patient:
            yield patient, entry.name


def _rows(text: str) -> Iterator[list[str]]:
    """Yield the rows of a table, read with each separator."""
    for separator in SEPARATORS:
        with suppress(csv.Error):  # ignore the rest of an invalid table
            yield from csv.reader(io.StringIO(text), delimiter=separator)


def _cells(source: Source, entries: list[Entry]) -> dict[str, set[str]]:
    """Return all cells of table rows that contain a file name, by file. Any column may contain the patient."""
    names = {entry.name for entry in entries} | {PurePosixPath(entry.name).name for entry in entries}
    cells: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if not entry.name.lower().endswith(".csv"):
            continue
        with source.file(entry) as path:
            text = path.read_text(encoding=encoding_of(path), errors="replace")
        for row in _rows(text):
            values = [value.strip() for value in row]
            for name in {value.replace("\\", "/").removeprefix("./") for value in values} & names:
                cells[name] |= {value for value in values if value}
    return cells
