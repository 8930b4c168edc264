"""How many neighbours a client needs, and how many of them give a secret away.

For every client i with k neighbours, c_i of them colluding with the server: the server gets both
secrets of i, and with them its update, only if colluders and honest neighbours together give t
shares of each. An honest neighbour gives one kind only, so that takes 2 (t - c_i) <= k - c_i. The
update is safe when c_i < 2 t - k.

On a ring the server must not cut off an arc either: with no honest survivor among the k / 2 places
before it nor among the k / 2 after it, no mask would tie the arc to the rest. Every client insists
on s survivors among its neighbours on each side, so that takes s colluders twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, comb

from fedveil.secagg.errors import SecAggError

__all__ = [
    "COMPLETE_UP_TO",
    "SIGMA",
    "Plan",
    "breach_bound",
    "colluders_borne",
    "plan_for",
    "side_floor",
]

COMPLETE_UP_TO = 100
"""Clients up to which everybody is everybody's neighbour."""

SIGMA = 40
"""Statistical security of the sparse graph, in bits."""

_ETA = 20


@dataclass(frozen=True)
class Plan:
    """Who is connected with how many, and which numbers give a secret.

    Parameters
    ----------
    clients : int
        Clients of the set-up, n.
    neighbours : int
        Neighbours of each, k; n - 1 is the complete graph, else k is even.
    threshold : int
        Shares that give a secret, t.
    quorum : int
        Least number of survivors, and of signatures over them, before anything is unmasked.

    Raises
    ------
    SecAggError
        If the numbers contradict each other.
    """

    clients: int
    neighbours: int
    threshold: int
    quorum: int

    def __post_init__(self) -> None:
        if not 2 <= self.clients < 2**31:
            raise SecAggError(f"a sum needs at least 2 clients, not {self.clients}")
        if not 1 <= self.neighbours < self.clients:
            raise SecAggError(f"{self.neighbours} neighbours among {self.clients} clients")
        if not self.is_complete and self.neighbours % 2:
            raise SecAggError(f"a ring needs an even number of neighbours, not {self.neighbours}")
        if not self.neighbours // 2 < self.threshold <= self.neighbours:
            raise SecAggError(
                f"the threshold must be in {self.neighbours // 2 + 1} .. {self.neighbours} for "
                f"{self.neighbours} neighbours, not {self.threshold}"
            )
        if not self.clients // 2 < self.quorum <= self.clients:
            raise SecAggError(
                f"the quorum must be in {self.clients // 2 + 1} .. {self.clients} for "
                f"{self.clients} clients, not {self.quorum}"
            )

    @property
    def is_complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.neighbours == self.clients - 1


def plan_for(clients: int, *, corrupt: float = 0.05, dropped: float = 0.05) -> Plan:
    """Return the cheapest plan that is safe and survives drops.

    Up to `COMPLETE_UP_TO` clients: the complete graph, safe with certainty against a server that
    colludes with fewer than a third of the clients (Bonawitz et al. 2017, section 6). Above: the
    least even k, and t with it, for which, by the union bound over all clients, some client is
    unsafe with probability below 2^-40 and some secret is lost with probability below 2^-20,
    after Bell et al. 2020, section 3.

    Parameters
    ----------
    clients : int
        Clients of the set-up.
    corrupt, dropped : float
        Shares of the clients that collude, and that drop out, above `COMPLETE_UP_TO`.

    Raises
    ------
    SecAggError
        If there are fewer than two clients, or no plan bears so many corrupt or dropped.
    """
    if clients <= COMPLETE_UP_TO:
        colluding = colluders_borne(clients)
        neighbours = clients - 1
        return Plan(
            clients=clients,
            neighbours=neighbours,
            threshold=(neighbours + colluding) // 2 + 1,
            quorum=(clients + colluding) // 2 + 1,
        )
    neighbours, threshold = _sparse(clients, corrupt, dropped)
    return Plan(
        clients=clients,
        neighbours=neighbours,
        threshold=threshold,
        quorum=(clients + ceil(corrupt * clients)) // 2 + 1,
    )


@lru_cache(maxsize=64)
def _sparse(clients: int, corrupt: float, dropped: float) -> tuple[int, int]:
    for neighbours in range(4, clients - 1, 2):
        # Safety grows with t and survival falls, so the least safe t is the one to look at.
        low, high = neighbours // 2 + 1, neighbours + 1
        while low < high:
            middle = (low + high) // 2
            if breach_bound(clients, neighbours, middle, corrupt) < 2.0**-SIGMA:
                high = middle
            else:
                low = middle + 1
        if low <= neighbours and _loss_bound(clients, neighbours, low, dropped) < 2.0**-_ETA:
            try:
                side = side_floor(clients, neighbours, low, corrupt)
            except SecAggError:
                continue
            if 2.0 * _loss_bound(clients, neighbours // 2, side, dropped) < 2.0**-_ETA:
                return neighbours, low
    raise SecAggError(
        f"no number of neighbours is safe for {clients} clients with a share of {corrupt:g} "
        f"corrupt and {dropped:g} dropped; lower secagg.corrupt_share or secagg.dropped_share"
    )


def breach_bound(clients: int, neighbours: int, threshold: int, corrupt: float) -> float:
    """Bound the probability that some client has 2 t - k or more colluding neighbours.

    Parameters
    ----------
    clients, neighbours, threshold : int
        n, k and t.
    corrupt : float
        Share of the clients that collude.

    Returns
    -------
    float
        n times the upper tail of the hypergeometric distribution.
    """
    bad = ceil(corrupt * clients)
    least = max(0, 2 * threshold - neighbours)
    return clients * _hypergeometric(clients - 1, bad, neighbours, least, neighbours)


def side_floor(clients: int, neighbours: int, threshold: int, corrupt: float) -> int:
    """Return how many survivors a client on the ring insists on, on each side.

    Parameters
    ----------
    clients, neighbours, threshold : int
        n, k and t.
    corrupt : float
        Share of the clients that collude.

    Returns
    -------
    int
        The least s, at least t - k / 2, for which, by the union bound over all pairs of places on
        the ring, s colluders twice among k / 2 have a probability below 2^-40.

    Raises
    ------
    SecAggError
        If not even k / 2 survivors on each side would do.
    """
    bad, half = ceil(corrupt * clients), neighbours // 2
    for floor in range(threshold - half, half + 1):
        once = _hypergeometric(clients - 1, bad, half, floor, half)
        if comb(clients, 2) * once * once < 2.0**-SIGMA:
            return floor
    raise SecAggError(
        f"{neighbours} neighbours on a ring of {clients} clients can be cut off by {bad} colluders"
    )


def _loss_bound(clients: int, neighbours: int, threshold: int, dropped: float) -> float:
    """Bound the probability that some client has fewer than t neighbours that survive."""
    alive = clients - ceil(dropped * clients)
    return clients * _hypergeometric(clients - 1, alive, neighbours, 0, threshold - 1)


def _hypergeometric(total: int, marked: int, drawn: int, least: int, most: int) -> float:
    """Return the probability of `least` .. `most` marked ones among those drawn, exactly."""
    ways = sum(
        comb(marked, x) * comb(total - marked, drawn - x)
        for x in range(max(least, drawn - (total - marked)), min(most, marked, drawn) + 1)
    )
    return ways / comb(total, drawn)


def colluders_borne(clients: int) -> int:
    """Return how many colluding clients the complete graph bears with certainty."""
    return (clients - 1) // 3
