"""Masters go into shards and out again; views are made of them once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.shared.datasets.dataset import Data, read_shard
from components.shared.imaging.views import Pixels, view
from components.shared.storage.store import Store, open_store
from tests import made
from tests.components.shared.steps import remove
from tests.made import write_shard


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def data(store: Store, tmp_path: Path) -> Data:
    return Data.open(made.make_dataset(tmp_path / "dataset", store, patients=6), store)


def masters() -> st.SearchStrategy[list[Pixels]]:
    side = st.integers(1, 40)
    return st.lists(st.builds(_noise, side, side, st.booleans(), st.integers(0, 99)), min_size=1, max_size=6)


def _noise(height: int, width: int, deep: bool, seed: int) -> Pixels:
    noise = np.random.default_rng(seed).integers(0, 65536, (height, width)).astype(np.uint16)
    return noise if deep else (noise // 256).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(images=masters())
def test_masters_of_all_sizes_and_depths_come_back_as_they_were(
    images: list[Pixels], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shard") / "shard"
    write_shard(images, path)
    again = read_shard(path)
    assert [p.dtype for p in again] == [p.dtype for p in images]
    for one, other in zip(images, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_equal_masters_give_equal_bytes(tmp_path: Path) -> None:
    images: list[Pixels] = [made.make_image(np.random.default_rng(n), 0) for n in range(3)]
    for name in ("one", "two"):
        write_shard(images, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("view_parameters", [("pad",), ("stretch",), ("pad", 0.2), ("stretch", 0.1, "local")])
def test_a_view_is_what_a_server_would_make_of_the_image(
    data: Data, store: Store, view_parameters: tuple[Any, ...]
) -> None:
    shard = read_shard(store.fetch(data.about["shards"][0]["digest"]))
    views = data.views(24, *view_parameters)
    rows = np.array([7, 0, 3, 3], np.int64)
    np.testing.assert_array_equal(views[rows], np.stack([view(shard[row], 24, *view_parameters) for row in rows]))


def test_views_are_made_once_and_for_each_size_and_fit(data: Data, store: Store) -> None:
    data.views(24, "pad")
    records = store.names("views")
    assert len(records) == 1
    before = [path.stat().st_mtime_ns for path in Path(store.uri).rglob("views/*")]
    remove(store, data.about["shards"][0]["digest"])  # what is kept needs no masters any more
    again = Data(data.about, data.index, open_store(store.uri)).views(24, "pad")
    assert again[np.array([0], np.int64)].shape == (1, 24, 24)
    assert [path.stat().st_mtime_ns for path in Path(store.uri).rglob("views/*")] == before
    with pytest.raises(FileNotFoundError):
        Data(data.about, data.index, open_store(store.uri)).views(24, "stretch")
    with pytest.raises(FileNotFoundError):
        Data(data.about, data.index, open_store(store.uri)).views(24, "pad", 0.1)


def test_a_view_that_has_gone_is_made_again(data: Data, store: Store) -> None:
    rows = np.arange(12, dtype=np.int64)
    first = data.views(24, "pad")[rows]
    remove(store, json.loads(store.read(store.names("views")[0]) or b"")["digest"])
    again = Data(data.about, data.index, open_store(store.uri)).views(24, "pad")[rows]
    np.testing.assert_array_equal(first, again)


def test_the_rows_of_a_side_are_those_of_the_split(data: Data, tmp_path: Path) -> None:
    splits = made.make_split(tmp_path / "splits", tmp_path / "dataset")
    train, val, test = (data.rows(splits, side) for side in ("train", "val", "test"))
    assert len(train) == 12
    assert len(val) == len(test) == 0
    np.testing.assert_array_equal(data.rows(splits, "train", "val", "test"), np.arange(12))


def test_another_schema_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    folder = made.make_dataset(tmp_path / "dataset", store, patients=6)
    record = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(record.replace('"schema": 2', '"schema": 9'))
    with pytest.raises(ValueError, match=r"dataset\.json is a dataset of schema 9"):
        Data.open(folder, store)
