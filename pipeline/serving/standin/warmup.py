"""Replays recorded requests through a model before it is served, so that no user's request is the first.

Any error is an error of the load. Source: tensorflow/serving saved_model_warmup_util.cc, saved_model_warmup.cc.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError

from pipeline.serving import protos, tensors
from pipeline.serving.standin.predict import Runnable, predict
from pipeline.serving.standin.status import StatusError, invalid

_FILE = Path("assets.extra", "tf_serving_warmup_requests")
_MAX_RECORDS = 1000


def replay(bundle: Runnable, path: str, iterations: int) -> None:
    """Run each record of the version folder's warm-up file, if it has one, so many times."""
    file = Path(path, _FILE)
    if not file.exists():
        return
    for number, record in enumerate(_records(file), start=1):
        log = _parsed(record, file)
        for _ in range(iterations):
            _run(bundle, log)
        if number > _MAX_RECORDS:
            text = f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {file}"
            raise invalid(text)


def _run(bundle: Runnable, log: Any) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        predict(bundle, log.predict_log.request, None, tensors.encode_into)
    elif kind is not None:
        text = f"Unsupported log_type for warmup: {log.DESCRIPTOR.fields_by_name[kind].number}"
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, text)


def _records(file: Path) -> Iterator[bytes]:
    dataset = tf.data.TFRecordDataset(str(file))
    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.DataLossError as error:
        text = f"{error.message}. Please verify your warmup data is in TFRecord format."
        raise StatusError(grpc.StatusCode.DATA_LOSS, text) from error


def _parsed(record: bytes, file: Path) -> Any:
    try:
        return protos.PredictionLog.FromString(record)
    except DecodeError as error:
        text = f"Failed to parse warmup record: {record!r} from {file}"
        raise invalid(text) from error
