"""Trainers that learn together: what each is told of the others, and whether all can be there at once."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.errors import PageturnError
from pipeline.learning.together import Place, check_can_learn_together, place_of
from tests.k8s.commands import Command, commands, environment
from tests.k8s.contract import feature_config
from tests.k8s.manifests import Object, Objects, at, named, names

_VARIABLE, _ADDRESS = "TF_CONFIG", re.compile(r'"([a-z0-9-]+)-([0-9]+)\.([a-z0-9-]+):([0-9]+)"')


def check(objects: Objects) -> Iterator[str]:
    for command in commands(objects):
        told = [_VARIABLE in container_env(container) for container in command.pod.containers]
        if any(told):
            if not all(told):
                yield f"{command.where}: expected {_VARIABLE} in every container, or in none"
            yield from _places(command, objects)
            yield from _addresses(command, objects)
            yield from _together(command.pod.owner)
            yield from _learns(objects)


def container_env(container: Object) -> set[str]:
    return {variable["name"] for variable in container.get("env") or ()}


def _places(command: Command, objects: Objects) -> Iterator[str]:
    """By the code that reads it, in each of the pods."""
    replicas = command.pod.owner["spec"].get("replicas", 1)
    for ordinal in range(replicas):
        try:
            found = place_of(environment(command.container, objects, ordinal).get(_VARIABLE))
        except PageturnError as error:
            yield f"{command.where}, pod {ordinal}: {error}"
            continue
        if found != Place(ordinal, replicas):
            yield f"{command.where}, pod {ordinal}: expected to be {ordinal} of {replicas}, found {found}"


def _addresses(command: Command, objects: Objects) -> Iterator[str]:
    """Names that the pods have, in their order, at a port that they open."""
    owner = command.pod.owner
    ports = {port["containerPort"] for c in command.pod.containers for port in c.get("ports") or ()}
    service = owner["spec"].get("serviceName")
    for i, found in enumerate(_ADDRESS.findall(command.env.get(_VARIABLE, ""))):
        expected = (owner["metadata"]["name"], str(i), service)
        if found[:3] != expected or int(found[3]) not in ports:
            wanted = f"{expected[0]}-{i}.{service} at one of its ports {sorted(ports)}"
            yield f"{command.where}: expected {wanted}, found {found[0]}-{found[1]}.{found[2]}:{found[3]}"
    if service in names(objects, "Service"):
        spec = named(objects, "Service", service)["spec"]
        if spec.get("clusterIP") != "None" or not spec.get("publishNotReadyAddresses"):
            yield f"Service {service}: expected names of pods that are not ready yet: they wait for one another"


def _together(owner: Object) -> Iterator[str]:
    where = f"{owner['kind']} {owner['metadata']['name']}"
    if owner["kind"] != "StatefulSet":
        yield f"{where}: expected a StatefulSet, whose pods have names"
    if owner["spec"].get("podManagementPolicy") != "Parallel":
        yield f"{where}: the first would wait for the second, which is started once the first is ready"
    if at(owner, ("spec", "updateStrategy", "type")) != "OnDelete":
        yield f"{where}: replaced one by one, the first that is new would wait for those that are old"


def _learns(objects: Objects) -> Iterator[str]:
    config = feature_config(objects)
    if config is not None:
        try:
            check_can_learn_together(config)
        except PageturnError as error:
            yield f"the feature config: {error}"
