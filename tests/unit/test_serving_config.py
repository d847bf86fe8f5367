"""The files for TF-Serving are read with its own message types.

PyPI's tensorflow-serving-api leaves out three of them; those are declared here, as far as the files use them, after
tensorflow/serving config/monitoring_config.proto, servables/tensorflow/session_bundle_config.proto and
saved_model_bundle_source_adapter.proto.
"""

import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from pipeline.serving import build_descriptors, launch, models_config
from pipeline.serving.standin import flags

FOLDER = Path(__file__).parents[2] / "serving_config"
FIELD = descriptor_pb2.FieldDescriptorProto
INT64, INT32 = ".google.protobuf.Int64Value", ".google.protobuf.Int32Value"

MESSAGES = {  # message -> fields as (number, name, type); a trailing * repeats
    "PrometheusConfig": [(1, "enable", "bool"), (2, "path", "string")],
    "MonitoringConfig": [(1, "prometheus_config", ".tensorflow.serving.PrometheusConfig")],
    "BatchingParameters": [
        (1, "max_batch_size", INT64),
        (2, "batch_timeout_micros", INT64),
        (3, "max_enqueued_batches", INT64),
        (4, "num_batch_threads", INT64),
    ],
    "ModelWarmupOptions": [(1, "num_request_iterations", INT32)],
    "SessionBundleConfig": [
        (2, "session_config", ".tensorflow.ConfigProto"),
        (4, "session_run_load_threadpool_index", INT32),
        (6, "saved_model_tags", "string*"),
        (779, "enable_model_warmup", "bool"),
        (780, "model_warmup_options", ".tensorflow.serving.ModelWarmupOptions"),
        (785, "remove_unused_fields_from_bundle_metagraph", "bool"),
    ],
    "SavedModelBundleSourceAdapterConfig": [(1000, "legacy_config", ".tensorflow.serving.SessionBundleConfig")],
}
SCALARS = {"bool": FIELD.TYPE_BOOL, "string": FIELD.TYPE_STRING}


def declared():
    imports = ["google/protobuf/wrappers.proto", "tensorflow/core/protobuf/config.proto"]
    file = descriptor_pb2.FileDescriptorProto(
        name="declared.proto", package="tensorflow.serving", syntax="proto3", dependency=imports
    )
    for message, described in MESSAGES.items():
        fields = file.message_type.add(name=message).field
        for number, name, kind in described:
            label = FIELD.LABEL_REPEATED if kind.endswith("*") else FIELD.LABEL_OPTIONAL
            field = fields.add(number=number, name=name, label=label)
            if kind.startswith("."):
                field.type, field.type_name = FIELD.TYPE_MESSAGE, kind
            else:
                field.type = SCALARS[kind.rstrip("*")]
    return file


@pytest.fixture(scope="module")
def pool():
    names = ("google/protobuf/wrappers", "tensorflow/core/protobuf/config", "tensorflow_serving/config/platform_config")
    found = descriptor_pool.DescriptorPool()
    for file in [*build_descriptors.collect(tuple(f"{name}.proto" for name in names)).file, declared()]:
        found.Add(file)
    return found


def read(pool, file, message):
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{message}"))
    return text_format.Parse((FOLDER / file).read_text(), kind(), descriptor_pool=pool)


def test_models_config_is_of_the_form_that_the_controller_writes():
    models = models_config.parse((FOLDER / "models.config").read_text())
    assert models_config.parse(models_config.render(models)) == models
    assert models[0].versions == (6, 7)


def test_monitoring_config(pool):
    assert read(pool, "monitoring.config", "MonitoringConfig").prometheus_config.enable


def test_batching_config(pool):
    assert read(pool, "batching.config", "BatchingParameters").max_batch_size.value == 32


def test_platform_config_repeats_what_it_switches_off_and_loads_in_a_pool_of_its_own(pool):
    packed = read(pool, "platform.config", "PlatformConfigMap").platform_configs["tensorflow"].source_adapter_config
    name = "tensorflow.serving.SavedModelBundleSourceAdapterConfig"
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName(name)).FromString(packed.value).legacy_config
    pools = config.session_config.session_inter_op_thread_pool
    assert pools[config.session_run_load_threadpool_index.value].global_name == "load"
    assert all(pool.global_name for pool in pools)
    assert config.enable_model_warmup
    iterations = config.model_warmup_options.num_request_iterations.value
    assert iterations == launch.FLAGS["num_request_iterations_for_warmup"]


def start_script(*arguments):
    environment = {"PATH": "/usr/bin:/bin", "TENSORFLOW_MODEL_SERVER": "/bin/echo"}
    script = str(FOLDER / "tensorflow_model_server.sh")
    done = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_start_script_gives_the_flags_that_our_own_launches_give():
    given = flags.parse(start_script())
    launched = launch.server_command(8500, "/models/models.config")
    ours = flags.parse([argument for argument in launched if argument.startswith("--")])
    extra = ("rest_api_port", "monitoring_config_file")
    assert [name for name in given.ignored if name not in extra] == list(ours.ignored)
    assert {**vars(given), "ignored": ()} == {**vars(ours), "ignored": ()}


def test_arguments_of_the_start_script_come_last():
    assert start_script("--port=9000")[-1] == "--port=9000"
