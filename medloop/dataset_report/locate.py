"""Who stands behind a hash: names at the source are hashed with the key at hand until one fits."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from components.shared.contracts import Manifest
from components.shared.errors import NotFoundError, RefusedError, UnavailableError
from components.shared.imaging.header import FIELDS, read_fields
from components.shared.ledger import release_log
from components.shared.privacy import hash_keys
from components.shared.privacy.hash_keys import HashKey
from components.shared.storage import source as sources
from components.shared.storage.source import Entry, Source
from components.shared.storage.store import Store
from medloop.runner.run import Run
from medloop.runner.run import find as find_run
from medloop.settings import Settings, hash_key

DICOM = (".dcm", ".dicom")


@dataclass(frozen=True)
class Found:
    """An image, by the name of its file, or a patient, by the name they go under, with their files."""

    kind: str
    hash: str
    key_id: str
    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Index:
    """What the latest data set of the source says: the images of each patient, and the frames that images may be."""

    patients: dict[str, set[str]]
    frames: tuple[int, ...]


def find(settings: Settings, store: Store, address: str, beginning: str) -> Found:
    """The one image or patient of the source whose hash begins so; LookupError where there is none or are several.

    Hashes that were made before the key was rotated are found, too.
    """
    run = _latest(store) if address else find_run(store)
    address = address or str(run.record["arguments"]["source"] if run else "")
    key = _key(settings, store, address)
    place = sources.open_source(address)
    entries = place.entries()
    index = _index(store, run, beginning) if run else _Index({}, (-1,))
    found = [*_images(key, entries, index, beginning), *_patients(key, place, entries, index, beginning)]
    if not found:
        raise NotFoundError(
            f"Nothing at the source has a hash that begins with {beginning} under the key {key.id}. It may have left "
            "the source, stand at another one (name it with --source), or be of a store with another key."
        )
    if len({(each.kind, each.hash) for each in found}) > 1:
        raise NotFoundError(
            f"{len(found)} images and patients have a hash that begins with {beginning}. Give more of it."
        )
    return found[0]


def _latest(store: Store) -> Run | None:
    """The latest run, for what its data set tells of frames; a source can be looked through without one."""
    try:
        return find_run(store)
    except ValueError:
        return None


def _key(settings: Settings, store: Store, address: str) -> HashKey:
    text = hash_key(settings, address, make=False)
    if not text:
        raise UnavailableError(
            "There is no hash key here, and only who has it can tell. Put it back: medloop keys restore FILE"
        )
    key, known = hash_keys.parse(text), release_log.key_id(release_log.read_log(store))
    if known not in ("", key.id):
        raise RefusedError(
            f"The hash key at hand has the id {key.id}, and this store was made with key {known}: no hash of it can be "
            f"told. Set {hash_keys.VARIABLE} to that key, or put it back: medloop keys restore FILE"
        )
    return key


def _index(store: Store, run: Run, beginning: str) -> _Index:
    from components.shared.datasets.parquet_tables import read_table

    digests = [step.get("outputs", {}).get("dataset") for step in run.stages]
    made = next((digest for digest in reversed(digests) if digest and store.has(digest)), None)
    blob = Manifest.decode(store.get(made), made[:12]).files.get("index.parquet") if made else None
    if blob is None:
        return _Index({}, (-1,))
    rows = read_table(store.fetch(blob.digest), columns=["image_id", "patient_id", "frame"]).to_pylist()
    rows = [row for row in rows if row["image_id"].startswith(beginning) or row["patient_id"].startswith(beginning)]
    patients = defaultdict(set)
    for row in rows:
        if row["patient_id"].startswith(beginning):
            patients[row["patient_id"]].add(row["image_id"])
    return _Index(dict(patients), tuple({-1, *(row["frame"] for row in rows)}))


def _images(key: HashKey, entries: list[Entry], index: _Index, beginning: str) -> Iterator[Found]:
    for state in key.earlier():
        for entry in entries:
            for frame in index.frames:
                image = state.image(entry.name, frame)
                if image.startswith(beginning):
                    yield Found("image", image, state.id, entry.name, (entry.name,))


def _patients(key: HashKey, place: Source, entries: list[Entry], index: _Index, beginning: str) -> Iterator[Found]:
    images = set().union(*index.patients.values())
    theirs = [entry for entry in entries if any(key.image(entry.name, frame) in images for frame in index.frames)]
    tables = _cells(place, entries)
    looked_at = theirs or entries
    for names in (_from_names_and_tables, _from_headers):
        files: dict[str, list[str]] = defaultdict(list)
        for name, file in names(place, looked_at, tables):
            files[name].append(file)
        found = []
        for state in key.earlier():
            for name, of_name in files.items():
                patient = state.hash("patient", name)
                if patient.startswith(beginning):
                    mine = sorted({*of_name, *(entry.name for entry in theirs)})
                    found.append(Found("patient", patient, state.id, name, tuple(mine)))
        if found:
            yield from found
            return
    for patient in index.patients:
        yield Found("patient", patient, key.id, "", tuple(entry.name for entry in theirs))


def _from_names_and_tables(
    _place: Source, entries: Iterable[Entry], tables: dict[str, set[str]]
) -> Iterator[tuple[str, str]]:
    """What may be a patient's name: in a file's name any of its words, or several in a row; all of its table's line."""
    for entry in entries:
        path = PurePosixPath(entry.name)
        said = {*path.parts[:-1], *tables.get(entry.name, ()), *tables.get(path.name, ())}
        for part in (path.stem, *path.parts[:-1]):
            bounds = [(found.start(), found.end()) for found in re.finditer(r"[^\W_]+", part)]
            said |= {part[a:d] for place, (a, _) in enumerate(bounds) for _, d in bounds[place:]} | {part}
        yield from ((name, entry.name) for name in said)


def _from_headers(place: Source, entries: Iterable[Entry], _tables: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    from pydicom import dcmread

    wanted = [field.attribute for field in FIELDS.values()]
    for entry in entries:
        if not entry.name.lower().endswith(DICOM):
            continue
        with warnings.catch_warnings(), place.file(entry) as path:
            warnings.simplefilter("ignore")
            try:
                patient = read_fields(dcmread(path, stop_before_pixels=True, specific_tags=wanted))["patient_id"]
            except Exception:  # noqa: S112 - a damaged file has no patient to tell of
                continue
        if patient:
            yield patient, entry.name


def _rows(text: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(io.StringIO(text))
    except csv.Error:
        return  # a table that nobody can read tells no more


def _cells(place: Source, entries: list[Entry]) -> dict[str, set[str]]:
    """All that tables say in lines that name a file, by that file: which column holds the patient is theirs to know."""
    names = {entry.name for entry in entries} | {PurePosixPath(entry.name).name for entry in entries}
    cells: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if not entry.name.lower().endswith(".csv"):
            continue
        with place.file(entry) as path:
            text = path.read_text(encoding="utf-8-sig", errors="replace")
        for row in _rows(text):
            values = [value.strip() for value in row]
            for name in {value.replace("\\", "/").removeprefix("./") for value in values} & names:
                cells[name] |= {value for value in values if value}
    return cells
