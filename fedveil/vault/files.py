"""Durable, private files: written whole or not at all, read without surprises.

A file is written under a temporary name in its own folder, forced to the disk, and only then given
its name; the folder is forced to the disk last. A crash leaves at most a temporary file behind,
never a torn one. Errors are the operating system's: callers turn them into their own.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedveil.vault.buffers import SEGMENT_BYTES, PatchableSink, ReadAt
from fedveil.vault.errors import TruncatedError, VaultError

__all__ = [
    "create_file",
    "file_reader",
    "open_private",
    "read_small",
    "remove_temporaries",
    "replace_file",
    "sync_folder",
]

_PRIVATE = 0o600

_WRITE_BACK_BYTES = 8 * SEGMENT_BYTES


def create_file(path: Path, write: Callable[[PatchableSink], object]) -> None:
    """Write a new file of mode 0600, durably.

    Parameters
    ----------
    path : Path
        Where it appears, complete, once everything is on the disk.
    write : callable
        Writes the content to the sink it is given.

    Raises
    ------
    FileExistsError
        If anything has that name, a dangling symbolic link included. It is left as it is.
    OSError
        If the file cannot be written.
    """
    with _temporary(path, write) as temporary:
        # A link, unlike a rename, never replaces what is there.
        os.link(temporary, path)
        temporary.unlink()
    sync_folder(path.parent)


def replace_file(path: Path, write: Callable[[PatchableSink], object]) -> None:
    """Write a file of mode 0600, durably, in the place of what may be there.

    The parameters are those of `create_file`. Until the rename the old content stands, after it
    the new.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with _temporary(path, write) as temporary:
        temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what a crash left behind. Only safe while no other writer is at work there.

    Such a leftover is a regular file; what else has a name like that is left alone.
    """
    for leftover in folder.glob(".*.tmp"):
        if stat.S_ISREG(os.lstat(leftover).st_mode):
            leftover.unlink()


@contextmanager
def open_private(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """Open a file for reading and close it afterwards.

    Yields
    ------
    tuple of int and os.stat_result
        The descriptor, and the status of the very file that it reads.

    Raises
    ------
    VaultError
        If the path is a symbolic link, or no regular file.
    OSError
        If it cannot be opened.
    """
    if path.is_symlink():
        raise VaultError(f"{path} is a symbolic link; name the file itself")
    # NOFOLLOW settles the race with the check above; NONBLOCK keeps a named pipe from waiting.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise VaultError(f"{path} is not a regular file")
        yield descriptor, status
    finally:
        os.close(descriptor)


def read_small(descriptor: int, limit: int) -> bytes:
    """Read an open file that has at most `limit` bytes; of a longer one, `limit` + 1 bytes."""
    content = b""
    while len(content) <= limit:
        part = os.read(descriptor, limit + 1 - len(content))
        if not part:
            break
        content += part
    return content


def file_reader(descriptor: int) -> ReadAt:
    """Return a source of the bytes of an open file at any position.

    It always copies into the memory that it is given, so that bytes which are checked and bytes
    which are used are the same even when somebody writes to the file at that moment.

    Raises
    ------
    TruncatedError
        From the source: if the file ends before.
    """

    def read(position: int, scratch: memoryview) -> memoryview:
        done = 0
        while done < len(scratch):
            step = os.preadv(descriptor, [scratch[done:]], position + done)
            if step == 0:
                raise TruncatedError(f"the file ends {len(scratch) - done} bytes early")
            done += step
        return scratch

    return read


@contextmanager
def _temporary(path: Path, write: Callable[[PatchableSink], object]) -> Iterator[Path]:
    """Yield a complete, synced file beside `path`; remove it if anything fails."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, _PRIVATE)
    try:
        try:
            write(_DescriptorSink(descriptor))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


class _DescriptorSink:
    """Writes all bytes of every call to a new file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._written = 0
        self._sent = 0

    def write(self, data: memoryview) -> None:
        self.write_at(self._written, data)
        self._written += len(data)
        if self._written - self._sent >= _WRITE_BACK_BYTES:
            self._send()

    def write_at(self, position: int, data: memoryview) -> None:
        while len(data) > 0:
            done = os.pwrite(self._descriptor, data, position)
            position, data = position + done, data[done:]

    def _send(self) -> None:
        """Let the disk begin with what was written, while the rest is still being made.

        Linux starts to write such pages back when it is told that they are not needed. It drops
        only pages that are on the disk already, so these stay in memory for the next reader.
        """
        if sys.platform == "linux":
            begin, self._sent = self._sent, self._written
            os.posix_fadvise(self._descriptor, begin, self._sent - begin, os.POSIX_FADV_DONTNEED)
