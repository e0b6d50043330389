"""A run of the loop that nobody started from here: its stages called one by one, as a cluster calls them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components.shared.privacy import keyed_hash
from components.shared.runtime import work
from components.shared.runtime.step_log import VARIABLE
from components.shared.storage import artifacts
from components.shared.storage.store import open_store
from medloop.synth.synth import synth
from tests import tracking_database
from tests.components.shared.steps import nothing, output
from workflows.parameters import read_policy

RUN = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
LENIENT = read_policy("lenient")
QUICK: dict[str, Any] = {"image_size": 48, "epochs": 1}


class ByHand:
    """A store, scans, and the means to do steps of a run there."""

    def __init__(self, home: Path, run: str = RUN, key: str = keyed_hash.SYNTHETIC) -> None:
        self.home, self.run, self.key, self.scans = home, run, key, home / "scans"
        self.store = open_store(str(home / "store"))
        self.done: list[work.Result] = []

    def step(self, stage: str, inputs: dict[str, Path], **parameters: Any) -> work.Result:
        """Do a step of the run, in this process, with no settings but those of a cluster's pod."""
        tracking_database.place_in(self.home)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(VARIABLE, self.run)
            patch.setenv(keyed_hash.VARIABLE, self.key)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self.home}/tracking.db")
            patch.delenv("MEDLOOP_NOTIFY_URL", raising=False)
            self.done.append(work.step(stage, self.store.uri, inputs, parameters))
        return self.done[-1]

    def out(self, done: work.Result, name: str) -> Path:
        """The manifest file of an output."""
        return output(self.store, done, name)

    def data(self, policy: Mapping[str, Any] = LENIENT, **asked: Any) -> tuple[work.Result, dict[str, Path]]:
        """Resolve, ingest what is asked for, and split; gives what resolve found and the rows for later stages."""
        if not self.scans.exists():
            synth(self.scans, patients=24, classes=2, seed=7, shift=0.0, reports=False)
        source = str(self.scans)
        now = self.step("resolve", {}, source=source, asked={"epochs": 1.0}, policy=dict(policy))
        seen = {name: now.values[name] for name in ("revision", "key_id")}
        portion = self.step("ingest", {}, source=source, **seen, **asked)
        several = artifacts.combine(self.store, [portion.outputs["portion"]])
        data = self.step("merge", {"portions": self.store.fetch(several.digest)})
        rows = {"dataset": self.out(data, "dataset")}
        sides = self.step("split", {**rows, "previous": self.out(now, "previous")})
        return now, {**rows, "splits": self.out(sides, "splits")}

    def train(self, rows: dict[str, Path]) -> Path:
        """Train a small model; gives the file of its manifest."""
        return self.out(self.step("train", rows, **QUICK), "model")

    def whole(self, policy: Mapping[str, Any] = LENIENT) -> None:
        """The whole run, to whatever ending the policy leads to."""
        now, rows = self.data(policy=policy)
        champion = self.out(now, "champion")
        limits = {"policy": dict(policy), "looks": now.values["looks"], "spent": now.values["spent"]}
        limits |= {name: now.values[name] for name in ("signer", "revision")}
        model = self.train(rows)
        report = self.step("evaluate", {**rows, "model": model, "champion": champion}, precision="float32")
        verdict = self.step("gate", {"report": self.out(report, "report")}, **limits, shipped=False)
        ending = {"state": self.out(now, "state"), "decision": self.out(verdict, "decision")}
        if verdict.values["outcome"] == "refused":
            self.step("reject", ending, by="a pod")
            return
        small = self.out(self.step("quantize", {**rows, "model": model}), "quantized")
        shipped = self.step("evaluate", {**rows, "model": small, "champion": champion}, precision="int8")
        final = self.step("gate", {"report": self.out(shipped, "report")}, **limits, shipped=True)
        ending["decision"] = self.out(final, "decision")
        if final.values["outcome"] == "approved":
            self.step("deploy", {**ending, "model": small}, by="a pod")
        else:
            self.step("reject", ending, by="a pod")

    def nothing(self) -> Path:
        """The manifest of an artifact that is not there."""
        return nothing(self.store)
