"""The file that remembers how many rows callers have asked for: SQLite, shared by processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedveil.server.inference.budget_database import damaged, open_budgets, refused, transaction
from fedveil.server.inference.errors import ServeError

__all__ = ["Booking", "BudgetFile", "Use", "Wanted", "read_use", "reset_use"]

_BLOCK_ROWS = 16_384
_SHARE = 16


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows that a caller needs.

    Attributes
    ----------
    caller : str
        Who.
    rows : int
        How many are needed now.
    held : int
        How many of them are left of a block before, which was booked when the caller's use had
        been reset `resets` times; after another reset they count no more.
    resets : int
        See `held`.
    """

    caller: str
    rows: int
    held: int
    resets: int


@dataclass(frozen=True, slots=True)
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
        self._number, self._database = open_budgets(path)

    def book(self, granted: int, wanted: Sequence[Wanted]) -> list[Booking]:
        """Book blocks as used, all of them or none; once it returns they are on the disk.

        Parameters
        ----------
        granted : int
            Rows that each caller may use in all.
        wanted : sequence of Wanted
            For whom and how many, of each caller once.

        Returns
        -------
        list of Booking
            In the same order.
        """
        with self._writing() as database:
            return [self._book(database, granted, one) for one in wanted]

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
                raise damaged(self._path, "another file was put in its place")
            with transaction(self._database):
                yield self._database
        except sqlite3.Error as error:
            raise refused(self._path, error) from None
        except OSError as error:
            raise damaged(self._path, error.strerror) from None

    def _book(self, database: sqlite3.Connection, granted: int, wanted: Wanted) -> Booking:
        used, now = self._read(database, wanted.caller)
        missing = wanted.rows - (wanted.held if now == wanted.resets else 0)
        left = max(0, granted - used)
        # The less is left, the smaller the block, so that at the end next to nothing lies idle
        # in another process.
        block = max(missing, min(_BLOCK_ROWS, left // _SHARE)) if missing <= left else 0
        if block:
            self._write(database, wanted.caller, used + block, now)
        return Booking(block, left - block, now)

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
    with _opened(path) as database, transaction(database):
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
        with closing(open_budgets(path)[1]) as database:
            yield database
    except sqlite3.Error as error:
        raise refused(path, error) from None
