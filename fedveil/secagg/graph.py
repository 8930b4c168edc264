"""Who shares masks with whom: the complete graph, or a ring in an order nobody chooses."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedveil.secagg.parameters import Plan

__all__ = ["Graph", "graph_for"]

_COST = 2**14
"""Scrypt's cost: a server that tries cohorts or keys to place a client pays 16 MiB a try."""


class Graph:
    """Neighbours in a k-regular Harary graph over a shuffled ring (Bell et al. 2020, section 3.1).

    Parameters
    ----------
    order : tuple of int
        The clients, as they stand on the ring.
    neighbours : int
        Neighbours of each; one less than there are clients is the complete graph.
    """

    def __init__(self, order: tuple[int, ...], neighbours: int) -> None:
        self._order = order
        self._neighbours = neighbours
        self._position = {client: position for position, client in enumerate(order)}

    def neighbours(self, client: int) -> tuple[int, ...]:
        """Return a client's neighbours, ascending."""
        if self._neighbours == len(self._order) - 1:
            return tuple(sorted(other for other in self._order if other != client))
        position, half = self._position[client], self._neighbours // 2
        steps = (*range(-half, 0), *range(1, half + 1))
        return tuple(sorted(self._order[(position + s) % len(self._order)] for s in steps))

    def side(self, client: int, neighbour: int) -> int:
        """Return on which side of a client on the ring a neighbour is: 0 before it, 1 after it."""
        ahead = (self._position[neighbour] - self._position[client]) % len(self._order)
        return int(ahead <= self._neighbours // 2)


@lru_cache(maxsize=4)
def graph_for(plan: Plan, transcript: bytes) -> Graph:
    """Return the graph of a set-up.

    Every client computes it: the order on the ring hangs on the fresh keys of all of them, by way
    of a function that is slow to try, so that neither the server nor a client can pick whose
    neighbour it is.

    Parameters
    ----------
    plan : Plan
        The numbers.
    transcript : bytes
        Hash of everybody's signed keys.
    """
    order = range(plan.clients)
    if plan.is_complete:
        return Graph(tuple(order), plan.neighbours)
    seed = Scrypt(salt=b"fedveil/secagg/1/graph", length=32, n=_COST, r=8, p=1).derive(transcript)

    def place(client: int) -> bytes:
        return hashlib.sha256(seed + client.to_bytes(4, "big")).digest()

    return Graph(tuple(sorted(order, key=place)), plan.neighbours)
