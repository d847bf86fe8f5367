"""Collects the protocol of TensorFlow Serving into `tf_serving.desc`: `python -m pipeline.serving.build_descriptors`.

The installed `*_pb2.py` modules hold serialized descriptors, but importing one imports all of TensorFlow. So they
are read as source text: the one bytes literal in each is its FileDescriptorProto.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

TARGET = Path(__file__).with_name("tf_serving.desc")
ROOTS = (
    "tensorflow_serving/apis/predict.proto",
    "tensorflow_serving/apis/get_model_metadata.proto",
    "tensorflow_serving/apis/get_model_status.proto",
    "tensorflow_serving/apis/model_management.proto",
    "tensorflow_serving/apis/prediction_log.proto",
    "tensorflow_serving/config/model_server_config.proto",
    "tensorflow/core/protobuf/saved_model.proto",
)
_MOVED = {"xla/": "tensorflow/compiler/xla/"}  # where the wheel keeps a folder whose protos name another path


def collect(roots: tuple[str, ...] = ROOTS) -> FileDescriptorSet:
    """The roots with all that they import, each file after its imports."""
    found: dict[str, FileDescriptorProto] = {}

    def visit(name: str) -> None:
        if name in found:
            return
        file = FileDescriptorProto.FromString(_descriptor_bytes(_module_path(name)))
        for dependency in file.dependency:
            visit(dependency)
        found[name] = file

    for root in roots:
        visit(root)
    return FileDescriptorSet(file=found.values())


def _module_path(proto: str) -> Path:
    for prefix, folder in _MOVED.items():
        if proto.startswith(prefix):
            proto = folder + proto.removeprefix(prefix)
    package, _, rest = proto.removesuffix(".proto").partition("/")
    spec = find_spec("google.protobuf" if package == "google" else package)
    if spec is None or not spec.submodule_search_locations:
        message = f"{proto}: package {package} is not installed (pip install tensorflow-serving-api)"
        raise ModuleNotFoundError(message)
    rest = rest.removeprefix("protobuf/") if package == "google" else rest
    return Path(spec.submodule_search_locations[0], f"{rest}_pb2.py")


def _descriptor_bytes(module: Path) -> bytes:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, bytes):
                return argument.value
    message = f"{module}: expected a call AddSerializedFile(b'...') of generated protobuf code, found none"
    raise ValueError(message)


if __name__ == "__main__":
    TARGET.write_bytes(collect().SerializeToString(deterministic=True))
    print(f"wrote {TARGET.name}: {TARGET.stat().st_size} bytes")
