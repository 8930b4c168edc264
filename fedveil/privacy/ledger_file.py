"""Small SQLite files that nobody but their owner may use, and the head of a ledger kept in one."""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fedveil.privacy.ledger_entries import LedgerError

__all__ = ["BUSY_SECONDS", "Head", "HeadFile", "create_database", "open_database"]

BUSY_SECONDS = 120.0
"""How long to wait for another process that writes, which computes an epsilon meanwhile."""

Statement = tuple[str, tuple[object, ...]]

_PRIVATE = 0o600


def create_database(path: Path, statements: Sequence[Statement]) -> None:
    """Make a database file of mode 0600, whole and on the disk; leave one that is there.

    Parameters
    ----------
    path : Path
        Where; the folders above are made with mode 0700.
    statements : sequence of (str, tuple)
        What makes its content, with parameters.

    Raises
    ------
    OSError
        If it cannot be made.
    sqlite3.Error
        The same.
    """
    _make_private(path.parent)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(temporary, flags, _PRIVATE))
    try:
        with closing(_connect(temporary)) as connection:
            for statement, parameters in statements:
                connection.execute(statement, parameters)
        # A link, unlike a rename, never replaces what is there.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        for name in _with_companions(temporary):
            name.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def open_database(path: Path, schema: Sequence[str]) -> Iterator[sqlite3.Connection]:
    """Open a database file that is there, and close it afterwards.

    Every commit is on the disk when it returns.

    Parameters
    ----------
    path : Path
        The file.
    schema : sequence of str
        The statements that its tables, indices and triggers must have been made with: all, and no
        others, or a trigger put there by somebody could undo what is written.

    Raises
    ------
    FileNotFoundError
        If there is none.
    LedgerError
        If it or a file of SQLite's beside it is a symbolic link, belongs to another user, or lets
        group or others use it; or if its schema is another.
    OSError
        If it cannot be read.
    sqlite3.Error
        The same.
    """
    before = _check_private(path)
    with closing(_connect(path)) as connection:
        after = _check_private(path)
        if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino):
            raise LedgerError(f"{path}: was exchanged while it was opened; try again")
        found = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}
        if found != set(schema):
            raise LedgerError(f"{path}: is no ledger file of this version; restore it from a copy")
        yield connection


@dataclass(frozen=True)
class Head:
    """The newest entry that was seen of a ledger.

    Parameters
    ----------
    ledger : str
        Name of the ledger, drawn when it was made.
    number : int
        Number of the entry; 0 where there was none.
    hash : bytes
        Its hash, 32 bytes.
    """

    ledger: str
    number: int
    hash: bytes


class HeadFile:
    """The head of one ledger, kept apart from it: a cut end, an old copy or a lost file shows.

    Parameters
    ----------
    folder : Path
        Where heads are kept; made with mode 0700.
    name : str
        Which ledger, by the place where it lies.
    """

    _SCHEMA = (
        "CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), ledger TEXT NOT NULL, "
        "number INTEGER NOT NULL, hash BLOB NOT NULL) STRICT",
    )

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"ledger-{name}.db"

    def read(self) -> Head | None:
        """Return the head, or None where the ledger was not seen before.

        Raises
        ------
        LedgerError
            If it cannot be read.
        """
        try:
            with open_database(self.path, self._SCHEMA) as connection:
                return self._row(connection)
        except FileNotFoundError:
            return None
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def raise_to(self, head: Head) -> None:
        """Remember a head, unless a later one of the same ledger is remembered already.

        Raises
        ------
        LedgerError
            If it cannot be written.
        """
        values = (head.ledger, head.number, head.hash)
        try:
            if not self.path.exists():
                insert = ("INSERT INTO head VALUES (1, ?, ?, ?)", values)
                create_database(self.path, [*((sql, ()) for sql in self._SCHEMA), insert])
            with open_database(self.path, self._SCHEMA) as connection:
                connection.execute(
                    "UPDATE head SET number = ?2, hash = ?3 WHERE ledger = ?1 AND number < ?2",
                    values,
                )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def _row(self, connection: sqlite3.Connection) -> Head | None:
        for ledger, number, hash_ in connection.execute("SELECT ledger, number, hash FROM head"):
            return Head(ledger, number, hash_)
        raise LedgerError(f"{self.path}: holds no head; restore it from a copy")

    def _unusable(self, error: OSError | sqlite3.Error) -> LedgerError:
        reason = error.strerror if isinstance(error, OSError) else error
        return LedgerError(f"{self.path}: cannot keep the head of the ledger ({reason})")


def _connect(path: Path) -> sqlite3.Connection:
    # mode=rw never makes a file; without an isolation level every statement is its own
    # transaction unless one is begun.
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    # With less, SQLite may lose the last commits when the power fails.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _check_private(path: Path) -> os.stat_result:
    """Check the file and those that SQLite keeps beside it; return the status of the file.

    Their status is read without opening them: closing a descriptor of a file would drop the locks
    that SQLite holds on it in this process.
    """
    status = os.lstat(path)
    for one in _with_companions(path):
        with suppress(FileNotFoundError):
            _refuse_foreign(one, os.lstat(one))
    return status


def _with_companions(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-journal")]


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise LedgerError(f"{path}: is a symbolic link or no regular file; name the file itself")
    if status.st_uid != os.geteuid():
        raise LedgerError(
            f"{path}: belongs to user {status.st_uid}, not to you ({os.geteuid()}); use a ledger "
            "of your own"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise LedgerError(
            f"{path}: has mode {mode:04o}, so that others may use it; if nobody has changed it, "
            f"run: chmod 600 {path}"
        )


def _make_private(folder: Path) -> None:
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
