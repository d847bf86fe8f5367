"""`python -m pipeline.serving.standin --port=8500 --model_config_file=/models/models.config`."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from pipeline.serving import models_config, protos, tensors
from pipeline.serving.errors import ModelsConfigError
from pipeline.serving.standin import core, flags
from pipeline.serving.standin.status import StatusError
from pipeline.signals import handle_signals

logger = logging.getLogger("pageturn.standin")
_HOST = "PAGETURN_STANDIN_HOST"
_GRACE_S = 1.0


class StartError(Exception):
    """The server cannot start."""


def main(arguments: Sequence[str]) -> int:
    if "--help" in arguments:
        print(flags.usage())
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    handle_signals(stop)
    try:
        _serve(flags.parse(arguments), stop)
    except (flags.FlagError, StartError) as error:
        print(f"Failed to start server. Error: {error}", file=sys.stderr)
        return 1
    return 0


def _serve(options: flags.Flags, stop: threading.Event) -> None:
    """Load, then open the port: an open port means that every model has a version."""
    logger.info("this is a stand-in for tensorflow_model_server, for laptops and tests")
    if options.ignored:
        logger.info("flags without effect here: %s", ", ".join(f"--{name}" for name in options.ignored))
    address = f"{os.environ.get(_HOST, '127.0.0.1')}:{options.port}"
    _check_free(address)
    models = _models(options)
    inside = _core(options)
    try:
        _start(inside, models, stop)
        if not stop.is_set():
            _answer(inside, options, address, stop)
    finally:
        inside.close()


def _start(inside: core.Core, models: Sequence[Any], stop: threading.Event) -> None:
    def interrupt() -> None:
        stop.wait()
        inside.interrupt()

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        inside.start(models)
    except StatusError as error:
        if not stop.is_set():
            message = f"{error.code.name}: {error.text}"
            raise StartError(message) from error


def _answer(inside: core.Core, options: flags.Flags, address: str, stop: threading.Event) -> None:
    from pipeline.serving.standin import service

    threads = options.grpc_max_threads or 4 * (os.cpu_count() or 1)
    server = grpc.server(
        ThreadPoolExecutor(threads, "grpc"),
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # else two servers would share the port and the requests
        ],
    )
    typed = not options.enable_serialization_as_tensor_content
    service.add_services(server, inside, tensors.encode_typed_into if typed else tensors.encode_into)
    if options.enable_grpc_healthcheck_service:
        service.add_health(server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise _in_use(address) from error
    server.start()
    logger.info("Running gRPC ModelServer at %s ...", address)
    if options.model_config_file and options.model_config_file_poll_wait_seconds > 0:
        threading.Thread(target=_poll_config, args=(inside, options, stop), daemon=True).start()
    stop.wait()
    server.stop(_GRACE_S).wait()


def _poll_config(inside: core.Core, options: flags.Flags, stop: threading.Event) -> None:
    while not stop.wait(options.model_config_file_poll_wait_seconds):
        try:
            inside.reload(_models(options), None)
        except StartError as error:
            logger.error("%s", error)
        except StatusError as error:
            logger.error("ReloadConfig failed: %s", error.text)


def _core(options: flags.Flags) -> core.Core:
    from pipeline.serving.standin import loader, warmup  # TensorFlow; after the flags were checked

    session = loader.SessionOptions(
        options.tensorflow_intra_op_parallelism or options.tensorflow_session_parallelism,
        options.tensorflow_inter_op_parallelism or options.tensorflow_session_parallelism,
        frozenset(options.saved_model_tags.split(",")),
    )

    def load(path: str) -> loader.Bundle:
        bundle = loader.open_bundle(path, session)
        try:
            if options.enable_model_warmup:
                warmup.replay(bundle, path, max(options.num_request_iterations_for_warmup, 1))
        except StatusError:
            bundle.close()
            raise
        return bundle

    return core.Core(
        load,
        core.Options(
            poll_wait_s=options.file_system_poll_wait_seconds,
            load_threads=options.num_load_threads,
            unload_threads=options.num_unload_threads,
            retries=options.max_num_load_retries,
            retry_interval_s=options.load_retry_interval_micros / 1e6,
            labels_for_unavailable=options.allow_version_labels_for_unavailable_models,
        ),
    )


def _models(options: flags.Flags) -> Sequence[Any]:
    if not options.model_config_file:
        config = protos.ModelServerConfig()
        name, path = options.model_name, options.model_base_path
        config.model_config_list.config.add(name=name, base_path=path, model_platform="tensorflow")
    else:
        config = _read_config(Path(options.model_config_file))
    if config.WhichOneof("config") != "model_config_list":
        message = f"{options.model_config_file}: expected a model_config_list, found {config.WhichOneof('config')}"
        raise StartError(message)
    return config.model_config_list.config  # type: ignore[no-any-return]


def _read_config(file: Path) -> Any:
    try:
        return models_config.parse_message(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        message = f"--model_config_file={file}: {error}"
        raise StartError(message) from error
    except ModelsConfigError as error:
        message = f"--model_config_file={file}: {error}"
        raise StartError(message) from error


def _check_free(address: str) -> None:
    """Tell at once, not after the models were loaded."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise _in_use(address) from error


def _in_use(address: str) -> StartError:
    return StartError(f"cannot listen on {address}: expected a free port, found it in use (choose another --port)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
