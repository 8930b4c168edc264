"""Which nodes serve the run, and as which client."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from typing import Protocol

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.grid import Grid

from fedveil.errors import FedveilError
from fedveil.strategies.exchange import exchange
from fedveil.strategies.failures import Failure, FailureKind, failure_in

__all__ = ["JoinError", "JoinWatcher", "Roster"]

_LOOK_AGAIN = 0.5
_PASSING = frozenset({FailureKind.SILENT, FailureKind.CRASHED})
"""Kinds of failure that may be over when a node is asked again at once."""


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
        Seconds that the nodes have to answer, each time that some are asked.
    on_refusal : callable
        Told why a node is left out, in one line; again only for another reason.
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
        self._client_of: dict[int, str] = {}
        self._refused: dict[int, Failure] = {}
        self._told: dict[int, Failure] = {}

    def clients(self) -> dict[str, int]:
        """Return the clients connected now, asking the nodes that have not joined.

        Those that refused before are asked, too: their owners may have changed their mind.
        """
        self._ask(self._connected() - set(self._client_of))
        self._tell_refusals()
        return self.connected()

    def wait_for(self, wanted: int, least: int, patience: float) -> dict[str, int]:
        """Wait until `wanted` clients have joined, or `patience` is over and `least` have.

        Raises
        ------
        JoinError
            If there are fewer than `least` then; it tells a refusal.
        """
        deadline = time.monotonic() + patience
        while True:
            nodes = self._connected()
            self._ask(nodes - set(self._client_of) - self._settled())
            joined = self.connected()
            answered_all = len(self._client_of) + len(self._settled()) >= wanted
            if len(joined) >= wanted or answered_all or time.monotonic() >= deadline:
                break
            time.sleep(_LOOK_AGAIN)
        if len(joined) < least:
            # The refusals themselves stay untold: this one line says why.
            reason = f"; {next(iter(self._refused.values()))}" if self._refused else ""
            raise JoinError(
                f"{len(joined)} of {len(nodes)} connected nodes can take part after "
                f"{patience:g} s, {least} are needed{reason}"
            )
        self._tell_refusals()
        return joined

    def connected(self) -> dict[str, int]:
        """Return the clients that have joined and are connected now; nobody is asked."""
        nodes = self._connected()
        return {client: node for node, client in sorted(self._client_of.items()) if node in nodes}

    def known(self) -> dict[str, int]:
        """Return the clients that ever joined, each with the node that it joined with last."""
        return {client: node for node, client in self._client_of.items()}

    def _connected(self) -> set[int]:
        nodes = set(self._grid.get_node_ids())
        # One that is gone and comes back may have been set up anew.
        for gone in set(self._refused) - nodes:
            del self._refused[gone]
        return nodes

    def _settled(self) -> set[int]:
        """Return the nodes that have said no, and would say it again."""
        return {node for node, reason in self._refused.items() if reason.kind not in _PASSING}

    def _ask(self, nodes: Set[int]) -> None:
        if not nodes:
            return
        messages = [
            Message(RecordDict({"config": self._request}), dst_node_id=node, message_type="query")
            for node in sorted(nodes)
        ]
        replies = exchange(self._grid, messages, self._timeout)
        # Flower tells in its own name of a reply that was lost on its way.
        answers = {reply.metadata.src_node_id: reply for reply in replies}
        taken = set(self.connected())
        for node in sorted(nodes):
            found = self._place(answers.get(node), taken)
            if isinstance(found, Failure):
                self._refuse(node, found)
                continue
            taken.add(found)
            self._client_of[node] = found
            self._refused.pop(node, None)
            self._watcher.joined(found, node)

    def _place(self, answer: Message | None, taken: Set[str]) -> str | Failure:
        """Return which client a node is, or why it is none."""
        if answer is None:
            return Failure(FailureKind.SILENT, "it gave no answer")
        if answer.has_error():
            return failure_in(answer)
        record = answer.content.metric_records.get("join", MetricRecord())
        partition = record.get("partition")
        if not isinstance(partition, int) or not 0 <= partition < self._partitions:
            last = self._partitions - 1
            words = f"it says partition {partition!r}, which is not in 0 .. {last}"
            return Failure(FailureKind.PLACE, words)
        client = f"client-{partition}"
        if client in taken:
            words = f"partition {partition} is served by another node already"
            return Failure(FailureKind.PLACE, words)
        return client

    def _refuse(self, node: int, reason: Failure) -> None:
        if self._refused.get(node) != reason:
            self._watcher.refused(node, reason)
        self._refused[node] = reason

    def _tell_refusals(self) -> None:
        """Tell each reason once, with the nodes that gave it."""
        untold: dict[Failure, list[int]] = {}
        for node, reason in self._refused.items():
            if self._told.get(node) != reason:
                untold.setdefault(reason, []).append(node)
                self._told[node] = reason
        for reason, nodes in untold.items():
            who = f"node {nodes[0]} is" if len(nodes) == 1 else f"{len(nodes)} nodes are"
            self._on_refusal(f"{who} left out: {reason}")
