"""Who may write into the store, or brings the image that trains, gets nothing untrue signed or released."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.shared import contracts
from components.shared.contracts import Blob, Manifest, encode
from components.shared.ledger import release_log, signing, stage_signing
from components.shared.runtime import work
from components.shared.storage.artifacts import gather
from components.shared.storage.store import Store, open_store
from tests import made
from tests.components.shared.signers import Pair, use
from tests.medloop.by_hand import LENIENT, QUICK, ByHand

STAGES = ("ingest", "merge", "split", "train", "evaluate", "quantize", "gate")
HELD = ("releases", "approvals", "lease")


class Attacker:
    """A copy of a store in which everything was done but the release, and the means of somebody without its key."""

    def __init__(self, honest: ByHand, home: Path) -> None:
        shutil.copytree(honest.home / "store", home / "store", copy_function=os.link)
        for name in HELD:
            shutil.rmtree(home / "store" / name, ignore_errors=True)
        self.run = ByHand(home)
        self.run.scans = honest.scans
        self.store, self.home = self.run.store, home
        self.steps = {step.key: step for step in honest.done}
        self.own = Pair()
        self.canary = home / "code was run"

    def done(self, stage: str, last: bool = True) -> tuple[str, dict[str, Any]]:
        """The work key and the result of a stage; of evaluate and gate the last ones, of what is shipped."""
        keys = [key for key in self.steps if self.stage_of(key) == stage]
        return keys[-1 if last else 0], self.result(keys[-1 if last else 0])

    def stage_of(self, key: str) -> str:
        """The stage of a work key, or nothing for a stage that keeps no result."""
        data = self.store.read(f"work/{key}/result.json")
        return str(json.loads(data)["stage"]) if data else ""

    def result(self, key: str) -> dict[str, Any]:
        """A result as it stands in the store."""
        return dict(json.loads(self.store.read(f"work/{key}/result.json") or b"{}"))

    def put(self, name: str, data: bytes) -> None:
        """Write anything under any name; a file that is linked to the honest store is replaced, not changed."""
        path = self.home / "store" / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def forget(self, stage: str) -> str:
        """Remove the result of a stage, so that it is done again; returns its work key."""
        key = self.done(stage)[0]
        (self.home / "store" / "work" / key / "result.json").unlink()
        return key

    def replace(self, stage: str, outputs: dict[str, str], how: str, **changes: Any) -> None:
        """Put another result in the place of a stage's, with its artifacts referred to it."""
        key, record = self.done(stage)
        plain = {name: value for name, value in record.items() if name not in ("signer", "stage_key", "signature")}
        plain |= {"outputs": {**record["outputs"], **outputs}, **changes}
        if how == "signed by another key":
            plain = stage_signing.derive(self.own.signer, stage).sign("result", plain)
        elif how == "with the signature of before":
            plain |= {name: record[name] for name in ("signer", "stage_key", "signature")}
        self.put(f"work/{key}/result.json", encode("result", plain))
        for digest in outputs.values():
            self.put(f"refs/{digest}.json", encode("ref", {"key": key, "stage": stage}))

    def forged(self, stage: str) -> dict[str, str]:
        """Outputs of a stage that tell something untrue."""
        record = self.done(stage)[1]
        return {name: self.changed(digest) for name, digest in record["outputs"].items()}

    def changed(self, digest: str) -> str:
        """An artifact like this one, with better figures, other labels or another model in it."""
        manifest = Manifest.decode(self.store.get(digest), "an artifact")
        files = dict(manifest.files)
        for name, blob in manifest.files.items():
            data = self.store.get(blob.digest)
            if name in ("metrics.json", "decision.json"):
                files[name] = self.store.put_bytes(
                    data.replace(b'"value": 0.', b'"value": 0.99').replace(b"refused", b"approved")
                )
            elif name.endswith((".json", ".csv", ".onnx")):
                files[name] = self.store.put_bytes(data + b" ")
        files["sitecustomize.py"] = self.store.put_bytes(f"open({str(self.canary)!r}, 'w')".encode())
        return self.store.put_bytes(Manifest(files).encode()).digest

    def found_nothing(self) -> None:
        """No code of the attacker's was run, and nothing was written where it was not to be."""
        assert not self.canary.exists()
        assert not [*self.home.parent.rglob("sitecustomize.py")]
        outside = self.home / "outside"
        assert not outside.exists() or not any(outside.iterdir())


Attack = Callable[[Attacker], None]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        ATTACKS[name] = function
        return function

    return add


def _replacing(stage: str, how: str) -> Attack:
    return lambda a: a.replace(stage, a.forged(stage), how)


for _stage in STAGES:
    for _how in ("unsigned", "signed by another key", "with the signature of before"):
        ATTACKS[f"result of {_stage}, {_how}"] = _replacing(_stage, _how)


@attack("values of evaluate alone")
def _(a: Attacker) -> None:
    a.replace("evaluate", {}, "with the signature of before", values={"accuracy": 0.99, "auc": 0.99})


@attack("outcome of gate alone")
def _(a: Attacker) -> None:
    a.replace("gate", {}, "unsigned", values={"outcome": "approved", "sentence": "Approved: it is splendid."})


@attack("result of the float model's evaluation under the key of what is shipped")
def _(a: Attacker) -> None:
    a.put(f"work/{a.done('evaluate')[0]}/result.json", encode("result", _record(a.done("evaluate", last=False)[1])))


@attack("result of quantize under the key of train")
def _(a: Attacker) -> None:
    a.put(f"work/{a.done('train')[0]}/result.json", encode("result", _record(a.done("quantize")[1])))


@attack("names that lead out of their folder")
def _(a: Attacker) -> None:
    blob = a.store.put_bytes(f"open({str(a.canary)!r}, 'w')".encode())
    manifest = a.store.put_bytes(Manifest({f"../../../..{a.home}/sitecustomize.py": blob}).encode()).digest
    a.replace("evaluate", {"report": manifest}, "unsigned")


@attack("reference of the report to other work")
def _(a: Attacker) -> None:
    report = a.done("evaluate")[1]["outputs"]["report"]
    a.put(f"refs/{report}.json", encode("ref", {"key": a.done("train")[0], "stage": "evaluate"}))


@attack("reference that leads out of the store")
def _(a: Attacker) -> None:
    report = a.done("evaluate")[1]["outputs"]["report"]
    a.put(f"refs/{report}.json", encode("ref", {"key": "../../elsewhere", "stage": "evaluate"}))


@attack("references removed")
def _(a: Attacker) -> None:
    shutil.rmtree(a.home / "store" / "refs")


@attack("a refusal that nobody gave")
def _(a: Attacker) -> None:
    a.put(f"work/{a.forget('train')}/error.json", encode("error", {"message": "The images are no good."}))


@attack("the model's file in place")
def _(a: Attacker) -> None:
    _in_place(a, a.done("quantize")[1]["outputs"]["quantized"], "models/model.int8.onnx")


@attack("the model's manifest in place")
def _(a: Attacker) -> None:
    digest = a.done("quantize")[1]["outputs"]["quantized"]
    a.put(f"objects/{digest[:2]}/{digest}", Manifest({"models/model.onnx": Blob("0" * 64, 1)}).encode())


@attack("the report's figures in place")
def _(a: Attacker) -> None:
    _in_place(a, a.done("evaluate")[1]["outputs"]["report"], "metrics.json", b'"value": 0.', b'"value": 1.')


@attack("the index of the data set in place")
def _(a: Attacker) -> None:
    _in_place(a, a.done("merge")[1]["outputs"]["dataset"], "index.parquet")


@attack("the split in place")
def _(a: Attacker) -> None:
    _in_place(a, a.done("split")[1]["outputs"]["splits"], "splits.parquet")


@attack("a shard of masters in place")
def _(a: Attacker) -> None:
    a.forget("evaluate")
    shard = _shard(a)
    data = bytearray(a.store.get(shard))
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    a.put(f"objects/{shard[:2]}/{shard}", bytes(data))


@attack("views that show the label")
def _(a: Attacker) -> None:
    a.forget("train")
    a.forget("evaluate")
    for name in a.store.names("views"):
        about = json.loads(a.store.read(name) or b"{}")
        array = np.load(io.BytesIO(a.store.get(about["digest"])))
        array[:] = 255
        target = io.BytesIO()
        np.save(target, array)
        about["digest"] = a.store.put_bytes(target.getvalue()).digest
        plain = {key: about[key] for key in ("digest", "shard", "spec")}
        a.put(name, encode("view", plain))


@attack("a view in place")
def _(a: Attacker) -> None:
    a.forget("evaluate")
    for name in a.store.names("views"):
        digest = json.loads(a.store.read(name) or b"{}")["digest"]
        a.put(f"objects/{digest[:2]}/{digest}", a.store.get(digest)[:-100] + bytes(100))


@attack("what ingest knows of files, unsigned")
def _(a: Attacker) -> None:
    a.forget("ingest")
    for name in a.store.names("masters"):
        content = stage_signing.unseal(name, a.store.read(name) or b"")
        assert content
        a.put(name, content)


@attack("what ingest knows of files, under the names of others")
def _(a: Attacker) -> None:
    a.forget("ingest")
    names = a.store.names("masters")
    kept = [a.store.read(name) or b"" for name in names]
    for name, data in zip(names, [*kept[1:], kept[0]], strict=True):
        a.put(name, data[:-1] + b"\0" if len(names) == 1 else data)


class _Code:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.canary), "w"))


@attack("a checkpoint that is code")
def _(a: Attacker) -> None:
    data = pickle.dumps(_Code(a.canary))
    a.put(f"work/{a.forget('train')}/checkpoint-000000001", bytes.fromhex(contracts.digest(data)) + data)


@attack("a checkpoint under another key's seal")
def _(a: Attacker) -> None:
    key = a.forget("train")
    name = f"work/{key}/checkpoint-000000001"
    data = pickle.dumps(_Code(a.canary))
    sealed = stage_signing.seal(
        stage_signing.derive(a.own.signer, "train"), name, bytes.fromhex(contracts.digest(data)) + data
    )
    a.put(name, sealed)


@attack("an entry of the release log")
def _(a: Attacker) -> None:
    record = {"number": 1, "before": "", "what": "release", "at": "2026-01-01T00:00:00+00:00", "version": "v1"}
    a.put(
        "releases/00000001.json",
        encode("release", {**record, "model": a.changed(a.done("train")[1]["outputs"]["model"])}),
    )


@attack("an entry of the release log, signed by another key")
def _(a: Attacker) -> None:
    record = {"number": 1, "before": "", "what": "seal", "at": "2026-01-01T00:00:00+00:00", "signer": a.own.id}
    signature = a.own.signer.sign("release", encode("release", record))
    a.put("releases/00000001.json", encode("release", {**record, "signature": signature}))


@attack("a folder of the store that is a link")
def _(a: Attacker) -> None:
    key = a.forget("gate")
    outside = a.home / "outside"
    outside.mkdir()
    shutil.rmtree(a.home / "store" / "work" / key)
    (a.home / "store" / "work" / key).symlink_to(outside)


@attack("an object that is a link to another file")
def _(a: Attacker) -> None:
    digest = a.done("evaluate")[1]["outputs"]["report"]
    path = a.home / "store" / "objects" / digest[:2] / digest
    path.unlink()
    path.symlink_to("/etc/passwd")


@attack("names that lead out, through a link in the folder of unfinished files")
def _(a: Attacker) -> None:
    a.forget("ingest")
    shutil.rmtree(a.home / "store" / "masters")
    shutil.rmtree(a.home / "store" / "partial", ignore_errors=True)
    (a.home / "outside").mkdir()
    (a.home / "store" / "partial").symlink_to(a.home / "outside")


@attack("a result and a reference that are no mappings")
def _(a: Attacker) -> None:
    key, record = a.done("evaluate")
    a.put(f"work/{key}/result.json", encode("result", {**_record(record), "outputs": [1]}))
    for name in a.store.names("refs"):
        a.put(name, encode("ref", {"stage": "evaluate"}))


def _record(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("kind", "schema")}


def _in_place(a: Attacker, artifact: str, file: str, old: bytes = b"", new: bytes = b"") -> None:
    digest = Manifest.decode(a.store.get(artifact), "an artifact").files[file].digest
    data = a.store.get(digest)
    a.put(f"objects/{digest[:2]}/{digest}", data.replace(old, new) if old else data[:-1] + bytes([data[-1] ^ 1]))


def _shard(a: Attacker) -> str:
    about = Manifest.decode(a.store.get(a.done("merge")[1]["outputs"]["dataset"]), "a data set").files["dataset.json"]
    return str(json.loads(a.store.get(about.digest))["shards"][0]["digest"])


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> ByHand:
    """A run with keys set that released its model."""
    run = ByHand(tmp_path_factory.mktemp("honest"))
    with pytest.MonkeyPatch.context() as patch:
        use(patch, pair, pair)
        run.whole()
        assert truth(run.store)
    return run


@pytest.fixture
def attacker(honest: ByHand, tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Attacker:
    use(monkeypatch, pair, pair)
    return Attacker(honest, tmp_path)


def figures(store: Store, report: str) -> Any:
    """The figures that a report holds."""
    manifest = Manifest.decode(store.get(report), "a report")
    return json.loads(store.get(manifest.files["metrics.json"].digest))["all"]["figures"]


def truth(store: Store) -> list[tuple[str, Any]]:
    """What the log says was released: the model, and the figures of the report behind it."""
    log = release_log.read_log(open_store(store.uri))
    return [(entry.record["model"], figures(store, entry.record["report"])) for entry in log]


def signed(store: Store) -> list[Any]:
    """The figures behind every decision in the store that a trusted key has signed, and that gate itself gave."""
    trusted, found = signing.verifier(), []
    assert trusted
    for name in store.names("work"):
        data = store.read(name) or b""
        try:
            record = stage_signing.check(trusted, "result", data, name) if name.endswith("result.json") else {}
        except (PermissionError, ValueError):
            continue
        if record.get("stage") == "gate":
            with contextlib.suppress(OSError):  # what was damaged in place says nothing to anybody
                decision = Manifest.decode(store.get(record["outputs"]["decision"]), "a decision")
                found.append(figures(store, json.loads(store.get(decision.files["decision.json"].digest))["report"]))
    return found


def is_refused(run: ByHand, policy: Mapping[str, Any] = LENIENT) -> bool:
    """Whether the run ends with a sentence before it has released anything."""
    try:
        run.whole(policy)
    except (OSError, ValueError, RuntimeError) as error:
        return bool(str(error)) and release_log.FOLDER not in {path.name for path in Path(run.store.uri).iterdir()}
    return False


@pytest.mark.parametrize("name", ATTACKS)
def test_who_may_write_into_the_store_gets_nothing_untrue_signed_or_released(
    name: str, attacker: Attacker, honest: ByHand
) -> None:
    true_figures = signed(attacker.store)
    ATTACKS[name](attacker)
    planted = attacker.store.names(release_log.FOLDER)
    if not (is_refused(attacker.run) or planted):
        assert truth(attacker.store) == truth(honest.store)
    assert attacker.store.names(release_log.FOLDER)[: len(planted)] == planted
    assert all(each in true_figures for each in signed(attacker.store))
    attacker.found_nothing()


def test_without_keys_the_same_is_believed(attacker: Attacker, honest: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack is real: nothing but the signatures stops it."""
    ATTACKS["result of evaluate, unsigned"](attacker)
    use(monkeypatch, None)
    attacker.run.whole()
    (untrue,), (true,) = truth(attacker.store), truth(honest.store)
    assert untrue[0] == true[0]
    assert untrue[1] != true[1]


def test_there_are_forty_ways() -> None:
    assert len(ATTACKS) >= 40


# The image that trains is the attacker's own.


class OwnImage(ByHand):
    """A run in which the attacker's image stands for the stage that trains: it has the store, and no key of ours."""

    def __init__(self, a: Attacker, way: Way, key: str) -> None:
        super().__init__(a.home)
        self.scans, self.attacker, self.way, self.stage_key = a.run.scans, a, way, key

    def train(self, rows: dict[str, Path]) -> Path:
        self.rows = rows
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(signing.VARIABLE)
            patch.delenv(signing.VERIFY)
            if self.stage_key:
                patch.setenv(stage_signing.VARIABLE, self.stage_key)
            return self.store.fetch(self.way(self, rows))


Way = Callable[[OwnImage, dict[str, Path]], str]


def other_model(run: OwnImage) -> str:
    """A model of the attacker's own."""
    return gather(run.store, made.make_bundle(run.home / "own", gain=30.0)).digest


def claim(run: OwnImage, rows: dict[str, Path], digest: str, by: stage_signing.StageKey | None) -> str:
    """Write a result as train would, under the key of its work."""
    inputs = {name: contracts.digest(path.read_bytes()) for name, path in rows.items()}
    plan = work.prepare("train", inputs, dict(QUICK))
    record: dict[str, Any] = {**vars(plan), "outputs": {"model": digest}, "values": {}, "seconds": 1.0}
    run.attacker.put(f"work/{plan.key}/result.json", encode("result", by.sign("result", record) if by else record))
    run.attacker.put(f"refs/{digest}.json", encode("ref", {"key": plan.key, "stage": "train"}))
    return digest


def judged_anew(run: OwnImage) -> list[Any]:
    """The figures of the model that was released, evaluated once more, aside from the store."""
    found = []
    for model, _ in truth(run.store):
        inputs = {**run.rows, "model": run.store.fetch(model), "champion": run.nothing()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MEDLOOP_SCRATCH", str(run.home / "scratch"))
            done = run.step("evaluate", inputs, precision="int8")
            found.append(figures(open_store(run.store.uri), done.outputs["report"].digest))
    return found


def honestly(run: OwnImage, rows: dict[str, Path]) -> str:
    """Train as our own image does."""
    return str(run.step("train", rows, **QUICK).outputs["model"].digest)


def evaluation(run: OwnImage, rows: dict[str, Path], model: str, by: stage_signing.StageKey | None) -> None:
    """Write the result of the evaluation that is to come, with figures out of thin air."""
    inputs = {name: contracts.digest(path.read_bytes()) for name, path in rows.items()}
    inputs |= {"model": model, "champion": Manifest().digest}
    plan = work.prepare("evaluate", inputs, {"precision": "float32"})
    report = run.attacker.changed(run.attacker.done("evaluate", last=False)[1]["outputs"]["report"])
    record: dict[str, Any] = {**vars(plan), "outputs": {"report": report}, "values": {"accuracy": 1.0}, "seconds": 1.0}
    run.attacker.put(f"work/{plan.key}/result.json", encode("result", by.sign("result", record) if by else record))
    run.attacker.put(f"refs/{report}.json", encode("ref", {"key": plan.key, "stage": "evaluate"}))


def hostile_names(run: OwnImage, rows: dict[str, Path]) -> str:
    blob = run.store.put_bytes(f"open({str(run.attacker.canary)!r}, 'w')".encode())
    return run.store.put_bytes(Manifest({f"../../../..{run.home}/sitecustomize.py": blob}).encode()).digest


def outside_weights(run: OwnImage, rows: dict[str, Path]) -> str:
    """A graph whose weights lie in a file outside of the bundle."""
    bundle = made.make_bundle(run.home / "own", gain=30.0)
    graph = onnx.load(str(bundle / "models" / "model.onnx"))
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../../../../../etc/passwd")
    (bundle / "models" / "model.onnx").write_bytes(graph.SerializeToString())
    return claim(run, rows, gather(run.store, bundle).digest, stage_signing.parse(run.stage_key))


def easy_data(run: OwnImage, rows: dict[str, Path]) -> str:
    """Another data set in the place of the one that is judged on."""
    ATTACKS["result of merge, unsigned"](run.attacker)
    ATTACKS["the index of the data set in place"](run.attacker)
    return other_model(run)


def own_entry(run: OwnImage, rows: dict[str, Path]) -> str:
    """An entry of the release log, signed with the key of the stage that trains."""
    key = stage_signing.parse(run.stage_key)
    record = {"number": 1, "before": "", "what": "release", "at": "2026-01-01T00:00:00+00:00", "version": "v1"}
    signed_by = signing.from_key(key.key)
    named = {**record, "model": other_model(run), "signer": signed_by.id}
    signature = signed_by.sign("release", encode("release", named))
    run.attacker.put("releases/00000001.json", encode("release", {**named, "signature": signature}))
    return honestly(run, rows)


def poisoned_views(run: OwnImage, rows: dict[str, Path]) -> str:
    """Views of all images that show their label, under the seal of the stage that trains."""
    model = honestly(run, rows)
    key = stage_signing.parse(run.stage_key)
    ATTACKS["views that show the label"](run.attacker)
    for name in run.store.names("views"):
        about = json.loads(run.store.read(name) or b"{}")
        plain = {each: about[each] for each in ("digest", "shard", "spec")}
        run.attacker.put(name, encode("view", key.sign("view", plain)))
    return claim(run, rows, model, key)


def forged_evaluation(by_stage: bool) -> Way:
    def way(run: OwnImage, rows: dict[str, Path]) -> str:
        key = stage_signing.parse(run.stage_key) if by_stage else None
        model = claim(run, rows, other_model(run), key)
        evaluation(run, rows, model, key)
        return model

    return way


WAYS: dict[str, tuple[Way, bool]] = {
    "a model that no step made": (lambda run, _: other_model(run), False),
    "a model with a result that nobody signed": (lambda run, rows: claim(run, rows, other_model(run), None), False),
    "a model with a result under a key of its own": (
        lambda run, rows: claim(run, rows, other_model(run), stage_signing.derive(run.attacker.own.signer, "train")),
        False,
    ),
    "the evaluation to come, unsigned": (forged_evaluation(by_stage=False), False),
    "names that lead out of their folder": (hostile_names, False),
    "another data set": (easy_data, False),
    "with its key: the evaluation to come": (forged_evaluation(by_stage=True), True),
    "with its key: weights outside of the bundle": (outside_weights, True),
    "with its key: views that show the label": (poisoned_views, True),
    "with its key: an entry of the release log": (own_entry, True),
}


@pytest.mark.parametrize("name", WAYS)
def test_an_image_that_trains_cannot_release_itself(name: str, attacker: Attacker, honest: ByHand, pair: Pair) -> None:
    way, with_key = WAYS[name]
    key = stage_signing.derive(pair.signer, "train").text if with_key else ""
    run = OwnImage(attacker, way, key)
    if not is_refused(run):
        assert with_key  # its own model is released where it is good enough, by what is true of it
        if name != "with its key: an entry of the release log":
            assert [each for _, each in truth(run.store)] == judged_anew(run)
    assert len(attacker.store.names(release_log.FOLDER)) <= 1
    attacker.found_nothing()


# Artifacts between the steps are changed on their way.


def flipped(store: Store, manifest: Manifest) -> dict[str, Blob]:
    """The files of a portion or a split, with every label or side another."""
    files = dict(manifest.files)
    for name, blob in files.items():
        if name.endswith(("index.parquet", "splits.parquet")):
            table = pq.read_table(io.BytesIO(store.get(blob.digest)))
            if "labels" in table.column_names:
                column, changed = (
                    "labels",
                    pa.array([[1 - each for each in row] for row in table["labels"].to_pylist()]),
                )
            else:
                other = {"train": "test", "test": "train", "val": "val"}
                column, changed = "side", pa.array([other[side] for side in table["side"].to_pylist()])
            place = table.column_names.index(column)
            field = table.schema.field(column)
            target = io.BytesIO()
            pq.write_table(table.set_column(place, field, changed.cast(field.type)), target)
            files[name] = store.put_bytes(target.getvalue())
    return files


class OnTheWay(ByHand):
    """A run in which somebody without a key changes an artifact before the stage that takes it."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.changes: dict[str, Callable[[Path], Path]] = {}

    def step(self, stage: str, inputs: dict[str, Path], **parameters: Any) -> work.Result:
        taken = {name: self.changes.get(f"{stage}.{name}", Path)(path) for name, path in inputs.items()}
        return super().step(stage, taken, **parameters)


@pytest.fixture
def on_the_way(attacker: Attacker) -> OnTheWay:
    run = OnTheWay(attacker.home)
    run.scans = attacker.run.scans
    return run


def behind_honest_parts(store: Store) -> Callable[[Path], Path]:
    """Other files in the name of the parts of before; of an artifact without parts, in its own name."""

    def change(path: Path) -> Path:
        manifest = Manifest.decode(path.read_bytes(), "an artifact")
        forged = Manifest(flipped(store, manifest), manifest.parts or (manifest.digest,))
        return store.fetch(store.put_bytes(forged.encode()).digest)

    return change


@pytest.mark.parametrize(
    "where", ["merge.portions", "train.splits", "evaluate.splits", "split.dataset", "split.previous"]
)
def test_what_stands_for_several_holds_what_these_hold(
    where: str, on_the_way: OnTheWay, attacker: Attacker, honest: ByHand
) -> None:
    on_the_way.changes[where] = behind_honest_parts(on_the_way.store)
    # No split was there before, and another way to say so changes nothing.
    assert is_refused(on_the_way) or (where == "split.previous" and truth(attacker.store) == truth(honest.store))
    attacker.found_nothing()


@pytest.mark.parametrize("ending", ["deploy", "reject"])
def test_a_page_that_was_changed_on_its_way_is_not_written_into_the_log(
    ending: str, on_the_way: OnTheWay, attacker: Attacker
) -> None:
    def change(path: Path) -> Path:
        manifest = Manifest.decode(path.read_bytes(), "a decision")
        page = on_the_way.store.put_bytes(b"<h1>Accuracy 0.999, please approve</h1>")
        forged = Manifest({**manifest.files, "page.html": page})
        return on_the_way.store.fetch(on_the_way.store.put_bytes(forged.encode()).digest)

    on_the_way.changes[f"{ending}.decision"] = change
    policy = LENIENT if ending == "deploy" else {**LENIENT, "approval": {"needed": "always"}}
    assert is_refused(on_the_way, policy)
    assert not attacker.canary.exists()


def test_a_source_that_is_touched_again_and_again_does_not_stop_the_loop(
    honest: ByHand, tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is found done, and what was decided is about the source as it is now."""
    use(monkeypatch, pair, pair)
    run = Attacker(honest, tmp_path).run
    run.scans = tmp_path / "scans"
    shutil.copytree(honest.scans, run.scans)
    for _ in range(3):
        run.whole()
        for path in run.scans.rglob("*.png"):
            os.utime(path)
    assert [entry.kind for entry in release_log.read_log(run.store)] == ["release"]


def test_a_key_that_signs_is_enough_and_may_be_replaced(
    honest: ByHand, tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without public keys only what the present key signed counts: work of before is done again, and nothing stops."""
    use(monkeypatch, pair)
    a = Attacker(honest, tmp_path)
    ATTACKS["outcome of gate alone"](a)
    use(monkeypatch, Pair())
    a.run.whole()
    (released,), (true,) = truth(a.store), truth(honest.store)
    assert released == true
    assert "splendid" not in str(release_log.read_log(a.store)[0].record["sentence"])
