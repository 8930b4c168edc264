"""Reading numbers and checking them at once finds just what doing one after the other does."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.server.inference import oip_json
from fedveil.server.inference.errors import RequestError
from fedveil.server.inference.oip import InferRequest, Limits, TensorSpec
from fedveil.server.inference.oip_json import InferReader

OUTPUT = TensorSpec("output", "FP32", (10,))
LIMITS = Limits(rows=8)

values = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**30), 10**30),
    st.sampled_from([True, None, "1.5", [1.0], {}, 10**400, 0, -0.0, 1e39]),
)


def outcome(body: bytes, spec: TensorSpec) -> InferRequest | tuple[type[RequestError], str]:
    try:
        return InferReader(spec, OUTPUT, LIMITS).read(body, None)
    except RequestError as error:
        return type(error), str(error)


@pytest.mark.parametrize("dtype", ["FP32", "FP64"])
@given(
    data=st.one_of(
        st.lists(values, min_size=3, max_size=7),
        st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=2),
        values,
    ),
    datatype=st.sampled_from(["FP32", "FP64", "INT8", "UINT16", "BOOL", "FP16", "INT64"]),
    rows=st.integers(0, 3),
    more=st.sampled_from([{}, {"id": "a"}, {"parameters": {"timeout": 5}}, {"parameters": 3}]),
)
def test_both_ways_agree(
    dtype: str, data: object, datatype: str, rows: int, more: dict[str, object]
) -> None:
    spec = TensorSpec("input", dtype, (3,))
    tensor = {"name": "input", "datatype": datatype, "shape": [rows, 3], "data": data}
    body = json.dumps({"inputs": [tensor], **more}).encode()
    found = outcome(body, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oip_json, "_read_floats", lambda _: None)
        wanted = outcome(body, spec)
    if isinstance(wanted, InferRequest):
        assert isinstance(found, InferRequest)
        assert (found.id, found.timeout) == (wanted.id, wanted.timeout)
        assert found.rows.dtype == wanted.rows.dtype == np.dtype(spec.numpy)
        assert found.rows.tobytes() == wanted.rows.tobytes()
    else:
        assert found == wanted


def test_what_is_remembered_of_a_head_is_no_more_than_the_head() -> None:
    spec = TensorSpec("input", "FP32", (3,))

    def head(size: object, **more: object) -> bytes:
        tensor = {
            "name": "input",
            "datatype": "FP32",
            "shape": [1, 3],
            "parameters": {"binary_data_size": size},
        }
        return json.dumps({"inputs": [tensor], **more}).encode()

    reader = InferReader(spec, OUTPUT, LIMITS)
    for value in (1.0, 2.0):
        raw = np.full(3, value, np.float32).tobytes()
        text = head(12, id="same")
        found = reader.read(text + raw, len(text))
        assert (found.id, found.rows.tolist()) == ("same", [[value] * 3])
    text = head(12, id="same")
    with pytest.raises(RequestError, match="must be the 8 bytes"):
        reader.read(text + bytes(8), len(text))
    other = InferReader(TensorSpec("input", "FP32", (4,)), OUTPUT, LIMITS)
    with pytest.raises(RequestError, match="shape"):
        other.read(text + bytes(12), len(text))
    none = InferReader(spec, OUTPUT, Limits(rows=0))
    with pytest.raises(RequestError, match="more than the 0"):
        none.read(text + bytes(12), len(text))
