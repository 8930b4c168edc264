"""The file that remembers how many rows callers have asked for: SQLite, shared by processes."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedveil.home import make_private
from fedveil.server.inference.errors import ServeError

__all__ = ["Booking", "BudgetFile", "Use", "read_use", "reset_use"]

_APPLICATION_ID = 0x46564247
_FORMAT = 1
_BUSY_SECONDS = 10.0
_BLOCK_ROWS = 16_384
_SHARE = 16

_SCHEMA = """
CREATE TABLE used (
    run TEXT NOT NULL,
    caller TEXT NOT NULL,
    rows INTEGER NOT NULL CHECK (rows >= 0),
    resets INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, caller)
) WITHOUT ROWID, STRICT
"""


@dataclass(frozen=True)
class Use:
    """What a caller has used.

    Attributes
    ----------
    run, caller : str
        Of which run, and who.
    rows : int
        Rows, with those that a running service has set aside for the caller.
    """

    run: str
    caller: str
    rows: int


@dataclass(frozen=True)
class Booking:
    """A block of rows that a caller was given.

    Attributes
    ----------
    rows : int
        How many; 0 where fewer were left than are needed.
    left : int
        How many the file says are left after it.
    resets : int
        How often the caller's use has been reset.
    """

    rows: int
    left: int
    resets: int


class BudgetFile:
    """Books rows of one run; for one thread at a time, and any number of processes.

    Parameters
    ----------
    path : Path
        The file; made where there is none, with mode 0600.
    run : str
        The run.

    Raises
    ------
    ServeError
        If it is damaged, others may use it, or it cannot be written; so do all methods.
    """

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run
        self._number, self._database = _open(path)

    def book(self, caller: str, granted: int, rows: int, held: int, resets: int) -> Booking:
        """Book a block as used.

        Parameters
        ----------
        caller : str
            For whom.
        granted : int
            Rows that the caller may use in all.
        rows : int
            How many are needed now.
        held : int
            How many of them are left of a block before, which was booked when the caller's use had
            been reset `resets` times; after another reset they count no more.
        """
        with self._writing() as database:
            used, now = self._read(database, caller)
            missing = rows - (held if now == resets else 0)
            left = max(0, granted - used)
            # The less is left, the smaller the block, so that at the end next to nothing lies idle
            # in another process.
            block = max(missing, min(_BLOCK_ROWS, left // _SHARE)) if missing <= left else 0
            if block:
                self._write(database, caller, used + block, now)
            return Booking(block, left - block, now)

    def put_back(self, unused: Iterable[tuple[str, int, int]]) -> None:
        """Count rows as not used after all: caller, rows, and the resets when they were booked."""
        with self._writing() as database:
            for caller, rows, resets in unused:
                used, now = self._read(database, caller)
                if now == resets and rows:
                    self._write(database, caller, max(0, used - rows), now)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._path.stat().st_ino != self._number:
                raise _damaged(self._path, "another file was put in its place")
            with _transaction(self._database):
                yield self._database
        except sqlite3.Error as error:
            raise _refused(self._path, error) from None
        except OSError as error:
            raise _damaged(self._path, error.strerror) from None

    def _read(self, database: sqlite3.Connection, caller: str) -> tuple[int, int]:
        found = database.execute(
            "SELECT rows, resets FROM used WHERE run = ? AND caller = ?", (self._run, caller)
        ).fetchone()
        return (0, 0) if found is None else (int(found[0]), int(found[1]))

    def _write(self, database: sqlite3.Connection, caller: str, rows: int, resets: int) -> None:
        database.execute(
            "INSERT INTO used (run, caller, rows, resets) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET rows = excluded.rows",
            (self._run, caller, rows, resets),
        )


def read_use(path: Path) -> list[Use]:
    """Return what every caller has used.

    Raises
    ------
    ServeError
        If there is no such file, or it is damaged.
    """
    with _opened(path) as database:
        found = database.execute("SELECT run, caller, rows FROM used ORDER BY run, caller")
        return [Use(str(run), str(caller), int(rows)) for run, caller, rows in found]


def reset_use(path: Path, caller: str, run: str | None) -> int:
    """Set back what a caller has used; return how many rows that was.

    Parameters
    ----------
    path : Path
        The file.
    caller : str
        As `Use` names it, for example ``token:web-shop``.
    run : str or None
        Of which run; None for all.

    Raises
    ------
    ServeError
        If the caller has used nothing, or the file is missing or damaged.
    """
    which = (caller, run, run)
    with _opened(path) as database, _transaction(database):
        rows = database.execute(
            "SELECT sum(rows) FROM used WHERE caller = ? AND (run = ? OR ? IS NULL)", which
        ).fetchone()[0]
        if rows is None:
            raise ServeError(
                f"{path}: knows of no caller {caller}; `fedveil queries list` shows those it knows"
            )
        database.execute(
            "UPDATE used SET rows = 0, resets = resets + 1"
            " WHERE caller = ? AND (run = ? OR ? IS NULL)",
            which,
        )
        return int(rows)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise ServeError(
            f"{path}: there is no such file of budgets; a service with --query-budget makes it"
        )
    try:
        with closing(_open(path)[1]) as database:
            yield database
    except sqlite3.Error as error:
        raise _refused(path, error) from None


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has rolled back by itself already.
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _open(path: Path) -> tuple[int, sqlite3.Connection]:
    """Open a file, or make it; return its inode, and a connection."""
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
        raise _damaged(path, error) from None
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
        raise _damaged(path, error) from None
    if told != [_APPLICATION_ID, _FORMAT, "ok"]:
        raise _damaged(path, "it is no file of budgets that this Fedveil writes")


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
    make_private(path.parent)
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
        raise _damaged(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _refused(path: Path, error: sqlite3.Error) -> ServeError:
    """Return what is said of an error; a file that is waited for is not damaged."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        return ServeError(
            f"{path}: another process has kept the file of budgets to itself for {_BUSY_SECONDS:g} "
            "s; see what it is, and end it"
        )
    return _damaged(path, error)


def _damaged(path: Path, reason: object) -> ServeError:
    return ServeError(
        f"{path}: budgets are refused ({reason}); bring the file back from a copy, or remove it "
        "and the files beside it that end in -wal and -shm, which forgets what was used"
    )
