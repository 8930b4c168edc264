"""Which nodes serve the run, and as which client."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.grid import Grid

from fedveil.errors import FedveilError
from fedveil.strategies.exchange import exchange
from fedveil.strategies.failures import Failure, FailureKind, failure_in

__all__ = ["JoinError", "JoinWatcher", "Roster"]

_LOOK_AGAIN = 0.5


class JoinError(FedveilError):
    """Too few clients can serve the run."""


class JoinWatcher(Protocol):
    """Whoever is told which nodes join."""

    def joined(self, client: str, node: int) -> None:
        """Hear that a node serves the run as this client."""

    def refused(self, node: int, reason: Failure) -> None:
        """Hear that a node does not, and why."""


class _Nobody:
    def joined(self, client: str, node: int) -> None: ...

    def refused(self, node: int, reason: Failure) -> None: ...


class Roster:
    """The clients of a run by name, each with the node that it is reached at.

    A client is named by its partition, which outlives the node that it connects with: what it
    released is added up over restarts.

    Parameters
    ----------
    grid : Grid
        Where the nodes are.
    request : ConfigRecord
        The run's configuration, for the clients to check.
    partitions : int
        Number of partitions; a client is one of them.
    timeout : float
        Seconds to wait for an answer.
    on_refusal : callable
        Told why a node is left out, in one line.
    watcher : JoinWatcher, optional
        Told of each node, when it has answered.
    """

    def __init__(
        self,
        grid: Grid,
        request: ConfigRecord,
        partitions: int,
        timeout: float,
        on_refusal: Callable[[str], None],
        watcher: JoinWatcher | None = None,
    ) -> None:
        self._grid = grid
        self._request = request
        self._partitions = partitions
        self._timeout = timeout
        self._on_refusal = on_refusal
        self._watcher = watcher or _Nobody()
        self._client_of: dict[int, str | None] = {}
        self._untold: dict[str, list[int]] = {}

    def clients(self) -> dict[str, int]:
        """Return the clients connected now, asking the nodes that are new."""
        joined = self._look()
        self._tell_refusals()
        return joined

    def _look(self) -> dict[str, int]:
        connected = set(self._grid.get_node_ids())
        self._ask(sorted(connected - set(self._client_of)))
        return {
            client: node
            for node, client in sorted(self._client_of.items())
            if client is not None and node in connected
        }

    def wait_for(self, wanted: int, least: int, patience: float) -> dict[str, int]:
        """Wait until `wanted` clients have joined, or `patience` is over and `least` have.

        Raises
        ------
        JoinError
            If there are fewer than `least` then; it tells the last refusal.
        """
        deadline = time.monotonic() + patience
        while True:
            joined = self._look()
            answered_all = len(self._client_of) >= wanted
            if len(joined) >= wanted or answered_all or time.monotonic() >= deadline:
                break
            time.sleep(_LOOK_AGAIN)
        if len(joined) < least:
            # The refusals themselves stay untold: this one line says why.
            reason = f"; {next(iter(self._untold))}" if self._untold else ""
            raise JoinError(
                f"{len(joined)} of {len(self._client_of)} connected nodes can take part after "
                f"{patience:g} s, {least} are needed{reason}"
            )
        self._tell_refusals()
        return joined

    def _ask(self, nodes: list[int]) -> None:
        messages = [
            Message(RecordDict({"config": self._request}), dst_node_id=node, message_type="query")
            for node in nodes
        ]
        replies = exchange(self._grid, messages, self._timeout) if messages else []
        taken = self.connected_names()
        for reply in replies:
            node = reply.metadata.src_node_id
            if node not in nodes:
                # Flower's own word for a reply that was lost on its way; its node is asked again.
                continue
            if reply.has_error():
                self._refuse(node, failure_in(reply))
                continue
            record = reply.content.metric_records.get("join", MetricRecord())
            partition = record.get("partition")
            if not isinstance(partition, int) or not 0 <= partition < self._partitions:
                last = self._partitions - 1
                words = f"it says partition {partition!r}, which is not in 0 .. {last}"
                self._refuse(node, Failure(FailureKind.PLACE, words))
                continue
            client = f"client-{partition}"
            if client in taken:
                words = f"partition {partition} is served by another node already"
                self._refuse(node, Failure(FailureKind.PLACE, words))
                continue
            taken.add(client)
            self._client_of[node] = client
            self._watcher.joined(client, node)

    def known(self) -> dict[str, int]:
        """Return the clients that ever joined, each with the node that it joined with last."""
        return {client: node for node, client in self._client_of.items() if client is not None}

    def connected_names(self) -> set[str]:
        """Return the names of the clients whose node is connected now."""
        connected = set(self._grid.get_node_ids())
        return {c for n, c in self._client_of.items() if c is not None and n in connected}

    def _refuse(self, node: int, reason: Failure) -> None:
        self._client_of[node] = None
        self._watcher.refused(node, reason)
        self._untold.setdefault(reason, []).append(node)

    def _tell_refusals(self) -> None:
        """Tell each reason once, with the nodes that gave it."""
        for reason, nodes in self._untold.items():
            who = f"node {nodes[0]} is" if len(nodes) == 1 else f"{len(nodes)} nodes are"
            self._on_refusal(f"{who} left out: {reason}")
        self._untold.clear()
