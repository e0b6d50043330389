"""Settings from the environment, and the home directory with the hash key."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from components.shared import environment
from components.shared.errors import UnavailableError, UsageError
from components.shared.privacy import keyed_hash
from components.shared.privacy.secret_redaction import redact
from components.shared.storage.image_source import open_source
from medloop.synth.synth import MARKER

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Path at which Kubeflow mounts an API token into pods that request one."""

STATE = ("runs", "replays", "cache", "tracking", "tracking.db*", "heads.json", "hash.key*", "signing.key")
"""Files of the home directory that must be private. The store has its own permissions."""


@dataclass(frozen=True)
class Kubeflow:
    """Address of the Kubeflow Pipelines server, and credentials for it."""

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
    """Locations of the store, run logs, tracking database and keys."""

    home: Path
    store: str
    tracking: str
    hash_key: str
    images: str = ""
    cluster: str = ""
    kubeflow: Kubeflow = field(default_factory=Kubeflow)

    @property
    def cluster_file(self) -> Path | None:
        """The cluster file with resources and placement of the stages, if one is set."""
        return Path(self.cluster) if self.cluster else None

    @property
    def runs(self) -> Path:
        """The directory of run logs and reports."""
        return self.home / "runs"

    @property
    def tracking_shown(self) -> str:
        """The address of the tracking server without its password."""
        return redact(self.tracking)

    @property
    def key_file(self) -> Path:
        """The file of the hash key, used if the environment does not contain it."""
        return self.home / "hash.key"

    @property
    def heads_file(self) -> Path:
        """The file of the last known heads of release logs, kept outside the stores."""
        return self.home / "heads.json"

    @property
    def signing_key_file(self) -> Path:
        """The default file of a new signing key. It is used only if MEDLOOP_SIGNING_KEY contains it."""
        return self.home / "signing.key"

    @property
    def key_files(self) -> tuple[Path, ...]:
        """The key files of this home. Containers get their key in the environment and must not see these files."""
        return self.key_file, self.next_key_file, self.signing_key_file

    @property
    def next_key_file(self) -> Path:
        """The new hash key during a rotation."""
        return self.home / "hash.key.next"


def prepare_home(settings: Settings) -> None:
    """Create the home, private to its owner and ignored by git, and restrict files of earlier versions."""
    home = settings.home
    home.mkdir(stat.S_IRWXU, parents=True, exist_ok=True)
    if not (home / ".gitignore").exists() and not (home / ".git").exists():
        (home / ".gitignore").write_text("*\n")
    for path in open_to_others(settings):
        with contextlib.suppress(OSError):  # owned by someone else, or a file system without permissions
            path.chmod(stat.S_IRWXU if path.is_dir() else stat.S_IRUSR | stat.S_IWUSR)


def open_to_others(settings: Settings) -> list[Path]:
    """Return the state files of the home that other users can read."""
    paths = (path for pattern in STATE for path in settings.home.glob(pattern))
    return sorted(path for path in paths if path.lstat().st_mode & 0o077 and not path.is_symlink())


def read_settings() -> Settings:
    """Return the settings from the environment; the README and docs/cluster.md list the variables."""
    home = Path(environment.get("MEDLOOP_HOME", ".medloop")).expanduser().absolute()
    store = environment.get("MEDLOOP_STORE") or str(home / "store")
    if store.startswith("s3:") and not store.startswith("s3://"):
        raise UsageError(f"MEDLOOP_STORE is {store!r}. Write a bucket as s3://bucket/prefix, with two slashes.")
    return Settings(
        home,
        store if "://" in store else str(Path(store).expanduser().absolute()),
        environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'tracking.db'}",
        environment.get(keyed_hash.VARIABLE),
        environment.get("MEDLOOP_IMAGES"),
        environment.get("MEDLOOP_CLUSTER"),
        _kubeflow(),
    )


def _kubeflow() -> Kubeflow:
    # The variables of Kubeflow's own client where it has one, medloop's otherwise.
    mounted = str(SERVICE_ACCOUNT_TOKEN) if SERVICE_ACCOUNT_TOKEN.is_file() else ""
    return Kubeflow(
        endpoint=environment.get("KF_PIPELINES_ENDPOINT"),
        ui=environment.get("KF_PIPELINES_UI_ENDPOINT"),
        namespace=environment.get("MEDLOOP_KFP_NAMESPACE"),
        token=environment.get("MEDLOOP_KFP_TOKEN"),
        token_file=environment.get("KF_PIPELINES_SA_TOKEN_PATH", mounted),
        cookies=environment.get("MEDLOOP_KFP_COOKIES"),
        ca=environment.get("MEDLOOP_KFP_CA"),
        context=environment.get("MEDLOOP_KUBE_CONTEXT"),
        timezone=environment.get("MEDLOOP_KFP_TIMEZONE", "UTC"),
    )


def hash_key(settings: Settings, source: str, make: bool = True) -> str:
    """Return the hash key for a source: from the environment, the public key for synthetic scans, or that of this home.

    If the home has no key, create one, or return "" if `make` is false. Without this key, no later run can use the
    store.
    """
    if settings.hash_key:
        return settings.hash_key
    if source and _is_synthetic(source):
        return keyed_hash.SYNTHETIC
    finish_rotation(settings)
    if not settings.key_file.exists():
        if not make:
            return ""
        if "://" not in settings.store and (Path(settings.store) / "releases").is_dir():
            raise UnavailableError(
                f"The hash key {settings.key_file} does not exist, but the store was created with a hash key (for "
                "synthetic scans, the public one). Restore the key from its copy, or set MEDLOOP_HOME to another "
                "directory to start a new loop."
            )
        prepare_home(settings)
        descriptor = os.open(settings.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    return settings.key_file.read_text().strip()


def finish_rotation(settings: Settings) -> bool:
    """Replace the hash key by the rotated one if the release log contains the rotation; return whether it did."""
    if settings.hash_key or not settings.next_key_file.exists():
        return False
    from components.shared.ledger import release_log
    from components.shared.storage.store import open_store

    logged = release_log.key_id(release_log.read_log(open_store(settings.store)))
    with contextlib.suppress(FileNotFoundError):  # another process has just replaced it
        if keyed_hash.parse(settings.next_key_file.read_text()).id == logged:
            settings.next_key_file.replace(settings.key_file)
            return True
    return False


def _is_synthetic(source: str) -> bool:
    """Return whether the source was written by `medloop synth`, or is a copy of such a directory in a bucket."""
    if "://" in source:
        return open_source(source).has(MARKER)
    return (Path(source) / MARKER).is_file()


def stage_environment(settings: Settings, source: str, make_key: bool = True) -> dict[str, str]:
    """Return the environment of a run's stages; `make_key` creates a hash key if the home has none."""
    return {
        **environment.everything(),
        keyed_hash.VARIABLE: hash_key(settings, source, make_key),
        "MLFLOW_TRACKING_URI": settings.tracking,
        "MPLCONFIGDIR": str(settings.home / "cache" / "matplotlib"),  # the default is in the user's home
        "MEDLOOP_LOG": "json",
        "PYTHONUNBUFFERED": "1",
    }
