"""Who takes part in a round, by the public seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.serverapp.grid import Grid

from fedveil.privacy.randomness import SecureGenerator
from fedveil.strategies.grid_view import GridView

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


class CohortGrid(GridView):
    """A view of a grid that shows a cohort's nodes only, in a fixed order.

    Flower's strategies draw nodes with a generator of their own; shown the cohort alone, they
    take all of it.
    """

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        super().__init__(grid)
        self._nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Return the cohort's nodes."""
        return list(self._nodes)
