import io
import os
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from tink import cleartext_keyset_handle, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

from fedveil.vault import stream
from fedveil.vault.buffers import SEGMENT_BYTES, buffer_source, regroup
from fedveil.vault.errors import ExtendedError, TamperedError, TruncatedError, VaultError

KEY = bytes(range(32))
AAD = b"associated"
FIRST = SEGMENT_BYTES - 40 - 16
NEXT = SEGMENT_BYTES - 16
SIZES = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT, FIRST + NEXT + 1]


class Oracle(Protocol):
    def new_encrypting_stream(self, destination: io.BytesIO, aad: bytes) -> io.BufferedWriter: ...

    def new_decrypting_stream(self, source: io.BytesIO, aad: bytes) -> io.BufferedReader: ...


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    streaming_aead.register()
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(key_value=KEY)
    key.params.ciphertext_segment_size = SEGMENT_BYTES
    key.params.derived_key_size = 32
    key.params.hkdf_hash_type = common_pb2.SHA256
    template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
    expected = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKeyFormat.FromString(template.value)
    assert key.params == expected.params
    keyset = tink_pb2.Keyset(primary_key_id=1)
    entry = keyset.key.add()
    entry.key_id = 1
    entry.status = tink_pb2.ENABLED
    entry.output_prefix_type = tink_pb2.RAW
    entry.key_data.type_url = template.type_url
    entry.key_data.value = key.SerializeToString()
    entry.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    handle = cleartext_keyset_handle.from_keyset(keyset)
    primitive: Oracle = handle.primitive(streaming_aead.StreamingAead)
    return primitive


class Kept(io.BytesIO):
    """Keeps its content when tink closes it."""

    content = b""

    def close(self) -> None:
        self.content = self.getvalue()
        super().close()


def message(size: int) -> bytes:
    return (os.urandom(997) * (size // 997 + 1))[:size]


@pytest.fixture(scope="module")
def three_segments() -> tuple[bytes, bytes]:
    plaintext = message(FIRST + NEXT + 1000)
    return plaintext, bytes(stream.encrypt(KEY, plaintext, AAD))


@pytest.mark.parametrize("size", SIZES)
def test_tink_reads_what_is_written(oracle: Oracle, size: int) -> None:
    plaintext = message(size)
    ciphertext = bytes(stream.encrypt(KEY, plaintext, AAD))
    with oracle.new_decrypting_stream(io.BytesIO(ciphertext), AAD) as reader:
        assert reader.read() == plaintext


@pytest.mark.parametrize("size", SIZES)
def test_what_tink_writes_is_read(oracle: Oracle, size: int) -> None:
    plaintext, kept = message(size), Kept()
    with oracle.new_encrypting_stream(kept, AAD) as writer:
        writer.write(plaintext)
    assert len(kept.content) == stream.ciphertext_size(size)
    assert stream.decrypt(KEY, kept.content, AAD) == plaintext


def test_same_plaintext_never_gives_the_same_stream() -> None:
    assert stream.encrypt(KEY, b"same", AAD) != stream.encrypt(KEY, b"same", AAD)


@given(st.integers(0, 1 << 50))
def test_sizes_are_inverse(size: int) -> None:
    assert stream.plaintext_size(stream.ciphertext_size(size)) == size


@given(st.integers(0, 4 * SEGMENT_BYTES))
def test_lengths_that_no_stream_has_are_refused(length: int) -> None:
    try:
        size = stream.plaintext_size(length)
    except TruncatedError:
        segments, rest = divmod(length, SEGMENT_BYTES)
        assert length < 56 or (segments > 0 and 1 <= rest <= 16)
    else:
        assert stream.ciphertext_size(size) == length


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        stream.ciphertext_size(-1)
    with pytest.raises(ValueError, match="segments"):
        stream.ciphertext_size(1 << 52)


@given(st.lists(st.integers(0, 700_000), max_size=6))
@settings(max_examples=25, deadline=None)
def test_pieces_of_any_lengths_give_the_same_plaintext(sizes: list[int]) -> None:
    chunks = [message(size) for size in sizes]
    sink = io.BytesIO()
    written = stream.encrypt_to(sink, KEY, chunks, sum(sizes), AAD)
    assert written == len(sink.getvalue()) == stream.ciphertext_size(sum(sizes))
    assert stream.decrypt(KEY, sink.getvalue(), AAD) == b"".join(chunks)


@pytest.mark.parametrize("chunks", [[], [b"123"], [b"1234", b"5"], [b"123456"]])
def test_chunks_of_another_total_length_are_refused(chunks: list[bytes]) -> None:
    with pytest.raises(ValueError, match="announced 4"):
        stream.encrypt_to(io.BytesIO(), KEY, chunks, 4, AAD)


def test_writing_takes_one_segment_at_a_time() -> None:
    lengths: list[int] = []

    class Sink:
        def write(self, data: memoryview) -> None:
            lengths.append(len(data))

    stream.encrypt_to(Sink(), KEY, [bytes(5 * SEGMENT_BYTES)], 5 * SEGMENT_BYTES, AAD)
    assert max(lengths) == SEGMENT_BYTES
    assert len(lengths) == 7


def test_staging_is_wiped_after_use() -> None:
    parts = list(regroup([b"ab", b"cd"], [4]))
    assert bytes(parts[0]) == bytes(4)


def test_truncation_on_a_boundary_is_named(three_segments: tuple[bytes, bytes]) -> None:
    ciphertext = three_segments[1]
    for segments in (1, 2):
        with pytest.raises(TruncatedError, match=f"after segment {segments - 1}"):
            stream.decrypt(KEY, ciphertext[: segments * SEGMENT_BYTES], AAD)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_truncation_anywhere_is_refused(
    three_segments: tuple[bytes, bytes], data: st.DataObject
) -> None:
    ciphertext = three_segments[1]
    length = data.draw(st.integers(0, len(ciphertext) - 1))
    with pytest.raises((TruncatedError, TamperedError)):
        stream.decrypt(KEY, ciphertext[:length], AAD)


def test_an_appended_segment_is_named() -> None:
    whole = bytes(stream.encrypt(KEY, message(FIRST), AAD))
    assert len(whole) == SEGMENT_BYTES
    with pytest.raises(ExtendedError, match="ends with segment 0"):
        stream.decrypt(KEY, whole + bytes(100), AAD)


@given(tail=st.binary(min_size=1, max_size=64))
@settings(max_examples=40)
def test_extension_within_a_segment_is_refused(tail: bytes) -> None:
    whole = bytes(stream.encrypt(KEY, b"short", AAD))
    with pytest.raises(TamperedError):
        stream.decrypt(KEY, whole + tail, AAD)


def test_reordered_segments_are_refused() -> None:
    whole = bytes(stream.encrypt(KEY, message(FIRST + 2 * NEXT + 5), AAD))
    cut = [whole[i : i + SEGMENT_BYTES] for i in range(0, len(whole), SEGMENT_BYTES)]
    with pytest.raises(TamperedError, match="segment 1"):
        stream.decrypt(KEY, b"".join([cut[0], cut[2], cut[1], cut[3]]), AAD)


def test_a_segment_of_another_stream_is_refused() -> None:
    plaintext = message(FIRST + 100)
    one, other = (bytes(stream.encrypt(KEY, plaintext, AAD)) for _ in range(2))
    with pytest.raises(TamperedError, match="segment 1"):
        stream.decrypt(KEY, one[:SEGMENT_BYTES] + other[SEGMENT_BYTES:], AAD)


def test_every_flipped_bit_of_a_short_stream_is_refused() -> None:
    whole = bytes(stream.encrypt(KEY, b"sixteen bytes ok", AAD))
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TamperedError):
            stream.decrypt(KEY, changed, AAD)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_flipped_bit_anywhere_is_refused(
    three_segments: tuple[bytes, bytes], data: st.DataObject
) -> None:
    changed = bytearray(three_segments[1])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(TamperedError):
        stream.decrypt(KEY, changed, AAD)


@pytest.mark.parametrize(
    ("key", "aad"), [(bytes(32), AAD), (KEY, b""), (KEY, AAD + b"\0"), (KEY, AAD.upper())]
)
def test_another_key_or_associated_data_is_refused(key: bytes, aad: bytes) -> None:
    with pytest.raises(TamperedError):
        stream.decrypt(key, stream.encrypt(KEY, b"text", AAD), aad)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes, not 32"):
        stream.encrypt(bytes(length), b"", b"")


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[memoryview, bytes]]]:
    """Record each output buffer of a decryption, and what it held straight afterwards."""
    seen: list[tuple[memoryview, bytes]] = []

    class Spy:
        def __init__(self, key: bytes) -> None:
            self._real = AESGCM(key)

        def decrypt_into(
            self, nonce: bytes, data: memoryview, aad: bytes | None, out: memoryview
        ) -> int:
            try:
                return self._real.decrypt_into(nonce, data, aad, out)
            finally:
                seen.append((out, bytes(out)))

        def encrypt_into(
            self, nonce: bytes, data: memoryview, aad: bytes | None, out: memoryview
        ) -> int:
            return self._real.encrypt_into(nonce, data, aad, out)

    monkeypatch.setattr(stream, "AESGCM", Spy)
    yield seen
    for out, _ in seen:
        out.release()


Damage = Callable[[bytearray], bytearray]


def flip_last(data: bytearray) -> bytearray:
    data[-1] ^= 1
    return data


@pytest.mark.parametrize(
    "damage", [flip_last, lambda data: data[:-1], lambda data: data[:SEGMENT_BYTES]]
)
def test_nothing_decrypted_survives_a_failure(
    buffers: list[tuple[memoryview, bytes]], damage: Damage
) -> None:
    plaintext = b"\xaa" * (FIRST + 5000)
    with pytest.raises(VaultError):
        stream.decrypt(KEY, damage(stream.encrypt(KEY, plaintext, AAD)), AAD)
    assert any(b"\xaa" * 1000 in before for _, before in buffers), "nothing had been decrypted"
    assert all(bytes(out) == bytes(len(out)) for out, _ in buffers)


def test_nothing_decrypted_survives_a_failing_source(
    buffers: list[tuple[memoryview, bytes]],
) -> None:
    ciphertext = stream.encrypt(KEY, b"\xaa" * (FIRST + 5000), AAD)
    whole = buffer_source(ciphertext)
    asked: list[int] = []

    def source(size: int) -> memoryview:
        asked.append(size)
        if len(asked) == 3:
            raise OSError("the disk is gone")
        return whole(size)

    with pytest.raises(OSError, match="gone"):
        stream.decrypt_from(source, KEY, len(ciphertext), AAD)
    assert buffers[0][1] == b"\xaa" * FIRST
    assert bytes(buffers[0][0]) == bytes(FIRST)


def test_a_buffer_source_never_gives_too_little() -> None:
    source = buffer_source(b"abc")
    assert bytes(source(2)) == b"ab"
    with pytest.raises(TruncatedError, match="2 bytes expected at 2, only 1"):
        source(2)
