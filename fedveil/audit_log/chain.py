"""A file of JSON lines, each of which names the line before it by its SHA-256.

Whoever changes, removes or moves a line breaks the chain at that place. What was cut off at the end
breaks nothing: that is found by the head, which is the hash of the last line and is kept apart.

Source: Schneier and Kelsey, "Secure audit logs to support computer forensics", ACM TISSEC 2(2),
1999, without its keys: whoever may write both the file and the head can write another history.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedveil.audit_log.errors import AuditError
from fedveil.home import make_private
from fedveil.vault.files import sync_folder

__all__ = ["FIRST", "ChainFile", "Head", "head_path", "line_hash", "parse_line", "read_head"]

FIRST = "0" * 64
"""What the first line of all names in the place of a line before it."""

_HEAD_BYTES = 256
_MOST_LINE = 64 * 1024
"""Of a line and its end: the end of a file is looked at from no further back."""
_MOST_TORN = 4096
_FORMAT = "fedveil-audit-head-1"


@dataclass(frozen=True)
class Head:
    """The end of a chain.

    Attributes
    ----------
    number : int
        Of the last line, from 1; 0 before there is one.
    sha256 : str
        Its hash.
    size : int
        Bytes of the file up to its end.
    """

    number: int = 0
    sha256: str = FIRST
    size: int = 0


class ChainFile:
    """Appends lines to a chain; several processes may do so at the same time.

    Parameters
    ----------
    path : Path
        The file; made where there is none, with mode 0600. If it is moved away, a new one goes on
        with the chain.
    head : Path
        Where the head is kept; see `head_path`.
    """

    def __init__(self, path: Path, head: Path) -> None:
        self._path = path
        self._head = head

    def append(self, events: Sequence[Mapping[str, str | int]]) -> Head:
        """Write events down, each as one line; they are on the disk on return.

        A piece of a line that a crash left at the end is taken out and kept in an event of its
        own. If the events cannot be written, none is.

        Raises
        ------
        AuditError
            If the file does not go on where the head says that it ends, or an event has more than
            64 KiB.
        OSError
            If it cannot be written.
        """
        with _locked(self._head) as keeper:
            known = _parse_head(self._head, os.pread(keeper, _HEAD_BYTES + 1, 0))
            descriptor, is_new = self._open()
            try:
                end, torn = self._end(descriptor, known)
                lines, head = _linked([*torn, *events], end)
                try:
                    if torn:
                        os.ftruncate(descriptor, end.size)
                    _write_whole(descriptor, lines)
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, end.size)
                    raise
            finally:
                os.close(descriptor)
            if is_new:
                sync_folder(self._path.parent)
            os.pwrite(keeper, _written_head(head), 0)
            if is_new or torn:
                os.fsync(keeper)
            return head

    def _open(self) -> tuple[int, bool]:
        is_new = not self._path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            os.close(descriptor)
            raise AuditError(f"{self._path}: is no regular file that is yours; name another one")
        if status.st_mode & 0o022:
            os.close(descriptor)
            raise AuditError(
                f"{self._path}: has mode {stat.S_IMODE(status.st_mode):04o}, so that others may "
                f"write to it; if nobody has, run: chmod 600 {self._path}"
            )
        return descriptor, is_new

    def _end(self, descriptor: int, known: Head) -> tuple[Head, list[dict[str, str | int]]]:
        """Return where the file ends, and an event for a torn piece behind that."""
        size = os.fstat(descriptor).st_size
        if size == 0:
            # Another file of the same chain: its first line names the last one before it.
            return Head(known.number, known.sha256, 0), []
        if size < known.size:
            raise AuditError(
                f"{self._path}: was cut from {known.size} to {size} bytes after line "
                f"{known.number} was written; keep it, and begin another file"
            )
        tail = os.pread(descriptor, min(known.size, _MOST_LINE), max(0, known.size - _MOST_LINE))
        last = tail[:-1].rpartition(b"\n")[2]
        if known.number == 0 or tail[-1:] != b"\n" or line_hash(last) != known.sha256:
            raise AuditError(
                f"{self._path}: does not go on where {self._head} says that it ended, at line "
                f"{known.number}; keep it, and begin another file"
            )
        end, rest = known, b""
        # Lines that were written before a crash, but not noted any more.
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(known.size)
            for line in file:
                if not line.endswith(b"\n"):
                    rest = line
                    break
                text = line[:-1]
                _, number, before = parse_line(text, f"{self._path}, behind line {end.number}")
                if (number, before) != (end.number + 1, end.sha256):
                    raise AuditError(
                        f"{self._path}: line {end.number} is not followed by its own next one; "
                        "keep it, and begin another file"
                    )
                end = Head(number, line_hash(text), end.size + len(line))
        if not rest:
            return end, []
        piece = rest[:_MOST_TORN].decode("latin-1")
        return end, [{"event": "torn", "bytes": len(rest), "piece": piece}]


def head_path(folder: Path, path: Path) -> Path:
    """Return where the head of an audit log is kept: in a folder apart, under the log's place."""
    place = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return folder / f"{place}.head"


def read_head(path: Path) -> Head | None:
    """Return a head that was kept; None where there is none.

    Raises
    ------
    AuditError
        If it is damaged.
    """
    try:
        with path.open("rb") as file:
            return _parse_head(path, file.read(_HEAD_BYTES + 1))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"{path}: the head cannot be read ({error.strerror})") from None


def line_hash(line: bytes) -> str:
    """Return the SHA-256 of a line without its end, 64 hexadecimal characters."""
    return hashlib.sha256(line).hexdigest()


def parse_line(line: bytes, place: str) -> tuple[dict[str, object], int, str]:
    """Return a line's fields, its number, and the hash that it names.

    Parameters
    ----------
    line : bytes
        Without its end.
    place : str
        Which line it is, for the error.

    Raises
    ------
    AuditError
        If it is none of an audit log.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        number, before = fields.get("number"), fields.get("before")
        if type(number) is int and isinstance(before, str):
            return fields, number, before
    raise AuditError(f"{place}: is no line of an audit log; it was changed, or is damaged")


def _linked(events: Sequence[Mapping[str, str | int]], end: Head) -> tuple[bytes, Head]:
    number, before, size = end.number, end.sha256, end.size
    lines: list[bytes] = []
    for event in events:
        number += 1
        fields = {"number": number, **event, "before": before}
        text = json.dumps(fields, separators=(",", ":")).encode("ascii")
        if len(text) >= _MOST_LINE:
            raise AuditError(
                f"an event of {len(text)} bytes is not written down: {_MOST_LINE} are too many"
            )
        before = line_hash(text)
        size += len(text) + 1
        lines.append(text)
    lines.append(b"")
    return b"\n".join(lines), Head(number, before, size)


def _write_whole(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while len(view) > 0:
        view = view[os.write(descriptor, view) :]


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    make_private(path.parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _written_head(head: Head) -> bytes:
    # Always as long, and less than a sector, so that it is overwritten at once.
    fields = {"format": _FORMAT, "number": head.number, "sha256": head.sha256, "size": head.size}
    return json.dumps(fields).encode("ascii").ljust(_HEAD_BYTES - 1) + b"\n"


def _parse_head(path: Path, content: bytes) -> Head:
    if not content:
        return Head()
    try:
        fields = json.loads(content)
        head = Head(fields["number"], fields["sha256"], fields["size"])
        is_known = len(content) == _HEAD_BYTES and fields["format"] == _FORMAT
    except (ValueError, KeyError, TypeError):
        is_known, head = False, Head()
    if (
        not is_known
        or type(head.number) is not int
        or type(head.size) is not int
        or not isinstance(head.sha256, str)
        or min(head.number, head.size) < 1
    ):
        raise AuditError(
            f"{path}: is no head of an audit log; keep the log, remove this file, and begin another"
        )
    return head
