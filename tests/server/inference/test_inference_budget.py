"""Budgets of rows: never more than was granted, whatever restarts, crashes and works beside."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.server.inference import budget_database
from fedveil.server.inference import query_budget as room
from fedveil.server.inference.budget_file import (
    Booking,
    BudgetFile,
    Wanted,
    read_use,
    reset_use,
)
from fedveil.server.inference.callers import Caller
from fedveil.server.inference.errors import BudgetError, ServeError, UnavailableError
from fedveil.server.inference.query_budget import QueryBudget

SHOP, BANK = Caller("token", "shop"), Caller("token", "bank")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budgets.sqlite3"


def used(path: Path, caller: Caller = SHOP) -> int:
    return sum(use.rows for use in read_use(path) if use.caller == str(caller))


def takes(budget: QueryBudget, rows: int = 1, caller: Caller = SHOP) -> bool:
    try:
        budget.take(caller, rows)
    except BudgetError:
        return False
    return True


def test_what_was_granted_and_not_a_row_more(path: Path) -> None:
    budget = QueryBudget(path, "run", 1000)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sum(takes(budget, 7) for _ in range(200)) == 142
    line = "token:shop was granted 1000 rows of run run, and 6 are left; 7 were asked for"
    with pytest.raises(BudgetError, match=line):
        budget.take(SHOP, 7)
    assert takes(budget, 6)
    assert not takes(budget)
    assert takes(budget, 1000, BANK)
    budget.close()
    assert (used(path), used(path, BANK)) == (1000, 1000)
    for beside in (f"{path}-wal", f"{path}-shm"):
        assert not Path(beside).exists()


def test_the_disk_is_asked_seldom_and_not_at_all_for_those_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    book = room.BudgetFile.book

    def counted(*arguments: object) -> object:
        nonlocal asked
        asked += 1
        return book(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(room.BudgetFile, "book", counted)
    budget = QueryBudget(path, "run", 30_000, clock=lambda: 0.0)
    assert not budget.holds(SHOP, 1)
    for _ in range(30_000):
        assert takes(budget)
    assert asked < 200
    before = asked
    assert not takes(budget)
    assert asked == before + 1
    assert budget.holds(SHOP, 1)
    assert not any(takes(budget) for _ in range(100))
    assert asked == before + 1
    budget.close()


def test_it_is_remembered_across_restarts_and_runs_have_their_own(path: Path) -> None:
    for _ in range(4):
        budget = QueryBudget(path, "run", 100)
        assert takes(budget, 25)
        budget.close()
    assert not takes(QueryBudget(path, "run", 100))
    assert takes(QueryBudget(path, "other", 100), 100)
    raised = QueryBudget(path, "run", 150)
    assert takes(raised, 50)
    assert not takes(raised)
    assert not takes(QueryBudget(path, "run", 10))


@settings(max_examples=20)
@given(
    st.integers(1, 3000),
    st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "take", "refund", "crash", "restart", "reset"]),
            st.integers(0, 1),
            st.integers(1, 400),
        ),
        max_size=30,
    ),
)
def test_nothing_gives_more_than_was_granted(
    granted: int, steps: list[tuple[str, int, int]]
) -> None:
    """Two processes share a file; some crash, some end well, and use is reset at times."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b"
        budgets = [QueryBudget(path, "run", granted) for _ in range(2)]
        answered = held_at_reset = 0
        receipts: list[list[tuple[object, int, int]]] = [[], []]
        resets = crashed = 0
        for what, who, rows in steps:
            budget = budgets[who]
            if what == "take":
                lease = budget._leases.get(SHOP)
                try:
                    receipt = budget.take(SHOP, rows)
                except BudgetError:
                    continue
                receipts[who].append((receipt, rows, resets))
                if receipt.resets == resets:
                    answered += rows
                else:
                    # Of a block that was booked before the reset, and counts as used before it.
                    assert lease is not None
                    held_at_reset -= rows
                    assert held_at_reset >= 0
            elif what == "refund" and receipts[who]:
                receipt, rows, _ = receipts[who].pop()
                budget.give_back(receipt)  # type: ignore[arg-type]
                if receipt.resets == resets:  # type: ignore[attr-defined]
                    answered -= rows
                else:
                    held_at_reset += rows
            elif what == "crash":
                budget._file.close()
                budgets[who], receipts[who] = QueryBudget(path, "run", granted), []
                crashed += 1
            elif what == "restart":
                budget.close()
                budgets[who], receipts[who] = QueryBudget(path, "run", granted), []
            elif what == "reset" and read_use(path):
                reset_use(path, str(SHOP), None)
                resets += 1
                answered = 0
                held_at_reset = sum(
                    lease.rows for each in budgets for lease in each._leases.values()
                )
            assert answered <= granted
        for budget in budgets:
            budget.close()
        assert used(path) >= answered
        if not crashed:
            assert used(path) == answered
            last = QueryBudget(path, "run", granted)
            assert answered == granted or takes(last, granted - answered)
            last.close()


def test_processes_share_it_to_the_last_row(path: Path) -> None:
    budgets = [QueryBudget(path, "run", 8_000) for _ in range(4)]

    def spend(budget: QueryBudget) -> int:
        return sum(takes(budget) for _ in range(8_000))

    with ThreadPoolExecutor(8) as pool:
        spent = sum(pool.map(spend, budgets * 2))
    # What lies idle in the others when one is refused is little.
    assert 7_900 <= spent <= 8_000
    for budget in budgets:
        budget.close()
    assert used(path) == spent


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_who_waits_for_the_disk_at_the_same_time_waits_for_one_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, books, is_let = QueryBudget(path, "run", 1000), BudgetFile.book, threading.Event()
    callers: list[list[str]] = []

    def book(file: BudgetFile, granted: int, wanted: Sequence[Wanted]) -> list[Booking]:
        callers.append([one.caller for one in wanted])
        assert is_let.wait(30)
        return books(file, granted, wanted)

    monkeypatch.setattr(BudgetFile, "book", book)
    with ThreadPoolExecutor(33) as pool:
        first = pool.submit(takes, budget, 1, SHOP)
        _wait_until(lambda: len(callers) == 1)
        # One asks for more than is granted; one comes twice, and has room for one of the two.
        others = [pool.submit(takes, budget, 1, Caller("token", str(n))) for n in range(29)]
        greedy = pool.submit(takes, budget, 1001, Caller("token", "greedy"))
        twice = [pool.submit(takes, budget, 600, BANK) for _ in range(2)]
        _wait_until(lambda: len(budget._wishes) == 32)
        is_let.set()
        assert first.result(30)
        assert all(other.result(30) for other in others)
        assert not greedy.result(30)
        assert sorted(one.result(30) for one in twice) == [False, True]
    assert callers[0] == [str(SHOP)]
    assert len(callers[1]) == 31
    assert callers[2:] == [[str(BANK)]]
    budget.close()
    assert used(path, BANK) == 600
    assert sum(use.rows for use in read_use(path)) == 630


def test_when_a_write_fails_nobody_who_waited_is_given_a_row(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = QueryBudget(path, "run", 160)
    assert takes(budget, 1)
    held = budget._leases[SHOP].rows
    away = path.with_name("away")
    path.rename(away)
    callers = [SHOP, *(Caller("token", str(number)) for number in range(20))]

    def ask(caller: Caller) -> str:
        with pytest.raises(UnavailableError) as told:
            budget.take(caller, 20)
        return told.value.outcome

    with ThreadPoolExecutor(21) as pool:
        assert len(list(pool.map(ask, callers))) == 21
    # Nor is anything lost, or anybody remembered of whom nothing is known.
    assert list(budget._leases) == [SHOP]
    assert budget._leases[SHOP].rows == held
    away.rename(path)
    with ThreadPoolExecutor(21) as pool:
        assert all(pool.map(lambda caller: takes(budget, 20, caller), callers))
    budget.close()
    assert used(path) == 21


def test_threads_get_what_was_granted_and_no_more(path: Path) -> None:
    budgets = [QueryBudget(path, "run", 500) for _ in range(2)]
    callers = [Caller("token", str(number)) for number in range(5)]

    def spend(place: int) -> int:
        caller = callers[place % len(callers)]
        return sum(takes(budgets[place % 2], 3, caller) for _ in range(60))

    with ThreadPoolExecutor(30) as pool:
        spent = list(pool.map(spend, range(30)))
    for budget in budgets:
        budget.close()
    for number, caller in enumerate(callers):
        rows = 3 * sum(spent[number :: len(callers)])
        assert used(path, caller) == rows
        # The other process may hold a last block of less than three rows a thread.
        assert 470 <= rows <= 500


def test_a_killed_process_has_booked_all_that_it_gave(path: Path) -> None:
    program = (
        "import os, sys, threading; from pathlib import Path\n"
        "from fedveil.server.inference.callers import Caller\n"
        "from fedveil.server.inference.query_budget import QueryBudget\n"
        "budget = QueryBudget(Path(sys.argv[1]), 'run', 10**9)\n"
        "def take(name):\n"
        "    while True:\n"
        "        budget.take(Caller('token', name), 100)\n"
        "        os.write(1, name.encode())\n"
        "for name in 'abcdefgh':\n"
        "    threading.Thread(target=take, args=name).start()\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        given_out = Counter(process.stdout.read(4000).decode())
        os.kill(process.pid, signal.SIGKILL)
        given_out += Counter(process.stdout.read().decode())
    for name in "abcdefgh":
        rows = 100 * given_out[name]
        # A block more may have been booked for the request that was not told of any more.
        assert rows <= used(path, Caller("token", name)) <= rows + 17_000


def test_what_was_set_aside_before_a_reset_counts_as_used_before_it(path: Path) -> None:
    budget, other = QueryBudget(path, "run", 1000), QueryBudget(path, "run", 1000)
    assert takes(budget, 1)
    held = budget._leases[SHOP].rows
    assert 7 < held < 100
    reset_use(path, "token:shop", None)
    # Of the block only whole requests, then as many as a new budget has, and no rest of the block.
    assert sum(takes(budget, 7) for _ in range(300)) == held // 7 + 1000 // 7
    budget.close()
    reset_use(path, "token:shop", None)
    assert takes(other, 500)
    again, third = QueryBudget(path, "run", 1000), QueryBudget(path, "run", 1000)
    assert takes(again, 1)
    reset_use(path, "token:shop", None)
    assert takes(third, 900)
    # What these put back was booked before the reset.
    other.close()
    again.close()
    third.close()
    assert used(path) == 900


def test_a_refund_of_before_a_reset_gives_nothing(path: Path) -> None:
    budget = QueryBudget(path, "run", 10)
    receipt = budget.take(SHOP, 10)
    assert reset_use(path, "token:shop", "run") == 10
    assert sum(takes(budget) for _ in range(11)) == 10
    budget.give_back(receipt)
    assert not takes(budget)


def test_many_callers_take_bounded_memory_and_lose_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_MOST_LEASES", 5)
    budget = QueryBudget(path, "run", 1000)
    for number in range(20):
        assert takes(budget, 1, Caller("address", str(number)))
    assert len(budget._leases) == 5
    assert used(path, Caller("address", "0")) == 1
    budget.close()
    assert all(use.rows == 1 for use in read_use(path))


def test_a_damaged_file_refuses(path: Path) -> None:
    budget = QueryBudget(path, "run", 1000)
    assert takes(budget)
    budget.close()
    whole = path.read_bytes()
    for damage in (b"", b"x" * 8192, whole[:5000], b"\0" * 100 + whole[100:], whole[:4096]):
        path.write_bytes(damage)
        with pytest.raises(ServeError, match="budgets are refused"):
            QueryBudget(path, "run", 1000)
        with pytest.raises(ServeError, match="budgets are refused"):
            read_use(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE used (run, caller, rows, resets)")
    path.chmod(0o600)
    with pytest.raises(ServeError, match="no file of budgets"):
        QueryBudget(path, "run", 1000)


def test_a_file_that_goes_away_refuses_and_is_taken_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    budget = QueryBudget(path, "run", 1000)
    assert takes(budget, 10)
    away = path.with_name("away")
    path.rename(away)
    # What is held was booked, and may be used.
    while budget.holds(SHOP, 1):
        assert takes(budget)
    for caller in (SHOP, BANK, SHOP):
        with pytest.raises(UnavailableError, match="cannot be counted now"):
            budget.take(caller, 1)
    assert len([r for r in caplog.records if "budgets are refused" in r.message]) == 1
    path.write_bytes(away.read_bytes())
    with pytest.raises(UnavailableError):
        budget.take(BANK, 1)
    path.unlink()
    away.rename(path)
    assert takes(budget, 1, BANK)


def test_a_file_that_others_may_change_is_refused(path: Path) -> None:
    QueryBudget(path, "run", 1).close()
    path.chmod(0o620)
    with pytest.raises(ServeError, match="with mode 0600, not 0620"):
        QueryBudget(path, "run", 1)
    path.chmod(0o600)
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(ServeError, match="must be a regular file"):
        QueryBudget(link, "run", 1)


def test_mistakes_are_told_in_one_line(path: Path) -> None:
    with pytest.raises(ServeError, match="--query-budget 0: grant one row or more"):
        QueryBudget(path, "run", 0)
    with pytest.raises(ServeError, match="there is no such file of budgets"):
        read_use(path)
    QueryBudget(path, "run", 1).close()
    with pytest.raises(ServeError, match="knows of no caller token:shop"):
        reset_use(path, "token:shop", None)
    blocked = path.parent / "file"
    blocked.write_text("")
    for folder in (blocked, path.parent / "none"):
        with pytest.raises(ServeError, match=r"there is no folder .*; make it, or correct"):
            QueryBudget(folder / "b", "run", 1)
        assert not folder.is_dir()


def test_a_file_that_another_process_keeps_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever believes it would remove the file, and with it what was used."""
    monkeypatch.setattr(budget_database, "_BUSY_SECONDS", 0.05)
    budget = QueryBudget(path, "run", 1000)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError):
            budget.take(SHOP, 1)
        with pytest.raises(ServeError, match="another process has kept"):
            reset_use(path, str(SHOP), None)
    assert "another process has kept the file" in caplog.text
    assert "remove it" not in caplog.text
    assert takes(budget)
    budget.close()
