"""What an artifact comes from, proven: the signed results of all the steps that led to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.shared import contracts
from components.shared.contracts import Manifest, fingerprint
from components.shared.ledger import stage_keys
from components.shared.ledger.signing import Verifier
from components.shared.storage.artifacts import check_parts

if TYPE_CHECKING:
    from components.shared.storage.store import Store

MAKERS = {
    "portions": ("ingest",),
    "dataset": ("merge",),
    "splits": ("split",),
    "model": ("train", "quantize"),
    "report": ("evaluate",),
    "decision": ("gate",),
}
"""By which stages an input is made. A previous split and a model in service are named by the release log instead."""
FILE = "lineage.json"
"""The file of a decision that holds the results it rests on."""

LARGEST = 4 * 2**20
"""Bytes that the record of a step's work may have."""

Result = dict[str, Any]


def work_key(stage: str, inputs: Mapping[str, str], parameters: Mapping[str, Any], code: str) -> str:
    """Return the key of a step's work: the digest of its stage, inputs, parameters and code."""
    return fingerprint([stage, inputs, parameters, code])


def check_result(trusted: Verifier, data: bytes, what: str) -> Result:
    """Return the result in `data`, or raise a PermissionError unless the stage that it names signed it."""
    record = stage_keys.check(trusted, "result", data, what)
    if record["stage_key"]["stage"] != record.get("stage"):
        raise PermissionError(
            f"{what} is signed by the stage {record['stage_key']['stage']}, and says that it is of "
            f"{record.get('stage')}: somebody put it there."
        )
    return record


def key_of(record: Result) -> str:
    """Return the work key that follows from what a result says of its step."""
    return work_key(*(record[name] for name in ("stage", "inputs", "parameters", "code")))


def made_by(store: Store, trusted: Verifier, digest: str, stages: Sequence[str]) -> Result:
    """Return the signed result of the step that gave this artifact, or raise a PermissionError where none did."""
    what = f"The artifact {digest[:12]}"
    ref = contracts.try_decode("ref", store.read(f"refs/{digest}.json", LARGEST)) or {}
    key = str(ref.get("key", ""))
    data = store.read(f"work/{key}/result.json", LARGEST) if contracts.is_digest(key) else None
    if data is None:
        raise PermissionError(
            f"{what} is not the result of a step that the store knows, where one of {' or '.join(stages)} is expected. "
            "It was put there by somebody else, or its record was removed. Run again to make it anew."
        )
    try:
        record = check_result(trusted, data, f"The result of {ref.get('stage', 'a step')} that names {digest[:12]}")
        sound = key_of(record) == key and record["stage"] in stages and digest in record["outputs"].values()
    except (KeyError, TypeError, AttributeError, ValueError):
        sound = False
    if not sound:
        raise PermissionError(
            f"{what} is not what a step of {' or '.join(stages)} gave: the record that says so belongs to other work. "
            "Run again to make it anew."
        )
    return record


def check_inputs(store: Store, trusted: Verifier, inputs: Mapping[str, Manifest]) -> None:
    """Raise a PermissionError unless each input that a stage makes was made and signed by such a stage."""
    for name, manifest in inputs.items():
        if name in MAKERS:
            for digest in _members(store, name, manifest):
                made_by(store, trusted, digest, MAKERS[name])


def trace(store: Store, trusted: Verifier, report: str) -> list[Result]:
    """Return the signed results of all steps that led to a report, the report's own first."""
    results: list[Result] = []
    waiting, known = [("report", report)], set()
    while waiting:
        name, digest = waiting.pop(0)
        for each in _parts(store, digest) if name == "portions" else (digest,):
            if each not in known:
                known.add(each)
                results.append(made_by(store, trusted, each, MAKERS[name]))
                waiting += [item for item in results[-1]["inputs"].items() if item[0] in MAKERS]
    return results


def encode(results: Sequence[Result]) -> bytes:
    """Return the content of the file that keeps these results beside a decision."""
    return contracts.encode("lineage", {"results": list(results)})


def signers(data: bytes) -> set[str]:
    """Return the ids of the keys from which those of the steps in `data` follow."""
    return {str(record.get("signer", "")) for record in contracts.decode("lineage", data, FILE)["results"]}


def check(store: Store, trusted: Verifier, data: bytes, verdict: Mapping[str, Any]) -> list[Result]:
    """Return the results in `data`, or raise a PermissionError unless each is signed by its stage and they lead, with
    one data set and one split, to the report and the model of the decision `verdict`.
    """
    results = contracts.decode("lineage", data, FILE)["results"]
    try:
        for record in results:
            check_result(trusted, contracts.encode("result", record), f"A result in {FILE}")
        made = {digest: record for record in results for digest in record["outputs"].values()}
        wrong = _disagreement(store, made, verdict)
    except (KeyError, TypeError, AttributeError) as error:
        wrong = f"something is missing ({error})"
    if wrong:
        raise PermissionError(
            f"The steps behind the decision do not lead to what it decides on: {wrong}. Run again to make it anew."
        )
    return list(results)


def _disagreement(store: Store, made: Mapping[str, Result], verdict: Mapping[str, Any]) -> str:
    """Return the first thing in which the steps and the decision differ, or nothing."""
    subject = verdict["subject"]
    rows = {"dataset": subject["dataset"], "splits": subject["split"]}
    report, model = made[verdict["report"]], made[subject["model"]]
    shipped = model["stage"] == "quantize"
    trained = made[model["inputs"]["model"]] if shipped else model
    split, dataset = made[subject["split"]], made[subject["dataset"]]
    parts = [made[part] for part in _parts(store, dataset["inputs"]["portions"])]
    stages = [(report, "evaluate"), (trained, "train"), (split, "split"), (dataset, "merge")]
    for record, stage in [*stages, *((part, "ingest") for part in parts)]:
        if record["stage"] != stage:
            return f"{record['stage']} gave what {stage} gives"
    for record, names in ((report, rows), (model, rows), (trained, rows), (split, ("dataset",))):
        for name in names:
            if record["inputs"][name] != rows[name]:
                return f"{record['stage']} worked on another {name}"
    shares = sorted(part["parameters"]["part"] for part in parts)
    if shares != sorted(f"{number}/{len(parts)}" for number in range(1, len(parts) + 1)):
        return f"merge had the parts {', '.join(shares)} of the source"
    if report["inputs"]["model"] != subject["model"] or report["parameters"]["precision"] != subject["precision"]:
        return "evaluate judged another model"
    return ""


def check_source(results: Sequence[Result], revision: str) -> None:
    """Raise a PermissionError unless the steps read this state of the source."""
    for record in results:
        if record["stage"] == "ingest" and record["parameters"]["revision"] != revision:
            raise PermissionError(
                "The step ingest behind the report read another state of the source than the run found when it began. "
                "Nothing was decided; run again."
            )


def check_begin(results: Sequence[Result], resolved: Mapping[str, Any]) -> None:
    """Raise a PermissionError unless the steps began with what resolve saw: the source, the key, the model in service
    and the split before.
    """
    check_source(results, resolved["revision"])
    handed = resolved.get("handed") or {}
    for record in results:
        stage, inputs, parameters = record["stage"], record["inputs"], record["parameters"]
        wrong = ""
        if stage == "ingest" and parameters["key_id"] != resolved["key_id"]:
            wrong = "another hash key"
        if stage == "evaluate" and inputs["champion"] != handed.get("champion"):
            wrong = "another model in service"
        if stage == "split" and handed.get("previous") not in (inputs["previous"], *record["outputs"].values()):
            wrong = "another split before it"
        if wrong:
            raise PermissionError(
                f"The step {stage} behind the decision had {wrong} than its run found when it began. Nothing was "
                "released; run again."
            )


def _parts(store: Store, portions: str) -> tuple[str, ...]:
    return _members(store, "portions", Manifest.decode(store.get(portions), "the portions"))


def _members(store: Store, name: str, manifest: Manifest) -> tuple[str, ...]:
    """Return the artifacts that an input consists of: portions are several, anything else is one."""
    if (name == "portions") != bool(manifest.parts):
        raise PermissionError(f"The artifact {name} was put together in another way than medloop does. Run again.")
    if not manifest.parts:
        return (manifest.digest,)
    check_parts(store, manifest)
    return manifest.parts
