"""Which program is started, and with what."""

import sys
import time

import pytest

from pipeline.serving import launch
from pipeline.serving.client import Unavailable


def test_the_stand_in_is_started_unless_a_binary_is_named(monkeypatch):
    monkeypatch.delenv(launch.MODEL_SERVER, raising=False)
    command = launch.server_command(1234, "/m/models.config", num_load_threads=7, enable_profiler=True)
    assert command[:3] == [sys.executable, "-m", "pipeline.serving.standin"]
    assert command[3:5] == ["--port=1234", "--model_config_file=/m/models.config"]
    assert {"--num_load_threads=7", "--enable_profiler=true", "--enable_model_warmup=true"} < set(command)


def test_the_binary_gets_the_same_flags(monkeypatch):
    monkeypatch.delenv(launch.MODEL_SERVER, raising=False)
    ours = launch.server_command(1, "/m")
    monkeypatch.setenv(launch.MODEL_SERVER, "/opt/tensorflow_model_server")
    assert launch.server_command(1, "/m") == ["/opt/tensorflow_model_server", *ours[3:]]


def test_a_binary_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(launch.MODEL_SERVER, str(tmp_path / "none"))
    expected = f"PAGETURN_MODEL_SERVER: expected the path of a program, found .{tmp_path}/none.: No such file"
    with pytest.raises(Unavailable, match=expected), launch.running_server(tmp_path / "models.config"):
        pass


def test_a_server_that_ends_at_once_is_reported_with_its_log(monkeypatch, tmp_path):
    script = tmp_path / "server"
    script.write_text("#!/bin/sh\necho the reason\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv(launch.MODEL_SERVER, str(script))
    expected = r"ended with exit code 3 before it was ready:\nthe reason"
    with pytest.raises(Unavailable, match=expected), launch.running_server(tmp_path / "models.config"):
        pass


def test_a_server_that_does_not_get_ready_is_stopped(monkeypatch, tmp_path):
    script = tmp_path / "server"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho waiting\nexec sleep 600\n")
    script.chmod(0o755)
    monkeypatch.setenv(launch.MODEL_SERVER, str(script))
    wait = launch._wait_until_ready

    def once_it_has_begun(server, timeout_s):
        deadline = time.monotonic() + 250
        while not server.log.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        wait(server, timeout_s)

    monkeypatch.setattr(launch, "_wait_until_ready", once_it_has_begun)
    with (
        pytest.raises(launch.TooLate, match=r"(?s)after 2 s; the end of its log:\nwaiting"),
        launch.running_server(tmp_path / "models.config", timeout_s=2.0),
    ):
        pass
    with pytest.raises(ProcessLookupError):
        launch.os.kill(int((tmp_path / "pid").read_text()), 0)
