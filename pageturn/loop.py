"""A whole loop on one machine: which parts there are, in which order they start, and when each is ready."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from pageturn.processes import Process, ProcessError, Stopped, pageturn
from pageturn.run import Run
from pageturn.supervisor import Part, Supervisor
from pipeline.agent.client import AgentClient
from pipeline.durable import exclusive
from pipeline.serving.client import ModelServer
from pipeline.serving.errors import TooLate
from pipeline.serving.launch import free_ports
from pipeline.stores.opening import open_store
from pipeline.stores.store import StoreError

REDIS = "redis-server"
_START_S = 300.0  # several import TensorFlow at once, on one core maybe
_LOOK_S = 0.1
_ONE_THREAD = {  # TensorFlow would take all cores, which the other parts need
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

Say = Callable[[str], None]


def redis_is_installed() -> bool:
    return shutil.which(REDIS) is not None


@contextmanager
def running(run: Run, stop: threading.Event, say: Say) -> Iterator[Supervisor]:
    """The loop, ready to decide pages and to learn from them; all of it is stopped at the end.

    Whoever has it calls `watch` of the supervisor, so that what ends is started again; it belongs to their thread. A
    run that was stopped goes on where it was. Raises: BusyError (this run is up), ProcessError, Stopped.
    """
    with exclusive(run.folder):
        redis_port, server_port, agent_port = free_ports(3)
        run.save(redis_port=redis_port, server_port=server_port, agent_port=agent_port)
        supervisor = Supervisor(run.logs, run.journal)
        try:
            _start(run, supervisor, stop, say)
            yield supervisor
        finally:
            supervisor.stop()


def _start(run: Run, supervisor: Supervisor, stop: threading.Event, say: Say) -> None:
    if run.record.redis:
        supervisor.add(_redis(run))
        await_ready("store", lambda: _store_answers(run), supervisor, stop, say)
    for part in ("stream", "trainer"):  # both take their time to load, and neither waits for a policy
        supervisor.add(part_of(run, part))
    say("version 1 of every policy: the baseline")
    Process("bootstrap", command(run, "bootstrap"), run.logs).wait(_START_S, stop)
    serve(run, supervisor, stop, say)
    supervisor.add(part_of(run, "controller"))


def serve(run: Run, supervisor: Supervisor, stop: threading.Event, say: Say) -> None:
    """The model server and the agent, ready. Version 1 is there."""
    supervisor.add(part_of(run, "model-server"))
    await_ready("model-server", lambda: _server_answers(run), supervisor, stop, say)
    supervisor.add(part_of(run, "agent"))
    await_ready("agent", lambda: _agent_answers(run), supervisor, stop, say)


# Commands --------------------------------------------------------------------------------------------------------


def command(run: Run, name: str) -> list[str]:
    """The command line of a part."""
    config, log, store = ("--config", run.config_path), ("--log", run.log_url), ("--store", run.store_url)
    staging, models, server = ("--staging", run.staging), ("--models", run.models), ("--server", run.server)
    words: dict[str, tuple[object, ...]] = {
        "stream": ("stream", *config, *log, "--state", run.stream),
        "archive": ("archive", *log, "--to", run.archive),
        "trainer": ("train", *config, *log, *store, "--state", run.trainer, *staging),
        "bootstrap": ("bootstrap", *config, *store, *staging, *models),
        "controller": ("control", *config, *log, *store, *staging, *models, *server),
        "model-server": ("model-server", *models, "--port", run.record.server_port),
        "agent": ("agent", *config, *log, *store, *server, "--port", run.record.agent_port, "--drain-s", 0),
    }
    return pageturn(*map(str, words[name]))


def part_of(run: Run, name: str) -> Part:
    if name == "trainer":
        return Part(name, ["nice", "-n", "5", *command(run, name)], _ONE_THREAD)  # pages go first
    return Part(name, command(run, name), _ONE_THREAD)


def _redis(run: Run) -> Part:
    """Every write is in its file before it is acknowledged: a kill loses nothing."""
    run.redis.mkdir(exist_ok=True)
    options = {
        "port": run.record.redis_port, "bind": "127.0.0.1", "dir": run.redis, "maxmemory-policy": "noeviction",
        "save": "", "appendonly": "yes", "appendfsync": "always",
    }  # fmt: skip
    return Part("store", [REDIS, *(word for name, value in options.items() for word in (f"--{name}", str(value)))])


# Readiness -------------------------------------------------------------------------------------------------------


def await_ready(name: str, ready: Callable[[], bool], supervisor: Supervisor, stop: threading.Event, say: Say) -> None:
    """Raises: ProcessError where a part has ended or this one is not ready in time; Stopped."""
    began = time.monotonic()
    while not ready():
        supervisor.check()
        if stop.wait(_LOOK_S):
            message = f"stopped while the {name} was starting"
            raise Stopped(message)
        if time.monotonic() - began > _START_S:
            message = f"the {name} was not ready after {_START_S:.0f} s"
            raise ProcessError(message)
    say(f"{name} ready")


def _store_answers(run: Run) -> bool:
    try:
        with closing(open_store(run.store_url)):
            return True
    except StoreError:
        return False


def _server_answers(run: Run) -> bool:
    with ModelServer(run.server) as client:
        try:
            client.wait_until_ready(0.5)
        except TooLate:
            return False
        return True


def _agent_answers(run: Run) -> bool:
    with AgentClient(run.agent) as client:
        return client.wait_ready(0.5)
