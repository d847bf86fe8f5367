"""Pod Security `restricted`, and the habits that go beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import Object, Objects, Pod, at, containers, of_kind, pods

_VOLUMES = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "claimTemplate", "name"}
_SECRET_NAMES = ("PASSWORD", "TOKEN", "SECRET", "CREDENTIAL", "AUTH")
_LEVELS = ("enforce", "warn", "audit")


def check(objects: Objects) -> Iterator[str]:
    yield from _namespaces(objects)
    for pod in pods(objects):
        yield from _pod(pod)
        yield from _token(pod, objects)
    for pod, container in containers(objects):
        where = f"{pod.name}, {container['name']}"
        yield from _container(where, container)
        if pod.kind != "FlinkDeployment":  # Flink writes its configuration beside its program
            if at(container, ("securityContext", "readOnlyRootFilesystem")) is not True:
                yield f"{where}: expected a read-only root file system"
            yield from _image(where, container.get("image"))
    for flink in of_kind(objects, "FlinkDeployment"):
        yield from _image(f"FlinkDeployment {flink['metadata']['name']}", flink["spec"].get("image"))
    for secret in of_kind(objects, "Secret"):
        yield f"Secret {secret['metadata']['name']}: secrets are not kept with the manifests"


def _namespaces(objects: Objects) -> Iterator[str]:
    [namespace] = of_kind(objects, "Namespace")
    labels = namespace["metadata"].get("labels") or {}
    for level in _LEVELS:
        if labels.get(f"pod-security.kubernetes.io/{level}") != "restricted":
            yield f"Namespace {namespace['metadata']['name']}: expected pod-security.kubernetes.io/{level}: restricted"
    for each in objects:
        if each["kind"] != "Namespace" and each["metadata"].get("namespace") != namespace["metadata"]["name"]:
            yield f"{each['kind']} {each['metadata']['name']}: is not in namespace {namespace['metadata']['name']}"


def _pod(pod: Pod) -> Iterator[str]:
    context = pod.spec.get("securityContext") or {}
    wanted: dict[str, Any] = {"runAsNonRoot": True}
    for key, value in wanted.items():
        if context.get(key) != value:
            yield f"{pod.name}: expected securityContext.{key}: {value}"
    if at(context, ("seccompProfile", "type")) != "RuntimeDefault":
        yield f"{pod.name}: expected the seccomp profile RuntimeDefault"
    if not context.get("runAsUser"):
        yield f"{pod.name}: expected a runAsUser other than 0, found {context.get('runAsUser')}"
    for host in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(host):
            yield f"{pod.name}: {host}"
    for name, volume in pod.volumes.items():
        if not set(volume) <= _VOLUMES:
            yield f"{pod.name}: volume {name} is {sorted(set(volume) - {'name'})}, which `restricted` does not allow"
    if pod.spec.get("enableServiceLinks") is not False:
        yield f"{pod.name}: expected enableServiceLinks: false, or services set variables that are options of ours"


def _token(pod: Pod, objects: Objects) -> Iterator[str]:
    """Only who has a role needs a token."""
    account = pod.spec.get("serviceAccountName") or pod.owner["spec"].get("serviceAccount")
    bound = {s["name"] for binding in of_kind(objects, "RoleBinding") for s in binding["subjects"]}
    if pod.spec.get("automountServiceAccountToken") is not False and account not in bound:
        yield f"{pod.name}: expected automountServiceAccountToken: false"


def _container(where: str, container: Object) -> Iterator[str]:
    context = container.get("securityContext") or {}
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield f"{where}: expected allowPrivilegeEscalation: false and no privileges"
    if at(context, ("capabilities", "drop")) != ["ALL"] or at(context, ("capabilities", "add")):
        yield f"{where}: expected all capabilities dropped and none added"
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield f"{where}: runs as root"
    if any(port.get("hostPort") for port in container.get("ports") or ()):
        yield f"{where}: takes a port of its host"
    for variable in container.get("env") or ():
        secret = any(word in variable["name"].upper() for word in _SECRET_NAMES)
        if secret and "value" in variable:
            yield f"{where}: {variable['name']} is written down; expected a reference to a Secret"


def _image(where: str, image: str | None) -> Iterator[str]:
    tag = (image or "").rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in (image or "") and tag in ("", "latest"):
        yield f"{where}: image {image} is not pinned"
