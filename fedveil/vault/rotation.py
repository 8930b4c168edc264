"""Exchanging the model key of a store without touching a weight.

Every step leaves a store that opens::

    1  the key list names the new key beside the old one
    2  every file gets a second wrap slot, for the new key
    3  the mark names both keys, the key list the new one only, then so does the mark
    4  the slots of the old key are overwritten with zeros
    5  the key list says that this is done

The key list of step 3 is the exchange. What a crash interrupts is finished by the next writer.
Readers that hold the old key read the key list again when a file no longer opens.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from fedveil.vault.checkpoint import Access, authenticate
from fedveil.vault.errors import StoreError
from fedveil.vault.head import Head
from fedveil.vault.header import Address, Kind
from fedveil.vault.kek.interface import KekProvider
from fedveil.vault.keyfile import Key
from fedveil.vault.keyring import Keyring
from fedveil.vault.layout import Layout
from fedveil.vault.manifest import Manifest
from fedveil.vault.marks import MarkFile
from fedveil.vault.placed import read_placed
from fedveil.vault.slots import FREE_SLOT, other_slot, unwrap_data_key, wrap_data_key

__all__ = ["finish_rotation", "rotate"]


def rotate(
    keyring: Keyring,
    layout: Layout,
    manifest: Manifest,
    others: Collection[KekProvider],
    marks: MarkFile | None,
) -> None:
    """Exchange the model key; only the writer may do so, and after `finish_rotation`.

    Parameters
    ----------
    keyring : Keyring
        The store's.
    layout : Layout
        Where its files lie.
    manifest : Manifest
        What it says about itself.
    others : collection of KekProvider
        As for `Keyring.begin_exchange`.
    marks : MarkFile or None
        What remembers the model key.

    Raises
    ------
    StoreError
        If a KEK is missing or a file cannot be written.
    VaultError
        If the head of a file does not open; nothing was changed then.
    OSError
        If the key list cannot be written.
    """
    for kind, round_ in layout.files():
        _read_head(layout, manifest, kind, round_, keyring.key)
        path = layout.path(kind, round_)
        _check_own(path, os.lstat(path))
    keyring.begin_exchange(others)
    finish_rotation(keyring, layout, manifest, marks)


def finish_rotation(
    keyring: Keyring, layout: Layout, manifest: Manifest, marks: MarkFile | None
) -> None:
    """Go on with an exchange of the model key from wherever it stands; do nothing if none does.

    Only the writer may do so, once the mark was checked. Errors are those of `rotate`, except
    that part of the exchange may have been made: call again to go on.
    """
    # A slot that is there already is written all the same: it may not have reached the disk.
    upcoming = keyring.upcoming_key()
    if upcoming is not None:
        old = keyring.key
        for kind, round_ in layout.files():
            head = _read_head(layout, manifest, kind, round_, old)
            data_key = unwrap_data_key(head.slots, old, head.bound, head.header.commitment)
            slot = wrap_data_key(data_key, upcoming, head.bound)
            _put_other_slot(layout.path(kind, round_), head, old, slot)
        if marks is not None:
            marks.accept_keys(old.key_id, upcoming.key_id)
        keyring.switch(upcoming)
    if keyring.keys.clearing:
        if marks is not None:
            marks.accept_keys(keyring.key.key_id)
        for kind, round_ in layout.files():
            head = _read_head(layout, manifest, kind, round_, keyring.key)
            _put_other_slot(layout.path(kind, round_), head, keyring.key, FREE_SLOT)
        keyring.finish_exchange()


def _read_head(layout: Layout, manifest: Manifest, kind: Kind, round_: int, key: Key) -> Head:
    address = Address(kind, manifest.store, manifest.run, round_)
    access = Access(address, key, manifest.verify_key)
    path = layout.path(kind, round_)
    return read_placed(path, lambda read, size: authenticate(read, size, access))


def _put_other_slot(path: Path, head: Head, key: Key, slot: bytes) -> None:
    """Write the slot beside that of a key."""
    try:
        _overwrite(path, head.slot_start(other_slot(head.slots, key)), slot)
    except OSError as error:
        raise StoreError(
            f"cannot write a wrap slot of {path}: {error.strerror}; the rounds are unharmed, and "
            "the next call that writes goes on with the exchange of the model key"
        ) from None


def _overwrite(path: Path, position: int, slot: bytes) -> None:
    """Write a slot where it lies, durably."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        _check_own(path, os.fstat(descriptor))
        data = memoryview(slot)
        while len(data) > 0:
            done = os.pwrite(descriptor, data, position)
            position, data = position + done, data[done:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_own(path: Path, status: os.stat_result) -> None:
    """Refuse a file that is more than this one place of the store."""
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise StoreError(
            f"{path} is no regular file or has a second name (a hard link), and writing to it "
            "would write there, too; put a copy in its place"
        )
