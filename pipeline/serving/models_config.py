"""The `models.config` of TF-Serving: which versions of which models are loaded, as `specific` lists.

`latest` would let a stray folder decide; with `specific` a version is loaded when it is named, and stays loaded
(pinned, canary, previous) until it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf import text_format

from pipeline.serving.errors import ModelsConfigError
from pipeline.serving.protos import ModelServerConfig


class ServedModel(NamedTuple):
    name: str
    base_path: str  # absolute; holds one folder per version
    versions: tuple[int, ...]


def render(models: Sequence[ServedModel]) -> str:
    """Text of a ModelServerConfig. A model without versions is refused: TF-Serving would wait for it for ever."""
    config = ModelServerConfig()
    config.model_config_list.SetInParent()
    for model in models:
        _check(model)
        entry = config.model_config_list.config.add(
            name=model.name, base_path=model.base_path, model_platform="tensorflow"
        )
        entry.model_version_policy.specific.versions.extend(sorted(model.versions))
    _check_names([model.name for model in models])
    return text_format.MessageToString(config)


def parse(text: str) -> tuple[ServedModel, ...]:
    """The models of a text that `render` wrote; ModelsConfigError for other policies, which name no versions."""
    return tuple(_served(entry) for entry in parse_message(text).model_config_list.config)


def parse_message(text: str) -> Any:
    """Any ModelServerConfig text as a message."""
    try:
        return text_format.Parse(text, ModelServerConfig())
    except text_format.ParseError as error:
        message = f"models.config: expected text of a ModelServerConfig message, found at {error}"
        raise ModelsConfigError(message) from error


def _served(entry: Any) -> ServedModel:
    policy = entry.model_version_policy.WhichOneof("policy_choice")
    if policy != "specific":
        message = f"models.config: model {entry.name!r}: expected a list of specific versions, found {policy}"
        raise ModelsConfigError(message)
    return ServedModel(entry.name, entry.base_path, tuple(entry.model_version_policy.specific.versions))


def _check(model: ServedModel) -> None:
    if not model.name:
        message = f"models.config: expected a model name, found none for {model.base_path}"
    elif not model.base_path.startswith("/"):
        message = f"models.config: model {model.name!r}: expected an absolute base path, found {model.base_path!r}"
    elif not model.versions:
        message = f"models.config: model {model.name!r}: expected at least one version, found none"
    else:
        return
    raise ModelsConfigError(message)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            message = f"models.config: expected each model once, found {name!r} {names.count(name)} times"
            raise ModelsConfigError(message)
