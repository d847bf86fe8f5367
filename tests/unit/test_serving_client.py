"""The client against a scripted server."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from pipeline.serving import build_descriptors, protos, tensors
from pipeline.serving.client import BadRequest, ModelServer, NotServed, ServingError, TooLate, Unavailable
from pipeline.serving.errors import ModelsConfigError
from pipeline.serving.launch import free_port

TIMEOUT_S = 20
X = {"dense": np.arange(6, dtype=np.float32).reshape(2, 3)}


@contextmanager
def scripted(service, method, request_class, answer, credentials=None):
    """A server whose one method answers with `answer(request, context)`."""
    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request_class.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@contextmanager
def predicting(answer):
    with (
        scripted(protos.PREDICTION_SERVICE, "Predict", protos.PredictRequest, answer) as port,
        ModelServer(f"127.0.0.1:{port}") as server,
    ):
        yield server


def echo(request, _context):
    response = protos.PredictResponse(model_spec=request.model_spec, outputs=request.inputs)
    if not request.model_spec.HasField("version"):
        response.model_spec.version.value = 41
    return response


def test_predict_sends_spec_and_tensors_and_reads_the_version_that_answered():
    with predicting(echo) as server:
        pinned = server.predict("m", X, version=7, timeout_s=TIMEOUT_S)
        latest = server.predict("m", X, timeout_s=TIMEOUT_S)
    assert (pinned.version, latest.version) == (7, 41)
    np.testing.assert_array_equal(pinned.outputs["dense"], X["dense"])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, NotServed),
        (grpc.StatusCode.INVALID_ARGUMENT, BadRequest),
        (grpc.StatusCode.FAILED_PRECONDITION, BadRequest),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TooLate),
        (grpc.StatusCode.INTERNAL, ServingError),
    ],
)
def test_errors_are_classes_per_reaction_with_the_servers_text(code, expected):
    def refuse(_request, context):
        context.abort(code, "the reason")

    with predicting(refuse) as server, pytest.raises(ServingError) as raised:
        server.predict("m", X, version=7, timeout_s=TIMEOUT_S)
    error = raised.value
    assert type(error) is expected
    assert (error.code, error.text) == (code.name, "the reason")
    assert str(error) == f"Predict of 'm' version 7 at {server.target}: {code.name}: the reason"
    assert isinstance(error.__cause__, grpc.RpcError)


def test_a_slow_answer_is_too_late():
    def slow(_request, context):
        while context.is_active():
            time.sleep(0.01)
        return protos.PredictResponse()

    with predicting(slow) as server, pytest.raises(TooLate):
        server.predict("m", X, timeout_s=0.05)


@pytest.mark.parametrize("left_s", [0.0, -1.0])
def test_without_time_left_nothing_is_sent(left_s):
    with predicting(echo) as server, pytest.raises(TooLate, match=r"expected time to call, found -?[01] s left"):
        server.predict("m", X, timeout_s=left_s)


def test_nobody_there_is_unavailable():
    with ModelServer(f"127.0.0.1:{free_port()}") as server, pytest.raises(Unavailable):
        server.predict("m", X, timeout_s=TIMEOUT_S)


def test_a_closed_client_is_unavailable():
    server = ModelServer("127.0.0.1:1")
    server.close()
    with pytest.raises(Unavailable, match="closed channel"):
        server.predict("m", X, timeout_s=TIMEOUT_S)


def test_waiting_for_a_port_that_does_not_open_is_too_late():
    with (
        ModelServer(f"127.0.0.1:{free_port()}") as server,
        pytest.raises(TooLate, match=r"within 0\.05 s"),
    ):
        server.wait_until_ready(0.05)


def test_a_refusal_is_a_sign_of_life_but_another_kind_of_server_is_not():
    def refuse(_request, context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")

    method = protos.MODEL_SERVICE, "GetModelStatus", protos.GetModelStatusRequest, refuse
    with scripted(*method) as port, ModelServer(f"127.0.0.1:{port}") as server:
        server.wait_until_ready(TIMEOUT_S)
    with predicting(echo) as other, pytest.raises(BadRequest, match="UNIMPLEMENTED"):
        other.wait_until_ready(TIMEOUT_S)


def test_answers_beyond_grpcs_usual_four_megabytes_arrive():
    def big(_request, _context):
        response = protos.PredictResponse()
        tensors.encode_into(response.outputs["x"], np.zeros(2_000_000, np.float32))
        return response

    with predicting(big) as server:
        assert server.predict("m", X, timeout_s=TIMEOUT_S).outputs["x"].nbytes == 8_000_000


def test_status_keeps_the_servers_order_and_errors():
    def answer(request, _context):
        assert request.model_spec.name == "m"
        response = protos.GetModelStatusResponse()
        response.model_version_status.add(version=2, state=50, status={"error_code": 15, "error_message": "broken"})
        response.model_version_status.add(version=1, state=30)
        return response

    with (
        scripted(protos.MODEL_SERVICE, "GetModelStatus", protos.GetModelStatusRequest, answer) as port,
        ModelServer(f"127.0.0.1:{port}") as server,
    ):
        assert server.status("m", TIMEOUT_S) == ((2, "END", 15, "broken"), (1, "AVAILABLE", 0, ""))


def metadata_answer(request, _context):
    assert list(request.metadata_field) == ["signature_def"]
    signatures = protos.SignatureDefMap()
    inputs = signatures.signature_def["serving_default"].inputs
    inputs["dense"].dtype = 1
    inputs["dense"].tensor_shape.dim.add(size=-1)
    inputs["dense"].tensor_shape.dim.add(size=3)
    inputs["name"].dtype = 7
    inputs["name"].tensor_shape.unknown_rank = True
    response = protos.GetModelMetadataResponse(model_spec={"name": "m", "version": {"value": 5}})
    response.metadata["signature_def"].Pack(signatures)
    return response


def test_metadata_gives_types_and_shapes():
    method = protos.PREDICTION_SERVICE, "GetModelMetadata", protos.GetModelMetadataRequest, metadata_answer
    with scripted(*method) as port, ModelServer(f"127.0.0.1:{port}") as server:
        signature = server.metadata("m", 5, TIMEOUT_S)
        assert signature.version == 5
        assert signature.inputs == {"dense": ("float32", (None, 3)), "name": ("string", None)}
        with pytest.raises(BadRequest, match='expected signature "other", found serving_default'):
            server.metadata("m", None, TIMEOUT_S, "other")


def test_reload_sends_the_parsed_config_and_refuses_a_broken_one():
    seen = []

    def answer(request, _context):
        seen.append(request.config.model_config_list.config[0].name)
        return protos.ReloadConfigResponse()

    method = protos.MODEL_SERVICE, "HandleReloadConfigRequest", protos.ReloadConfigRequest, answer
    with scripted(*method) as port, ModelServer(f"127.0.0.1:{port}") as server:
        server.reload('model_config_list { config { name: "m" } }', TIMEOUT_S)
        with pytest.raises(ModelsConfigError):
            server.reload("nonsense", TIMEOUT_S)
    assert seen == ["m"]


def test_descriptors_are_those_of_the_installed_packages():
    collected = build_descriptors.collect().SerializeToString(deterministic=True)
    assert build_descriptors.TARGET.read_bytes() == collected, "run python -m pipeline.serving.build_descriptors"


def test_the_client_imports_neither_tensorflow_nor_its_stubs():
    check = (
        "import sys, pipeline.serving.client, pipeline.serving.launch; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('tensorflow', 'tensorflow_serving')])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
