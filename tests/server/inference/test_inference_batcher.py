"""The batcher runs when idle, takes what waits, and bounds what may wait."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import Future

import numpy as np
import pytest

from fedveil.server.inference.batcher import Batcher, Result
from fedveil.server.inference.errors import (
    DeadlineError,
    OutputError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from fedveil.server.inference.oip import Array, Limits

Answer = Future[tuple[str, Array]]


class Model:
    """Doubles its input, when it is let; notes every batch."""

    def __init__(self) -> None:
        self.may_run = threading.Event()
        self.began = threading.Event()
        self.batches: list[tuple[str | None, int]] = []

    def __call__(self, target: str | None, rows: Array, worker: int) -> tuple[str, Array]:
        self.began.set()
        assert self.may_run.wait(30)
        if (rows == 13).any():
            raise RuntimeError("13")
        self.batches.append((target, len(rows)))
        return target or "current", rows * np.float32(2)


def rows(count: int, value: float = 1.0) -> Array:
    return np.full((count, 3), value, np.float32)


def submit(
    batcher: Batcher[str], given: Array, seconds: float = 60, target: str | None = None
) -> Answer:
    answer: Answer = Future()

    def done(result: Result | RequestError) -> None:
        if isinstance(result, RequestError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    batcher.ask(given, time.monotonic() + seconds, done, target)
    return answer


def blocked(limits: Limits) -> tuple[Model, Batcher[str], Answer]:
    """Return a batcher that is busy with one row, so that what follows waits."""
    model = Model()
    batcher: Batcher[str] = Batcher(model, limits)
    first = submit(batcher, rows(1))
    assert model.began.wait(30)
    return model, batcher, first


def test_all_that_waits_is_one_batch_and_each_gets_its_own_rows() -> None:
    model, batcher, first = blocked(Limits())
    waiting = [submit(batcher, rows(count, count)) for count in (1, 2, 3)]
    assert batcher.queued_rows == 6
    model.may_run.set()
    for count, future in zip((1, 2, 3), waiting, strict=True):
        assert np.array_equal(future.result(30)[1], rows(count, 2 * count))
    assert first.result(30)[0] == "current"
    batcher.close()
    assert model.batches == [(None, 1), (None, 6)]


def test_a_batch_is_bounded_and_of_one_target() -> None:
    model, batcher, _ = blocked(Limits(batch_rows=4))
    for count, target in ((3, None), (2, None), (2, "7"), (1, "7"), (9, None)):
        submit(batcher, rows(count), target=target)
    model.may_run.set()
    batcher.close()
    assert model.batches == [(None, 1), (None, 3), (None, 2), ("7", 3), (None, 9)]


@pytest.mark.parametrize(
    "limits", [Limits(queue_rows=4), Limits(queue_bytes=4 * 12)], ids=["rows", "bytes"]
)
def test_a_full_queue_refuses_and_what_waits_is_answered(limits: Limits) -> None:
    model, batcher, _ = blocked(limits)
    waiting = submit(batcher, rows(4))
    with pytest.raises(OverloadedError, match="the queue is full with 4 rows of 48 bytes"):
        submit(batcher, rows(1))
    model.may_run.set()
    assert len(waiting.result(30)[1]) == 4
    assert len(submit(batcher, rows(9)).result(30)[1]) == 9
    batcher.close()


def test_what_is_late_is_not_computed() -> None:
    model, batcher, _ = blocked(Limits())
    late = submit(batcher, rows(2), -1.0)
    alive = submit(batcher, rows(5))
    model.may_run.set()
    with pytest.raises(DeadlineError):
        late.result(30)
    assert len(alive.result(30)[1]) == 5
    batcher.close()
    assert model.batches == [(None, 1), (None, 5)]


def test_an_input_that_breaks_the_model_breaks_no_other_request() -> None:
    model, batcher, _ = blocked(Limits())
    good, bad, other = (submit(batcher, rows(1, value)) for value in (1, 13, 2))
    model.may_run.set()
    assert good.result(30)[1][0, 0] == 2
    assert other.result(30)[1][0, 0] == 4
    with pytest.raises(OutputError, match="the model failed on this input"):
        bad.result(30)
    batcher.close()


def test_workers_compute_at_the_same_time_and_each_knows_its_number() -> None:
    together = threading.Barrier(3)
    seen: set[int] = set()

    def run(target: str | None, given: Array, worker: int) -> tuple[str, Array]:
        # Passed only when three batches are being computed at once.
        together.wait(30)
        seen.add(worker)
        return "current", given * np.float32(2)

    batcher: Batcher[str] = Batcher(run, Limits(batch_rows=1), workers=3)
    futures = [submit(batcher, rows(1, value)) for value in range(9)]
    for value, future in enumerate(futures):
        assert np.array_equal(future.result(30)[1], rows(1, 2 * value))
    batcher.close()
    assert seen == {0, 1, 2}


def test_a_worker_that_waits_holds_nothing_of_what_it_answered() -> None:
    batcher: Batcher[str] = Batcher(lambda _, given, __: ("current", given + 1), Limits())
    given = rows(3)
    gone = weakref.ref(given)
    future = submit(batcher, given)
    future.result(30)
    del given, future
    patience = time.monotonic() + 30
    while gone() is not None and time.monotonic() < patience:
        time.sleep(0.002)
    assert gone() is None
    batcher.close()


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    model, batcher, _ = blocked(Limits())
    waiting = submit(batcher, rows(1))
    model.may_run.set()
    batcher.close()
    assert waiting.done()
    with pytest.raises(UnavailableError):
        submit(batcher, rows(1))
