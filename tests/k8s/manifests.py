"""What was rendered, as objects; and what pods there are in it, whoever makes them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

Object = dict[str, Any]
Objects = Sequence[Object]

# Where the template of a pod is, by kind.
_TEMPLATES = {
    "Deployment": (("spec", "template"),),
    "StatefulSet": (("spec", "template"),),
    "Job": (("spec", "template"),),
    "CronJob": (("spec", "jobTemplate", "spec", "template"),),
    "FlinkDeployment": (("spec", "jobManager", "podTemplate"), ("spec", "taskManager", "podTemplate")),
}


class Pod(NamedTuple):
    owner: Object
    template: Object

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def kind(self) -> str:
        return str(self.owner["kind"])

    @property
    def spec(self) -> Object:
        return self.template.get("spec") or {}

    @property
    def labels(self) -> Mapping[str, str]:
        return (self.template.get("metadata") or {}).get("labels") or {}

    @property
    def containers(self) -> list[Object]:
        return [*(self.spec.get("initContainers") or ()), *(self.spec.get("containers") or ())]

    @property
    def volumes(self) -> dict[str, Object]:
        """With those of claim templates, which pods mount by their name."""
        found = {volume["name"]: volume for volume in self.spec.get("volumes") or ()}
        for claim in self.owner["spec"].get("volumeClaimTemplates") or ():
            found[claim["metadata"]["name"]] = {"name": claim["metadata"]["name"], "claimTemplate": claim}
        return found


class _Loader(yaml.CSafeLoader):
    """YAML 1.1, as Kubernetes reads it; duplicate keys are refused, of which PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(keys) != len(set(keys)):
            message = f"found a key twice: {sorted({key for key in keys if keys.count(key) > 1})}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return super().construct_mapping(node, deep)


def load(text: str) -> list[Object]:
    """YAMLError for what is none."""
    return [document for document in yaml.load_all(text, _Loader) if document]


def pods(objects: Objects) -> Iterator[Pod]:
    for each in objects:
        for path in _TEMPLATES.get(each["kind"], ()):
            template = at(each, path)
            if template is not None:
                yield Pod(each, template)


def containers(objects: Objects) -> Iterator[tuple[Pod, Object]]:
    for pod in pods(objects):
        for container in pod.containers:
            yield pod, container


def of_kind(objects: Objects, *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: Objects, kind: str, name: str) -> Object:
    """The object itself: to be looked at, or to be changed. KeyError where it is not there."""
    for each in objects:
        if each["kind"] == kind and each["metadata"]["name"] == name:
            return each
    message = f"{kind} {name}"
    raise KeyError(message)


def names(objects: Objects, kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in of_kind(objects, kind)}


def generated(objects: Objects, base: str) -> Object:
    """The ConfigMap that was generated with this name, whatever hash it ends in."""
    [found] = [m for m in of_kind(objects, "ConfigMap") if m["metadata"]["name"].rpartition("-")[0] == base]
    return found


def at(value: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """A label selector; an empty one selects everything, none nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions") or ())


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values") or ()
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[operator]


def copied(objects: Objects) -> list[Object]:
    return copy.deepcopy(list(objects))
