"""The command line of `tensorflow_model_server`: `--name=value`, and `--name` alone for a boolean.

Source: tensorflow/serving main.cc.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields

_TRUE, _FALSE = ("true", "1", "t", "yes"), ("false", "0", "f", "no")

# No effect on any answer of the stand-in: it has no such part, or the setting only tunes speed.
IGNORED = (
    "rest_api_port",
    "rest_api_num_threads",
    "rest_api_timeout_in_ms",
    "rest_api_enable_cors_support",
    "monitoring_config_file",
    "flush_filesystem_caches",
    "enable_batching",
    "batching_parameters_file",
    "enable_per_model_batching_parameters",
    "enable_profiler",
    "per_process_gpu_memory_fraction",
    "remove_unused_fields_from_bundle_metagraph",
    "grpc_channel_arguments",
    "num_tflite_pools",
    "num_tflite_interpreters_per_pool",
    "xla_cpu_compilation_enabled",
)
# The real server would behave otherwise with them; silence would mislead.
REFUSED = (
    "ssl_config_file",
    "use_alts_credentials",
    "grpc_socket_path",
    "platform_config_file",
    "tensorflow_session_config_file",
    "thread_pool_factory_config_file",
    "prefer_tflite_model",
    "enable_signature_method_name_check",
)


class FlagError(Exception):
    """The command line cannot be used."""


@dataclass(frozen=True)
class Flags:
    port: int = 8500
    model_name: str = "default"
    model_base_path: str = ""
    model_config_file: str = ""
    model_config_file_poll_wait_seconds: int = 0
    file_system_poll_wait_seconds: int = 1
    num_load_threads: int = 0
    num_unload_threads: int = 0
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    enable_model_warmup: bool = True
    num_request_iterations_for_warmup: int = 0
    grpc_max_threads: int = 0  # 0: four per processor
    enable_grpc_healthcheck_service: bool = False
    tensorflow_session_parallelism: int = 0
    tensorflow_intra_op_parallelism: int = 0
    tensorflow_inter_op_parallelism: int = 0
    allow_version_labels_for_unavailable_models: bool = False
    enable_serialization_as_tensor_content: bool = False
    saved_model_tags: str = "serve"
    ignored: tuple[str, ...] = ()  # names of accepted flags that do nothing here


def usage() -> str:
    """One line per flag, with its default."""
    lines = [f"  --{field.name}={field.default}" for field in fields(Flags) if field.name != "ignored"]
    return "\n".join(
        ["usage: python -m pipeline.serving.standin --name=value ...", *lines, "accepted, without effect here:"]
        + [f"  --{name}" for name in IGNORED]
    )


def parse(arguments: Sequence[str]) -> Flags:
    """The flags; FlagError names the one that cannot be used."""
    kinds = {field.name: type(field.default) for field in fields(Flags) if field.name != "ignored"}
    values: dict[str, object] = {}
    ignored: list[str] = []
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            raise FlagError(_unknown(argument, [*kinds, *IGNORED]))
        if name in IGNORED:
            ignored.append(name)
        elif name in kinds:
            values[name] = _value(name, kinds[name], value if equals else None)
        else:
            raise FlagError(_refused(name) if name in REFUSED else _unknown(argument, [*kinds, *IGNORED]))
    flags = Flags(**values, ignored=tuple(ignored))  # type: ignore[arg-type]
    _check(flags)
    return flags


def _value(name: str, kind: type, text: str | None) -> object:
    if kind is bool:
        return _boolean(name, text)
    if text is None:
        message = f"--{name}: expected --{name}=<{'number' if kind is int else 'text'}>, found no value"
        raise FlagError(message)
    if kind is str:
        return text
    try:
        return int(text)
    except ValueError as error:
        message = f"--{name}: expected a whole number, found {text!r}"
        raise FlagError(message) from error


def _boolean(name: str, text: str | None) -> bool:
    if text is None or text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    message = f"--{name}: expected true or false, found {text!r}"
    raise FlagError(message)


def _check(flags: Flags) -> None:
    if not 0 < flags.port < 65536:
        message = f"--port: expected 1 to 65535 (the stand-in only speaks gRPC), found {flags.port}"
    elif not (flags.model_base_path or flags.model_config_file):
        message = "expected --model_config_file or --model_base_path, found neither"
    elif flags.tensorflow_session_parallelism and (
        flags.tensorflow_intra_op_parallelism or flags.tensorflow_inter_op_parallelism
    ):
        message = (
            "expected --tensorflow_session_parallelism, or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism, found both"
        )
    elif "batching_parameters_file" in flags.ignored and "enable_batching" not in flags.ignored:
        message = "--batching_parameters_file: expected --enable_batching with it, found none"
    else:
        return
    raise FlagError(message)


def _unknown(argument: str, known: Sequence[str]) -> str:
    name = argument.lstrip("-").partition("=")[0]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean --{close[0]}?)" if close else ""
    return f"unknown argument {argument}{hint}; flags are written --name=value"


def _refused(name: str) -> str:
    return f"--{name}: the stand-in cannot do this; start the real binary (set PAGETURN_MODEL_SERVER to its path)"
