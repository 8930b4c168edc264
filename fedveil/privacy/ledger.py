"""The data owner's ledger: what was released of each data set, over all runs, on the disk first."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedveil.privacy.ledger_entries import (
    Budget,
    Charge,
    Entry,
    LedgerError,
    chain_start,
    entry_hash,
    read_entry,
)
from fedveil.privacy.ledger_file import Head, HeadFile, create_database, open_database

__all__ = ["LEDGER_FORMAT", "Ledger", "Snapshot"]

LEDGER_FORMAT = "fedveil-ledger-1"

_SCHEMA = (
    "CREATE TABLE ledger (id INTEGER PRIMARY KEY CHECK (id = 1), format TEXT NOT NULL, "
    "name TEXT NOT NULL) STRICT",
    "CREATE TABLE entries (number INTEGER PRIMARY KEY, body TEXT NOT NULL, hash BLOB NOT NULL) "
    "STRICT",
    *(
        f"CREATE TRIGGER {table}_{action} BEFORE {action.upper()} ON {table} "
        "BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END"
        for table in ("ledger", "entries")
        for action in ("update", "delete")
    ),
)


@dataclass(frozen=True)
class Snapshot:
    """A ledger as it was read and checked.

    Parameters
    ----------
    name : str
        Name of the ledger, drawn when it was made; empty where there is none yet.
    entries : tuple of Entry
        In order.
    bodies : tuple of str
        The same as they are stored and hashed.
    hashes : tuple of bytes
        The chain: its start, then the hash of each entry, 32 bytes each.
    was_known : bool
        Whether a head of it was kept on this machine, so that a cut end would have shown.
    """

    name: str = ""
    entries: tuple[Entry, ...] = ()
    bodies: tuple[str, ...] = ()
    hashes: tuple[bytes, ...] = (b"",)
    was_known: bool = False

    @property
    def head(self) -> Head:
        """The newest entry."""
        return Head(self.name, len(self.entries), self.hashes[-1])

    def now(self) -> datetime:
        """Return the time in UTC: the clock's, or the newest entry's where the clock is behind."""
        clock = datetime.now(UTC).replace(microsecond=0)
        return max([clock, *(entry.time for entry in self.entries[-1:])])


class Ledger:
    """One append-only, hash-chained SQLite file, and the head of its chain kept elsewhere.

    A charge is on the disk, and the head raised to it, before anything is released; it counts from
    then on, whatever becomes of the release. A crash over-counts and never under-counts. Every use
    checks the whole chain, and that it reaches the head. No epsilon is stored.

    Several processes may use one ledger at once: each checks its budget and writes its charge
    within one exclusive transaction (``BEGIN IMMEDIATE``).

    Parameters
    ----------
    path : Path
        The file; made with mode 0600 at the first charge.
    heads : Path
        Folder where heads are kept, apart from the ledger.

    Notes
    -----
    Whoever can write the ledger and its head can put back an old state of both, as a restored image
    of the whole machine does: that shows only against a head that was noted elsewhere.
    """

    def __init__(self, path: Path, heads: Path) -> None:
        self.path = path.absolute()
        self._head = HeadFile(heads, hashlib.sha256(str(self.path).encode()).hexdigest()[:16])

    def read(self) -> Snapshot:
        """Read and check the whole ledger; without one there is nothing, and nothing is made.

        Raises
        ------
        LedgerError
            If it cannot be read, its chain is broken, or it is not the one that was seen here.
        """
        # Before the ledger: an entry is committed before the head is raised to it.
        head = self._head.read()
        try:
            with open_database(self.path, _SCHEMA) as connection:
                connection.execute("BEGIN")
                return self._snapshot(connection, head)
        except FileNotFoundError:
            if head is not None:
                raise self._gone(head) from None
            return Snapshot()
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def charge(self, charge: Charge, budget: Budget | None) -> Entry:
        """Write what is about to be released, if the budget bears it.

        Parameters
        ----------
        charge : Charge
            What.
        budget : Budget, optional
            What may be spent of its data set; None where there is no limit and it is only recorded.

        Returns
        -------
        Entry
            On the disk, in the ledger and in its head.

        Raises
        ------
        OverspendError
            If it would overspend; nothing was written.
        LedgerError
            If the ledger cannot be used or written. The charge may have been written, and then
            counts; nothing may be released.
        """
        with self._writing() as (connection, snapshot):
            if budget is not None:
                budget.check(snapshot.entries, charge)
            entry = Entry(
                **dict(charge),
                number=len(snapshot.entries) + 1,
                time=snapshot.now(),
            )
            body = entry.model_dump_json()
            hash_ = entry_hash(snapshot.head.hash, body)
            connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (entry.number, body, hash_))
            connection.execute("COMMIT")
        self._head.raise_to(Head(snapshot.name, entry.number, hash_))
        return entry

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, Snapshot]]:
        """Yield the ledger, made if need be, with all other writers shut out."""
        try:
            if not self.path.exists():
                self._create()
            with open_database(self.path, _SCHEMA) as connection:
                connection.execute("BEGIN IMMEDIATE")
                head = self._head.read()
                snapshot = self._snapshot(connection, head)
                if head is None:
                    # Before the first charge: from now on a lost ledger shows.
                    self._head.raise_to(snapshot.head)
                yield connection, snapshot
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def _create(self) -> None:
        head = self._head.read()
        if head is not None:
            raise self._gone(head)
        insert = "INSERT INTO ledger VALUES (1, ?, ?)"
        create_database(
            self.path,
            [
                ("PRAGMA journal_mode = WAL", ()),
                *((sql, ()) for sql in _SCHEMA),
                (insert, (LEDGER_FORMAT, secrets.token_hex(16))),
            ],
        )

    def _snapshot(self, connection: sqlite3.Connection, known: Head | None) -> Snapshot:
        """Check the chain from its start to its end, and against the head that was kept."""
        rows = list(connection.execute("SELECT format, name FROM ledger"))
        if len(rows) != 1 or rows[0][0] != LEDGER_FORMAT:
            raise LedgerError(f"{self.path}: is no ledger of the format {LEDGER_FORMAT}")
        name = rows[0][1]
        stored = connection.execute("SELECT number, body, hash FROM entries ORDER BY number")
        bodies, hashes, entries = list[str](), [chain_start(name)], list[Entry]()
        for number, body, hash_ in stored:
            entry = read_entry(body)
            expected = entry_hash(hashes[-1], body)
            if (
                entry is None
                or not number == entry.number == len(hashes)
                or not hmac.compare_digest(expected, hash_)
            ):
                raise LedgerError(
                    f"{self.path}: the chain is broken at entry {len(hashes)}: somebody changed, "
                    "removed or exchanged an entry, or the disk is damaged. What was spent is "
                    "unknown, so nothing is released; restore it from a copy"
                )
            bodies.append(body)
            entries.append(entry)
            hashes.append(expected)
        if known is not None:
            self._check_known(known, name, hashes)
        return Snapshot(name, tuple(entries), tuple(bodies), tuple(hashes), known is not None)

    def _check_known(self, known: Head, name: str, hashes: Sequence[bytes]) -> None:
        if known.ledger != name:
            found = "another ledger than the one that was used here lies there"
        elif known.number >= len(hashes):
            found = f"it ends with entry {len(hashes) - 1}, but entry {known.number} was seen in it"
        elif not hmac.compare_digest(known.hash, hashes[known.number]):
            found = f"entry {known.number} is not the one that was seen in it"
        else:
            return
        raise LedgerError(
            f"{self.path}: {found}: an older copy was put back, or entries were removed; restore "
            f"the newest copy or, if it was you and you mean it, remove {self._head.path}"
        )

    def _gone(self, head: Head) -> LedgerError:
        return LedgerError(
            f"{self.path}: is gone, and with it {head.number} entries of what was spent; restore "
            f"it from a copy or, if you mean to forget them, remove {self._head.path}"
        )

    def _unusable(self, error: OSError | sqlite3.Error) -> LedgerError:
        reason = error.strerror if isinstance(error, OSError) else error
        return LedgerError(
            f"{self.path}: cannot be used ({reason}); what was spent could not be read or written, "
            "so nothing is released"
        )
