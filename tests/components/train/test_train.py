"""Training gives the same model however it went, and a model that others can run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from components.shared.datasets.dataset import Data
from components.shared.imaging.views import normalise
from components.shared.inference import OUTPUTS, Model, read_bundle
from components.shared.privacy import keyed_hash
from components.shared.runtime.work import Result
from components.shared.storage.store import Store, open_store
from components.train.calibrate import best_threshold, fit_temperature
from components.train.models import build
from components.train.out_of_memory import explain_out_of_memory
from tests import made, tracking_database
from tests.components.shared.servers import free_port
from tests.components.shared.steps import contents, laid_out, manifest, step

REPOSITORY = Path(__file__).resolve().parents[3]
QUICK: dict[str, Any] = {"device": "cpu", "image_size": 48, "epochs": 3, "batch_size": 16, "learning_rate": 0.003}


@dataclass(frozen=True)
class Room:
    """A store with a dataset and a split of it."""

    root: Path
    store: Store
    inputs: dict[str, Path]

    @staticmethod
    def make(
        root: Path,
        classes: list[str] = made.CLASSES,
        colour: str = "gray",
        task: str = "classification",
        untrained: int = -1,
    ) -> Room:
        store = open_store(str(root / "store"))
        dataset = made.make_dataset(root / "dataset", store, classes=classes, colour=colour, task=task)
        splits = made.make_split(root / "splits", dataset, untrained=untrained)
        return Room(root, store, {"dataset": manifest(store, dataset), "splits": manifest(store, splits)})

    def train(self, **parameters: Any) -> Result:
        return step("train", self.store, self.inputs, **{**QUICK, **parameters})

    def views(self, count: int = 8) -> Any:
        data = Data.open(self.root / "dataset", self.store)
        return data.views(QUICK["image_size"], "pad")[np.arange(count, dtype=np.int64)]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room.make(tmp_path_factory.mktemp("room"))


@pytest.fixture(scope="module")
def trained(room: Room) -> Result:
    """A training that nothing disturbed."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        return room.train()


@pytest.fixture(scope="module")
def bundle(room: Room, trained: Result) -> Path:
    return laid_out(room.store, trained, "model", room.root / "bundle")


@pytest.mark.slow
def test_it_learns_what_there_is_to_learn(trained: Result, bundle: Path) -> None:
    assert trained.values["val_auc"] > 0.9
    assert 1 <= trained.values["best_epoch"] <= 3
    about = read_bundle(bundle)
    assert len(about["history"]) == 3
    assert about["history"][-1]["loss"] < about["history"][0]["loss"]
    assert about["images"] == {"train": 48, "val": 16}


def test_the_bundle_says_what_a_stranger_needs(trained: Result, bundle: Path, room: Room) -> None:
    files = {
        "configs/metadata.json",
        "configs/inference.json",
        "models/model.pt",
        "models/model.onnx",
        "models/head/bias_0.npy",
        "models/head/bias_1.npy",
        "models/head/weight_0.npy",
        "models/head/weight_1.npy",
    }
    assert files <= set(trained.outputs["model"].files)
    about = read_bundle(bundle)
    assert about["classes"] == made.CLASSES
    assert (about["preprocess"]["size"], about["preprocess"]["fit"], about["preprocess"]["channels"]) == (48, "pad", 1)
    assert about["preprocess"]["decoding"] == made.decoding("gray")
    assert 0 < about["threshold"] < 1
    assert 0.2 <= about["temperature"] <= 10
    assert about["precisions"] == {"float32": {"bytes": (bundle / "models" / "model.onnx").stat().st_size}}
    assert about["fingerprints"]["dataset"] == Data.open(room.root / "dataset", room.store).about["fingerprint"]
    assert about["parameters"]["epochs"] == 3
    document = json.loads((bundle / "configs" / "metadata.json").read_bytes())
    assert document["network_data_format"]["inputs"]["image"]["spatial_shape"] == [48, 48]


def test_the_graph_keeps_the_export_contract(bundle: Path, room: Room) -> None:
    graph = onnx.load(str(bundle / "models" / "model.onnx")).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    batch = shapes["image"][0]
    assert isinstance(batch, str)
    assert [output.name for output in graph.output] == list(OUTPUTS)
    assert shapes["image"] == [batch, 1, 48, 48]
    assert shapes["logits"] == [batch, 2]
    assert shapes["features"] == [batch, shapes["feature_map"][1]]
    assert shapes["feature_map"][2:] == [3, 3]
    assert not (bundle / "models" / "model.onnx.data").exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_graph_says_what_the_network_says_for_any_number_of_images(count: int, bundle: Path, room: Room) -> None:
    model, views = Model(bundle), room.views(count)
    network = build("small", 1, 2, QUICK["image_size"])
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        logits, features, maps = network.eval()(torch.from_numpy(normalise(views, model.preprocess)))
    answer = model(views)
    np.testing.assert_allclose(answer.logits, logits.numpy(), atol=1e-3)
    np.testing.assert_allclose(answer.features, features.numpy(), atol=1e-3)
    np.testing.assert_allclose(model.feature_maps(views), maps.numpy(), atol=1e-3)


def test_the_head_beside_the_graph_is_the_graphs_own(bundle: Path, room: Room) -> None:
    answer = Model(bundle)(room.views())
    first, bias, second, last = (
        np.load(bundle / "models" / "head" / f"{part}.npy") for part in ("weight_0", "bias_0", "weight_1", "bias_1")
    )
    again = np.maximum(answer.features @ first.T + bias, 0) @ second.T + last
    np.testing.assert_allclose(again, answer.logits, atol=1e-4)


def test_no_path_of_this_machine_is_in_the_bundle(trained: Result, room: Room) -> None:
    words = [str(REPOSITORY), sys.prefix, str(room.root), str(Path.home()), "site-packages", ".py"]
    for name, data in contents(room.store.uri, trained.outputs["model"]).items():
        found = [word for word in words if word.encode() in data]
        assert not found, f"{name} holds {found}"


def test_no_checkpoint_is_left(trained: Result, room: Room) -> None:
    assert room.store.names(f"work/{trained.key}") == [f"work/{trained.key}/result.json"]


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes(trained: Result, tmp_path: Path) -> None:
    again = Room.make(tmp_path).train()
    assert again.key == trained.key
    assert again.outputs == trained.outputs
    assert again.values == trained.values


@pytest.mark.slow
def test_another_seed_gives_another_model(trained: Result, room: Room) -> None:
    other = room.train(seed=8, epochs=1)
    assert other.outputs["model"].files["models/model.pt"] != trained.outputs["model"].files["models/model.pt"]


def by_hand(room: Room, out: Path, **parameters: Any) -> subprocess.Popen[str]:
    """`python -m components train` in a process of its own."""
    given = {**QUICK, **parameters}
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "components",
        "train",
        "--store",
        room.store.uri,
        "--model",
        str(out),
    ]
    command += [f"--{name}={path}" for name, path in room.inputs.items()]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    environment = {**os.environ, keyed_hash.VARIABLE: keyed_hash.SYNTHETIC}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


LONGER: dict[str, Any] = {"epochs": 12, "checkpoint_seconds": 0.05}
KILLS = int(os.environ.get("MEDLOOP_KILLS", "3"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return Room.make(tmp_path_factory.mktemp("undisturbed")).train(**LONGER)


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM])
def test_a_training_that_is_ended_at_random_moments_gives_the_same_bytes(
    signal_: signal.Signals, undisturbed: Result, tmp_path: Path
) -> None:
    room, chance = Room.make(tmp_path), random.Random(int(signal_))
    work = Path(room.store.uri) / "work" / undisturbed.key
    steps = [0]
    for _ in range(KILLS):
        newest = max((path.name for path in work.glob("checkpoint-*")), default="")
        with by_hand(room, tmp_path / "out", **LONGER) as process:
            deadline = time.monotonic() + 120
            while max((path.name for path in work.glob("checkpoint-*")), default="") <= newest:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal_)
            _, err = process.communicate()
        assert process.returncode == (-signal.SIGKILL if signal_ == signal.SIGKILL else 143), err
        assert not (tmp_path / "out").exists()
        steps.append(int(max(path.name for path in work.glob("checkpoint-*")).rpartition("-")[2]))
    assert steps == sorted(set(steps)), "each try went on from the one before it"
    with by_hand(room, tmp_path / "out", **LONGER) as last:
        out, err = last.communicate()
    assert last.returncode == 0, err
    events = [json.loads(line) for line in err.splitlines()]
    assert any("restored from the checkpoint" in event.get("note", "") for event in events)
    assert json.loads(out) == undisturbed.values
    assert (tmp_path / "out").read_bytes() == undisturbed.outputs["model"].encode()
    assert room.store.names(f"work/{undisturbed.key}") == [f"work/{undisturbed.key}/result.json"]


@pytest.mark.slow
def test_three_classes_have_no_threshold(tmp_path: Path) -> None:
    room = Room.make(tmp_path, ["A", "B", "C"])
    done = room.train(epochs=1, channels=3, fit="stretch", crop=0.2, shades="local", augment=0)
    about = json.loads(contents(room.store.uri, done.outputs["model"])["configs/metadata.json"])["medloop"]
    assert about["threshold"] is None
    assert [about["preprocess"][name] for name in ("channels", "fit", "crop", "shades")] == [3, "stretch", 0.2, "local"]


@pytest.mark.slow
def test_colour_images_are_learned_from_in_three_channels(tmp_path: Path) -> None:
    room = Room.make(tmp_path, colour="rgb")
    with pytest.raises(ValueError, match=r"channels is 1, but the data set has colour images\. Set channels to 3"):
        room.train()
    done = room.train(channels=3)
    bundle = laid_out(room.store, done, "model", tmp_path / "bundle")
    model, views = Model(bundle), room.views()
    assert views.shape == (8, 48, 48, 3)
    assert model.preprocess["decoding"] == made.decoding("rgb")
    assert done.values["val_auc"] > 0.9
    turned = model(np.ascontiguousarray(views[..., ::-1])).logits
    assert np.abs(model(views).logits - turned).max() > 0.01, "the order of the colours counts"


@pytest.mark.slow
def test_weights_in_the_store_are_begun_with(trained: Result, bundle: Path, room: Room) -> None:
    weights = room.store.put_file(bundle / "models" / "model.pt").digest
    done = room.train(weights=weights, epochs=1, frozen_epochs=1)
    about = json.loads(contents(room.store.uri, done.outputs["model"])["configs/metadata.json"])["medloop"]
    assert about["parameters"]["weights"] == weights
    assert done.values["val_auc"] > 0.9, "the frozen body knows already"
    other = room.store.put_bytes(b"no weights").digest
    with pytest.raises(ValueError, match="weights"):
        room.train(weights=other)
    with pytest.raises(ValueError, match="Set architecture to the network"):
        room.train(weights=weights, architecture="resnet18")


@pytest.mark.slow
def test_findings_are_learned_and_each_has_its_threshold(tmp_path: Path) -> None:
    room = Room.make(tmp_path, task="multilabel")
    done = room.train()
    bundle = laid_out(room.store, done, "model", tmp_path / "bundle")
    model, views = Model(bundle), room.views()
    assert model.about["task"] == "multilabel"
    assert len(model.about["threshold"]) == 2
    chances = model.probabilities(model(views).logits)
    assert chances.shape == (8, 2)
    assert not np.allclose(chances.sum(axis=1), 1)
    assert set(model.decide(chances).ravel().tolist()) <= {0, 1}
    assert done.values["val_auc"] > 0.9


def test_a_class_without_training_images_is_named(tmp_path: Path) -> None:
    room = Room.make(tmp_path, untrained=1)
    with pytest.raises(ValueError, match="None of the 24 training images is of PNEUMONIA, so it cannot be learned"):
        room.train()


@pytest.mark.slow
def test_without_drawn_images_no_image_of_a_patient_is_in_the_bundle(trained: Result, room: Room) -> None:
    assert "docs/augmentation.png" in trained.outputs["model"].files
    done = room.train(draw_images=False, epochs=1)
    assert "docs/augmentation.png" not in done.outputs["model"].files


def test_a_shard_that_is_gone_is_told(tmp_path: Path) -> None:
    room = Room.make(tmp_path)
    about = json.loads((tmp_path / "dataset" / "dataset.json").read_bytes())
    room.store.discard(about["shards"][0]["digest"])
    with pytest.raises(OSError, match=r"The object [0-9a-f]{12} is not in .* It was removed"):
        room.train(image_size=64)


def test_too_little_memory_is_told_with_what_to_change() -> None:
    sentence = r"A batch of 64 images of 96×96 pixels does not fit into this machine's memory with small. Set batch_size to 32 and train_options.accumulate to 2"  # noqa: E501
    with pytest.raises(RuntimeError, match=sentence), explain_out_of_memory(torch.device("cpu"), "small", 96, 64, 1):
        torch.empty(2**55)
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(torch.device("cpu"), "small", 96, 64, 1):
        raise RuntimeError("shapes do not fit")


def test_an_unknown_network_names_the_nearest(room: Room) -> None:
    with pytest.raises(ValueError, match="Unknown network 'smal'; did you mean 'small'"):
        room.train(architecture="smal")


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = tracking_database.place_in(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.mark.slow
def test_a_training_is_shown_in_mlflow(room: Room, tracking: str) -> None:
    from mlflow import MlflowClient

    done = room.train(epochs=2, seed=21)
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("medloop")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["medloop.work"] == done.key
    assert (run.data.params["epochs"], run.data.params["seed"]) == ("2", "21")
    history = client.get_metric_history(run.info.run_id, "val_auc")
    assert [point.step for point in history] == [1, 2]
    assert {"loss", "val_loss", "val_accuracy", "val_auc", "images_per_second"} <= set(run.data.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["http://127.0.0.1:{port}", "nonsense://x"])
def test_training_goes_on_where_there_is_no_mlflow(uri: str, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=free_port()))
    done = room.train(epochs=1, seed=30 + len(uri))
    assert done.outputs["model"].files["models/model.onnx"].size > 0


ONE_OF_TWO = "classification"


def one_hot(labels: Any, classes: int = 2) -> Any:
    return np.eye(classes, dtype=np.float32)[labels]


def test_the_temperature_makes_too_sure_a_model_less_sure() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    true = np.stack([np.zeros(4000), (2 * labels - 1) * 1.0 + rng.normal(0, 1.414, 4000)], axis=1)
    fair = fit_temperature(true, one_hot(labels), ONE_OF_TWO)
    assert fit_temperature(true * 3, one_hot(labels), ONE_OF_TWO) == pytest.approx(3 * fair, rel=0.01)
    assert fit_temperature(true * 1000, one_hot(labels), ONE_OF_TWO) == pytest.approx(10, rel=0.01)
    alone = fit_temperature(true[:, 1:], one_hot(labels)[:, 1:], "multilabel")
    assert alone == pytest.approx(fair, rel=0.01), "of two classes the one's logit is against nought"


def test_the_threshold_lies_between_the_classes_and_nearest_to_one_half() -> None:
    logits = np.array([[0, -4.0], [0, -3.0], [0, -2.0], [0, -1.9]])
    targets = one_hot([0, 0, 1, 1])
    assert best_threshold(logits, targets, ONE_OF_TWO) == pytest.approx(0.083, abs=0.01)
    assert best_threshold(np.array([[0, -2.0], [0, 2.0]]), one_hot([0, 1]), ONE_OF_TWO) == 0.5
    assert best_threshold(np.zeros((4, 3)), one_hot([0, 1, 2, 0], 3), ONE_OF_TWO) is None
    one = logits[:, 1]
    both = best_threshold(np.stack([one, -one], axis=1), np.stack([targets[:, 1], targets[:, 0]], axis=1), "multilabel")
    assert isinstance(both, list)
    assert both == pytest.approx([0.083, 0.917], abs=0.01)
    assert best_threshold(logits[:, 1:], np.zeros((4, 1), np.float32), "multilabel") == [0.5]
