"""Sealing and opening single encrypted files in memory, and taking them apart."""

from __future__ import annotations

from collections.abc import Mapping

from fedveil.vault.buffers import BytesLike, buffer_reader
from fedveil.vault.checkpoint import Access, open_from
from fedveil.vault.header import Address, Header, MetaValue
from fedveil.vault.kek.key_file import KeyFileKek
from fedveil.vault.keyfile import Key
from fedveil.vault.sealing import seal_to
from fedveil.vault.signing import SigningKey, VerifyKey
from fedveil.vault.tensors import Array

KEK_SECRET = bytes(range(100, 132))
KEK = KeyFileKek(Key(KEK_SECRET))
MODEL_KEY = Key(bytes(range(32)))
SIGNING_KEY = SigningKey(bytes(range(32, 64)))
VERIFY_KEY = SIGNING_KEY.verify_key
ADDRESS = Address("model", "0123456789abcdef", "digits", 7)


class MemorySink:
    """Grows with what is written to it."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: memoryview) -> None:
        self.content += data

    def write_at(self, position: int, data: memoryview) -> None:
        assert position + len(data) <= len(self.content)
        self.content[position : position + len(data)] = data


def seal(
    tensors: Mapping[str, Array],
    meta: Mapping[str, MetaValue] | None = None,
    *,
    address: Address = ADDRESS,
    model_key: Key = MODEL_KEY,
    signing_key: SigningKey | None = SIGNING_KEY,
    previous: str = "",
    state: str = "",
) -> bytes:
    """Return an encrypted file."""
    sink = MemorySink()
    seal_to(
        sink,
        address,
        tensors,
        meta or {},
        model_key=model_key,
        signing_key=signing_key,
        previous=previous,
        state=state,
    )
    return bytes(sink.content)


def open_sealed(
    data: BytesLike,
    *,
    address: Address = ADDRESS,
    model_key: Key = MODEL_KEY,
    verify_key: VerifyKey | None = VERIFY_KEY,
    threads: int = 1,
) -> tuple[Header, dict[str, Array]]:
    """Open an encrypted file."""
    access = Access(address, model_key, verify_key, threads)
    return open_from(buffer_reader(data), memoryview(data).nbytes, access)


def header_end(data: bytes) -> int:
    """Return where the header ends, by the format's description alone."""
    assert data[:6] == b"FVLT2\n"
    return 10 + int.from_bytes(data[6:10], "big")


def parts(data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return header, slots, seal and stream, by the format's description alone."""
    end = header_end(data)
    return data[10:end], data[end : end + 192], data[end + 192 : end + 288], data[end + 288 :]


def join(header: bytes, slots: bytes, seal_: bytes, stream: bytes) -> bytes:
    """Put together what `parts` took apart."""
    return b"FVLT2\n" + len(header).to_bytes(4, "big") + header + slots + seal_ + stream
