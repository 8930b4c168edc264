"""Rates: what was granted passes, no more does, and a flood of names finds no way round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.server.inference import rate as room
from fedveil.server.inference.callers import Caller
from fedveil.server.inference.errors import RateError, ServeError
from fedveil.server.inference.rate import Rate

SHOP, BANK = Caller("token", "shop"), Caller("token", "bank")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def passes(rate: Rate, caller: Caller) -> bool:
    try:
        rate.take_request(caller)
    except RateError:
        return False
    return True


def test_a_burst_of_a_second_passes_and_then_the_rate() -> None:
    clock = Clock()
    rate = Rate(5, clock=clock)
    assert [passes(rate, SHOP) for _ in range(7)] == [True] * 5 + [False] * 2
    assert passes(rate, BANK)
    with pytest.raises(RateError, match="token:shop may ask for 5 requests a second") as caught:
        rate.take_request(SHOP)
    assert caught.value.retry_after == pytest.approx(0.2)
    clock.now += 0.21
    assert [passes(rate, SHOP) for _ in range(2)] == [True, False]


def test_slow_rates_let_one_request_in() -> None:
    clock = Clock()
    rate = Rate(0.5, clock=clock)
    assert [passes(rate, SHOP) for _ in range(2)] == [True, False]
    clock.now += 2.01
    assert passes(rate, SHOP)


@given(
    st.floats(0.2, 50),
    st.lists(st.floats(0, 3), min_size=1, max_size=80),
)
def test_never_more_than_a_burst_and_the_rate(granted: float, waits: list[float]) -> None:
    clock = Clock()
    rate = Rate(granted, clock=clock)
    times = []
    for wait in waits:
        clock.now += wait
        if passes(rate, SHOP):
            times.append(clock.now)
    for first in range(len(times)):
        for last in range(first, len(times)):
            most = granted * (times[last] - times[first]) + max(1.0, granted)
            assert last - first + 1 <= most + 1e-6


@given(st.floats(0.2, 50), st.integers(1, 20))
def test_whoever_waits_as_long_as_told_gets_in(granted: float, tries: int) -> None:
    clock = Clock()
    rate = Rate(granted, clock=clock)
    refused = 0
    while refused < tries:
        try:
            rate.take_request(SHOP)
        except RateError as error:
            refused += 1
            clock.now += error.retry_after or 0
            rate.take_request(SHOP)


def test_rows_are_paid_off_even_by_requests_larger_than_a_second() -> None:
    clock = Clock()
    rate = Rate(None, 100, clock)
    rate.take_rows(SHOP, 350)
    with pytest.raises(RateError, match="may ask for 100 rows a second"):
        rate.take_rows(SHOP, 1)
    clock.now += 2.5
    with pytest.raises(RateError):
        rate.take_rows(SHOP, 1)
    clock.now += 0.02
    rate.take_rows(SHOP, 1)


def test_a_flood_of_names_takes_bounded_memory_and_forgives_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_MOST_CALLERS", 100)
    clock = Clock()
    rate = Rate(2, clock=clock)
    assert [passes(rate, SHOP) for _ in range(3)] == [True, True, False]
    flood = [passes(rate, Caller("address", str(n))) for n in range(1000)]
    # Those beyond the memory share one bucket.
    assert sum(flood) == 99 + 2
    assert not passes(rate, SHOP)
    assert rate._requests is not None
    assert len(rate._requests._paid) <= 101
    clock.now += 60
    assert passes(rate, SHOP)
    assert sum(passes(rate, Caller("address", f"x{n}")) for n in range(99)) == 99
    assert len(rate._requests._paid) <= 101


@pytest.mark.parametrize("granted", [0, -1, float("nan"), float("inf")])
def test_a_rate_is_above_0(granted: float) -> None:
    with pytest.raises(ServeError, match=r"--rate .* must be above 0"):
        Rate(granted)
