"""Whole sessions of secure aggregation in one process, where anybody may drop out at any stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fedveil.secagg.client_session import ClientSession
from fedveil.secagg.encoding import DecodedSum, Encoding
from fedveil.secagg.errors import SecAggError
from fedveil.secagg.floors import Floors
from fedveil.secagg.identity import Identity, Roster
from fedveil.secagg.messages import UPDATE, Settings
from fedveil.secagg.parameters import Plan, plan_for
from fedveil.secagg.server_round import ServerRound
from fedveil.secagg.server_session import ServerSession

ANY_PLAN = Floors(corrupt_share=0.0, sparse_corrupt_share=0.0)
"""Floors of clients that take every plan that does not contradict itself."""

CONTENT = bytes(32)

Arrays = Sequence[NDArray[np.floating]]


class Stage(IntEnum):
    """Which answer of a client does not come, and none after it."""

    ADVERTISE = 0
    SHARE = 1
    INPUT = 2
    CONFIRM = 3
    UNMASK = 4


Drops = Mapping[str, Stage]
"""Who drops out, and before which of its answers; whoever is not in it never does."""


@dataclass(frozen=True)
class Contribution:
    """What a client puts into a round."""

    update: Arrays
    weight: float = 1.0
    figures: Mapping[str, float] | None = None


class Party:
    """A server and `clients` clients named c000, c001, ...; each client is made anew a message.

    Parameters
    ----------
    clients : int
        How many there are.
    dimension, clip_norm, max_weight, max_clients, ring_bits, slots
        As in `Settings`; `max_clients` is `clients` by default.
    plan : callable
        Numbers of the session.
    floors : Floors
        What every client insists on.
    is_tolerant : bool
        Whether a client that refuses counts as one that drops out, as in a deployment; otherwise
        what it raises ends the play.
    """

    def __init__(
        self,
        clients: int,
        *,
        dimension: int = 5,
        clip_norm: float = 100.0,
        max_weight: float = 1.0,
        max_clients: int | None = None,
        ring_bits: int = 32,
        slots: int = 1,
        plan: Callable[[int], Plan] = plan_for,
        floors: Floors | None = None,
        is_tolerant: bool = False,
    ) -> None:
        self.is_tolerant = is_tolerant
        self.names = tuple(f"c{i:03d}" for i in range(clients))
        self.identities = {name: Identity.generate(name) for name in self.names}
        self.roster = Roster({name: i.public_key for name, i in self.identities.items()})
        self.floors = floors or Floors()
        self.stores: dict[str, dict[str, bytes]] = {name: {} for name in self.names}
        self.settings = Settings(
            run="run",
            dimension=dimension,
            clip_norm=clip_norm,
            max_weight=max_weight,
            max_clients=max_clients or max(clients, 2),
            ring_bits=ring_bits,
            slots=slots,
        )
        self.server = ServerSession(self.settings, plan, self.roster)

    def client(self, name: str) -> ClientSession:
        """Return a client as a new process finds it: from its store alone."""
        return ClientSession(self.identities[name], self.roster, self.floors, self.stores[name])

    def set_up(self, drops: Drops | None = None) -> Party:
        """Play both exchanges of the set-up, and return the party."""
        drops = drops or {}
        request = self.server.request()
        for name in self.names:
            if _answers(drops, name, Stage.ADVERTISE):
                self.server.add_advertisement(self.client(name).advertise(request))
        for name, keys in self.server.close_advertising().items():
            if _answers(drops, name, Stage.SHARE):
                self.server.add_shares(name, self.client(name).share(keys))
        return self

    def open(
        self,
        round_: int = 1,
        attempt: int = 1,
        *,
        participants: Sequence[str] | None = None,
        content: bytes = CONTENT,
        purpose: str = UPDATE,
        weight_key: str = "",
    ) -> Play:
        """Open a round with the next slot; play it with the steps of `Play`."""
        chosen = self.server.ready if participants is None else participants
        round_on_server = self.server.open_round(
            round_, attempt, chosen, content, purpose=purpose, weight_key=weight_key
        )
        return Play(self, round_on_server, content)

    def play(
        self,
        contributions: Mapping[str, Contribution],
        drops: Drops | None = None,
        lost: Drops | None = None,
        *,
        round_: int = 1,
        attempt: int = 1,
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> DecodedSum:
        """Open and play a whole round; raises what the server or an honest client raises.

        Parameters
        ----------
        contributions : Mapping of str to Contribution
            What each participant hands in.
        drops : Mapping of str to Stage, optional
            Who never computes an answer, from which stage on.
        lost : Mapping of str to Stage, optional
            Whose answer of that stage is computed and does not arrive; it drops out after that.
        """
        play = self.open(round_, attempt)
        play.input(contributions, drops, lost)
        play.confirm(drops, lost)
        play.unmask(drops, lost)
        return play.finish(shapes)


class Play:
    """One round between the server and the clients, step by step."""

    def __init__(self, party: Party, server: ServerRound, content: bytes) -> None:
        self.party = party
        self.server = server
        self.content = content
        self.vectors: dict[str, bytes] = {}
        """The masked vectors that were computed, arrived or not."""
        self.answers: dict[tuple[Stage, str], bytes] = {}
        """The answers that were computed, arrived or not."""
        self.refusals: dict[str, SecAggError] = {}
        """What clients raised, where the party is tolerant."""

    def input(
        self,
        contributions: Mapping[str, Contribution],
        drops: Drops | None = None,
        lost: Drops | None = None,
    ) -> None:
        """Let the participants mask their vectors."""
        for name, request in self.server.requests().items():
            if not _computes(drops, lost, name, Stage.INPUT):
                continue
            one = contributions[name]
            base = [np.zeros_like(array) for array in one.update]
            with self._refusal_of(name):
                round_ = self.party.client(name).begin(request, self.content)
                reply, vector = round_.mask(one.update, base, one.weight, one.figures or {})
            if name in self.refusals:
                continue
            self.answers[Stage.INPUT, name], self.vectors[name] = reply, vector
            if _answers(lost, name, Stage.INPUT):
                self.server.add_input(name, reply, vector)

    def confirm(self, drops: Drops | None = None, lost: Drops | None = None) -> None:
        """Fix the survivors and let them confirm."""
        for name, request in self.server.close_input().items():
            if not _computes(drops, lost, name, Stage.CONFIRM):
                continue
            with self._refusal_of(name):
                round_ = self.party.client(name).resume()
                reply = round_.confirm(request)
            if name in self.refusals:
                continue
            self.answers[Stage.CONFIRM, name] = reply
            if _answers(lost, name, Stage.CONFIRM):
                self.server.add_confirmation(name, reply)

    def unmask(self, drops: Drops | None = None, lost: Drops | None = None) -> None:
        """Let those who confirmed reveal their shares."""
        for name, request in self.server.close_confirm().items():
            if not _computes(drops, lost, name, Stage.UNMASK):
                continue
            with self._refusal_of(name):
                reply = self.party.client(name).resume().unmask(request)
            if name in self.refusals:
                continue
            self.answers[Stage.UNMASK, name] = reply
            if _answers(lost, name, Stage.UNMASK):
                self.server.add_unmasking(name, reply)

    def finish(self, shapes: Sequence[tuple[int, ...]] | None = None) -> DecodedSum:
        """Return the sum; by default as one flat array."""
        dimension = self.server.header.purpose == UPDATE and self.party.settings.dimension
        return self.server.finish([(int(dimension),)] if shapes is None else shapes)

    @contextmanager
    def _refusal_of(self, name: str) -> Iterator[None]:
        try:
            yield
        except SecAggError as error:
            if not self.party.is_tolerant:
                raise
            self.refusals[name] = error


def plan_of(neighbours: int, threshold: int, quorum: int) -> Callable[[int], Plan]:
    """Return a function that gives this plan for any number of clients."""
    return lambda clients: Plan(clients, neighbours, threshold, quorum)


def simple_contributions(
    party: Party, figures: Mapping[str, float] | None = None
) -> dict[str, Contribution]:
    """Return one for each client: small updates, each unlike any other."""
    dimension = party.settings.dimension
    return {
        name: Contribution(
            [np.linspace(-1.0, 1.0, dimension, dtype=np.float32) * (i + 1) / len(party.names)],
            figures=dict(figures or {}),
        )
        for i, name in enumerate(party.names)
    }


def words_of(encoding: Encoding, one: Contribution) -> tuple[NDArray, NDArray]:  # type: ignore[type-arg]  # of 16 or 32 bits
    """Return a contribution's words; rounding is random, so each call gives others."""
    _, vector, tail = encoding.empty()
    base = [np.zeros_like(array) for array in one.update]
    encoding.encode(one.update, base, one.weight, one.figures or {}, vector, tail)
    return vector, tail


def _answers(drops: Drops | None, name: str, stage: Stage) -> bool:
    return drops is None or name not in drops or stage < drops[name]


def _computes(drops: Drops | None, lost: Drops | None, name: str, stage: Stage) -> bool:
    return _answers(drops, name, stage) and (not lost or name not in lost or stage <= lost[name])
