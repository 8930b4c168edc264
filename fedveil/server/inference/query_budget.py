"""How many rows a caller may ask for in all.

A process books rows in blocks and counts within a block in memory, so that few requests wait for
the disk; those that do at the same time wait for one write of it. A block is booked as used before
any of it is: a crash costs the caller what was left of it, and never gives anything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedveil.server.inference.budget_file import Booking, BudgetFile, Wanted
from fedveil.server.inference.callers import Caller
from fedveil.server.inference.errors import (
    BudgetError,
    RequestError,
    ServeError,
    UnavailableError,
)

__all__ = ["QueryBudget", "Receipt"]

_MOST_LEASES = 16_384
_ASK_AGAIN_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Lease:
    rows: int = 0
    resets: int = 0
    left: int = 0
    """What the file said was left beside these rows."""
    ask_at: float = 0.0
    """The file need not be asked before."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Rows that were counted for a caller, and how often its use had been reset then."""

    caller: Caller
    rows: int
    resets: int


@dataclass(slots=True)
class _Wish:
    """A request that waits for the file."""

    caller: Caller
    rows: int
    outcome: Receipt | RequestError | None = None


class QueryBudget:
    """Counts the rows of callers.

    Parameters
    ----------
    path : Path
        The file; see `BudgetFile`.
    run : str
        The run that is served; each has budgets of its own.
    granted : int
        Rows that each caller may ask for.
    clock : callable, optional
        Seconds that only go forward.

    Raises
    ------
    ServeError
        If nothing is granted, or the file cannot be used.
    """

    def __init__(
        self, path: Path, run: str, granted: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if granted < 1:
            raise ServeError(f"--query-budget {granted}: grant one row or more")
        self._granted = granted
        self._run = run
        self._clock = clock
        self._file = BudgetFile(path, run)
        self._leases: OrderedDict[Caller, _Lease] = OrderedDict()
        self._wishes: list[_Wish] = []
        self._counting = threading.Lock()
        self._booking = threading.Lock()
        self._last_line = ""

    def holds(self, caller: Caller, rows: int) -> bool:
        """Return whether `take` would not ask the file."""
        lease = self._leases.get(caller)
        return lease is not None and (lease.rows >= rows or self._is_known_short(lease, rows))

    def take(self, caller: Caller, rows: int) -> Receipt:
        """Count rows; may wait for the disk where `holds` is False.

        Of several threads that wait, one books for all.

        Raises
        ------
        BudgetError
            If fewer are left.
        UnavailableError
            If the file cannot be used now.
        """
        with self._counting:
            receipt = self._held(caller, rows)
            if receipt is not None:
                return receipt
            wish = _Wish(caller, rows)
            self._wishes.append(wish)
        with self._booking:
            while wish.outcome is None:
                self._book_for_all()
        if isinstance(wish.outcome, RequestError):
            raise wish.outcome
        return wish.outcome

    def give_back(self, receipt: Receipt) -> None:
        """Count rows as not used after all: they were not answered."""
        with self._counting:
            lease = self._leases.get(receipt.caller)
            if lease is not None and lease.resets == receipt.resets:
                lease.rows += receipt.rows

    def close(self) -> None:
        """Put back what was booked and not used."""
        with self._booking:
            with self._counting:
                leases, self._leases = self._leases, OrderedDict()
            self._put_back(leases)
            self._file.close()

    def _held(self, caller: Caller, rows: int) -> Receipt | None:
        """Count rows of a block that is there; None if the file must be asked."""
        lease = self._leases.get(caller)
        if lease is None:
            return None
        self._leases.move_to_end(caller)
        if lease.rows >= rows:
            lease.rows -= rows
            return Receipt(caller, rows, lease.resets)
        if self._is_known_short(lease, rows):
            raise self._used_up(caller, lease.rows + lease.left, rows)
        return None

    def _is_known_short(self, lease: _Lease, rows: int) -> bool:
        return rows > lease.rows + lease.left and self._clock() < lease.ask_at

    def _book_for_all(self) -> None:
        """Fulfil what waits, but of each caller one wish that needs the file; the others later."""
        wishes: dict[Caller, _Wish] = {}
        with self._counting:
            waiting, self._wishes = self._wishes, []
            for wish in waiting:
                if wish.caller in wishes:
                    self._wishes.append(wish)
                    continue
                try:
                    wish.outcome = self._held(wish.caller, wish.rows)
                except BudgetError as error:
                    wish.outcome = error
                if wish.outcome is None:
                    wishes[wish.caller] = wish
            wanted = [self._wanted(wish) for wish in wishes.values()]
        if wanted:
            self._book(list(wishes.values()), wanted)

    def _wanted(self, wish: _Wish) -> Wanted:
        lease = self._leases.setdefault(wish.caller, _Lease())
        # Nobody else counts in the block while it is being renewed.
        held, lease.rows = lease.rows, 0
        return Wanted(str(wish.caller), wish.rows, held, lease.resets)

    def _book(self, wishes: list[_Wish], wanted: list[Wanted]) -> None:
        try:
            booked = self._file.book(self._granted, wanted)
        except BaseException as error:
            with self._counting:
                for wish, one in zip(wishes, wanted, strict=True):
                    lease = self._leases[wish.caller]
                    lease.rows += one.held
                    if lease == _Lease():
                        # Strangers shall not fill the memory while nothing can be booked.
                        del self._leases[wish.caller]
                    wish.outcome = UnavailableError("budgets of callers cannot be counted now")
            if not isinstance(error, ServeError):
                raise
            self._tell(str(error))
            return
        self._tell("")
        oldest = OrderedDict[Caller, _Lease]()
        with self._counting:
            for wish, one, booking in zip(wishes, wanted, booked, strict=True):
                wish.outcome = self._enter(wish, one.held, booking)
            while len(self._leases) > _MOST_LEASES:
                caller, lease = self._leases.popitem(last=False)
                oldest[caller] = lease
        self._put_back(oldest)

    def _enter(self, wish: _Wish, held: int, booking: Booking) -> Receipt | BudgetError:
        """Count in memory what the file says; `held` was left of the block before."""
        lease = self._leases[wish.caller]
        if booking.resets != lease.resets:
            held = lease.rows = 0
        lease.resets, lease.left = booking.resets, booking.left
        if held + booking.rows < wish.rows:
            lease.rows += held
            lease.ask_at = self._clock() + _ASK_AGAIN_SECONDS
            return self._used_up(wish.caller, held + booking.left, wish.rows)
        lease.rows += held + booking.rows - wish.rows
        lease.ask_at = 0.0
        return Receipt(wish.caller, wish.rows, booking.resets)

    def _put_back(self, leases: OrderedDict[Caller, _Lease]) -> None:
        unused = [(str(who), lease.rows, lease.resets) for who, lease in leases.items()]
        if any(rows for _, rows, _ in unused):
            try:
                self._file.put_back(unused)
            except ServeError as error:
                self._tell(str(error))

    def _used_up(self, caller: Caller, left: int, rows: int) -> BudgetError:
        return BudgetError(
            f"{caller} was granted {self._granted} rows of run {self._run}, and {left} are left; "
            f"{rows} were asked for"
        )

    def _tell(self, line: str) -> None:
        """Log what is wrong once, and that it is well again; empty for well."""
        if line != self._last_line:
            _log.log(logging.ERROR if line else logging.INFO, line or "budgets are counted again")
            self._last_line = line
