"""What agents, trainer and controller rely on in a model server; the stand-in here, TF-Serving with
PAGETURN_MODEL_SERVER=/path/to/tensorflow_model_server. Where the stand-in is known to differ, the test says so.

One server for all tests. Models that stay as they are were put there at the start (`_scenery`); tests that change
something have a model of their own.
"""

import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pipeline.serving import launch, protos, tensors
from pipeline.serving.client import BadRequest, ModelServer, NotServed, TensorSpec, TooLate, Unavailable
from pipeline.serving.models_config import ServedModel, render

TIMEOUT_S = 200  # nothing rests on it
pytestmark = pytest.mark.timeout(900)
X = {"dense": np.ones((2, 3), np.float32), "clicks": np.zeros((2, 4, 2), np.float32)}
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "stock_client.py"


class Site:
    """A folder of models, the models.config beside it, and the server that reads both."""

    def __init__(self, root, template):
        self.root, self._template = root, template
        self.config = root / "models.config"
        self.served = {}
        self.target = ""
        self.client = None

    def publish(self, model, version, change=None, scale=1):
        """A version folder, complete from the moment it has its name. `change` may spoil it before."""
        hidden = self.root / model / f".tmp-{version}"
        shutil.copytree(self._template(scale), hidden)
        if change is not None:
            change(hidden)
        hidden.rename(self.root / model / str(version))

    def serve(self, model, *versions):
        self.served[model] = ServedModel(model, str(self.root / model), versions)
        self.write(render(list(self.served.values())))

    def write(self, text):
        hidden = self.config.with_suffix(".tmp")
        hidden.write_text(text)
        hidden.rename(self.config)

    def states(self, model):
        try:
            return {status.version: status.state for status in self.client.status(model, TIMEOUT_S)}
        except NotServed:
            return {}

    def until(self, model, **states):
        """Wait for e.g. v1="END"."""
        wanted = {int(name[1:]): state for name, state in states.items()}
        eventually(lambda: wanted.items() <= self.states(model).items(), lambda: f"{model}: {self.states(model)}")

    def predict(self, model, **arguments):
        return self.client.predict(model, X, timeout_s=TIMEOUT_S, **arguments)


def eventually(condition, describe):
    deadline = time.monotonic() + 250
    while not condition():
        assert time.monotonic() < deadline, f"not within 250 s: {describe()}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """scale -> SavedModel: action [B, 1] = scale * sum of dense + sum of clicks."""
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self, scale):
            self.weights = tf.Variable(tf.fill([3, 1], float(scale)))

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 3], tf.float32, name="dense"),
                tf.TensorSpec([None, 4, 2], tf.float32, name="clicks"),
            ]
        )
        def act(self, dense, clicks):
            return {"action": tf.matmul(dense, self.weights) + tf.reduce_sum(clicks, [1, 2])[:, tf.newaxis]}

    root = tmp_path_factory.mktemp("templates")
    for scale in (1, 2):
        model = Model(scale)
        tf.saved_model.save(model, str(root / str(scale)), signatures={"serving_default": model.act})
    return lambda scale: root / str(scale)


@pytest.fixture(scope="session")
def site(template, tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("models"), template)
    site.publish("base", 1, scale=1)
    site.publish("base", 2, scale=2)
    site.serve("base", 1, 2)
    quick = {"max_num_load_retries": 0, "load_retry_interval_micros": 0, "num_load_threads": 4}
    with (
        launch.running_server(site.config, timeout_s=TIMEOUT_S, **quick) as server,
        ModelServer(server.target) as client,
    ):
        site.target, site.client = server.target, client
        _scenery(site)
        site.until("base", v1="AVAILABLE", v2="AVAILABLE")
        yield site
    assert server.process.returncode in (0, -signal.SIGTERM)  # it obeys; the binary without a handler of its own


def _scenery(site):
    spoilt = {
        "half_written": lambda folder: (folder / "variables" / "variables.index").unlink(),
        "corrupt": lambda folder: (folder / "saved_model.pb").write_bytes(b"\xff" * 100),
        "empty": lambda folder: (folder / "saved_model.pb").unlink(),
        "warm": lambda folder: record_warmup(folder, [warmup_request(X)] * 3),
        "warm_shape": lambda folder: record_warmup(folder, [warmup_request({**X, "dense": X["dense"][:, :2]})]),
        "warm_signature": lambda folder: record_warmup(folder, [warmup_request(X, "other")]),
        "warm_1000": lambda folder: record_warmup(folder, [warmup_request(X)] * 1000),
        "warm_1001": lambda folder: record_warmup(folder, [warmup_request(X)] * 1001),
        "warm_garbage": lambda folder: warmup_file(folder).write_bytes(b"not a TFRecord file"),
        "warm_session_run": lambda folder: record_warmup(folder, [protos.PredictionLog(session_run_log={})]),
    }
    for model, spoil in spoilt.items():
        site.publish(model, 1)
        site.publish(model, 2, spoil)
    for model in spoilt:
        site.serve(model, 1, 2)


def warmup_file(folder):
    (folder / "assets.extra").mkdir()
    return folder / "assets.extra" / "tf_serving_warmup_requests"


def warmup_request(inputs, signature="serving_default"):
    log = protos.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "any", signature
    for name, array in inputs.items():
        tensors.encode_into(request.inputs[name], array)
    return log


def record_warmup(folder, logs):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(warmup_file(folder))) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


# Answers -----------------------------------------------------------------------------------------------------------


def test_a_pinned_version_answers_and_says_so(site):
    one, two = site.predict("base", version=1), site.predict("base", version=2)
    assert (one.version, two.version) == (1, 2)
    np.testing.assert_array_equal(one.outputs["action"], np.full((2, 1), 3, np.float32))
    np.testing.assert_array_equal(two.outputs["action"], np.full((2, 1), 6, np.float32))


def test_without_a_version_the_highest_answers(site):
    assert site.predict("base").version == 2


def test_metadata_names_types_and_shapes(site):
    signature = site.client.metadata("base", 1, TIMEOUT_S)
    assert signature.version == 1
    assert signature.inputs == {
        "dense": TensorSpec("float32", (None, 3)),
        "clicks": TensorSpec("float32", (None, 4, 2)),
    }
    assert signature.outputs == {"action": TensorSpec("float32", (None, 1))}
    with pytest.raises(NotServed, match=r"Servable not found for request: Specific\(base, 9\)"):
        site.client.metadata("base", 9, TIMEOUT_S)


def test_status_lists_versions_downwards(site):
    statuses = site.client.status("base", TIMEOUT_S)
    assert statuses == ((2, "AVAILABLE", 0, ""), (1, "AVAILABLE", 0, ""))
    with pytest.raises(NotServed, match=r"Could not find any versions of model nobody$"):
        site.client.status("nobody", TIMEOUT_S)


def test_any_batch_size_is_served(site):
    inputs = {"dense": np.ones((57, 3), np.float32), "clicks": np.ones((57, 4, 2), np.float32)}
    action = site.client.predict("base", inputs, version=1, timeout_s=TIMEOUT_S).outputs["action"]
    np.testing.assert_array_equal(action, np.full((57, 1), 11, np.float32))


def test_lengths_inside_a_declared_dimension_are_not_checked(site):
    """The caller has to: seven steps into a signature of [None, 4, 2] are silently summed."""
    inputs = {**X, "clicks": np.ones((2, 7, 2), np.float32)}
    action = site.client.predict("base", inputs, version=1, timeout_s=TIMEOUT_S).outputs["action"]
    np.testing.assert_array_equal(action, np.full((2, 1), 3 + 14, np.float32))


def test_nan_goes_through(site):
    action = site.client.predict("base", {**X, "dense": X["dense"] * np.nan}, timeout_s=TIMEOUT_S).outputs["action"]
    assert np.isnan(action).all()


# Refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": "nobody"}, NotServed, "Servable not found for request: Latest(nobody)"),
        ({"model": ""}, BadRequest, "ModelSpec has no name specified."),
        ({"version": 9}, NotServed, "Servable not found for request: Specific(base, 9)"),
        ({"signature": "other"}, BadRequest, 'Serving signature key "other" not found.'),
        (
            {"inputs": {"dense": X["dense"]}},
            BadRequest,
            "input size does not match signature: 1!=2 len({dense}) != len({clicks,dense}). "
            "Sent extra: {}. Missing but required: {clicks}.",
        ),
        (
            {"inputs": {**X, "more": X["dense"]}},
            BadRequest,
            "input size does not match signature: 3!=2 len({clicks,dense,more}) != len({clicks,dense}). "
            "Sent extra: {more}. Missing but required: {}.",
        ),
        (
            {"inputs": {"dense": X["dense"], "klicks": X["clicks"]}},
            BadRequest,
            "Signature input alias: clicks(feed name: serving_default_clicks:0) not found in request and no default "
            "value provided. Inputs expected to be in the request {dense,klicks}, or default input alias set: ",
        ),
        (
            {"inputs": {**X, "dense": X["dense"].astype(np.float64)}},
            BadRequest,
            "Type mismatch: actual double vs. expect float\n\t [[{{node _arg_serving_default_dense_0_",
        ),
        (
            {"inputs": {**X, "dense": X["dense"][:, :2]}},
            BadRequest,
            "Matrix size-incompatible: In[0]: [2,2], In[1]: [3,1]\n\t [[{{node ",
        ),
    ],
)
def test_refused_requests(site, arguments, error, text):
    with pytest.raises(error) as raised:
        site.client.predict(**{"model": "base", "inputs": X, "timeout_s": TIMEOUT_S, **arguments})
    assert raised.value.text.startswith(text)


def raw(site, service, method, request, response):
    with grpc.insecure_channel(site.target) as channel:
        call = channel.unary_unary(f"/{service}/{method}", lambda m: m.SerializeToString(), response.FromString)
        return call(request, timeout=TIMEOUT_S)


def predict_raw(site, **fields):
    request = protos.PredictRequest(model_spec={"name": "base"}, **fields)
    for name, array in X.items():
        if name not in request.inputs:
            tensors.encode_typed_into(request.inputs[name], array)
    return raw(site, protos.PREDICTION_SERVICE, "Predict", request, protos.PredictResponse)


def test_typed_fields_and_filters_are_understood(site):
    response = predict_raw(site, output_filter=["action"])
    assert tensors.decode(response.outputs["action"]).tolist() == [[6], [6]]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("base", 2, "serving_default")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"output_filter": ["q"]}, "output tensor alias not found in signature: q Outputs expected to be in the set"),
        ({"output_filter": ["action", "action"]}, "duplicate output tensor alias: action"),
        ({"inputs": {"dense": protos.TensorProto(dtype=1, tensor_content=b"123")}}, "tensor parsing error: dense"),
    ],
)
def test_requests_that_our_client_never_sends(site, fields, text):
    with pytest.raises(grpc.RpcError) as raised:
        predict_raw(site, **fields)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details().startswith(text)


@pytest.mark.parametrize(
    ("method", "request_", "text"),
    [
        ("Predict", protos.PredictRequest(), "Missing ModelSpec"),
        (
            "GetModelMetadata",
            protos.GetModelMetadataRequest(model_spec={"name": "base"}),
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (
            "GetModelMetadata",
            protos.GetModelMetadataRequest(model_spec={"name": "base"}, metadata_field=["foo"]),
            "Metadata field foo is not supported",
        ),
    ],
)
def test_incomplete_requests(site, method, request_, text):
    with pytest.raises(grpc.RpcError) as raised:
        raw(site, protos.PREDICTION_SERVICE, method, request_, protos.PredictResponse)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, text)


# Loading -----------------------------------------------------------------------------------------------------------


def test_a_half_written_folder_loads_and_fails_when_it_is_used(site):
    site.until("half_written", v1="AVAILABLE", v2="AVAILABLE")
    with pytest.raises(BadRequest) as raised:
        site.predict("half_written", version=2)
    assert raised.value.code == "FAILED_PRECONDITION"
    assert site.predict("half_written", version=1).version == 1


@pytest.mark.parametrize(
    ("model", "code", "text"),
    [
        ("corrupt", grpc.StatusCode.DATA_LOSS, "Can't parse "),
        ("empty", grpc.StatusCode.NOT_FOUND, "Could not find SavedModel .pb or .pbtxt at supplied export directory"),
        ("warm_shape", grpc.StatusCode.INVALID_ARGUMENT, "Matrix size-incompatible"),
        ("warm_signature", grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "other" not found.'),
        ("warm_1001", grpc.StatusCode.INVALID_ARGUMENT, "Number of warmup records exceeds the maximum (1000)"),
        ("warm_garbage", grpc.StatusCode.DATA_LOSS, "Please verify your warmup data is in TFRecord format."),
        ("warm_session_run", grpc.StatusCode.UNIMPLEMENTED, "Unsupported log_type for warmup: 5"),
    ],
)
def test_a_version_that_cannot_be_loaded_ends_with_its_reason_and_leaves_the_other(site, model, code, text):
    site.until(model, v1="AVAILABLE", v2="END")
    failed = site.client.status(model, TIMEOUT_S)[0]
    assert (failed.version, failed.error_code) == (2, code.value[0])
    assert text in failed.error_message
    assert site.predict(model).version == 1


@pytest.mark.parametrize("model", ["warm", "warm_1000"])
def test_a_warmup_file_is_replayed(site, model):
    site.until(model, v2="AVAILABLE")


# Changes -----------------------------------------------------------------------------------------------------------


def test_a_version_is_served_when_it_is_named_and_gone_when_it_is_not(site):
    site.publish("steps", 1)
    site.publish("steps", 2)
    site.serve("steps", 1)
    site.until("steps", v1="AVAILABLE")
    assert site.states("steps") == {1: "AVAILABLE"}  # the folder of 2 does not matter

    site.serve("steps", 1, 2)
    site.until("steps", v2="AVAILABLE")
    assert site.predict("steps").version == 2
    assert site.predict("steps", version=1).version == 1

    site.serve("steps", 1)  # rollback
    site.until("steps", v2="END")
    assert site.predict("steps").version == 1
    with pytest.raises(NotServed, match=r"Specific\(steps, 2\)"):
        site.predict("steps", version=2)
    assert [status.error_code for status in site.client.status("steps", TIMEOUT_S)] == [0, 0]


def test_a_version_named_before_it_is_there_is_loaded_when_it_comes(site):
    site.publish("early", 1)
    site.serve("early", 1, 7)
    site.until("early", v1="AVAILABLE")
    site.publish("early", 7)
    site.until("early", v7="AVAILABLE")
    shutil.rmtree(site.root / "early" / "7")
    site.until("early", v1="AVAILABLE", v7="END")


def test_a_config_that_cannot_be_parsed_changes_nothing(site):
    good = site.config.read_text()
    site.write("nonsense {")
    try:
        site.publish("broken_config", 1)
        eventually(lambda: site.predict("base").version == 2, lambda: "base")
    finally:
        site.write(good)
    site.serve("broken_config", 1)  # the server still polls
    site.until("broken_config", v1="AVAILABLE")
    assert site.states("base") == {1: "AVAILABLE", 2: "AVAILABLE"}


def test_reload_returns_when_a_new_model_is_served_and_the_next_poll_of_the_file_overrides_it(site):
    site.publish("by_rpc", 1)
    entry = ServedModel("by_rpc", str(site.root / "by_rpc"), (1,))
    with_it = render([*site.served.values(), entry])
    site.client.reload(with_it, TIMEOUT_S)
    assert site.states("by_rpc")[1] in ("AVAILABLE", "UNLOADING", "END")
    site.until("by_rpc", v1="END")
    assert site.client.status("by_rpc", TIMEOUT_S)[0].error_code == 0


def test_reload_of_a_new_model_without_a_version_waits_until_the_deadline(site):
    """The real server goes on waiting, and blocks later reloads, until a version comes: so one comes here."""
    (site.root / "late").mkdir()
    entry = ServedModel("late", str(site.root / "late"), (1,))
    with pytest.raises(TooLate):
        site.client.reload(render([*site.served.values(), entry]), 1.0)
    site.publish("late", 1)
    site.serve("late", 1)
    site.until("late", v1="AVAILABLE")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("", "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently"),
        (
            'model_config_list { config { name: "m" base_path: "/m" } config { name: "m" base_path: "m" } }',
            "Illegal to list model m multiple times in config list",
        ),
        (
            'model_config_list { config { name: "m" base_path: "m" } }',
            "Expected model m to have an absolute path or URI; got base_path()=m",
        ),
        (
            'model_config_list { config { name: "base" base_path: "/m" } }',
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform",
        ),
        (
            'model_config_list { config { name: "base" base_path: "/m" model_platform: "other" } }',
            "Illegal to change a model's platform. For model base platform was tensorflow",
        ),
    ],
)
def test_reloads_are_refused_in_the_order_of_the_checks(site, config, text):
    with pytest.raises(BadRequest) as raised:
        site.client.reload(config, TIMEOUT_S)
    assert raised.value.code == "INVALID_ARGUMENT"
    assert raised.value.text.startswith(text)
    assert site.predict("base").version == 2


# Around it ---------------------------------------------------------------------------------------------------------


def test_health(site):
    with grpc.insecure_channel(site.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("ModelService", "PredictionService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_example_with_the_stock_client(site, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), site.target, "base", "1"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "asked for None: version 2 answered [[0.0]]",
        "asked for 1: version 1 answered [[0.0]]",
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "int64", "uint8", "uint64", "bool"])
def test_tensorflow_reads_our_tensors_and_we_read_its(dtype):
    import tensorflow as tf

    array = np.array([[0, 1, 2], [3, 1, 1]]).astype(dtype)
    ours = protos.TensorProto()
    tensors.encode_into(ours, array)
    theirs = tf.make_ndarray(type(tf.make_tensor_proto(0)).FromString(ours.SerializeToString()))
    np.testing.assert_array_equal(theirs, array, strict=True)
    for proto in (tf.make_tensor_proto(array), tf.make_tensor_proto(array.ravel()[:1], shape=[2, 3])):
        read = tensors.decode(protos.TensorProto.FromString(proto.SerializeToString()))
        np.testing.assert_array_equal(read, tf.make_ndarray(proto), strict=True)


def test_a_server_with_a_broken_newest_version_does_not_start(template, tmp_path):
    """TF-Serving ends with exit code 255, the stand-in with 1; both say why."""
    shutil.copytree(template(1), tmp_path / "m" / "1")
    (tmp_path / "m" / "2").mkdir()
    with (
        pytest.raises(Unavailable, match=r"(?s)servable.*name: m version: 2\} due to error: NOT_FOUND: Could not find"),
        launch.running_server(
            "", timeout_s=TIMEOUT_S, model_name="m", model_base_path=str(tmp_path / "m"), max_num_load_retries=0
        ),
    ):
        pass
