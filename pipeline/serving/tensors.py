"""numpy arrays <-> TensorProto.

Arrays are sent as raw `tensor_content` (little-endian, row-major). TF-Serving answers in the typed fields unless it
runs with --enable_serialization_as_tensor_content; both are read. In a typed field the last value given stands for
all that are missing (how TensorFlow shortens constant tensors).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pipeline.serving.errors import TensorError
from pipeline.serving.protos import TensorShapeProto

_STRING = 7


class _Dtype(NamedTuple):
    number: int  # tensorflow.DataType
    name: str  # numpy's
    field: str  # typed field of TensorProto


_DTYPES = (
    _Dtype(1, "float32", "float_val"),
    _Dtype(2, "float64", "double_val"),
    _Dtype(3, "int32", "int_val"),
    _Dtype(4, "uint8", "int_val"),
    _Dtype(5, "int16", "int_val"),
    _Dtype(6, "int8", "int_val"),
    _Dtype(9, "int64", "int64_val"),
    _Dtype(10, "bool", "bool_val"),
    _Dtype(17, "uint16", "int_val"),
    _Dtype(19, "float16", "half_val"),  # bits in the lower half of an int32
    _Dtype(22, "uint32", "uint32_val"),
    _Dtype(23, "uint64", "uint64_val"),
)
_BY_NUMBER = {dtype.number: dtype for dtype in _DTYPES}
_NUMBERS = {np.dtype(dtype.name): dtype.number for dtype in _DTYPES}


def dtype_name(number: int) -> str:
    """numpy's name of a tensorflow.DataType: "float32"; "string"; "dtype <n>" for those not read here."""
    if number == _STRING:
        return "string"
    return _BY_NUMBER[number].name if number in _BY_NUMBER else f"dtype {number}"


def encode_into(tensor: Any, array: np.ndarray) -> None:
    """Fill an empty TensorProto. Strings may be of numpy kind S, U or O (bytes or str)."""
    number = _NUMBERS.get(array.dtype)
    tensor.tensor_shape.MergeFrom(_shape(array.shape))
    if number is not None:
        tensor.dtype = number
        tensor.tensor_content = array.tobytes()
    elif array.dtype.kind in "SUO":
        tensor.dtype = _STRING
        tensor.string_val.extend(x.encode() if isinstance(x, str) else bytes(x) for x in array.ravel().tolist())
    else:
        message = f"expected an array of numbers, booleans or strings in native byte order, found dtype {array.dtype}"
        raise TensorError(message)


def encode_typed_into(tensor: Any, array: np.ndarray) -> None:
    """The same in the typed field, as TF-Serving answers by default."""
    number = _NUMBERS.get(array.dtype)
    if number is None:
        encode_into(tensor, array)
        return
    tensor.dtype = number
    tensor.tensor_shape.MergeFrom(_shape(array.shape))
    flat = array.view(np.uint16) if array.dtype == np.float16 else array
    getattr(tensor, _BY_NUMBER[number].field).extend(flat.ravel().tolist())


def decode(tensor: Any) -> np.ndarray:
    """The array; read-only where it shares the message's bytes. TensorError when bytes and shape do not agree."""
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.dtype == _STRING:
        return _filled(np.array(list(tensor.string_val), dtype=object), shape)
    dtype = _BY_NUMBER.get(tensor.dtype)
    if dtype is None or tensor.tensor_shape.unknown_rank:
        message = f"expected a tensor of numbers, booleans or strings with a shape, found dtype {tensor.dtype}"
        raise TensorError(message)
    content = tensor.tensor_content
    if content:
        return _from_content(content, np.dtype(dtype.name), shape)
    return _filled(_from_field(getattr(tensor, dtype.field), dtype), shape)


def _from_content(content: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if len(content) != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
        message = f"expected {dtype} of shape {list(shape)}, found {len(content)} bytes"
        raise TensorError(message)
    return np.frombuffer(content, dtype).reshape(shape)


def _from_field(values: Any, dtype: _Dtype) -> np.ndarray:
    if dtype.name == "float16":
        return np.array(values, np.uint16).view(np.float16)
    return np.array(values, dtype.name)


def _filled(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape)
    if len(values) > size or (len(values) == 0 and size > 0) or min(shape, default=0) < 0:
        message = f"expected {size} values for shape {list(shape)}, found {len(values)}"
        raise TensorError(message)
    if len(values) < size:
        values = np.concatenate([values, np.repeat(values[-1:], size - len(values))])
    return values.reshape(shape)


@lru_cache(maxsize=256)
def _shape(shape: tuple[int, ...]) -> Any:
    return TensorShapeProto(dim=[{"size": size} for size in shape])
