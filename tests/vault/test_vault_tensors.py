import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedveil.vault.errors import TensorError
from fedveil.vault.tensors import Array, TensorFile, copy_tensors, view_tensors

DTYPES = [
    *(np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64),
    *(np.float16, np.float32, np.float64, np.complex64),
]

tensor_maps = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
    max_size=6,
)


def written(tensors: dict[str, Array]) -> bytearray:
    file = TensorFile(tensors)
    data = bytearray(b"".join(file.chunks()))
    assert len(data) == file.nbytes
    return data


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(found[name], array)


def raw(header: object, payload: bytes = b"") -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + payload)


@given(tensor_maps)
def test_the_library_writes_the_very_same_bytes(tensors: dict[str, Array]) -> None:
    assert written(tensors) == safetensors.numpy.save(tensors)


@given(tensor_maps)
def test_what_is_written_is_read(tensors: dict[str, Array]) -> None:
    assert_same(view_tensors(written(tensors)), tensors)


def test_the_metadata_of_the_library_is_passed_over() -> None:
    tensors: dict[str, Array] = {"a": np.arange(5)}
    data = bytearray(safetensors.numpy.save(tensors, metadata={"made": "elsewhere"}))
    assert_same(view_tensors(data), tensors)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(20)[::-3],
        np.arange(6, dtype=">f8").reshape(2, 3),
        np.broadcast_to(np.float32(2.5), (3, 2)),
        np.array(7, dtype=">i2"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)
def test_strides_and_byte_order_do_not_matter(array: Array) -> None:
    data = written({"x": array})
    assert_same(view_tensors(data), {"x": array})
    assert_same(safetensors.numpy.load(bytes(data)), {"x": array})


def test_arrays_are_writable_views_of_one_buffer() -> None:
    data = written({"x": np.zeros(3, dtype=np.uint8)})
    view_tensors(data)["x"][:] = 7
    assert data.endswith(b"\x07\x07\x07")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array(["text"]), "<U4"),
        (np.array([object()]), "object"),
        (np.zeros(2, dtype=np.complex128), "complex128"),
        (np.zeros(2, dtype="datetime64[s]"), "datetime64"),
        (np.zeros(2, dtype=[("a", "f4")]), "cannot be stored"),
        (np.float64(1.0), "float64, not a numpy array"),
        ([1.0], "list, not a numpy array"),
    ],
)
def test_what_cannot_be_stored_is_refused(value: Array, says: str) -> None:
    with pytest.raises(TensorError, match=says):
        TensorFile({"x": value})


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_cannot_be_stored_are_refused(name: str) -> None:
    with pytest.raises(TensorError, match=r"name|called"):
        TensorFile({name: np.zeros(1)})


def test_a_memoryview_is_read_too() -> None:
    view = memoryview(written({"x": np.arange(5)}))
    assert_same(view_tensors(view), {"x": np.arange(5)})


@given(tensor_maps)
def test_arrays_are_copied_into_those_in_use(tensors: dict[str, Array]) -> None:
    live = {name: np.zeros_like(array) for name, array in tensors.items()}
    before = dict(live)
    copy_tensors(view_tensors(written(tensors)), live)
    assert all(live[name] is before[name] for name in live)
    assert_same(live, tensors)


def test_arrays_in_use_may_have_any_strides_and_byte_order() -> None:
    live: dict[str, Array] = {
        "across": np.zeros((4, 3)).T,
        "backwards": np.zeros(40, np.int32)[::-2],
        "other": np.zeros(5, ">f4"),
    }
    tensors: dict[str, Array] = {
        "across": np.arange(12.0).reshape(3, 4),
        "backwards": np.arange(20, dtype=np.int32),
        "other": np.arange(5, dtype="<f4"),
    }
    copy_tensors(view_tensors(written(tensors)), live)
    for name, array in tensors.items():
        np.testing.assert_array_equal(live[name], array)


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("live", "says"),
    [
        ({"a": np.zeros(2)}, r"0 are missing \[\], 1 are unknown to it \['b'\]"),
        ({"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(1)}, r"1 are missing \['c'\]"),
        ({"a": np.zeros(2), "b": np.zeros((3, 1))}, r"'b' is float64 of shape \(3,\)"),
        ({"a": np.zeros(2), "b": np.zeros(1)}, "'b'"),
        ({"a": np.zeros(2), "b": np.zeros(3, np.float32)}, "has float32 of shape"),
        ({"a": np.zeros(2), "b": np.zeros(3, np.int64)}, "has int64 of shape"),
        ({"a": np.zeros(2), "b": read_only(np.zeros(3))}, "'b' of the model is read-only"),
    ],
)
def test_where_anything_does_not_match_nothing_is_copied(live: dict[str, Array], says: str) -> None:
    with pytest.raises(TensorError, match=says):
        copy_tensors({"a": np.ones(2), "b": np.ones(3)}, live)
    assert not any(array.any() for array in live.values())


def entry(dtype: object = "U8", shape: object = None, offsets: object = None) -> dict[str, object]:
    return {
        "dtype": dtype,
        "shape": [2] if shape is None else shape,
        "data_offsets": [0, 2] if offsets is None else offsets,
    }


@pytest.mark.parametrize(
    "data",
    [
        bytearray(),
        bytearray(b"\0" * 7),
        bytearray((100).to_bytes(8, "little") + b"{}"),
        raw(b"{"),
        raw(b"\xff\xff"),
        raw(b"[" * 100_000),
        raw([]),
        raw({}, b"left over"),
        raw({"x": 3}),
        raw({"x": {"dtype": "U8"}}, b"ab"),
        raw({"x": entry("BF16")}, b"ab"),
        raw({"x": entry(["U8"])}, b"ab"),
        raw({"x": entry(shape="2")}, b"ab"),
        raw({"x": entry(shape=[-2])}, b"ab"),
        raw({"x": entry(shape=[True, 2])}, b"ab"),
        raw({"x": entry(shape=[3])}, b"ab"),
        raw({"x": entry(offsets=[0, 2, 2])}, b"ab"),
        raw({"x": entry(offsets=[2, 0])}, b"ab"),
        raw({"x": entry(offsets=[1, 3])}, b"abc"),
        raw({"x": entry()}, b"a"),
        raw({"x": entry()}, b"abc"),
        raw({"x": entry(), "y": entry()}, b"ab"),
        raw({"x": entry(), "y": entry(offsets=[3, 5])}, b"abcde"),
        raw({"x": entry(shape=[0, 1 << 70], offsets=[0, 0])}),
        raw({"x": entry(shape=[1] * 100 + [2])}, b"ab"),
    ],
)
def test_layouts_that_are_not_valid_are_refused(data: bytearray) -> None:
    with pytest.raises(TensorError):
        view_tensors(data)
