r"""The head of an encrypted file: all that stands before the stream, in clear.

::

    file = "FVLT2\n" || length of the header, u32 big-endian || header
           || 2 wrap slots of 96 bytes || seal || stream
    seal = digest of the stream (32) || signature (64); zeros where nobody signed

Nothing here decrypts: a head that was read is only known to be well formed.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from fedveil.vault.buffers import ReadAt
from fedveil.vault.errors import (
    ExtendedError,
    NotACheckpointError,
    SignatureError,
    TruncatedError,
)
from fedveil.vault.header import MAGIC, MOST_HEADER_BYTES, PREFIX_BYTES, Header
from fedveil.vault.segments import ciphertext_size
from fedveil.vault.signing import SIGNATURE_BYTES, SigningKey, VerifyKey
from fedveil.vault.slots import SLOT_BYTES, SLOTS

__all__ = ["SEAL_BYTES", "Head", "Seal", "read_head"]

_DIGEST_BYTES = 32
SEAL_BYTES = _DIGEST_BYTES + SIGNATURE_BYTES

_OLD_MAGIC = b"FVLT1\n"


@dataclass(frozen=True)
class Seal:
    """What the coordinator vouches for a file with.

    Attributes
    ----------
    encoded : bytes
        96 bytes: the digest of the encrypted stream, then the signature of header and digest.
    """

    encoded: bytes

    @classmethod
    def none(cls) -> Seal:
        """Return the seal of a file that nobody signed."""
        return cls(bytes(SEAL_BYTES))

    @classmethod
    def sign(cls, signing_key: SigningKey, bound: bytes, digest: bytes) -> Seal:
        """Seal a file whose start is `bound` and whose stream has a digest."""
        return cls(digest + signing_key.sign(bound, digest))

    @property
    def signed(self) -> bool:
        """Whether there is a signature, whoever made it."""
        return self != Seal.none()

    def check_header(self, verify_key: VerifyKey, bound: bytes) -> None:
        """Check that the key's owner signed this header, and some stream with it.

        Raises
        ------
        SignatureError
            If not.
        """
        if not self.signed:
            raise SignatureError(
                f"not signed, where the coordinator's key {verify_key.to_text()} signs every round"
            )
        verify_key.verify(self.encoded[_DIGEST_BYTES:], bound, self._digest)

    def check_stream(self, digest: bytes) -> None:
        """Check, after `check_header`, that a stream is the one that was signed.

        Raises
        ------
        SignatureError
            If not.
        """
        if not hmac.compare_digest(digest, self._digest):
            raise SignatureError(
                "the encrypted stream is not the one that the coordinator signed: the file was "
                "changed or made by somebody else"
            )

    @property
    def _digest(self) -> bytes:
        return self.encoded[:_DIGEST_BYTES]


@dataclass(frozen=True)
class Head:
    """What stands before the stream.

    Attributes
    ----------
    header : Header
        What the file says about itself.
    bound : bytes
        The start of the file up to the end of the header.
    slots : tuple of bytes
        The wrap slots, 96 bytes each.
    seal : Seal
        The coordinator's.
    """

    header: Header
    bound: bytes
    slots: tuple[bytes, ...]
    seal: Seal

    def to_bytes(self) -> bytes:
        """Return the head as it stands in the file."""
        return self.bound + b"".join(self.slots) + self.seal.encoded

    def slot_start(self, index: int) -> int:
        """Return the position of a slot in the file."""
        return len(self.bound) + index * SLOT_BYTES

    @property
    def seal_start(self) -> int:
        """Position of the seal in the file."""
        return self.slot_start(SLOTS)

    @property
    def stream_start(self) -> int:
        """Position of the stream in the file."""
        return self.seal_start + SEAL_BYTES

    @property
    def stream_bytes(self) -> int:
        """Length that the stream must have."""
        return ciphertext_size(self.header.plaintext_bytes)

    @property
    def file_bytes(self) -> int:
        """Length that the file must have."""
        return self.stream_start + self.stream_bytes

    def check_size(self, size: int) -> None:
        """Check the length of the whole file.

        Raises
        ------
        TruncatedError, ExtendedError
            If it is not exactly what the header asks for.
        """
        need = self.file_bytes
        if size < need:
            raise TruncatedError(f"{need - size} of {need} bytes are missing at the end")
        if size > need:
            raise ExtendedError(f"{size - need} bytes follow the {need} that belong here")


def read_head(read: ReadAt, size: int) -> Head:
    """Read the head of a file.

    Parameters
    ----------
    read : ReadAt
        The file, of which the head must be there.
    size : int
        Length of what is there.

    Raises
    ------
    NotACheckpointError
        If it does not start as an encrypted file of this version does.
    TruncatedError
        If it ends within its head.
    """
    start = _take(read, 0, min(size, PREFIX_BYTES))
    if start.startswith(_OLD_MAGIC):
        raise NotACheckpointError(
            "an encrypted file of version 1 (FVLT1), which this Fedveil no longer reads; export "
            "it with the Fedveil that wrote it"
        )
    if not start or start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise NotACheckpointError("not an encrypted checkpoint: it does not start with FVLT2")
    if len(start) < PREFIX_BYTES:
        raise TruncatedError(f"the checkpoint ends after {size} bytes, within its header")
    length = int.from_bytes(start[len(MAGIC) :], "big")
    if length > MOST_HEADER_BYTES:
        raise NotACheckpointError(
            f"the header of the checkpoint claims {length} bytes, the most is {MOST_HEADER_BYTES}"
        )
    end = PREFIX_BYTES + length
    if size < end:
        raise TruncatedError(f"the checkpoint ends after {size} bytes, within its header")
    encoded = _take(read, PREFIX_BYTES, length)
    header = Header.from_bytes(encoded)
    if size < end + SLOTS * SLOT_BYTES + SEAL_BYTES:
        raise TruncatedError(f"the checkpoint ends after {size} bytes, before its stream")
    rest = _take(read, end, SLOTS * SLOT_BYTES + SEAL_BYTES)
    slots = tuple(rest[index * SLOT_BYTES :][:SLOT_BYTES] for index in range(SLOTS))
    return Head(header, start + encoded, slots, Seal(rest[SLOTS * SLOT_BYTES :]))


def _take(read: ReadAt, position: int, size: int) -> bytes:
    return bytes(read(position, memoryview(bytearray(size))))
