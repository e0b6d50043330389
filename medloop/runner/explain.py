"""Summary, report and explanation of a run."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.shared.contracts import Manifest, decode
from components.shared.errors import DamagedError, RefusedError
from components.shared.ledger.approvals import AWAITING, expired, newest
from components.shared.ledger.release_log import Entry, in_service, read_chain, withdrawn
from components.shared.metric_catalogue import FIGURES, KEY
from components.shared.privacy.secret_redaction import printable
from components.shared.reporting.left_out import left_out
from components.shared.runtime import code_and_package_versions, work
from components.shared.runtime.price import read_price
from components.shared.storage.store import Store
from medloop.runner.replay import Replay
from medloop.runner.run import Run
from medloop.settings import Settings

HEADLINES = (*KEY, "calibration_error")


def artifact_file(store: Store, digest: str, name: str) -> bytes:
    """Return the content of a file of an artifact; `digest` is that of the manifest."""
    manifest = Manifest.decode(store.get(digest), digest[:12])
    return store.get(manifest.files[name].digest)


def decision_digest(run: Run) -> str:
    """Return the digest of the run's last decision, or of the one that it released; "" if there is none."""
    step = run.last("gate")
    if step and "outputs" in step:
        return str(step["outputs"]["decision"])
    step = run.last("deploy")
    return str(step["inputs"]["decision"]) if step and "inputs" in step else ""


def decision(store: Store, run: Run) -> dict[str, Any] | None:
    """Return the last decision of a run, or None if there is none."""
    digest = decision_digest(run)
    if not digest:
        return None
    return decode("decision", artifact_file(store, digest, "decision.json"), "decision.json")


def metrics(store: Store, run: Run) -> dict[str, Any] | None:
    """Return the figures behind the last decision, or None."""
    step = run.last("evaluate")
    if not step or "outputs" not in step:
        return None
    return report_metrics(store, step["outputs"]["report"])


def report_metrics(store: Store, report: str) -> dict[str, Any]:
    """Return the figures of the report with this digest."""
    return decode("metrics", artifact_file(store, report, "metrics.json"), "metrics.json")


def dataset(store: Store, run: Run) -> dict[str, Any] | None:
    """Return the description of the run's data set, or None."""
    step = run.last("merge")
    if not step or "outputs" not in step:
        return None
    return decode("dataset", artifact_file(store, step["outputs"]["dataset"], "dataset.json"), "dataset.json")


def _data_sentence(dataset: dict[str, Any]) -> str:
    counts = dataset["counts"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.get("reasons", {}).items())
    omitted = left_out(counts.get("left_out") or {})
    return (
        f"Data: {counts['images']} images of {counts['patients']} patients, {counts['duplicates']} of them duplicates; "
        f"{counts['quarantined']} quarantined{f' ({reasons})' if reasons else ''}"
        f"{f'; {omitted}' if omitted else ''}."
    )


def write_page(settings: Settings, store: Store, run: Run) -> Path:
    """Write the run's HTML report into its folder and return the path."""
    if not (digest := decision_digest(run)):
        raise RefusedError(
            f"The run {run.id} has no report: it has the outcome {run.record['outcome']!r} and reached no decision."
        )
    path = settings.runs / run.id / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(artifact_file(store, digest, "page.html"))
    return path


def as_json(store: Store, run: Run) -> str:
    """Return the run as JSON: record, figures, decision and, if one was required, approval."""
    figures = metrics(store, run)
    details = {"figures": figures["all"]["figures"] if figures else None, "decision": decision(store, run)}
    if details["decision"] and details["decision"]["outcome"] == AWAITING:
        details["approval"] = newest(store, decision_digest(run))
    return _lines(json.dumps({**run.record, **details}, indent=1, sort_keys=True, ensure_ascii=False).split("\n"))


def summarise(console: Console, settings: Settings, store: Store, run: Run) -> None:
    """Print the result of a run: durations, figures, decision, the model in service, and further commands."""
    console.print()
    _print_times(console, run)
    if cost := training_cost(run):
        console.print(cost, highlight=False, markup=False)
    figures = metrics(store, run)
    if figures:
        console.print()
        _print_figures(console, figures)
    console.print()
    if run.record["outcome"] == "failed":
        _print_failure(console, settings, run)
        return
    console.print(printable(run.record["sentence"]), style="bold", highlight=False, markup=False)
    console.print(f"In service: {run.record['in_service'] or 'nothing'}", style="bold", highlight=False)
    page = write_page(settings, store, run)
    console.print()
    further = [("report", str(page)), ("explanation", f"{_command('medloop')} explain {run.id}")]
    if run.record["outcome"] == AWAITING:
        further.append(("approval", f"{_command('medloop')} {approve_command(run)}"))
    further.append(("release log", f"{_command('medloop')} models"))
    if run.record["in_service"]:
        further.append(("prediction server", f"{_command('medloop')} serve"))
    if _installed("tensorboard"):
        further.append(("training curves", f"{_command('tensorboard')} --logdir {settings.store}/tensorboard"))
    further.append(("tracking server", f"{_command('mlflow')} ui --backend-store-uri {settings.tracking_shown}"))
    for name, value in further:
        console.print(f"  {name:18} {value}", highlight=False, markup=False, soft_wrap=True)


def approve_command(run: Run) -> str:
    """Return the arguments of `medloop` that approve the run's model."""
    return f"approve {run.id} --by NAME --reason TEXT"


def _installed(name: str) -> bool:
    return bool(shutil.which(name)) or (Path(sys.executable).parent / name).exists()


def _command(name: str) -> str:
    """Return how to call a command of this Python environment: its name if it is on PATH, else its path."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def training_cost(run: Run) -> str:
    """Return a sentence with the device hours of the training and, if a price is set, their cost; else ""."""
    step = run.last("train") or {}
    seconds = step.get("spent", {}).get("device_seconds")
    if not isinstance(seconds, int | float):
        return ""
    price = read_price()
    cost = f", at {price} {price.of(seconds)}" if price else ""
    reused = " It was reused from an earlier run at no cost." if step["state"] == "reused" else ""
    return f"The training took {seconds / 3600:.3g} device hours{cost}.{reused}"


def _print_times(console: Console, run: Run) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("")
    for step in run.stages:
        state = {"reused": "reused", "finished": "", "failed": "failed"}.get(step["state"], "not finished")
        table.add_row(step["stage"], f"{step['seconds']:.1f} s" if step["state"] == "finished" else "–", state)
    table.add_row("[bold]total[/]", f"[bold]{run.record['seconds']:.1f} s[/]", "")
    console.print(table)


def _print_figures(console: Console, figures: dict[str, Any]) -> None:
    population = figures["all"]
    precision = figures["subject"]["precision"]
    title = f"on {population['images']} test images of {population['patients']} patients, {precision}"
    positive = figures["positive"]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(title)
    for column in ("value", f"{figures['confidence']:.0%} interval"):
        table.add_column(column, justify="right")
    for name in HEADLINES:
        figure = population["figures"].get(name)
        if figure:
            interval = f"{figure['low']:.3f} – {figure['high']:.3f}" if figure["low"] is not None else "–"
            suffix = f" for {positive}" if positive and FIGURES[name].one_sided else ""
            table.add_row(escape(printable(name.replace("_", " ") + suffix)), f"{figure['value']:.3f}", interval)
    console.print(table, highlight=False)


def _print_failure(console: Console, settings: Settings, run: Run) -> None:
    stage = run.record["failed_stage"]
    failure = f"The stage {stage} failed." if stage else "The run failed outside its stages."
    console.print(printable(f"{failure} {run.record['why']}"), style="bold", highlight=False, markup=False)
    if run.record["last_lines"]:
        console.print("\nLast lines of its log:", highlight=False)
        for line in run.record["last_lines"]:
            console.print(f"  {printable(line)}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"\nThe model in service is unchanged. Full log: {settings.runs / run.id / 'log.txt'}\n"
        "After fixing the cause, run the same command again to continue.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def explain(store: Store, run: Run) -> str:
    """Return the explanation of a run's outcome."""
    record = run.record
    lines = [f"Run {run.id}, started at {record['started']} by {record['by']}."]
    if "decision" in record["arguments"]:
        lines.append(f"Purpose: release the approved model of run {record['arguments'].get('run')}.")
    else:
        lines.append(f"Source: {record['arguments']['source']}")
    if record["outcome"] == "failed":
        stage = f"in the stage {record['failed_stage']}" if record["failed_stage"] else "outside its stages"
        return _lines([*lines, f"It failed {stage}: {record['why']}"])
    verdict = decision(store, run)
    data = dataset(store, run)
    if data:
        lines.append(_data_sentence(data))
    if cost := training_cost(run):
        lines.append(cost)
    if verdict is None:
        return _lines([*lines, f"Its outcome is {record['outcome']!r}; it reached no decision."])
    subject = verdict["subject"]
    champion = f"the model in service ({subject['champion'][:12]})" if subject["champion"] else "no model in service"
    lines += [
        f"It evaluated the model {subject['model'][:12]} in {subject['precision']}, compared with {champion}.",
        "",
        verdict["sentence"],
        "",
        *(f"  {_mark(check)} {check['sentence']}" for check in verdict["checks"]),
        "",
        f"Policy: {verdict['policy']['name']} ({verdict['policy_digest'][:12]}). {verdict['budget']['sentence']}",
    ]
    released = _released(read_chain(store), run) if verdict["outcome"] == AWAITING else None
    if verdict["outcome"] == AWAITING:
        lines.append(_approval(store, run))
    lines += ["", released.record["sentence"] if released else record.get("sentence", ""), *_afterwards(store, run)]
    return _lines(lines)


def _mark(check: dict[str, Any]) -> str:
    """Return the mark of a check: passed, failed, or not judged."""
    return "✗" if not check["passed"] else "·" if check["value"] is None else "✓"


def _lines(lines: list[str]) -> str:
    """Join the lines; escape line breaks in recorded text."""
    return "\n".join(map(printable, lines))


def _released(log: list[Entry], run: Run) -> Entry | None:
    """Return the log entry that released the run's decision, or None."""
    digest = decision_digest(run)
    return next((entry for entry in log if entry.version and entry.record.get("decision") == digest), None)


def _afterwards(store: Store, run: Run) -> list[str]:
    """Return what happened to the run's version after its release: a rollback, and which version is in service."""
    try:
        log = read_chain(store)
        now, released = in_service(log), _released(log, run)
    except DamagedError as error:
        return [f"What happened since then is not known: {error}"]
    if released is None or (now and now.version == released.version):
        return []
    lines = [f"Now in service: {now.version if now else 'nothing'}."]
    if back := withdrawn(log).get(released.record["model"]):
        by, reason = back.record.get("by", "somebody"), str(back.record.get("reason", "no reason")).rstrip(".")
        lines.insert(0, f"Since then {released.version} was rolled back, at {back.record['at']} by {by}: {reason}.")
    return lines


def _approval(store: Store, run: Run) -> str:
    approval = newest(store, decision_digest(run))
    if approval is None:
        return f"It awaits approval: medloop {approve_command(run)}"
    validity = "expired at" if expired(approval) else "is valid until"
    reason = approval["reason"].rstrip(".")
    return f"Approved by {approval['by']} at {approval['at']}: {reason}. The approval {validity} {approval['until']}."


def describe_replay(replay: Replay, status: int, equal: dict[str, bool | None]) -> str:
    """Return the result of a replay: which outputs equal the recorded ones, and where the files are."""
    stage, state = replay.step["stage"], replay.step["state"]
    if status:
        before = "It failed in the run, too." if state == "failed" else f"Its state in the run: {state}."
        return f"The step {stage} failed here. {before}\nInputs: {replay.folder}"
    words = {
        True: "equal to the recorded output",
        False: "NOT equal to the recorded output",
        None: "not recorded in the run",
    }
    lines = [f"The step {stage} was repeated; the store and the model in service are unchanged."]
    lines += [f"  {name:10} {words[same]}" for name, same in equal.items()]
    if stage in work.IMPURE:
        lines.append("  The step reads external state, which can cause a difference.")
    if stage == "evaluate":
        lines.append("  The step measures the time per image, which causes a difference.")
    if replay.step["code"] != code_and_package_versions.code_version(stage):
        lines.append("  The code or its packages differ from those of the run, which can cause a difference.")
    return "\n".join([*lines, f"Files: {replay.folder / 'outputs'}"])


def run_row(run: Run | dict[str, Any]) -> dict[str, str]:
    """Return a row of a list of runs, for a run of this store or one listed by a server."""
    if isinstance(run, Run):
        record = run.record
        took = f"{record['seconds']:.0f} s" if "seconds" in record else "–"
        what = record.get("sentence") or (
            f"{record['failed_stage'] or 'no stage'}: {record['why']}" if "why" in record else ""
        )
        began = record["started"].replace("T", " ")[:16]
        return {"run": run.id, "began": began, "took": took, "state": record["outcome"], "what": printable(what)}
    began, ended = (run.get(name) or "" for name in ("created_at", "finished_at"))
    took = "–"
    if began and ended > "1971":
        took = f"{(datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds():.0f} s"
    state = (run.get("state") or "pending").lower()
    what = run.get("display_name", "")
    return {"run": run["run_id"], "began": began.replace("T", " ")[:16], "took": took, "state": state, "what": what}
