"""Verification of the release log: whether every entry, and every artifact it names, is unchanged."""

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
from components.shared.privacy.secret_redaction import printable
from components.shared.storage.store import Store, record_number

NAMED = ("decision", "report", "model", "card")
"""Fields with digests of artifacts that must stay in the store unchanged."""

SHOWN = 5
"""Number of foreign files that are listed."""


@dataclass
class AuditResult:
    """Result of an audit: length and head of the log, number of verified entries, objects and steps, and problems."""

    entries: int = 0
    head: str = ""
    signed: int = 0
    objects: int = 0
    steps: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_log(store: Store, trusted: Verifier | None) -> tuple[AuditResult, list[Entry]]:
    """Verify all entries and objects of a store's log; return the result and the readable entries."""
    result = AuditResult()
    log: list[Entry] = []
    bad = _read(store, result, log)
    result.entries, result.head = len(release_log.entry_names(store)), release_log.head(log)
    if foreign := release_log.foreign_names(store):
        result.notes.append(f"{describe_foreign_files(foreign)} They are ignored; move them elsewhere.")
    if trusted:
        bad |= _signatures(result, log, trusted)
    elif log:
        result.notes.append(
            "Signatures were not verified: MEDLOOP_VERIFY_KEYS is not set. Anyone with write access to the store could "
            "have rewritten the log; only a head kept elsewhere reveals that."
        )
    for before, entry in pairwise(log):
        broken = entry.number == before.number + 1 and entry.record["before"] != before.hash
        if broken and not {before.number, entry.number} & bad:  # otherwise already reported
            result.problems.append(
                f"Entry {entry.number} does not contain the hash of entry {before.number}: one of them was changed."
            )
    if not result.problems:
        try:
            release_log.history(log)
        except ValueError as error:
            result.problems.append(str(error))
    for entry in log:
        _objects(result, store, entry, trusted)
    return result, log


def _read(store: Store, result: AuditResult, log: list[Entry]) -> set[int]:
    """Read the entries into `log`, report unreadable ones, and return the numbers of affected entries."""
    bad: set[int] = set()
    expected = 1
    for name in release_log.entry_names(store):
        number = record_number(name, release_log.FOLDER)
        if number == expected + 1:
            result.problems.append(f"Entry {expected} is missing: it was removed.")
        elif number > expected:
            result.problems.append(
                f"Entries {expected} to {number - 1} are missing: they were removed, or entry {number} was inserted."
            )
        if number > expected:
            bad |= {expected - 1, number}
        expected = number + 1
        try:
            data = release_log.read_entry(store, name)
        except (OSError, ValueError) as error:
            result.problems.append(f"Entry {number} cannot be read. {error}")
            bad |= {number - 1, number, number + 1}
            continue
        try:
            record = decode("release", data, f"entry {number}")
            if not {"number", "before", "what", "at"} <= set(record):
                raise RefusedError(f"entry {number} lacks required fields")
        except ValueError as error:
            result.problems.append(f"Entry {number} was changed or truncated: {str(error).rstrip('.')}.")
            bad |= {number - 1, number, number + 1}
            continue
        if record["number"] != number:
            result.problems.append(
                f"The file of entry {number} contains entry {record['number']}: entries were reordered or inserted."
            )
            bad |= {number - 1, number, number + 1}
            continue
        log.append(release_log.Entry(number, digest(data), record, data))
    if log and log[0].number == 1 and log[0].record["before"]:
        result.problems.append("Entry 1 refers to an earlier entry: the beginning of the log was removed.")
    return bad


def _signatures(result: AuditResult, log: list[Entry], trusted: Verifier) -> set[int]:
    bad: set[int] = set()
    sealed = 0
    for entry in reversed(log):
        covered = entry.number < sealed
        try:
            if str(entry.record.get("signer", "")) in trusted.keys or not covered:
                what = f"Entry {entry.number} of the release log"
                signing.check_record(trusted, "release", entry.data, what)
            result.signed += 1
        except PermissionError as error:
            result.problems.append(str(error))
            bad.add(entry.number)
            continue
        if entry.kind == "seal" and not covered:
            sealed = entry.number
    return bad


def _objects(result: AuditResult, store: Store, entry: Entry, trusted: Verifier | None) -> None:
    """Verify that the artifacts of an entry are in the store and unchanged."""
    manifests: dict[str, Manifest] = {}
    for name in NAMED:
        digest_of_artifact = entry.record.get(name)
        if not isinstance(digest_of_artifact, str) or not digest_of_artifact:
            continue
        try:
            manifests[name] = Manifest.decode(store.get(digest_of_artifact), f"the {name} of entry {entry.number}")
            store.fetch_all(blob.digest for blob in manifests[name].files.values())
            result.objects += 1
        except (OSError, ValueError) as error:
            why = str(error.args[-1] if error.args else error).rstrip(".")
            result.problems.append(f"The {name} of entry {entry.number} is missing or was changed: {why}.")
            manifests.pop(name, None)
    if "decision" in manifests and entry.kind in ("release", "refusal", "awaiting"):
        _decision(result, store, entry, manifests["decision"], trusted)


def _decision(result: AuditResult, store: Store, entry: Entry, manifest: Manifest, trusted: Verifier | None) -> None:
    """Verify that the decision matches the entry and has a valid signature if the entry is signed."""
    what = f"The decision of entry {entry.number}"
    if "decision.json" not in manifest.files:
        result.problems.append(f"{what} contains no decision.json.")
        return
    data = store.get(manifest.files["decision.json"].digest)
    try:
        verdict = parse_json(data)  # of any schema: it may be from an earlier version
    except ValueError:
        verdict = {}
    verdict = verdict if isinstance(verdict, dict) else {}
    subject = verdict.get("subject")
    subject = subject if isinstance(subject, dict) else {}
    if subject.get("model") != entry.record.get("model") or verdict.get("report") != entry.record.get("report"):
        result.problems.append(f"{what} belongs to another model or report.")
    if entry.kind == "release" and verdict.get("outcome") not in ("approved", "awaiting approval"):
        result.problems.append(f"{what} is {verdict.get('outcome')!r}, but the entry releases the model.")
    if trusted is None or "signature" not in entry.record:
        return
    file = manifest.files.get("decision.sig")
    signature = (try_decode("signature", store.get(file.digest)) if file else None) or {}
    by = str(signature.get("signer", ""))
    if by and by not in trusted.keys:
        result.notes.append(f"{what} is signed with the key {by}, which is not trusted now.")
        return
    try:
        trusted.check("decision", data, str(signature.get("signature", "")), what, by)
        _steps(result, store, trusted, manifest, verdict, what)
    except (PermissionError, ValueError) as error:
        result.problems.append(str(error))


def _steps(
    result: AuditResult, store: Store, trusted: Verifier, manifest: Manifest, verdict: dict[str, Any], what: str
) -> None:
    """Verify the page and the signed steps behind the decision."""
    file, page = manifest.files.get(lineage.FILE), manifest.files.get("page.html")
    if page is None or page.digest != verdict.get("page"):
        result.problems.append(f"{what} does not contain the page that was signed with it.")
    if not verdict.get("lineage"):
        result.notes.append(f"{what} was made by a version of medloop that did not sign the preceding steps.")
    elif file is None or file.digest != verdict["lineage"]:
        result.problems.append(f"{what} does not contain the steps that were signed with it.")
    elif signers := sorted(lineage.signers(store.get(file.digest)) - set(trusted.keys)):
        result.notes.append(
            f"{what} is based on steps signed with the key {', '.join(signers)}, which is not trusted now."
        )
    else:
        result.steps += len(lineage.check(store, trusted, store.get(file.digest), verdict))


def describe_foreign_files(names: list[str]) -> str:
    """Return a sentence about files in the log's folder that are not entries."""
    shown = ", ".join(repr(name) for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    files = "1 file that is not an entry" if len(names) == 1 else f"{len(names)} files that are not entries"
    return f"The folder of the release log contains {files}: {shown}."


def describe(result: AuditResult, store: Store) -> str:
    """Return the result of an audit as text."""
    lines = [printable(f"✗ {problem}") for problem in result.problems]
    lines += [printable(f"· {note}") for note in result.notes]
    count = f"{result.entries} {'entry' if result.entries == 1 else 'entries'}"
    if result.problems:
        number = f"{len(result.problems)} problem{'s' * (len(result.problems) != 1)}"
        lines.append(f"The release log of {store.uri} ({count}) has {number}. Restore it from a copy.")
    elif not result.entries:
        lines.append(f"The release log of {store.uri} is empty.")
    else:
        signed = f" ({result.signed} with trusted signatures)" if result.signed else ""
        steps = f" and {result.steps} signed steps" if result.steps else ""
        lines.append(
            f"✓ The release log of {store.uri} is intact: {count}{signed}, {result.objects} decisions, reports, models "
            f"and cards{steps}.\n  Head: {result.head}"
        )
    return "\n".join(lines)
