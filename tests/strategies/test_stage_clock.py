"""Stages are added up, the outer one of two, and begun anew."""

from __future__ import annotations

import pytest

from fedveil.strategies import stage_clock
from fedveil.strategies.stage_clock import Stage, StageClock


class Time:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(stage_clock, "time", made)
    return made


def test_seconds_are_added_up_and_taken_once(time: Time) -> None:
    clock = StageClock()
    for seconds in (1.0, 2.0):
        with clock.stage(Stage.INPUT):
            time.now += seconds
        time.now += 10.0
    with clock.stage(Stage.COMMIT):
        time.now += 0.5
    assert clock.take() == {Stage.INPUT: 3.0, Stage.COMMIT: 0.5}
    assert clock.take() == {}


def test_a_stage_within_another_is_the_outer_one(time: Time) -> None:
    clock = StageClock()
    with clock.stage(Stage.EVALUATE):
        time.now += 1.0
        with clock.stage(Stage.INPUT):
            time.now += 2.0
    with clock.stage(Stage.INPUT):
        time.now += 4.0
    assert clock.take() == {Stage.EVALUATE: 3.0, Stage.INPUT: 4.0}


def test_a_stage_that_fails_is_counted(time: Time) -> None:
    clock = StageClock()

    def fail() -> None:
        with clock.stage(Stage.UNMASK):
            time.now += 1.0
            raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        fail()
    with clock.stage(Stage.INPUT):
        time.now += 1.0
    assert clock.take() == {Stage.UNMASK: 1.0, Stage.INPUT: 1.0}
