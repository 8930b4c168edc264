"""A run of a federation of kits that is watched while it goes on, and waits that are bounded."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from kits import Kits, children_of, is_running, records

from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.ledger import Ledger
from fedveil.privacy.ledger_entries import Entry
from fedveil.server.run_folder import RunFolder

PATIENCE = 300.0
DELTA = 1e-5
"""Of the runs, and of the policies."""


def slow_training(rounds: int) -> str:
    """Return settings of runs in which a client trains for seconds, so that it can be met."""
    return f"""\
federation.rounds = {rounds}
federation.round_timeout = 240.0
secagg.stage_timeout = 15.0
training.local_steps = 200
[policy]
epsilon = 100.0
"""


class Watched(Protocol):
    """Whatever tells, when a wait was in vain, what the processes said."""

    def logs(self) -> str: ...


def wait_until(
    holds: Callable[[], bool], what: str, watched: Watched, patience: float = PATIENCE
) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + patience
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain: {what}\n{watched.logs()}")
        time.sleep(0.02)


class Run:
    """A run that `fedveil run` has submitted."""

    def __init__(self, federation: Kits, name: str, options: tuple[str, ...]) -> None:
        self._federation = federation
        self.name = name
        federation.start(name, "fedveil", "run", str(federation.kit("coordinator")), *options)
        wait_until(lambda: self._begun() is not None, "the run is submitted", federation)
        begun = self._begun()
        assert begun is not None
        self.number = begun[1]
        self.path = Path(begun[2])

    def _begun(self) -> re.Match[str] | None:
        return re.search(r"run (\d+): .*; its folder is (\S+)", self.told())

    def told(self) -> str:
        return self._federation.log(self.name)

    def logs(self) -> str:
        return self._federation.logs()

    def committed(self) -> int:
        try:
            return len((self.path / "metrics.jsonl").read_bytes().splitlines())
        except FileNotFoundError:
            return 0

    def ended(self) -> int:
        return self._federation.wait_for_end(self.name, patience=600.0)


@contextmanager
def started_run(federation: Kits, *options: str) -> Iterator[Run]:
    """Start a run; what follows it is ended at the end of the block, however that ends."""
    name = f"run-{sum(key.startswith('run-') for key in federation.processes) + 1}"
    try:
        yield Run(federation, name, options)
    finally:
        process = federation.processes[name]
        process.kill()
        process.wait(20)


def run_folder(federation: Kits, path: Path) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(federation.kit("coordinator")))
        return RunFolder.open(path)


def ledger_entries(federation: Kits, name: str, *runs: str) -> list[Entry]:
    """Return what a client's ledger holds of runs, or of all: what it was asked to train."""
    kit = federation.kit(name)
    if not (kit / "ledger.db").exists():
        return []
    entries = Ledger(kit / "ledger.db", kit / "marks").read().entries
    return [e for e in entries if e.purpose == "train" and (not runs or e.run in runs)]


def ledger_rounds(federation: Kits, name: str, run: str) -> list[int]:
    """Return the rounds of a run for which a client's ledger has a charge, one a charge."""
    return [entry.round for entry in ledger_entries(federation, name, run)]


def ledger_releases(federation: Kits, name: str, *runs: str) -> list[Release]:
    """Return what a client's ledger says that it released in runs, or in all."""
    return [r for entry in ledger_entries(federation, name, *runs) for r in entry.releases]


def report_covers_ledgers(federation: Kits, path: Path, *runs: str) -> None:
    """Hold the epsilon that a run claims against what each client's own ledger was charged."""
    report = json.loads((path / "report.json").read_text())
    for name in federation.clients:
        spent = pld_epsilon(ledger_releases(federation, name, *runs), DELTA)
        assert report["epsilon"] >= spent - 1e-6, name


def train_answered(
    federation: Kits, name: str, run: str, round_: int, said: str = "Sent successfully"
) -> bool:
    """Tell whether a client has said that it sent what it was last charged a round for."""
    lines = [record["message"] for record in records(federation.log(name))]
    charge = f"train of round {round_} of run {run}"
    charges = [at for at, text in enumerate(lines) if charge in text]
    return bool(charges) and any(said in text for text in lines[charges[-1] :])


def descendants(pid: int, part: str = "") -> list[int]:
    """Return the running descendants of a process, all or those whose command has a part."""
    found = children_of(pid)
    return [one for one in found if is_running(one) and part in command_of(one)] + [
        deeper for child in found for deeper in descendants(child, part)
    ]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except FileNotFoundError:
        return ""


@contextmanager
def held_in_training(federation: Kits, name: str, run: Run, round_: int) -> Iterator[None]:
    """Let a client train a round for as long as the block lasts, and the round with it."""
    wait_until(
        lambda: round_ in ledger_rounds(federation, name, run.number),
        f"{name} is asked for round {round_}",
        run,
    )
    (trains,) = descendants(federation.processes[name].pid, "runner.worker")
    os.kill(trains, signal.SIGSTOP)
    try:
        begins = "Sending: train"
        assert not train_answered(federation, name, run.number, round_, begins), "stopped in time"
        yield
    finally:
        if is_running(trains):
            os.kill(trains, signal.SIGCONT)
