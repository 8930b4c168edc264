import pytest
from hypothesis import given
from hypothesis import strategies as st
from vault_streams import FIRST, NEXT

from fedveil.vault.segments import Segments, ciphertext_size


@given(st.integers(0, 1 << 45), st.data())
def test_segments_share_the_plaintext_out(size: int, data: st.DataObject) -> None:
    segments = Segments(size)
    index = data.draw(st.integers(0, segments.count - 1))
    part = segments.plain(index)
    assert part.start == (segments.plain(index - 1).stop if index else 0)
    assert part.stop == size or index < segments.count - 1
    if size:
        assert segments.holding(part.start, part.stop) == range(index, index + 1)
    assert ciphertext_size(size) == 40 + size + 16 * segments.count


@pytest.mark.parametrize(
    ("begin", "end", "first", "last"),
    [
        (0, FIRST, 0, 0),
        (FIRST - 1, FIRST + 1, 0, 1),
        (FIRST, FIRST + NEXT, 1, 1),
        (FIRST + NEXT - 1, FIRST + NEXT, 1, 1),
        (5, FIRST + 2 * NEXT + 1, 0, 3),
    ],
)
def test_the_segments_that_hold_a_part_are_found(
    begin: int, end: int, first: int, last: int
) -> None:
    assert Segments(10 * NEXT).holding(begin, end) == range(first, last + 1)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        ciphertext_size(-1)
    with pytest.raises(ValueError, match="segments"):
        ciphertext_size(1 << 52)
