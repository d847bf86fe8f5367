"""One Kafka node with the topics and the users of the manifests: mutual TLS, and each user's rights and no others."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from pageturn.supervisor import Part
from pipeline.serving.launch import free_ports
from tests.k8s.manifests import Object, Objects, of_kind

_HEAP = ["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]  # small, and quick to start
_CLUSTER = "cGFnZXR1cm4tbG9jYWwtMQ"
_TIMEOUT_S = 60
_PATTERNS = {"literal": ResourcePatternType.LITERAL, "prefix": ResourcePatternType.PREFIXED}


class Node:
    """`port` is for the processes; whoever administers comes by another, without TLS."""

    def __init__(self, jars: Path, folder: Path, certificates: tuple[Path, Path]) -> None:
        self._jars, self._folder, self._certificates = jars, folder, certificates
        self.port, self._admin, self._controller = free_ports(3)
        folder.mkdir(parents=True, exist_ok=True)
        self._properties = folder / "server.properties"
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))

    def part(self) -> Part:
        return Part("kafka", [*self._java(), "kafka.Kafka", str(self._properties)])

    def format(self) -> None:
        """CalledProcessError where its folder cannot be made ready."""
        tool = ["kafka.tools.StorageTool", "format", "--cluster-id", _CLUSTER, "--config", str(self._properties)]
        subprocess.run([*self._java(), *tool], check=True, capture_output=True)

    def serves(self) -> bool:
        try:
            return bool(self._client().list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def make(self, objects: Objects) -> None:
        """Topics and rights, as operators would make them."""
        client = self._client()
        topics = [new_topic(topic) for topic in of_kind(objects, "KafkaTopic")]
        rights = [right for user in of_kind(objects, "KafkaUser") for right in rights_of(user)]
        for done in [*client.create_topics(topics).values(), *client.create_acls(rights).values()]:
            done.result(_TIMEOUT_S)

    def settings_of(self, topic: str) -> dict[str, str]:
        resource = ConfigResource("topic", topic)
        found = self._client().describe_configs([resource])[resource].result(_TIMEOUT_S)
        return {name: entry.value for name, entry in found.items()}

    def _client(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": f"127.0.0.1:{self._admin}", "log_level": 0})

    def _java(self) -> list[str]:
        return ["java", *_HEAP, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{self._jars}/*"]

    def _settings(self) -> dict[str, object]:
        own, trusted = self._certificates
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": (
                f"TLS://127.0.0.1:{self.port},ADMIN://127.0.0.1:{self._admin},CONTROLLER://127.0.0.1:{self._controller}"
            ),
            "inter.broker.listener.name": "ADMIN",
            "listener.security.protocol.map": "TLS:SSL,ADMIN:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "listener.name.tls.ssl.keystore.type": "PEM",
            "listener.name.tls.ssl.keystore.location": own,
            "listener.name.tls.ssl.truststore.type": "PEM",
            "listener.name.tls.ssl.truststore.location": trusted,
            "listener.name.tls.ssl.client.auth": "required",
            "listener.name.tls.ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/CN=$1/",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "log.dirs": self._folder / "data",
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "auto.create.topics.enable": "false",
            "num.network.threads": 2,
            "num.io.threads": 2,
        }


def new_topic(topic: Object) -> NewTopic:
    """As the manifest has it, but on one node."""
    spec = topic["spec"]
    config = {name: str(value) for name, value in spec["config"].items() if name != "min.insync.replicas"}
    return NewTopic(spec["topicName"], spec["partitions"], 1, config=config)


def rights_of(user: Object) -> Iterator[AclBinding]:
    """A Strimzi user is known by the name in its certificate."""
    who = f"User:CN={user['metadata']['name']}"
    for rule in user["spec"]["authorization"]["acls"]:
        resource = rule["resource"]
        for operation in rule["operations"]:
            yield AclBinding(
                ResourceType[resource["type"].upper()], resource["name"], _PATTERNS[resource["patternType"]],
                who, "*", AclOperation[_constant(operation)], AclPermissionType.ALLOW,
            )  # fmt: skip


def _constant(name: str) -> str:
    """DescribeConfigs -> DESCRIBE_CONFIGS"""
    return "".join(f"_{letter}" if letter.isupper() and i else letter for i, letter in enumerate(name)).upper()
