"""Requests that are submitted together, and computed by the thread that submits them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from fedveil.server.inference import batcher as batcher_module
from fedveil.server.inference.batcher import Batcher, Result
from fedveil.server.inference.errors import OverloadedError, RequestError
from fedveil.server.inference.oip import Array, Limits


class Model:
    """Doubles rows; notes which thread ran which batch."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []
        self.seconds = 0.0
        self.go = threading.Event()
        self.go.set()

    def run(self, target: str | None, rows: Array, worker: int) -> Result:
        assert worker == 0
        assert self.go.wait(20)
        time.sleep(self.seconds)
        self.runs.append((threading.current_thread().name, len(rows)))
        if (rows == 13).any():
            raise ValueError("unlucky")
        return target or "1", rows * np.float32(2)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Batcher[str]]:
    # However busy this machine is, a model whose time is known is a quick one.
    monkeypatch.setattr(batcher_module, "_QUICK_NS", 1e12)
    made: Batcher[str] = Batcher(model.run, Limits(batch_rows=8, queue_rows=100))
    yield made
    model.go.set()
    made.close()


def submit(batcher: Batcher[str], given: Array) -> Future[Result]:
    answer: Future[Result] = Future()

    def done(result: Result | RequestError) -> None:
        if isinstance(result, RequestError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    batcher.ask(given, time.monotonic() + 20, done)
    return answer


def rows(count: int, value: float = 1) -> Array:
    return np.full((count, 2), value, np.float32)


def warm(batcher: Batcher[str], model: Model) -> None:
    """Let it find out how long the model takes."""
    submit(batcher, rows(8)).result(20)
    model.runs.clear()


REMEMBERED = batcher_module._REMEMBERED
HERE = threading.current_thread().name


def test_a_quick_model_is_run_by_who_submits(batcher: Batcher[str], model: Model) -> None:
    warm(batcher, model)
    with batcher.together():
        futures = [submit(batcher, rows(2, value)) for value in range(3)]
        assert not any(future.done() for future in futures)
    assert all(future.done() for future in futures)
    assert model.runs == [(HERE, 6)]
    for value, future in enumerate(futures):
        assert np.array_equal(future.result()[1], rows(2, 2 * value))


def test_a_batch_has_its_size_and_its_target_here_too(batcher: Batcher[str], model: Model) -> None:
    warm(batcher, model)
    told: list[tuple[str, int]] = []

    def done(result: Result | RequestError) -> None:
        assert not isinstance(result, RequestError)
        told.append((result[0], len(result[1])))

    with batcher.together():
        for count, target in ((5, None), (3, None), (1, None), (2, "9"), (4, "9")):
            batcher.ask(rows(count), time.monotonic() + 20, done, target)
    assert model.runs == [(HERE, 8), (HERE, 1), (HERE, 6)]
    assert told == [("1", 5), ("1", 3), ("1", 1), ("9", 2), ("9", 4)]


def test_what_is_slow_is_left_to_the_worker(
    batcher: Batcher[str], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody knows yet how long it takes.
    with batcher.together():
        first = submit(batcher, rows(1))
    first.result(20)
    monkeypatch.setattr(batcher_module, "_QUICK_NS", 25e6)
    model.seconds = 0.05
    for _ in range(REMEMBERED):
        submit(batcher, rows(1)).result(20)
    with batcher.together():
        second = submit(batcher, rows(1))
    second.result(20)
    assert HERE not in {name for name, _ in model.runs}
    monkeypatch.setattr(batcher_module, "_QUICK_NS", 1e12)
    submit(batcher, rows(1)).result(20)
    model.runs.clear()
    with batcher.together():
        third = submit(batcher, rows(1))
    assert third.done()
    assert model.runs == [(HERE, 1)]


def test_one_batch_that_was_held_up_does_not_make_a_model_slow(
    batcher: Batcher[str], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm(batcher, model)
    model.seconds = 0.05
    submit(batcher, rows(1)).result(20)
    model.seconds = 0.0
    quickest = min(batcher._row_ns)
    monkeypatch.setattr(batcher_module, "_QUICK_NS", 2 * quickest)
    model.runs.clear()
    with batcher.together():
        answer = submit(batcher, rows(1))
    assert answer.done()
    assert model.runs == [(HERE, 1)]


def test_while_the_worker_is_busy_it_gets_the_rest_too(batcher: Batcher[str], model: Model) -> None:
    warm(batcher, model)
    model.go.clear()
    running = submit(batcher, rows(1))
    deadline = time.monotonic() + 20
    while batcher.queued_rows and time.monotonic() < deadline:
        time.sleep(0.001)
    with batcher.together():
        waiting = submit(batcher, rows(2))
    assert not waiting.done()
    model.go.set()
    assert len(running.result(20)[1]) == 1
    assert len(waiting.result(20)[1]) == 2
    assert HERE not in {name for name, _ in model.runs}


def test_others_are_answered_while_one_gathers(batcher: Batcher[str], model: Model) -> None:
    warm(batcher, model)
    with batcher.together():
        mine = submit(batcher, rows(1))
        found: list[Result] = []
        other = threading.Thread(target=lambda: found.append(submit(batcher, rows(1)).result(20)))
        other.start()
        other.join(20)
        assert len(found) == 1
    assert mine.done()


def test_one_bad_request_and_a_failing_block_spoil_nothing(
    batcher: Batcher[str], model: Model
) -> None:
    warm(batcher, model)
    with batcher.together():
        good, bad = submit(batcher, rows(1)), submit(batcher, rows(1, 13))
    assert np.array_equal(good.result(20)[1], rows(1, 2))
    with pytest.raises(RequestError, match="failed on this input"):
        bad.result(20)
    waiting = []

    def fill() -> None:
        with batcher.together():
            waiting.append(submit(batcher, rows(60)))
            submit(batcher, rows(60))

    with pytest.raises(OverloadedError):
        fill()
    assert len(waiting[0].result(20)[1]) == 60
