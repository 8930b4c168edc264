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
from collections.abc import Iterable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil.vault.buffers import (
    SEGMENT_BYTES,
    ArraySink,
    BytesLike,
    Sink,
    Source,
    buffer_source,
    regroup,
    wipe,
)
from fedveil.vault.errors import ExtendedError, TamperedError, TruncatedError

__all__ = [
    "KEY_BYTES",
    "ciphertext_size",
    "decrypt",
    "decrypt_from",
    "encrypt",
    "encrypt_to",
    "plaintext_size",
]

KEY_BYTES = 32

_SALT_BYTES = 32
_PREFIX_BYTES = 7
_HEADER_BYTES = 1 + _SALT_BYTES + _PREFIX_BYTES
_TAG_BYTES = 16
_FIRST_PLAIN = SEGMENT_BYTES - _HEADER_BYTES - _TAG_BYTES
_NEXT_PLAIN = SEGMENT_BYTES - _TAG_BYTES
_MAX_SEGMENTS = 1 << 32


def ciphertext_size(plaintext_bytes: int) -> int:
    """Return the exact length of the stream of a plaintext, both in bytes.

    Raises
    ------
    ValueError
        If the length is negative or needs more than 2^32 segments.
    """
    if plaintext_bytes < 0:
        raise ValueError(f"a plaintext cannot have {plaintext_bytes} bytes")
    beyond_first = max(0, plaintext_bytes - _FIRST_PLAIN)
    segments = 1 + -(-beyond_first // _NEXT_PLAIN)
    if segments > _MAX_SEGMENTS:
        raise ValueError(f"{plaintext_bytes} bytes need more than {_MAX_SEGMENTS} segments")
    return _HEADER_BYTES + plaintext_bytes + segments * _TAG_BYTES


def plaintext_size(ciphertext_bytes: int) -> int:
    """Return the exact length of the plaintext of a stream, both in bytes.

    Raises
    ------
    TruncatedError
        If no stream has that length.
    """
    segments = max(1, -(-ciphertext_bytes // SEGMENT_BYTES))
    in_last = ciphertext_bytes - (segments - 1) * SEGMENT_BYTES
    least = _HEADER_BYTES + _TAG_BYTES if segments == 1 else _TAG_BYTES + 1
    if in_last < least:
        raise TruncatedError(
            f"the encrypted stream is truncated: {ciphertext_bytes} bytes end {in_last} bytes "
            f"into segment {segments - 1}, which has at least {least}"
        )
    return ciphertext_bytes - _HEADER_BYTES - segments * _TAG_BYTES


def encrypt(key: bytes, plaintext: BytesLike, aad: bytes) -> bytearray:
    """Encrypt a buffer.

    Parameters
    ----------
    key : bytes
        32 uniformly random bytes.
    plaintext : bytes, bytearray or memoryview
        What to encrypt, of any length; contiguous.
    aad : bytes
        Associated data: authenticated, not stored; decryption needs the same bytes.

    Returns
    -------
    bytearray
        The stream, `ciphertext_size(len(plaintext))` bytes.

    Raises
    ------
    ValueError
        If the key has another length than 32 bytes.
    """
    size = memoryview(plaintext).nbytes
    sink = ArraySink(ciphertext_size(size))
    encrypt_to(sink, key, [plaintext], size, aad)
    return sink.array


def encrypt_to(
    sink: Sink, key: bytes, chunks: Iterable[BytesLike], plaintext_bytes: int, aad: bytes
) -> int:
    """Encrypt a plaintext that comes in pieces, writing one segment at a time.

    Memory in use beside the chunks is two segments, whatever the length.

    Parameters
    ----------
    sink : Sink
        Where the stream goes, for example an open binary file.
    key : bytes
        32 uniformly random bytes.
    chunks : iterable of bytes, bytearray or memoryview
        The plaintext in order; the pieces may have any lengths.
    plaintext_bytes : int
        Total length of the chunks, known up front.
    aad : bytes
        Associated data, as in `encrypt`.

    Returns
    -------
    int
        Number of bytes written, `ciphertext_size(plaintext_bytes)`.

    Raises
    ------
    ValueError
        If the key has another length than 32 bytes, or the chunks have another total length.
    """
    total = ciphertext_size(plaintext_bytes)
    salt, prefix = os.urandom(_SALT_BYTES), os.urandom(_PREFIX_BYTES)
    cipher = _cipher(key, salt, aad)
    sink.write(memoryview(bytes([_HEADER_BYTES]) + salt + prefix))
    written = _HEADER_BYTES
    out = memoryview(bytearray(min(total, SEGMENT_BYTES)))
    sizes = [size - _TAG_BYTES for size, _ in _segments(total)]
    for index, part in enumerate(regroup(chunks, sizes)):
        sealed = out[: len(part) + _TAG_BYTES]
        written += len(sealed)
        cipher.encrypt_into(_nonce(prefix, index, last=written == total), part, None, sealed)
        sink.write(sealed)
    return written


def decrypt(key: bytes, ciphertext: BytesLike, aad: bytes) -> bytearray:
    """Decrypt a stream that lies in a buffer.

    Parameters
    ----------
    key : bytes
        The 32 bytes given to `encrypt`.
    ciphertext : bytes, bytearray or memoryview
        The whole stream.
    aad : bytes
        The associated data given to `encrypt`.

    Returns
    -------
    bytearray
        The plaintext, every byte of it verified.

    Raises
    ------
    TruncatedError
        If bytes are missing at the end, where that can be told from tampering.
    ExtendedError
        If segments were appended to a whole stream.
    TamperedError
        If the key or the associated data is another one, or bytes were changed.
    ValueError
        If the key has another length than 32 bytes.
    """
    view = memoryview(ciphertext)
    return decrypt_from(buffer_source(view), key, view.nbytes, aad)


def decrypt_from(source: Source, key: bytes, ciphertext_bytes: int, aad: bytes) -> bytearray:
    """Decrypt a stream that is read one segment at a time.

    The parameters are those of `decrypt`, apart from the source and the exact length of the
    stream. Nothing is returned before the last segment is verified, and whatever had been
    decrypted is overwritten with zeros when anything fails, the source included.

    Raises
    ------
    TruncatedError, ExtendedError, TamperedError, ValueError
        As `decrypt` does.
    """
    plaintext = bytearray(plaintext_size(ciphertext_bytes))
    header = bytes(source(_HEADER_BYTES))
    if header[0] != _HEADER_BYTES:
        raise TamperedError(
            f"the encrypted stream starts with {header[0]}, not {_HEADER_BYTES}: it is damaged"
        )
    cipher = _cipher(key, header[1 : 1 + _SALT_BYTES], aad)
    opener = _Opener(cipher, header[1 + _SALT_BYTES :])
    with memoryview(plaintext) as view:
        try:
            begin = 0
            for index, (size, last) in enumerate(_segments(ciphertext_bytes)):
                end = begin + size - _TAG_BYTES
                opener.open(index, last, source(size), view[begin:end])
                begin = end
        except BaseException:
            # decrypt_into leaves what it decrypted in place even when the tag is wrong.
            wipe(view)
            raise
    return plaintext


class _Opener:
    """Verifies and decrypts single segments of one stream."""

    def __init__(self, cipher: AESGCM, prefix: bytes) -> None:
        self._cipher = cipher
        self._prefix = prefix

    def open(self, index: int, last: bool, sealed: memoryview, out: memoryview) -> None:
        if self._authentic(index, last, sealed, out):
            return
        # A segment that is authentic under the other flag proves where the stream really ends.
        if not self._authentic(index, not last, sealed, out):
            raise TamperedError(
                f"segment {index} of the encrypted stream is not authentic: the key or the "
                "associated data is another one, or the bytes were changed"
            )
        if last:
            raise TruncatedError(f"the encrypted stream is truncated after segment {index}")
        raise ExtendedError(f"the encrypted stream ends with segment {index}, yet bytes follow it")

    def _authentic(self, index: int, last: bool, sealed: memoryview, out: memoryview) -> bool:
        try:
            self._cipher.decrypt_into(_nonce(self._prefix, index, last=last), sealed, None, out)
        except InvalidTag:
            return False
        return True


def _cipher(key: bytes, salt: bytes, aad: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key has {len(key)} bytes, not {KEY_BYTES}")
    return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=aad).derive(key))


def _nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    return prefix + index.to_bytes(4, "big") + bytes([last])


def _segments(ciphertext_bytes: int) -> Iterator[tuple[int, bool]]:
    """Yield the ciphertext length of each segment without the header, and whether it is last."""
    left, size = ciphertext_bytes - _HEADER_BYTES, SEGMENT_BYTES - _HEADER_BYTES
    while left > size:
        yield size, False
        left, size = left - size, SEGMENT_BYTES
    yield left, True
