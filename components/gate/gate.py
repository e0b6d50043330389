"""The gate stage: holds a report against the policy, and writes a decision that a person can read and check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.gate.checks import Check, found, judge
from components.shared import signing
from components.shared.contracts import Between, In, Out, digest, read_record, write_record
from components.shared.work import Work

MARKER = "<!-- decision -->"
"""Where the report leaves room for the decision."""
SUBJECT = ("model", "champion", "dataset", "split", "precision", "runtime")


def gate(
    report: In,
    decision: Out,
    work: Work,
    *,
    min_accuracy: Annotated[float, Between(0, 1)] = 0.8,
    min_auc: Annotated[float, Between(0, 1)] = 0.85,
    max_accuracy_loss: Annotated[float, Between(0, 1)] = 0.05,
    max_auc_loss: Annotated[float, Between(0, 1)] = 0.03,
    min_test_patients: Annotated[int, Between(1, 1000000)] = 20,
    min_class_images: Annotated[int, Between(1, 1000000)] = 10,
    max_calibration_error: Annotated[float, Between(0, 1)] = 0.15,
    min_agreement: Annotated[float, Between(0, 1)] = 0.97,
    signer: str = "",
) -> dict[str, Any]:
    """Approve or refuse a model by what its report shows, and say why in one sentence.

    A figure that is missing or is no number fails its check.

      min_accuracy: what the lower bound of the accuracy must reach
      min_auc: what the lower bound of the AUC must reach
      max_accuracy_loss: how far below the model in service the accuracy may lie, by the lower bound of the paired
          difference on the locked core
      max_auc_loss: the same for the AUC
      min_test_patients: how many patients the test must have
      min_class_images: how many test images each class must have
      max_calibration_error: how far the stated probabilities may be off on average
      min_agreement: for how many images the shipped graph must name the same class as the trained one (as a share)
      signer: the id of the key that signs the decision, as resolve found it; nothing where none does
    """
    policy = {
        "min_accuracy": min_accuracy,
        "min_auc": min_auc,
        "max_accuracy_loss": max_accuracy_loss,
        "max_auc_loss": max_auc_loss,
        "min_test_patients": min_test_patients,
        "min_class_images": min_class_images,
        "max_calibration_error": max_calibration_error,
        "min_agreement": min_agreement,
    }
    metrics = read_record("metrics", report / "metrics.json")
    subject = identified(metrics)
    checks = judge(metrics, policy)
    outcome = "approved" if all(check.passed for check in checks) else "refused"
    sentence = summed_up(checks, metrics)
    record = {
        "outcome": outcome,
        "sentence": sentence,
        "checks": [check.record() for check in checks],
        "subject": subject,
        "report": work.inputs["report"],
        "policy": policy,
        "signer": signer,
    }
    shown = page(report / "report.html", record).encode()
    (decision / "page.html").write_bytes(shown)
    write_record("decision", decision / "decision.json", {**record, "page": digest(shown)})
    sign(decision / "decision.json", signer)
    return {"outcome": outcome, "sentence": sentence}


def sign(decision: Path, signer: str) -> None:
    """Write the decision's signature beside it, by the key that the run began with; nothing where it had none."""
    if not signer:
        return
    ours = signing.signer()
    if ours is None or ours.id != signer:
        there = f"holds the key {ours.id}" if ours else "is not set"
        raise RuntimeError(
            f"The run began with the signing key {signer}, and {signing.VARIABLE} {there} in this step. Give all steps "
            "the same key, and run again."
        )
    signing.sign_file(decision, "decision")


def identified(metrics: dict[str, Any]) -> dict[str, str]:
    """What the report is about, or a ValueError: a decision must name what it decides on."""
    subject = metrics.get("subject") or {}
    missing = [
        name for name in SUBJECT if not isinstance(subject.get(name), str) or not (subject[name] or name == "champion")
    ]
    if missing:
        raise ValueError(
            f"The report does not say what it judged: {', '.join(missing)} of {len(SUBJECT)} entries missing in its "
            "subject. Evaluate the model again."
        )
    if not metrics.get("classes"):
        raise ValueError("The report names 0 classes, and at least 2 are needed. Evaluate the model again.")
    return {name: subject[name] for name in SUBJECT}


def summed_up(checks: list[Check], metrics: dict[str, Any]) -> str:
    """The decision in one sentence: each failed check, or what was shown."""
    failed = [check.phrase for check in checks if not check.passed]
    if failed:
        return f"Refused: {'; '.join(failed)}."
    accuracy, auc = (next(check.value for check in checks if check.name == name) for name in ("accuracy", "auc"))
    confidence = 100 * (found(metrics, "confidence") or 0)
    return (
        f"Approved: accuracy is at least {accuracy:.3f} and AUC at least {auc:.3f} with {confidence:g} % confidence; "
        f"all {len(checks)} checks passed."
    )


def page(report: Path, record: dict[str, Any]) -> str:
    """The report's page with the decision in its place."""
    text = report.read_text(encoding="utf-8")
    before, marker, after = text.partition(MARKER)
    if not marker:
        raise ValueError(f"The report's page has no place for the decision ({MARKER}). Evaluate the model again.")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [
        {
            **check,
            "value": _shown(check["value"], check),
            "limit": _shown(check["limit"], check),
            "margin": _shown(check["margin"], check, "+"),
        }
        for check in record["checks"]
    ]
    section = environment.get_template("decision.html.j2").render(record=record, checks=rows)
    return f"{before}{section}{after}"


def _shown(value: float | None, check: dict[str, Any], sign: str = "") -> str:
    if value is None:
        return "missing"
    whole = isinstance(check["limit"], int)
    return (f"{value:{sign},.0f}" if whole else f"{value:{sign}.3f}").replace("-", "−")
