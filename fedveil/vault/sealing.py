"""Writing one encrypted file: arrays under a data key of their own, wrapped and signed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

from fedveil.vault.buffers import PatchableSink
from fedveil.vault.hashlist import HashList
from fedveil.vault.head import Head, Seal
from fedveil.vault.header import HEADER_VERSION, Address, Header, MetaValue
from fedveil.vault.keyfile import Key
from fedveil.vault.signing import SigningKey
from fedveil.vault.slots import FREE_SLOT, commitment, wrap_data_key
from fedveil.vault.stream import KEY_BYTES, encrypt_to
from fedveil.vault.tensors import Array, TensorFile

__all__ = ["seal_to"]


def seal_to(
    sink: PatchableSink,
    address: Address,
    tensors: Mapping[str, Array],
    meta: Mapping[str, MetaValue],
    *,
    model_key: Key,
    signing_key: SigningKey | None,
    previous: str = "",
    state: str = "",
    threads: int = 1,
) -> Header:
    """Encrypt arrays to a sink under a data key of their own, one segment at a time.

    Parameters
    ----------
    sink : PatchableSink
        Where the file goes, from its start.
    address : Address
        Where the file belongs.
    tensors : Mapping[str, ndarray]
        Arrays as `TensorFile` takes them; any shapes, empty and 0-dimensional ones too.
    meta, previous, state
        The fields of `Header` of these names.
    model_key : Key
        What the data key is wrapped under.
    signing_key : SigningKey or None
        The coordinator's; None to sign nothing.
    threads : int
        How many threads encrypt and hash.

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
    data_key = secrets.token_bytes(KEY_BYTES)
    header = Header(
        version=HEADER_VERSION,
        kind=address.kind,
        store=address.store,
        run=address.run,
        round=address.round,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        plaintext_bytes=file.nbytes,
        previous=previous,
        state=state,
        commitment=commitment(data_key),
        meta=meta,
    )
    bound = header.bound()
    slots = (wrap_data_key(data_key, model_key, bound), FREE_SLOT)
    head = Head(header, bound, slots, Seal.none())
    sink.write(memoryview(head.to_bytes()))
    hashes = HashList(head.stream_bytes) if signing_key is not None else None
    encrypt_to(
        sink,
        data_key,
        file.chunks(),
        header.plaintext_bytes,
        bound,
        threads=threads,
        hashes=hashes,
    )
    if signing_key is not None and hashes is not None:
        signed = Seal.sign(signing_key, bound, hashes.digest())
        sink.write_at(head.seal_start, memoryview(signed.encoded))
    return header
