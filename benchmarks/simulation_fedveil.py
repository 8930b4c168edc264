"""Federated averaging on MNIST's writers with `simulate`, as a user has it.

Prints one line of JSON. Its time begins when all clients have joined and ends when the last round
is committed, so that it holds all that a round does: messages, checks, aggregation, evaluation,
accounting, and the encrypted model with its journal on disk.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from simulation_work import Work

from fedveil.config import Config
from fedveil.server.records import RoundRecord
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate


class Watch:
    """An observer that takes the time."""

    def __init__(self) -> None:
        self.seconds = self.cpu = self.accuracy = 0.0
        self.engine = ""

    def started(self, config: Config, run: str, clients: int, noise: float | None) -> None:  # noqa: ARG002  # an observer's
        """Begin."""
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def reply(self, round_: int, replies: int, cohort: int) -> None:
        """Hear nothing."""

    def round_done(self, record: RoundRecord, rounds: int) -> None:  # noqa: ARG002  # an observer's
        """Take the time until now."""
        self.seconds = time.perf_counter() - self._began
        self.cpu = time.process_time() - self._cpu_began
        self.accuracy = record.test["accuracy"]

    def warning(self, text: str) -> None:
        """Pass it on."""
        print(text, file=sys.stderr)

    def say(self, text: str) -> None:
        """Hear which engine runs."""
        self.engine = text


def settings(work: Work) -> Config:
    """Return the built-in scenario with the work's settings."""
    overrides: dict[str, object] = {
        "seed": work.seed,
        "task.options.model": work.model,
        "task.options.client_test_fraction": 0.0,
        "partition.scheme": "natural",
        "federation.clients": work.clients,
        "federation.rounds": work.rounds,
        "federation.fraction": work.cohort / work.clients,
        "training.sampling": "shuffle",
        "training.batch_size": work.batch_size,
        "training.local_steps": work.local_steps,
        "training.learning_rate": work.learning_rate,
        "secagg.enabled": False,
        "dp.metrics": "off",
    }
    tree = find_scenario("mnist")
    if work.noise_multiplier is None:
        return tree.config(overrides.items(), "none")
    overrides["dp.clip_norm"] = work.clip_norm
    overrides["dp.noise_multiplier"] = work.noise_multiplier
    return tree.config(overrides.items(), "client/central")


def main() -> None:
    """Train, and print the times."""
    work = Work(**json.loads(sys.argv[1]))
    # torch imports its compiler with the first optimiser, which pfl's side makes before its time
    # begins; so does ours where a trial of the cohort engine makes one.
    torch.optim.SGD([torch.zeros(1)])
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        simulate(
            settings(work),
            out / "run",
            watch,
            data_dir=Path(work.data_dir),
            kek=f"file:{out / 'key'}",
            engine=work.engine,
            say=watch.say,
        )
    print(
        json.dumps(
            {
                "seconds": watch.seconds,
                "cpu": watch.cpu,
                "accuracy": watch.accuracy,
                "engine": watch.engine,
            }
        )
    )


if __name__ == "__main__":
    main()
