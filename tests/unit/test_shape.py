"""The production shape on one machine: what becomes of the manifests' words, paths, addresses and durations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster import flink, watching
from cluster.broker import new_topic, rights_of
from cluster.leftovers import MARK, end, left
from cluster.place import Place
from cluster.servers import servers
from tests.k8s.commands import Command, commands
from tests.k8s.manifests import load
from tests.unit.agent_fakes import eventually

OBJECTS = load(
    """
apiVersion: v1
kind: ConfigMap
metadata: {name: endpoints-1}
data: {STORE_URL: "rediss://redis:6379/0?ssl_ca_certs=/etc/tls/ca.crt"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf-1}
data: {"redis.conf": "dir /data\\naclfile /etc/tls/users.acl\\n"}
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}, ports: [{port: 6379, targetPort: redis}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: redis}
spec:
  template:
    metadata: {labels: {app: redis, app.kubernetes.io/name: redis}}
    spec:
      terminationGracePeriodSeconds: 60
      containers:
        - name: redis
          image: valkey/valkey:8
          command: [valkey-server, /etc/redis/redis.conf]
          args: [--tls-port, "6379"]
          ports: [{name: redis, containerPort: 6379}]
          volumeMounts:
            - {name: data, mountPath: /data}
            - {name: inner, mountPath: /data/inner}
            - {name: conf, mountPath: /etc/redis}
            - {name: tls, mountPath: /etc/tls}
            - {name: tmp, mountPath: /tmp}
      volumes:
        - {name: conf, configMap: {name: conf-1}}
        - {name: inner, emptyDir: {}}
        - {name: data, persistentVolumeClaim: {claimName: shared}}
        - {name: tls, secret: {secretName: tls, items: [{key: ca, path: ca.crt}]}}
        - {name: tmp, emptyDir: {}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: trainer}
spec:
  template:
    metadata: {labels: {app.kubernetes.io/name: trainer}}
    spec:
      terminationGracePeriodSeconds: 120
      initContainers:
        - name: first
          image: pageturn/agent
          command: [sh, -c, "test -s /data/x"]
          volumeMounts: [{name: data, mountPath: /data}]
      containers:
        - name: trainer
          image: pageturn/trainer:1
          args: [train, --store=$(STORE_URL), --metrics=0.0.0.0:9090, --host=0.0.0.0, --state=/data, --parallelism=4]
          env:
            - {name: STORE_URL, valueFrom: {configMapKeyRef: {name: endpoints-1, key: STORE_URL}}}
            - {name: PAGETURN_REDIS_PASSWORD, valueFrom: {secretKeyRef: {name: tls, key: word}}}
            - {name: PAGETURN_HEARTBEAT, value: /tmp/heartbeat}
          ports: [{name: metrics, containerPort: 9090}]
          volumeMounts: [{name: data, mountPath: /data}, {name: tls, mountPath: /etc/tls}, {name: tmp, mountPath: /tmp}]
      volumes:
        - {name: data, persistentVolumeClaim: {claimName: shared}}
        - {name: tls, secret: {secretName: tls}}
        - {name: tmp, emptyDir: {}}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: p}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: trainer}}
  jobLabel: app.kubernetes.io/name
  podMetricsEndpoints: [{port: metrics, interval: 15s}]
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: p}
spec: {groups: [{name: g, rules: [{alert: A, expr: "x > 7200", for: 10m}, {alert: B, expr: y, for: 1h}]}]}
"""
)
SECRETS = {"tls": {"ca": "CERTIFICATE", "word": "sesame"}}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, OBJECTS, SECRETS, {})


def of(name: str) -> Command:
    return next(c for c in commands(OBJECTS) if c.container["name"] == name)


def test_paths_addresses_and_ports_are_those_of_this_machine(place: Place, tmp_path: Path) -> None:
    redis, metrics = place.port(of("redis").pod, 6379), place.port(of("trainer").pod, 9090)
    store = f"rediss://127.0.0.1:{redis}/0?ssl_ca_certs={tmp_path}/pods/trainer/tls/ca.crt"
    assert place.words(of("trainer")) == [
        "train",
        f"--store={store}",
        f"--metrics=127.0.0.1:{metrics}",
        "--host=127.0.0.1",
        f"--state={tmp_path}/claims/shared",
        "--parallelism=4",
    ]
    assert place.environment(of("trainer")) == {
        "STORE_URL": store,
        "PAGETURN_REDIS_PASSWORD": "sesame",
        "PAGETURN_HEARTBEAT": f"{tmp_path}/pods/trainer/tmp/heartbeat",
        "TMPDIR": f"{tmp_path}/pods/trainer/tmp",
    }


def test_a_path_here_that_has_a_mounted_path_in_it_is_left_alone(tmp_path: Path) -> None:
    place = Place(tmp_path / "tmp" / "data", OBJECTS, SECRETS, {})
    assert place.here("/data/x /database /tmp", of("redis")) == (
        f"{tmp_path}/tmp/data/claims/shared/x /database {tmp_path}/tmp/data/pods/redis/tmp"
    )


def test_a_mount_inside_another_is_a_folder_of_its_own(place: Place, tmp_path: Path) -> None:
    there = f"{tmp_path}/claims/shared/x {tmp_path}/pods/redis/inner/x"
    assert place.here("/data/x /data/inner/x", of("redis")) == there


def test_volumes_hold_what_maps_and_secrets_say(place: Place, tmp_path: Path) -> None:
    for command in commands(OBJECTS):
        place.fill(command)
    own = tmp_path / "pods" / "redis"
    expected = f"dir {tmp_path}/claims/shared\naclfile {own}/tls/users.acl\n"
    assert (own / "conf" / "redis.conf").read_text() == expected
    assert {path.name: path.read_text() for path in (own / "tls").iterdir()} == {"ca.crt": "CERTIFICATE"}
    assert (own / "tls" / "ca.crt").stat().st_mode & 0o777 == 0o600


def test_processes_run_what_containers_run(place: Place, tmp_path: Path) -> None:
    by_name = {server.part.name: server for server in servers(OBJECTS, place, {"--parallelism": "1"})}
    trainer, redis = by_name["trainer"], by_name["redis"]
    assert list(trainer.part.command)[:3] == ["sh", "-c", f"sh -c 'test -s {tmp_path}/claims/shared/x' && exec \"$@\""]
    assert trainer.part.command[4:7] == [sys.executable, "-m", "pageturn"]
    assert trainer.part.command[-1] == "--parallelism=1"
    assert (trainer.part.grace_s, trainer.heartbeat) == (120.0, tmp_path / "pods" / "trainer" / "tmp" / "heartbeat")
    port = str(place.port(of("redis").pod, 6379))
    assert list(redis.part.command)[1:] == [
        f"{tmp_path}/pods/redis/conf/redis.conf", "--bind", "127.0.0.1", "--port", port, "--tls-port", port,
    ]  # fmt: skip
    assert not redis.is_up()


def test_what_is_not_up_has_left_no_sign_of_life(place: Place) -> None:
    trainer = next(server for server in servers(OBJECTS, place, {}) if server.part.name == "trainer")
    assert trainer.heartbeat is not None
    assert not trainer.is_up()
    trainer.heartbeat.parent.mkdir(parents=True)
    trainer.heartbeat.touch()
    assert trainer.is_up()


def test_only_what_an_alert_waits_is_shortened() -> None:
    [group] = yaml.safe_load(watching.rules(OBJECTS, 0.02))["groups"]
    assert group["rules"] == [
        {"alert": "A", "expr": "x > 7200", "for": "12000ms"},
        {"alert": "B", "expr": "y", "for": "72000ms"},
    ]
    assert watching.rules(OBJECTS, 1).count("for: 600000ms") == 1


def test_prometheus_looks_where_the_operator_would(place: Place) -> None:
    found = yaml.safe_load(watching.scraping(OBJECTS, place, 9093, 0.2))
    [job] = found["scrape_configs"]
    target = f"127.0.0.1:{place.port(of('trainer').pod, 9090)}"
    assert (job["job_name"], job["scrape_interval"], job["static_configs"]) == (
        "trainer",
        "3s",
        [{"targets": [target]}],
    )
    assert yaml.safe_load(watching.scraping(OBJECTS, place, 9093, 0.001))["global"]["evaluation_interval"] == "1s"


def test_routes_stay_and_nobody_is_called() -> None:
    text = "route: {receiver: a}\nreceivers: [{name: a, slack_configs: [{channel: c}]}, {name: b}]"
    assert yaml.safe_load(watching.routes(text)) == {
        "route": {"receiver": "a"},
        "receivers": [{"name": "a"}, {"name": "b"}],
    }


def test_topics_are_those_of_the_manifests_on_one_node() -> None:
    config = {"min.insync.replicas": 2, "cleanup.policy": "delete", "retention.ms": 5}
    topic = new_topic({"spec": {"topicName": "p.events", "partitions": 12, "replicas": 3, "config": config}})
    assert (topic.topic, topic.num_partitions, topic.replication_factor) == ("p.events", 12, 1)
    assert topic.config == {"cleanup.policy": "delete", "retention.ms": "5"}


def test_rights_are_those_of_the_manifests() -> None:
    resource = {"type": "topic", "name": "p.", "patternType": "prefix"}
    acls = [{"resource": resource, "operations": ["Read", "DescribeConfigs"]}]
    rights = list(rights_of({"metadata": {"name": "kafka-a"}, "spec": {"authorization": {"acls": acls}}}))
    assert [(r.principal, r.operation.name, r.resource_pattern_type.name, r.name) for r in rights] == [
        ("User:CN=kafka-a", "READ", "PREFIXED", "p."),
        ("User:CN=kafka-a", "DESCRIBE_CONFIGS", "PREFIXED", "p."),
    ]


def test_flinks_own_settings_hold_but_for_kubernetes_and_memory(place: Place, tmp_path: Path) -> None:
    given = {
        "kubernetes.operator.x": "y",
        "high-availability.type": "kubernetes",
        "taskmanager.memory.process.size": "2g",
        "taskmanager.numberOfTaskSlots": "1",
        "execution.checkpointing.dir": "file:///data/checkpoints",
    }
    deployment = {"kind": "FlinkDeployment", "metadata": {"name": "f"}, "spec": {"flinkConfiguration": given}}
    assert flink.settings([deployment], place, of("trainer")) == {
        "taskmanager.numberOfTaskSlots": "1",
        "execution.checkpointing.dir": f"file://{tmp_path}/claims/shared/checkpoints",
    }


def test_what_is_left_is_known_by_its_mark_and_ended(tmp_path: Path) -> None:
    env = {**os.environ, MARK: str(tmp_path)}
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=env)
    try:
        eventually(lambda: left(tmp_path) == [child.pid])
        assert left(tmp_path / "another") == []
        end(tmp_path)
        assert child.wait(250) == -9
    finally:
        child.kill()
        child.communicate()
    assert left(tmp_path) == []
