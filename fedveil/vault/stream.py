"""Tink's AES256-GCM-HKDF streaming encryption with 1 MiB segments.

The wire format is Tink's own, so that any Tink library with the same key reads what is written
here and the other way round (https://developers.google.com/tink/streaming-aead/
aes_gcm_hkdf_streaming; Hoang, Reyhanitabar, Rogaway and Vizár 2015 for the construction, Hoang
and Shen 2020 for its security)::

    stream     = header || segment 0 || segment 1 || ... || segment n-1
    header     = 40 (one byte, the header's own length) || salt (32) || nonce prefix (7)
    stream key = HKDF-SHA256(ikm = key, salt = salt, info = associated data), 32 bytes
    segment i  = AES-256-GCM(stream key, nonce = prefix || i as u32 big-endian || last), with tag

`last` is one byte, 1 for the final segment and 0 before it, which makes reordering, truncation
and extension fail. Every segment is 1 MiB of ciphertext, where the first counts the header as its
own; only the last may be shorter. It is never empty unless the whole plaintext is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil.vault.buffers import SEGMENT_BYTES, BytesLike, ReadAt, Sink, cut, wipe
from fedveil.vault.errors import ExtendedError, TamperedError, TruncatedError
from fedveil.vault.hashlist import HashList
from fedveil.vault.parallel import check_threads, for_each, in_order
from fedveil.vault.segments import HEADER_BYTES, SALT_BYTES, TAG_BYTES, Segments, ciphertext_size

__all__ = [
    "KEY_BYTES",
    "SegmentOpener",
    "decrypt_into",
    "encrypt_to",
]

KEY_BYTES = 32


def encrypt_to(
    sink: Sink,
    key: bytes,
    chunks: Iterable[BytesLike],
    plaintext_bytes: int,
    aad: bytes,
    *,
    threads: int = 1,
    hashes: HashList | None = None,
) -> int:
    """Encrypt a plaintext that comes in chunks, writing one segment at a time, in order.

    Memory in use beside the chunks is two segments, whatever the length; with several threads,
    two for each and two more.

    Parameters
    ----------
    sink : Sink
        Where the stream goes, for example an open binary file. Only the caller's thread writes.
    key : bytes
        32 uniformly random bytes.
    chunks : iterable of bytes, bytearray or memoryview
        The plaintext in order; the chunks may have any lengths and must not change meanwhile.
    plaintext_bytes : int
        Total length of the chunks, known up front.
    aad : bytes
        Associated data: authenticated, not stored; decryption needs the same bytes.
    threads : int
        How many threads encrypt and hash; with one, the caller's own.
    hashes : HashList, optional
        Gets every piece of the stream, for its digest. It is made for
        ``ciphertext_size(plaintext_bytes)`` bytes.

    Returns
    -------
    int
        Number of bytes written, ``ciphertext_size(plaintext_bytes)``.

    Raises
    ------
    ValueError
        If the key has another length than 32 bytes, the chunks have another total length, or there
        is no thread.
    """
    check_threads(threads)
    segments, total = Segments(plaintext_bytes), ciphertext_size(plaintext_bytes)
    header = bytes([HEADER_BYTES]) + os.urandom(HEADER_BYTES - 1)
    cipher, prefix = _unpack(header, key, aad)
    longest = min(total, SEGMENT_BYTES)
    # While one result is being written, every thread has a slot to fill.
    slots = [_Slot(longest) for _ in range(threads + 1 if threads > 1 else 1)]

    def seal(slot: _Slot, numbered: tuple[int, list[memoryview]]) -> memoryview:
        index, pieces = numbered
        plain = slot.join(pieces)
        begin = 0 if index else HEADER_BYTES
        piece = slot.out[: begin + len(plain) + TAG_BYTES]
        piece[:begin] = header[:begin]
        nonce = _nonce(prefix, index, last=index == segments.count - 1)
        cipher.encrypt_into(nonce, plain, None, piece[begin:])
        if hashes is not None:
            hashes.add(index, piece)
        return piece

    places = [segments.plain(index) for index in range(segments.count)]
    parts = cut(chunks, [place.stop - place.start for place in places])
    try:
        in_order(enumerate(parts), slots, seal, sink.write)
    finally:
        for slot in slots:
            wipe(slot.staging)
    return total


class _Slot:
    """Memory for one segment on its way to the sink."""

    def __init__(self, longest: int) -> None:
        self.staging = memoryview(bytearray(longest))
        self.out = memoryview(bytearray(longest))

    def join(self, pieces: list[memoryview]) -> memoryview:
        """Return the pieces as one; only several of them are copied."""
        if len(pieces) == 1:
            return pieces[0]
        end = 0
        for piece in pieces:
            begin, end = end, end + len(piece)
            self.staging[begin:end] = piece
        return self.staging[:end]


def decrypt_into(
    out: memoryview,
    key: bytes,
    read: ReadAt,
    start: int,
    aad: bytes,
    *,
    threads: int = 1,
    hashes: HashList | None = None,
) -> None:
    """Decrypt a whole stream; what it gives may be used once this has returned.

    Memory in use beside `out` is one segment a thread.

    Parameters
    ----------
    out : memoryview
        Where the plaintext goes: writable bytes of its exact length. When anything fails, the
        source included, all of it is overwritten with zeros.
    key : bytes
        The 32 bytes given to `encrypt_to`.
    read : ReadAt
        Where the stream is.
    start : int
        Its position there.
    aad : bytes
        The associated data given to `encrypt_to`.
    threads : int
        How many threads read, hash and decrypt; with one, the caller's own.
    hashes : HashList, optional
        Gets every piece of the stream, the very bytes that are decrypted.

    Raises
    ------
    TruncatedError
        If bytes are missing at the end, where that can be told from tampering.
    ExtendedError
        If the stream is longer than `out` tells, where that can be told from tampering.
    TamperedError
        If the key or the associated data is another one, or bytes were changed. Of several
        segments that are wrong, the first is named.
    ValueError
        If the key has another length than 32 bytes, or there is no thread.
    """
    try:
        opener = SegmentOpener(key, read, start, Segments(len(out)), aad)

        def make() -> Callable[[int], None]:
            scratch = memoryview(bytearray(min(SEGMENT_BYTES, ciphertext_size(len(out)))))

            def work(index: int) -> None:
                opener.open(index, scratch, out[opener.segments.plain(index)], hashes)

            return work

        for_each(opener.segments.count, threads, make)
    except BaseException:
        # decrypt_into leaves what it decrypted in place even when the tag is wrong.
        wipe(out)
        raise


class SegmentOpener:
    """Verifies and decrypts single segments of one stream, on any thread.

    A segment that opens is authentic and in its place: it is the one that was written with this
    number, last or not last as `segments` says, into the stream of this key and associated data.

    Parameters
    ----------
    key, read, start, aad
        As for `decrypt_into`.
    segments : Segments
        Where the segments lie.

    Raises
    ------
    TruncatedError, TamperedError, ValueError
        As `decrypt_into` does, where the header of the stream tells.
    """

    def __init__(
        self, key: bytes, read: ReadAt, start: int, segments: Segments, aad: bytes
    ) -> None:
        self.segments = segments
        self._read = read
        self._start = start
        self._header = bytes(read(start, memoryview(bytearray(HEADER_BYTES))))
        if self._header[0] != HEADER_BYTES:
            raise TamperedError(
                f"the encrypted stream starts with {self._header[0]}, not {HEADER_BYTES}: "
                "it is damaged"
            )
        self._cipher, self._prefix = _unpack(self._header, key, aad)

    def open(
        self, index: int, scratch: memoryview, out: memoryview, hashes: HashList | None = None
    ) -> None:
        """Verify and decrypt a segment.

        Parameters
        ----------
        index : int
            Which.
        scratch : memoryview
            Writable bytes for the ciphertext, at least as long as the segment.
        out : memoryview
            Where the plaintext goes, of its exact length. If this raises, it holds any bytes,
            plaintext included.
        hashes : HashList, optional
            Gets the piece of the stream.

        Raises
        ------
        TruncatedError, ExtendedError, TamperedError
            As `decrypt_into` does.
        """
        header = b"" if index else self._header
        position = self._start + index * SEGMENT_BYTES + len(header)
        sealed = self._read(position, scratch[: len(out) + TAG_BYTES])
        last = index == self.segments.count - 1
        if not self._authentic(index, last, sealed, out):
            # A segment that is authentic under the other flag proves where the stream ends.
            if not self._authentic(index, not last, sealed, out):
                raise TamperedError(
                    f"segment {index} of the encrypted stream is not authentic: the key or the "
                    "associated data is another one, or the bytes were changed"
                )
            if last:
                raise TruncatedError(f"the encrypted stream is truncated after segment {index}")
            raise ExtendedError(
                f"the encrypted stream ends with segment {index}, yet bytes follow it"
            )
        if hashes is not None:
            hashes.add(index, header, sealed)

    def _authentic(self, index: int, last: bool, sealed: memoryview, out: memoryview) -> bool:
        try:
            self._cipher.decrypt_into(_nonce(self._prefix, index, last=last), sealed, None, out)
        except InvalidTag:
            return False
        return True


def _unpack(header: bytes, key: bytes, aad: bytes) -> tuple[AESGCM, bytes]:
    """Return the cipher of a stream and its nonce prefix."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key has {len(key)} bytes, not {KEY_BYTES}")
    salt, prefix = header[1 : 1 + SALT_BYTES], header[1 + SALT_BYTES :]
    derived = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=aad).derive(key)
    return AESGCM(derived), prefix


def _nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    return prefix + index.to_bytes(4, "big") + bytes([last])
