"""The environment, read once into one frozen value."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from components.shared import environment
from components.shared.errors import UnavailableError, UsageError
from components.shared.privacy import hash_keys
from components.shared.privacy.redaction import redact
from components.shared.storage.source import open_source
from medloop.synth.synth import MARKER

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubeflow puts a token for its API into the pods that ask for one."""


STATE = ("runs", "replays", "cache", "tracking", "tracking.db*", "heads.json", "hash.key*", "signing.key")
"""What medloop keeps in its home besides the store, which has a rule of its own."""


@dataclass(frozen=True)
class Kubeflow:
    """Where the Kubeflow Pipelines server is, and how to log in to it."""

    endpoint: str = ""
    ui: str = ""
    namespace: str = ""
    token: str = ""
    token_file: str = ""
    cookies: str = ""
    ca: str = ""
    context: str = ""
    timezone: str = "UTC"


@dataclass(frozen=True)
class Settings:
    """Where state lies: the store, runs' logs, the tracking database, the hash key."""

    home: Path
    store: str
    tracking: str
    hash_key: str
    images: str = ""
    cluster: str = ""
    kubeflow: Kubeflow = field(default_factory=Kubeflow)

    @property
    def cluster_file(self) -> Path | None:
        """The file that says where and how stages run on a cluster, where one is named."""
        return Path(self.cluster) if self.cluster else None

    @property
    def runs(self) -> Path:
        """The directory of runs' logs and reports."""
        return self.home / "runs"

    @property
    def tracking_shown(self) -> str:
        """The address of the tracking server as anybody may read it: without the password that it may hold."""
        return redact(self.tracking)

    @property
    def key_file(self) -> Path:
        """The hash key, where the environment gives none."""
        return self.home / "hash.key"

    @property
    def heads_file(self) -> Path:
        """The heads of release logs as they were seen last: kept where the logs are not."""
        return self.home / "heads.json"

    @property
    def signing_key_file(self) -> Path:
        """Where a new private key for signatures comes to lie. It counts once MEDLOOP_SIGNING_KEY holds it."""
        return self.home / "signing.key"

    @property
    def key_files(self) -> tuple[Path, ...]:
        """The files of this home that hold keys: a container gets the key that it needs by its environment."""
        return self.key_file, self.next_key_file, self.signing_key_file

    @property
    def next_key_file(self) -> Path:
        """The key that a rotation on its way will put in the place of the hash key."""
        return self.home / "hash.key.next"


def prepare_home(settings: Settings) -> None:
    """Make the home private to its owner and invisible to git, and close what an earlier version left open in it."""
    home = settings.home
    home.mkdir(stat.S_IRWXU, parents=True, exist_ok=True)
    if not (home / ".gitignore").exists() and not (home / ".git").exists():
        (home / ".gitignore").write_text("*\n")
    for path in open_to_others(settings):
        with contextlib.suppress(OSError):  # not ours, or a file system without permissions
            path.chmod(stat.S_IRWXU if path.is_dir() else stat.S_IRUSR | stat.S_IWUSR)


def open_to_others(settings: Settings) -> list[Path]:
    """Return what lies in the home and holds state that others than its owner may read."""
    found = (path for pattern in STATE for path in settings.home.glob(pattern))
    return sorted(path for path in found if path.lstat().st_mode & 0o077 and not path.is_symlink())


def read_settings() -> Settings:
    """The settings that the environment gives; the README and docs/cluster.md list the variables."""
    home = Path(environment.get("MEDLOOP_HOME", ".medloop")).expanduser().absolute()
    store = environment.get("MEDLOOP_STORE") or str(home / "store")
    if store.startswith("s3:") and not store.startswith("s3://"):
        raise UsageError(f"MEDLOOP_STORE is {store!r}. A bucket is written s3://bucket/prefix, with two slashes.")
    return Settings(
        home,
        store if "://" in store else str(Path(store).expanduser().absolute()),
        environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'tracking.db'}",
        environment.get(hash_keys.VARIABLE),
        environment.get("MEDLOOP_IMAGES"),
        environment.get("MEDLOOP_CLUSTER"),
        _kubeflow(),
    )


def _kubeflow() -> Kubeflow:
    """The names that Kubeflow's own client reads, and medloop's for what it has no variable for."""
    there = str(SERVICE_ACCOUNT_TOKEN) if SERVICE_ACCOUNT_TOKEN.is_file() else ""
    return Kubeflow(
        endpoint=environment.get("KF_PIPELINES_ENDPOINT"),
        ui=environment.get("KF_PIPELINES_UI_ENDPOINT"),
        namespace=environment.get("MEDLOOP_KFP_NAMESPACE"),
        token=environment.get("MEDLOOP_KFP_TOKEN"),
        token_file=environment.get("KF_PIPELINES_SA_TOKEN_PATH", there),
        cookies=environment.get("MEDLOOP_KFP_COOKIES"),
        ca=environment.get("MEDLOOP_KFP_CA"),
        context=environment.get("MEDLOOP_KUBE_CONTEXT"),
        timezone=environment.get("MEDLOOP_KFP_TIMEZONE", "UTC"),
    )


def hash_key(settings: Settings, source: str, make: bool = True) -> str:
    """The hash key for a source: the environment's, the public one for synthetic scans, else this home's own.

    A home without a key gets a new one, unless `make` is false; then it is "". Keep a copy of the key: without it no
    later run fits the store's data.
    """
    if settings.hash_key:
        return settings.hash_key
    if source and _is_synthetic(source):
        return hash_keys.SYNTHETIC
    finish_rotation(settings)
    if not settings.key_file.exists():
        if not make:
            return ""
        if "://" not in settings.store and (Path(settings.store) / "releases").is_dir():
            raise UnavailableError(
                f"There is no hash key {settings.key_file}, and the store has a history that was made with one (for "
                "synthetic scans, with the public one). Restore the key from its copy, or set MEDLOOP_HOME to another "
                "directory to begin a new loop."
            )
        prepare_home(settings)
        descriptor = os.open(settings.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    return settings.key_file.read_text().strip()


def finish_rotation(settings: Settings) -> bool:
    """Put a rotated key into its place, if the release log says that it counts; whether there was one to put."""
    if settings.hash_key or not settings.next_key_file.exists():
        return False
    from components.shared.ledger import release_log
    from components.shared.storage.store import open_store

    known = release_log.key_id(release_log.read_log(open_store(settings.store)))
    with contextlib.suppress(FileNotFoundError):  # another process did it at this moment
        if hash_keys.parse(settings.next_key_file.read_text()).id == known:
            settings.next_key_file.replace(settings.key_file)
            return True
    return False


def _is_synthetic(source: str) -> bool:
    """Whether `medloop synth` made these scans, or what lies in a bucket is a copy of such."""
    if "://" in source:
        return open_source(source).has(MARKER)
    return (Path(source) / MARKER).is_file()


def stage_environment(settings: Settings, source: str, make_key: bool = True) -> dict[str, str]:
    """What the stages of a run find in their environment; a home without a hash key gets one if `make_key` says so."""
    return {
        **environment.everything(),
        hash_keys.VARIABLE: hash_key(settings, source, make_key),
        "MLFLOW_TRACKING_URI": settings.tracking,
        "MPLCONFIGDIR": str(settings.home / "cache" / "matplotlib"),  # else in the user's home
        "MEDLOOP_LOG": "json",
        "PYTHONUNBUFFERED": "1",
    }
