"""Secrets are replaced wherever they are written, control characters escaped, and new files are private."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from components.shared.ledger import signing
from components.shared.ledger.stage_signing import derive
from components.shared.privacy.secret_redaction import one_line, printable, redact, redact_all
from components.shared.runtime import events, notify
from tests.components.shared.signers import Pair

ROOT = Path(__file__).resolve().parents[3]
PASSWORD = 's3cr3t p/w"d'

PLANTED = {
    "MEDLOOP_HASH_KEY": "0f" * 32,
    "MEDLOOP_SIGNING_KEY": Pair().private,
    "MEDLOOP_STAGE_KEY": derive(Pair().signer, "train").text,
    "MEDLOOP_KFP_TOKEN": "kfp-token-1848",
    "MEDLOOP_KFP_COOKIES": "authservice_session=c00kie1848",
    "MEDLOOP_NOTIFY_URL": "https://hooks.example/services/T0/B0/hook1848",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCY1848",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzE1848==",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "container-1848",
    "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    "MLFLOW_TRACKING_TOKEN": "mlflow-token-1848",
    "MLFLOW_TRACKING_URI": f"https://someone:{quote(PASSWORD, safe='')}@mlflow.example/api",
    "HTTPS_PROXY": "http://proxy-user:proxy-1848@proxy.example:3128",
    "KF_PIPELINES_APP_OAUTH2_CLIENT_SECRET": "oauth-1848",
    "SOME_OTHER_API_KEY": "other-key-1848",
}
"""Every variable that holds a secret, with what stands in for one."""


def secret(name: str) -> str:
    """The part of a variable's value that must not be shown."""
    value = PLANTED[name]
    return {"MLFLOW_TRACKING_URI": quote(PASSWORD, safe=""), "HTTPS_PROXY": "proxy-1848"}.get(name, value)


@pytest.mark.parametrize("name", PLANTED)
def test_the_value_of_a_secret_variable_is_replaced_however_it_is_written(name: str) -> None:
    text = secret(name)
    written = [text, json.dumps(text)[1:-1], f"x={text!r}", quote(text, safe=""), f"failed: {text}."]
    written += [line for line in text.splitlines() if len(line) > 16 and not line.startswith("-----")]
    for form in written:
        shown = redact(f"before {form} after", PLANTED)
        assert form not in shown
        assert shown.startswith("before ")
    assert redact("nothing to hide here", PLANTED) == "nothing to hide here"


def test_the_readme_and_the_docs_name_no_secret_variable_that_is_not_hidden() -> None:
    """A variable that is added to the docs and holds a secret by its name must be planted above."""
    from components.shared.privacy.secret_redaction import NAMES

    documents = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    words = {word for path in documents for word in path.read_text(encoding="utf-8").replace("`", " ").split()}
    named = {word.strip(",.()=") for word in words if word.isupper() and "_" in word}
    assert {name for name in named if NAMES.search(name) and name.isidentifier()} <= {*PLANTED, "SECRET_KEY"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET http://u:p@h/x failed", "GET http://***@h/x failed"),
        ("postgresql://only-a-token@h/x", "postgresql://***@h/x"),
        ("GET /b/k?X-Amz-Signature=abc&X-Amz-Date=1", "GET /b/k?X-Amz-Signature=***&X-Amz-Date=1"),
        ("/k?a=1&X-Amz-Credential=AK%2F1&x=2", "/k?a=1&X-Amz-Credential=***&x=2"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=AK/1, Signature=ab", "Authorization: ***"),
        ("{'Authorization': 'Basic dTpw'}", "{'Authorization': '***'}"),
        ("sent Bearer abcdefgh.ijk", "sent Bearer ***"),
        ("-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n", "***\n"),
        ("s3://bucket/scans/a@b.png", "s3://bucket/scans/a@b.png"),
        ("sqlite:////home/a@b/tracking.db", "sqlite:////home/a@b/tracking.db"),
    ],
)
def test_what_has_the_form_of_a_secret_is_replaced(text: str, shown: str) -> None:
    assert redact(text, {}) == shown


def test_a_login_is_replaced_as_a_header_carries_it() -> None:
    login = base64.b64encode(f"someone:{PASSWORD}".encode()).decode()
    assert login not in redact(f"header was {login}", PLANTED)


def test_short_values_of_foreign_variables_do_not_spoil_every_text() -> None:
    assert redact("a test of the model", {"MY_KEY": "test", "OTHER_TOKEN": ""}) == "a test of the model"


def test_records_are_redacted_in_depth() -> None:
    record = {"why": ["x other-key-1848", {"deep": "kfp-token-1848"}], "count": 3, "none": None}
    assert redact_all(record, PLANTED) == {"why": ["x ***", {"deep": "***"}], "count": 3, "none": None}


HOSTILE = [
    "a\nfinished train",
    "a\r✓ gate",
    "a\x1b[2K\x1b[1Ab",
    "a\u2028b",
    "a\u202eb",
    "a\x9b2Jb",
    "a\x7fb",
    "a\ud800b",
    "a\U000e0041b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_stays_on_one_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) == 1
    assert json.loads(printable(json.dumps({"by": text}, ensure_ascii=False))) == {"by": text}
    with pytest.raises(ValueError, match="--by contains a line break or a control character"):
        one_line(text, "--by")


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("Dr. Weber", "Žofia Müller-Lüdenscheidt", "佐藤 健", "a\u00a0b", "50 % – “quoted”"):
        assert printable(text) == one_line(text, "--by") == text


@pytest.mark.parametrize("formatter", [events.Sentences(), events.JsonLines()])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_log_line_is_one_line_whatever_its_fields_hold(
    formatter: events.Sentences | events.JsonLines, text: str
) -> None:
    record = events.log.makeRecord("medloop", 20, "", 0, text, (), None, extra={"fields": {"stage": "x", "why": text}})
    assert len(formatter.format(record).splitlines()) == 1


@pytest.mark.parametrize(
    "address",
    ["https://[hooks.example/services/hook1848", "ftp://x/hook1848", "hook1848", "http://127.0.0.1:9/hook1848"],
)
def test_an_address_for_messages_that_is_wrong_is_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(notify.VARIABLE, address)
    monkeypatch.setattr(events.log, "propagate", True)
    assert not notify.notify({"outcome": "released"})
    (record,) = caplog.records
    told = f"{record.getMessage()} {vars(record)['fields']}"
    assert "hook1848" not in told
    assert "not delivered" in told


PROGRAM = """
import logging, sys, os
from components.shared.privacy.secret_redaction import protect_process
protect_process()
print("printed", os.environ["MLFLOW_TRACKING_TOKEN"])
logging.warning("logged %s", os.environ["AWS_SECRET_ACCESS_KEY"])
os.makedirs("folder/inner")
open("folder/file", "w").close()
raise RuntimeError("raised " + os.environ["MLFLOW_TRACKING_URI"] + " " + os.environ["MEDLOOP_SIGNING_KEY"])
"""


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_protected_process_prints_no_secret_and_leaves_nothing_readable(tmp_path: Path, umask: int) -> None:
    environment = {**os.environ, **PLANTED, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path, env=environment, capture_output=True, text=True, umask=umask, check=False,
    )  # fmt: skip
    printed = done.stdout + done.stderr
    assert [word in printed for word in ("printed", "logged", "raised", "Traceback")] == [True] * 4, printed
    for name in PLANTED:
        for line in secret(name).splitlines():
            assert line.startswith("-----") or line not in printed, name
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert modes == {"folder": "0o700", "inner": "0o700", "file": "0o600"}


def test_a_sentence_about_an_error_hides_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", PLANTED["MLFLOW_TRACKING_TOKEN"])
    for error in (ValueError("no mlflow-token-1848"), OSError(5, "no mlflow-token-1848")):
        assert "no ***" in events.sentence(error)
    assert signing.VARIABLE in PLANTED
