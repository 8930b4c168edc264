import hashlib

import pytest
from vault_streams import FIRST, MIB, NEXT, decrypt, encrypt, message

from fedveil.vault.buffers import buffer_reader
from fedveil.vault.errors import TamperedError, TruncatedError
from fedveil.vault.hashlist import HashList, stream_digest

THREADS = [1, 2, 4]
SIZES = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT, FIRST + NEXT + 1, FIRST + 6 * NEXT + 77]


def by_hand(data: bytes | bytearray) -> bytes:
    pieces = (data[begin : begin + MIB] for begin in range(0, len(data), MIB))
    return hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).digest()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", SIZES)
def test_all_ways_to_the_digest_agree(size: int, threads: int) -> None:
    plaintext = message(size)
    total = 40 + size + 16 * (1 + -(-max(0, size - FIRST) // NEXT))
    written, read = HashList(total), HashList(total)
    ciphertext = encrypt(plaintext, threads=threads, hashes=written)
    assert decrypt(ciphertext, threads=threads, hashes=read) == plaintext
    assert written.digest() == read.digest() == by_hand(ciphertext)
    around = buffer_reader(b"12345" + ciphertext + b"more")
    assert stream_digest(around, 5, total, threads=threads) == by_hand(ciphertext)


def test_the_digest_is_that_of_other_tools() -> None:
    """The expected one was made with head, tail, sha256sum and xxd."""
    data = bytes(range(256)) * 4096 + b"tail"
    expected = "20185b96eb263c014b5db6b3650e2c0d2a6e5b633367a2e8bfa5a92ebc4b2d36"
    assert stream_digest(buffer_reader(data), 0, len(data)).hex() == expected


@pytest.mark.parametrize("place", [0, 39, 40, MIB - 1, MIB, 3 * MIB + 9])
def test_a_changed_byte_anywhere_changes_the_digest(place: int) -> None:
    ciphertext = encrypt(message(FIRST + 3 * NEXT))
    before = stream_digest(buffer_reader(ciphertext), 0, len(ciphertext), threads=2)
    ciphertext[place] ^= 1
    assert stream_digest(buffer_reader(ciphertext), 0, len(ciphertext), threads=2) != before


def test_the_order_of_pieces_counts() -> None:
    one, other = HashList(2 * MIB), HashList(2 * MIB)
    for hashes, order in ((one, (0, 1)), (other, (1, 0))):
        for index, piece in zip(order, (b"a", b"b"), strict=True):
            hashes.add(index, piece)
    assert one.digest() != other.digest()


def test_a_missing_piece_gives_no_digest() -> None:
    hashes = HashList(3 * MIB)
    hashes.add(1, b"only this one")
    with pytest.raises(ValueError, match="2 of 3 pieces"):
        hashes.digest()


def test_a_failed_decryption_gives_no_digest() -> None:
    ciphertext = encrypt(message(FIRST + 2 * NEXT))
    ciphertext[MIB] ^= 1
    hashes = HashList(len(ciphertext))
    with pytest.raises(TamperedError):
        decrypt(ciphertext, hashes=hashes)
    with pytest.raises(ValueError, match="pieces have not been hashed"):
        hashes.digest()


@pytest.mark.parametrize("threads", THREADS)
def test_a_source_that_ends_early_gives_no_digest(threads: int) -> None:
    with pytest.raises(TruncatedError):
        stream_digest(buffer_reader(bytes(3 * MIB - 1)), 0, 3 * MIB, threads=threads)
