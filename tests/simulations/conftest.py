"""What simulation tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedveil.config import Config
from fedveil.server.federation import RunSummary
from fedveil.server.records import RoundRecord
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate


class Watcher:
    """Remembers what it is told, and wishes to stop after some round."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rounds: list[RoundRecord] = []
        self.warnings: list[str] = []
        self.noise: float | None = None
        self._stop_after = stop_after

    def started(self, config: Config, run: str, clients: int, noise: float | None) -> None:
        self.noise = noise

    def reply(self, round_: int, replies: int, cohort: int) -> None: ...

    def round_done(self, record: RoundRecord, rounds: int) -> None:
        self.rounds.append(record)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def should_stop(self) -> bool:
        return self._stop_after is not None and len(self.rounds) >= self._stop_after


Run = Callable[..., tuple[RunSummary, Watcher]]


@pytest.fixture(autouse=True)
def _undrawn(undrawn: None) -> None: ...


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that simulates `digits` with overrides into ``tmp_path / out``.

    Settings that are given whole take the place of the scenario's.
    """

    def simulated(
        *overrides: tuple[str, object],
        out: str = "run",
        scenario: str = "digits",
        settings: Config | None = None,
        data: Path | None = None,
        stop_after: int | None = None,
        resume: bool = False,
        engine: str = "auto",
        processes: int | None = None,
    ) -> tuple[RunSummary, Watcher]:
        watcher = Watcher(stop_after)
        config = settings or (None if resume else find_scenario(scenario).config(overrides))
        summary = simulate(
            config,
            tmp_path / out,
            watcher,
            data_dir=data,
            engine=engine,
            processes=processes,
            should_stop=watcher.should_stop,
        )
        return summary, watcher

    return simulated
