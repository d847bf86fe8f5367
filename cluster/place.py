"""Where things that the manifests name are on this machine: volumes in folders, services and ports on the loopback."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.serving.launch import free_ports
from tests.k8s.commands import Command
from tests.k8s.manifests import Object, Objects, Pod, matches, named, of_kind, pods

Secrets = Mapping[str, Mapping[str, str]]
Endpoint = tuple[str, int]  # a name in the cluster, and the port there
_PATH = r"[A-Za-z0-9_.\-/]"


class Place:
    """`made` are services that operators make, with the local port of each."""

    def __init__(self, folder: Path, objects: Objects, secrets: Secrets, made: Mapping[Endpoint, int]) -> None:
        self.folder, self._objects, self._secrets = folder, objects, secrets
        wanted = sorted({(pod.name, port["containerPort"]) for pod in pods(objects) for port in _ports(pod)})
        self._ports = dict(zip(wanted, free_ports(len(wanted)), strict=True))
        self._services = {**made, **dict(self._own_services())}

    def port(self, pod: Pod, container_port: int) -> int:
        return self._ports[pod.name, container_port]

    def here(self, text: str, command: Command) -> str:
        """A word of the command line, or of the environment, of that container."""
        return self._addressed(self._mounted(text, command))

    def words(self, command: Command) -> list[str]:
        """Its arguments; the ports that it listens on are others here, and on the loopback."""
        ports = {str(port["containerPort"]) for port in _ports(command.pod)}

        def word(text: str) -> str:
            name, equals, value = text.rpartition("=")
            host, colon, port = value.rpartition(":")
            if value in ports:
                return f"{name}{equals}{self.port(command.pod, int(value))}"
            if host == "0.0.0.0" and port in ports:
                return f"{name}{equals}127.0.0.1{colon}{self.port(command.pod, int(port))}"
            return f"{name}{equals}127.0.0.1" if value == "0.0.0.0" else self.here(text, command)

        return [word(text) for text in command.args]

    def environment(self, command: Command) -> dict[str, str]:
        found = {name: self.here(value, command) for name, value in command.env.items()}
        for variable in command.container.get("env") or ():
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if reference:
                found[variable["name"]] = self._secrets[reference["name"]][reference["key"]]
        if mount := next((m for m in _mounts(command) if m["mountPath"] == "/tmp"), None):
            found["TMPDIR"] = str(self.volume(command.pod, mount["name"]))
        return found

    def volume(self, pod: Pod, name: str) -> Path:
        """A claim is one folder for all that mount it; what a pod has for itself is under its name."""
        claim = (pod.volumes[name].get("persistentVolumeClaim") or {}).get("claimName")
        if claim:
            return self.folder / "claims" / str(claim)
        return self.folder / "pods" / str(pod.owner["metadata"]["name"]) / name

    def fill(self, command: Command) -> None:
        """Make the volumes that it mounts, and write the files of its ConfigMaps and Secrets."""
        for mount in _mounts(command):
            volume, folder = command.pod.volumes[mount["name"]], self.volume(command.pod, mount["name"])
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in files(volume, self._objects, self._secrets).items():
                path = folder / file
                path.touch(0o600)
                path.write_text(self._mounted(text, command))

    def _mounted(self, text: str, command: Command) -> str:
        """With the paths of what is mounted, the longest first, each as the folder here."""
        folders = {mount["mountPath"]: str(self.volume(command.pod, mount["name"])) for mount in _mounts(command)}
        paths = "|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True))
        return re.sub(rf"(?<!{_PATH})({paths})(?=/|(?!{_PATH}))", lambda m: folders[m[1]], text) if paths else text

    def _addressed(self, text: str) -> str:
        for (name, port), here in self._services.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}:{port}(?!\d)", f"127.0.0.1:{here}", text)
        return text

    def _own_services(self) -> Iterator[tuple[Endpoint, int]]:
        for service in of_kind(self._objects, "Service"):
            for pod in pods(self._objects):
                if matches({"matchLabels": service["spec"]["selector"]}, pod.labels):
                    for port in service["spec"].get("ports") or ():
                        target = port_of(pod, port["targetPort"])
                        yield (service["metadata"]["name"], port["port"]), self.port(pod, target)


def port_of(pod: Pod, port: str | int) -> int:
    """By its name, or its number."""
    return next(int(p["containerPort"]) for p in _ports(pod) if port in (p["name"], p["containerPort"]))


def files(volume: Object, objects: Objects, secrets: Secrets) -> dict[str, str]:
    """What a ConfigMap or Secret puts into a volume; nothing for other volumes."""
    if "configMap" in volume:
        return dict(named(objects, "ConfigMap", volume["configMap"]["name"])["data"])
    if "secret" in volume:
        return _items(secrets[volume["secret"]["secretName"]], volume["secret"])
    found: dict[str, str] = {}
    for source in (volume.get("projected") or {}).get("sources") or ():
        found |= _items(secrets[source["secret"]["name"]], source["secret"])
    return found


def _items(data: Mapping[str, str], source: Mapping[str, Any]) -> dict[str, str]:
    items = source.get("items")
    return dict(data) if items is None else {item["path"]: data[item["key"]] for item in items}


def _mounts(command: Command) -> Sequence[Object]:
    return command.container.get("volumeMounts") or ()


def _ports(pod: Pod) -> list[Object]:
    return [port for container in pod.containers for port in container.get("ports") or ()]
