"""Training asks for its place before it reads anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from components.shared.storage.store import open_store
from components.train import device
from components.train.device import choose_device, choose_precision, use_threads
from tests.components.shared.steps import manifest, remove, step
from tests.made import make_dataset, make_split

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@without_gpu
def test_a_gpu_that_is_not_there_is_told_with_the_remedy() -> None:
    with pytest.raises(RuntimeError, match="device is 'cuda'") as refused:
        choose_device("cuda")
    told = str(refused.value)
    assert "CUDA" in told
    assert "set device to auto or cpu" in told
    assert "accelerators in the cluster file" in told


@without_gpu
def test_the_processor_serves_where_nothing_else_was_asked_for() -> None:
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_a_gpu_that_is_there_is_taken_unless_the_processor_is_asked_for() -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


def test_sums_on_a_gpu_are_asked_to_be_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    choose_device("cpu")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@without_gpu
def test_training_fails_for_want_of_a_gpu_before_it_reads_data_and_is_tried_again_elsewhere(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    folder = make_dataset(tmp_path / "dataset", store)
    inputs = {"dataset": manifest(store, folder), "splits": manifest(store, make_split(tmp_path / "splits", folder))}
    shards = [name for name in store.names("objects") if (Path(store.uri) / name).stat().st_size > 50_000]
    assert shards
    for shard in shards:
        remove(store, shard.rpartition("/")[2])  # whoever reads images now fails for another reason
    with pytest.raises(RuntimeError, match="finds no GPU"):
        step("train", store, inputs, device="cuda", epochs=1)
    with pytest.raises(RuntimeError, match="precision is fp16, which gains nothing on a CPU"):
        choose_precision(choose_device("cpu"), "fp16")
    assert not [name for name in store.names("work") if name.endswith("error.json")]  # another node may have one


def test_a_training_uses_the_threads_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(device, "count_threads", lambda: 1)
        use_threads(0)
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(device, "count_threads", lambda: 1000)
        use_threads(0)
        assert torch.get_num_threads() == device.PHYSICAL_CORES
        use_threads(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
