"""Every bad input gets a sentence with the value, the limit and the remedy, and the right exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.loop import ROOT, Place, states


def empty(place: Place) -> None:
    shutil.rmtree(place.scans)
    place.scans.mkdir()


def one_class(place: Place) -> None:
    shutil.rmtree(place.scans / "PNEUMONIA")


def few_patients(place: Place) -> None:
    """Keep one patient of the second class."""
    images = sorted((place.scans / "PNEUMONIA").iterdir())
    kept = images[len(images) // 2].name.rsplit("_", 1)[0]
    for image in images:
        if not image.name.startswith(kept):
            image.unlink()


def missing(place: Place) -> None:
    shutil.rmtree(place.scans)


def a_file(place: Place) -> None:
    shutil.rmtree(place.scans)
    place.scans.write_text("scans")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (missing, "There is no source"),
        (a_file, "is a file. Name the directory"),
        (empty, "holds no images"),
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
        (("--set", "epochs=0"), "epochs is 0, and must be from 1 to 1000"),
        (("--set", "epochs=many"), "epochs is 'many', and must be a whole number"),
        (("--set", "epochs"), "--set takes name=value"),
        (("--params", "nowhere.yaml"), "There is no parameter file nowhere.yaml"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_runs(
    place: Place, arguments: tuple[str, ...], sentence: str
) -> None:
    done = place.medloop("run", "--source", str(place.scans), *arguments, status=2)
    assert sentence in done.stderr
    assert not (place.home / "store").exists()


def test_no_source_at_all_is_a_usage_error(place: Place) -> None:
    assert "Name the directory of images with --source" in place.medloop("run", status=2).stderr


def test_files_that_are_no_images_are_set_aside_and_the_run_goes_on(place: Place) -> None:
    (place.scans / "NORMAL" / "person9999_1.png").write_text("this is a letter, not a scan")
    before = place.run()
    ingest = next(step for step in before["stages"] if step["stage"] == "ingest")
    assert ingest["values"]["quarantined"] >= 1
    assert before["outcome"] == "released"


def test_a_read_only_store_is_said_and_nothing_runs(place: Place) -> None:
    store = place.home / "store"
    store.mkdir()
    store.chmod(0o555)
    command = [sys.executable, "-m", "workflows.cli", "run", "--source", str(place.scans)]
    # Root may write anywhere, so as root the command runs as somebody else.
    as_nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
    if as_nobody:
        for folder in [place.home, *place.home.parents]:
            if folder.stat().st_uid == 0 and folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o005)
    environment = {**place.environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, **as_nobody  # type: ignore[call-overload]  # user and group come as a dictionary
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cannot be written" in done.stderr
    assert "MEDLOOP_STORE" in done.stderr


def test_a_full_store_is_said_and_a_larger_one_goes_on(place: Place) -> None:
    """The home stands on a small memory disk of its own, in a namespace of its own."""
    script = (
        f"mount -t tmpfs -o size=900k tmpfs {place.home}/small && "
        f"MEDLOOP_STORE={place.home}/small/store {sys.executable} -m workflows.cli run --source {place.scans}"
    )
    (place.home / "small").mkdir()
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine does not let a user make a mount namespace, so no disk can be filled")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True, text=True, env=place.environment(), cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "is full. Free some space" in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
    assert states(place.run())["deploy"] == "finished"
