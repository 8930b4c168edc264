"""What tests of the ledger share: a charge, and children that are killed at a chosen point."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fedveil.privacy import ledger_file
from fedveil.privacy.accounting import Release
from fedveil.privacy.ledger import Ledger
from fedveil.privacy.ledger_entries import Charge

__all__ = ["DELTA", "in_child", "kill_at", "ledger_at", "train_charge"]

DELTA = 1e-5


def ledger_at(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.db", folder / "apart")


def train_charge(
    dataset: str = "cardio", run: str = "1", round_: int = 1, release: Release | None = None
) -> Charge:
    return Charge(
        dataset=dataset,
        task="digits",
        run=run,
        round=round_,
        attempt=1,
        purpose="train",
        unit="record",
        neighbours="add-or-remove-one",
        releases=(release or Release(0.25, 2.0, 4),),
    )


def in_child(work: Callable[[Callable[[bytes], int]], None]) -> tuple[int, bytes]:
    """Let a child process work, and return its status as `os.waitpid` gives it, and what it told.

    What it tells stands even if it is killed at the next instruction.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            work(lambda told: os.write(writer, told))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    return os.waitpid(child, 0)[1], told


def kill_at(point: int) -> None:
    """Kill this process with SIGKILL at the so-manyth thing that it does to a file or a database.

    Counted are what Python reports to its audit hooks of opening, linking, removing and making,
    and every statement that SQLite begins.
    """
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(event: str, _: object) -> None:
        if event in ("open", "os.link", "os.remove", "os.mkdir", "sqlite3.connect"):
            count()

    original = ledger_file._connect

    def connect(path: Path) -> object:
        connection = original(path)
        connection.set_trace_callback(lambda _: count())
        return connection

    ledger_file._connect = connect  # type: ignore[assignment]
    sys.addaudithook(hear)
