"""The lineage of artifacts: the signed results of all steps that led to an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.shared import contracts
from components.shared.contracts import Manifest, fingerprint
from components.shared.ledger import stage_signing
from components.shared.ledger.signing import Verifier
from components.shared.storage.artifacts import check_parts

if TYPE_CHECKING:
    from components.shared.storage.store import Store

PRODUCERS = {
    "portions": ("ingest",),
    "dataset": ("merge",),
    "splits": ("split",),
    "model": ("train", "quantize"),
    "report": ("evaluate",),
    "decision": ("gate",),
}
"""Stages that produce each input. The release log names previous splits and models in service."""
FILE = "lineage.json"
"""The file of a decision with the results of the steps behind it."""
MAX_BYTES = 4 * 2**20
"""Maximum size of the record of a step's work."""

Result = dict[str, Any]


def work_key(stage: str, inputs: Mapping[str, str], parameters: Mapping[str, Any], code: str) -> str:
    """Return the key of a step's work: the digest of its stage, inputs, parameters and code."""
    return fingerprint([stage, inputs, parameters, code])


def check_result(trusted: Verifier, data: bytes, what: str) -> Result:
    """Return the result in `data`, or raise a PermissionError unless the stage that it names signed it."""
    record = stage_signing.check(trusted, "result", data, what)
    if record["stage_key"]["stage"] != record.get("stage"):
        raise PermissionError(
            f"{what} is signed by the stage {record['stage_key']['stage']}, but names {record.get('stage')} as its "
            "stage: it was forged."
        )
    return record


def key_of(record: Result) -> str:
    """Return the work key that follows from a result's stage, inputs, parameters and code."""
    return work_key(*(record[name] for name in ("stage", "inputs", "parameters", "code")))


def find_result(store: Store, trusted: Verifier, digest: str, stages: Sequence[str]) -> Result:
    """Return the signed result of the step that produced this artifact; raise a PermissionError if there is none."""
    what = f"The artifact {digest[:12]}"
    ref = contracts.try_decode("ref", store.read(f"refs/{digest}.json", MAX_BYTES)) or {}
    key = str(ref.get("key", ""))
    data = store.read(f"work/{key}/result.json", MAX_BYTES) if contracts.is_digest(key) else None
    if data is None:
        raise PermissionError(
            f"{what} is not the result of a step of {' or '.join(stages)} in this store. It was forged, or its record "
            "was removed. Run again to recreate it."
        )
    try:
        record = check_result(trusted, data, f"The result of {ref.get('stage', 'a step')} that names {digest[:12]}")
        valid = key_of(record) == key and record["stage"] in stages and digest in record["outputs"].values()
    except (KeyError, TypeError, AttributeError, ValueError):
        valid = False
    if not valid:
        raise PermissionError(
            f"{what} is not an output of a step of {' or '.join(stages)}: its record belongs to other work. Run again "
            "to recreate it."
        )
    return record


def check_inputs(store: Store, trusted: Verifier, inputs: Mapping[str, Manifest]) -> None:
    """Raise a PermissionError unless each input was produced and signed by one of its stages."""
    for name, manifest in inputs.items():
        if name in PRODUCERS:
            for digest in _members(store, name, manifest):
                find_result(store, trusted, digest, PRODUCERS[name])


def trace(store: Store, trusted: Verifier, report: str) -> list[Result]:
    """Return the signed results of all steps that led to a report, beginning with the report's."""
    results: list[Result] = []
    waiting, visited = [("report", report)], set()
    while waiting:
        name, digest = waiting.pop(0)
        for artifact in _parts(store, digest) if name == "portions" else (digest,):
            if artifact not in visited:
                visited.add(artifact)
                results.append(find_result(store, trusted, artifact, PRODUCERS[name]))
                waiting += [item for item in results[-1]["inputs"].items() if item[0] in PRODUCERS]
    return results


def encode(results: Sequence[Result]) -> bytes:
    """Return the content of the file that stores these results in a decision."""
    return contracts.encode("lineage", {"results": list(results)})


def signers(data: bytes) -> set[str]:
    """Return the ids of the signing keys behind the stage keys of the steps in `data`."""
    return {str(record.get("signer", "")) for record in contracts.decode("lineage", data, FILE)["results"]}


def check(store: Store, trusted: Verifier, data: bytes, verdict: Mapping[str, Any]) -> list[Result]:
    """Return the results in `data`, or raise a PermissionError unless each is signed by its stage and they lead, with
    one data set and one split, to the report and the model of the decision `verdict`.
    """
    results = contracts.decode("lineage", data, FILE)["results"]
    try:
        for record in results:
            check_result(trusted, contracts.encode("result", record), f"A result in {FILE}")
        origin = {digest: record for record in results for digest in record["outputs"].values()}
        problem = _disagreement(store, origin, verdict)
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"{error} is missing"
    if problem:
        raise PermissionError(
            f"The steps behind the decision do not lead to its report and model: {problem}. Run again to recreate them."
        )
    return list(results)


def _disagreement(store: Store, origin: Mapping[str, Result], verdict: Mapping[str, Any]) -> str:
    """Return the first contradiction between the steps and the decision, or ""."""
    subject = verdict["subject"]
    rows = {"dataset": subject["dataset"], "splits": subject["split"]}
    report, model = origin[verdict["report"]], origin[subject["model"]]
    shipped = model["stage"] == "quantize"
    trained = origin[model["inputs"]["model"]] if shipped else model
    split, dataset = origin[subject["split"]], origin[subject["dataset"]]
    parts = [origin[part] for part in _parts(store, dataset["inputs"]["portions"])]
    stages = [(report, "evaluate"), (trained, "train"), (split, "split"), (dataset, "merge")]
    for record, stage in [*stages, *((part, "ingest") for part in parts)]:
        if record["stage"] != stage:
            return f"an output of {stage} comes from {record['stage']}"
    for record, names in ((report, rows), (model, rows), (trained, rows), (split, ("dataset",))):
        for name in names:
            if record["inputs"][name] != rows[name]:
                return f"{record['stage']} used another {name}"
    numbers = sorted(part["parameters"]["part"] for part in parts)
    if numbers != sorted(f"{number}/{len(parts)}" for number in range(1, len(parts) + 1)):
        return f"merge used the parts {', '.join(numbers)} of the source"
    if report["inputs"]["model"] != subject["model"] or report["parameters"]["precision"] != subject["precision"]:
        return "evaluate used another model"
    return ""


def check_source(results: Sequence[Result], revision: str) -> None:
    """Raise a PermissionError unless the steps read this revision of the source."""
    for record in results:
        if record["stage"] == "ingest" and record["parameters"]["revision"] != revision:
            raise PermissionError(
                "The step ingest behind the report read another revision of the source than the one at the start of "
                "the run. Nothing was decided; run again."
            )


def check_begin(results: Sequence[Result], resolved: Mapping[str, Any]) -> None:
    """Raise a PermissionError unless the steps used the state that resolve read: the source, the hash key, the model in
    service and the previous split.
    """
    check_source(results, resolved["revision"])
    handed = resolved.get("handed") or {}
    for record in results:
        stage, inputs, parameters = record["stage"], record["inputs"], record["parameters"]
        difference = ""
        if stage == "ingest" and parameters["key_id"] != resolved["key_id"]:
            difference = "another hash key"
        if stage == "evaluate" and inputs["champion"] != handed.get("champion"):
            difference = "another model in service"
        if stage == "split" and handed.get("previous") not in (inputs["previous"], *record["outputs"].values()):
            difference = "another previous split"
        if difference:
            raise PermissionError(
                f"The step {stage} behind the decision used {difference} than the one at the start of the run. Nothing "
                "was released; run again."
            )


def _parts(store: Store, portions: str) -> tuple[str, ...]:
    return _members(store, "portions", Manifest.decode(store.get(portions), "the portions"))


def _members(store: Store, name: str, manifest: Manifest) -> tuple[str, ...]:
    """Return the artifacts of an input: several for portions, one for any other."""
    if (name == "portions") != bool(manifest.parts):
        raise PermissionError(f"The artifact {name} was not assembled by medloop. Run again.")
    if not manifest.parts:
        return (manifest.digest,)
    check_parts(store, manifest)
    return manifest.parts
