"""Work on several threads whose outcome is that of one thread: in order, first failure first.

Threads help here because `cryptography`, `hashlib` and the calls of the operating system let other
threads run while they work on a segment.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

__all__ = ["check_threads", "for_each", "in_order", "usable_threads"]

_MOST_THREADS = 4

Part = TypeVar("Part")
Slot = TypeVar("Slot")
Result = TypeVar("Result")


def usable_threads() -> int:
    """Return how many threads are worth starting: one a usable processor, four at most."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))


def check_threads(threads: int) -> None:
    """Refuse a number of threads that is not positive.

    Raises
    ------
    ValueError
        If it is less than one.
    """
    if threads < 1:
        raise ValueError(f"{threads} threads cannot do any work; give at least 1")


def for_each(count: int, threads: int, make: Callable[[], Callable[[int], None]]) -> None:
    """Call a function for every number from 0 on; return when no call is at work any more.

    Parameters
    ----------
    count : int
        How many numbers.
    threads : int
        How many threads at most; with one, the caller's own thread does everything.
    make : callable
        Makes the function, once for each thread, which can so have buffers of its own.

    Raises
    ------
    ValueError
        If there is no thread.
    Exception
        What a call raised; of several, that of the least number. Numbers that no thread had taken
        by then are left out.
    """
    check_threads(threads)
    if threads == 1 or count <= 1:
        work = make()
        for number in range(count):
            work(number)
        return
    numbers = _Numbers(count)
    works = [make() for _ in range(min(threads, count))]
    with ThreadPoolExecutor(len(works)) as pool:
        try:
            wait([pool.submit(numbers.run, work) for work in works])
        except BaseException:
            numbers.stop()
            raise
    numbers.raise_first()


class _Numbers:
    """Hands out numbers in order until one fails.

    Whoever fails had taken its number after all smaller ones were taken, and these are worked on
    to their end: so the failure of the least number is always known.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._next = 0
        self._lock = threading.Lock()
        self._failures: list[tuple[int, BaseException]] = []

    def run(self, work: Callable[[int], None]) -> None:
        while (number := self._take()) is not None:
            try:
                work(number)
            except BaseException as error:
                self.stop()
                self._failures.append((number, error))
                raise

    def stop(self) -> None:
        with self._lock:
            self._next = self._count

    def raise_first(self) -> None:
        if self._failures:
            raise min(self._failures, key=lambda failure: failure[0])[1]

    def _take(self) -> int | None:
        with self._lock:
            if self._next == self._count:
                return None
            self._next += 1
            return self._next - 1


def in_order(
    parts: Iterable[Part],
    slots: Sequence[Slot],
    work: Callable[[Slot, Part], Result],
    take: Callable[[Result], object],
) -> None:
    """Work on parts as they come and take the results in their order.

    The caller's thread asks for the parts and takes the results. At most as many parts as there
    are slots are between the two.

    Parameters
    ----------
    parts : iterable
        What to work on.
    slots : sequence
        Memory for one part and its result each, used again once the result is taken. With one
        slot, the caller's own thread does everything; otherwise there is a thread for each but
        one, whose result is being taken.
    work : callable
        Turns a part into its result; on any thread.
    take : callable
        Gets every result.

    Raises
    ------
    Exception
        The first of what `parts`, `work` and `take` raise. No work goes on then.
    """
    if len(slots) == 1:
        for part in parts:
            take(work(slots[0], part))
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(len(slots) - 1) as pool:
        for number, part in enumerate(parts):
            if len(waiting) == len(slots):
                take(waiting.popleft().result())
            waiting.append(pool.submit(work, slots[number % len(slots)], part))
        while waiting:
            take(waiting.popleft().result())
