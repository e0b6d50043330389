"""The gate stage: holds a report against the policy, and writes a decision that a person can read and check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from components.gate.checks import Check, error_at_this_look, found, judge
from components.gate.policy import Policy, same_classes, settle
from components.shared.contracts import Between, In, Out, digest, fingerprint, read_record, write_record
from components.shared.errors import RefusedError, UnavailableError
from components.shared.figures import FIGURES, SUMMARY
from components.shared.ledger import lineage, signing

if TYPE_CHECKING:
    from components.shared.runtime.work import Work
from components.shared.reporting.pages import template

MARKER = "<!-- decision -->"
"""Where the report leaves room for the decision."""
SUBJECT = ("model", "champion", "dataset", "split", "precision", "runtime")
LATE = 0.75
"""The share of the planned looks from which on it is time to plan a new locked test set."""


def gate(
    report: In,
    decision: Out,
    work: Work,
    *,
    policy: dict[str, Any] = {},  # noqa: B006 - the signature states the default; nobody changes it
    looks: Annotated[int, Between(1, 1000000)] = 1,
    spent: Annotated[float, Between(0, 1000000)] = 0.0,
    signer: str = "",
    revision: str = "",
    shipped: bool = False,
) -> dict[str, Any]:
    """Approve or refuse a model by what its report shows, or let it wait for a person; say why in one sentence.

    A figure that is missing or is no number fails its check.

      policy: what the model must show, as far as it differs from the shipped policy; see docs/gate.md
      looks: the how-manieth look at this locked test set this is
      spent: which error rate the looks before it have spent in all
      signer: the id of the key that signs the decision, as resolve found it; nothing where none does
      revision: the state of the source that the run began with; where a key is set, the steps behind the report must
          have read that one
      shipped: whether the report is of the graph that would be shipped, or only of the one it is made from; deploy
          releases by a decision on the first alone
    """
    ours, asked = _signer(signer), settle(policy)
    metrics = read_record("metrics", report / "metrics.json")
    record = {**decide(metrics, asked, looks, spent, work.inputs["report"]), "signer": signer, "shipped": shipped}
    record["lineage"] = _trace(decision / lineage.FILE, record, work, ours, revision) if ours else ""
    shown = page(report / "report.html", record).encode()
    (decision / "page.html").write_bytes(shown)
    write_record("decision", decision / "decision.json", {**record, "page": digest(shown)})
    if ours:
        signing.sign_file(decision / "decision.json", "decision")
    return {"outcome": record["outcome"], "sentence": record["sentence"]}


def _trace(file: Path, record: Mapping[str, Any], work: Work, ours: signing.Signer, revision: str) -> str:
    """Write the signed results of all steps that led to the report; return the file's digest.

    Raise a PermissionError where a step is not proven: then nothing is decided, and so nothing untrue is signed.
    """
    trusted = signing.verifier() or signing.trusting(ours)
    results = lineage.trace(work.store, trusted, record["report"])
    data = lineage.encode(results)
    lineage.check(work.store, trusted, data, record)
    lineage.check_source(results, revision)
    file.write_bytes(data)
    return digest(data)


def decide(metrics: dict[str, Any], policy: Policy, look: int, spent: float, report: str) -> dict[str, Any]:
    """The decision that a whole policy comes to on these metrics, as decision.json says it."""
    subject = identified(metrics)
    same_classes(policy, metrics["classes"])
    checks = judge(metrics, policy, look, spent)
    outcome = "refused"
    if all(check.passed for check in checks):
        outcome = "awaiting approval" if policy["approval"]["needed"] == "always" else "approved"
    return {
        "outcome": outcome,
        "sentence": summed_up(checks, metrics, outcome),
        "checks": [check.record() for check in checks],
        "subject": subject,
        "report": report,
        "policy": dict(policy),
        "policy_digest": fingerprint(policy),
        "budget": budget(policy, look, spent),
    }


def _signer(signer: str) -> signing.Signer | None:
    """Return the key that the run began with, or None where it had none; RuntimeError where it is not at hand."""
    if not signer:
        return None
    ours = signing.signer()
    if ours is None or ours.id != signer:
        there = f"holds the key {ours.id}" if ours else "is not set"
        raise UnavailableError(
            f"The run began with the signing key {signer}, and {signing.VARIABLE} {there} in this step. Give all steps "
            "the same key, and run again."
        )
    return ours


def identified(metrics: dict[str, Any]) -> dict[str, str]:
    """What the report is about, or a ValueError: a decision must name what it decides on."""
    subject = metrics.get("subject") or {}
    missing = [
        name for name in SUBJECT if not isinstance(subject.get(name), str) or not (subject[name] or name == "champion")
    ]
    if missing:
        raise RefusedError(
            f"The report does not say what it judged: {', '.join(missing)} of {len(SUBJECT)} entries missing in its "
            "subject. Evaluate the model again."
        )
    if not metrics.get("classes"):
        raise RefusedError("The report names 0 classes, and at least 2 are needed. Evaluate the model again.")
    return {name: subject[name] for name in SUBJECT}


def summed_up(checks: list[Check], metrics: Mapping[str, Any], outcome: str) -> str:
    """The decision in one sentence: each failed check, or what was shown."""
    failed = [check.phrase for check in checks if not check.passed]
    if failed:
        return f"Refused: {'; '.join(failed)}."
    lows = {FIGURES[name].phrase: found(metrics, "all", "figures", name, "low") for name in SUMMARY}
    shown = [f"{title} is at least {low:.3f}" for title, low in lows.items() if low is not None]
    confidence = 100 * (found(metrics, "confidence") or 0)
    known = f"{' and '.join(shown)} with {confidence:g} % confidence; " if shown else ""
    return f"{outcome[0].upper()}{outcome[1:]}: {known}all {len(checks)} checks passed."


def budget(policy: Policy, look: int, spent: float) -> dict[str, Any]:
    """What this look costs of the chance of error that the policy grants, and what is left of it."""
    planned, error, each = policy["budget"]["looks"], policy["budget"]["error"], error_at_this_look(policy)
    left = max(planned - look, 0)
    said = (
        f"This is look {look} of {planned} at this locked test. Each may release a model that is worse than allowed "
        f"with a chance of at most {each:.2g}: {error:g} in all, spread evenly."
    )
    if look > planned:
        said = (
            f"This is look {look} at this locked test, and {planned} were planned: its chance of error, {error:g} in "
            "all, is spent. A new locked test set is needed."
        )
    elif left == 0:
        said += " It is the last one. Nothing more is approved on this test: it is time for a new locked test set."
    elif look >= LATE * planned:
        said += f" {left} {'is' if left == 1 else 'are'} left: it is time to plan a new locked test set."
    else:
        said += f" {left} are left."
    # A look at which nothing could be approved costs nothing.
    costs = each if look <= planned and spent + each <= error * (1 + 1e-9) else 0.0
    return {
        "look": look,
        "looks": planned,
        "error": error,
        "error_at_this_look": costs,
        "spent": spent + costs,
        "left": left,
        "sentence": said,
    }


def page(report: Path, record: dict[str, Any]) -> str:
    """The report's page with the decision in its place."""
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
    section = template(Path(__file__).parent, "decision.html.j2").render(
        record=record,
        failed=[row for row in rows if not row["passed"]],
        passed=[row for row in rows if row["passed"]],
    )
    return f"{before}{section}{after}"


def _shown(value: float | None, check: dict[str, Any], sign: str = "") -> str:
    if value is None:
        return "–" if check["passed"] else "missing"
    whole = isinstance(check["limit"], int)
    return (f"{value:{sign},.0f}" if whole else f"{value:{sign}.3f}").replace("-", "−")
