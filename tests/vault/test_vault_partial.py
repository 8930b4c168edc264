import functools
import json
from contextlib import nullcontext

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from vault_streams import AAD, FIRST, KEY, MIB, NEXT, encrypt, message

from fedveil.vault import partial, stream
from fedveil.vault.buffers import ReadAt, buffer_reader
from fedveil.vault.errors import ExtendedError, TamperedError, TensorError, TruncatedError
from fedveil.vault.partial import read_tensors
from fedveil.vault.segments import Segments
from fedveil.vault.tensors import Array, Place, TensorFile

THREADS = [1, 2, 4]


def values(count: int) -> Array:
    return np.frombuffer(message(4 * count), np.uint32)


TENSORS: dict[str, Array] = {
    "a.large": values(3 * MIB // 4),
    "b.scalar": np.array(7.5, np.float32),
    "c.empty": np.zeros((0, 3), np.int8),
    "d.matrix": values(600_000).reshape(600, 1000),
    "e.small": np.arange(10, dtype=np.int64),
    "f.last": values(300),
}


@pytest.fixture(scope="module")
def sealed() -> tuple[bytes, int]:
    """Return the stream, and the length of its plaintext."""
    file = TensorFile(TENSORS)
    return bytes(encrypt(list(file.chunks()))), file.nbytes


class Watched:
    """A source that knows which segments were read."""

    def __init__(self, data: bytes) -> None:
        self._read = buffer_reader(data)
        self.segments: set[int] = set()

    def __call__(self, position: int, scratch: memoryview) -> memoryview:
        self.segments |= {position // MIB, (position + len(scratch) - 1) // MIB}
        return self._read(position, scratch)


def some(
    names: list[str], read: ReadAt, size: int, threads: int = 1, aad: bytes = AAD
) -> dict[str, Array]:
    return read_tensors(names, KEY, read, 0, size, aad, threads=threads)


@given(st.permutations(sorted(TENSORS)), st.integers(0, len(TENSORS)), st.sampled_from(THREADS))
@settings(max_examples=40)
def test_any_tensors_come_back(
    sealed: tuple[bytes, int], names: list[str], count: int, threads: int
) -> None:
    found = some(names[:count], buffer_reader(sealed[0]), sealed[1], threads)
    assert list(found) == names[:count]
    for name, array in found.items():
        assert array.dtype == TENSORS[name].dtype
        assert array.shape == TENSORS[name].shape
        assert array.flags.writeable
        np.testing.assert_array_equal(array, TENSORS[name])


@functools.cache
def segments_of(name: str) -> set[int]:
    """Return which segments hold the header or a tensor, by the library's own layout."""
    plain = safetensors.numpy.save(TENSORS)
    head = 8 + int.from_bytes(plain[:8], "little")
    begin, end = json.loads(plain[8:head])[name]["data_offsets"]
    return {0} | {(head + place + 40 + 16) // NEXT for place in range(begin, end)}


def test_only_the_segments_that_hold_them_are_read(sealed: tuple[bytes, int]) -> None:
    assert len(segments_of("a.large")) == 4
    assert segments_of("c.empty") == {0}
    for name in TENSORS:
        read = Watched(sealed[0])
        some([name], read, sealed[1])
        assert read.segments == segments_of(name)


def test_damage_elsewhere_does_not_matter_and_damage_there_does(
    sealed: tuple[bytes, int],
) -> None:
    data, size = sealed
    for index in range(1, Segments(size).count):
        changed = bytearray(data)
        changed[index * MIB + 100] ^= 1
        for name, array in TENSORS.items():
            if index in segments_of(name):
                with pytest.raises(TamperedError, match=f"segment {index} "):
                    some([name], buffer_reader(changed), size)
            else:
                found = some([name], buffer_reader(changed), size)
                np.testing.assert_array_equal(found[name], array)


def test_the_first_segment_is_always_checked(sealed: tuple[bytes, int]) -> None:
    changed = bytearray(sealed[0])
    changed[500] ^= 1
    with pytest.raises(TamperedError, match="segment 0 "):
        some([], buffer_reader(changed), sealed[1])


def test_swapped_segments_are_refused(sealed: tuple[bytes, int]) -> None:
    data, size = sealed
    swapped = data[:MIB] + data[2 * MIB : 3 * MIB] + data[MIB : 2 * MIB] + data[3 * MIB :]
    with pytest.raises(TamperedError, match="segment 1 "):
        some(["a.large"], buffer_reader(swapped), size)


def test_a_cut_stream_is_refused_where_it_is_read(sealed: tuple[bytes, int]) -> None:
    """Under a length that was made to fit; a bound length would fail before."""
    data, size = sealed
    count = Segments(size).count
    shorter = FIRST + (count - 2) * NEXT
    with pytest.raises(TruncatedError, match="bytes early"):
        some(["f.last"], buffer_reader(data[: (count - 1) * MIB]), size)
    opener = stream.SegmentOpener(KEY, buffer_reader(data), 0, Segments(shorter), AAD)
    scratch, out = memoryview(bytearray(MIB)), memoryview(bytearray(NEXT))
    with pytest.raises(TruncatedError, match=f"after segment {count - 2}"):
        opener.open(count - 2, scratch, out)


def test_a_stream_that_ends_where_more_is_claimed_is_refused() -> None:
    data = encrypt(bytes(FIRST)) + bytes(MIB)
    with pytest.raises(ExtendedError, match="ends with segment 0"):
        some([], buffer_reader(data), FIRST + NEXT)


def test_other_associated_data_is_refused(sealed: tuple[bytes, int]) -> None:
    with pytest.raises(TamperedError):
        some(["e.small"], buffer_reader(sealed[0]), sealed[1], aad=AAD + b"!")


def test_an_unknown_name_is_refused(sealed: tuple[bytes, int]) -> None:
    with pytest.raises(TensorError, match="no tensor 'nobody' among the 6"):
        some(["e.small", "nobody"], buffer_reader(sealed[0]), sealed[1])


def test_a_long_header_is_read_as_a_whole() -> None:
    tensors: dict[str, Array] = {f"{i:03}" + "n" * 9000: np.arange(i) for i in range(250)}
    data = safetensors.numpy.save(tensors)
    assert int.from_bytes(data[:8], "little") > 2 * MIB
    name = sorted(tensors)[-1]
    found = some([name], buffer_reader(encrypt(data)), len(data), threads=2)
    np.testing.assert_array_equal(found[name], tensors[name])


@pytest.mark.parametrize(
    "plaintext",
    [b"", b"1234567", (1 << 60).to_bytes(8, "little") + b"{}", b"\2" + bytes(7) + b"{}left over"],
)
def test_what_is_no_safetensors_file_is_refused(plaintext: bytes) -> None:
    with pytest.raises(TensorError):
        some([], buffer_reader(encrypt(plaintext)), len(plaintext))


@pytest.mark.parametrize("threads", THREADS)
def test_nothing_decrypted_survives_a_failure(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Neither in what would have been returned nor in the memory on the way there."""
    kept: list[memoryview] = []
    held: list[int] = []

    class Spy:
        def __init__(self, key: bytes) -> None:
            self._real = AESGCM(key)

        def decrypt_into(
            self, nonce: bytes, data: memoryview, aad: bytes | None, out: memoryview
        ) -> int:
            try:
                return self._real.decrypt_into(nonce, data, aad, out)
            finally:
                kept.append(out)
                held.append(bytes(out).count(0xAA))

    file = TensorFile({"x": np.full(5 * MIB, 0xAA, np.uint8)})
    data = encrypt(list(file.chunks()))
    data[4 * MIB + 5] ^= 1
    monkeypatch.setattr(stream, "AESGCM", Spy)
    outs: list[memoryview] = []

    def new_buffer(size: int) -> memoryview:
        outs.append(memoryview(bytearray(b"\xaa" * size)))
        return outs[-1]

    monkeypatch.setattr("fedveil.vault.partial.new_buffer", new_buffer)
    with pytest.raises(TamperedError, match="segment 4 "):
        some(["x"], buffer_reader(data), file.nbytes, threads)
    assert max(held) > 1_000_000
    assert all(bytes(memory).count(0xAA) == 0 for memory in kept)
    assert len(outs) == 2
    assert bytes(outs[1]) == bytes(5 * MIB)


@pytest.mark.parametrize("name", ["e.small", "nobody"])
def test_the_first_segment_does_not_stay_in_memory(
    sealed: tuple[bytes, int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It holds whatever arrays come first, also those that nobody asked for."""
    outs: list[memoryview] = []
    seen: list[bytes] = []

    def new_buffer(size: int) -> memoryview:
        outs.append(memoryview(bytearray(size)))
        return outs[-1]

    def places(head: memoryview, total: int) -> list[Place]:
        seen.append(bytes(outs[0]))
        return real(head, total)

    real = partial.places
    monkeypatch.setattr("fedveil.vault.partial.new_buffer", new_buffer)
    monkeypatch.setattr("fedveil.vault.partial.places", places)
    with pytest.raises(TensorError) if name == "nobody" else nullcontext():
        some([name], buffer_reader(sealed[0]), sealed[1])
    assert sum(map(bool, seen[0])) > 500_000
    assert bytes(outs[0]) == bytes(len(outs[0]))
