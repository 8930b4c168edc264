"""kill -9 at every point, several processes at once, a full disk: never an under-count."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ledgers import DELTA, in_child, kill_at, ledger_at, train_charge

from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.ledger_entries import Budget, LedgerError, OverspendError

WIDE = Budget(100.0, DELTA)
RELEASED = b"."

Tell = Callable[[bytes], int]


def charge_and_release(folder: Path, budget: Budget | None, tell: Tell) -> None:
    ledger_at(folder).charge(train_charge(), budget)
    tell(RELEASED)


@pytest.fixture(autouse=True)
def _epsilon_is_known() -> None:
    """Compute in this process what its children then have at hand."""
    for count in range(1, 13):
        WIDE.check([train_charge()] * (count - 1), train_charge())


@pytest.mark.parametrize("entries", [0, 2], ids=["the first charge", "a later charge"])
def test_a_charge_killed_at_any_point_counts_or_nothing_was_released(
    tmp_path: Path, entries: int
) -> None:
    outcomes = set()
    for point in range(1, 200):
        folder = tmp_path / str(point)
        for _ in range(entries):
            ledger_at(folder).charge(train_charge(), WIDE)

        def work(tell: Tell, folder: Path = folder, point: int = point) -> None:
            kill_at(point)
            charge_and_release(folder, WIDE, tell)

        status, released = in_child(work)
        found = ledger_at(folder).read()
        written = len(found.entries) - entries
        assert written in (0, 1)
        assert len(released) <= written, f"released and not counted, killed at point {point}"
        # Whatever the crash left does not stop the next charge.
        assert ledger_at(folder).charge(train_charge(), WIDE).number == entries + written + 1
        outcomes.add((written, len(released)))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    # Some were killed before the commit, some between it and the release, the last not at all.
    assert outcomes == {(0, 0), (1, 0), (1, 1)}
    assert point > 10


def test_killed_by_the_clock_it_counts_all_that_was_released(tmp_path: Path) -> None:
    """Also within what SQLite and the system do, which no hook sees."""
    counted = 0
    for pause in (0.02, 0.05, 0.09):
        reader, writer = os.pipe()
        tell = partial(os.write, writer)
        child = os.fork()
        if child == 0:
            try:
                while True:
                    charge_and_release(tmp_path, None, tell)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read(1) == RELEASED
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
            released = 1 + len(pipe.read())
        os.waitpid(child, 0)
        written = len(ledger_at(tmp_path).read().entries) - counted
        assert written in (released, released + 1)
        counted += written


def test_processes_that_charge_at_once_do_not_overspend_together(tmp_path: Path) -> None:
    bears = 7
    budget = Budget(pld_epsilon([Release(0.25, 2.0, 4 * bears)], DELTA), DELTA)
    reader, writer = os.pipe()
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                while True:
                    charge_and_release(tmp_path, budget, partial(os.write, writer))
            except OverspendError:
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        released = pipe.read()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert len(released) == bears
    assert len(ledger_at(tmp_path).read().entries) == bears


@pytest.mark.parametrize("kilobytes", [2, 13, 18, 26, 40])
def test_on_a_full_disk_nothing_is_released_that_is_not_counted(
    tmp_path: Path, kilobytes: int
) -> None:
    def work(tell: Tell) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))
        try:
            for _ in range(200):
                charge_and_release(tmp_path, None, tell)
        except LedgerError as error:
            tell(f"\n{error}".encode())

    status, told = in_child(work)
    assert status == 0
    released, _, error = told.decode().partition("\n")
    assert "cannot" in error, "the disk was not full"
    assert len(error.splitlines()) == 1
    written = len(ledger_at(tmp_path).read().entries)
    assert len(released) <= written <= len(released) + 1
    # There is room again.
    assert ledger_at(tmp_path).charge(train_charge(), WIDE).number == written + 1


def test_after_a_crash_the_log_of_sqlite_cannot_be_removed_unseen(tmp_path: Path) -> None:
    """Until the next use the last commits lie in the log alone."""

    def work(tell: Tell) -> None:
        charge_and_release(tmp_path, WIDE, tell)
        # A second connection, or closing the first would move the log into the file.
        from fedveil.privacy import ledger, ledger_file

        with ledger_file.open_database(ledger_at(tmp_path).path, ledger._SCHEMA) as connection:
            connection.execute("SELECT count(*) FROM entries").fetchone()
            charge_and_release(tmp_path, WIDE, tell)
            os.kill(os.getpid(), signal.SIGKILL)

    _, released = in_child(work)
    assert len(released) == 2
    log = tmp_path / "ledger.db-wal"
    assert log.stat().st_size > 0
    log.unlink()
    with pytest.raises(LedgerError, match="entry 2 was seen"):
        ledger_at(tmp_path).charge(train_charge(), WIDE)
