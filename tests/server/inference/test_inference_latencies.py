"""The history of latencies against figures computed from all of them."""

from __future__ import annotations

import math
import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedveil.server.inference.latencies import LatencyHistory


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


def test_who_asks_often_has_it_summed_up_once_a_step() -> None:
    clock = Clock()
    history = LatencyHistory(clock)
    found = history.read()
    history.add(0.1, answered=True)
    assert history.read() is found
    clock.now += 5
    assert history.read().answered[-1] == 1


@given(st.lists(st.floats(1e-6, 60.0), min_size=1, max_size=200))
def test_quantiles_are_at_most_nine_percent_above(seconds: list[float]) -> None:
    clock = Clock()
    history = LatencyHistory(clock)
    for one in seconds:
        history.add(one, answered=True)
    clock.now += 5
    found = history.read()
    ordered = sorted(seconds)
    for share, told in ((0.5, found.p50[-1]), (0.99, found.p99[-1])):
        true = ordered[math.ceil(len(ordered) * share) - 1]
        assert told is not None
        # Below 10 microseconds nothing is told apart.
        assert max(true, 10e-6) * (1 - 1e-9) <= told <= max(true, 10e-6) * 1.0906
    assert found.answered[-1] == len(seconds)


def test_ten_minutes_are_kept_and_no_more() -> None:
    clock = Clock()
    history = LatencyHistory(clock)
    for step in range(500):
        for _ in range(step % 7):
            history.add(0.001, answered=True)
        history.add(9.0, answered=False)
        clock.now += 5
    found = history.read()
    assert found.answered == tuple(step % 7 for step in range(380, 500))
    assert found.refused == (1,) * 120
    assert [p is None for p in found.p50] == [count == 0 for count in found.answered]
    clock.now += 3600
    assert set(history.read().answered) == {0}


def test_what_is_of_this_step_waits_for_its_end() -> None:
    clock = Clock()
    history = LatencyHistory(clock)
    history.add(0.5, answered=True)
    assert sum(history.read().answered) == 0
    clock.now += 5
    assert sum(history.read().answered) == 1


def test_threads_lose_no_count() -> None:
    clock = Clock()
    history = LatencyHistory(clock)
    waiting = threading.Barrier(4)

    def add(seed: int) -> None:
        waiting.wait(10)
        for one in np.random.default_rng(seed).uniform(1e-4, 1, 5000):
            history.add(one, answered=True)

    threads = [threading.Thread(target=add, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    clock.now += 5
    assert history.read().answered[-1] == 20_000
