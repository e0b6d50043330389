"""The gate stage: check a report against the policy and write the decision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from components.gate.checks import Check, error_at_this_look, read_number, run_checks
from components.gate.policy import Policy, check_classes, complete_policy
from components.shared.contracts import Between, In, Out, digest, fingerprint, read_record, write_record
from components.shared.errors import RefusedError, UnavailableError
from components.shared.ledger import lineage, signing
from components.shared.metric_catalogue import FIGURES, SUMMARY
from components.shared.reporting.pages import template

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

MARKER = "<!-- decision -->"
"""The place of the decision in the report's page."""
SUBJECT = ("model", "champion", "dataset", "split", "precision", "runtime")
LATE = 0.75
"""Share of the planned evaluations after which the decision recommends a new locked test set."""


def gate(
    report: In,
    decision: Out,
    work: Work,
    *,
    policy: dict[str, Any] = {},  # noqa: B006 - the signature states the default; it is not changed
    looks: Annotated[int, Between(1, 1000000)] = 1,
    spent: Annotated[float, Between(0, 1000000)] = 0.0,
    signer: str = "",
    revision: str = "",
    shipped: bool = False,
) -> dict[str, Any]:
    """Approve or refuse a model by its report, or make it wait for a person's approval; explain why in one sentence.

    A missing or non-numeric figure fails its check.

      policy: changes to the default policy; see docs/gate.md
      looks: index of this evaluation on the locked test set, starting at 1
      spent: total error rate that earlier evaluations on this test set spent
      signer: id of the key that signs the decision, as resolve read it; empty if no key is set
      revision: revision of the source at the start of the run; with a signing key, the steps behind the report must
          have read this revision
      shipped: whether the report is of the graph to ship, not of the graph it is made from; deploy accepts only
          decisions on the graph to ship
    """
    ours, whole = _signer(signer), complete_policy(policy)
    metrics = read_record("metrics", report / "metrics.json")
    record = {**decide(metrics, whole, looks, spent, work.inputs["report"]), "signer": signer, "shipped": shipped}
    record["lineage"] = _trace(decision / lineage.FILE, record, work, ours, revision) if ours else ""
    page = render_page(report / "report.html", record).encode()
    (decision / "page.html").write_bytes(page)
    write_record("decision", decision / "decision.json", {**record, "page": digest(page)})
    if ours:
        signing.sign_file(decision / "decision.json", "decision")
    return {"outcome": record["outcome"], "sentence": record["sentence"]}


def _trace(file: Path, record: Mapping[str, Any], work: Work, ours: signing.Signer, revision: str) -> str:
    """Write the signed results of all steps that led to the report; return the file's digest.

    Raise a PermissionError if a step's result is not signed. Then no decision is written or signed.
    """
    trusted = signing.verifier() or signing.trusting(ours)
    results = lineage.trace(work.store, trusted, record["report"])
    data = lineage.encode(results)
    lineage.check(work.store, trusted, data, record)
    lineage.check_source(results, revision)
    file.write_bytes(data)
    return digest(data)


def decide(metrics: dict[str, Any], policy: Policy, look: int, spent: float, report: str) -> dict[str, Any]:
    """Return the decision of a complete policy on these metrics, as decision.json stores it."""
    subject = _read_subject(metrics)
    check_classes(policy, metrics["classes"])
    checks = run_checks(metrics, policy, look, spent)
    outcome = "refused"
    if all(check.passed for check in checks):
        outcome = "awaiting approval" if policy["approval"]["needed"] == "always" else "approved"
    return {
        "outcome": outcome,
        "sentence": _summarise(checks, metrics, outcome, policy["name"]),
        "checks": [check.record() for check in checks],
        "subject": subject,
        "report": report,
        "policy": dict(policy),
        "policy_digest": fingerprint(policy),
        "budget": _budget(policy, look, spent),
    }


def _signer(signer: str) -> signing.Signer | None:
    """Return the signing key that the run began with, or None; raise UnavailableError if it is not set here."""
    if not signer:
        return None
    ours = signing.signer()
    if ours is None or ours.id != signer:
        state = f"holds the key {ours.id}" if ours else "is not set"
        raise UnavailableError(
            f"The run began with the signing key {signer}, but {signing.VARIABLE} {state} in this step. Set the same "
            "key for all steps, and run again."
        )
    return ours


def _read_subject(metrics: dict[str, Any]) -> dict[str, str]:
    """Return the digests and settings that identify the model in the report; raise RefusedError if one is missing."""
    subject = metrics.get("subject") or {}
    missing = [
        name for name in SUBJECT if not isinstance(subject.get(name), str) or not (subject[name] or name == "champion")
    ]
    if missing:
        raise RefusedError(
            f"The report does not identify its model: {len(missing)} of {len(SUBJECT)} entries of its subject are "
            f"missing ({', '.join(missing)}). Evaluate the model again."
        )
    if not metrics.get("classes"):
        raise RefusedError("The report names 0 classes, and at least 2 are needed. Evaluate the model again.")
    return {name: subject[name] for name in SUBJECT}


def _summarise(checks: list[Check], metrics: Mapping[str, Any], outcome: str, policy: str) -> str:
    """Return the decision in one sentence: each failed check, or the main figures."""
    failed = [check.phrase for check in checks if not check.passed]
    if failed:
        return f"Refused: {'; '.join(failed)}."
    lows = {FIGURES[name].phrase: read_number(metrics, "all", "figures", name, "low") for name in SUMMARY}
    shown = [f"{title} is at least {low:.3f}" for title, low in lows.items() if low is not None]
    confidence = 100 * (read_number(metrics, "confidence") or 0)
    figures = f"{' and '.join(shown)} with {confidence:g} % confidence; " if shown else ""
    unknown = sum(check.value is None for check in checks)
    rest = f"; {unknown} could not be judged" if unknown else ""
    passed = f"all {len(checks) - unknown} checks of the policy {policy!r} passed{rest}"
    return f"{outcome[0].upper()}{outcome[1:]}: {figures}{passed}."


def _budget(policy: Policy, look: int, spent: float) -> dict[str, Any]:
    """Return how much of the policy's error budget this evaluation spends, and how many evaluations are left."""
    planned, error, cost = policy["budget"]["looks"], policy["budget"]["error"], error_at_this_look(policy)
    left = max(planned - look, 0)
    sentence = (
        f"This is evaluation {look} of {planned} on this locked test set. Each may release a model that is worse than "
        f"allowed with a probability of at most {cost:.2g}, which adds up to {error:g}."
    )
    if look > planned:
        sentence = (
            f"This is evaluation {look} on this locked test set, and {planned} were planned: its error budget of "
            f"{error:g} is spent. A new locked test set is needed."
        )
    elif left == 0:
        sentence += " It is the last one: no further model is approved without a new locked test set."
    elif look >= LATE * planned:
        sentence += f" {left} {'is' if left == 1 else 'are'} left: plan a new locked test set now."
    else:
        sentence += f" {left} are left."
    # An evaluation that could not approve a model costs nothing.
    if look > planned or spent + cost > error * (1 + 1e-9):
        cost = 0.0
    return {
        "look": look,
        "looks": planned,
        "error": error,
        "error_at_this_look": cost,
        "spent": spent + cost,
        "left": left,
        "sentence": sentence,
    }


def render_page(report: Path, record: dict[str, Any]) -> str:
    """Return the report's page with the decision inserted."""
    text = report.read_text(encoding="utf-8")
    before, marker, after = text.partition(MARKER)
    if not marker:
        raise RefusedError(f"The report's page has no place for the decision ({MARKER}). Evaluate the model again.")
    rows = [
        {
            **check,
            "value": _shown(check["value"], check),
            "limit": _shown(check["limit"], check),
            "margin": _shown(check["margin"], check, "+"),
        }
        for check in record["checks"]
    ]
    section = template(Path(__file__).parent, "decision_section.html.j2").render(
        record=record,
        failed=[row for row in rows if not row["passed"]],
        passed=[row for row in rows if row["passed"]],
        judged=sum(check["passed"] and check["value"] is not None for check in record["checks"]),
    )
    return f"{before}{section}{after}"


def _shown(value: float | None, check: dict[str, Any], sign: str = "") -> str:
    if value is None:
        return "–" if check["passed"] else "missing"
    whole = isinstance(check["limit"], int)
    return (f"{value:{sign},.0f}" if whole else f"{value:{sign}.3f}").replace("-", "−")
