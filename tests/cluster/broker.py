"""A real Kafka broker: one node, KRaft, loopback ports of its own. It can be killed and started again as it was.

It would create topics by itself, as brokers do by default, so that tests see that nothing makes it do so.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.serving.launch import free_ports

PASSWORD = "open-sesame"
USER = "pageturn"  # may do what its access-control list allows; whoever comes without TLS may do all
_KEYSTORE = "not-secret"
_START_S, _STOP_S = 300.0, 250.0


class Broker:
    def __init__(self, jars: Path, folder: Path) -> None:
        self._jars, self._folder = jars, folder
        self._port, self._controller, self._secure = free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None
        self.certificate = folder / "ca.pem"
        self._make_certificate()
        self._write_properties()
        self._format()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def secure_address(self) -> str:
        """TLS, and SASL/PLAIN with USER and PASSWORD."""
        return f"127.0.0.1:{self._secure}"

    def url(self, prefix: str = "", query: str = "timeout_s=200") -> str:
        """Patient by default: the machine may be busy."""
        return f"kafka://{self.address}/{prefix}?{query}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start the process; `await_ready` waits until it serves."""
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java(), "kafka.Kafka", str(self._properties)], stdout=log, stderr=log, cwd=self._folder
            )

    def await_ready(self) -> None:
        deadline_s = time.monotonic() + _START_S
        client = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        while time.monotonic() < deadline_s:
            assert self._process is not None
            if self._process.poll() is not None:
                raise AssertionError(f"the broker ended: {self._said()}")
            try:
                if client.list_topics(timeout=2).brokers:
                    return
            except KafkaException:
                time.sleep(0.1)
        raise AssertionError(f"the broker did not start within {_START_S} s: {self._said()}")

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_S)

    def _java(self) -> list[str]:
        """Small and quick to start rather than fast."""
        flags = ["-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return ["java", *flags, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{self._jars}/*"]

    def _said(self) -> str:
        return (self._folder / "broker.log").read_text()[-3_000:]

    @property
    def _properties(self) -> Path:
        return self._folder / "server.properties"

    def _write_properties(self) -> None:
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": (
                f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{self._controller},SECURE://{self.secure_address}"
            ),
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
            "listener.name.secure.ssl.keystore.type": "PKCS12",
            "listener.name.secure.ssl.keystore.location": self._folder / "broker.p12",
            "listener.name.secure.ssl.keystore.password": _KEYSTORE,
            "listener.name.secure.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secure.plain.sasl.jaas.config": (
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "log.dirs": self._folder / "data",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "auto.create.topics.enable": "true",
            "broker.session.timeout.ms": 2_000,  # one that was killed may come back after this
            "broker.heartbeat.interval.ms": 500,
            "num.network.threads": 2,
            "num.io.threads": 2,
        }
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def _format(self) -> None:
        tool = ["kafka.tools.StorageTool", "format", "--cluster-id", "cGFnZXR1cm4tdGVzdHMtMQ"]
        _run([*self._java(), *tool, "--config", str(self._properties)])

    def _make_certificate(self) -> None:
        """Signed by itself; the JVM's own tool, so that nothing else need be installed."""
        store = ["-keystore", str(self._folder / "broker.p12"), "-storepass", _KEYSTORE, "-alias", "broker"]
        name = ["-dname", "CN=127.0.0.1", "-ext", "SAN=IP:127.0.0.1", "-ext", "BC=ca:true"]
        _run(["keytool", "-genkeypair", "-keyalg", "RSA", "-keysize", "2048", "-validity", "2", *name, *store])
        _run(["keytool", "-exportcert", "-rfc", "-file", str(self.certificate), *store])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
