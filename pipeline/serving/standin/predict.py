"""PredictRequest -> PredictResponse on a loaded model. Order of checks and texts are TF-Serving's.

Source: tensorflow/serving predict_util.cc, tensorflow/cc/saved_model/util.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import grpc
import numpy as np

from pipeline.serving import protos, tensors
from pipeline.serving.errors import TensorError
from pipeline.serving.standin.status import StatusError, invalid

_DEFAULT = "serving_default"
Encode = Callable[[Any, np.ndarray], None]


class Runnable(Protocol):
    signatures: Mapping[str, Any]

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]: ...


def predict(bundle: Runnable, request: Any, version: int | None, encode: Encode) -> Any:
    """The response, with the version and signature that answered."""
    name = request.model_spec.signature_name or _DEFAULT
    if name not in bundle.signatures:
        text = f'Serving signature key "{name}" not found.'
        raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, text)
    signature = bundle.signatures[name]
    _check_count(signature, request.inputs)
    feeds = _feeds(signature, request.inputs)
    aliases = _output_aliases(signature, request.output_filter)
    arrays = bundle.run(feeds, [signature.outputs[alias].name for alias in aliases])
    response = protos.PredictResponse()
    response.model_spec.name, response.model_spec.signature_name = request.model_spec.name, name
    if version is not None:
        response.model_spec.version.value = version
    for alias, array in zip(aliases, arrays, strict=True):
        encode(response.outputs[alias], np.asarray(array))
    return response


def _check_count(signature: Any, inputs: Mapping[str, Any]) -> None:
    if len(inputs) > len(signature.inputs) or (len(inputs) < len(signature.inputs) and not signature.defaults):
        sent, known = set(inputs), set(signature.inputs)
        text = (
            f"input size does not match signature: {len(sent)}!={len(known)} len({_set(sent)}) != len({_set(known)}). "
            f"Sent extra: {_set(sent - known)}. Missing but required: {_set(known - sent)}."
        )
        raise invalid(text)


def _feeds(signature: Any, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    feeds, used = {}, []
    for alias in sorted(signature.inputs):
        feed = signature.inputs[alias].name
        if alias in inputs:
            used.append(alias)
        elif alias not in signature.defaults:
            text = (
                f"Signature input alias: {alias}(feed name: {feed}) not found in request and no default value "
                f"provided. Inputs expected to be in the request {_set(inputs)}, or default input alias set: "
                f"{','.join(sorted(signature.defaults))}"
            )
            raise invalid(text)
        feeds[feed] = _array(alias, inputs[alias] if alias in inputs else signature.defaults[alias])
    if len(used) != len(inputs):
        asked = ",".join(sorted(inputs))
        text = f"Inputs contains invalid name. Used request inputs: {','.join(used)}, request input: {asked}"
        raise invalid(text)
    return feeds


def _array(alias: str, tensor: Any) -> np.ndarray:
    try:
        return tensors.decode(tensor)
    except TensorError as error:
        text = f"tensor parsing error: {alias}"
        raise invalid(text) from error


def _output_aliases(signature: Any, output_filter: Sequence[str]) -> list[str]:
    for index, alias in enumerate(output_filter):
        if alias not in signature.outputs:
            expected = f"Outputs expected to be in the set {_set(signature.outputs)}."
            text = f"output tensor alias not found in signature: {alias} {expected}"
            raise invalid(text)
        if alias in output_filter[:index]:
            text = f"duplicate output tensor alias: {alias}"
            raise invalid(text)
    return list(output_filter) or sorted(signature.outputs)


def _set(names: Iterable[str]) -> str:
    return f"{{{','.join(sorted(names))}}}"
