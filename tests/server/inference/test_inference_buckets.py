"""A batch is padded to the next size of a small ladder, and by less than its own rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedveil.server.inference.buckets import bucket, ladder


def test_the_ladder_doubles_and_ends_with_the_most() -> None:
    assert ladder(1) == (1,)
    assert ladder(2) == (1, 2)
    assert ladder(3) == (1, 2, 3)
    assert ladder(1024) == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@given(st.integers(1, 5000), st.data())
def test_a_bucket_holds_the_rows_and_wastes_less_than_half(most: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, most))
    sizes = ladder(most)
    size = bucket(sizes, rows)
    assert size in sizes
    assert rows <= size < 2 * rows
