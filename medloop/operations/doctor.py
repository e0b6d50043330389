"""What is wrong with this set-up: each part looked at, with what it means and what to do."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from components.shared.ledger import release_log
from components.shared.privacy import hash_keys
from components.shared.runtime.stage_code import installed
from components.shared.storage.store import Store, open_store
from medloop.findings import Finding
from medloop.kubeflow import doctor as cluster
from medloop.releases.examination import foreign_files
from medloop.settings import Settings, open_to_others

SPACE = 2e9


def examine(settings: Settings) -> list[Finding]:
    """Look at every part; a part that breaks the look is itself a finding."""
    found = []
    for name, look in _LOOKS.items():
        try:
            found += list(look(settings))
        except Exception as error:
            found.append(Finding(name, "problem", f"{type(error).__name__}: {error}", "Mend what the message names."))
    return found


def _python(_settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        yield Finding("Python", "ok", version)
    else:
        yield Finding("Python", "note", f"{version}; medloop is tested on 3.11", "If something fails, use Python 3.11.")


def _packages(_settings: Settings) -> Iterator[Finding]:
    names = ("torch", "onnxruntime", "pyarrow", "pydicom", "mlflow", "fastapi")
    versions = {name: installed(name) for name in ("kfp", *names)}
    missing = [name for name, version in versions.items() if version == "absent"]
    if missing == [*names]:
        what = "those to submit runs; `medloop serve` needs the extra serve, and runs on this machine the extra local"
        yield Finding("packages", "note", what, "pip install 'medloop[local]'")
    elif missing:
        yield Finding("packages", "problem", f"missing: {', '.join(missing)}", "pip install 'medloop[local]'")
    else:
        yield Finding("packages", "ok", f"kfp {versions['kfp']}, torch {versions['torch']}")


def _disk(settings: Settings) -> Iterator[Finding]:
    place = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    state = "ok" if free > SPACE else "problem"
    remedy = "" if state == "ok" else f"Free some space below {place}; runs need about {SPACE / 1e9:.0f} GB."
    yield Finding("disk", state, f"{free / 1e9:.1f} GB free at {place}", remedy)


def _store(settings: Settings) -> Iterator[Finding]:
    store = open_store(settings.store)
    name = f"probe/doctor-{os.getpid()}"
    acts: dict[str, tuple[Callable[[], object], Callable[[], bool]]] = {
        "write": (lambda: store.write(name, b"written"), lambda: True),
        "read": (lambda: None, lambda: store.read(name) == b"written"),
        "list": (lambda: None, lambda: name in store.names("probe")),
        "delete": (lambda: store.delete(name), lambda: store.read(name) is None),
    }
    works = True
    for what, (act, did) in acts.items():
        try:
            act()
            if did():
                continue
            yield Finding("store", "problem", f"{settings.store} does not {what}", "Use another store.")
        except OSError as error:
            means, _, remedy = str(error.strerror or error).partition(". ")
            yield Finding("store", "problem", means, remedy or "Mend what the message names.")
        works = False
        if what == "write":
            break
    skew = store.skew()
    if skew is not None:
        size = abs(skew)
        means = f"this machine's is {size:.0f} s {'ahead of' if skew > 0 else 'behind'} the store's"
        remedy = "" if size <= 30 else "Set this machine's clock (with NTP): records are dated by it."
        yield Finding("store, clock", "ok" if size <= 30 else "note" if size <= 300 else "problem", means, remedy)
    if not works:
        return
    yield Finding("store", "ok", f"{settings.store}: writes, reads, lists, deletes")
    try:
        store.require_create_once()
        yield Finding("store, create once", "ok", "of concurrent writers one creates a record, so releases are safe")
    except RuntimeError as error:
        means, _, remedy = str(error).partition(". ")
        yield Finding("store, create once", "problem", means, remedy)
    yield from _log(store)


def _log(store: Store) -> Iterator[Finding]:
    log = release_log.read_log(store)
    service = release_log.in_service(log)
    entries = "1 entry" if len(log) == 1 else f"{len(log)} entries"
    yield Finding("release log", "ok", f"{entries}, in service: {service.version if service else 'nothing'}")
    if foreign := release_log.foreign_names(store):
        yield Finding("release log, folder", "note", foreign_files(foreign), "Nobody reads them; move them away.")


def _private(settings: Settings) -> Iterator[Finding]:
    places = open_to_others(settings)
    root = Path(settings.store)
    if "://" not in settings.store and root.is_dir() and root.stat().st_mode & 0o007:
        places.append(root)
    if places:
        names = ", ".join(map(str, places[:3])) + (f" and {len(places) - 3} more" if places[3:] else "")
        remedy = f"Run: chmod -R go= {' '.join(map(shlex.quote, map(str, places)))}"
        yield Finding("permissions", "problem", f"others on this machine may read {names}", remedy)
    else:
        yield Finding("permissions", "ok", "only you (and the store's group, where it is shared) may read what is kept")


def _key(settings: Settings) -> Iterator[Finding]:
    if settings.hash_key:
        yield Finding("hash key", "ok", f"id {hash_keys.parse(settings.hash_key).id}, from {hash_keys.VARIABLE}")
    elif settings.key_file.exists():
        key = hash_keys.parse(settings.key_file.read_text())
        yield Finding("hash key", "ok", f"id {key.id}, in {settings.key_file}", "Keep a copy of it in a safe place.")
    else:
        yield Finding(
            "hash key", "note", "none yet; the first run on real scans makes one (synthetic scans have a public one)"
        )


def _signatures(_settings: Settings) -> Iterator[Finding]:
    from components.shared.ledger import signing

    ours, trusted = signing.signer(), signing.verifier()
    signs = f"signs with the key {ours.id}" if ours else "signs nothing"
    verifies = f"trusts {', '.join(trusted.keys)}" if trusted else "verifies nothing"
    remedy = "" if ours and trusted else "docs/audit.md says how decisions and releases are signed and verified."
    yield Finding("signatures", "ok" if ours or trusted else "note", f"{signs}, {verifies}", remedy)


def _tracking(settings: Settings) -> Iterator[Finding]:
    if settings.tracking.startswith("sqlite:///"):
        exists = Path(settings.tracking.removeprefix("sqlite:///")).exists()
        yield Finding("tracking", "ok", settings.tracking + ("" if exists else " (made by the first run)"))
        return
    import urllib3

    remedy = "Runs go on without it. Check MLFLOW_TRACKING_URI."
    try:
        answer = urllib3.request("GET", f"{settings.tracking.rstrip('/')}/health", timeout=5, retries=False)
    except urllib3.exceptions.HTTPError as error:
        yield Finding("tracking", "note", f"{settings.tracking_shown} does not answer: {error}", remedy)
        return
    healthy = answer.status < 300
    means = settings.tracking_shown if healthy else f"{settings.tracking_shown} answers {answer.status}"
    yield Finding("tracking", "ok" if healthy else "note", means, "" if healthy else remedy)


def _docker(_settings: Settings) -> Iterator[Finding]:
    version = _says("docker", "version", "--format", "{{.Server.Version}}")
    if version:
        yield Finding("Docker", "ok", f"engine {version}")
    else:
        yield Finding("Docker", "note", "no engine answers", "Only `--runner docker` and `make images` need one.")


def _gpu(_settings: Settings) -> Iterator[Finding]:
    names = _says("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    yield Finding("GPU", "ok" if names else "note", names or "none; training uses the processor")


def _says(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


_LOOKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "Python": _python,
    "packages": _packages,
    "disk": _disk,
    "store": _store,
    "permissions": _private,
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
