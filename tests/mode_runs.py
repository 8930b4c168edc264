"""What tests of the privacy modes share: small runs in each, and who listens to them."""

from __future__ import annotations

from pathlib import Path

from fedveil.config import Config
from fedveil.server.federation import RunSummary
from fedveil.server.observer import Observer
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate

__all__ = ["MODES", "NOISE", "ROUNDS", "Listener", "run_in", "settings_of"]

NOISE, ROUNDS = 2.0, 3
MODES: dict[str, dict[str, object]] = {
    "record/local": {"training.local_steps": 2},
    "record/distributed": {"training.local_steps": 1},
    # The scenario's own clip norm adapts in these.
    "client/distributed": {"training.local_steps": 2, "dp.adaptive": None},
    "client/central": {"training.local_steps": 2, "dp.adaptive": None},
}


class Listener:
    """Keeps the warnings of a run."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def started(self, *_: object) -> None: ...

    def reply(self, *_: object) -> None: ...

    def round_done(self, *_: object) -> None: ...

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def settings_of(mode: str, **changes: object) -> Config:
    """Return the settings of a small run of `digits` in a mode; dots are written as ``__``."""
    few: dict[str, object] = {
        "federation.clients": 5,
        "federation.rounds": ROUNDS,
        "training.sampling_rate": 0.25,
        "training.learning_rate": 0.5,
        "dp.noise_multiplier": NOISE,
        **MODES[mode],
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return find_scenario("digits").config(few.items(), mode)


def run_in(
    config: Config,
    out: Path,
    observer: Observer,
    *,
    policy: Path | None = None,
    ledgers: Path | None = None,
) -> RunSummary:
    """Run it in this process."""
    return simulate(config, out, observer, policy=policy, ledgers=ledgers)
