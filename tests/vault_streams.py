"""Streams for the tests of the vault: how they are made, opened and measured out."""

import os
from collections.abc import Sequence

from fedveil.vault.buffers import BytesLike, buffer_reader, new_buffer
from fedveil.vault.hashlist import HashList
from fedveil.vault.stream import decrypt_into, encrypt_to

__all__ = ["AAD", "FIRST", "KEY", "MIB", "NEXT", "Kept", "decrypt", "encrypt", "message"]

MIB = 1 << 20
KEY = bytes(range(32))
AAD = b"associated"
FIRST = MIB - 40 - 16
NEXT = MIB - 16


class Kept:
    """Keeps what is written, and how long every piece was."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.lengths: list[int] = []

    def write(self, data: memoryview) -> None:
        self.content += data
        self.lengths.append(len(data))


def message(size: int) -> bytes:
    """Return bytes in which no two segments are the same."""
    return (os.urandom(997) * (size // 997 + 1))[:size]


def encrypt(
    plaintext: bytes | Sequence[BytesLike],
    key: bytes = KEY,
    aad: bytes = AAD,
    threads: int = 1,
    hashes: HashList | None = None,
) -> bytearray:
    """Return the stream of a plaintext."""
    chunks = [plaintext] if isinstance(plaintext, bytes) else plaintext
    sink, size = Kept(), sum(len(chunk) for chunk in chunks)
    written = encrypt_to(sink, key, chunks, size, aad, threads=threads, hashes=hashes)
    assert written == len(sink.content)
    return sink.content


def decrypt(
    ciphertext: BytesLike,
    key: bytes = KEY,
    aad: bytes = AAD,
    threads: int = 1,
    hashes: HashList | None = None,
) -> bytes:
    """Return the plaintext of a stream of any length that a stream can have."""
    out = new_buffer(plain_bytes(len(ciphertext)))
    decrypt_into(out, key, buffer_reader(ciphertext), 0, aad, threads=threads, hashes=hashes)
    return bytes(out)


def plain_bytes(ciphertext_bytes: int) -> int:
    """Return the length of a plaintext; 0 where no stream has that length."""
    segments = max(1, -(-ciphertext_bytes // MIB))
    return max(0, ciphertext_bytes - 40 - 16 * segments)
