"""Which engine runs the clients of a simulation, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fedveil.client.app import task_of
from fedveil.config import Config
from fedveil.errors import FedveilError
from fedveil.simulations.clients import SimulatedClients
from fedveil.simulations.engines.errors import EngineError
from fedveil.simulations.engines.interface import Engine

__all__ = ["Choice", "EngineName", "choose_engine", "parse_engine"]

EngineName = Literal["auto", "cohort", "sequential", "processes", "ray"]

_SEVERAL = ("processes", "ray")


@dataclass(frozen=True)
class Choice:
    """What was asked for.

    Parameters
    ----------
    name : str
        The engine; ``auto`` for cohort where the clients can be trained together, and faster so,
        else sequential.
    processes : int, optional
        How many at most, of the engines processes and ray only; None for one a core, of this
        machine or of all.

    Raises
    ------
    EngineError
        If they do not go together.
    """

    name: EngineName = "auto"
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.processes is None:
            return
        if self.name not in _SEVERAL:
            raise EngineError(
                f"--processes {self.processes} is for --engine processes and ray; with --engine "
                f"{self.name} leave it out"
            )
        if self.processes < 1:
            raise EngineError(f"--processes must be 1 or more, not {self.processes}")


def parse_engine(name: str, processes: int | None) -> Choice:
    """Return a choice from the words of a user.

    Raises
    ------
    EngineError
        If there is no such engine, or the words do not go together.
    """
    for known in get_args(EngineName):
        if name == known:
            return Choice(known, processes)
    raise EngineError(f"there is no engine {name!r}; there are {', '.join(get_args(EngineName))}")


def choose_engine(
    choice: Choice, clients: SimulatedClients, data_dir: Path | None
) -> tuple[Engine, str]:
    """Return the engine, and one line that says which it is and why.

    Parameters
    ----------
    choice : Choice
        What was asked for.
    clients : SimulatedClients
        Whom it will run.
    data_dir : Path, optional
        Where the data files of the task lie.

    Raises
    ------
    EngineError
        If cohort was asked for, and the clients cannot be trained together; or ray, and there is
        no cluster that can run them.
    """
    if choice.name == "sequential":
        return _sequential(clients), "engine sequential: one client after another"
    if choice.name == "processes":
        from fedveil.simulations.engines.processes import ProcessesEngine

        most = choice.processes or _cores()
        count = min(most, clients.config.federation.clients)
        return ProcessesEngine(clients, count), f"engine processes: {count} at a time"
    if choice.name == "ray":
        return _on_ray(clients, choice.processes)
    reason = _why_not_together(clients.config, data_dir, only_if_faster=choice.name == "auto")
    if reason is None:
        from fedveil.simulations.engines.cohort import CohortEngine

        return (
            CohortEngine(clients.app()),
            "engine cohort: clients that train are trained together",
        )
    if choice.name == "cohort":
        raise EngineError(
            f"--engine cohort: the clients cannot be trained together: {reason}; take --engine "
            "sequential or processes"
        )
    return _sequential(clients), f"engine sequential, not cohort: {reason}"


def _sequential(clients: SimulatedClients) -> Engine:
    from fedveil.simulations.engines.sequential import SequentialEngine

    return SequentialEngine(clients.app())


def _on_ray(clients: SimulatedClients, most: int | None) -> tuple[Engine, str]:
    from fedveil.simulations.engines.ray import RayEngine

    config, guards = clients.config, clients.guards
    engine = RayEngine(
        clients,
        min(most or config.federation.clients, config.federation.clients),
        device=config.training.device,
        shared=guards.ledgers if guards.policy is not None else None,
    )
    return engine, f"engine ray: {engine.size} at a time, on {engine.machines} machine(s)"


def _why_not_together(config: Config, data_dir: Path | None, *, only_if_faster: bool) -> str | None:
    from fedveil.simulations.cohort.batchable import unbatchable
    from fedveil.simulations.cohort.worth import slower_together

    try:
        # The task that the clients take, so that its data is read, and its model tried, once.
        task = task_of(config, str(data_dir) if data_dir else None)
        slower = slower_together(config, task) if only_if_faster else None
        return slower or unbatchable(config, task)
    except FedveilError as error:
        return str(error)


def _cores() -> int:
    """Return on how many cores this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
