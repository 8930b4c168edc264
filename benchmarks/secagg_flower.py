"""The baseline of `secagg.py`: one session of Flower's SecAgg+, all parties in this process.

The server is Flower's own `SecAggPlusWorkflow`, the clients its own `secaggplus_mod`; between them
stands `InProcessGrid` in place of the network. Flower's serialization of messages is left out, as
is that of ours. The strategy does nothing, so that what is measured is secure aggregation alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.compat.common import recorddict_compat
from flwr.server.client_manager import ClientManager, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from ledger import Ledger
from numpy.typing import NDArray

from fedveil.errors import FedveilError
from fedveil.simulations.grid import InProcessGrid

__all__ = ["CLIPPING_RANGE", "QUANTIZATION_RANGE", "flower_session"]

CLIPPING_RANGE = 8.0
QUANTIZATION_RANGE = 2**22
"""Flower's defaults."""

_FIRST_NODE = 2


class _VanishedError(FedveilError):
    """A client that answers no more."""


class _Clients(ClientApp):
    """Every client: Flower's mod around a training that has happened already."""

    def __init__(
        self, updates: Sequence[NDArray[np.float32]], dropped: int, ledger: Ledger
    ) -> None:
        super().__init__(mods=[secaggplus_mod])
        self._ledger = ledger
        self._updates = updates
        self._dropped = dropped
        self.train()(self._trained)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message, on the account of the clients that stay, or of those that vanish."""
        is_gone = context.node_id - _FIRST_NODE < self._dropped
        with self._ledger.charge("nobody"):
            # The workflow sends one object to all, of which the mod takes parts away.
            configs = message.content.config_records[RECORD_KEY_CONFIGS]
            records = {**message.content, RECORD_KEY_CONFIGS: ConfigRecord(dict(configs))}
            message.content = RecordDict(records)
            with self._ledger.charge("gone" if is_gone else "client"):
                return super().__call__(message, context)

    def _trained(self, message: Message, context: Context) -> Message:
        with self._ledger.charge("nobody"):
            number = context.node_id - _FIRST_NODE
            if number < self._dropped:
                raise _VanishedError
            parameters = ndarrays_to_parameters([self._updates[number]])
            result = FitRes(Status(Code.OK, ""), parameters, 1, {"loss": 1.5})
            content = recorddict_compat.fitres_to_recorddict(result, keep_input=False)
            return Message(content, reply_to=message)


class _Strategy(FedAvg):
    """Takes every client, and keeps the mean that the workflow gives it."""

    def __init__(self, nodes: Sequence[int], grid: InProcessGrid) -> None:
        super().__init__()
        self._proxies: list[ClientProxy] = [GridClientProxy(node, grid, 1) for node in nodes]
        self.result = Parameters([], "")

    def configure_fit(
        self,
        server_round: int,  # noqa: ARG002  # Flower's signature
        parameters: Parameters,
        client_manager: ClientManager,  # noqa: ARG002
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Return an empty task for every client."""
        return [(proxy, FitIns(parameters, {})) for proxy in self._proxies]

    def aggregate_fit(
        self,
        server_round: int,  # noqa: ARG002
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],  # noqa: ARG002
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Keep the mean; averaging is the workflow's part."""
        self.result = results[0][1].parameters
        return None, {}


def flower_session(
    updates: Sequence[NDArray[np.float32]], dropped: int, threshold: float, ledger: Ledger
) -> NDArray[np.float64]:
    """Run one session, charge it to "client", "gone" and "server", and return the mean.

    Parameters
    ----------
    updates : sequence of ndarray
        One a client, shape (d,), float32.
    dropped : int
        How many of the first clients vanish before they send the masked vector.
    threshold : float
        Share of the shares that gives a secret.
    ledger : Ledger
        Takes the CPU time.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    nodes = range(_FIRST_NODE, _FIRST_NODE + len(updates))
    grid = InProcessGrid(_Clients(updates, dropped, ledger), {node: {} for node in nodes}, run_id=1)
    strategy = _Strategy(nodes, grid)
    context = LegacyContext(
        Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}),
        strategy=strategy,
        client_manager=SimpleClientManager(),
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([]), keep_input=True
    )
    workflow = SecAggPlusWorkflow(
        num_shares=1.0,
        reconstruction_threshold=threshold,
        max_weight=1.0,
        clipping_range=CLIPPING_RANGE,
        quantization_range=QUANTIZATION_RANGE,
    )
    with ledger.charge("server"):
        workflow(grid, context)
    return parameters_to_ndarrays(strategy.result)[0]
