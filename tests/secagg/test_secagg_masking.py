from __future__ import annotations

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedveil.secagg.masking import BLOCK_BYTES, Keystream, Mask, apply_masks

KEY = bytes(range(32))
OTHER = bytes(range(32, 64))
TYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
TAIL = 64


def one_shot(key: bytes, size: int) -> bytes:
    """Return the keystream at once, by counter blocks that are encrypted one by one in ECB."""
    blocks = -(-size // 16)
    # Block 1 is the one that GCM keeps for its tag.
    counters = b"".join((2 + i).to_bytes(16, "big") for i in range(blocks))
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  # the definition of CTR
    return (encryptor.update(counters) + encryptor.finalize())[:size]


def drawn(stream: Keystream, *sizes: int) -> bytes:
    out = b""
    for size in sizes:
        buffer = bytearray(size + 16)
        stream.fill(memoryview(buffer), size)
        out += bytes(buffer[:size])
    return out


def masked(
    masks: list[Mask], dimension: int, width: int = 4, tail: int = TAIL
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint64]]:
    vector = np.zeros(dimension, TYPES[width])
    words = np.zeros(tail, "<u8")
    apply_masks(masks, vector, words)
    return vector, words


def test_the_oracle_gives_the_published_vector_of_ctr_with_aes_256() -> None:
    # NIST SP 800-38A, F.5.5: the keystream is the "output block" of counters f0f1..ff upwards.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    outputs = [
        "0bdf7df1591716335e9a8b15c860c502",
        "5a6e699d536119065433863c8f657b94",
        "1bc12c9c01610d5d0d8bd6a3378eca62",
        "2956e1c8693536b1bee99c73a31576b6",
    ]
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  # the definition of CTR
    for i, expected in enumerate(outputs):
        assert ecb.update((counter + i).to_bytes(16, "big")).hex() == expected
    ctr = Cipher(algorithms.AES(key), modes.CTR(counter.to_bytes(16, "big"))).encryptor()
    assert ctr.update(bytes(64)).hex() == "".join(outputs)


def test_the_keystream_is_the_published_ciphertext_of_zeros() -> None:
    # McGrew and Viega, "The Galois/Counter Mode of Operation", test case 14: all is zero.
    expected = "cea7403d4d606b6e074ec5d3baf39d18"
    assert drawn(Keystream(bytes(32)), 16).hex() == expected


@given(st.binary(min_size=32, max_size=32), st.lists(st.integers(0, 200), max_size=8))
@settings(max_examples=80)
def test_the_keystream_is_that_of_aes_256_ctr_however_it_is_cut(
    key: bytes, sizes: list[int]
) -> None:
    assert drawn(Keystream(key), *sizes) == one_shot(key, sum(sizes))


def test_whole_blocks_of_keystream_follow_each_other() -> None:
    sizes = [BLOCK_BYTES, BLOCK_BYTES - 2, 6, BLOCK_BYTES]
    assert drawn(Keystream(KEY), *sizes) == one_shot(KEY, sum(sizes))


def test_a_keystream_without_a_key_is_drawn_anew() -> None:
    assert drawn(Keystream(), 64) != drawn(Keystream(), 64)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="key"):
        Keystream(bytes(length))


def sizes_around_blocks(width: int) -> list[int]:
    step = BLOCK_BYTES // width
    return [0, 1, 7, 8, 9, step - 1, step, step + 1, 2 * step - 1, 2 * step, 2 * step + 3]


@pytest.mark.parametrize(
    ("width", "dimension"), [(w, d) for w in TYPES for d in sizes_around_blocks(w)]
)
def test_a_mask_is_the_keystream_and_the_tail_goes_on_where_the_vector_ends(
    width: int, dimension: int
) -> None:
    vector, tail = masked([Mask(KEY, 1)], dimension, width)
    stream = one_shot(KEY, dimension * width + TAIL * 8)
    assert vector.tobytes() + tail.tobytes() == stream


@pytest.mark.parametrize(
    ("width", "dimension"), [(w, d) for w in TYPES for d in sizes_around_blocks(w)]
)
def test_masks_of_a_pair_cancel(width: int, dimension: int) -> None:
    one, one_tail = masked([Mask(KEY, 1)], dimension, width)
    other, other_tail = masked([Mask(KEY, -1)], dimension, width)
    assert not (one + other).any()
    assert not (one_tail + other_tail).any()
    if dimension:
        assert one.any()
    assert one_tail.any()


@pytest.mark.parametrize("width", TYPES)
def test_several_masks_are_added_with_their_signs(width: int) -> None:
    dimension = BLOCK_BYTES // width + 5
    keys = [bytes([i]) * 32 for i in range(5)]
    signs = [1, -1, -1, 1, -1]
    vector, tail = masked([Mask(k, s) for k, s in zip(keys, signs, strict=True)], dimension, width)
    expected = np.zeros(dimension, TYPES[width])
    expected_tail = np.zeros(TAIL, "<u8")
    for key, sign in zip(keys, signs, strict=True):
        stream = one_shot(key, dimension * width + TAIL * 8)
        words = np.frombuffer(stream, TYPES[width], dimension)
        tail_words = np.frombuffer(stream, "<u8", offset=dimension * width)
        expected = expected + words if sign > 0 else expected - words
        expected_tail = expected_tail + tail_words if sign > 0 else expected_tail - tail_words
    assert vector.tobytes() == expected.tobytes()
    assert tail.tobytes() == expected_tail.tobytes()


@given(
    st.data(),
    st.sampled_from([2, 4]),
    st.integers(0, 50),
    st.lists(st.tuples(st.integers(0, 255), st.sampled_from([1, -1])), max_size=6),
)
@settings(max_examples=60)
def test_masks_are_added_to_what_is_there_and_taken_off_again(
    data: st.DataObject, width: int, dimension: int, drawn_masks: list[tuple[int, int]]
) -> None:
    raw = data.draw(st.binary(min_size=dimension * width, max_size=dimension * width))
    vector, tail = np.frombuffer(raw, TYPES[width]).copy(), np.arange(5, dtype="<u8")
    masks = [Mask(bytes([key]) * 32, sign) for key, sign in drawn_masks]
    apply_masks(masks, vector, tail)
    apply_masks([Mask(mask.key, -mask.sign) for mask in masks], vector, tail)
    assert vector.tobytes() == raw
    assert tail.tolist() == [0, 1, 2, 3, 4]


def test_the_masks_of_five_clients_vanish_in_their_sum() -> None:
    total, total_tail = masked([], 1000)
    for client in range(5):
        masks = [
            Mask(bytes([min(client, other), max(client, other)]) * 16, 1 if client < other else -1)
            for other in range(5)
            if other != client
        ]
        vector, tail = masked(masks, 1000)
        assert vector.any()
        total, total_tail = total + vector, total_tail + tail
    assert not total.any()
    assert not total_tail.any()


def test_no_two_blocks_or_keys_give_the_same_mask() -> None:
    step = BLOCK_BYTES // 4
    long, _ = masked([Mask(KEY, 1)], 3 * step)
    other, _ = masked([Mask(OTHER, 1)], 3 * step)
    blocks = [*long.reshape(3, step), *other.reshape(3, step)]
    for one, another in itertools.combinations(blocks, 2):
        assert (one == another).mean() < 0.01


def test_a_mask_shows_no_key() -> None:
    mask = Mask(KEY, -1)
    assert repr(mask) == str(mask) == "Mask(sign=-1)"
