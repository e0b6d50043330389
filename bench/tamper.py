"""Measures how many changed artifacts deploy accepts: every file that it relies on, with one random byte changed.

Run `python -m bench.tamper`. A file is changed in two ways: in the store, under the name that it has (a disk that
fails), and by one who may write into the store and makes all digests fit. The same is done without keys beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.shared.contracts import Manifest, read_record
from components.shared.ledger import release_log, signing
from components.shared.ledger.approvals import AWAITING, FOLDER, approve
from components.shared.runtime import work
from components.shared.storage import artifacts
from components.shared.storage.store import open_store
from tests import made
from tests.components.shared.decisions import decision, state

Change = Callable[[random.Random], bool]


@dataclass
class Scene:
    """A store with a release in its log, and all that deploy is handed for the next one, which a person approved."""

    root: Path

    def __post_init__(self) -> None:
        self.store = open_store(str(self.root / "store"))
        made.release_bundle(self.store, made.make_bundle(self.root / "first"))
        self.folders = {name: self.root / name for name in ("decision", "state", "model")}
        made.make_bundle(self.folders["model"], gain=9.0)
        digest = artifacts.gather(self.store, self.folders["model"]).digest
        champion = release_log.read_log(self.store)[0].record["model"]
        decision(self.folders["decision"], self.store, digest, AWAITING, champion=champion)
        state(self.folders["state"], self.store, champion=champion)
        self.handed = {name: artifacts.gather(self.store, folder) for name, folder in self.folders.items()}
        waits = {"model": digest, "decision": self.handed["decision"].digest}
        release_log.append(self.store, release_log.read_chain(self.store), "awaiting", **waits)
        approve(self.store, self.handed["decision"].digest, {"subject": {"model": digest}}, "bench", "as it is", 1)
        self.entries = len(release_log.read_chain(self.store))

    def accepted(self, handed: dict[str, bytes]) -> bool:
        """Whether deploy releases what these manifests stand for; the log is as before afterwards."""
        files = {}
        for name, data in handed.items():
            files[name] = self.root / f"{name}.manifest"
            files[name].write_bytes(data)
        try:
            work.step("deploy", self.store.uri, files, {"run": "bench", "by": "bench"})
        except Exception:  # whatever stops it: it was not released
            return False
        finally:
            for name in self.store.names(release_log.FOLDER)[self.entries :]:
                self.store.delete(name)
        return True

    def as_made(self) -> dict[str, bytes]:
        """The manifests as resolve, gate and quantize handed them on."""
        return {name: manifest.encode() for name, manifest in self.handed.items()}


def flipped(data: bytes, draw: random.Random) -> bytes:
    """These bytes, with one of them another one."""
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :]


def in_place(scene: Scene, path: Path, draw: random.Random) -> bool:
    """Whether deploy accepts what there is, when one byte of a file of the store is another."""
    sound = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(flipped(sound, draw))
    try:
        return scene.accepted(scene.as_made())
    finally:
        path.write_bytes(sound)


def made_to_fit(scene: Scene, name: str, file: str, draw: random.Random) -> bool:
    """Whether deploy accepts an artifact of which one byte is another, with all digests as they then must be."""
    folder = scene.root / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scene.folders[name], folder)
    (folder / file).write_bytes(flipped((folder / file).read_bytes(), draw))
    changed = artifacts.gather(scene.store, folder).encode()
    return scene.accepted({**scene.as_made(), name: changed})


def handed_on(scene: Scene, name: str, draw: random.Random) -> bool:
    """Whether deploy accepts a manifest of which one byte is another; it lies in the store, too."""
    changed = flipped(scene.as_made()[name], draw)
    scene.store.put_bytes(changed)
    return scene.accepted({**scene.as_made(), name: changed})


def cases(scene: Scene) -> Iterator[tuple[str, Change]]:
    """Every file that deploy relies on, with each way to change it."""
    store = scene.store
    for name, manifest in scene.handed.items():
        yield f"the manifest of {name}, handed on", partial(handed_on, scene, name)
        for file in manifest.files:
            yield f"{file}, digests made to fit", partial(made_to_fit, scene, name, file)
    about = read_record("decision", scene.folders["decision"] / "decision.json")
    kept = {**scene.handed, "report": Manifest.decode(store.get(about["report"]), "report")}
    for name, manifest in kept.items():
        objects = {f"the manifest of {name}": manifest.digest}
        objects |= {file: blob.digest for file, blob in manifest.files.items()}
        for what, digest in objects.items():
            yield f"{what}, in the store", partial(in_place, scene, Path(store.uri) / "objects" / digest[:2] / digest)
    approvals = store.names(f"{FOLDER}/{scene.handed['decision'].digest}")
    named = {f"the release log’s entry {n}": name for n, name in enumerate(store.names(release_log.FOLDER), 1)}
    for what, name in {**named, "the approval": approvals[0]}.items():
        yield f"{what}, in the store", partial(in_place, scene, Path(store.uri) / name)


@contextlib.contextmanager
def keys_set(signed: bool) -> Iterator[None]:
    """Inside, one new key signs and is trusted, or none; and nothing else of medloop's is set."""
    before = dict(os.environ)
    for variable in (signing.VARIABLE, signing.VERIFY, "MLFLOW_TRACKING_URI", "MEDLOOP_NOTIFY_URL"):
        os.environ.pop(variable, None)
    if signed:
        signer, private = signing.make()
        os.environ |= {signing.VARIABLE: private, signing.VERIFY: signer.public}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def measure(signed: bool, flips: int, seed: int) -> dict[str, int]:
    """How many of so many changes deploy accepts, for each file and way."""
    found = {}
    with keys_set(signed), tempfile.TemporaryDirectory(prefix="medloop-tamper-") as root:
        scene = Scene(Path(root))
        assert scene.accepted(scene.as_made()), "what nobody changed must be accepted, or nothing is measured"
        draw = random.Random(seed)  # a draw, not a secret
        for what, tried in cases(scene):
            found[what] = sum(tried(draw) for _ in range(flips))
        assert scene.accepted(scene.as_made()), "all is as it was, so it must be accepted again"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=100, help="changes of each file and way (100)")
    parser.add_argument("--seed", type=int, default=7, help="of the draws (7)")
    asked = parser.parse_args()
    logging.getLogger("medloop").handlers[:] = [logging.NullHandler()]
    logging.getLogger("medloop").propagate = False
    begun = time.perf_counter()
    with contextlib.redirect_stderr(None):
        ours, peer = (measure(signed, asked.flips, asked.seed) for signed in (True, False))
    print(f"Accepted of {asked.flips} changes of one byte each.\n")
    print("| file | with keys | without |\n|---|---|---|")
    for what in {**ours, **peer}:
        print(f"| {what} | {ours.get(what, '–')} | {peer.get(what, '–')} |")
    many, few = len(ours) * asked.flips, len(peer) * asked.flips
    print(f"| **all: {len(ours)} with keys, {len(peer)} without** | **{sum(ours.values())} of {many:,}** "
          f"| {sum(peer.values()):,} of {few:,} |")  # fmt: skip
    print(f"\n{time.perf_counter() - begun:.0f} s.")


if __name__ == "__main__":
    main()
