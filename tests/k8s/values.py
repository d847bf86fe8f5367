"""Values that have the right type and are wrong all the same: quantities, cron lines, labels, probes, times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from tests.k8s.manifests import Object, Objects, Pod, at, containers, of_kind, pods

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {"": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{prefix}i": 1024**power for power, prefix in enumerate("KMGT", 1)
}
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")


def check(objects: Objects) -> Iterator[str]:
    for rule in (_resources, _crons, _labels, _probes, _grace, _duplicates, _restarts, _strategies):
        yield from rule(objects)


def quantity(text: Any) -> Decimal | None:
    found = _QUANTITY.fullmatch(str(text))
    return Decimal(found[1]) * _UNITS[found[2] or ""] if found else None


def _resources(objects: Objects) -> Iterator[str]:
    for pod, container in containers(objects):
        if pod.kind == "FlinkDeployment":
            continue  # the operator fills them in from `resource`
        where = f"{pod.name}, {container['name']}"
        given = container.get("resources") or {}
        requests, limits = given.get("requests") or {}, given.get("limits") or {}
        for name in ("cpu", "memory"):
            asked, most = quantity(requests.get(name)), quantity(limits.get(name))
            if asked is None or most is None:
                found = f"{requests.get(name)}, {limits.get(name)}"
                yield f"{where}: expected a request and a limit of {name}, found {found}"
            elif asked > most:
                yield f"{where}: {name} request {requests[name]} is above its limit {limits[name]}"
    claims = [*of_kind(objects, "PersistentVolumeClaim")]
    claims += [claim for each in objects for claim in (each.get("spec") or {}).get("volumeClaimTemplates") or ()]
    for claim in claims:
        size = at(claim, ("spec", "resources", "requests", "storage"))
        if quantity(size) is None:
            yield f"claim {claim['metadata']['name']}: {size!r} is no quantity"


def _crons(objects: Objects) -> Iterator[str]:
    for job in of_kind(objects, "CronJob"):
        schedule = str(job["spec"].get("schedule")).split()
        ranges = zip(schedule, _CRON, strict=False)
        if len(schedule) != 5 or not all(_in_range(field, *bounds) for field, bounds in ranges):
            yield f"CronJob {job['metadata']['name']}: {job['spec'].get('schedule')!r} is no cron schedule"
        if job["spec"].get("concurrencyPolicy") != "Forbid":
            yield f"CronJob {job['metadata']['name']}: expected concurrencyPolicy Forbid"


def _in_range(field: str, low: int, high: int) -> bool:
    parts = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", field)
    return bool(parts) and all(low <= int(n) <= high for n in parts.groups()[:2] if n)  # type: ignore[union-attr]


def _labels(objects: Objects) -> Iterator[str]:
    places = [(each["kind"], each["metadata"].get("labels") or {}) for each in objects]
    places += [(pod.name, pod.labels) for pod in pods(objects)]
    for where, labels in places:
        for key, value in labels.items():
            if not isinstance(value, str) or not _LABEL.fullmatch(value):
                yield f"{where}: label {key} has the value {value!r}, which is none"


def _probes(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        if pod.kind not in ("Deployment", "StatefulSet"):
            continue
        for container in pod.spec["containers"]:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                handlers = [handler for handler in _HANDLERS if handler in (container.get(kind) or {})]
                if len(handlers) != 1:
                    yield f"{pod.name}, {container['name']}: expected one handler in its {kind}, found {handlers}"


def _grace(objects: Objects) -> Iterator[str]:
    """Of what a process has after SIGTERM, the wait before SIGTERM and its own drain have to leave something."""
    for pod in pods(objects):
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        for container in pod.spec.get("containers") or ():
            sleep = at(container, ("lifecycle", "preStop", "sleep", "seconds")) or 0
            drain = next((float(a[10:]) for a in container.get("args") or () if a.startswith("--drain-s=")), 0.0)
            waits = sleep + drain
            if waits >= grace:
                yield f"{pod.name}: a grace of {grace} s is over before {container['name']} has waited {waits} s"


def _duplicates(objects: Objects) -> Iterator[str]:
    ids = [(each["apiVersion"].partition("/")[0], each["kind"], each["metadata"]["name"]) for each in objects]
    for twice in {i for i in ids if ids.count(i) > 1}:
        yield f"{twice[1]} {twice[2]}: is there twice"
    for pod in pods(objects):
        found = [container["name"] for container in pod.containers]
        for name in {n for n in found if found.count(n) > 1}:
            yield f"{pod.name}: has two containers {name}"
        for container in pod.containers:
            yield from _repeated(pod, container)


def _repeated(pod: Pod, container: Object) -> Iterator[str]:
    lists = {"variable": ("env", "name"), "mount at": ("volumeMounts", "mountPath"), "port": ("ports", "name")}
    for what, (field, key) in lists.items():
        found = [entry[key] for entry in container.get(field) or ()]
        for name in {n for n in found if found.count(n) > 1}:
            yield f"{pod.name}, {container['name']}: {what} {name} is there twice"


def _restarts(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        policy = pod.spec.get("restartPolicy", "Always")
        if (policy != "Always") != (pod.kind in ("Job", "CronJob")):
            yield f"{pod.name}: restartPolicy {policy} is not for it"


def _strategies(objects: Objects) -> Iterator[str]:
    for deployment in of_kind(objects, "Deployment"):
        strategy = deployment["spec"].get("strategy") or {}
        if strategy.get("type") == "Recreate" and "rollingUpdate" in strategy:
            yield f"Deployment {deployment['metadata']['name']}: Recreate takes no rollingUpdate"
