"""Names that one object has of another. Neither a schema nor an API server looks whether they lead anywhere."""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.manifests import Object, Objects, Pod, at, containers, matches, named, names, of_kind, pods
from tests.k8s.secrets import secret_keys

_WORKLOADS = ("Deployment", "StatefulSet")


def check(objects: Objects) -> Iterator[str]:
    for rule in (_selectors, _ports, _volumes, _variables, _accounts, _scalers, _monitors, _clusters, _budgets):
        yield from rule(objects)


def _selectors(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        if pod.kind in _WORKLOADS and not matches(pod.owner["spec"].get("selector"), pod.labels):
            yield f"{pod.name}: its selector does not select its own pods {dict(pod.labels)}"
    for each in of_kind(objects, "Service"):
        if not _selected(objects, {"matchLabels": each["spec"].get("selector") or {}}):
            yield f"Service {each['metadata']['name']}: selects no pod"
    for each in of_kind(objects, "PodDisruptionBudget"):
        if not _selected(objects, each["spec"].get("selector")):
            yield f"PodDisruptionBudget {each['metadata']['name']}: selects no pod"
    for pod in pods(objects):
        for spread in pod.spec.get("topologySpreadConstraints") or ():
            if not matches(spread.get("labelSelector"), pod.labels):
                yield f"{pod.name}: spreads over pods that are not its own"


def _selected(objects: Objects, selector: Object | None) -> list[Pod]:
    return [pod for pod in pods(objects) if matches(selector, pod.labels)]


def port_names(pod: Pod) -> set[str]:
    return {port["name"] for container in pod.containers for port in container.get("ports") or ()}


def _ports(objects: Objects) -> Iterator[str]:
    for service in of_kind(objects, "Service"):
        for pod in _selected(objects, {"matchLabels": service["spec"].get("selector") or {}}):
            for port in service["spec"].get("ports") or ():
                if port.get("targetPort") not in port_names(pod):
                    yield f"Service {service['metadata']['name']}: {pod.name} has no port {port.get('targetPort')!r}"
    for pod, container in containers(objects):
        numbers = {port["containerPort"] for port in container.get("ports") or ()}
        own = {port["name"] for port in container.get("ports") or ()} | numbers
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            for handler in ("httpGet", "tcpSocket", "grpc"):
                port = at(container, (kind, handler, "port"))
                if port is not None and port not in own:
                    yield f"{pod.name}, {container['name']}: no port {port!r} for its {kind}"


def _volumes(objects: Objects) -> Iterator[str]:
    for pod, container in containers(objects):
        for mount in container.get("volumeMounts") or ():
            if mount["name"] not in pod.volumes:
                yield f"{pod.name}, {container['name']}: mounts {mount['name']!r}, which is no volume"
    for pod in pods(objects):
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts") or ()}
        for name, volume in pod.volumes.items():
            if name not in mounted:
                yield f"{pod.name}: nobody mounts volume {name!r}"
            yield from _source(pod, volume, objects)
        service = pod.owner["spec"].get("serviceName")
        if pod.kind == "StatefulSet" and service not in names(objects, "Service"):
            yield f"{pod.name}: no Service {service!r}"


def _source(pod: Pod, volume: Object, objects: Objects) -> Iterator[str]:
    for source in (volume, *(at(volume, ("projected", "sources")) or ())):
        if "configMap" in source:
            yield from _map(pod, objects, source["configMap"]["name"], source["configMap"].get("items"))
        if "secret" in source:
            secret = source["secret"].get("secretName") or source["secret"].get("name")
            yield from _secret(pod, objects, secret, [item["key"] for item in source["secret"].get("items") or ()])
    claim = at(volume, ("persistentVolumeClaim", "claimName"))
    if claim is not None and claim not in names(objects, "PersistentVolumeClaim"):
        yield f"{pod.name}: no PersistentVolumeClaim {claim!r}"


def _map(pod: Pod, objects: Objects, name: str, items: list[Object] | None = None) -> Iterator[str]:
    if name not in names(objects, "ConfigMap"):
        yield f"{pod.name}: no ConfigMap {name!r}"
        return
    data = named(objects, "ConfigMap", name)["data"]
    for item in items or ():
        if item["key"] not in data:
            yield f"{pod.name}: ConfigMap {name} has no {item['key']!r}"


def _secret(pod: Pod, objects: Objects, name: str, keys: list[str]) -> Iterator[str]:
    there = secret_keys(objects).get(name)
    if there is None:
        yield f"{pod.name}: nobody makes a Secret {name!r}"
        return
    for key in set(keys) - there:
        yield f"{pod.name}: Secret {name} has no {key!r}"


def _variables(objects: Objects) -> Iterator[str]:
    for pod, container in containers(objects):
        for variable in container.get("env") or ():
            source = variable.get("valueFrom") or {}
            if "configMapKeyRef" in source:
                yield from _map(pod, objects, source["configMapKeyRef"]["name"], [source["configMapKeyRef"]])
            if "secretKeyRef" in source:
                yield from _secret(pod, objects, source["secretKeyRef"]["name"], [source["secretKeyRef"]["key"]])
        for source in container.get("envFrom") or ():
            yield from _map(pod, objects, source["configMapRef"]["name"])


def _accounts(objects: Objects) -> Iterator[str]:
    there = names(objects, "ServiceAccount")
    for pod in pods(objects):
        account = pod.spec.get("serviceAccountName") or pod.owner["spec"].get("serviceAccount")
        if account not in there:
            yield f"{pod.name}: no ServiceAccount {account!r}"
    for binding in of_kind(objects, "RoleBinding"):
        where = f"RoleBinding {binding['metadata']['name']}"
        if binding["roleRef"]["name"] not in names(objects, binding["roleRef"]["kind"]):
            yield f"{where}: no {binding['roleRef']['kind']} {binding['roleRef']['name']!r}"
        for subject in binding["subjects"]:
            if subject["name"] not in there:
                yield f"{where}: no ServiceAccount {subject['name']!r}"


def _scalers(objects: Objects) -> Iterator[str]:
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        where = f"HorizontalPodAutoscaler {scaler['metadata']['name']}"
        if target["name"] not in names(objects, target["kind"]):
            yield f"{where}: no {target['kind']} {target['name']!r}"
        elif "replicas" in named(objects, target["kind"], target["name"])["spec"]:
            yield f"{where}: {target['name']} has replicas of its own, which every apply would set again"


def _monitors(objects: Objects) -> Iterator[str]:
    for monitor in of_kind(objects, "ServiceMonitor"):
        where = f"ServiceMonitor {monitor['metadata']['name']}"
        found = [
            service
            for service in of_kind(objects, "Service")
            if matches(monitor["spec"]["selector"], service["metadata"].get("labels") or {})
        ]
        if not found:
            yield f"{where}: selects no Service"
        for endpoint in monitor["spec"]["endpoints"]:
            for service in found:
                if endpoint["port"] not in {port["name"] for port in service["spec"].get("ports") or ()}:
                    yield f"{where}: Service {service['metadata']['name']} has no port {endpoint['port']!r}"
    for monitor in of_kind(objects, "PodMonitor"):
        chosen = _selected(objects, monitor["spec"]["selector"])
        if not chosen:
            yield f"PodMonitor {monitor['metadata']['name']}: selects no pod"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for pod in chosen:
                if endpoint["port"] not in port_names(pod):
                    yield f"PodMonitor {monitor['metadata']['name']}: {pod.name} has no port {endpoint['port']!r}"


def _clusters(objects: Objects) -> Iterator[str]:
    there = names(objects, "Kafka")
    for each in of_kind(objects, "KafkaTopic", "KafkaUser", "KafkaNodePool"):
        cluster = (each["metadata"].get("labels") or {}).get("strimzi.io/cluster")
        if cluster not in there:
            yield f"{each['kind']} {each['metadata']['name']}: no Kafka {cluster!r}"


def _budgets(objects: Objects) -> Iterator[str]:
    """What answers requests has one; what is alone must have none, or no node could be drained."""
    budgets = of_kind(objects, "PodDisruptionBudget")
    for pod in pods(objects):
        covered = [b for b in budgets if matches(b["spec"].get("selector"), pod.labels)]
        if pod.kind == "Deployment" and pod.owner["spec"].get("strategy", {}).get("type") != "Recreate" and not covered:
            yield f"{pod.name}: expected a PodDisruptionBudget"
        if pod.kind == "StatefulSet" and pod.owner["spec"].get("replicas") == 1 and covered:
            yield f"{pod.name}: a PodDisruptionBudget of a single pod keeps nodes from being drained"
