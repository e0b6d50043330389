"""What waits for a person: found, told, approved under a name, released by deploy alone; and past runs judged again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.gate.policy import merge_changes
from components.shared.ledger import release_log
from components.shared.ledger.approvals import FOLDER, approve
from medloop.releases.approve import write
from medloop.runner.explain import decision, decision_digest, explain
from medloop.runner.run import find, recent
from tests.medloop.by_hand import LENIENT, QUICK, ByHand
from tests.medloop.test_cli import medloop

WAITING, REFUSED = "11111111-waiting", "11112222-refused"
ALWAYS = merge_changes(LENIENT, {"approval": {"needed": "always", "valid_days": 14}})


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> ByHand:
    """A store in which one run waits for a person, and another one after it was refused as trained."""
    made = ByHand(tmp_path_factory.mktemp("approve"), WAITING)
    made.whole(ALWAYS)
    made.run = REFUSED
    made.whole(merge_changes(LENIENT, {"floors": {"accuracy": 0.9999}}))
    return made


def replayed(loop: ByHand, policy: str) -> dict[str, Any]:
    """What a policy says of each past run, by its id."""
    found = json.loads(medloop(loop.home, "gate", "--replay", policy, "--json").stdout)
    return {verdict["run"]: verdict for verdict in found}


@pytest.mark.slow
def test_a_run_that_waits_is_a_result_that_says_how_to_approve_it(loop: ByHand) -> None:
    states = {run["run"]: run["state"] for run in json.loads(medloop(loop.home, "runs", "--json").stdout)}
    assert states == {WAITING: "awaiting approval", REFUSED: "refused"}
    told = medloop(loop.home, "explain", WAITING).stdout
    assert "Awaiting approval: accuracy is at least" in told
    assert "This is evaluation 1 of 500 on this locked test set." in told
    assert f"medloop approve {WAITING} --by NAME --reason TEXT" in told
    assert "This is evaluation 2 of 500" in medloop(loop.home, "explain", REFUSED).stdout
    assert [entry.kind for entry in release_log.read_log(loop.store)] == ["awaiting", "refusal"]
    page = Path(medloop(loop.home, "report", WAITING).stdout.strip()).read_text(encoding="utf-8")
    assert "Awaiting approval" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((WAITING, "--by", " ", "--reason", "x"), "needs a name and a reason"),
        ((WAITING, "--by", "Dr. B", "--reason", ""), "needs a name and a reason"),
        ((WAITING, "--by", "Dr. B", "--reason", "x", "--days", "15"), "--days is 15; the policy allows 1 to 14"),
        ((REFUSED, "--by", "Dr. B", "--reason", "x"), "A refused model cannot be approved"),
        (("1111", "--by", "Dr. B", "--reason", "x"), "2 runs begin with '1111'"),
        (("9", "--by", "Dr. B", "--reason", "x"), "There is no run '9'"),
    ],
)
def test_what_is_no_approval_is_refused_and_nothing_is_written(
    loop: ByHand, arguments: tuple[str, ...], sentence: str
) -> None:
    done = medloop(loop.home, "approve", *arguments, status=2)
    assert sentence in " ".join(done.stderr.split())
    assert loop.store.names(FOLDER) == []


@pytest.mark.slow
def test_a_policy_is_applied_to_past_runs_without_training(loop: ByHand, tmp_path: Path) -> None:
    before = loop.store.names("steps"), loop.store.names("work"), loop.store.names("releases")
    lenient = replayed(loop, "lenient")
    assert (lenient[WAITING]["then"], lenient[WAITING]["now"]) == ("awaiting approval", "approved")
    assert lenient[REFUSED]["then"] == "refused"
    assert lenient[REFUSED]["now"] == "unknown"
    assert "it was never quantized" in lenient[REFUSED]["why"]
    strict = tmp_path / "strict.yaml"
    strict.write_text("counts: {patients: 1000}\n")
    assert {verdict["now"] for verdict in replayed(loop, str(strict)).values()} == {"refused"}
    assert "fewer than the required 1000" in replayed(loop, str(strict))[WAITING]["why"]
    strict.write_text("floors: {auc@PNEUMONA: 0.5}\n")
    assert "Did you mean 'PNEUMONIA'" in replayed(loop, str(strict))[WAITING]["why"]
    told = medloop(loop.home, "gate", "--replay", "lenient").stdout
    assert f"≠ {WAITING}" in told
    assert "decision under the policy" in told
    assert (loop.store.names("steps"), loop.store.names("work"), loop.store.names("releases")) == before


@pytest.mark.slow
def test_a_wrong_policy_is_applied_to_nothing(loop: ByHand, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("flors: {auc: 0.5}\n")
    assert "Did you mean 'floors'" in medloop(loop.home, "gate", "--replay", str(wrong), status=2).stderr
    assert "Did you mean 'lenient'" in medloop(loop.home, "gate", "--replay", "lenent", status=2).stderr
    assert medloop(tmp_path, "gate", "--replay", "lenient").stdout == "No run has reached a decision yet.\n"


def test_an_approval_that_still_holds_is_taken_up_again(loop: ByHand) -> None:
    """As after a release that failed."""
    run = find(loop.store, WAITING)
    verdict = decision(loop.store, run)
    assert verdict
    first = approve(loop.store, decision_digest(run), verdict, "Dr. B", "Read them.", 3)
    assert write(loop.store, run, "Dr. C", "Another.", 0) == first
    assert len(loop.store.names(FOLDER)) == 1
    assert "Approved by Dr. B at" in medloop(loop.home, "explain", WAITING).stdout


def test_what_no_run_left_waiting_cannot_be_approved(loop: ByHand) -> None:
    """A run that broke off after its first gate has a decision on what was trained, and none on what is shipped."""
    loop.run = "44444444-broken"
    now, rows = loop.data(merge_changes(ALWAYS, {"name": "another"}))
    model = loop.out(loop.step("train", rows, **QUICK), "model")
    judged = {**rows, "model": model, "champion": loop.out(now, "champion")}
    report = loop.out(loop.step("evaluate", judged, precision="float32"), "report")
    asked = merge_changes(ALWAYS, {"name": "another"})
    verdict = loop.step("gate", {"report": report}, policy=asked, looks=now.values["looks"], shipped=False)
    assert verdict.values["outcome"] == "awaiting approval"
    with pytest.raises(ValueError, match="the decision of the run 44444444-broken does not await approval"):
        write(loop.store, find(loop.store, loop.run), "Dr. B", "Read them.", 0)
    loop.run = WAITING
    assert loop.store.names(f"{FOLDER}/{verdict.outputs['decision'].digest}") == []


@pytest.mark.slow
def test_a_person_approves_and_deploy_alone_releases(loop: ByHand) -> None:
    """Last: it changes what is in service."""
    done = medloop(loop.home, "approve", WAITING[:6], "--by", "Dr. B", "--reason", "Read them.", "--json")
    told = json.loads(done.stdout)
    assert (told["outcome"], told["in_service"], told["pipeline"]) == ("released", "v1", "release")
    assert [step["stage"] for step in told["stages"]] == ["deploy"]
    log = release_log.read_log(loop.store)
    assert [entry.kind for entry in log] == ["awaiting", "refusal", "release"]
    entry = log[-1].record
    assert (entry["by"], entry["run"], entry["approval"]["reason"]) == ("Dr. B", WAITING, "Read them.")
    assert entry["decision"] == log[0].record["decision"]
    assert len(loop.store.names(FOLDER)) == 1
    explained = medloop(loop.home, "explain", WAITING).stdout
    assert "Approved by Dr. B at" in explained
    assert "v1: Approved by Dr. B (Read them): accuracy is at least" in explained
    # The run that released it stands for the one that has the evidence, and is none of the loop.
    assert find(loop.store).id == find(loop.store, told["run"]).id == WAITING
    assert medloop(loop.home, "explain", told["run"]).stdout == explained
    assert medloop(loop.home, "explain", "v1").stdout == explained
    assert "There is no version 'v7'" in medloop(loop.home, "explain", "v7", status=1).stderr
    assert told["run"] not in [run.id for run in recent(loop.store, 9)]
    fields = {name: entry[name] for name in ("version", "model", "runtime", "precision")}
    another = {"version": "v2", "model": "f" * 64}
    ends = []
    for kind, changed in (("promotion", another), ("rollback", {}), ("rollback", {})):
        log = release_log.read_log(loop.store)
        release_log.append(loop.store, log, kind, **{**fields, **changed}, reason="Two misses.", by="Eve")
        ends.append(explain(loop.store, find(loop.store, "v1")).removeprefix(explained.rstrip()).strip())
    assert ends[:2] == ["Now in service: v2.", ""]
    assert re.fullmatch(
        r"Since then v1 was rolled back, at \S+ by Eve: Two misses\.\nNow in service: nothing\.", ends[2]
    )
