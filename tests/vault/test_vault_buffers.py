import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.vault.buffers import Shadow, buffer_reader, cut, new_buffer, wipe
from fedveil.vault.errors import TruncatedError


@given(st.lists(st.binary(max_size=20), max_size=8), st.lists(st.integers(1, 30), max_size=8))
def test_cutting_keeps_every_byte_in_its_place(chunks: list[bytes], sizes: list[int]) -> None:
    whole = b"".join(chunks)
    cuts, left = [], len(whole)
    for size in sizes:
        if left > size:
            cuts.append(size)
            left -= size
    cuts.append(left)
    parts = [b"".join(pieces) for pieces in cut(chunks, cuts if whole else [0])]
    assert [len(part) for part in parts] == (cuts if whole else [0])
    assert b"".join(parts) == whole


def test_cutting_copies_nothing() -> None:
    chunk = bytearray(b"abcdef")
    parts = list(cut([chunk], [2, 4]))
    chunk[:] = b"ABCDEF"
    assert [bytes(pieces[0]) for pieces in parts] == [b"AB", b"CDEF"]


def test_a_reader_never_gives_too_little() -> None:
    read = buffer_reader(b"abc")
    assert read(1, new_buffer(2)) == b"bc"
    with pytest.raises(TruncatedError, match="1 bytes early"):
        read(2, new_buffer(2))
    with pytest.raises(TruncatedError, match="2 bytes early"):
        read(9, new_buffer(2))


def test_a_shadow_is_kept_until_more_is_asked_for() -> None:
    shadow = Shadow()
    first = shadow.take(10)
    first[:] = b"0123456789"
    second = shadow.take(4)
    assert second == b"0123"
    third = shadow.take(11)
    assert len(third) == 11
    assert not any(first), "what is let go of is wiped"


def test_a_wiped_shadow_holds_nothing() -> None:
    shadow = Shadow()
    taken = shadow.take(5)
    taken[:] = b"abcde"
    shadow.take(2)
    shadow.wipe()
    assert not any(taken)
    assert len(shadow.take(0)) == 0


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1, 3 << 20])
def test_wiping_reaches_every_byte(size: int) -> None:
    buffer = new_buffer(size)
    buffer[:] = b"\xaa" * size
    wipe(buffer)
    assert bytes(buffer) == bytes(size)
