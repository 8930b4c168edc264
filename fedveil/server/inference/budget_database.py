"""The SQLite database that budgets are kept in: made, opened, checked, written; what is refused."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from fedveil.server.inference.errors import ServeError

__all__ = ["damaged", "open_budgets", "refused", "transaction"]

_APPLICATION_ID = 0x46564247
_FORMAT = 1
_BUSY_SECONDS = 10.0

_SCHEMA = """
CREATE TABLE used (
    run TEXT NOT NULL,
    caller TEXT NOT NULL,
    rows INTEGER NOT NULL CHECK (rows >= 0),
    resets INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, caller)
) WITHOUT ROWID, STRICT
"""


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Do all of what is within, or nothing; afterwards it is on the disk."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has rolled back by itself already.
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def open_budgets(path: Path) -> tuple[int, sqlite3.Connection]:
    """Open a file, or make it; return its inode, and a connection.

    Raises
    ------
    ServeError
        If it is damaged, others may use it, or it cannot be made.
    """
    if not path.parent.is_dir():
        raise ServeError(f"{path}: there is no folder {path.parent}; make it, or correct the path")
    try:
        if not path.exists():
            _make(path)
        status = path.lstat()
    except OSError as error:
        raise ServeError(f"{path}: cannot keep budgets there ({error.strerror})") from None
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or mode & 0o077:
        raise ServeError(
            f"{path}: must be a regular file that is yours, with mode 0600, not {mode:04o}; else "
            "others may set budgets back"
        )
    try:
        database = _connect(path)
    except sqlite3.Error as error:
        raise damaged(path, error) from None
    try:
        _check(path, database)
    except BaseException:
        database.close()
        raise
    return status.st_ino, database


def _check(path: Path, database: sqlite3.Connection) -> None:
    names = ("application_id", "user_version", "quick_check(1)")
    try:
        told = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
        database.execute("SELECT run, caller, rows, resets FROM used LIMIT 1").fetchall()
    except sqlite3.Error as error:
        raise damaged(path, error) from None
    if told != [_APPLICATION_ID, _FORMAT, "ok"]:
        raise damaged(path, "it is no file of budgets that this Fedveil writes")


def _connect(path: Path) -> sqlite3.Connection:
    # In mode rw SQLite makes no empty file in the place of one that has gone.
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        # FULL, not NORMAL: a block that was given out must be on the disk, or a power cut gives it
        # out again (sqlite.org/pragma.html#pragma_synchronous).
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
    except BaseException:
        database.close()
        raise
    return database


def _make(path: Path) -> None:
    """Make an empty file that appears complete; of two processes that do so, one does it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as database:
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {_FORMAT}")
            database.execute(_SCHEMA)
        with suppress(FileExistsError):
            os.link(temporary, path)
    except sqlite3.Error as error:
        raise damaged(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def refused(path: Path, error: sqlite3.Error) -> ServeError:
    """Return what is said of an error; a file that is waited for is not damaged."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        return ServeError(
            f"{path}: another process has kept the file of budgets to itself for {_BUSY_SECONDS:g} "
            "s; see what it is, and end it"
        )
    return damaged(path, error)


def damaged(path: Path, reason: object) -> ServeError:
    """Return what is said of a file that cannot be trusted."""
    return ServeError(
        f"{path}: budgets are refused ({reason}); bring the file back from a copy, or remove it "
        "and the files beside it that end in -wal and -shm, which forgets what was used"
    )
