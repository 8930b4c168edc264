"""One simulated run: the deployed apps over the in-process grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Context, RecordDict

from fedveil.client.app import make_client_app
from fedveil.client.credentials import Credentials
from fedveil.config import Config, parse_config
from fedveil.privacy.randomness import SecureGenerator
from fedveil.secagg.identity import Identity, Roster
from fedveil.server.app import make_server_app
from fedveil.server.federation import RunSummary
from fedveil.server.observer import Observer
from fedveil.server.run_info import read_info
from fedveil.settings import flatten, read_toml
from fedveil.simulations.grid import InProcessGrid
from fedveil.simulations.guards import Guards

__all__ = ["simulate"]

_RUN_ID = 1
_FIRST_NODE = 2


def simulate(
    config: Config | None,
    out: Path,
    observer: Observer,
    *,
    data_dir: Path | None = None,
    kek: str | None = None,
    policy: Path | None = None,
    ledgers: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
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
    should_stop : callable
        Asked between rounds.

    Raises
    ------
    fedveil.errors.FedveilError
        With one line that says what is wrong.
    """
    resume = config is None
    if config is None:
        config, data_dir = _remembered(out, data_dir)
    nodes: dict[int, dict[str, str | int | float | bool]] = {
        _FIRST_NODE + partition: {
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
    credentials = _made_up_credentials(config, nodes)
    guards = Guards.of(out, policy, ledgers, resume=resume)
    client_app = make_client_app(
        lambda node: credentials[node.node_id],
        lambda node: node.node_id in credentials,
        lambda node: guards.guard(f"client-{node.node_id - _FIRST_NODE}"),
    )
    ended: list[RunSummary] = []
    make_server_app(guards.keep(observer), should_stop, ended.append)(
        InProcessGrid(client_app, nodes, _RUN_ID), context
    )
    return ended[0]


def _made_up_credentials(config: Config, nodes: Iterable[int]) -> dict[int, Credentials]:
    """Return identities by node, and a roster of them; none without secure aggregation.

    They follow from the seed, so that a run which is repeated or resumed rounds alike. There is
    nobody to hide from in one process.
    """
    if not config.secagg.enabled:
        return {}
    identities = {
        node: Identity(
            f"client-{node - _FIRST_NODE}",
            SecureGenerator.from_seed("identity", config.seed, node).words(4).tobytes(),
        )
        for node in nodes
    }
    roster = Roster({one.name: one.public_key for one in identities.values()})
    return {node: Credentials(one, roster) for node, one in identities.items()}


def _remembered(out: Path, data_dir: Path | None) -> tuple[Config, Path | None]:
    info = read_info(out)
    config = parse_config(read_toml(out / "config.toml"), str(out / "config.toml"))
    return config, data_dir or info.data_dir
