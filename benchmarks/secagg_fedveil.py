"""Whole sessions of Fedveil's secure aggregation, all parties in this process; for `secagg.py`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from ledger import Ledger
from numpy.typing import NDArray

from fedveil.secagg.client_round import ClientRound
from fedveil.secagg.client_session import ClientSession
from fedveil.secagg.encoding import DecodedSum
from fedveil.secagg.floors import Floors
from fedveil.secagg.identity import Identity, Roster, verifies
from fedveil.secagg.messages import Settings
from fedveil.secagg.server_session import ServerSession

__all__ = ["Parties"]

_CONTENT = bytes(32)


class Parties:
    """A server and its clients, who talk in bytes alone.

    Their CPU time stands on the ledger's accounts "server", "client" and, for those that drop out,
    "gone". Drawing the identity keys is on none: that is done once in a client's life.

    Parameters
    ----------
    updates : sequence of ndarray
        One a client, shape (d,), float32.
    dropped : int
        How many of the first clients vanish before they send the masked vector.
    slots : int
        Rounds of the set-up.
    is_simulation : bool
        Whether one party may profit from what this process has verified for another.
    """

    def __init__(
        self,
        updates: Sequence[NDArray[np.float32]],
        dropped: int = 0,
        *,
        slots: int = 1,
        is_simulation: bool = True,
    ) -> None:
        identities = [Identity.generate(f"client-{i:04d}") for i in range(len(updates))]
        dimension = len(updates[0])
        self.ledger = Ledger()
        self._is_simulation = is_simulation
        self.tail_bytes = 0
        self._identities = {identity.name: identity for identity in identities}
        self._gone = {identity.name for identity in identities[:dropped]}
        self._roster = Roster({identity.name: identity.public_key for identity in identities})
        self._memories: dict[str, dict[str, bytes]] = {name: {} for name in self._identities}
        self._updates = dict(zip(self._identities, updates, strict=True))
        self._base = [np.zeros(dimension, np.float32)]
        self.settings = Settings(
            run="benchmark",
            dimension=dimension,
            clip_norm=1.01 * max(float(np.linalg.norm(update)) for update in updates),
            max_weight=1.0,
            max_clients=len(updates),
            ring_bits=32,
            slots=slots,
        )
        self.server = ServerSession(self.settings)

    def set_up(self) -> None:
        """Exchange keys and shares."""
        server = self.server
        with self.ledger.charge("server"):
            request = server.request()
            for name in self._identities:
                with self._charge(name):
                    advertisement = self._session(name).advertise(request)
                server.add_advertisement(advertisement)
            for name, keys in server.close_advertising().items():
                with self._charge(name):
                    shares = self._session(name).share(keys)
                server.add_shares(name, shares)

    def sum_up(self, round_: int = 1) -> DecodedSum:
        """Run one round."""
        with self.ledger.charge("server"):
            opened = self.server.open_round(round_, 1, self.server.ready, _CONTENT)
            for name, request in opened.requests().items():
                if name not in self._gone:
                    with self._charge(name):
                        reply, vector = self.mask(name, self.begin(name, request))
                    opened.add_input(name, reply, vector)
                    tail = len(reply) + len(vector) - 4 * self.settings.dimension
                    self.tail_bytes = max(self.tail_bytes, tail)
            for name, request in opened.close_input().items():
                with self._charge(name):
                    answer = self._session(name).resume().confirm(request)
                opened.add_confirmation(name, answer)
            for name, request in opened.close_confirm().items():
                with self._charge(name):
                    answer = self._session(name).resume().unmask(request)
                opened.add_unmasking(name, answer)
            return opened.finish([(self.settings.dimension,)])

    def begin(self, name: str, request: bytes) -> ClientRound:
        """Let a client accept an input request."""
        return self._session(name).begin(request, _CONTENT)

    def mask(self, name: str, round_: ClientRound) -> tuple[bytes, bytes]:
        """Let a client mask its update, with one figure beside it."""
        return round_.mask([self._updates[name]], self._base, 1.0, {"loss": 1.5})

    def excess(self, summed: DecodedSum) -> float:
        """Return the error of a sum's mean, as a share of what rounding may do."""
        kept = [update for name, update in self._updates.items() if name not in self._gone]
        bound = self.settings.encoding().error_bound(summed.clients, summed.weight)
        return float(np.abs(summed.mean[0] - mean_of(kept)).max()) / bound

    def _session(self, name: str) -> ClientSession:
        return ClientSession(self._identities[name], self._roster, Floors(), self._memories[name])

    def _charge(self, name: str) -> AbstractContextManager[None]:
        if not self._is_simulation:
            verifies.cache_clear()
        return self.ledger.charge("gone" if name in self._gone else "client")


def mean_of(updates: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the plain mean."""
    total = np.zeros(len(updates[0]))
    for update in updates:
        total += update
    return total / len(updates)
