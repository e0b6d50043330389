"""What is told of a run: its summary, its report, and why it ended as it did."""

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
from components.shared.errors import RefusedError
from components.shared.figures import FIGURES, KEY
from components.shared.ledger.approvals import AWAITING, expired, newest
from components.shared.ledger.release_log import Entry, read_chain
from components.shared.privacy.redaction import printable
from components.shared.reporting.left_out import left_out
from components.shared.runtime import stage_code, work
from components.shared.runtime.price import read_price
from components.shared.storage.store import Store
from medloop.runner.replay import Replay
from medloop.runner.run import Run
from medloop.settings import Settings

HEADLINES = (*KEY, "calibration_error")


def artifact_file(store: Store, digest: str, name: str) -> bytes:
    """A file's content out of an artifact that is named by its manifest's digest."""
    manifest = Manifest.decode(store.get(digest), digest[:12])
    return store.get(manifest.files[name].digest)


def decided(run: Run) -> str:
    """The digest of the last decision of a run, or of the one by which it released; nothing when it came to none."""
    step = run.last("gate")
    if step and "outputs" in step:
        return str(step["outputs"]["decision"])
    step = run.last("deploy")
    return str(step["inputs"]["decision"]) if step and "inputs" in step else ""


def decision(store: Store, run: Run) -> dict[str, Any] | None:
    """The last decision of a run, or None when it came to none."""
    digest = decided(run)
    if not digest:
        return None
    return decode("decision", artifact_file(store, digest, "decision.json"), "decision.json")


def metrics(store: Store, run: Run) -> dict[str, Any] | None:
    """The figures that the last decision was made on, or None."""
    step = run.last("evaluate")
    if not step or "outputs" not in step:
        return None
    return report_metrics(store, step["outputs"]["report"])


def report_metrics(store: Store, report: str) -> dict[str, Any]:
    """The figures of a report that is named by its digest."""
    return decode("metrics", artifact_file(store, report, "metrics.json"), "metrics.json")


def dataset(store: Store, run: Run) -> dict[str, Any] | None:
    """The description of the data set that a run learned from, or None."""
    step = run.last("merge")
    if not step or "outputs" not in step:
        return None
    return decode("dataset", artifact_file(store, step["outputs"]["dataset"], "dataset.json"), "dataset.json")


def _data_sentence(about: dict[str, Any]) -> str:
    counts = about["counts"]
    aside = ", ".join(f"{count} {reason}" for reason, count in counts.get("reasons", {}).items())
    omitted = left_out(counts.get("left_out") or {})
    return (
        f"{counts['images']} images of {counts['patients']} patients were usable, {counts['duplicates']} of them "
        f"copies of others; {counts['quarantined']} were set aside{f' ({aside})' if aside else ''}"
        f"{f'; {omitted}' if omitted else ''}."
    )


def write_page(settings: Settings, store: Store, run: Run) -> Path:
    """Write the run's report where a browser finds it; gives its path."""
    if not (digest := decided(run)):
        raise RefusedError(f"The run {run.id} {run.record['outcome']} before a decision, so it has no report.")
    path = settings.runs / run.id / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(artifact_file(store, digest, "page.html"))
    return path


def as_json(store: Store, run: Run) -> str:
    """The run as one JSON object: record, figures, decision."""
    figures = metrics(store, run)
    shown = {"figures": figures["all"]["figures"] if figures else None, "decision": decision(store, run)}
    if shown["decision"] and shown["decision"]["outcome"] == AWAITING:
        shown["approval"] = newest(store, decided(run))
    return _lines(json.dumps({**run.record, **shown}, indent=1, sort_keys=True, ensure_ascii=False).split("\n"))


def summarise(console: Console, settings: Settings, store: Store, run: Run) -> None:
    """Print what a run came to: times, figures, decision, what is in service, and where to look further."""
    console.print()
    _print_times(console, run)
    if told := spent(run):
        console.print(told, highlight=False, markup=False)
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
    further = [("the report", str(page)), ("why, in words", f"{_command('medloop')} explain {run.id}")]
    if run.record["outcome"] == AWAITING:
        further.append(("approve it", f"{_command('medloop')} {how_to_approve(run)}"))
    further.append(("what was released", f"{_command('medloop')} models"))
    if run.record["in_service"]:
        further.append(("try the model", f"{_command('medloop')} serve"))
    further.append(("the training's course", f"tensorboard --logdir {settings.store}/tensorboard"))
    further.append(("the tracking page", f"{_command('mlflow')} ui --backend-store-uri {settings.tracking_shown}"))
    for what, how in further:
        console.print(f"  {what:21} {how}", highlight=False, markup=False, soft_wrap=True)


def how_to_approve(run: Run) -> str:
    """How a person approves what this run left waiting."""
    return f"approve {run.id} --by NAME --reason TEXT"


def _command(name: str) -> str:
    """How a command of this environment is called from here: by its name where the shell finds it, else by its path."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def spent(run: Run) -> str:
    """The device hours of the training, over its interruptions, and what they cost where a price is set; or nothing."""
    step = run.last("train") or {}
    seconds = step.get("spent", {}).get("device_seconds")
    if not isinstance(seconds, int | float):
        return ""
    price = read_price()
    cost = f", at {price} {price.of(seconds)}" if price else ""
    before = " It was done before this run, which paid nothing for it." if step["state"] == "reused" else ""
    return f"The training took {seconds / 3600:.3g} device hours{cost}.{before}"


def _print_times(console: Console, run: Run) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("")
    for step in run.stages:
        state = {"reused": "done before", "finished": "", "failed": "failed"}.get(step["state"], "not finished")
        table.add_row(step["stage"], f"{step['seconds']:.1f} s" if step["state"] == "finished" else "–", state)
    table.add_row("[bold]in all[/]", f"[bold]{run.record['seconds']:.1f} s[/]", "")
    console.print(table)


def _print_figures(console: Console, figures: dict[str, Any]) -> None:
    population = figures["all"]
    precision = figures["subject"]["precision"]
    title = f"on {population['images']} test images of {population['patients']} patients, {precision}"
    positive = figures["positive"]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, side in ((title, "left"), ("value", "right"), (f"{figures['confidence']:.0%} interval", "right")):
        table.add_column(column, justify="right" if side == "right" else "left")
    for name in HEADLINES:
        figure = population["figures"].get(name)
        if figure:
            interval = f"{figure['low']:.3f} – {figure['high']:.3f}" if figure["low"] is not None else "–"
            of = f" for {positive}" if positive and FIGURES[name].one_sided else ""
            table.add_row(escape(printable(name.replace("_", " ") + of)), f"{figure['value']:.3f}", interval)
    console.print(table, highlight=False)


def _print_failure(console: Console, settings: Settings, run: Run) -> None:
    where = run.record["failed_stage"]
    failed = (
        f"{f'The stage {where} failed.' if where else 'The run broke off outside of its stages.'} {run.record['why']}"
    )
    console.print(printable(failed), style="bold", highlight=False, markup=False)
    if run.record["last_lines"]:
        console.print("\nIts last lines:", highlight=False)
        for line in run.record["last_lines"]:
            console.print(f"  {printable(line)}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"\nWhat is in service is untouched. The whole log: {settings.runs / run.id / 'log.txt'}\n"
        "Once that is mended, the same command goes on from there.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _place(record: dict[str, Any]) -> str:
    return f"the stage {record['failed_stage']}" if record["failed_stage"] else "none of its stages"


def explain(store: Store, run: Run) -> str:
    """Why a run ended as it did, in plain sentences."""
    record = run.record
    lines = [f"The run {run.id} of {record['started']}, started by {record['by']}."]
    if "decision" in record["arguments"]:
        lines.append(f"It was to release what the run {record['arguments'].get('run')} left waiting for approval.")
    else:
        lines.append(f"It learned from {record['arguments']['source']}.")
    if record["outcome"] == "failed":
        return _lines([*lines, f"It failed in {_place(record)}: {record['why']}"])
    verdict = decision(store, run)
    data = dataset(store, run)
    if data:
        lines.append(_data_sentence(data))
    if told := spent(run):
        lines.append(told)
    if verdict is None:
        return _lines([*lines, f"It is {record['outcome']}, and came to no decision."])
    subject = verdict["subject"]
    against = f"the model in service ({subject['champion'][:12]})" if subject["champion"] else "no model in service"
    lines += [
        f"It judged the model {subject['model'][:12]} as {subject['precision']}, compared with {against}.",
        "",
        verdict["sentence"],
        "",
        *(f"  {'✓' if check['passed'] else '✗'} {check['sentence']}" for check in verdict["checks"]),
        "",
        f"Policy: {verdict['policy']['name']} ({verdict['policy_digest'][:12]}). {verdict['budget']['sentence']}",
    ]
    released = _released(store, run) if verdict["outcome"] == AWAITING else None
    if verdict["outcome"] == AWAITING:
        lines.append(_approval(store, run))
    lines += ["", released.record["sentence"] if released else record.get("sentence", "")]
    return _lines(lines)


def _lines(lines: list[str]) -> str:
    """The lines as text; none becomes two because of what a record holds."""
    return "\n".join(map(printable, lines))


def _released(store: Store, run: Run) -> Entry | None:
    """The entry of the log by which what this run left waiting came into service, or None."""
    decision_of_it = decided(run)
    log = read_chain(store)
    return next((entry for entry in log if entry.version and entry.record.get("decision") == decision_of_it), None)


def _approval(store: Store, run: Run) -> str:
    """Whether a person has approved what this run left waiting."""
    given = newest(store, decided(run))
    if given is None:
        return f"It awaits a person’s approval: medloop {how_to_approve(run)}"
    ended = "ended" if expired(given) else "lasts until"
    why = given["reason"].rstrip(".")
    return f"Approved by {given['by']} at {given['at']}: {why}. The approval {ended} {given['until']}."


def compared(again: Replay, status: int, equal: dict[str, bool | None]) -> str:
    """What a replay came to: whether it gave what the step gave then, and where its files are."""
    stage, state = again.step["stage"], again.step["state"]
    if status:
        before = " It failed then, too." if state == "failed" else f" Then it {state}."
        return f"The step {stage} failed here.{before}\nIts inputs lie in {again.folder}"
    words = {
        True: "equal to what it gave then",
        False: "NOT equal to what it gave then",
        None: "new: it gave none then",
    }
    lines = [f"The step {stage} is done again; what is in the store and in service is untouched."]
    lines += [f"  {name:10} {words[same]}" for name, same in equal.items()]
    if stage in work.IMPURE:
        lines.append("  It reads what can change from outside; a difference may come from there.")
    if stage == "evaluate":
        lines.append("  It measures how long an image takes; a difference may come from there.")
    here = stage_code.code_version(stage)
    if again.step["code"] != here:
        lines.append("  The code or its packages here are not those of the run; a difference may come from there.")
    return "\n".join([*lines, f"Its files: {again.folder / 'outputs'}"])


def there_and_here(run: Run | dict[str, Any]) -> dict[str, str]:
    """A line of a list of runs: one of this store's, or one as a server tells it."""
    if isinstance(run, Run):
        record = run.record
        took = f"{record['seconds']:.0f} s" if "seconds" in record else "–"
        what = record.get("sentence") or (
            f"{record['failed_stage'] or 'broken off'}: {record['why']}" if "why" in record else ""
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
