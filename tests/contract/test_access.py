"""Who gets in: TLS, mutual TLS and tokens, over real sockets; and that renewing a certificate needs no restart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pageturn.__main__ import main
from pipeline.agent import agent_pb2 as pb
from pipeline.agent.access import AccessError, TokenGate, read_tokens
from pipeline.agent.agent import Agent
from pipeline.agent.agent_pb2_grpc import AgentStub
from pipeline.agent.client import AgentClient
from pipeline.agent.service import serve
from pipeline.serving import protos
from pipeline.serving.client import ModelServer, Unavailable
from pipeline.serving.fleet import Fleet, connector
from pipeline.serving.tls import TlsError, client_credentials, read_identity, server_credentials
from tests.unit.agent_fakes import LONG_S, World

TOKEN, OTHER_TOKEN = "a-token-of-some-length", "another-token-of-some-length"
ours, theirs = trustme.CA(), trustme.CA()


def identity(folder: Path, shown_by: trustme.CA | None, known: trustme.CA | None, name: str = "localhost") -> Path:
    """A folder as Kubernetes mounts it."""
    folder.mkdir(exist_ok=True)
    if shown_by is not None:
        leaf = shown_by.issue_cert(name)
        leaf.private_key_pem.write_to_path(folder / "tls.key")
        leaf.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    if known is not None:
        known.cert_pem.write_to_path(folder / "ca.crt")
    return folder


@pytest.fixture
def agent() -> Iterator[Agent]:
    with World().agent() as agent:
        yield agent


PAGE = pb.DecideRequest(request_id="r", user_id="u", session_id="s", items=[pb.Item(item_id="x")])


def decided(port: int, credentials: grpc.ChannelCredentials | None, token: str | None = None) -> str:
    """Who decided the page, or the status with which the call was turned away."""
    target = f"localhost:{port}"
    channel = grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target)
    metadata = [("authorization", f"Bearer {token}")] if token else None
    with channel:
        try:
            answer = AgentStub(channel).Decide(PAGE, timeout=LONG_S, metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name
        return pb.DecidedBy.Name(answer.decided_by)


ANSWERED = {"DECIDED_BY_BASELINE", "DECIDED_BY_FALLBACK", "DECIDED_BY_POLICY"}


# TLS -------------------------------------------------------------------------------------------------------------


def test_pages_are_decided_over_tls_and_not_without(agent: Agent, tmp_path: Path) -> None:
    running = serve(agent, 0, credentials=server_credentials(identity(tmp_path / "agent", ours, None)))
    assert decided(running.port, client_credentials(identity(tmp_path / "caller", None, ours))) in ANSWERED
    assert decided(running.port, client_credentials(identity(tmp_path / "other", None, theirs))) == "UNAVAILABLE"
    assert decided(running.port, None) == "UNAVAILABLE"
    running.stop()


def test_the_client_library_speaks_tls(agent: Agent, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    running = serve(agent, 0, credentials=server_credentials(identity(tmp_path / "agent", ours, None)))
    request.addfinalizer(running.stop)
    credentials = client_credentials(identity(tmp_path / "caller", None, ours))
    with AgentClient(f"localhost:{running.port}", credentials) as client:
        client.report([], timeout_s=LONG_S)


def test_with_an_authority_only_its_own_get_in(agent: Agent, tmp_path: Path) -> None:
    running = serve(agent, 0, credentials=server_credentials(identity(tmp_path / "agent", ours, ours)))
    assert decided(running.port, client_credentials(identity(tmp_path / "ours", ours, ours))) in ANSWERED
    assert decided(running.port, client_credentials(identity(tmp_path / "theirs", theirs, ours))) == "UNAVAILABLE"
    assert decided(running.port, client_credentials(identity(tmp_path / "none", None, ours))) == "UNAVAILABLE"
    running.stop()


def test_a_renewed_certificate_is_shown_without_a_restart(agent: Agent, tmp_path: Path, caplog) -> None:
    folder = identity(tmp_path / "agent", ours, None)
    running = serve(agent, 0, credentials=server_credentials(folder))
    new = client_credentials(identity(tmp_path / "caller", None, theirs))
    assert decided(running.port, new) == "UNAVAILABLE"
    identity(folder, theirs, None)
    assert decided(running.port, new) in ANSWERED
    (folder / "tls.key").unlink()  # half of a renewal: what was there serves on
    assert decided(running.port, new) in ANSWERED
    running.stop()
    assert "expected tls.crt and tls.key, found only one of them" in caplog.text


def test_folders_that_are_no_use_are_explained(tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=r"nothing: expected tls\.crt and tls\.key, to show to callers"):
        server_credentials(tmp_path / "nothing")
    with pytest.raises(TlsError, match=r"expected ca\.crt, to know the server by"):
        client_credentials(identity(tmp_path / "no-authority", ours, None))
    (tmp_path / "folder" / "tls.crt").mkdir(parents=True)
    with pytest.raises(TlsError, match=r"tls\.crt: cannot be read: Is a directory"):
        read_identity(tmp_path / "folder")


# Tokens ----------------------------------------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_calls_need_a_token_of_the_file_which_may_change(agent: Agent, tmp_path: Path) -> None:
    file, clock = tmp_path / "tokens", Clock()
    file.write_text(f"{TOKEN}\n")
    running = serve(agent, 0, gates=[TokenGate(file, clock)])
    assert decided(running.port, None, TOKEN) in ANSWERED
    for wrong in (None, OTHER_TOKEN, TOKEN[:-1], TOKEN + "x"):
        assert decided(running.port, None, wrong) == "UNAUTHENTICATED"
    file.write_text(f"{OTHER_TOKEN}\n\n{TOKEN}\n")
    clock.now_s += 2
    assert decided(running.port, None, OTHER_TOKEN) in ANSWERED
    file.write_text("")  # a mistake: the tokens of before hold
    clock.now_s += 2
    assert decided(running.port, None, TOKEN) in ANSWERED
    running.stop()


def test_health_needs_no_token_and_reports_do(agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    running = serve(agent, 0, gates=[TokenGate(file)])
    with grpc.insecure_channel(f"localhost:{running.port}") as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LONG_S)
        with pytest.raises(grpc.RpcError) as refused:
            AgentStub(channel).Report(pb.ReportRequest(), timeout=LONG_S)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert TOKEN not in refused.value.details()
    running.stop()


@pytest.mark.parametrize("content", ["", "\n\n", "short\n", f"{TOKEN}\nshort"])
def test_a_file_without_proper_tokens_is_explained(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(content)
    with pytest.raises(AccessError, match="expected a token of 16 characters or more on each line"):
        read_tokens(file)


def test_a_token_on_an_open_line_is_refused_at_the_start(tmp_path: Path, capsys) -> None:
    words = ["agent", "--config", "c", "--log", "file:///l", "--store", "sqlite:///s", "--server", "h:1"]
    with pytest.raises(SystemExit):
        main([*words, "--token-file", os.fspath(tmp_path / "t")])
    assert "--token-file needs --tls" in capsys.readouterr().err


# Model servers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[int]:
    """A model server for the name `tf-serving` that lets only our own in."""
    server = grpc.server(ThreadPoolExecutor(4))
    predict = grpc.unary_unary_rpc_method_handler(
        lambda *_: protos.PredictResponse(model_spec={"version": {"value": 41}}),
        protos.PredictRequest.FromString,
        lambda m: m.SerializeToString(),
    )
    handler = grpc.method_handlers_generic_handler(protos.PREDICTION_SERVICE, {"Predict": predict})
    server.add_generic_rpc_handlers((handler,))
    credentials = server_credentials(identity(tmp_path / "server", ours, ours, "tf-serving"))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield port
    server.stop(None).wait()


X = {"dense": np.zeros((1, 1), "f4")}


def test_model_servers_are_known_by_their_name_whatever_their_address(tls_server: int, tmp_path: Path) -> None:
    connect = connector(identity(tmp_path / "agent", ours, ours))
    fleet = Fleet([f"dns:///tf-serving:{tls_server}"], resolve=lambda _, p: [f"127.0.0.1:{p}"], connect=connect)
    [server] = fleet
    assert server.predict("m", X, timeout_s=LONG_S).version == 41
    fleet.close()


def test_a_server_with_another_name_or_a_caller_without_a_certificate_is_turned_away(
    tls_server: int, tmp_path: Path
) -> None:
    connect = connector(identity(tmp_path / "agent", ours, ours))
    stranger = client_credentials(identity(tmp_path / "stranger", None, ours))
    named = {"grpc.ssl_target_name_override": "tf-serving"}
    address = f"127.0.0.1:{tls_server}"
    for server in (connect(address, "another"), ModelServer(address, credentials=stranger, options=named)):
        with server, pytest.raises(Unavailable):
            server.predict("m", X, timeout_s=LONG_S)
