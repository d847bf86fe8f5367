"""From the pods of the manifests to processes: the same command lines, environments and files."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cluster.place import Place
from pageturn.options import HEARTBEAT
from pageturn.supervisor import Part
from pipeline.serving.launch import MODEL_SERVER
from tests.k8s.commands import Command, commands
from tests.k8s.manifests import Objects

TF_SERVING = "/usr/bin/tensorflow_model_server"
REDIS = ("valkey-server", "redis-server")
_KINDS = ("Deployment", "StatefulSet")  # jobs of a clock are left out, Flink's are started elsewhere


class Server(NamedTuple):
    part: Part
    heartbeat: Path | None
    port: int | None  # the first that it listens on

    def is_up(self) -> bool:
        """By its sign of life; where it has none, by its port."""
        if self.heartbeat is not None:
            return self.heartbeat.exists()
        with socket.socket() as probe:
            probe.settimeout(1)
            return self.port is None or probe.connect_ex(("127.0.0.1", self.port)) == 0


def servers(objects: Objects, place: Place, instead: Mapping[str, str]) -> Iterator[Server]:
    """One of each, whatever `replicas` says. `instead`: values for options that name what is only in an image."""
    waiting: dict[str, list[str]] = {}
    for command in commands(objects):
        if command.pod.kind not in _KINDS:
            continue
        name, words = str(command.pod.owner["metadata"]["name"]), program(command, place, instead)
        if command.container in (command.pod.spec.get("initContainers") or ()):
            waiting.setdefault(name, []).append(shlex.join(words))
            continue
        yield _server(name, command, place, [*_after(waiting.get(name, [])), *words])


def _server(name: str, command: Command, place: Place, words: list[str]) -> Server:
    env = place.environment(command)
    ports = [place.port(command.pod, port["containerPort"]) for port in command.container.get("ports") or ()]
    heartbeat = Path(env[HEARTBEAT]) if HEARTBEAT in env else None
    grace_s = float(command.pod.spec["terminationGracePeriodSeconds"])
    return Server(Part(name, words, env, grace_s=grace_s), heartbeat, ports[0] if ports else None)


def _after(first: list[str]) -> list[str]:
    """A pod's init containers run before its own, each time it starts."""
    if not first:
        return []
    return ["sh", "-c", " && ".join([*first, 'exec "$@"']), "sh"]


def program(command: Command, place: Place, instead: Mapping[str, str]) -> list[str]:
    """The command line on this machine."""
    words = [_replaced(word, instead) for word in place.words(command)]
    if command.is_ours:
        return [sys.executable, "-m", "pageturn", *words]
    first, *rest = [place.here(str(word), command) for word in command.container["command"]]
    if first == TF_SERVING:
        return [*model_server(), *words]
    if first in REDIS:  # what comes later holds, and the manifest's own words are last
        port = place.port(command.pod, command.container["ports"][0]["containerPort"])
        return [redis_server(), *rest, "--bind", "127.0.0.1", "--port", str(port), *words]
    return [first, *rest, *words]


def _replaced(word: str, instead: Mapping[str, str]) -> str:
    name, equals, _ = word.partition("=")
    return f"{name}={instead[name]}" if equals and name in instead else word


def model_server() -> list[str]:
    binary = os.environ.get(MODEL_SERVER)
    return [binary] if binary else [sys.executable, "-m", "pipeline.serving.standin"]


def redis_server() -> str:
    return next(filter(None, map(shutil.which, REDIS)), REDIS[-1])
