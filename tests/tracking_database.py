"""An empty tracking database of MLflow, made once: MLflow takes seconds to make one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

MAKE = "import sys; from mlflow import MlflowClient; MlflowClient(tracking_uri=sys.argv[1]).search_experiments()"


def place_in(home: Path, name: str = "tracking.db") -> str:
    """Put an empty database where a loop looks for its own, unless one is there; returns its address."""
    if home.is_dir() and not (home / name).exists():
        shutil.copyfile(_made(), home / name)
        (home / name).chmod(0o600)
    return f"sqlite:///{home}/{name}"


@cache
def _made() -> Path:
    made = Path(tempfile.gettempdir()) / f"medloop-tests-mlflow-{version('mlflow')}-{os.getuid()}.db"
    if not made.exists():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tracking.db"
            subprocess.run([sys.executable, "-W", "ignore", "-c", MAKE, f"sqlite:///{path}"], check=True, cwd=folder)
            partial = made.with_suffix(f".{os.getpid()}")
            shutil.copyfile(path, partial)
            partial.replace(made)
    return made
