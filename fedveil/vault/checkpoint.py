"""Opening one encrypted file: into new arrays or live ones, or checking it without its key.

The head of the file (`fedveil.vault.head`) is in clear and bound to everything else: the header is
the associated data of the stream and of the wrap slots, and is signed together with the digest of
the stream. The safetensors file inside, with its names of tensors, is secret.

Whoever opens a file names the key that must have signed it, or says by None that it is enough that
a holder of the model key wrote it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fedveil.vault.buffers import ReadAt, Shadow, new_buffer, wipe
from fedveil.vault.errors import StoreError
from fedveil.vault.hashlist import HashList, stream_digest
from fedveil.vault.head import Head, read_head
from fedveil.vault.header import Address, Header
from fedveil.vault.keyfile import Key
from fedveil.vault.partial import read_tensors
from fedveil.vault.signing import VerifyKey
from fedveil.vault.slots import unwrap_data_key
from fedveil.vault.stream import decrypt_into
from fedveil.vault.tensors import Array, copy_tensors, view_tensors

__all__ = [
    "Access",
    "authenticate",
    "open_from",
    "open_into",
    "open_some",
    "read_signed_header",
    "verify_signature_from",
]


@dataclass(frozen=True)
class Access:
    """What opens a file, and what must hold for it.

    Parameters
    ----------
    address : Address
        Where the file belongs.
    model_key : Key
        What its data key is wrapped under.
    verify_key : VerifyKey or None
        Whose signature it must have; None to accept what any holder of the model key wrote.
    threads : int
        How many threads read, hash and decrypt.
    """

    address: Address
    model_key: Key
    verify_key: VerifyKey | None
    threads: int = 1


def open_from(read: ReadAt, size: int, access: Access) -> tuple[Header, dict[str, Array]]:
    """Decrypt a file into new arrays.

    Parameters
    ----------
    read : ReadAt
        The file.
    size : int
        Its exact length in bytes.
    access : Access
        What opens it.

    Returns
    -------
    tuple of Header and dict of str to ndarray
        Both authenticated. The arrays are writable and share one buffer, which lives as long as
        any of them.

    Raises
    ------
    NotACheckpointError
        If it does not start as a checkpoint does.
    WrongKeyError
        If it is sealed under another model key.
    TruncatedError, ExtendedError
        If bytes are missing at the end, or there are too many.
    TamperedError
        If a byte was changed, or the wrap list is not the file's own.
    SignatureError
        If the signature is missing, is not the key's, or is for something else.
    StoreError
        If it is authentic, but belongs elsewhere.
    TensorError
        If what was sealed is no safetensors file; only a holder of the keys can make such a one.
    """
    head, data_key = _unlock(read, size, access)
    out = new_buffer(head.header.plaintext_bytes)
    try:
        _decrypt(out, head, data_key, read, access)
        return head.header, view_tensors(out)
    except BaseException:
        wipe(out)
        raise


def open_into(
    live: Mapping[str, Array],
    shadow: Shadow,
    read: ReadAt,
    size: int,
    access: Access,
) -> Header:
    """Decrypt a file into arrays that are in use, which change only when all of it is verified.

    Parameters
    ----------
    live : Mapping[str, ndarray]
        As for `copy_tensors`.
    shadow : Shadow
        Where the plaintext is until then; overwritten with zeros afterwards.
    read, size, access
        As for `open_from`.

    Raises
    ------
    VaultError
        As `open_from` and `copy_tensors` do; `live` is as it was then.
    """
    head, data_key = _unlock(read, size, access)
    out = shadow.take(head.header.plaintext_bytes)
    try:
        _decrypt(out, head, data_key, read, access)
        copy_tensors(view_tensors(out), live)
    finally:
        wipe(out)
    return head.header


def open_some(
    names: Collection[str],
    read: ReadAt,
    size: int,
    access: Access,
) -> tuple[Header, dict[str, Array]]:
    """Decrypt some arrays of a file and no more of it than they need.

    The header is verified as by `open_from`. The arrays are authentic under the model key; that
    they are also what the coordinator signed cannot be told without reading all of the file.

    Parameters
    ----------
    names : collection of str
        The arrays.
    read, size, access
        As for `open_from`.

    Returns
    -------
    tuple of Header and dict of str to ndarray
        As from `open_from`; each array has memory of its own.

    Raises
    ------
    TensorError
        If there is no array of a name.
    VaultError
        As `open_from` does.
    """
    head, data_key = _unlock(read, size, access)
    length, start = head.header.plaintext_bytes, head.stream_start
    return head.header, read_tensors(
        names, data_key, read, start, length, head.bound, threads=access.threads
    )


def authenticate(read: ReadAt, size: int, access: Access) -> Head:
    """Verify the head of a file, and nothing of its stream but the length.

    A holder of the model key wrote this header and, with a verify key, its owner signed it.
    Parameters and errors are those of `open_from`.
    """
    return _unlock(read, size, access)[0]


def verify_signature_from(
    read: ReadAt, size: int, address: Address, verify_key: VerifyKey, *, threads: int = 1
) -> Header:
    """Check the signature of a whole file, without any key that opens it.

    Wrap slots are not signed: that the file still opens is not checked. The parameters are those
    of `open_from` and `Access`.

    Returns
    -------
    Header
        What the owner of the verify key signed.

    Raises
    ------
    NotACheckpointError, TruncatedError, ExtendedError, SignatureError, StoreError
        As `open_from` does.
    """
    head = _signed_head(read, size, address, verify_key)
    digest = stream_digest(read, head.stream_start, head.stream_bytes, threads=threads)
    head.seal.check_stream(digest)
    return head.header


def read_signed_header(read: ReadAt, size: int, address: Address, verify_key: VerifyKey) -> Header:
    """Return the header of a file that its owner signed, without any key that opens it.

    Of the rest of the file only the length is checked. Parameters and errors are those of
    `verify_signature_from`.
    """
    return _signed_head(read, size, address, verify_key).header


def _signed_head(read: ReadAt, size: int, address: Address, verify_key: VerifyKey) -> Head:
    head = read_head(read, size)
    head.seal.check_header(verify_key, head.bound)
    _check_address(head.header, address)
    head.check_size(size)
    return head


def _unlock(read: ReadAt, size: int, access: Access) -> tuple[Head, bytes]:
    """Return the verified head of a file, and its data key."""
    head = read_head(read, size)
    committed = head.header.commitment
    data_key = unwrap_data_key(head.slots, access.model_key, head.bound, committed)
    if access.verify_key is not None:
        head.seal.check_header(access.verify_key, head.bound)
    _check_address(head.header, access.address)
    head.check_size(size)
    return head, data_key


def _check_address(header: Header, expected: Address) -> None:
    if header.address() != expected:
        raise StoreError(
            f"in the wrong place: this is {header.address()}, where {expected} belongs; the file "
            "was renamed or moved"
        )


def _decrypt(out: memoryview, head: Head, data_key: bytes, read: ReadAt, access: Access) -> None:
    """Fill a buffer with the plaintext; the caller wipes it when anything fails."""
    hashes = HashList(head.stream_bytes) if access.verify_key is not None else None
    decrypt_into(
        out,
        data_key,
        read,
        head.stream_start,
        head.bound,
        threads=access.threads,
        hashes=hashes,
    )
    if hashes is not None:
        head.seal.check_stream(hashes.digest())
