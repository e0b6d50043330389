"""The command line: help that comes at once and says everything, a package, a doctor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import workflows
from medloop.cli.main import app
from tests.components.shared.servers import free_port
from tests.e2e.loop import ROOT, Place
from workflows.parameters import option_parameters, pipeline_parameters, settle

COMMANDS = [
    *("synth", "run", "plan", "report", "explain", "replay", "models", "promote", "rollback", "serve", "doctor"),
    *("params", "approve", "gate", "readers"),
    *("compile", "submit", "schedule", "runs"),
]
HEAVY = {"torch", "kfp", "mlflow", "onnxruntime", "numpy", "pyarrow", "PIL", "pydicom", "matplotlib", "fastapi"}


def medloop(home: Path, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MEDLOOP_", "MLFLOW_", "KF_", "KUBE", "AWS_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "medloop.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**inherited, "MEDLOOP_HOME": str(home), **environment},
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def refused(*arguments: str) -> str:
    """What the command says that refuses these arguments; in this process, which is quicker."""
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    return done.stderr


@pytest.mark.slow
def test_help_names_every_command(tmp_path: Path) -> None:
    told = medloop(tmp_path, "--help").stdout
    assert all(f"  {command} " in told for command in COMMANDS)
    assert [line for line in told.splitlines() if line.startswith("  ") and line.endswith("...")] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_page(command: str, tmp_path: Path) -> None:
    assert medloop(tmp_path, command, "--help").stdout.startswith(f"Usage: medloop {command}")


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv[1:] = ['--help']\nfrom medloop.cli.main import app\n"
        "try: app()\nexcept SystemExit: pass\nprint('\\n'.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert {line.split(".")[0] for line in done.stdout.splitlines()} & HEAVY == set()


@pytest.mark.slow
def test_the_help_of_run_has_the_first_parameters_and_says_where_all_are(tmp_path: Path) -> None:
    told = medloop(tmp_path, "run", "--help").stdout
    names = [name for name in pipeline_parameters() if not name.endswith("_options")]
    assert [name for name in names if f"  {name}  (" not in told] == []
    assert "`medloop params`" in told
    every = medloop(tmp_path, "params").stdout
    assert [name for name in [*names, *option_parameters()] if f"  {name}  (" not in every] == []
    assert "No parameter name contains 'xyz'" in refused("params", "xyz")


@pytest.mark.slow
def test_the_package_runs_each_stage_in_its_own_image_with_caching_left_to_work_keys(tmp_path: Path) -> None:
    output = tmp_path / "retrain.yaml"
    medloop(tmp_path, "compile", "--output", str(output), "--images", "registry.example/team/ml:1.2.3", "--no-pin")
    spec = next(iter(yaml.safe_load_all(output.read_text())))
    images = {
        name.removeprefix("exec-"): executor["container"]["image"]
        for name, executor in spec["deploymentSpec"]["executors"].items()
    }
    assert images["train"] == "registry.example/team/ml/medloop-train:1.2.3"
    assert images["evaluate-2"] == "registry.example/team/ml/medloop-evaluate:1.2.3"
    assert set(spec["root"]["inputDefinitions"]["parameters"]) >= set(pipeline_parameters())


def compiled(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The pipeline that `medloop compile` writes."""
    output = tmp_path / "package.yaml"
    medloop(tmp_path, "compile", *arguments, "--output", str(output), "--no-pin")
    return dict(next(iter(yaml.safe_load_all(output.read_text()))))


@pytest.mark.slow
def test_a_package_has_the_policy_that_it_was_given_as_its_default(tmp_path: Path) -> None:
    def policy(*arguments: str) -> Any:
        return compiled(tmp_path, *arguments)["root"]["inputDefinitions"]["parameters"]["policy"]["defaultValue"]

    assert policy() == {}
    assert policy("--policy", "old-threshold") == {"name": "old-threshold", "require": ["accuracy > 0.9"]}
    (tmp_path / "mine.yaml").write_text("floors: {auc: null}\n")
    assert policy("--policy", str(tmp_path / "mine.yaml")) == {"floors": {"auc": "none"}}
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("flors: {}\n")
    assert "Did you mean 'floors'" in refused("compile", "--policy", str(wrong))


@pytest.mark.slow
def test_the_release_of_what_was_approved_is_deploy_alone(tmp_path: Path) -> None:
    spec = compiled(tmp_path, "release", "--images", "registry.example/ml:1")
    (executor,) = spec["deploymentSpec"]["executors"].values()
    assert executor["container"]["image"] == "registry.example/ml/medloop-deploy:1"
    assert set(spec["root"]["inputDefinitions"]["parameters"]) == {"store", "decision", "model", "state", "run", "by"}


@pytest.mark.parametrize("command", ["run", "plan", "submit"])
def test_a_wrong_policy_is_refused_before_anything_is_done(command: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("floors: {acuracy: 0.9}\n")
    assert "Did you mean 'accuracy'" in refused(command, "--source", "/scans", "--policy", str(wrong))
    assert "Did you mean 'screening'" in refused(command, "--source", "/scans", "--policy", "screning")


@pytest.mark.slow
def test_a_package_of_another_kind_is_refused(tmp_path: Path) -> None:
    done = medloop(tmp_path, "compile", "--output", "retrain.zip", status=2)
    assert "'retrain.zip'" in done.stderr
    assert ".yaml" in done.stderr
    nowhere = str(tmp_path / "none" / "retrain.yaml")
    assert "does not exist" in medloop(tmp_path, "compile", "--output", nowhere, status=2).stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_store_with_a_slash_too_few_is_no_directory(tmp_path: Path) -> None:
    done = medloop(tmp_path, "models", status=2, MEDLOOP_STORE="s3:/bucket/loop")
    assert "'s3:/bucket/loop'" in done.stderr
    assert "two slashes" in done.stderr


@pytest.mark.slow
def test_a_plan_makes_no_hash_key(tmp_path: Path) -> None:
    medloop(tmp_path, "plan", "--source", str(tmp_path / "nowhere"), status=1)
    assert not (tmp_path / "hash.key").exists()


@pytest.mark.slow
def test_the_doctor_finds_this_set_up_sound(tmp_path: Path) -> None:
    findings = json.loads(medloop(tmp_path, "doctor", "--json").stdout)
    states = {finding["part"]: finding["state"] for finding in findings}
    assert states["store"] == states["store, create once"] == states["packages"] == "ok"
    assert all({"part", "state", "means", "remedy"} == set(finding) for finding in findings)


@pytest.mark.slow
def test_the_doctor_names_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    done = medloop(
        tmp_path, "doctor", "--json", status=1, MEDLOOP_STORE=str(tmp_path / "file" / "store"), MEDLOOP_HASH_KEY="short"
    )
    wrong = {finding["part"]: finding["means"] for finding in json.loads(done.stdout) if finding["state"] == "problem"}
    assert set(wrong) == {"store", "hash key"}
    assert "64 hexadecimal digits" in wrong["hash key"]


@pytest.mark.slow
def test_commands_without_a_run_say_how_to_begin(tmp_path: Path) -> None:
    assert "medloop run --source" in medloop(tmp_path, "explain", status=1).stderr
    assert "medloop run --source" in medloop(tmp_path, "models").stdout
    assert "nothing to roll back" in medloop(tmp_path, "rollback", "--reason", "x", status=1).stderr
    assert "no released version 'v1'" in medloop(tmp_path, "promote", "v1", "--reason", "x", status=1).stderr


def test_an_unknown_run_is_named_with_the_known_ones(place: Place) -> None:
    run = place.run("--set", "architecture=vit", "--set", "image_size=100", status=1)
    assert run["run"] in place.medloop("explain", "1999", status=1).stderr
    assert "reached no decision" in place.medloop("report", status=1).stderr
    assert "It failed in the stage train" in place.medloop("explain", run["run"]).stdout


@pytest.mark.slow
def test_a_run_does_not_begin_with_a_price_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    done = medloop(tmp_path, "run", "--source", str(tmp_path / "scans"), status=2, MEDLOOP_DEVICE_PRICE="2,50")
    assert "MEDLOOP_DEVICE_PRICE is '2,50'" in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_serve_refuses_a_port_in_use(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = medloop(tmp_path, "serve", "--port", port, status=1)
    assert port in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_the_doctor_shows_no_password_of_the_tracking_server(scheme: str, tmp_path: Path) -> None:
    address = f"{scheme}://me:geheim@127.0.0.1:{free_port()}/x"
    done = medloop(tmp_path, "doctor", "--json", MLFLOW_TRACKING_URI=address)
    (tracking,) = [found for found in json.loads(done.stdout) if found["part"] == "tracking"]
    assert tracking["state"] == "note"
    assert "geheim" not in done.stdout + done.stderr


HUGE = "9" * 400
NUMBERS = [
    *(["synth", "scans", option, HUGE] for option in ("--patients", "--classes", "--seed", "--shift")),
    ["readers", "--csv", "x.csv", "--cut", HUGE],
    ["replay", "run", "train", "--number", HUGE],
    *(["serve", option, HUGE] for option in ("--port", "--poll")),
    ["approve", "run", "--by", "x", "--reason", "x", "--days", HUGE],
    ["gate", "--replay", "lenient", "--limit", HUGE],
    ["runs", "--limit", HUGE],
    ["submit", "--source", "x", "--poll", HUGE],
]


@pytest.mark.parametrize("arguments", NUMBERS, ids=lambda arguments: " ".join(arguments[:1] + arguments[-2:-1]))
def test_a_number_of_four_hundred_digits_is_invalid_usage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLOOP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, (done.output, done.exception)
    assert f"Invalid value for '{arguments[-2]}'" in done.output


def test_every_option_that_is_a_number_is_among_those() -> None:
    files = [*(Path(workflows.__file__).parents[1] / "medloop").rglob("*.py")]
    found = [name for path in files for name in re.findall(r"(\w+): Annotated\[\s*(?:int|float)\b", path.read_text())]
    assert sorted(found) == sorted(arguments[-2].removeprefix("--") for arguments in NUMBERS)


@pytest.mark.slow
def test_a_parameter_of_four_hundred_digits_is_invalid_usage(tmp_path: Path) -> None:
    numbers = {
        name
        for name, parameter in {**pipeline_parameters(), **option_parameters()}.items()
        if parameter.type in (int, float, bool, dict)
    }
    entries = ("floors.accuracy", "counts.patients", "budget.looks", "approval.valid_days")
    for name in (*sorted(numbers), "policy", *(f"policy.{entry}" for entry in entries)):
        for value in (HUGE, f"-{HUGE}", f"{HUGE}.5", f"[{HUGE}]", "9" * 5000):
            with pytest.raises(ValueError, match=rf"\b{name.rpartition('.')[2]}\b") as refused:
                settle(str(tmp_path), None, [f"{name}={value}"], {})
            assert len(str(refused.value)) < 700
    done = medloop(tmp_path, "plan", "--source", str(tmp_path), "--set", f"learning_rate={HUGE}", status=2)
    assert "learning_rate is 999" in done.stderr


@pytest.mark.slow
def test_a_network_that_there_is_not_is_invalid_usage(tmp_path: Path) -> None:
    done = medloop(tmp_path, "plan", "--source", str(tmp_path), "--set", "architecture=smal", status=2)
    assert "architecture is 'smal'; it must be one of small, resnet18" in done.stderr
    assert "Did you mean 'small'?" in done.stderr
