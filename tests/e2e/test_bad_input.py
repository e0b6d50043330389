"""Every bad input gets a sentence with the value, the limit and the remedy, and the right exit status."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.e2e.loop import ROOT, Place


def empty(place: Place) -> None:
    shutil.rmtree(place.scans)
    place.scans.mkdir()


def one_class(place: Place) -> None:
    shutil.rmtree(place.scans / "PNEUMONIA")
    (place.scans / "patients.csv").unlink()


def few_patients(place: Place) -> None:
    """Keep one patient of the second class."""
    images = sorted((place.scans / "PNEUMONIA").iterdir())
    kept = images[len(images) // 2].name.rsplit("_", 1)[0]
    for image in images:
        if not image.name.startswith(kept):
            image.unlink()
    (place.scans / "patients.csv").unlink()


def missing(place: Place) -> None:
    shutil.rmtree(place.scans)


def a_file(place: Place) -> None:
    shutil.rmtree(place.scans)
    place.scans.write_text("scans")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (missing, "There is no source"),
        (a_file, "is a file. Set it to a directory"),
        (empty, "has no images"),
        (one_class, "a classifier needs at least 2"),
        (few_patients, "the split needs at least 3"),
    ],
)
def test_a_bad_source_is_named(place: Place, harm: Callable[[Place], None], sentence: str) -> None:
    harm(place)
    done = place.medloop("run", "--source", str(place.scans), status=1)
    assert sentence in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--set", "epoch=3"), "There is no parameter 'epoch'. Did you mean 'epochs'?"),
        (("--set", "weight_decay=0"), "Did you mean 'train_options.weight_decay'?"),
        (("--set", "epochs=0"), "epochs is 0; it must be from 1 to 1000"),
        (("--set", "epochs=many"), "epochs is 'many'; it must be a whole number"),
        (("--set", "epochs"), "--set is 'epochs'; write name=value"),
        (("--params", "nowhere.yaml"), "The parameter file nowhere.yaml does not exist"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_runs(
    place: Place, arguments: tuple[str, ...], sentence: str
) -> None:
    done = place.medloop("run", "--source", str(place.scans), *arguments, status=2)
    assert sentence in done.stderr
    assert not (place.home / "store").exists()


def test_no_source_at_all_is_a_usage_error(place: Place) -> None:
    assert "Set it with --source" in place.medloop("run", status=2).stderr


def on_a_disk(place: Place, mount: str) -> subprocess.CompletedProcess[str]:
    """Run the loop with its store on a disk of its own, in a namespace of its own, where this machine lets us."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine does not let a user make a mount namespace, so no disk can be filled or locked")
    disk = place.home / "disk"
    disk.mkdir()
    run = f"{mount.format(disk=disk)} && exec {sys.executable} -m medloop.cli.main run --source {place.scans}"
    environment = {**place.environment(), "MEDLOOP_STORE": str(disk / "store")}
    command = ["unshare", "-rm", "sh", "-c", run]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


def test_a_read_only_store_is_said_and_nothing_runs(place: Place) -> None:
    done = on_a_disk(place, "mount --bind {disk} {disk} && mount -o remount,ro,bind {disk}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cannot be written (Read-only file system)" in done.stderr
    assert "MEDLOOP_STORE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_store_is_said(place: Place) -> None:
    done = on_a_disk(place, "mount -t tmpfs -o size=900k tmpfs {disk}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "is full. Free space" in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_with_json_a_refusal_is_json_too(place: Place) -> None:
    done = place.medloop("run", "--source", str(place.scans), "--set", "epoch=3", "--json", status=2)
    assert "Did you mean 'epochs'?" in json.loads(done.stdout)["error"]
