"""Apply a policy to the reports of past runs, without training (`medloop gate --replay`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.gate.gate import decide
from components.gate.policy import Policy, complete_policy
from components.shared.contracts import decode
from components.shared.storage.store import Store
from medloop.runner.explain import artifact_file, report_metrics
from medloop.runner.run import DONE, Run

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """The decision on a past run, the decision under the policy, and its reason."""

    run: str
    began: str
    then: str
    now: str
    why: str


def replay_policy(store: Store, runs: Sequence[Run], changes: Mapping[str, Any]) -> list[Verdict]:
    """Return a verdict for each run with a decision; raise ValueError if the policy is invalid."""
    policy = complete_policy(changes)
    return [verdict for run in runs if (verdict := _verdict(store, run, policy))]


def _verdict(store: Store, run: Run, policy: Policy) -> Verdict | None:
    steps = [step for step in run.stages if step["stage"] == "gate" and step["state"] in DONE]
    if not steps:
        return None
    then = str(steps[-1]["values"].get("outcome", UNKNOWN))
    now, why = _now(store, steps, then, policy)
    return Verdict(run.id, str(run.record["started"]).replace("T", " ")[:16], then, now, why)


def _now(store: Store, steps: list[dict[str, Any]], then: str, policy: Policy) -> tuple[str, str]:
    """Return outcome and reason under the policy; the first refusal is final, as in a run."""
    record: dict[str, Any] = {}
    for step in steps:
        try:
            metrics = report_metrics(store, step["inputs"]["report"])
            record = decide(metrics, policy, *_budget(store, step), step["inputs"]["report"])
        except (ValueError, OSError, KeyError) as error:
            return UNKNOWN, f"The policy cannot be applied to its report: {error}"
        if record["outcome"] == "refused":
            return "refused", str(record["sentence"])
    if then == "refused" and record["subject"]["precision"] == "float32":
        return UNKNOWN, "The trained model passes, but it was never quantized, so the outcome is unknown."
    return str(record["outcome"]), str(record["sentence"])


def _budget(store: Store, step: Mapping[str, Any]) -> tuple[int, float]:
    """Return the index of the step's evaluation on the locked test set, and the error spent before it."""
    data = artifact_file(store, step["outputs"]["decision"], "decision.json")
    budget = decode("decision", data, "decision.json")["budget"]
    return int(budget["look"]), float(budget["spent"]) - float(budget["error_at_this_look"])


def describe(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as text, with a mark where the decision differs and the reason below."""
    width = max((len(verdict.run) for verdict in verdicts), default=0)
    lines = [f"  {'run':{width}}  {'began':16}  {'decision':17}  decision under the policy"]
    for verdict in verdicts:
        mark = "≠" if verdict.now != verdict.then else " "
        row = f"{mark} {verdict.run:{width}}  {verdict.began}  {verdict.then:17}  {verdict.now}"
        lines += [row, f"    {verdict.why}"]
    return "\n".join(lines)
