"""Mistakes, one line each: where, what, and what a check has to say of it."""

# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.k8s.manifests import Object, Objects, copied

DROP = object()
Edit = Callable[[Any], Any]


class Mutation(NamedTuple):
    says: str  # a pattern of the problem that has to be found
    target: str  # Kind/name; name* for one that ends in a hash
    path: str  # a JSON pointer into it; "" for the object itself
    value: Any  # instead of what is there: a value, DROP, or a function of what is there
    overlay: str = "prod"


def applied(mutation: Mutation, objects: Objects) -> tuple[list[Object], Object]:
    """A copy with the mistake in it, and the object that has it."""
    changed = copied(objects)
    kind, _, name = mutation.target.partition("/")
    [target] = [each for each in changed if each["kind"] == kind and _is(each["metadata"]["name"], name)]
    if not mutation.path:
        changed.remove(target)
        return changed, target
    *steps, last = [_step(step) for step in mutation.path.split("/")[1:]]
    place: Any = target
    for step in steps:
        place = place[step]
    before = place[last] if not isinstance(place, dict) or last in place else None
    if mutation.value is DROP:
        del place[last]
    else:
        place[last] = mutation.value(before) if callable(mutation.value) else mutation.value
        assert place[last] != before, mutation
    return changed, target


def _is(name: str, wanted: str) -> bool:
    return name.rpartition("-")[0] == wanted[:-1] if wanted.endswith("*") else name == wanted


def _step(text: str) -> str | int:
    return int(text) if text.isdecimal() else text.replace("~1", "/")


def swap(old: str, new: str) -> Edit:
    """In a text, or in the one entry of a list that has it."""

    def edit(value: Any) -> Any:
        if isinstance(value, str):
            assert old in value, (old, value)
            return value.replace(old, new)
        assert sum(old in entry for entry in value) == 1, (old, value)
        return [entry.replace(old, new) for entry in value]

    return edit


def plus(*entries: Any) -> Edit:
    return lambda value: [*(value or ()), *entries]


def less(name: str) -> Edit:
    """A list without its entry of this name (of a mapping), or with this text in it."""

    def edit(value: list[Any]) -> list[Any]:
        left = [
            entry for entry in value if name not in (entry, entry.get("name") if isinstance(entry, dict) else entry)
        ]
        assert len(left) == len(value) - 1, (name, value)
        return left

    return edit


_SPEC = "/spec/template/spec"
_FIRST = f"{_SPEC}/containers/0"
AGENT, SERVING, REDIS = "Deployment/agent", "Deployment/tf-serving", "StatefulSet/redis"
CONTROLLER, TRAINER, STREAM = "Deployment/version-controller", "StatefulSet/trainer", "StatefulSet/stream"
BACKUP, VECTORS = "CronJob/redis-backup", "CronJob/item-vectors"
_JOB = "/spec/jobTemplate/spec/template/spec/containers/0"
FLINK = "FlinkDeployment/stream-flink"

# Schemas of Kubernetes and of the operators.
SCHEMA = (
    Mutation("terminationGracePeriodSecond", AGENT, f"{_SPEC}/terminationGracePeriodSecond", 30),
    Mutation("readinesProbe", AGENT, f"{_FIRST}/readinesProbe", {"grpc": {"port": 8600}}),
    Mutation("replicas: '2' is not", REDIS, "/spec/replicas", "2"),
    Mutation("env.*is not", BACKUP, "/spec/jobTemplate/spec/template/spec/containers/0/env/1/value", 6379),
    Mutation("no such kind in apps/v1beta9", AGENT, "/apiVersion", "apps/v1beta9"),
    Mutation("no such kind in apps/v1", CONTROLLER, "/kind", "Deploymnet"),
    Mutation("'apps.example.com/v1' is not one of", TRAINER, "/apiVersion", "apps.example.com/v1"),
    Mutation("restartPolicy", BACKUP, "/spec/jobTemplate/spec/template/spec/restartPolicy", 1),
)
CUSTOM = (
    Mutation("jobManger", FLINK, "/spec/jobManger", {}, "prod-flink"),
    Mutation("v1_99", FLINK, "/spec/flinkVersion", "v1_99", "prod-flink"),
    Mutation("partitions: '12' is not", "KafkaTopic/pageturn.events", "/spec/partitions", "12"),
    Mutation("no schema of kafka.strimzi.io/v1beta2", "KafkaUser/kafka-agent", "/apiVersion", "kafka.strimzi.io/v1beta2"),
    Mutation("roles", "KafkaNodePool/brokers", "/spec/roles", ["brokers"]),
    Mutation("pth", "ServiceMonitor/tf-serving", "/spec/endpoints/0/pth", "/metrics"),
)
# What names what.
REFERENCES = (
    Mutation("does not select its own", AGENT, "/spec/selector/matchLabels", {"app.kubernetes.io/name": "agents"}),
    Mutation("Service agent: selects no pod", "Service/agent", "/spec/selector", {"app": "agent"}),
    Mutation("PodDisruptionBudget agent: selects", "PodDisruptionBudget/agent", "/spec/selector/matchLabels", {"a": "b"}),
    Mutation("expected a PodDisruptionBudget", "PodDisruptionBudget/tf-serving", "", DROP),
    Mutation("has no port 'http'", "Service/tf-serving", "/spec/ports/0/targetPort", "http"),
    Mutation("no port 'http' for its readinessProbe", SERVING, f"{_FIRST}/readinessProbe/httpGet/port", "http"),
    Mutation("no port 8601 for its livenessProbe", AGENT, f"{_FIRST}/livenessProbe/grpc/port", 8601),
    Mutation("no ConfigMap 'tf-config'", SERVING, f"{_SPEC}/volumes/1/configMap/name", "tf-config"),
    Mutation("ConfigMap endpoints-.* has no 'LOG'", AGENT, f"{_FIRST}/env/0/valueFrom/configMapKeyRef/key", "LOG"),
    Mutation("no ConfigMap 'kafka'", STREAM, f"{_FIRST}/envFrom/0/configMapRef/name", "kafka"),
    Mutation("nobody makes a Secret 'redis'", AGENT, f"{_FIRST}/env/3/valueFrom/secretKeyRef/name", "redis"),
    Mutation("Secret redis-users has no 'agents'", AGENT, f"{_FIRST}/env/3/valueFrom/secretKeyRef/key", "agents"),
    Mutation("no PersistentVolumeClaim 'model'", SERVING, f"{_SPEC}/volumes/0/persistentVolumeClaim/claimName", "model"),
    Mutation("mounts 'stat', which is no volume", TRAINER, f"{_FIRST}/volumeMounts/1/name", "stat"),
    Mutation("nobody mounts volume 'spare'", AGENT, f"{_SPEC}/volumes", plus({"name": "spare", "emptyDir": {}})),
    Mutation("no Service 'rediss'", REDIS, "/spec/serviceName", "rediss"),
    Mutation("no ServiceAccount 'agents'", AGENT, f"{_SPEC}/serviceAccountName", "agents"),
    Mutation("no Deployment 'agents'", "HorizontalPodAutoscaler/agent", "/spec/scaleTargetRef/name", "agents"),
    Mutation("replicas of its own", AGENT, "/spec/replicas", 3),
    Mutation("ServiceMonitor tf-serving: selects no", "ServiceMonitor/tf-serving", "/spec/selector/matchLabels", {"a": "b"}),
    Mutation("has no port 'http'", "ServiceMonitor/tf-serving", "/spec/endpoints/0/port", "http"),
    Mutation("PodMonitor pageturn: StatefulSet stream has no port 'http'", "PodMonitor/pageturn", "/spec/podMetricsEndpoints/0/port", "http"),
    Mutation("PodMonitor pageturn: selects no", "PodMonitor/pageturn", "/spec/selector", {"matchLabels": {"a": "b"}}),
    Mutation("KafkaTopic pageturn.late: no Kafka None", "KafkaTopic/pageturn.late", "/metadata/labels", {}),
    Mutation("no ServiceAccount 'flinks'", FLINK, "/spec/serviceAccount", "flinks", "prod-flink"),
    Mutation("no PersistentVolumeClaim 'stream-state'", "PersistentVolumeClaim/stream-state", "", DROP, "prod-flink"),
    Mutation("no Role 'flinks'", "RoleBinding/flink", "/roleRef/name", "flinks", "prod-flink"),
)
# Values of the right type.
VALUES = (
    Mutation("expected a request and a limit of memory", AGENT, f"{_FIRST}/resources/limits/memory", "2GB"),
    Mutation("cpu request 4 is above its limit 2", AGENT, f"{_FIRST}/resources/requests/cpu", "4"),
    Mutation("expected a request and a limit of cpu", CONTROLLER, f"{_FIRST}/resources", DROP),
    Mutation("'20G[B]' is no quantity", "PersistentVolumeClaim/models", "/spec/resources/requests/storage", "20GB"),
    Mutation("is no cron schedule", BACKUP, "/spec/schedule", "61 * * * *"),
    Mutation("expected concurrencyPolicy Forbid", BACKUP, "/spec/concurrencyPolicy", "Allow"),
    Mutation("label team has the value", AGENT, "/metadata/labels/team", "feed & search"),
    Mutation(r"expected one handler .* \['exec', 'tcpSocket'\]", REDIS, f"{_FIRST}/readinessProbe/tcpSocket", {"port": 6379}),
    Mutation("expected one handler in its livenessProbe", STREAM, f"{_FIRST}/livenessProbe", DROP),
    Mutation("a grace of 10 s is over", AGENT, f"{_SPEC}/terminationGracePeriodSeconds", 10),
    Mutation("a grace of 20 s is over", SERVING, f"{_FIRST}/lifecycle/preStop/sleep/seconds", 25),
    Mutation("variable LOG_URL is there twice", AGENT, f"{_FIRST}/env", plus({"name": "LOG_URL", "value": "x"})),
    Mutation("has two containers baselines", TRAINER, f"{_FIRST}/name", "baselines"),
    Mutation("restartPolicy Always is not", BACKUP, "/spec/jobTemplate/spec/template/spec/restartPolicy", "Always"),
    Mutation("Recreate takes no rollingUpdate", CONTROLLER, "/spec/strategy/rollingUpdate", {"maxSurge": 1}),
)
# Pod Security, and habits beyond it.
HARDENING = (
    Mutation("no privileges", AGENT, f"{_FIRST}/securityContext/privileged", True),
    Mutation("allowPrivilegeEscalation: false", REDIS, f"{_FIRST}/securityContext/allowPrivilegeEscalation", DROP),
    Mutation("runAsNonRoot: True", SERVING, f"{_SPEC}/securityContext/runAsNonRoot", DROP),
    Mutation("runAsUser other than 0", STREAM, f"{_SPEC}/securityContext/runAsUser", 0),
    Mutation("all capabilities dropped", TRAINER, f"{_FIRST}/securityContext/capabilities", {"add": ["NET_ADMIN"]}),
    Mutation("seccomp profile", AGENT, f"{_SPEC}/securityContext/seccompProfile", DROP),
    Mutation("hostNetwork", AGENT, f"{_SPEC}/hostNetwork", True),
    Mutation(r"volume config is \['hostPath'\]", SERVING, f"{_SPEC}/volumes/1", {"name": "config", "hostPath": {}}),
    Mutation("read-only root", CONTROLLER, f"{_FIRST}/securityContext/readOnlyRootFilesystem", False),
    Mutation("automountServiceAccountToken: false", STREAM, f"{_SPEC}/automountServiceAccountToken", True),
    Mutation("enableServiceLinks: false", AGENT, f"{_SPEC}/enableServiceLinks", DROP),
    Mutation("REDIS_PASSWORD is written down", AGENT, f"{_FIRST}/env/3", {"name": "REDIS_PASSWORD", "value": "hunter2"}),
    Mutation("agent:latest is not pinned", AGENT, f"{_FIRST}/image", "pageturn/agent:latest"),
    Mutation("image pageturn/flink is not pinned", FLINK, "/spec/image", "pageturn/flink", "prod-flink"),
    Mutation("enforce: restricted", "Namespace/pageturn", "/metadata/labels/pod-security.kubernetes.io~1enforce", "baseline"),
    Mutation("is not in namespace pageturn", "Service/agent", "/metadata/namespace", "default"),
)
# Who may call whom.
NETWORK = (
    Mutation("NetworkPolicy to-redis: .* no port 'resp'", "NetworkPolicy/to-redis", "/spec/ingress/0/ports/0/port", "resp"),
    Mutation("selects every pod and allows nothing", "NetworkPolicy/default-deny", "", DROP),
    Mutation("Deployment agent to redis:6379: no .* in", "NetworkPolicy/to-redis", "", DROP),
    Mutation("agent to tf-serving-grpc:8500: no .* out", "NetworkPolicy/clients-of-tf-serving", "", DROP),
    Mutation("to redis:6379: no .* out", "NetworkPolicy/clients-of-redis", "/spec/egress/0/ports/0/port", 6380),
    Mutation("to events-kafka-bootstrap:9093: no .* out", "NetworkPolicy/clients-of-kafka", "", DROP),
    Mutation("is no peer of the listener", "Kafka/events", "/spec/kafka/listeners/0/networkPolicyPeers", []),
    Mutation("to stream-flink-rest:8081: no .* in", "NetworkPolicy/of-flink", "/spec/ingress/1", DROP, "prod-flink"),
    Mutation("to tf-serving:8500: there is no such service", AGENT, f"{_FIRST}/args", swap("tf-serving-grpc", "tf-serving")),
    Mutation("bootstrap:9092: there is no such", "ConfigMap/endpoints*", "/data/LOG_URL", swap("9093", "9092")),
)
# What our programs take.
CONTRACT = (
    Mutation("No such option '--hosts'", AGENT, f"{_FIRST}/args", swap("--host=", "--hosts=")),
    Mutation("No such command 'serve'", CONTROLLER, f"{_FIRST}/args/0", "serve"),
    Mutation("Missing option '--state'", TRAINER, f"{_FIRST}/args", less("--state=/state")),
    Mutation("Invalid value for '--port'", AGENT, f"{_FIRST}/args", swap("--port=8600", "--port=grpc")),
    Mutation("expected HOST:PORT", CONTROLLER, f"{_FIRST}/args", swap("dns:///tf-serving-grpc:8500", "tf-serving-grpc")),
    Mutation("nobody reads PAGETURN_HEARTBEATS", STREAM, f"{_FIRST}/env/1/name", "PAGETURN_HEARTBEATS"),
    Mutation("do not look at its PAGETURN_HEARTBEAT", TRAINER, f"{_FIRST}/env/4/value", "/tmp/beat"),
    Mutation("nobody reads PAGETURN_AGENT_PORT", AGENT, f"{_FIRST}/env", plus({"name": "PAGETURN_AGENT_PORT", "value": "tcp://x"})),
    Mutation("found securty.protocol", "ConfigMap/kafka-client*", "/data/PAGETURN_KAFKA_SECURTY_PROTOCOL", "SSL"),
    Mutation("ssl.ca.location is /etc/ca.crt, where", "ConfigMap/kafka-client*", "/data/PAGETURN_KAFKA_SSL_CA_LOCATION", "/etc/ca.crt"),
    Mutation("expected --metrics=0.0.0.0:9090", STREAM, f"{_FIRST}/args", swap("0.0.0.0:", "127.0.0.1:")),
    Mutation("a user or password in it", "ConfigMap/endpoints*", "/data/LOG_URL", swap("//", "//agent:hunter2@")),
    Mutation("--store=.*ssl_ca", "ConfigMap/endpoints*", "/data/STORE_URL", swap("ssl_ca_certs", "ssl_ca_crts")),
    Mutation("--state is /states, where nothing", STREAM, f"{_FIRST}/args", swap("--state=/state", "--state=/states")),
    Mutation("--models is /models, where nothing", CONTROLLER, f"{_FIRST}/volumeMounts/2/readOnly", True, "dev"),
    Mutation("--config=.*nothing is mounted", AGENT, f"{_FIRST}/args", swap("/etc/pageturn/", "/etc/")),
    Mutation("kv_prefix", "ConfigMap/feature-config*", "/data/feature_config.yaml", swap("kv_prefix:", "kv_prefx:")),
    Mutation("expected --num_load_threads=2", SERVING, f"{_FIRST}/args", swap("--num_load_threads=2", "--num_load_threads=0")),
    Mutation("unknown.*model_config_fil|--model_config_fil", SERVING, f"{_FIRST}/args", swap("--model_config_file=", "--model_config_fil=")),
    Mutation("the CPUs of its limit", SERVING, f"{_FIRST}/resources/limits/cpu", "8"),
    Mutation("runs /usr/bin/tensorflow_model_server itself", SERVING, f"{_FIRST}/command", ["/usr/bin/tf_serving_entrypoint.sh"]),
    Mutation("startupProbe: expected /v1/models/NAME", SERVING, f"{_FIRST}/startupProbe/httpGet/path", swap("_a/", "_z/")),
    Mutation("readinessProbe: expected .*/metadata", SERVING, f"{_FIRST}/readinessProbe/httpGet/path", swap("/metadata", "")),
    Mutation("claim models here, and staging at", SERVING, f"{_SPEC}/volumes/0/persistentVolumeClaim/claimName", "staging"),
    Mutation("topic pageturn.episodes: is missing", "KafkaTopic/pageturn.episodes", "", DROP),
    Mutation("topic pageturn.page: is none of ours", "KafkaTopic/pageturn.samples", "/spec/topicName", "pageturn.page"),
    Mutation("expected message.timestamp.type", "KafkaTopic/pageturn.events", "/spec/config/message.timestamp.type", "CreateTime"),
    Mutation("max.message.bytes of 16777216", "KafkaTopic/pageturn.samples", "/spec/config/max.message.bytes", 1048576),
    Mutation("3 replicas on 2 brokers", "KafkaNodePool/brokers", "/spec/replicas", 2),
    Mutation("one number of partitions everywhere", STREAM, f"{_FIRST}/args", swap("partitions=12", "partitions=6")),
    Mutation("No such option '--missing'", VECTORS, f"{_JOB}/args", swap("--if-missing", "--missing")),
    Mutation("No such command 'fill'", VECTORS, f"{_JOB}/args/1", "fill"),
    Mutation("--table=shops is no external table", VECTORS, f"{_JOB}/args", swap("--table=shop", "--table=shops")),
    Mutation("shop.parquet is where nothing is mounted", VECTORS, f"{_JOB}/args", swap("/item-vectors/", "/vectors/")),
    Mutation("redis-tls/ca.crt is where nothing", VECTORS, f"{_JOB}/volumeMounts", less("redis-tls")),
    Mutation(r"is agent with the password of \['controller'\]", AGENT, f"{_FIRST}/env/3/valueFrom/secretKeyRef/key", "controller"),
    Mutation("expected the certificate of kafka-stream", STREAM, f"{_SPEC}/volumes/0/projected/sources/1/secret/name", "kafka-agent"),
)
