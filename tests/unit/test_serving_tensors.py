"""Arrays to bytes and back; TensorFlow's own reading of them is compared in the contract suite."""

import numpy as np
import pytest

from pipeline.serving import protos, tensors
from pipeline.serving.client import BadRequest
from pipeline.serving.errors import TensorError

ARRAYS = [
    np.array([[1.5, -2], [np.inf, 0]], np.float32),
    np.array([1e300], np.float64),
    np.array([0.1, 65504], np.float16),
    np.array([-(2**31), 7], np.int32),
    np.array([-(2**63), 2**63 - 1], np.int64),
    np.array([0, 2**64 - 1], np.uint64),
    np.array([0, 255], np.uint8),
    np.array([-128, 127], np.int8),
    np.array([True, False]),
    np.float32(3).reshape(()),
    np.zeros((0, 4), np.float32),
    np.array([b"a", b"\xff"], dtype=object),
]


@pytest.mark.parametrize("encode", [tensors.encode_into, tensors.encode_typed_into])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_arrays_survive_both_ways_of_writing_them(encode, array):
    tensor = protos.TensorProto()
    encode(tensor, array)
    back = tensors.decode(protos.TensorProto.FromString(tensor.SerializeToString()))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tolist() == array.tolist()


def test_rows_that_are_not_contiguous_are_sent_in_order():
    tensor = protos.TensorProto()
    tensors.encode_into(tensor, np.arange(6, dtype=np.int32).reshape(2, 3).T)
    assert tensors.decode(tensor).tolist() == [[0, 3], [1, 4], [2, 5]]


def shaped(dtype, *sizes, **fields):
    return protos.TensorProto(dtype=dtype, tensor_shape={"dim": [{"size": size} for size in sizes]}, **fields)


def test_the_last_typed_value_stands_for_those_missing():
    assert tensors.decode(shaped(1, 2, 2, float_val=[1, 2])).tolist() == [[1, 2], [2, 2]]


@pytest.mark.parametrize(
    "tensor",
    [
        shaped(1, 2, tensor_content=b"\0" * 7),
        shaped(1, 2, float_val=[1, 2, 3]),
        shaped(1, 2),
        shaped(1, -1, tensor_content=b"\0" * 4),
        shaped(99, 1, tensor_content=b"\0" * 4),
        protos.TensorProto(dtype=1, tensor_shape={"unknown_rank": True}, float_val=[1]),
    ],
    ids=["content", "too many", "none", "negative", "dtype", "rank"],
)
def test_tensors_that_do_not_add_up_are_refused(tensor):
    with pytest.raises(TensorError, match=r"^expected .*, found "):
        tensors.decode(tensor)


@pytest.mark.parametrize("array", [np.array([1], ">f4"), np.array([1j]), np.array(["2020-01-01"], "M8[D]")])
def test_arrays_of_other_types_are_bad_requests(array):
    with pytest.raises(BadRequest, match=r"^expected an array of numbers"):
        tensors.encode_into(protos.TensorProto(), array)
