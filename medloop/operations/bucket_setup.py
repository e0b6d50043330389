"""Setup of a store's bucket: versioning, encryption and life-cycle rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from components.shared.storage.s3 import S3

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_NONE_SET = ("NoSuchLifecycleConfiguration", "ServerSideEncryptionConfigurationNotFoundError", "NoSuchConfiguration")
_NOT_DONE = ("NotImplemented", "MethodNotAllowed", "XNotImplemented")
_SMALLEST = "x-amz-transition-default-minimum-object-size"  # a setting of all rules; a new list must repeat it


@dataclass(frozen=True)
class Setting:
    """One setting of the bucket, its state (is, will be, done or cannot) and its meaning."""

    part: str
    state: str
    says: str


def prepare(backend: S3, *, dry_run: bool) -> list[Setting]:
    """Set the bucket up, or only report its state in a dry run; return all settings."""
    bucket = _Bucket(backend)
    created = _apply("bucket", f"{backend.bucket} at {backend.client.endpoint}", bucket.exists, bucket.make, dry_run)
    if created.state == "cannot":
        return [created]
    absent = created.state == "will be"
    scope = f"below {backend.prefix}/" if backend.prefix else "in the bucket"
    settings = [
        ("versions", "overwritten and deleted objects are kept", bucket.versions, bucket.keep_versions),
        ("encryption", "on the server's disks, with its own keys (SSE-S3)", bucket.encrypts, bucket.encrypt),
    ]
    for name, (says, rule) in _rules(backend.prefix).items():
        if name == "broken-uploads" and bucket.server == "MinIO":
            continue  # MinIO removes them itself after a day, and refuses the rule
        settings.append((f"rule {name}", f"{says} {scope}", *bucket.rule(rule)))
    return [
        created,
        *(
            Setting(part, "will be", says) if absent else _apply(part, says, is_set, change, dry_run)
            for part, says, is_set, change in settings
        ),
    ]


def _apply(part: str, says: str, is_set: Callable[[], bool], change: Callable[[], None], dry_run: bool) -> Setting:
    from minio.error import S3Error

    try:
        if is_set():
            return Setting(part, "is", says)
        if dry_run:
            return Setting(part, "will be", says)
        change()
        # Some servers accept unknown settings and ignore them.
        return Setting(part, "done", says) if is_set() else Setting(part, "cannot", "The server ignores this setting.")
    except (S3Error, _UnknownError) as error:
        code = getattr(error, "code", _NOT_DONE[0])
        if code in _NOT_DONE:
            return Setting(part, "cannot", "The server does not support this setting.")
        rights = "The access key lacks the permission; docs/storage.md lists the required ones."
        refused = f"The server refused: {code}, {str(getattr(error, 'message', '')).rstrip('. ')}."
        return Setting(part, "cannot", rights if code == "AccessDenied" else refused)


class _UnknownError(Exception):
    """The server returned something other than the requested setting."""


class _Bucket:
    """The settings of a bucket, accessed through the S3 protocol."""

    def __init__(self, backend: S3) -> None:
        self.backend, self.name = backend, backend.bucket
        self.server: str | None = None
        self._smallest: str | None = None

    def exists(self) -> bool:
        """Return whether the bucket exists; raise an error if the access key or region is wrong."""
        from minio.error import S3Error

        try:
            query = {"list-type": "2", "max-keys": "1", "prefix": self.backend.prefix}
            self.server = self.backend.client.send("GET", self.name, query_params=query).headers.get("Server")
        except S3Error as error:
            if error.code == "NoSuchBucket":
                return False
            raise self.backend.client.explain(error, "list objects", self.name) from error
        return True

    def make(self) -> None:
        """Create the bucket in the region set in the environment."""
        self.backend.client.make_bucket(self.name, location=self.backend.client.region)

    def versions(self) -> bool:
        """Return whether versioning is enabled."""
        versioning = self._get("versioning")
        return versioning is not None and versioning.findtext("Status") == "Enabled"

    def keep_versions(self) -> None:
        """Enable versioning."""
        root = ET.Element("VersioningConfiguration")
        ET.SubElement(root, "Status").text = "Enabled"
        self._put("versioning", root)

    def encrypts(self) -> bool:
        """Return whether objects are encrypted, by any method."""
        encryption = self._get("encryption")
        return encryption is not None and encryption.find(".//SSEAlgorithm") is not None

    def encrypt(self) -> None:
        """Enable encryption with the server's own keys."""
        root = ET.Element("ServerSideEncryptionConfiguration")
        default = ET.SubElement(ET.SubElement(root, "Rule"), "ApplyServerSideEncryptionByDefault")
        ET.SubElement(default, "SSEAlgorithm").text = "AES256"
        self._put("encryption", root)

    def rule(self, wanted: ET.Element) -> tuple[Callable[[], bool], Callable[[], None]]:
        """Return a function that checks for a life-cycle rule, and one that adds it to the other rules."""

        def is_set() -> bool:
            root = self._get("lifecycle")
            return root is not None and any(_canonical(rule) == _canonical(wanted) for rule in root.iter("Rule"))

        def change() -> None:
            root = self._get("lifecycle")
            root = ET.Element("LifecycleConfiguration") if root is None else root
            for rule in root.findall("Rule"):
                if rule.findtext("ID") == wanted.findtext("ID"):
                    root.remove(rule)
            root.append(wanted)
            self._put("lifecycle", root)

        return is_set, change

    def _get(self, what: str) -> ET.Element | None:
        from minio.error import S3Error

        try:
            answer = self.backend.client.send("GET", self.name, query_params={what: ""})
        except S3Error as error:
            if error.code in _NONE_SET:
                return None
            raise
        self._smallest = answer.headers.get(_SMALLEST)
        root = ET.fromstring(answer.data)  # noqa: S314  # from the server that holds the models
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        if what not in root.tag.lower():  # rclone lists the bucket for any request
            raise _UnknownError
        return root

    def _put(self, what: str, root: ET.Element) -> None:
        from minio.helpers import md5sum_hash

        root.set("xmlns", _NAMESPACE)
        body = ET.tostring(root, encoding="utf-8")
        headers = {"Content-Type": "application/xml", "Content-MD5": md5sum_hash(body)}
        if what == "lifecycle" and self._smallest:
            headers[_SMALLEST] = self._smallest
        self.backend.client.send("PUT", self.name, body=body, headers=headers, query_params={what: ""})


def _rules(prefix: str) -> dict[str, tuple[str, ET.Element]]:
    """Return description and XML of each rule by name. Only probes expire while they are current."""
    # The prefix is quoted, so that the rules of different stores have different ids.
    here, mark = (f"{prefix}/", f"-{quote(prefix, safe='')}") if prefix else ("", "")

    def rule(name: str, below: str, action: str, days: str, number: int) -> ET.Element:
        root = ET.Element("Rule")
        ET.SubElement(root, "ID").text = f"medloop-{name}{mark}"
        ET.SubElement(root, "Status").text = "Enabled"
        ET.SubElement(ET.SubElement(root, "Filter"), "Prefix").text = below
        ET.SubElement(ET.SubElement(root, action), days).text = str(number)
        return root

    return {
        "broken-uploads": (
            "parts of aborted uploads are deleted after 7 days",
            rule("broken-uploads", here, "AbortIncompleteMultipartUpload", "DaysAfterInitiation", 7),
        ),
        "old-versions": (
            "noncurrent versions are deleted after 90 days",
            rule("old-versions", here, "NoncurrentVersionExpiration", "NoncurrentDays", 90),
        ),
        "probes": (
            "leftover probes of `medloop doctor` are deleted after a day",
            rule("probes", f"{here}probe/", "Expiration", "Days", 1),
        ),
    }


def _canonical(rule: ET.Element) -> list[tuple[str, str]]:
    """Return the content of a rule independent of order and white space."""
    values = ((element.tag, (element.text or "").strip()) for element in rule.iter())
    # Servers write the prefix with or without a filter element around it, and may omit an empty one.
    return sorted((tag, text) for tag, text in values if text)
