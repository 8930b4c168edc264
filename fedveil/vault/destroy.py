"""Destroying the model key of a store, which makes every copy of every round unreadable.

The rounds stay where they are, and so do their copies in backups; nobody can open them any more
once all copies of ``keys.json`` are gone. No key is needed for it: who lost theirs may destroy.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

from fedveil.vault.errors import StoreDestroyedError, StoreError, VaultError
from fedveil.vault.files import create_file, open_private, read_small, sync_folder
from fedveil.vault.keylist import KEYS_NAME
from fedveil.vault.lock import WriterLock
from fedveil.vault.manifest import read_manifest

__all__ = ["DESTROYED_NAME", "check_not_destroyed", "destroy_store"]

DESTROYED_NAME = "destroyed.json"

_FORMAT = "fedveil-destroyed-2"
_MOST_BYTES = 4096


def destroy_store(directory: Path) -> str:
    """Destroy the model key of a store; what an interruption left is finished by calling again.

    The key list is overwritten with random bytes and removed, and a note stays in its place.
    Copies of the key list elsewhere, for example in backups, are not reached, nor is what a
    journal, a snapshot or a solid-state disk kept of it: see ``docs/vault.md``. A process that
    has the store open keeps the key in its memory until it ends.

    Parameters
    ----------
    directory : Path
        The folder of the store.

    Returns
    -------
    str
        When the destruction was begun, UTC, as ``2031-05-17T08:00:00Z``.

    Raises
    ------
    StoreLockedError
        If a writer holds the store.
    StoreError
        If there is no store, or the folder refuses. The key may still be there then.
    """
    read_manifest(directory)
    lock = WriterLock(directory / ".lock")
    try:
        lock.acquire()
        # First the note, last the list: whoever finds both knows that there is work left.
        date = _read_note(directory) or _write_note(directory)
        for path in [*directory.glob(f".{KEYS_NAME}.*.tmp"), directory / KEYS_NAME]:
            _shred(path)
        sync_folder(directory)
    except OSError as error:
        raise StoreError(
            f"cannot destroy the model key of {directory}: {error.strerror}; it may still be "
            "there, so try again"
        ) from None
    finally:
        lock.release()
    return date


def check_not_destroyed(directory: Path) -> None:
    """Refuse a store whose model key was destroyed.

    Raises
    ------
    StoreDestroyedError
        If it was, or was begun to be.
    StoreError
        If that cannot be told.
    """
    try:
        date = _read_note(directory)
    except OSError as error:
        raise StoreError(f"cannot read {directory / DESTROYED_NAME}: {error.strerror}") from None
    if date is None:
        return
    if os.path.lexists(directory / KEYS_NAME):
        raise StoreDestroyedError(
            f"the destruction of the model key of {directory} was begun on {date} and not "
            "finished; destroy it again to finish"
        )
    raise StoreDestroyedError(
        f"the model key of {directory} was destroyed on {date}; nothing in it can be read again"
    )


def _read_note(directory: Path) -> str | None:
    """Return when the destruction was begun, if it was."""
    try:
        with open_private(directory / DESTROYED_NAME) as (descriptor, _):
            content = read_small(descriptor, _MOST_BYTES)
    except FileNotFoundError:
        return None
    except VaultError as error:
        raise StoreError(f"model store refused: {error}") from None
    try:
        date = json.loads(content)["date"]
    except (ValueError, RecursionError, TypeError, KeyError):
        date = None
    # What else the note may say, it is there: the key is not to be used.
    known = isinstance(date, str) and re.fullmatch(r"[0-9TZ:-]{1,32}", date)
    return str(date) if known else "an unknown date"


def _write_note(directory: Path) -> str:
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    content = (json.dumps({"format": _FORMAT, "date": date}, indent=2) + "\n").encode("ascii")
    create_file(directory / DESTROYED_NAME, lambda sink: sink.write(memoryview(content)))
    return date


def _shred(path: Path) -> None:
    """Overwrite a file where it lies, and remove it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        left, position = os.fstat(descriptor).st_size, 0
        while left > 0:
            done = os.pwrite(descriptor, secrets.token_bytes(min(left, 1 << 16)), position)
            left, position = left - done, position + done
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.unlink()
