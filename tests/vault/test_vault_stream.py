import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from tink import cleartext_keyset_handle, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2
from vault_streams import AAD, FIRST, KEY, MIB, NEXT, Kept, decrypt, encrypt, message

from fedveil.vault import stream
from fedveil.vault.buffers import buffer_reader, new_buffer
from fedveil.vault.errors import ExtendedError, TamperedError, TruncatedError, VaultError
from fedveil.vault.segments import ciphertext_size

SIZES = [
    *(0, 1, 1000, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT, FIRST + NEXT + 1),
    *(FIRST + 5 * NEXT - 1, FIRST + 5 * NEXT, FIRST + 7 * NEXT + 12345),
]
THREADS = [1, 2, 4]


class Oracle(Protocol):
    def new_encrypting_stream(self, destination: io.BytesIO, aad: bytes) -> io.BufferedWriter: ...

    def new_decrypting_stream(self, source: io.BytesIO, aad: bytes) -> io.BufferedReader: ...


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    streaming_aead.register()
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(key_value=KEY)
    key.params.ciphertext_segment_size = MIB
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


class Closed(io.BytesIO):
    """Keeps its content when tink closes it."""

    content = b""

    def close(self) -> None:
        self.content = self.getvalue()
        super().close()


@pytest.fixture(scope="module")
def three_segments() -> tuple[bytes, bytes]:
    plaintext = message(FIRST + NEXT + 1000)
    return plaintext, bytes(encrypt(plaintext))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", SIZES)
def test_tink_reads_what_is_written(oracle: Oracle, size: int, threads: int) -> None:
    plaintext = message(size)
    ciphertext = encrypt(plaintext, threads=threads)
    assert len(ciphertext) == ciphertext_size(size)
    assert oracle.new_decrypting_stream(io.BytesIO(ciphertext), AAD).read() == plaintext


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", SIZES)
def test_what_tink_wrote_is_read(oracle: Oracle, size: int, threads: int) -> None:
    plaintext = message(size)
    kept = Closed()
    with oracle.new_encrypting_stream(kept, AAD) as writer:
        writer.write(plaintext)
    assert len(kept.content) == ciphertext_size(size)
    assert decrypt(kept.content, threads=threads) == plaintext


def test_same_plaintext_never_gives_the_same_stream() -> None:
    assert encrypt(b"same") != encrypt(b"same")


@given(st.lists(st.integers(0, 700_000), max_size=6), st.sampled_from(THREADS))
@settings(max_examples=25)
def test_chunks_of_any_lengths_give_the_same_plaintext(sizes: list[int], threads: int) -> None:
    chunks = [message(size) for size in sizes]
    assert decrypt(encrypt(chunks, threads=threads)) == b"".join(chunks)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("chunks", [[], [b"123"], [b"1234", b"5"], [b"123456"]])
def test_chunks_of_another_total_length_are_refused(chunks: list[bytes], threads: int) -> None:
    with pytest.raises(ValueError, match="announced 4"):
        stream.encrypt_to(Kept(), KEY, chunks, 4, AAD, threads=threads)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"{threads} threads"):
        encrypt(b"text", threads=threads)
    with pytest.raises(ValueError, match=f"{threads} threads"):
        decrypt(encrypt(b"text"), threads=threads)


def test_writing_takes_one_segment_at_a_time() -> None:
    kept = Kept()
    stream.encrypt_to(kept, KEY, [bytes(5 * MIB)], 5 * MIB, AAD, threads=2)
    assert kept.lengths == [MIB] * 5 + [ciphertext_size(5 * MIB) - 5 * MIB]


@pytest.mark.parametrize("threads", THREADS)
def test_memory_in_use_does_not_grow_with_the_length(threads: int) -> None:
    """No more than a few segments are ahead of the sink, whatever follows."""
    kept, ahead = Kept(), []

    def chunks() -> Iterator[bytes]:
        for index in range(40):
            ahead.append(index - len(kept.lengths))
            yield bytes(NEXT)

    stream.encrypt_to(kept, KEY, chunks(), 40 * NEXT, AAD, threads=threads)
    assert max(ahead) <= threads + 2


@pytest.mark.parametrize("threads", THREADS)
def test_staged_plaintext_is_wiped(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    staged: list[memoryview] = []
    held: list[bytes] = []

    class Slot(stream._Slot):
        def join(self, pieces: list[memoryview]) -> memoryview:
            joined = super().join(pieces)
            staged.append(self.staging)
            held.append(bytes(joined[:9]))
            return joined

    monkeypatch.setattr(stream, "_Slot", Slot)
    encrypt([b"\xaa" * 500_000] * 9, threads=threads)
    assert held == [b"\xaa" * 9] * 5
    assert all(not any(memory) for memory in staged)


class Full:
    def write(self, data: memoryview) -> None:
        raise OSError("the disk is full")


@pytest.mark.parametrize("threads", THREADS)
def test_a_failing_sink_ends_encryption_and_its_threads(threads: int) -> None:
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="full"):
        stream.encrypt_to(Full(), KEY, [bytes(9 * MIB)], 9 * MIB, AAD, threads=threads)
    assert set(threading.enumerate()) <= before


def test_truncation_on_a_boundary_is_named(three_segments: tuple[bytes, bytes]) -> None:
    ciphertext = three_segments[1]
    for segments in (1, 2):
        with pytest.raises(TruncatedError, match=f"after segment {segments - 1}"):
            decrypt(ciphertext[: segments * MIB])


@given(st.data())
@settings(max_examples=40)
def test_truncation_anywhere_is_refused(
    three_segments: tuple[bytes, bytes], data: st.DataObject
) -> None:
    ciphertext = three_segments[1]
    length = data.draw(st.integers(0, len(ciphertext) - 1))
    with pytest.raises((TruncatedError, TamperedError)):
        decrypt(ciphertext[:length])


def test_an_appended_segment_is_named() -> None:
    whole = bytes(encrypt(message(FIRST)))
    assert len(whole) == MIB
    with pytest.raises(ExtendedError, match="ends with segment 0"):
        decrypt(whole + bytes(100))


@given(tail=st.binary(min_size=1, max_size=64))
@settings(max_examples=40)
def test_extension_within_a_segment_is_refused(tail: bytes) -> None:
    whole = bytes(encrypt(b"short"))
    with pytest.raises(TamperedError):
        decrypt(whole + tail)


def test_reordered_segments_are_refused() -> None:
    whole = bytes(encrypt(message(FIRST + 2 * NEXT + 5)))
    cut = [whole[i : i + MIB] for i in range(0, len(whole), MIB)]
    with pytest.raises(TamperedError, match="segment 1"):
        decrypt(b"".join([cut[0], cut[2], cut[1], cut[3]]))


def test_a_segment_of_another_stream_is_refused() -> None:
    plaintext = message(FIRST + 100)
    one, other = (bytes(encrypt(plaintext)) for _ in range(2))
    with pytest.raises(TamperedError, match="segment 1"):
        decrypt(one[:MIB] + other[MIB:])


def test_every_flipped_bit_of_a_short_stream_is_refused() -> None:
    whole = bytes(encrypt(b"sixteen bytes ok"))
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TamperedError):
            decrypt(changed)


@given(st.data())
@settings(max_examples=40)
def test_a_flipped_bit_anywhere_is_refused(
    three_segments: tuple[bytes, bytes], data: st.DataObject
) -> None:
    changed = bytearray(three_segments[1])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(TamperedError):
        decrypt(changed)


@pytest.mark.parametrize(
    ("key", "aad"), [(bytes(32), AAD), (KEY, b""), (KEY, AAD + b"\0"), (KEY, AAD.upper())]
)
def test_another_key_or_associated_data_is_refused(key: bytes, aad: bytes) -> None:
    with pytest.raises(TamperedError):
        decrypt(encrypt(b"text"), key, aad)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes, not 32"):
        encrypt(b"", bytes(length))


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


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(
    "damage", [flip_last, lambda data: data[:-1], lambda data: data[:MIB], lambda data: data[:39]]
)
def test_nothing_decrypted_survives_a_failure(
    buffers: list[tuple[memoryview, bytes]], damage: Damage, threads: int
) -> None:
    ciphertext = damage(encrypt(b"\xaa" * (FIRST + 5000)))
    out = new_buffer(max(0, len(ciphertext) - 40 - 16 * -(-len(ciphertext) // MIB)))
    out[:] = b"\xbb" * len(out)
    with pytest.raises(VaultError):
        stream.decrypt_into(out, KEY, buffer_reader(ciphertext), 0, AAD, threads=threads)
    had_plaintext = any(b"\xaa" * 1000 in before for _, before in buffers)
    assert had_plaintext or len(ciphertext) < 40
    assert not any(out)


@pytest.mark.parametrize("threads", THREADS)
def test_nothing_decrypted_survives_a_failing_source(
    buffers: list[tuple[memoryview, bytes]], threads: int
) -> None:
    size = FIRST + 3 * NEXT
    whole = buffer_reader(encrypt(b"\xaa" * size))

    def read(position: int, scratch: memoryview) -> memoryview:
        if position > MIB:
            raise OSError("the disk is gone")
        return whole(position, scratch)

    out = new_buffer(size)
    with pytest.raises(OSError, match="gone"):
        stream.decrypt_into(out, KEY, read, 0, AAD, threads=threads)
    assert any(before == b"\xaa" * FIRST for _, before in buffers)
    assert not any(out)


@pytest.mark.parametrize("threads", THREADS)
def test_the_first_wrong_segment_is_named(threads: int) -> None:
    changed = encrypt(message(FIRST + 8 * NEXT))
    for index in (7, 3, 5):
        changed[index * MIB + 500] ^= 1
    for _ in range(10):
        with pytest.raises(TamperedError, match="segment 3 "):
            decrypt(changed, threads=threads)


def test_a_failure_waits_for_the_threads_before_it_wipes(
    buffers: list[tuple[memoryview, bytes]],
) -> None:
    """Else a thread could put plaintext into memory that was wiped already."""
    size = FIRST + NEXT
    whole = buffer_reader(encrypt(b"\xaa" * size))
    other_at_work, failed = threading.Event(), threading.Event()

    def read(position: int, scratch: memoryview) -> memoryview:
        if position == 40:
            assert other_at_work.wait(60)
            failed.set()
            raise OSError("the disk is gone")
        if position > 40:
            other_at_work.set()
            assert failed.wait(60)
            time.sleep(0.05)
        return whole(position, scratch)

    out = new_buffer(size)
    with pytest.raises(OSError, match="gone"):
        stream.decrypt_into(out, KEY, read, 0, AAD, threads=2)
    assert [before[:4] for _, before in buffers] == [b"\xaa" * 4]
    assert not any(out)


def test_an_interrupted_decryption_wipes(buffers: list[tuple[memoryview, bytes]]) -> None:
    size = FIRST + 2 * NEXT
    whole = buffer_reader(encrypt(b"\xaa" * size))

    def read(position: int, scratch: memoryview) -> memoryview:
        if position == 2 * MIB:
            raise KeyboardInterrupt
        return whole(position, scratch)

    for threads in THREADS:
        out = new_buffer(size)
        with pytest.raises(KeyboardInterrupt):
            stream.decrypt_into(out, KEY, read, 0, AAD, threads=threads)
        assert not any(out)
    assert buffers


@pytest.mark.parametrize("threads", THREADS)
def test_a_stream_may_begin_anywhere(threads: int) -> None:
    plaintext = message(FIRST + 10)
    out = new_buffer(len(plaintext))
    read = buffer_reader(b"before" + encrypt(plaintext) + b"after")
    stream.decrypt_into(out, KEY, read, 6, AAD, threads=threads)
    assert out == plaintext
