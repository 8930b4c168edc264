r"""One encrypted file: a bound header in clear, then the stream of a safetensors file.

::

    file = "FVLT1\n" || length of the header, u32 big-endian || header || stream

The header is canonical JSON. The associated data of the stream is everything before it, so that a
change of any byte of the file is found. The safetensors file and its names of tensors are secret;
the header is not.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime

from fedveil.vault.buffers import BytesLike, Sink, Source, buffer_source
from fedveil.vault.errors import (
    ExtendedError,
    NotACheckpointError,
    TruncatedError,
    WrongKeyError,
)
from fedveil.vault.header import HEADER_VERSION, MOST_HEADER_BYTES, Header, Kind, MetaValue
from fedveil.vault.keyfile import Key
from fedveil.vault.stream import ciphertext_size, decrypt_from, encrypt_to
from fedveil.vault.tensors import Array, TensorFile, view_tensors

__all__ = ["MAGIC", "open_from", "open_sealed", "read_header", "seal", "seal_to"]

MAGIC = b"FVLT1\n"

_LENGTH_BYTES = 4
_PREFIX_BYTES = len(MAGIC) + _LENGTH_BYTES


def seal_to(
    sink: Sink,
    key: Key,
    kind: Kind,
    run: str,
    round_: int,
    tensors: Mapping[str, Array],
    meta: Mapping[str, MetaValue],
) -> Header:
    """Encrypt arrays to a sink, one segment at a time.

    Parameters
    ----------
    sink : Sink
        Where the file goes.
    key : Key
        What it is encrypted under.
    kind, run, round_, meta
        The fields of `Header` of these names.
    tensors : Mapping[str, ndarray]
        Arrays as `TensorFile` takes them; any shapes, empty and 0-dimensional ones too.

    Returns
    -------
    Header
        What was written in clear.

    Raises
    ------
    HeaderError
        If a field of the header is not allowed. Nothing is written then.
    TensorError
        If an array or a name cannot be stored. Nothing is written then.
    """
    file = TensorFile(tensors)
    header = Header(
        version=HEADER_VERSION,
        kind=kind,
        run=run,
        round=round_,
        key_id=key.key_id,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        plaintext_bytes=file.nbytes,
        meta=meta,
    )
    encoded = header.to_bytes()
    bound = MAGIC + len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded
    sink.write(memoryview(bound))
    encrypt_to(sink, key.secret, file.chunks(), header.plaintext_bytes, bound)
    return header


def seal(
    key: Key,
    kind: Kind,
    run: str,
    round_: int,
    tensors: Mapping[str, Array],
    meta: Mapping[str, MetaValue],
) -> bytes:
    """Encrypt arrays to bytes; parameters and errors are those of `seal_to`."""
    sink = io.BytesIO()
    seal_to(sink, key, kind, run, round_, tensors, meta)
    return sink.getvalue()


def open_from(source: Source, key: Key, size: int) -> tuple[Header, dict[str, Array]]:
    """Decrypt a checkpoint that is read one segment at a time.

    Parameters
    ----------
    source : Source
        Gives the bytes of the file from its start.
    key : Key
        What it was sealed under.
    size : int
        Exact length of the file in bytes.

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
        If the header names another key.
    TruncatedError, ExtendedError
        If bytes are missing at the end, or there are too many.
    TamperedError
        If any byte was changed.
    TensorError
        If what was sealed is no safetensors file; only a holder of the key can make such a one.
    """
    header, bound = _read_bound(source, size)
    if header.key_id != key.key_id:
        raise WrongKeyError(
            f"sealed under key {header.key_id}, but the key given is {key.key_id}; "
            "use the key file that the run was started with"
        )
    have, need = size - len(bound), ciphertext_size(header.plaintext_bytes)
    if have < need:
        raise TruncatedError(f"{need - have} of {len(bound) + need} bytes are missing at the end")
    if have > need:
        raise ExtendedError(f"{have - need} bytes follow the {len(bound) + need} that belong here")
    return header, view_tensors(decrypt_from(source, key.secret, have, bound))


def open_sealed(key: Key, data: BytesLike) -> tuple[Header, dict[str, Array]]:
    """Decrypt a checkpoint that lies in a buffer; results and errors are those of `open_from`."""
    return open_from(buffer_source(data), key, memoryview(data).nbytes)


def read_header(data: BytesLike) -> Header:
    """Return the header of a checkpoint without any check that it is genuine.

    Anybody can have written or changed it: use it to show and to choose, and trust only what
    `open_sealed` returns. The data may end after the header.

    Raises
    ------
    NotACheckpointError
        If it does not start as a checkpoint does.
    TruncatedError
        If the data ends within the header.
    """
    return _read_bound(buffer_source(data), memoryview(data).nbytes)[0]


def _read_bound(source: Source, size: int) -> tuple[Header, bytes]:
    """Return the header and the bytes up to its end."""
    start = bytes(source(min(size, _PREFIX_BYTES)))
    if not start or start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise NotACheckpointError("not an encrypted checkpoint: it does not start with FVLT1")
    if len(start) < _PREFIX_BYTES:
        raise TruncatedError(f"the checkpoint ends after {size} bytes, within its header")
    length = int.from_bytes(start[len(MAGIC) :], "big")
    if length > MOST_HEADER_BYTES:
        raise NotACheckpointError(
            f"the header of the checkpoint claims {length} bytes, the most is {MOST_HEADER_BYTES}"
        )
    if size < _PREFIX_BYTES + length:
        raise TruncatedError(f"the checkpoint ends after {size} bytes, within its header")
    encoded = bytes(source(length))
    return Header.from_bytes(encoded), start + encoded
