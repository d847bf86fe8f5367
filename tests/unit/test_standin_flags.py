"""The stand-in's command line."""

import socket
import subprocess
import sys

import pytest

from pipeline.serving.standin.flags import FlagError, Flags, parse

REQUIRED = "--model_config_file=/c"


def test_defaults_are_those_of_the_real_server():
    assert parse([REQUIRED]) == Flags(model_config_file="/c")


def test_values_and_bare_booleans():
    flags = parse([REQUIRED, "--port=9", "--enable_grpc_healthcheck_service", "--enable_model_warmup=false"])
    assert (flags.port, flags.enable_grpc_healthcheck_service, flags.enable_model_warmup) == (9, True, False)


def test_the_last_of_two_values_counts():
    assert parse([REQUIRED, "--port=9", "--port=10"]).port == 10


def test_flags_without_effect_are_accepted_and_named():
    flags = parse([REQUIRED, "--rest_api_port=8501", "--monitoring_config_file=/m"])
    assert flags.ignored == ("rest_api_port", "monitoring_config_file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [REQUIRED, "--num_load_thread=2"],
            r"--num_load_thread=2 \(did you mean --num_load_threads\?",
        ),
        ([REQUIRED, "stray"], "unknown argument stray"),
        ([REQUIRED, "--port"], "--port: expected --port=<number>, found no value"),
        ([REQUIRED, "--port=x"], "--port: expected a whole number, found 'x'"),
        ([REQUIRED, "--port=0"], "--port: expected 1 to 65535 .*, found 0"),
        ([REQUIRED, "--enable_model_warmup=maybe"], "expected true or false, found 'maybe'"),
        ([REQUIRED, "--ssl_config_file=/s"], "--ssl_config_file: the stand-in cannot do this"),
        ([REQUIRED, "--batching_parameters_file=/b"], "expected --enable_batching with it"),
        (["--port=9"], "expected --model_config_file or --model_base_path, found neither"),
        (
            [REQUIRED, "--tensorflow_session_parallelism=1", "--tensorflow_intra_op_parallelism=1"],
            "expected --tensorflow_session_parallelism, or .*, found both",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(arguments, message):
    with pytest.raises(FlagError, match=message):
        parse(arguments)


def run(*arguments):
    command = [sys.executable, "-m", "pipeline.serving.standin", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_port_in_use_ends_the_start_with_one_message(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run(f"--port={port}", f"--model_config_file={tmp_path}/models.config")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"Failed to start server. Error: cannot listen on 127.0.0.1:{port}: expected a free port, found it in use "
        "(choose another --port)"
    )


def test_a_missing_config_file_ends_the_start_with_one_message(tmp_path):
    done = run("--port=65000", f"--model_config_file={tmp_path}/none")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"--model_config_file={tmp_path}/none: [Errno 2] No such file" in done.stderr.splitlines()[-1]
