"""The HTTP interface: what each path gives, and what it says of bad input."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from components.shared.imaging.image_files import Decoding, decode_image
from components.shared.imaging.views import view, view_parameters
from components.shared.inference import Model
from components.shared.storage.store import Store
from serving.request_limits import Limits
from tests import made
from tests.serving.conftest import deep, dicom, encoded, image, png, running

PREDICTION = {
    "prediction",
    "confidence",
    "probabilities",
    "positive",
    "threshold",
    "inference_time_ms",
    "model_version",
}


def ask(client: httpx.Client, data: bytes, **form: str) -> httpx.Response:
    return client.post("/predict", files={"file": ("Jane Doe.png", data)}, data=form)


def test_health_says_that_a_model_is_loaded(client: httpx.Client) -> None:
    reply = client.get("/health")
    assert reply.status_code == 200
    said = {"status": "healthy", "model_loaded": True, "device": "cpu", "model_version": "v1"}
    assert reply.json() == {**said, "signatures": "not checked"}
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "data",
    [
        png(image()),
        png(deep(image())),
        encoded(image(label=0), "JPEG"),
        dicom(deep(image(3))),
        png(image(4, 0, side=1400)),
    ],
    ids=["png", "png 16 bit", "jpeg", "dicom", "larger than masters"],
)
def test_a_prediction_is_what_the_model_says_of_the_same_view(
    client: httpx.Client, tmp_path: Path, data: bytes
) -> None:
    model = Model(made.make_bundle(tmp_path / "bundle"))
    seen = view(decode_image(data, Decoding()).pixels, *view_parameters(model.preprocess))
    expected = model(seen[None])
    probabilities = model.probabilities(expected.logits)

    reply = ask(client, data, return_features="true")
    found = reply.json()
    assert reply.status_code == 200
    assert set(found) == PREDICTION | {"features"}
    assert list(found["probabilities"]) == made.CLASSES
    assert list(found["probabilities"].values()) == probabilities[0].tolist()
    assert found["prediction"] == made.CLASSES[model.decide(probabilities)[0]]
    assert found["confidence"] == found["probabilities"][found["prediction"]]
    assert found["features"] == expected.features[0].tolist()
    assert found["model_version"] == "v1"
    assert found["inference_time_ms"] > 0


@pytest.mark.slow
def test_an_image_is_decoded_as_the_model_was_trained(store: Store, tmp_path: Path) -> None:
    bundle = made.make_bundle(tmp_path / "bundle")
    metadata = bundle / "configs" / "metadata.json"
    document = json.loads(metadata.read_text())
    lung: dict[str, Any] = {
        **made.decoding("gray"),
        "window_center": 20_000.0,
        "window_width": 20_000.0,
        "max_side": 64,
    }
    document["medloop"]["preprocess"] |= {"decoding": lung, "crop": 0.1}
    metadata.write_text(json.dumps(document))
    made.release_bundle(store, bundle)
    data = dicom(deep(image(side=200)))
    model = Model(bundle)
    found, plain = (view(decode_image(data, how).pixels, 16, "pad", 0.1) for how in (Decoding(**lung), Decoding()))
    assert np.abs(found.astype(int) - plain).max() > 10
    with running(store) as client:
        reply = ask(client, data).json()
        frames = ask(client, dicom(np.tile(deep(image()), (3, 1, 1)).astype(np.uint16), NumberOfFrames=3))
    assert list(reply["probabilities"].values()) == model.probabilities(model(found[None]).logits)[0].tolist()
    assert frames.status_code == 400
    assert frames.json() == {
        "detail": "The DICOM file has 3 frames; only files with 1 are accepted: send each frame as a file of its own."
    }


def test_features_come_only_when_asked_for(client: httpx.Client) -> None:
    assert set(ask(client, png(image())).json()) == PREDICTION
    assert set(ask(client, png(image()), return_features="false").json()) == PREDICTION


@pytest.mark.slow
def test_the_threshold_decides_and_confidence_belongs_to_the_decision(store: Store, tmp_path: Path) -> None:
    bundle = made.make_bundle(tmp_path / "bundle")
    metadata = bundle / "configs" / "metadata.json"
    document = json.loads(metadata.read_text())
    document["medloop"]["threshold"] = 0.9999
    metadata.write_text(json.dumps(document))
    made.release_bundle(store, bundle)
    with running(store) as client:
        found = ask(client, png(image())).json()
    assert found["probabilities"]["PNEUMONIA"] > 0.5
    assert found["prediction"] == "NORMAL"
    assert found["confidence"] == found["probabilities"]["NORMAL"] < 0.5
    assert (found["positive"], found["threshold"]) == ("PNEUMONIA", 0.9999)


@pytest.mark.slow
def test_three_classes(store: Store, tmp_path: Path) -> None:
    classes = ["NORMAL", "BACTERIAL", "VIRAL"]
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle", classes))
    with running(store) as client:
        found = ask(client, png(image())).json()
        about = client.get("/model/info").json()
    assert [reply[name] for reply in (found, about) for name in ("positive", "threshold")] == [None] * 4
    assert list(found["probabilities"]) == classes
    assert found["confidence"] == max(found["probabilities"].values())


@pytest.mark.slow
def test_findings_are_a_list(store: Store, tmp_path: Path) -> None:
    classes = ["EFFUSION", "MASS", "NODULE"]
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle", classes, task="multilabel"))
    with running(store) as client:
        replies = [ask(client, png(image(seed, seed % 2))).json() for seed in range(6)]
    assert len({tuple(reply["prediction"]) for reply in replies}) > 1
    assert replies[0]["threshold"] == dict.fromkeys(classes, 0.5)
    for reply in replies:
        probabilities = reply["probabilities"]
        assert reply["prediction"] == [name for name in classes if probabilities[name] >= 0.5]
        assert reply["confidence"] == min(max(value, 1 - value) for value in probabilities.values())


def test_a_batch_gives_what_single_requests_give_and_a_bad_file_spoils_nothing(client: httpx.Client) -> None:
    good = [png(image(seed, seed % 2)) for seed in range(3)]
    files = [("a.png", good[0]), ("notes.txt", b"not an image"), ("b.png", good[1]), ("empty", b""), ("a.png", good[2])]
    reply = client.post("/predict/batch", files=[("files", file) for file in files])
    found = reply.json()
    assert reply.status_code == 200
    assert set(found) == {"predictions", "count", "inference_time_ms", "model_version"}
    assert found["count"] == 5
    assert [one["filename"] for one in found["predictions"]] == [name for name, _ in files]
    assert found["predictions"][1] == {
        "filename": "notes.txt",
        "error": "The file is not a PNG, JPEG or DICOM image.",
    }
    assert found["predictions"][3] == {"filename": "empty", "error": "The file is empty."}
    for place, data in zip((0, 2, 4), good, strict=True):
        one, alone = found["predictions"][place], ask(client, data).json()
        assert set(one) == PREDICTION | {"filename"}
        assert one["prediction"] == alone["prediction"]
        assert list(one["probabilities"].values()) == pytest.approx(list(alone["probabilities"].values()), abs=1e-6)


def test_a_batch_of_bad_files_only_and_features_of_a_batch(client: httpx.Client) -> None:
    bad = client.post("/predict/batch", files=[("files", ("x", b"x"))]).json()
    assert [set(one) for one in bad["predictions"]] == [{"filename", "error"}]
    upload = [("files", ("x.png", png(image())))]
    good = client.post("/predict/batch", files=upload, data={"return_features": "true"}).json()
    assert len(good["predictions"][0]["features"]) == 4


def test_model_info_says_what_is_in_service_and_where_it_came_from(client: httpx.Client) -> None:
    found = client.get("/model/info").json()
    assert re.fullmatch("[0-9a-f]{64}", found.pop("model_digest"))
    assert found.pop("released_at").startswith("20")
    assert found == {
        "version": "v1",
        "architecture": "made",
        "task": "classification",
        "classes": made.CLASSES,
        "input_size": 16,
        "preprocess": {
            "size": 16,
            "fit": "pad",
            "channels": 1,
            "mean": 0.39,
            "std": 0.15,
            "decoding": made.decoding("gray"),
        },
        "precision": "float32",
        "runtime": "onnxruntime",
        "threshold": 0.5,
        "positive": "PNEUMONIA",
        "temperature": 1.0,
        "release": 1,
        "fingerprints": {"dataset": "made", "split": "made", "split_version": 1},
    }


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    reply = client.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "<strong>v1</strong>" in reply.text
    assert "//" not in reply.text.replace("<!doctype html>", "")
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_the_interface_is_described_and_nothing_is_loaded_from_a_cdn(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/", "/health", "/predict", "/predict/batch", "/model/info"} == set(paths)
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


@pytest.mark.parametrize(
    ("path", "request_", "status", "words"),
    [
        ("/predict", {"files": {"file": ("x.png", b"hello")}}, 400, "The file is not a PNG, JPEG or DICOM image."),
        ("/predict", {"files": {"file": ("x.png", png(image())[:90])}}, 400, "The image cannot be decoded"),
        ("/predict", {"files": {"file": ("x.dcm", dicom(deep(image()))[:300])}}, 400, "DICOM"),
        ("/predict", {"files": {"file": ("x.png", b"")}}, 400, "The file is empty."),
        ("/predict", {"files": {"image": ("x.png", b"x")}}, 422, "no file in the field 'file'"),
        ("/predict", {"data": {"file": "text"}}, 422, "no file in the field 'file'"),
        ("/predict", {"json": {"file": "x"}}, 422, "no file in the field 'file'"),
        ("/predict", {}, 422, "no file in the field 'file'"),
        (
            "/predict",
            {"files": {"file": ("x.png", png(image()))}, "data": {"return_features": "maybe"}},
            422,
            "return_features must be true or false.",
        ),
        ("/predict/batch", {}, 422, "no file in the field 'files'"),
        ("/predict/batch", {"files": [("files", ("x", b"x"))] * 65}, 413, "65 files; at most 64 are allowed"),
        ("/nothing", {}, 404, "This path does not exist."),
        ("/health", {}, 405, "This path does not support POST. Use GET."),
    ],
)
def test_bad_requests_get_a_sentence(
    client: httpx.Client, path: str, request_: dict[str, Any], status: int, words: str
) -> None:
    reply = client.post(path, **request_)
    assert reply.status_code == status
    assert set(reply.json()) == {"detail"}
    assert words in reply.json()["detail"]


def in_pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 50_000):
        yield data[start : start + 50_000]


@pytest.mark.slow
def test_too_large_is_refused_by_its_announced_length_and_while_it_is_read(store: Store, tmp_path: Path) -> None:
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    with running(store, Limits(file_bytes=100_000, batch_bytes=400_000)) as client:
        multipart = client.build_request("POST", "/predict", files={"file": ("x.png", b"x" * 3_000_000)})
        body, kind = multipart.read(), {"content-type": multipart.headers["content-type"]}
        announced = client.post("/predict", content=body, headers=kind)
        chunked = client.post("/predict", content=in_pieces(body), headers=kind)
        file_alone = ask(client, b"x" * 100_001)
        whole_batch = client.post("/predict/batch", content=in_pieces(body), headers=kind)
        files = [("files", ("large", b"x" * 100_001)), ("files", ("good", png(image())))]
        batch = client.post("/predict/batch", files=files)
        after = ask(client, png(image()))
    for reply in (announced, chunked, whole_batch):
        assert reply.status_code == 413
        assert "The request is larger than " in reply.json()["detail"]
    assert file_alone.status_code == 413
    assert file_alone.json() == {"detail": "The file is larger than 97 KiB, the maximum. Send a smaller file."}
    assert batch.status_code == after.status_code == 200
    assert "larger than" in batch.json()["predictions"][0]["error"]
    assert "prediction" in batch.json()["predictions"][1]


def test_without_a_model(store: Store) -> None:
    with running(store) as client:
        health, predicted, info = client.get("/health"), ask(client, png(image())), client.get("/model/info")
        page = client.get("/")
    assert health.status_code == predicted.status_code == info.status_code == 503
    sentence = "No model has been released yet. Run `medloop run`."
    assert health.json() == {
        "status": "unhealthy",
        "model_loaded": False,
        "device": "cpu",
        "model_version": None,
        "signatures": "not checked",
        "detail": sentence,
    }
    assert predicted.json() == info.json() == {"detail": sentence}
    assert page.status_code == 200
    assert "No model is in service" in page.text


def spoil(bundle: Path) -> Path:
    """Make a model give no number for an image with a white pixel: log(1.5 − 4.07), times zero, added to the logits."""
    path = bundle / "models" / "model.onnx"
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "sound"
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(1.5), "top"), numpy_helper.from_array(np.float32(0), "zero")]
    )
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["image"], ["brightest"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Sub", ["top", "brightest"], ["room"]),
            helper.make_node("Log", ["room"], ["logged"]),
            helper.make_node("Mul", ["logged", "zero"], ["nothing"]),
            helper.make_node("ReduceSum", ["nothing"], ["spoiled"], keepdims=0),
            helper.make_node("Add", ["sound", "spoiled"], ["logits"]),
        ]
    )
    onnx.save(model, path)
    return bundle


@pytest.mark.slow
def test_the_unexpected_gets_an_id_that_stands_in_the_log(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made.release_bundle(store, spoil(made.make_bundle(tmp_path / "bundle")))
    white = image()
    white[10:30, 10:30] = 255
    with running(store) as client, caplog.at_level(logging.INFO, "medloop"):
        reply = ask(client, png(white))
        assert client.get("/health").status_code == 200
    assert reply.status_code == 500
    match = re.search("[0-9a-f]{16}", reply.json()["detail"])
    assert match
    (failure,) = [record.__dict__["fields"] for record in caplog.records if record.message == "failed"]
    assert failure["id"] == match[0]
    assert failure["error"] == "ArithmeticError"
    assert any("prediction.py" in line for line in failure["where"])
    assert "Traceback" not in reply.text


def test_the_log_tells_of_requests_and_never_of_patients(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        client.post("/predict", files={"file": ("Jane Doe.dcm", dicom(deep(image())))}, headers={"x-name": "Doe"})
        client.post("/predict?name=Doe", files={"file": ("Jane Doe.dcm", dicom(deep(image()))[:700])})
        client.post("/predict/batch", files=[("files", ("Jane Doe.png", b"x"))])
        client.get("/patients/Doe")
        client.get("/health")
    records = [record for record in caplog.records if not record.name.startswith("http")]  # those are the client's own
    fields = [record.__dict__["fields"] for record in records if record.message == "request"]
    assert [(one["path"], one["status"]) for one in fields] == [
        ("/predict", 200),
        ("/predict", 400),
        ("/predict/batch", 200),
        ("other", 404),
    ]
    everything = " ".join(f"{record.message} {record.__dict__.get('fields')}" for record in records)
    assert "Doe" not in everything
    assert "4711" not in everything


def test_an_answer_does_not_wait_for_an_acknowledgement(client: httpx.Client) -> None:
    seconds = sorted(client.get("/health").elapsed.total_seconds() for _ in range(21))
    assert seconds[10] < 0.03, "a delayed acknowledgement takes 0.04 s"


@pytest.mark.slow
def test_health_answers_while_predictions_are_made(client: httpx.Client) -> None:
    slope = np.tile(np.linspace(0, 255, 9000).astype(np.uint8), (9000, 1))
    large = png(slope)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, client, large) for _ in range(4)]
        while not any(future.running() for future in waiting):
            pass
        assert client.get("/health").status_code == 200
        unfinished = sum(not future.done() for future in waiting)
        assert [future.result().status_code for future in waiting] == [200] * 4
    assert unfinished > 0
