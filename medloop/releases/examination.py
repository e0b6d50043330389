"""The examination of the release log: whether every entry, and all that it names, is as it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from components.shared.contracts import Manifest, decode, digest, try_decode
from components.shared.errors import RefusedError
from components.shared.ledger import lineage, release_log, signing
from components.shared.ledger.release_log import Entry
from components.shared.ledger.signing import Verifier
from components.shared.parsing.json_documents import parse_json
from components.shared.privacy.redaction import printable
from components.shared.storage.store import Store, record_number

NAMED = ("decision", "report", "model", "card")
"""What an entry names by digest, and what must be in the store, unchanged, as long as the log is."""


SHOWN = 5
"""Number of foreign files that are named."""


@dataclass
class Found:
    """What an audit came to: the log's length and head, how many entries are covered by signatures, what is wrong."""

    entries: int = 0
    head: str = ""
    signed: int = 0
    objects: int = 0
    steps: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(store: Store, trusted: Verifier | None) -> tuple[Found, list[Entry]]:
    """Every entry and object of a store's log looked at; and the entries, as far as they can be read."""
    found = Found()
    log: list[Entry] = []
    bad = _read(store, found, log)
    found.entries, found.head = len(release_log.entry_names(store)), release_log.head(log)
    if foreign := release_log.foreign_names(store):
        found.notes.append(f"{foreign_files(foreign)} Nobody reads them; move them away.")
    if trusted:
        bad |= _signatures(found, log, trusted)
    elif log:
        found.notes.append(
            "Signatures were not checked: MEDLOOP_VERIFY_KEYS is not set. Who may write into the store could have "
            "written the log anew from any entry on; only a head that was kept elsewhere would tell."
        )
    for before, entry in pairwise(log):
        follows = entry.number == before.number + 1 and entry.record["before"] != before.hash
        if follows and not {before.number, entry.number} & bad:  # else it is told already what is wrong there
            found.problems.append(
                f"Entry {entry.number} does not follow entry {before.number} as that is now: one of the two was "
                "changed."
            )
    if not found.problems:
        try:
            release_log.history(log)
        except ValueError as error:
            found.problems.append(str(error))
    for entry in log:
        _objects(found, store, entry, trusted)
    return found, log


def _read(store: Store, found: Found, log: list[Entry]) -> set[int]:
    """Read what can be read, and say what cannot; gives the numbers of the entries with which something is wrong."""
    bad: set[int] = set()
    expected = 1
    for name in release_log.entry_names(store):
        number = record_number(name, release_log.FOLDER)
        if number == expected + 1:
            found.problems.append(f"Entry {expected} is missing: it was removed.")
        elif number > expected:
            found.problems.append(
                f"Entries {expected} to {number - 1} are missing: they were removed, or entry {number} was put in."
            )
        if number > expected:
            bad |= {expected - 1, number}
        expected = number + 1
        try:
            data = release_log.read_entry(store, name)
        except (OSError, ValueError) as error:
            found.problems.append(f"Entry {number} cannot be read. {error}")
            bad |= {number - 1, number, number + 1}
            continue
        try:
            record = decode("release", data, f"entry {number}")
            if not {"number", "before", "what", "at"} <= set(record):
                raise RefusedError(f"entry {number} lacks fields that every entry has")
        except ValueError as error:
            found.problems.append(f"Entry {number} was changed or cut: {str(error).rstrip('.')}.")
            bad |= {number - 1, number, number + 1}
            continue
        if record["number"] != number:
            found.problems.append(
                f"In the place of entry {number} stands one that says it is entry {record['number']}: entries were put "
                "in another order, or one was put in."
            )
            bad |= {number - 1, number, number + 1}
            continue
        log.append(release_log.Entry(number, digest(data), record, data))
    if log and log[0].number == 1 and log[0].record["before"]:
        found.problems.append("Entry 1 names an entry before it: the beginning of the log was removed.")
    return bad


def _signatures(found: Found, log: list[Entry], trusted: Verifier) -> set[int]:
    bad: set[int] = set()
    sealed = 0
    for entry in reversed(log):
        covered = entry.number < sealed
        try:
            if str(entry.record.get("signer", "")) in trusted.keys or not covered:
                what = f"Entry {entry.number} of the release log"
                signing.check_record(trusted, "release", entry.data, what)
            found.signed += 1
        except PermissionError as error:
            found.problems.append(str(error))
            bad.add(entry.number)
            continue
        if entry.kind == "seal" and not covered:
            sealed = entry.number
    return bad


def _objects(found: Found, store: Store, entry: Entry, trusted: Verifier | None) -> None:
    """Whether what an entry names is in the store, and is what the entry says."""
    held: dict[str, Manifest] = {}
    for name in NAMED:
        named = entry.record.get(name)
        if not isinstance(named, str) or not named:
            continue
        try:
            held[name] = Manifest.decode(store.get(named), f"the {name} of entry {entry.number}")
            store.fetch_all(blob.digest for blob in held[name].files.values())
            found.objects += 1
        except (OSError, ValueError) as error:
            why = str(error.args[-1] if error.args else error).rstrip(".")
            found.problems.append(f"The {name} that entry {entry.number} names is missing or was changed: {why}.")
            held.pop(name, None)
    if "decision" in held and entry.kind in ("release", "refusal", "awaiting"):
        _decision(found, store, entry, held["decision"], trusted)


def _decision(found: Found, store: Store, entry: Entry, manifest: Manifest, trusted: Verifier | None) -> None:
    """Whether the decision is about what the entry says, and signed as the entry is."""
    what = f"The decision that entry {entry.number} names"
    if "decision.json" not in manifest.files:
        found.problems.append(f"{what} holds no decision.json.")
        return
    data = store.get(manifest.files["decision.json"].digest)
    try:
        verdict = parse_json(data)  # whatever its schema: it may be of an earlier version
    except ValueError:
        verdict = {}
    verdict = verdict if isinstance(verdict, dict) else {}
    subject = verdict.get("subject")
    subject = subject if isinstance(subject, dict) else {}
    if subject.get("model") != entry.record.get("model") or verdict.get("report") != entry.record.get("report"):
        found.problems.append(f"{what} is about another model or report.")
    if entry.kind == "release" and verdict.get("outcome") not in ("approved", "awaiting approval"):
        found.problems.append(f"{what} is {verdict.get('outcome')!r}, and the entry releases the model all the same.")
    if trusted is None or "signature" not in entry.record:
        return
    file = manifest.files.get("decision.sig")
    beside = (try_decode("signature", store.get(file.digest)) if file else None) or {}
    by = str(beside.get("signer", ""))
    if by and by not in trusted.keys:
        found.notes.append(f"{what} is signed with the key {by}, which is not trusted now.")
        return
    try:
        trusted.check("decision", data, str(beside.get("signature", "")), what, by)
        _steps(found, store, trusted, manifest, verdict, what)
    except (PermissionError, ValueError) as error:
        found.problems.append(str(error))


def _steps(
    found: Found, store: Store, trusted: Verifier, manifest: Manifest, verdict: dict[str, Any], what: str
) -> None:
    """Check the signed results of the steps that the decision rests on; say where it was made without them."""
    file, page = manifest.files.get(lineage.FILE), manifest.files.get("page.html")
    if page is None or page.digest != verdict.get("page"):
        found.problems.append(f"{what} does not hold the page that was signed with it.")
    if not verdict.get("lineage"):
        found.notes.append(f"{what} was made by a version of medloop that did not sign the steps before it.")
    elif file is None or file.digest != verdict["lineage"]:
        found.problems.append(f"{what} does not hold the steps that were signed with it.")
    elif signers := sorted(lineage.signers(store.get(file.digest)) - set(trusted.keys)):
        found.notes.append(f"{what} rests on steps signed with the key {', '.join(signers)}, which is not trusted now.")
    else:
        found.steps += len(lineage.check(store, trusted, store.get(file.digest), verdict))


def foreign_files(names: list[str]) -> str:
    """The sentence that names files in the log's folder which are no entries."""
    shown = ", ".join(repr(name) for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    files = "1 file that is not an entry" if len(names) == 1 else f"{len(names)} files that are not entries"
    return f"The folder of the release log holds {files}: {shown}."


def told(found: Found, store: Store) -> str:
    """What an audit came to, in plain sentences."""
    lines = [printable(f"✗ {problem}") for problem in found.problems]
    lines += [printable(f"· {note}") for note in found.notes]
    count = f"{found.entries} {'entry' if found.entries == 1 else 'entries'}"
    if found.problems:
        wrong = len(found.problems)
        things = "One thing is" if wrong == 1 else f"{wrong} things are"
        lines.append(f"{things} wrong with the release log of {store.uri} ({count}). Restore it from a copy.")
    elif not found.entries:
        lines.append(f"The release log of {store.uri} is empty.")
    else:
        signed = f", {found.signed} of them under signatures of trusted keys" if found.signed else ""
        steps = f", with {found.steps} signed steps behind them" if found.steps else ""
        lines.append(
            f"✓ The release log of {store.uri} is whole: {count}{signed}, and {found.objects} decisions, reports, "
            f"models and cards as they name them{steps}.\n  Head: {found.head}"
        )
    return "\n".join(lines)
