import os
import threading
from collections.abc import Callable, Iterator

import pytest

from fedveil.vault.parallel import for_each, in_order, usable_threads

THREADS = [1, 2, 4]


def test_usable_threads_follow_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, threads in ((1, 1), (2, 2), (64, 4)):
        allowed = set(range(processors))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: allowed)
        assert usable_threads() == threads


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_every_number_is_worked_on_once(count: int, threads: int) -> None:
    seen: list[int] = []
    for_each(count, threads, lambda: seen.append)
    assert sorted(seen) == list(range(count))


def test_every_thread_makes_its_own() -> None:
    both = threading.Barrier(2, timeout=60)
    made: list[Callable[[int], None]] = []

    def make() -> Callable[[int], None]:
        def work(number: int) -> None:
            both.wait()

        made.append(work)
        return work

    for_each(10, 2, make)
    assert len(made) == 2


def test_one_thread_is_the_callers_own() -> None:
    seen: list[threading.Thread] = []

    def work(*_: object) -> None:
        seen.append(threading.current_thread())

    for_each(3, 1, lambda: work)
    in_order([1, 2], ["slot"], work, id)
    assert seen == [threading.current_thread()] * 5


def test_of_several_failures_the_least_number_is_raised() -> None:
    """Number 1 fails first, number 0 only afterwards."""
    failed = threading.Event()

    def work(number: int) -> None:
        if number == 1:
            failed.set()
        else:
            assert failed.wait(60)
        raise ValueError(f"number {number}")

    for _ in range(20):
        failed.clear()
        with pytest.raises(ValueError, match="number 0"):
            for_each(2, 2, lambda: work)


@pytest.mark.parametrize("threads", THREADS)
def test_after_a_failure_the_rest_is_left_out(threads: int) -> None:
    seen: list[int] = []

    def work(number: int) -> None:
        seen.append(number)
        if number == 3:
            raise ValueError("number 3")

    with pytest.raises(ValueError, match="number 3"):
        for_each(1_000_000, threads, lambda: work)
    assert len(seen) < 100_000


def test_a_signal_to_the_caller_stops_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    begun = threading.Event()

    def work(number: int) -> None:
        seen.append(number)
        begun.set()

    def interrupted(futures: object) -> None:
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr("fedveil.vault.parallel.wait", interrupted)
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        for_each(1_000_000, 2, lambda: work)
    assert len(seen) < 1_000_000
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_order(count: int, slots: int) -> None:
    taken: list[int] = []

    def square(slot: int, part: int) -> int:
        return part * part

    in_order(range(count), list(range(slots)), square, taken.append)
    assert taken == [number**2 for number in range(count)]


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_a_slot_is_used_again_only_when_its_result_is_taken(slots: int) -> None:
    busy: list[bool] = [False] * slots

    def work(slot: int, part: int) -> int:
        assert not busy[slot]
        busy[slot] = True
        return slot

    def take(slot: int) -> None:
        assert busy[slot]
        busy[slot] = False

    in_order(range(200), list(range(slots)), work, take)
    assert not any(busy)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("where", ["parts", "work", "take"])
def test_a_failure_in_order_ends_the_work(where: str, slots: int) -> None:
    before = set(threading.enumerate())
    taken: list[int] = []

    def parts() -> Iterator[int]:
        yield from range(20)
        raise ValueError("parts")

    def work(slot: int, part: int) -> int:
        if where == "work" and part >= 10:
            raise ValueError(f"work {part}")
        return part

    def take(part: int) -> None:
        if where == "take" and part == 10:
            raise ValueError("take")
        taken.append(part)

    with pytest.raises(ValueError, match="work 10" if where == "work" else where):
        in_order(parts(), list(range(slots)), work, take)
    assert taken == list(range(len(taken)))
    assert len(taken) == 10 or where == "parts"
    assert set(threading.enumerate()) <= before
