"""Every shipped parameter file is one that a run takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.ingest.parameters import SourceParameters
from components.shared.parsing.yaml_documents import read_yaml
from workflows.parameters import settle

FILES = sorted((Path(__file__).resolve().parents[2] / "workflows" / "params").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_a_shipped_file_is_settled(file: Path) -> None:
    given = read_yaml(file)
    settled = settle("/scans", file, [], {})
    assert given
    assert {name: settled[name] for name in given if name != "policy"} == {
        name: value for name, value in given.items() if name != "policy"
    }
    assert settled["policy"] == settle("/scans", None, [], {}, given.get("policy", "default"))["policy"]
    asked = given.get("ingest_options", {})
    assert SourceParameters(
        **{name: value for name, value in asked.items() if name in SourceParameters.__annotations__}
    )


def test_the_published_data_sets_have_files() -> None:
    names = {file.stem for file in FILES}
    assert names >= {"kermany", "kermany-three", "oct2017", "oct2017-small", "chestxray14", "chestxray14-effusion"}
