"""Destroying the model key of a store, which makes every copy of every round unreadable.

The rounds stay where they are, and so do their copies in backups; nobody can open them any more
once all copies of ``keys.json`` are gone. No key is needed for it: who lost theirs may destroy.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from datetime import UTC, datetime
from pathlib import Path

from fedveil.vault.errors import StoreDestroyedError, StoreError, VaultError
from fedveil.vault.files import create_file, open_private, read_small, sync_folder
from fedveil.vault.listfile import KEYS_NAME, is_key_list
from fedveil.vault.lock import WriterLock
from fedveil.vault.manifest import read_manifest

__all__ = ["DESTROYED_NAME", "check_not_destroyed", "destroy_store"]

DESTROYED_NAME = "destroyed.json"

_FORMAT = "fedveil-destroyed-2"
_MOST_BYTES = 4096
_TEMPORARIES = f".{KEYS_NAME}.*.tmp"


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
    _check_store(directory)
    lock = WriterLock(directory / ".lock")
    left: list[str] = []
    try:
        lock.acquire()
        # First the note: whoever finds it beside a list knows that there is work left.
        date = _read_note(directory) or _write_note(directory)
        whole = _shred(directory / KEYS_NAME)
        for path in directory.glob(_TEMPORARIES):
            try:
                _shred(path)
            except OSError as error:
                left.append(f"{path.name} ({error.strerror})")
        sync_folder(directory)
    except OSError as error:
        raise StoreError(
            f"cannot destroy the model key of {directory}: {error.strerror}; it may still be "
            "there, so try again"
        ) from None
    finally:
        lock.release()
    if left:
        raise StoreError(
            f"{KEYS_NAME} of {directory} is gone, but these may hold a copy of it and could not be "
            f"removed: {', '.join(left)}; remove them, and "
            "destroy it again"
        )
    if not whole:
        raise StoreError(
            f"{KEYS_NAME} of {directory} was no regular file or had a second name (a hard link), "
            "so it was removed and not overwritten; find the other one and destroy it"
        )
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
    if os.path.lexists(directory / KEYS_NAME) or any(directory.glob(_TEMPORARIES)):
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


def _check_store(directory: Path) -> None:
    """Refuse what is no store; one that lost its description, or whose was damaged, is one."""
    try:
        read_manifest(directory)
    except StoreError:
        begun = os.path.lexists(directory / DESTROYED_NAME)
        if not begun and not is_key_list(directory / KEYS_NAME):
            raise


def _shred(path: Path) -> bool:
    """Overwrite a file where it lies, and remove it; return whether it needed no more than that.

    What is no regular file, or has a second name, is only removed: somebody may have put it there
    so that another file is overwritten.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    whole = stat.S_ISREG(status.st_mode) and _overwrite(path)
    path.unlink()
    return whole


def _overwrite(path: Path) -> bool:
    """Overwrite a file, if it is one of its own, and return whether it is."""
    # NONBLOCK keeps a named pipe from waiting.
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return False
        left, position = status.st_size, 0
        while left > 0:
            done = os.pwrite(descriptor, secrets.token_bytes(min(left, 1 << 16)), position)
            left, position = left - done, position + done
        os.fsync(descriptor)
        return True
    finally:
        os.close(descriptor)
