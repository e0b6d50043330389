"""The digests of a source's files. Of a bucket's objects they are kept, so that none is fetched twice to be known."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from components.ingest.labels import Labelled
from components.shared import source as sources
from components.shared.contracts import encode, try_decode
from components.shared.keys import HashKey
from components.shared.source import Entry, Source
from components.shared.store import Store
from components.shared.work import progress

AT_ONCE = 8
"""How many files are read side by side."""


def source_digests(
    source: Source, listing: list[Entry], labelled: list[Labelled], store: Store, key: HashKey
) -> list[str]:
    """The digest of each labelled file's content, in their order."""
    entries = {entry.name: entry for entry in listing}
    if source.tells_versions:
        found = _remembered(source, listing, labelled, store, key)
    else:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            digests = pool.map(lambda item: _read(source, entries[item.name], item, key), labelled)
            found = {item.name: digest for item, digest in zip(labelled, digests, strict=True)}
    return [found[item.name] for item in labelled]


def _read(source: Source, entry: Entry, item: Labelled, key: HashKey) -> str:
    try:
        return sources.digest(source, entry)
    except ConnectionError:
        raise  # that is no matter of one file
    except OSError as error:
        where = f"image {key.hash('image', item.name)[:12]}, of class {item.label or 'none'}"
        if not error.strerror:
            raise type(error)(f"{error} It was about {where}.") from None
        raise OSError(
            f"A file of the source cannot be read ({error.strerror}): {where}. Make all of it readable; names of files "
            "are not written down here."
        ) from None


def _remembered(
    source: Source, listing: list[Entry], labelled: list[Labelled], store: Store, key: HashKey
) -> dict[str, str]:
    """Digests by name; what is known of a file stands in one of 256 records, under the keyed hash of its name."""
    place = f"sources/{key.hash('source', source.address)}"
    images = {entry.name: key.hash("image", entry.name) for entry in listing}
    entries = {entry.name: entry for entry in listing}
    parts: dict[str, list[Labelled]] = defaultdict(list)
    for item in labelled:
        parts[f"{place}/{images[item.name][:2]}.json"].append(item)
    present, kept = set(images.values()), set(store.names(place))

    def part(name: str) -> dict[str, str]:
        record = try_decode("source", store.read(name)) if name in kept else None
        before: dict[str, Any] = record["files"] if record else {}
        after = {image: about for image, about in before.items() if image in present}
        found = {}
        for item in parts.get(name, []):
            entry, known = entries[item.name], before.get(images[item.name], {})
            version = {"size": entry.size, "etag": entry.changed}
            if {"size": known.get("size"), "etag": known.get("etag")} != version:
                known = {**version, "digest": _read(source, entry, item, key)}
            after[images[item.name]] = known
            found[item.name] = known["digest"]
        if after != before:
            store.write(name, encode("source", {"files": after}))
        return found

    found: dict[str, str] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for digests in pool.map(part, sorted({*parts, *kept})):
            found |= digests
            progress("ingest", len(found), len(labelled), "files looked at")
    return found
