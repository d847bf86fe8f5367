"""From a ModelServerConfig and the folders on disk to the versions that are wanted. Texts are TF-Serving's.

Source: tensorflow/serving server_core.cc, file_system_storage_path_source.cc.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc

from pipeline.serving.standin.manager import Report, State
from pipeline.serving.standin.status import StatusError, invalid

_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")
_PLATFORM = "tensorflow"
_OLD_PLATFORMS = {1: _PLATFORM, 2: "other"}  # enum ModelType of the deprecated field


def validate(new: Sequence[Any], old: Sequence[Any]) -> None:
    """Refuse a list of ModelConfigs, with the first objection in TF-Serving's order."""
    seen: set[str] = set()
    for model in new:
        if model.name in seen:
            text = f"Illegal to list model {model.name} multiple times in config list"
            raise invalid(text)
        seen.add(model.name)
    for model in new:
        if not (model.base_path.startswith("/") or "://" in model.base_path):
            text = f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            raise invalid(text)
    _validate_platforms(new, old)


def versions(model: Any, children: Iterable[str]) -> dict[int, str]:
    """Wanted version -> folder, by the model's version policy. Names that are no 64-bit numbers do not count."""
    found = {}
    for child in sorted(children):
        if _NUMBER.fullmatch(child) and -(2**63) <= int(child) < 2**63:
            found[int(child)] = os.path.join(model.base_path, child)
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return found
        case "specific":
            return {version: found[version] for version in policy.specific.versions if version in found}
        case _:
            return {version: found[version] for version in sorted(found)[-max(policy.latest.num_versions, 1) :]}


def scan(models: Sequence[Any]) -> dict[str, dict[int, str]]:
    """What is wanted of each model now. One missing base path and nothing is known of any of them."""
    return {model.name: versions(model, _children(model)) for model in models}


def check_labels(
    models: Sequence[Any],
    labels: Mapping[str, Mapping[str, int]],
    reports: Mapping[str, Mapping[int, Report]],
    allow_unavailable: bool,
) -> dict[str, dict[str, int]]:
    """The new labels by model. A label must point at an available version; with leave, only one that is moved."""
    for model in models:
        for label, version in model.version_labels.items():
            report = reports.get(model.name, {}).get(version)
            moved = labels.get(model.name, {}).get(label, version) != version
            if (report is None or report.state is not State.AVAILABLE) and (moved or not allow_unavailable):
                text = (
                    f"Request to assign label to version {version} of model {model.name}, "
                    "which is not currently available for inference"
                )
                raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, text)
    return {model.name: dict(model.version_labels) for model in models}


def _children(model: Any) -> list[str]:
    try:
        return os.listdir(model.base_path)
    except OSError as error:
        text = f"Could not find base path {model.base_path} for servable {model.name} with error {error}"
        raise invalid(text) from error


def _validate_platforms(new: Sequence[Any], old: Sequence[Any]) -> None:
    before = {model.name: _platform(model) for model in old}
    for model in new:
        platform = _platform(model)
        if before.get(model.name, platform) != platform:
            text = (
                f"Illegal to change a model's platform. For model {model.name} platform was {before[model.name]} "
                f"and new platform requested is {platform}"
            )
            raise invalid(text)
        if platform != _PLATFORM:
            text = f"Model {model.name} requests unsupported platform {platform}"
            raise invalid(text)


def _platform(model: Any) -> str:
    if model.model_type:
        return _OLD_PLATFORMS[model.model_type]
    if not model.model_platform:
        text = (
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, "
            f"model name is {model.name}"
        )
        raise invalid(text)
    return model.model_platform
