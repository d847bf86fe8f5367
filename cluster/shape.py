"""Starts the shape: what is rendered from an overlay, as processes of this machine, each started again when it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import trustme

from cluster import certificates, flink, watching
from cluster.broker import Node
from cluster.leftovers import MARK
from cluster.place import Endpoint, Place
from cluster.record import FEATURE_CONFIG, Record, ShapeError, write_record
from cluster.servers import Server, servers
from pageturn.processes import Stopped
from pageturn.supervisor import Part, Supervisor
from pipeline.config.reading import load_config
from pipeline.durable import exclusive
from pipeline.serving.launch import free_ports
from tests.k8s.commands import commands
from tests.k8s.manifests import Objects, generated, load

ROOT = Path(__file__).resolve().parents[1]
K8S, JARS = ROOT / "k8s", ROOT / ".cluster"
_KUSTOMIZE = JARS / "k8s" / "bin" / "kustomize"
LOG: Endpoint = ("events-kafka-bootstrap", 9093)  # Strimzi's service
_READY_S, _LOOK_S = 600.0, 1.0
Say = Callable[[str], None]


class Wanted(NamedTuple):
    overlay: str
    config: Path  # of the feed that the users are on
    factor: float
    visits_per_s: float


def render(overlay: str) -> Objects:
    folder = K8S / "overlays" / overlay
    tool = [str(_KUSTOMIZE), "build"] if _KUSTOMIZE.exists() else ["kubectl", "kustomize"]
    if not folder.is_dir() or shutil.which(tool[0]) is None:
        message = f"expected the overlay {folder}, and kubectl on the PATH or `make k8s-tools`"
        raise ShapeError(message)
    return load(subprocess.run([*tool, str(folder)], check=True, capture_output=True, text=True).stdout)


@contextmanager
def running(folder: Path, wanted: Wanted, stop: threading.Event, say: Say) -> Iterator[tuple[Supervisor, Record]]:
    """All of it, up; stopped at the end. Raises: BusyError, ShapeError, ProcessError, Stopped."""
    with exclusive(folder):
        os.environ[MARK] = str(folder)  # all that is started inherits it
        supervisor = Supervisor(folder / "logs", folder / "logs" / "parts.jsonl")
        try:
            yield supervisor, _start(folder, wanted, supervisor, stop, say)
        finally:
            supervisor.stop()


def _start(folder: Path, wanted: Wanted, supervisor: Supervisor, stop: threading.Event, say: Say) -> Record:
    config, objects = load_config(wanted.config), render(wanted.overlay)
    _use_feature_config(objects, wanted.config, folder)
    authority = trustme.CA()
    made = certificates.secrets(objects, config.kv_prefix, authority)
    node = Node(JARS / "kafka", folder / "kafka", certificates.write_broker(authority, folder))
    flink_ports = free_ports(3)
    place = Place(folder, objects, made, {LOG: node.port, flink.REST: flink_ports[1]})
    for command in commands(objects):
        place.fill(command)
    _start_kafka(node, objects, supervisor, stop)
    say("kafka is up, with the topics and the rights of the manifests")
    for part in flink.parts(objects, place, JARS / "flink", flink_ports) if flink.is_there(objects) else ():
        supervisor.add(part)
    started = _start_servers(objects, place, supervisor)
    record = _start_watching(objects, place, wanted, started["agent"], supervisor)
    for name, server in started.items():  # in no order: as in a cluster, each waits for what it needs
        _await(name, server.is_up, supervisor, stop)
        say(f"{name} is up")
    write_record(folder, record)
    supervisor.add(_users(folder, made["redis-users"]["loader"]))
    return record


def _use_feature_config(objects: Objects, config: Path, folder: Path) -> None:
    """In the place of the one that the manifests mount."""
    shutil.copyfile(config, folder / FEATURE_CONFIG)
    generated(objects, "feature-config")["data"] = {FEATURE_CONFIG: config.read_text()}


def _start_kafka(node: Node, objects: Objects, supervisor: Supervisor, stop: threading.Event) -> None:
    node.format()
    supervisor.add(node.part())
    _await("kafka", node.serves, supervisor, stop)
    node.make(objects)


def _start_servers(objects: Objects, place: Place, supervisor: Supervisor) -> dict[str, Server]:
    instead = flink.instead(JARS / "flink", place.folder) if flink.is_there(objects) else {}
    started = {server.part.name: server for server in servers(objects, place, instead)}
    for server in started.values():
        supervisor.add(server.part)
    return started


def _start_watching(objects: Objects, place: Place, wanted: Wanted, agent: Server, supervisor: Supervisor) -> Record:
    """Prometheus and Alertmanager; and where all the others are."""
    folder, (port, alerts) = place.folder / "prometheus", free_ports(2)
    folder.mkdir(exist_ok=True)
    (folder / "rules.yaml").write_text(watching.rules(objects, wanted.factor))
    (folder / "prometheus.yaml").write_text(watching.scraping(objects, place, alerts, wanted.factor))
    (folder / "alertmanager.yaml").write_text(watching.routes((K8S / "monitoring" / "alertmanager.yaml").read_text()))
    supervisor.add(watching.prometheus(folder, port))
    supervisor.add(watching.alertmanager(folder, alerts))
    assert agent.part.env is not None
    store_url = agent.part.env["STORE_URL"]
    return Record(
        wanted.overlay, wanted.factor, wanted.visits_per_s, f"127.0.0.1:{agent.port}", store_url, port, alerts
    )


def _users(folder: Path, password: str) -> Part:
    """Who load the vectors of items as user `loader`, and then turn pages."""
    env = {"PAGETURN_REDIS_USERNAME": "loader", "PAGETURN_REDIS_PASSWORD": password}
    return Part("traffic", [sys.executable, "-m", "cluster.traffic", str(folder)], env)


def _await(name: str, ready: Callable[[], bool], supervisor: Supervisor, stop: threading.Event) -> None:
    """What ends meanwhile is started again, as in a cluster. Raises: ProcessError, ShapeError, Stopped."""
    deadline_s = time.monotonic() + _READY_S
    while not ready():
        if supervisor.watch(stop, _LOOK_S, ready):
            message = f"stopped while {name} was starting"
            raise Stopped(message)
        supervisor.check_settled()
        if time.monotonic() > deadline_s:
            message = f"{name} was not up after {_READY_S:.0f} s"
            raise ShapeError(message)
