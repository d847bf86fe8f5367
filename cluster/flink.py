"""Flink as the manifests have it, on this machine: a session cluster of one task manager with one slot.

Its memory is a laptop's; its high availability, which is Kubernetes' own, is left out, and so is RocksDB: the job
itself asks for state on the heap.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.place import Place
from pageturn.supervisor import Part
from tests.cluster.flink import Cluster, job_server
from tests.k8s.commands import Command, commands
from tests.k8s.manifests import Objects, of_kind

_OF_KUBERNETES = ("kubernetes.", "high-availability.", "state.backend.type", "taskmanager.memory", "jobmanager.memory")
REST = ("stream-flink-rest", 8081)  # the operator's service


def is_there(objects: Objects) -> bool:
    return bool(of_kind(objects, "FlinkDeployment"))


def parts(objects: Objects, place: Place, jars: Path, ports: list[int]) -> list[Part]:
    """A job manager and a task manager, whose Python finds Kafka's settings in its environment."""
    cluster = Cluster(jars, place.folder / "flink", ports, task_managers=1)
    *_, worker = (command for command in commands(objects) if command.pod.kind == "FlinkDeployment")
    cluster.extra = settings(objects, place, worker)
    return [
        Part("flink-jobmanager", cluster.job_manager_command()),
        Part("flink-taskmanager", cluster.task_manager_command("taskmanager"), place.environment(worker)),
    ]


def settings(objects: Objects, place: Place, command: Command) -> dict[str, str]:
    [deployment] = of_kind(objects, "FlinkDeployment")
    given = deployment["spec"]["flinkConfiguration"]
    return {name: _here(value, place, command) for name, value in given.items() if not name.startswith(_OF_KUBERNETES)}


def _here(value: str, place: Place, command: Command) -> str:
    scheme = "file://" if value.startswith("file://") else ""
    return scheme + place.here(value.removeprefix(scheme), command)


def instead(jars: Path, folder: Path) -> Mapping[str, str]:
    """What an image has for `pageturn stream --runner flink`, and one slot."""
    return {
        "--flink-job-server": str(job_server(jars, folder)),
        "--flink-worker": str(Path(sys.executable).with_name("pageturn-flink-worker")),
        "--parallelism": "1",
    }
