"""The lock that lets one writer at a time into a store."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from fedveil.vault.errors import StoreLockedError

__all__ = ["WriterLock"]


class WriterLock:
    """An advisory lock on a file; the operating system frees it when the process ends.

    Parameters
    ----------
    path : Path
        The file; made with mode 0600 when it is first locked, and never removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._close: weakref.finalize[[int], WriterLock] | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting, or keep it; return whether it was taken just now.

        Raises
        ------
        StoreLockedError
            If another holder has it, in this process or another one.
        OSError
            If the file cannot be opened or locked.
        """
        if self._close is not None and self._close.alive:
            return False
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StoreLockedError(
                f"another writer holds the model store {self._path.parent}; "
                "stop it first, or save to another folder"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._close = weakref.finalize(self, os.close, descriptor)
        return True

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._close is not None:
            self._close()
