"""One simulated run: the deployed apps on one machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, RecordDict

from fedveil.config import Config, parse_config
from fedveil.server.app import make_server_app
from fedveil.server.federation import RunSummary
from fedveil.server.observer import Observer
from fedveil.server.run_info import read_info
from fedveil.settings import flatten, read_toml
from fedveil.simulations.clients import FIRST_NODE, SimulatedClients
from fedveil.simulations.engines.choose import choose_engine, parse_engine
from fedveil.simulations.grid import InProcessGrid
from fedveil.simulations.guards import Guards

__all__ = ["simulate"]

_RUN_ID = 1


def simulate(
    config: Config | None,
    out: Path,
    observer: Observer,
    *,
    data_dir: Path | None = None,
    kek: str | None = None,
    policy: Path | None = None,
    ledgers: Path | None = None,
    engine: str = "auto",
    processes: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _: None,
) -> RunSummary:
    """Run a federation on this machine.

    Parameters
    ----------
    config : Config, optional
        The settings; None continues the run in `out` with its own.
    out : Path
        The run folder.
    observer : Observer
        Told what happens.
    data_dir : Path, optional
        Data directory of the task, the same for every client.
    kek : str, optional
        The KEK of the model store, for example ``file:PATH``; by default the user's key file.
    policy : Path, optional
        A policy that every client holds the server's requests against. The run remembers it.
    ledgers : Path, optional
        Folder of the clients' ledgers, ``client-N.db``, for budgets over several runs; by default
        one in the run folder.
    engine : {"auto", "cohort", "sequential", "processes", "ray"}
        What runs the clients; it is no setting of the run, and changes nothing but the rounding
        of its results. ``auto`` takes cohort where the clients can be trained together, and
        faster so.
    processes : int, optional
        How many, with the engines processes and ray only; by default one a core.
    should_stop : callable
        Asked between rounds.
    say : callable
        Told in one line, before anything runs, which engine does, and why.

    Raises
    ------
    fedveil.errors.FedveilError
        With one line that says what is wrong.
    """
    choice = parse_engine(engine, processes)
    resume = config is None
    if config is None:
        config, data_dir = _remembered(out, data_dir)
    nodes: dict[int, dict[str, str | int | float | bool]] = {
        FIRST_NODE + partition: {
            "partition-id": partition,
            "num-partitions": config.federation.clients,
            **({"data-dir": str(data_dir)} if data_dir else {}),
        }
        for partition in range(config.federation.clients)
    }
    run: dict[str, object] = {
        "resume" if resume else "out": str(out),
        **({"data-dir": str(data_dir)} if data_dir else {}),
        **({"kek": kek} if kek else {}),
    }
    context = Context(
        run_id=_RUN_ID,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config=flatten({**config.model_dump(exclude_none=True), "run": run}),  # type: ignore[arg-type]  # leaves are scalars
    )
    guards = Guards.of(out, policy, ledgers, resume=resume)
    ended: list[RunSummary] = []
    server_app = make_server_app(guards.keep(observer), should_stop, ended.append)
    chosen, said = choose_engine(choice, SimulatedClients(config, guards), data_dir)
    try:
        say(said)
        server_app(InProcessGrid(chosen, nodes, _RUN_ID), context)
    finally:
        chosen.close()
    return ended[0]


def _remembered(out: Path, data_dir: Path | None) -> tuple[Config, Path | None]:
    info = read_info(out)
    config = parse_config(read_toml(out / "config.toml"), str(out / "config.toml"))
    return config, data_dir or info.data_dir
