"""Checks of the installation, the store and the environment (`medloop doctor`)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from components.shared.ledger import release_log
from components.shared.privacy import keyed_hash
from components.shared.runtime.code_and_package_versions import installed
from components.shared.storage.store import open_store
from medloop.check_results import CheckResult
from medloop.kubeflow import cluster_checks as cluster
from medloop.releases.log_verification import describe_foreign_files
from medloop.settings import Settings, open_to_others

MIN_FREE_BYTES = 2e9
FIX = "Fix what the message describes."


def run_checks(settings: Settings) -> list[CheckResult]:
    """Run all checks; a check that raises an exception becomes a problem."""
    results = []
    for name, check in _CHECKS.items():
        try:
            results += list(check(settings))
        except Exception as error:
            results.append(CheckResult(name, "problem", f"{type(error).__name__}: {error}", FIX))
    return results


def _python(_settings: Settings) -> Iterator[CheckResult]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        yield CheckResult("Python", "ok", version)
    else:
        means = f"{version}; medloop is tested on 3.11"
        yield CheckResult("Python", "note", means, "If something fails, use Python 3.11.")


def _packages(_settings: Settings) -> Iterator[CheckResult]:
    names = ("torch", "onnxruntime", "pyarrow", "pydicom", "mlflow", "fastapi")
    versions = {name: installed(name) for name in ("kfp", *names)}
    missing = [name for name, version in versions.items() if version == "absent"]
    if missing == [*names]:
        means = "enough to submit runs; `medloop serve` needs the extra serve, local runs need the extra local"
        yield CheckResult("packages", "note", means, "pip install 'medloop[local]'")
    elif missing:
        yield CheckResult("packages", "problem", f"missing: {', '.join(missing)}", "pip install 'medloop[local]'")
    else:
        yield CheckResult("packages", "ok", f"kfp {versions['kfp']}, torch {versions['torch']}")


def _disk(settings: Settings) -> Iterator[CheckResult]:
    folder = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    state = "ok" if free > MIN_FREE_BYTES else "problem"
    remedy = "" if state == "ok" else f"Free space in {folder}; runs need about {MIN_FREE_BYTES / 1e9:.0f} GB."
    yield CheckResult("disk", state, f"{free / 1e9:.1f} GB free in {folder}", remedy)


def _store(settings: Settings) -> Iterator[CheckResult]:
    store = open_store(settings.store)
    name = f"probe/doctor-{os.getpid()}"
    operations: dict[str, tuple[Callable[[], object], Callable[[], bool]]] = {
        "write": (lambda: store.write(name, b"written"), lambda: True),
        "read": (lambda: None, lambda: store.read(name) == b"written"),
        "list": (lambda: None, lambda: name in store.names("probe")),
        "delete": (lambda: store.delete(name), lambda: store.read(name) is None),
    }
    works = True
    for action, (operation, succeeded) in operations.items():
        try:
            operation()
            if succeeded():
                continue
            yield CheckResult("store", "problem", f"{action} fails in {settings.store}", "Use another store.")
        except OSError as error:
            means, _, remedy = str(error.strerror or error).partition(". ")
            yield CheckResult("store", "problem", means, remedy or FIX)
        works = False
        if action == "write":
            break
    skew = store.skew()
    if skew is not None:
        size = abs(skew)
        means = f"{size:.0f} s {'ahead of' if skew > 0 else 'behind'} the store's clock"
        remedy = "" if size <= 30 else "Set this machine's clock (with NTP); it dates the records."
        yield CheckResult("store, clock", "ok" if size <= 30 else "note" if size <= 300 else "problem", means, remedy)
    if not works:
        return
    yield CheckResult("store", "ok", f"{settings.store}: write, read, list and delete work")
    try:
        store.require_create_once()
        yield CheckResult("store, create once", "ok", "only one of several concurrent writers can create a record")
    except RuntimeError as error:
        means, _, remedy = str(error).partition(". ")
        yield CheckResult("store, create once", "problem", means, remedy)
    log = release_log.read_log(store)
    service = release_log.in_service(log)
    entries = "1 entry" if len(log) == 1 else f"{len(log)} entries"
    yield CheckResult("release log", "ok", f"{entries}, in service: {service.version if service else 'nothing'}")
    if foreign := release_log.foreign_names(store):
        means = describe_foreign_files(foreign)
        yield CheckResult("release log, folder", "note", means, "They are ignored; move them elsewhere.")


def _permissions(settings: Settings) -> Iterator[CheckResult]:
    paths = open_to_others(settings)
    root = Path(settings.store)
    if "://" not in settings.store and root.is_dir() and root.stat().st_mode & 0o007:
        paths.append(root)
    if paths:
        names = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if paths[3:] else "")
        remedy = f"Run: chmod -R go= {' '.join(map(shlex.quote, map(str, paths)))}"
        yield CheckResult("permissions", "problem", f"other users of this machine can read {names}", remedy)
    else:
        yield CheckResult("permissions", "ok", "only you (and the group of a shared store) can read the state")


def _key(settings: Settings) -> Iterator[CheckResult]:
    if settings.hash_key:
        yield CheckResult("hash key", "ok", f"id {keyed_hash.parse(settings.hash_key).id}, from {keyed_hash.VARIABLE}")
    elif settings.key_file.exists():
        key = keyed_hash.parse(settings.key_file.read_text())
        yield CheckResult("hash key", "ok", f"id {key.id}, in {settings.key_file}", "Keep a copy in a safe place.")
    else:
        means = "none; the first run on real scans creates one (synthetic scans use a public key)"
        yield CheckResult("hash key", "note", means)


def _signatures(_settings: Settings) -> Iterator[CheckResult]:
    from components.shared.ledger import signing

    signer, verifier = signing.signer(), signing.verifier()
    signs = f"signs with the key {signer.id}" if signer else "signs nothing"
    verifies = f"trusts {', '.join(verifier.keys)}" if verifier else "verifies nothing"
    remedy = "" if signer and verifier else "docs/audit.md explains how to sign and verify decisions and releases."
    yield CheckResult("signatures", "ok" if signer or verifier else "note", f"{signs}, {verifies}", remedy)


def _tracking(settings: Settings) -> Iterator[CheckResult]:
    if settings.tracking.startswith("sqlite:///"):
        exists = Path(settings.tracking.removeprefix("sqlite:///")).exists()
        yield CheckResult("tracking", "ok", settings.tracking + ("" if exists else " (created by the first run)"))
        return
    import urllib3

    remedy = "Runs work without it. Check MLFLOW_TRACKING_URI."
    try:
        response = urllib3.request("GET", f"{settings.tracking.rstrip('/')}/health", timeout=5, retries=False)
    except urllib3.exceptions.HTTPError as error:
        yield CheckResult("tracking", "note", f"{settings.tracking_shown} does not respond: {error}", remedy)
        return
    healthy = response.status < 300
    means = settings.tracking_shown if healthy else f"{settings.tracking_shown} responds with {response.status}"
    yield CheckResult("tracking", "ok" if healthy else "note", means, "" if healthy else remedy)


def _docker(_settings: Settings) -> Iterator[CheckResult]:
    version = _output_of("docker", "version", "--format", "{{.Server.Version}}")
    if version:
        yield CheckResult("Docker", "ok", f"engine {version}")
    else:
        yield CheckResult("Docker", "note", "does not respond", "Only `--runner docker` and `make images` need it.")


def _gpu(_settings: Settings) -> Iterator[CheckResult]:
    names = _output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    yield CheckResult("GPU", "ok" if names else "note", names or "none; training uses the CPU")


def _output_of(*command: str) -> str:
    """Return the output of a command, or "" if it is missing or fails."""
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


_CHECKS: dict[str, Callable[[Settings], Iterator[CheckResult]]] = {
    "Python": _python,
    "packages": _packages,
    "disk": _disk,
    "store": _store,
    "permissions": _permissions,
    "hash key": _key,
    "signatures": _signatures,
    "tracking": _tracking,
    "Docker": _docker,
    "GPU": _gpu,
    "Kubeflow": cluster.kubeflow,
    "Kubernetes": cluster.rights,
    "images": cluster.images,
    "time zone": cluster.zones,
}
