"""What a policy would have said of past runs: their reports are judged again, and nothing is trained."""

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
    """A past run: what was decided of it then, what a policy would decide now, and why."""

    run: str
    began: str
    then: str
    now: str
    why: str


def judged_again(store: Store, runs: Sequence[Run], changes: Mapping[str, Any]) -> list[Verdict]:
    """Each of these runs that came to a decision, under a policy; ValueError where the policy itself is wrong."""
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
    """What the policy says of all reports of a run: the first refusal counts, as it would have ended the run."""
    record: dict[str, Any] = {}
    for step in steps:
        try:
            metrics = report_metrics(store, step["inputs"]["report"])
            record = decide(metrics, policy, *_look(store, step), step["inputs"]["report"])
        except (ValueError, OSError, KeyError) as error:
            return UNKNOWN, f"Its report cannot be judged: {error}"
        if record["outcome"] == "refused":
            return "refused", str(record["sentence"])
    if then == "refused" and record["subject"]["precision"] == "float32":
        return UNKNOWN, "It passes as trained; what would have been shipped was never made, so nobody knows."
    return str(record["outcome"]), str(record["sentence"])


def _look(store: Store, step: Mapping[str, Any]) -> tuple[int, float]:
    """Which look at the locked test it was, and what those before it had spent."""
    data = artifact_file(store, step["outputs"]["decision"], "decision.json")
    budget = decode("decision", data, "decision.json")["budget"]
    return int(budget["look"]), float(budget["spent"]) - float(budget["error_at_this_look"])


def told(verdicts: Sequence[Verdict]) -> str:
    """The verdicts for people: a line each, marked where it differs, with the reason beneath."""
    wide = max((len(each.run) for each in verdicts), default=0)
    lines = [f"  {'run':{wide}}  {'began':16}  {'decided then':17}  would be decided now"]
    for each in verdicts:
        mark = "≠" if each.now != each.then else " "
        lines += [f"{mark} {each.run:{wide}}  {each.began}  {each.then:17}  {each.now}", f"    {each.why}"]
    return "\n".join(lines)
