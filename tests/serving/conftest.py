"""A real server on a free port, asked over real HTTP."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from components.shared.imaging.views import Pixels
from components.shared.storage.store import Store, open_store
from serving.deployment import Deployment
from serving.request_limits import Limits
from serving.serve import bind, create_server
from tests import made

POLL = 0.05


@contextmanager
def running(store: Store, limits: Limits | None = None) -> Iterator[httpx.Client]:
    """A client of a server that follows this store."""
    listener = bind("127.0.0.1", 0)
    with listener, Deployment(store, POLL) as deployment:
        server = create_server(deployment, limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of its own."""
    return open_store(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service that has one release; only for tests that change nothing."""
    root = tmp_path_factory.mktemp("serve")
    released = open_store(str(root / "store"))
    made.release_bundle(released, made.make_bundle(root / "bundle"))
    with running(released) as asking:
        yield asking


def png(pixels: Pixels) -> bytes:
    """A PNG file of these pixels, 8 or 16 bits."""
    return encoded(pixels, "PNG")


def encoded(pixels: Pixels, format: str) -> bytes:
    """An image file of these pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def image(seed: int = 0, label: int = 1, side: int = 48) -> Pixels:
    """A small image."""
    return made.make_image(np.random.default_rng(seed), label, side)


def dicom(pixels: Pixels, age: str = "041Y", **fields: int) -> bytes:
    """A DICOM file of these 16-bit pixels, with a patient's name and id in its header."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "SECRET-4711"
    dataset.add_new("PatientAge", "AS", age)
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def deep(pixels: Pixels) -> Pixels:
    """These pixels with 16 bits."""
    return pixels.astype(np.uint16) * 257 + np.uint16(3)


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
