"""Who takes part in a round, by the public seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp.grid import Grid

from fedveil.flower import Run
from fedveil.privacy.randomness import SecureGenerator

__all__ = ["CohortGrid", "choose_cohort"]


def choose_cohort(
    clients: Iterable[str], *, fraction: float, at_least: int, seed: int, round_: int
) -> list[str]:
    """Return a round's cohort, sorted.

    The same seed, round and clients give the same cohort, in whatever order they come. The
    server knows who takes part, so this sampling amplifies no privacy and need not be secret.
    """
    known = sorted(clients)
    size = min(len(known), max(at_least, round(fraction * len(known))))
    order = SecureGenerator.from_seed("cohort", seed, round_).permutation(len(known))
    return sorted(known[index] for index in order[:size])


class CohortGrid(Grid):
    """A view of a grid that shows a cohort's nodes only, in a fixed order.

    Flower's strategies draw nodes with a generator of their own; shown the cohort alone, they
    take all of it.
    """

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid = grid
        self._nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Return the cohort's nodes."""
        return list(self._nodes)

    def set_run(self, run: Run) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Pass on."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Pass on."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pass on."""
        return self._grid.send_and_receive(messages, timeout=timeout)
