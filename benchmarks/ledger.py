"""Who spent the CPU time, where parties call each other in one process."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Ledger"]


class Ledger:
    """CPU seconds of this process, threads included, on the account of one party at a time."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._holder = "nobody"
        self._since = time.process_time()

    @contextmanager
    def charge(self, who: str) -> Iterator[None]:
        """Charge `who` for what runs inside; charges within this one are not its own."""
        before = self._switch(who)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, who: str) -> str:
        now = time.process_time()
        before, self._holder = self._holder, who
        self.spent[before] += now - self._since
        self._since = now
        return before
