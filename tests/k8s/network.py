"""Who has to reach whom, and whether the network policies let it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.k8s.commands import Command, commands
from tests.k8s.manifests import Object, Objects, Pod, matches, named, names, of_kind, pods

_WORKER = re.compile(r'"([a-z0-9.-]+):([0-9]+)"')
_TARGET = re.compile(r"(?:dns:///)?([a-z0-9-]+):([0-9]+)")


class Edge(NamedTuple):
    client: Pod
    host: str  # a service, or a pod of a headless one: <pod>.<service>
    port: int

    def __str__(self) -> str:
        return f"{self.client.name} to {self.host}:{self.port}"


def check(objects: Objects) -> Iterator[str]:
    if not any(p["spec"].get("podSelector") == {} and _denies(p) for p in of_kind(objects, "NetworkPolicy")):
        yield "NetworkPolicy: expected one that selects every pod and allows nothing"
    for policy in of_kind(objects, "NetworkPolicy"):
        yield from _policy_ports(policy, objects)
    for edge in edges(objects):
        yield from _edge(edge, objects)


def _denies(policy: Object) -> bool:
    types = set(policy["spec"].get("policyTypes") or ())
    return types == {"Ingress", "Egress"} and not policy["spec"].get("ingress") and not policy["spec"].get("egress")


def edges(objects: Objects) -> Iterator[Edge]:
    """What command lines and variables name."""
    for command in commands(objects):
        for host, port in _hosts(command):
            yield Edge(command.pod, host, port)
        for host, port in _WORKER.findall(command.env.get("TF_CONFIG", "")):
            yield Edge(command.pod, host, int(port))
        if command.env.get("REDIS_HOST"):
            yield Edge(command.pod, command.env["REDIS_HOST"], int(command.env["REDIS_PORT"]))


def _hosts(command: Command) -> Iterator[tuple[str, int]]:
    for argument in command.args:
        name, _, value = argument.partition("=")
        if name in ("--server", "--flink-master"):
            target = _TARGET.fullmatch(value)
            if target:
                yield target[1], int(target[2])
        elif name in ("--log", "--store"):
            for broker in urlsplit(value).netloc.split(","):
                host, _, port = broker.partition(":")
                yield host, int(port)


def _edge(edge: Edge, objects: Objects) -> Iterator[str]:
    server = serving(edge, objects)
    if server is None:
        yield f"{edge}: there is no such service"
        return
    labels, port = server
    policies = of_kind(objects, "NetworkPolicy")
    if not _allowed(policies, "egress", "to", edge.client.labels, labels, port):
        yield f"{edge}: no network policy lets it out"
    if "strimzi.io/cluster" in labels:  # its operator makes the policies of what comes in, from the listeners' peers
        if not _is_peer(edge, objects):
            yield f"{edge}: is no peer of the listener"
    elif not _allowed(policies, "ingress", "from", labels, edge.client.labels, port):
        yield f"{edge}: no network policy lets it in"


def serving(edge: Edge, objects: Objects) -> tuple[Mapping[str, str], set[int | str]] | None:
    """The labels of the pods behind a service, and the port as it may be called there."""
    if edge.host in names(objects, "Service"):
        service = named(objects, "Service", edge.host)
        ports = {port["port"]: port["targetPort"] for port in service["spec"].get("ports") or ()}
        if edge.port not in ports:
            return None
        for pod in pods(objects):
            if matches({"matchLabels": service["spec"]["selector"]}, pod.labels):
                return pod.labels, {ports[edge.port], *_numbers(pod, ports[edge.port])}
    one, _, headless = edge.host.partition(".")
    if headless in names(objects, "Service"):
        selector = named(objects, "Service", headless)["spec"]["selector"]
        for pod in pods(objects):
            if matches({"matchLabels": selector}, pod.labels) and one.startswith(f"{pod.owner['metadata']['name']}-"):
                return pod.labels, {edge.port, *_port_names(pod, edge.port)}
    for kafka in of_kind(objects, "Kafka"):  # Strimzi makes the service
        if edge.host == f"{kafka['metadata']['name']}-kafka-bootstrap":
            there = {listener["port"] for listener in kafka["spec"]["kafka"]["listeners"]}
            return ({"strimzi.io/cluster": kafka["metadata"]["name"]}, {edge.port}) if edge.port in there else None
    for flink in of_kind(objects, "FlinkDeployment"):  # its operator does
        if (edge.host, edge.port) == (f"{flink['metadata']['name']}-rest", 8081):
            return flink["spec"]["jobManager"]["podTemplate"]["metadata"]["labels"], {8081}
    return None


def _numbers(pod: Pod, name: int | str) -> set[int]:
    ports = [port for container in pod.containers for port in container.get("ports") or ()]
    return {port["containerPort"] for port in ports if port["name"] == name}


def _port_names(pod: Pod, number: int) -> set[str]:
    ports = [port for container in pod.containers for port in container.get("ports") or ()]
    return {port["name"] for port in ports if port["containerPort"] == number}


def _allowed(
    policies: Sequence[Object],
    direction: str,
    peers: str,
    ours: Mapping[str, str],
    theirs: Mapping[str, str],
    port: set[int | str],
) -> bool:
    for policy in policies:
        if matches(policy["spec"].get("podSelector"), ours):
            for rule in policy["spec"].get(direction) or ():
                if _names(rule.get(peers), theirs) and _opens(rule.get("ports"), port):
                    return True
    return False


def _names(peers: Sequence[Object] | None, labels: Mapping[str, str]) -> bool:
    return peers is None or any(
        "namespaceSelector" not in peer and matches(peer.get("podSelector"), labels) for peer in peers
    )


def _opens(ports: Sequence[Object] | None, port: set[int | str]) -> bool:
    return ports is None or any(p.get("protocol", "TCP") == "TCP" and p.get("port") in port for p in ports)


def _is_peer(edge: Edge, objects: Objects) -> bool:
    for kafka in of_kind(objects, "Kafka"):
        for listener in kafka["spec"]["kafka"]["listeners"]:
            if listener["port"] == edge.port:
                return _names(listener.get("networkPolicyPeers"), edge.client.labels)
    return False


def _policy_ports(policy: Object, objects: Objects) -> Iterator[str]:
    """A policy selects something; the ports that it names, they have."""
    selector: Any = policy["spec"].get("podSelector")
    name = policy["metadata"]["name"]
    found = [pod for pod in pods(objects) if matches(selector, pod.labels)]
    strimzi = "strimzi.io/cluster" in ((selector or {}).get("matchLabels") or {})
    if not found and not strimzi:
        yield f"NetworkPolicy {name}: selects no pod"
    for rule in policy["spec"].get("ingress") or ():
        for port in rule.get("ports") or ():
            if isinstance(port.get("port"), str):
                for pod in found:
                    if not _numbers(pod, port["port"]):
                        yield f"NetworkPolicy {name}: {pod.name} has no port {port['port']!r}"
