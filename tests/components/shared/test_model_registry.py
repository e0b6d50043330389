"""MLflow's registry is a picture of the release log: versions, aliases, tags; drawn anew it is the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from components.shared.ledger import release_log
from components.shared.ledger.model_registry import project, remembered_head
from components.shared.storage.store import Store, open_store
from medloop.releases.versions import sync_awaiting
from medloop.settings import Settings
from tests import tracking_database
from tests.components.deploy.test_deploy import Candidate
from tests.components.shared.decisions import decision, state
from tests.components.shared.steps import step


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_database.place_in(tmp_path, "mlflow.db"))
    return open_store(str(tmp_path / "store"))


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient()


def tags() -> dict[str, dict[str, str]]:
    """Each version's tags, by the name it has in medloop."""
    found = client().search_model_versions("name='medloop'")
    return {each.tags.get("medloop.version", f"number {each.version}"): dict(each.tags) for each in found}


def aliases() -> dict[str, str]:
    """Which version each alias names."""
    versions = {str(each.version): each for each in client().search_model_versions("name='medloop'")}
    named = client().get_registered_model("medloop").aliases
    return {alias: versions[str(number)].tags["medloop.version"] for alias, number in named.items()}


def append(store: Store, what: str, **fields: Any) -> None:
    release_log.append(store, release_log.read_log(store), what, **fields)
    assert project(release_log.read_log(store), store.uri)


@pytest.mark.slow
def test_it_follows_releases_and_a_rollback_and_can_be_drawn_anew(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (Candidate(tmp_path / name, store, gain) for name, gain in (("one", 12), ("two", 9)))
    one.deploy()
    assert aliases() == {"champion": "v1"}
    two.deploy()
    assert aliases() == {"champion": "v2", "previous": "v1"}
    drawn = tags()
    assert {name: found["medloop.model"] for name, found in drawn.items()} == {"v1": one.digest, "v2": two.digest}
    entry = release_log.read_log(store)[1].record
    for name in ("decision", "report", "dataset", "split", "run", "precision", "policy", "code"):
        assert drawn["v2"][f"medloop.{name}"] == entry[name], name
    assert drawn["v2"]["medloop.state"] == "released"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/again.db")
    assert project(release_log.read_log(store), store.uri, rebuild=True)
    assert (tags(), aliases()) == (drawn, {"champion": "v2", "previous": "v1"})
    # After a rollback there is nothing before the model in service.
    append(store, "rollback", version="v1")
    assert aliases() == {"champion": "v1"}
    assert set(tags()) == {"v1", "v2"}


@pytest.mark.slow
def test_a_refused_model_is_no_version(store: Store, tmp_path: Path) -> None:
    Candidate(tmp_path / "one", store).deploy()
    inputs = {
        "decision": decision(tmp_path / "refused", store, "e" * 64, "refused"),
        "state": state(tmp_path / "seen", store, request="request-2"),
    }
    step("reject", store, inputs, run="run-2", by="someone")
    assert project(release_log.read_log(store), store.uri, rebuild=True)
    assert set(tags()) == {"v1"}


@pytest.mark.slow
def test_the_challenger_is_the_model_that_waits_for_approval_as_long_as_it_waits(store: Store, tmp_path: Path) -> None:
    Candidate(tmp_path / "one", store).deploy()
    append(store, "awaiting", model="e" * 64, decision="d" * 64)
    assert aliases() == {"champion": "v1", "challenger": "awaiting 2"}
    waiting = tags()["awaiting 2"]
    assert (waiting["medloop.model"], waiting["medloop.state"]) == ("e" * 64, "awaiting approval")
    append(store, "awaiting", model="f" * 64)
    assert aliases() == {"champion": "v1", "challenger": "awaiting 3"}
    assert set(tags()) == {"v1", "awaiting 3"}
    append(store, "release", version="v2", model="f" * 64)
    assert aliases() == {"champion": "v2", "previous": "v1"}
    assert set(tags()) == {"v1", "v2"}
    append(store, "awaiting", model="a" * 64)
    append(store, "refusal", model="b" * 64)
    assert aliases()["challenger"] == "awaiting 5", "another one's refusal changes nothing for it"
    append(store, "refusal", model="a" * 64)
    assert aliases() == {"champion": "v2", "previous": "v1"}
    assert set(tags()) == {"v1", "v2"}


@pytest.mark.slow
def test_a_run_that_leaves_a_model_waiting_draws_it(store: Store, tmp_path: Path) -> None:
    """The stage that writes it down cannot."""
    Candidate(tmp_path / "one", store).deploy()
    settings = Settings(tmp_path, store.uri, f"sqlite:///{tmp_path}/mlflow.db", "")
    champion = release_log.read_log(store)[0].record["model"]
    seen = {"seen": {"champion": champion}}
    release_log.append(store, release_log.read_log(store), "awaiting", model="e" * 64, **seen)
    sync_awaiting(settings, store)
    assert aliases() == {"champion": "v1", "challenger": "awaiting 2"}
    release_log.append(store, release_log.read_log(store), "awaiting", model="f" * 64, seen={"champion": "0" * 64})
    sync_awaiting(settings, store)
    assert aliases() == {"champion": "v1"}, "compared with another model than is in service now: it cannot be approved"
    release_log.append(store, release_log.read_log(store), "awaiting", model="e" * 64, **seen)
    release_log.append(store, release_log.read_log(store), "rotation", key_id="another")
    assert release_log.waiting(release_log.read_log(store)) is None


@pytest.mark.slow
def test_drawn_anew_it_loses_what_the_log_does_not_know_and_mends_what_was_changed(
    store: Store, tmp_path: Path
) -> None:
    Candidate(tmp_path / "one", store).deploy()
    drawn = tags()
    client().set_model_version_tag("medloop", "1", "medloop.decision", "another")
    client().create_model_version("medloop", "elsewhere", tags={"medloop.version": "v7", "medloop.model": "a"})
    other = {"medloop.version": "v1", "medloop.model": "b" * 64, "medloop.store": "s3://another/loop"}
    client().create_model_version("medloop", "there", tags=other)
    client().set_registered_model_alias("medloop", "champion", "2")
    assert project(release_log.read_log(store), store.uri, rebuild=True)
    found = client().search_model_versions("name='medloop'")
    assert {str(each.version) for each in found} == {"1", "3"}, "another store's stays"
    assert dict(client().get_model_version("medloop", "1").tags) == drawn["v1"]
    assert str(client().get_registered_model("medloop").aliases["champion"]) == "1"


@pytest.mark.slow
def test_it_remembers_the_head_and_does_not_go_back(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert remembered_head(store.uri) is None
    Candidate(tmp_path / "one", store).deploy()
    append(store, "seal", reason="a test")
    log = release_log.read_log(store)
    assert remembered_head(store.uri) == (2, log[-1].hash)
    assert remembered_head("s3://another/loop") is None
    store.delete("releases/00000002.json")
    with caplog.at_level(logging.WARNING, "medloop"):
        assert project(release_log.read_log(store), store.uri)
    assert remembered_head(store.uri) == (2, log[-1].hash)
    ours = [record.message for record in caplog.records if record.name == "medloop"]
    assert ours == ["head not remembered"]


def test_nothing_is_remembered_where_no_server_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert remembered_head("store") is None
