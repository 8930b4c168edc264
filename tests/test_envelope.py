"""Arrays in messages: read without a copy, written with one, and the same bytes as Flower's."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedveil.envelope import array_of, values_of

NUMBERS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="<"),
    hnp.unsigned_integer_dtypes(endianness="<"),
    hnp.floating_dtypes(endianness="<", sizes=(16, 32, 64)),
)
ARRAYS = hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@given(ARRAYS)
def test_an_array_is_what_flower_makes_of_it(values: NDArray[np.generic]) -> None:
    assert array_of(values) == Array(values)


@given(ARRAYS)
def test_it_is_read_as_flower_reads_it(values: NDArray[np.generic]) -> None:
    read = values_of(array_of(values.T))
    np.testing.assert_array_equal(read, Array(values.T).numpy())
    assert read.dtype == values.dtype


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="no message carries values of the type object"):
        array_of(np.array([object()]))
