"""A bucket made ready to be a store: versions, encryption, life-cycle rules; nothing of others is touched."""

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
_SMALLEST = "x-amz-transition-default-minimum-object-size"  # of the rules of others: a new list must repeat it


@dataclass(frozen=True)
class Item:
    """One thing that the bucket should have: is, will be, done or cannot; and what it means."""

    part: str
    state: str
    says: str


def prepare(backend: S3, *, dry_run: bool) -> list[Item]:
    """Set the bucket up, or only look; gives each item as it was found or is now."""
    bucket = _Bucket(backend)
    made = _settle("bucket", f"{backend.bucket} at {backend.client.endpoint}", bucket.exists, bucket.make, dry_run)
    if made.state == "cannot":
        return [made]
    absent = made.state == "will be"
    below = f"below {backend.prefix}/" if backend.prefix else "in the bucket"
    wishes = [
        ("versions", "what is overwritten or deleted is kept", bucket.versions, bucket.keep_versions),
        ("encryption", "on the server's disks, with keys of its own (SSE-S3)", bucket.encrypts, bucket.encrypt),
    ]
    for name, (says, rule) in _rules(backend.prefix).items():
        if name == "broken-uploads" and bucket.server == "MinIO":
            continue  # it removes them by itself after a day, and refuses the rule
        wishes.append((f"rule {name}", f"{says} {below}", *bucket.rule(rule)))
    return [
        made,
        *(
            Item(part, "will be", says) if absent else _settle(part, says, is_so, do, dry_run)
            for part, says, is_so, do in wishes
        ),
    ]


def _settle(part: str, says: str, is_so: Callable[[], bool], do: Callable[[], None], dry_run: bool) -> Item:
    from minio.error import S3Error

    try:
        if is_so():
            return Item(part, "is", says)
        if dry_run:
            return Item(part, "will be", says)
        do()
        # Some servers take what they do not know, and forget it.
        return Item(part, "done", says) if is_so() else Item(part, "cannot", "This server does not keep it.")
    except (S3Error, _UnknownError) as error:
        code = getattr(error, "code", _NOT_DONE[0])
        if code in _NOT_DONE:
            return Item(part, "cannot", "This server does not know it.")
        rights = "The keys may not do it: docs/storage.md lists the rights that it takes."
        refused = f"The server refused it: {code}, {str(getattr(error, 'message', '')).rstrip('. ')}."
        return Item(part, "cannot", rights if code == "AccessDenied" else refused)


class _UnknownError(Exception):
    """The server answers with something else than what it was asked for."""


class _Bucket:
    """The settings of a bucket, as the S3 protocol has them."""

    def __init__(self, backend: S3) -> None:
        self.backend, self.name = backend, backend.bucket
        self.server: str | None = None
        self._smallest: str | None = None

    def exists(self) -> bool:
        """Whether the bucket is there; an exception that explains, where the keys or the region are wrong."""
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
        """Make the bucket, in the region that the environment names."""
        self.backend.client.make_bucket(self.name, location=self.backend.client.region)

    def versions(self) -> bool:
        """Whether it keeps old versions."""
        found = self._get("versioning")
        return found is not None and found.findtext("Status") == "Enabled"

    def keep_versions(self) -> None:
        """Let it keep old versions."""
        root = ET.Element("VersioningConfiguration")
        ET.SubElement(root, "Status").text = "Enabled"
        self._put("versioning", root)

    def encrypts(self) -> bool:
        """Whether it encrypts what it is given, in whatever way."""
        found = self._get("encryption")
        return found is not None and found.find(".//SSEAlgorithm") is not None

    def encrypt(self) -> None:
        """Let it encrypt, with the server's own keys."""
        root = ET.Element("ServerSideEncryptionConfiguration")
        default = ET.SubElement(ET.SubElement(root, "Rule"), "ApplyServerSideEncryptionByDefault")
        ET.SubElement(default, "SSEAlgorithm").text = "AES256"
        self._put("encryption", root)

    def rule(self, wished: ET.Element) -> tuple[Callable[[], bool], Callable[[], None]]:
        """What tells whether the rule is there as wished, and what puts it there beside those of others."""

        def is_so() -> bool:
            found = self._get("lifecycle")
            return found is not None and any(_means(rule) == _means(wished) for rule in found.iter("Rule"))

        def put() -> None:
            root = self._get("lifecycle")
            root = ET.Element("LifecycleConfiguration") if root is None else root
            for rule in root.findall("Rule"):
                if rule.findtext("ID") == wished.findtext("ID"):
                    root.remove(rule)
            root.append(wished)
            self._put("lifecycle", root)

        return is_so, put

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
        if what not in root.tag.lower():  # rclone lists the bucket, whatever it is asked
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
    """The rules by name: what each says, and as XML. None lets a current object expire but those of probes."""
    # A slash may not turn into what another prefix holds: a rule of that id belongs to another store.
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
            "parts of uploads that broke off go after 7 days",
            rule("broken-uploads", here, "AbortIncompleteMultipartUpload", "DaysAfterInitiation", 7),
        ),
        "old-versions": (
            "versions that are no longer current go after 90 days",
            rule("old-versions", here, "NoncurrentVersionExpiration", "NoncurrentDays", 90),
        ),
        "probes": (
            "what `medloop doctor` left of its probes goes after a day",
            rule("probes", f"{here}probe/", "Expiration", "Days", 1),
        ),
    }


def _means(rule: ET.Element) -> list[tuple[str, str]]:
    """What a rule says, whatever the order and the spaces."""
    said = ((element.tag, (element.text or "").strip()) for element in rule.iter())
    # A server may write the prefix with or without a filter around it; an empty one not at all.
    return sorted((tag, text) for tag, text in said if text)
