"""The way to a Kubeflow server: every usual log-in, every refusal a sentence, and no secret told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from medloop.kubeflow.login import connect
from medloop.kubeflow.server import Server, ServerInfo
from medloop.settings import Kubeflow
from tests.components.shared.servers import free_port
from tests.medloop.kubeflow.kfp_server import COOKIE, TOKEN, KfpServer, kfp_server, own_certificate
from tests.medloop.test_cli import medloop


@pytest.fixture
def kfp() -> Iterator[KfpServer]:
    with kfp_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_cluster_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KF_PIPELINES_IAP_OAUTH2_CLIENT_ID"):
        monkeypatch.delenv(name, raising=False)


def at(kfp: KfpServer, **settings: Any) -> Server:
    return connect(Kubeflow(endpoint=kfp.host, **settings))


def at_once(server: Server) -> Server:
    """The same server, asked again without a pause."""
    server._client.configuration.retries.backoff_factor = 0
    return server


@pytest.mark.parametrize(("prefix", "multi_user"), [("", False), ("/pipeline", True)])
def test_a_server_says_what_it_is(prefix: str, multi_user: bool) -> None:
    with kfp_server(prefix=prefix, multi_user=multi_user, tag="2.15.0") as kfp:
        mine = {"namespace": "team"} if multi_user else {}
        assert at(kfp, **mine).check((2, 15)) == ServerInfo("2.15.0", multi_user)
        assert connect(Kubeflow(endpoint=kfp.host + "/", **mine)).check().version == "2.15.0"
        with pytest.raises(RuntimeError, match=r"is Kubeflow Pipelines 2\.15\.0, but the cluster file requires 2\.16"):
            at(kfp, **mine).check((2, 16))
        kfp.tag = "unknown"  # a build of one's own is believed
        assert at(kfp, **mine).check((2, 16)).version == "unknown"


def test_a_server_of_many_users_wants_to_know_whose_namespace_it_is() -> None:
    with (
        kfp_server(multi_user=True) as kfp,
        pytest.raises(RuntimeError, match="Set MEDLOOP_KFP_NAMESPACE to your namespace"),
    ):
        at(kfp).check()


def test_version_1_is_refused_by_name() -> None:
    with kfp_server(version_1_only=True) as kfp, pytest.raises(RuntimeError, match="no Kubeflow Pipelines API of vers"):
        at(kfp).check()


def test_what_is_no_kubeflow_at_all() -> None:
    with kfp_server(prefix="/pipeline") as kfp:
        root = kfp.host.removesuffix("/pipeline")
        with pytest.raises(RuntimeError, match="some have a path, such as /pipeline") as refused:
            connect(Kubeflow(endpoint=root)).check()
        assert root in str(refused.value)


@pytest.mark.parametrize("address", ["127.0.0.1:8080", "ftp://x", "http://", "kubeflow", "http:/x", "//x"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="with http:// or https://") as refused:
        connect(Kubeflow(endpoint=address))
    assert repr(address) in str(refused.value)


def test_a_password_in_an_address_is_refused_unshown() -> None:
    with pytest.raises(ValueError, match=r"Set it to https://kubeflow\.example:8443/pipeline\.") as refused:
        connect(Kubeflow(endpoint="https://me:geheim@kubeflow.example:8443/pipeline"))
    assert "geheim" not in str(refused.value)


def test_what_is_not_there_is_a_sentence_on_the_command_line(tmp_path: Path) -> None:
    with kfp_server(prefix="/pipeline") as kfp:
        elsewhere = kfp.host.removesuffix("/pipeline") + "/elsewhere"
        done = medloop(tmp_path, "runs", "--json", status=1, KF_PIPELINES_ENDPOINT=elsewhere)
    assert "does not have this object (GET /apis/v2beta1/runs: 404" in json.loads(done.stdout)["error"]
    assert "Traceback" not in done.stderr


def test_nobody_answers(tmp_path: Path) -> None:
    host = f"http://127.0.0.1:{free_port()}"
    done = medloop(tmp_path, "runs", "--json", status=1, KF_PIPELINES_ENDPOINT=host)
    assert f"No Kubeflow Pipelines server responds at {host}" in done.stderr
    assert "Connection refused" in done.stderr
    assert "port-forward" in done.stderr
    assert len(done.stderr.splitlines()) == 1  # no warnings of a library's before it
    assert json.loads(done.stdout)["error"] in done.stderr
    with pytest.raises(ConnectionError, match=r"no-such-host\.invalid"):
        connect(Kubeflow(endpoint="http://no-such-host.invalid")).check()


def test_a_while_of_503_and_resets_passes_unnoticed(kfp: KfpServer) -> None:
    server = at(kfp)
    kfp.unavailable = 2
    assert server.check().version == kfp.tag
    kfp.resets = 2
    assert list(server.runs()) == []
    kfp.unavailable = 10**6
    at_once(server)
    with pytest.raises(
        ConnectionError, match=r"reports an internal error \(GET /apis/v2beta1/healthz: 503, no healthy upstream\)"
    ):
        server.check()


def test_a_post_is_not_sent_twice_and_its_loss_is_told(kfp: KfpServer) -> None:
    server = at(kfp)
    for mishap in ("losses", "resets"):
        setattr(kfp, mishap, 1)
        before = len(kfp.requests)
        with pytest.raises(ConnectionError, match="may have succeeded") as lost:
            server._request("POST", "experiments", body={"display_name": mishap})
        assert "Connection reset by peer" in str(lost.value)
        assert len(kfp.requests) == before + 1
    assert [each["display_name"] for each in kfp.experiments.values()] == ["Default", "losses"]
    with pytest.raises(ConnectionError, match="No Kubeflow Pipelines server responds"):  # nothing was sent
        connect(Kubeflow(endpoint=f"http://127.0.0.1:{free_port()}"))._request("POST", "experiments", body={})


def test_tls(tmp_path: Path) -> None:
    with kfp_server(certificate=own_certificate(tmp_path)) as kfp:
        assert at(kfp, ca=str(tmp_path / "server.pem")).check().version == kfp.tag
        with pytest.raises(ConnectionError, match="MEDLOOP_KFP_CA"):
            at(kfp).check()
        other = kfp.host.replace("127.0.0.1", "localhost")
        with pytest.raises(ConnectionError, match="is for another name"):
            connect(Kubeflow(endpoint=other, ca=str(tmp_path / "server.pem"))).check()
        with pytest.raises(ValueError, match=r"MEDLOOP_KFP_CA is .*none\.pem"):
            at(kfp, ca=str(tmp_path / "none.pem"))
        plain = at_once(connect(Kubeflow(endpoint=kfp.host.replace("https", "http"))))
        with pytest.raises(ConnectionError, match="responds"):
            plain.check()


@pytest.mark.parametrize("login", ["token", "mesh"])
def test_a_token(login: str) -> None:
    with kfp_server(login=login) as kfp:
        assert list(at(kfp, token=TOKEN).runs()) == []
        assert list(at(kfp, token=f"{TOKEN}\n").runs()) == []  # as files end
        for token in ("", "an-old-token"):
            with pytest.raises(PermissionError, match=r"MEDLOOP_KFP_TOKEN|MEDLOOP_KFP_NAMESPACE") as refused:
                list(at(kfp, token=token).runs())
            assert not token or token not in str(refused.value)


def test_a_cookie_and_a_login_page() -> None:
    with kfp_server(login="cookie", prefix="/pipeline") as kfp:
        assert at(kfp, cookies=COOKIE).check().version == kfp.tag
        for cookies in ("", "authservice_session=old"):
            with pytest.raises(PermissionError, match="probably a login page") as refused:
                at(kfp, cookies=cookies).check()
            assert "=old" not in str(refused.value)
        with pytest.raises(PermissionError, match="login page"):
            at(kfp).start({})


@pytest.mark.parametrize("field", ["token", "cookies"])
@pytest.mark.parametrize("value", ["a secret\nX: y", "a secret\x00", "a secrét"])
def test_a_secret_that_no_header_can_carry_is_refused_unshown(field: str, value: str, kfp: KfpServer) -> None:
    with pytest.raises(ValueError, match=f"MEDLOOP_KFP_{field.upper()}") as refused:
        at(kfp, **{field: value})
    assert "secr" not in str(refused.value).replace("its value is not shown", "")


def test_a_token_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with kfp_server(login="token") as kfp:
        file.write_text("old\n")
        server = at(kfp, token_file=str(file))
        with pytest.raises(PermissionError, match="401"):
            list(server.runs())
        file.write_text(TOKEN + "\n")
        assert list(server.runs()) == []
        kfp.token = "renewed"
        file.write_text("renewed")
        assert list(server.runs()) == []
        file.write_text("")
        with pytest.raises(ValueError, match="is empty"):
            list(server.runs())
        file.unlink()
        with pytest.raises(PermissionError, match=r"cannot be read \(No such file or directory\)") as refused:
            list(server.runs())
        assert "KF_PIPELINES_SA_TOKEN_PATH" in str(refused.value)


def test_no_secret_is_told_whatever_goes_wrong(tmp_path: Path) -> None:
    with kfp_server(login="mesh", namespaces=()) as kfp:
        secrets = {"MEDLOOP_KFP_TOKEN": "s3cret-token", "MEDLOOP_KFP_COOKIES": "a=s3cret-cookie"}
        for host in (kfp.host, f"http://127.0.0.1:{free_port()}"):
            for trace in ("", "1"):
                settings = {"KF_PIPELINES_ENDPOINT": host, "MEDLOOP_TRACEBACK": trace, **secrets}
                done = medloop(tmp_path, "runs", "--json", status=1, **settings)
                assert "s3cret" not in done.stdout + done.stderr
        assert {request.headers["authorization"] for request in kfp.requests} == {"Bearer s3cret-token"}
        assert {request.headers["cookie"] for request in kfp.requests} == {"a=s3cret-cookie"}
        assert "s3cret" not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_namespace_of_others_is_refused() -> None:
    with kfp_server(multi_user=True) as kfp:
        assert list(at(kfp, namespace="team").runs()) == []
        with pytest.raises(PermissionError, match=r"in the namespace other .*403.*is not authorized") as refused:
            list(at(kfp, namespace="other").runs())
        assert "MEDLOOP_KFP_NAMESPACE" in str(refused.value)
        with pytest.raises(ValueError, match="cannot have an empty namespace"):
            list(at(kfp).runs())


PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"


def kubeconfig(path: Path, kfp: KfpServer, **user: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
            {"name": "there", "context": {"cluster": "d", "user": "u"}},
        ],
        "clusters": [
            {"name": "c", "cluster": {"server": kfp.host.removesuffix(PROXY)}},
            {"name": "d", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}},
        ],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(config))


def test_a_kubeconfig_leads_through_the_cluster_to_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with kfp_server(prefix=PROXY, login="mesh") as kfp:
        kubeconfig(tmp_path / "kubeconfig", kfp, token=TOKEN)
        server = connect(Kubeflow())
        assert server.host == kfp.host
        assert server.check().version == kfp.tag
        assert list(server.runs()) == []
        with pytest.raises(PermissionError, match="401"):
            connect(Kubeflow(token="another")).check()
        with pytest.raises(ConnectionError, match="No Kubeflow Pipelines server responds"):
            connect(Kubeflow(context="there")).check()
        with pytest.raises(ValueError, match="nowhere"):
            connect(Kubeflow(context="nowhere"))
    with kfp_server(prefix=PROXY) as kfp:  # a cluster that wants no token
        kubeconfig(tmp_path / "kubeconfig", kfp)
        assert connect(Kubeflow()).check().version == kfp.tag


def test_no_way_to_any_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"No Kubeflow Pipelines server is configured\. Set KF_PIPELINES_ENDPOINT"):
        connect(Kubeflow())
    (tmp_path / "broken").write_text("clusters: [")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "broken"))
    with pytest.raises(ValueError, match="KUBECONFIG"):
        connect(Kubeflow())


def test_logs_that_cannot_be_had_are_none(kfp: KfpServer) -> None:
    server = at(kfp)
    assert (server.log("no-run", "no-pod"), server.waiting_reason("no-run", "no-pod")) == ("", "")
    kfp.unavailable = 10**6
    at_once(server)
    assert server.log("no-run", "no-pod") == ""
    with kfp_server(prefix="/pipeline") as page:
        assert at(page).log("no-run", "no-pod") == ""
