"""What a client insists on, whatever the server asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedveil.secagg.errors import FloorError, SecAggError
from fedveil.secagg.messages import Settings
from fedveil.secagg.parameters import COMPLETE_UP_TO, SIGMA, Plan, breach_bound, side_floor

__all__ = ["Floors"]


@dataclass(frozen=True)
class Floors:
    """A client's own bounds; below them it refuses, before it trains.

    Parameters
    ----------
    min_clients : int
        Least number of clients in a sum, itself included.
    min_bits : int
        Least bits of one client's coordinate.
    max_clip_norm : float
        Largest L2 norm of an update that it hands in.
    corrupt_share : float
        Share of the other clients that it takes to collude with the server, where everybody is
        everybody's neighbour.
    sparse_corrupt_share : float
        The same above `COMPLETE_UP_TO` clients.

    Raises
    ------
    FloorError
        If a bound makes no sense.
    """

    min_clients: int = 2
    min_bits: int = 8
    max_clip_norm: float = math.inf
    corrupt_share: float = 1.0 / 3.0
    sparse_corrupt_share: float = 0.05

    def __post_init__(self) -> None:
        if self.min_clients < 2:
            raise FloorError(f"min_clients = {self.min_clients} must be at least 2")
        for name in ("corrupt_share", "sparse_corrupt_share"):
            if not 0.0 <= getattr(self, name) < 0.5:
                raise FloorError(f"{name} = {getattr(self, name):g} must be in [0, 0.5)")

    def check_settings(self, settings: Settings) -> None:
        """Refuse settings below the floors.

        Raises
        ------
        FloorError
            Which one, with the numbers.
        """
        bits = settings.encoding().value_bits
        if bits < self.min_bits:
            raise FloorError(f"the server asks for {bits} bits, this client for {self.min_bits}")
        if settings.clip_norm > self.max_clip_norm:
            raise FloorError(
                f"the server's clip norm is {settings.clip_norm:g}, this client allows "
                f"{self.max_clip_norm:g}"
            )
        if settings.max_clients < self.min_clients:
            raise FloorError(
                f"the server plans for {settings.max_clients} clients, this client insists on "
                f"{self.min_clients}"
            )

    def colluding(self, plan: Plan) -> int:
        """Return how many of a plan's clients this client takes to collude with the server."""
        if plan.is_complete:
            # The share is of a whole number of clients, but for the error of a double.
            return int(self.corrupt_share * (plan.clients - 1) + 1e-9)
        return math.ceil(self.sparse_corrupt_share * plan.clients)

    def side_floor(self, plan: Plan) -> int:
        """Return how many survivors this client wants on each side of it on the ring.

        On the complete graph, which has no sides, 0.

        Raises
        ------
        FloorError
            If no number of them would make the plan safe.
        """
        if plan.is_complete:
            return 0
        try:
            return side_floor(
                plan.clients, plan.neighbours, plan.threshold, self.sparse_corrupt_share
            )
        except SecAggError as error:
            raise FloorError(str(error)) from None

    def check_plan(self, plan: Plan) -> None:
        """Refuse a plan below the floors.

        Raises
        ------
        FloorError
            Which one, with the numbers.
        """
        if plan.quorum < self.min_clients:
            raise FloorError(
                f"the server would unmask a sum of {plan.quorum} clients, this client insists on "
                f"{self.min_clients}"
            )
        colluding = self.colluding(plan)
        if plan.is_complete:
            is_safe = 2 * plan.threshold - plan.neighbours > colluding
        else:
            if plan.clients <= COMPLETE_UP_TO and self.sparse_corrupt_share:
                raise FloorError(
                    f"the server connects {plan.clients} clients with {plan.neighbours} neighbours "
                    f"each; up to {COMPLETE_UP_TO} clients this one insists on all"
                )
            bound = breach_bound(
                plan.clients, plan.neighbours, plan.threshold, self.sparse_corrupt_share
            )
            is_safe = bound < 2.0**-SIGMA
        if not is_safe:
            raise FloorError(
                f"the server's threshold of {plan.threshold} with {plan.neighbours} neighbours "
                f"does not bear {colluding} colluding clients of {plan.clients}"
            )
        if 2 * plan.quorum <= plan.clients + colluding:
            raise FloorError(
                f"the server's quorum of {plan.quorum} does not bear {colluding} colluding "
                f"clients of {plan.clients}"
            )
