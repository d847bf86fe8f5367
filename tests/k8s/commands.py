"""What the containers run: command lines and environments as Kubernetes would make them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tests.k8s.manifests import Object, Objects, Pod, containers, named, names
from tests.k8s.secrets import secret_keys

_EXPANSION = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
OURS = ("pageturn/agent", "pageturn/stream", "pageturn/trainer", "pageturn/stream-flink")
SECRET = "s3cret"  # in the place of every secret
_ORDINAL = "metadata.labels['apps.kubernetes.io/pod-index']"


class Command(NamedTuple):
    pod: Pod
    container: Object
    args: tuple[str, ...]
    env: Mapping[str, str]

    @property
    def where(self) -> str:
        return f"{self.pod.name}, {self.container['name']}"

    @property
    def image(self) -> str:
        """Without registry, tag and digest."""
        path = str(self.container.get("image") or self.pod.owner["spec"].get("image")).partition("@")[0]
        return re.sub(r":[^:/]+$", "", path)

    @property
    def is_ours(self) -> bool:
        """Runs the entry point of our images."""
        return self.image in OURS and "command" not in self.container


def commands(objects: Objects) -> Iterator[Command]:
    for pod, container in containers(objects):
        env = environment(container, objects)
        args = tuple(_expanded(str(argument), env) for argument in container.get("args") or ())
        yield Command(pod, container, args, env)


def environment(container: Object, objects: Objects, ordinal: int = 0) -> dict[str, str]:
    """`ordinal`: of the pod, where a StatefulSet makes it."""
    found: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        name = source["configMapRef"]["name"]
        found |= named(objects, "ConfigMap", name)["data"] if name in names(objects, "ConfigMap") else {}
    for variable in container.get("env") or ():
        found[variable["name"]] = _value(variable, found, objects, ordinal)
    return found


def _value(variable: Object, before: Mapping[str, str], objects: Objects, ordinal: int) -> str:
    source = variable.get("valueFrom") or {}
    if "fieldRef" in source:
        return str(ordinal) if source["fieldRef"]["fieldPath"] == _ORDINAL else ""
    if "configMapKeyRef" in source and source["configMapKeyRef"]["name"] in names(objects, "ConfigMap"):
        data = named(objects, "ConfigMap", source["configMapKeyRef"]["name"])["data"]
        return str(data.get(source["configMapKeyRef"]["key"], ""))
    if "secretKeyRef" in source:
        return SECRET if source["secretKeyRef"]["name"] in secret_keys(objects) else ""
    return _expanded(str(variable.get("value", "")), before)


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """$(NAME), where there is such a variable; it stays as it is where there is none."""
    return _EXPANSION.sub(lambda found: env.get(found[1], found[0]), text)
