"""A SavedModel as TF-Serving runs it: graph and session of TensorFlow 1, no Python in between.

The same C++ session gives the same error texts; `tf.saved_model.load` gives others, and checks in Python what the
server does not check. Source: tensorflow/cc/saved_model/loader.cc, tensorflow/serving saved_model_warmup_util.cc.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from pipeline.serving import protos
from pipeline.serving.standin.status import CODES, StatusError

_INIT_OP = "__saved_model_init_op"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
_ASSETS = "saved_model_assets"


@dataclass(frozen=True)
class SessionOptions:
    intra_op_threads: int = 0  # 0: TensorFlow decides
    inter_op_threads: int = 0
    tags: frozenset[str] = frozenset({"serve"})


class Bundle:
    """Owns a session. `signatures` are the model's SignatureDefs by name."""

    def __init__(self, session: tf.compat.v1.Session, signatures: Mapping[str, Any]) -> None:
        self.signatures = signatures
        self._session = session
        self._callables: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Tensors by name in, tensors by name out. Like the server, it leaves all checks to the kernels."""
        try:
            return self._callable(tuple(feeds), tuple(fetches))(*feeds.values())
        except tf.errors.OpError as error:
            raise _status(error) from error

    def close(self) -> None:
        self._callables.clear()
        self._session.close()

    def _callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Any:
        with self._lock:
            if (feeds, fetches) not in self._callables:
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                self._callables[feeds, fetches] = self._session._make_callable_from_options(options)
            return self._callables[feeds, fetches]


def open_bundle(path: str, options: SessionOptions) -> Bundle:
    """Load a version folder; StatusError with TF-Serving's code and text where it cannot be."""
    meta_graph = _meta_graph(Path(path), options.tags)
    try:
        return Bundle(_session(Path(path), meta_graph, options), dict(meta_graph.signature_def))
    except tf.errors.OpError as error:
        raise _status(error) from error
    except (ValueError, TypeError, KeyError) as error:  # how the Python importer refuses a graph
        raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, f"{path}: {error}") from error


def _session(path: Path, meta_graph: Any, options: SessionOptions) -> tf.compat.v1.Session:
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=options.intra_op_threads, inter_op_parallelism_threads=options.inter_op_threads
    )
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=config)
    try:
        with graph.as_default():
            theirs = meta_graph_pb2.MetaGraphDef.FromString(meta_graph.SerializeToString())
            tf.compat.v1.train.import_meta_graph(theirs, clear_devices=False)
            _initialise(session, path, theirs)
    except BaseException:
        session.close()
        raise
    return session


def _initialise(session: tf.compat.v1.Session, path: Path, meta_graph: Any) -> None:
    """Restore variables and run the init op. Without variables.index nothing is restored, and that is no error:
    a half-written folder loads, and fails when it is used."""
    assets = {
        asset.tensor_info.name: str(path / "assets" / asset.filename)
        for asset in _unpacked(meta_graph, _ASSETS, meta_graph_pb2.AssetFileDef)
    }
    saver = meta_graph.saver_def
    if saver.restore_op_name and (path / "variables" / "variables.index").exists():
        prefix = str(path / "variables" / "variables")
        session.run(saver.restore_op_name, {saver.filename_tensor_name: prefix, **assets})
    init = _init_op(meta_graph)
    if init is not None:
        session.run(init, assets)


def _init_op(meta_graph: Any) -> str | None:
    if _INIT_OP in meta_graph.signature_def:
        return str(meta_graph.signature_def[_INIT_OP].outputs[_INIT_OP].name).removesuffix(":0")
    for name in _INIT_COLLECTIONS:
        values = meta_graph.collection_def[name].node_list.value if name in meta_graph.collection_def else ()
        if values:
            return str(values[0])
    return None


def _unpacked(meta_graph: Any, collection: str, kind: Any) -> list[Any]:
    if collection not in meta_graph.collection_def:
        return []
    found = []
    for packed in meta_graph.collection_def[collection].any_list.value:
        message = kind()
        packed.Unpack(message)
        found.append(message)
    return found


def _meta_graph(path: Path, tags: frozenset[str]) -> Any:
    file = path / "saved_model.pb"
    if not file.exists():
        text = (
            f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}. "
            "Check that the directory exists and that you have the right permissions for accessing it."
        )
        raise StatusError(grpc.StatusCode.NOT_FOUND, text)
    try:
        model = protos.SavedModel.FromString(file.read_bytes())
    except DecodeError as error:
        raise StatusError(grpc.StatusCode.DATA_LOSS, f"Can't parse {file} as binary proto") from error
    except OSError as error:
        raise StatusError(grpc.StatusCode.UNKNOWN, str(error)) from error
    for meta_graph in model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == tags:
            return meta_graph
    text = (
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(sorted(tags))} }}. "
        "To inspect available tag-sets in the SavedModel, please use the SavedModel CLI: `saved_model_cli`"
    )
    raise StatusError(grpc.StatusCode.NOT_FOUND, text)


def _status(error: tf.errors.OpError) -> StatusError:
    return StatusError(CODES[error.error_code], error.message)
