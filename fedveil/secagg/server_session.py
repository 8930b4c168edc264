"""The server's side of a set-up: who takes part, with which keys and whose shares."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from fedveil.secagg.errors import BelowThresholdError, ProtocolError, RosterError
from fedveil.secagg.graph import Graph, graph_for
from fedveil.secagg.identity import Roster, verifies
from fedveil.secagg.messages import (
    UPDATE,
    Advertisement,
    KeysRequest,
    Member,
    Packet,
    Parcel,
    RoundHeader,
    Settings,
    SetupRequest,
    SharesReply,
)
from fedveil.secagg.parameters import Plan, plan_for
from fedveil.secagg.server_round import ServerRound
from fedveil.secagg.transcript import DIGEST_BYTES, refuse_low_order

__all__ = ["ServerSession"]


class ServerSession:
    """The state machine of the server, for one set-up and its rounds.

    Nothing that a client sends is trusted further than its signature; what the server checks here
    keeps one bad client from spoiling the round for the others. Privacy rests on what the clients
    check.

    Parameters
    ----------
    settings : Settings
        What is summed, and how.
    plan : callable
        Returns the numbers for a number of clients.
    roster : Roster, optional
        Who may take part; by default whoever shows a name and a key of its own.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Callable[[int], Plan] = plan_for,
        roster: Roster | None = None,
    ) -> None:
        self.settings = settings
        self._plan_for = plan
        self._roster = roster
        self._request = SetupRequest(settings, secrets.token_bytes(32))
        self._advertised: dict[str, Advertisement] = {}
        self._identities: dict[bytes, str] = {}
        self._owners: dict[bytes, str] = {}
        self._keys_request: KeysRequest | None = None
        self._graph: Graph | None = None
        self._seed_commitments: dict[int, tuple[bytes, ...]] = {}
        self._packets: dict[tuple[int, int], Packet] = {}
        self._delivered: set[int] = set()
        self._used = 0

    def request(self) -> bytes:
        """Return the `SetupRequest` for every client."""
        return self._request.encode()

    def add_advertisement(self, data: bytes) -> str:
        """Take a client's `Advertisement` and return its name.

        Raises
        ------
        SecAggError
            If it is malformed, late, not rightly signed, or clashes with another.
        """
        advertisement = Advertisement.decode(data)
        name = advertisement.name
        if self._keys_request is not None:
            raise ProtocolError(f"the keys of {name} come after the set-up was closed")
        if len(self._advertised) == self.settings.max_clients:
            raise ProtocolError(f"there is room for {self.settings.max_clients} clients only")
        if self._roster is not None:
            self._roster.check(name, advertisement.identity_key)
        if advertisement.setup_id != self._request.setup_id or not verifies(
            advertisement.identity_key, advertisement.signature, advertisement.signed_bytes
        ):
            raise ProtocolError(f"the signature over the keys of {name} is wrong")
        keys = {advertisement.channel_key, *advertisement.mask_keys}
        if len(keys) != 1 + self.settings.slots:
            raise ProtocolError(
                f"{name} shows {len(keys)} different keys, not {1 + self.settings.slots}"
            )
        # One of low order would stop every other client.
        refuse_low_order(keys)
        identity = advertisement.identity_key
        other = name if name in self._advertised else self._identities.get(identity)
        if other is not None:
            raise RosterError(
                f"{name} and {other} have the same name or the same identity key; every client "
                "needs its own"
            )
        other = next((self._owners[key] for key in keys if key in self._owners), None)
        if other is not None:
            raise ProtocolError(f"{name} shows keys of {other}")
        self._advertised[name] = advertisement
        self._identities[identity] = name
        self._owners.update(dict.fromkeys(keys, name))
        return name

    def close_advertising(self) -> dict[str, bytes]:
        """Fix the members, and return the `KeysRequest` for each.

        Raises
        ------
        BelowThresholdError
            If fewer than two clients advertised.
        """
        names = sorted(self._advertised)
        if len(names) < 2:
            raise BelowThresholdError(f"{len(names)} clients can be summed, 2 are needed")
        plan = self._plan_for(len(names))
        members = tuple(Member(name, self._advertised[name].digest) for name in names)
        whole = KeysRequest(
            setup_id=self._request.setup_id,
            neighbours=plan.neighbours,
            threshold=plan.threshold,
            quorum=plan.quorum,
            members=members,
            advertisements=(),
        )
        self._keys_request = whole
        self._graph = graph_for(plan, whole.transcript)
        advertised = [self._advertised[name] for name in names]
        return {
            name: replace(
                whole,
                advertisements=tuple(advertised[i] for i in self._graph.neighbours(index)),
            ).encode()
            for index, name in enumerate(names)
        }

    def add_shares(self, name: str, data: bytes) -> None:
        """Take a client's `SharesReply`.

        Raises
        ------
        SecAggError
            If it is malformed, of another set-up, or not for the client's neighbours.
        """
        reply = SharesReply.decode(data)
        index = self.index(name)
        if index in self._seed_commitments or self._used:
            raise ProtocolError(f"the shares of {name} come twice, or too late")
        slots = self.settings.slots
        holders = tuple(packet.holder for packet in reply.packets)
        if (
            reply.transcript != self.transcript
            or holders != self.graph.neighbours(index)
            or len(reply.seed_commitments) != slots
            or any(len(p.commitments) != 2 * slots * DIGEST_BYTES for p in reply.packets)
        ):
            raise ProtocolError(f"the shares of {name} do not fit the set-up")
        self._seed_commitments[index] = reply.seed_commitments
        self._packets.update({(index, packet.holder): packet for packet in reply.packets})

    @property
    def ready(self) -> tuple[str, ...]:
        """Who has dealt shares, and can take part in rounds."""
        return tuple(self.names[index] for index in sorted(self._seed_commitments))

    @property
    def slots_left(self) -> int:
        """Rounds and attempts that this set-up still serves."""
        return self.settings.slots - self._used

    def open_round(
        self,
        round_: int,
        attempt: int,
        participants: Sequence[str],
        content: bytes,
        *,
        purpose: str = UPDATE,
        weight_key: str = "",
    ) -> ServerRound:
        """Begin a round with the next slot.

        Parameters
        ----------
        round_, attempt : int
            Which round, and which try at it.
        participants : sequence of str
            Names, out of `ready`.
        content : bytes
            Hash of what goes with the requests.
        purpose, weight_key : str
            As in `RoundHeader`.

        Raises
        ------
        BelowThresholdError
            If the participants are fewer than the quorum.
        ProtocolError
            If no slot is left, or a participant has dealt no shares.
        """
        if not self.slots_left:
            raise ProtocolError(f"the set-up is used up after {self.settings.slots} rounds")
        if set(participants) - set(self.ready):
            raise ProtocolError("a participant has dealt no shares")
        if len(participants) < self.plan.quorum:
            raise BelowThresholdError(
                f"{len(participants)} clients can take part, {self.plan.quorum} are needed"
            )
        self._used += 1
        header = RoundHeader(
            transcript=self.transcript,
            slot=self._used,
            round=round_,
            attempt=attempt,
            purpose=purpose,
            weight_key=weight_key,
            content=content,
            participants=tuple(sorted(self.index(name) for name in participants)),
        )
        return ServerRound(self, header)

    @property
    def keys_request(self) -> KeysRequest:
        """The members and numbers, once fixed."""
        if self._keys_request is None:
            raise ProtocolError("the members are not fixed yet")
        return self._keys_request

    @property
    def plan(self) -> Plan:
        """The numbers, once fixed."""
        return self.keys_request.plan

    @property
    def transcript(self) -> bytes:
        """The set-up's transcript, once fixed."""
        return self.keys_request.transcript

    @property
    def graph(self) -> Graph:
        """Who is whose neighbour, once fixed."""
        if self._graph is None:
            raise ProtocolError("the members are not fixed yet")
        return self._graph

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The members, by index."""
        return tuple(member.name for member in self.keys_request.members)

    def index(self, name: str) -> int:
        """Return a member's index.

        Raises
        ------
        ProtocolError
            If it is no member.
        """
        try:
            return self._indices[name]
        except KeyError:
            raise ProtocolError(f"{name} is no member of the set-up") from None

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def identity_key(self, index: int) -> bytes:
        """Return a member's identity key."""
        return self._advertised[self.names[index]].identity_key

    def mask_key(self, index: int, slot: int) -> bytes:
        """Return a member's public mask key of a slot."""
        return self._advertised[self.names[index]].mask_keys[slot - 1]

    def seed_commitment(self, index: int, slot: int) -> bytes:
        """Return what a member committed its seed of a slot to."""
        return self._seed_commitments[index][slot - 1]

    def share_commitment(self, owner: int, holder: int, slot: int, kind: str) -> bytes | None:
        """Return what `owner` committed a share for `holder` to; None where there is none."""
        packet = self._packets.get((owner, holder))
        if packet is None:
            return None
        at = (2 * (slot - 1) + (kind == "key")) * DIGEST_BYTES
        return packet.commitments[at : at + DIGEST_BYTES]

    def parcels_for(self, holder: int) -> tuple[Parcel, ...]:
        """Return the sealed shares that a client is still to be given."""
        if holder in self._delivered:
            return ()
        packets = ((i, self._packets.get((i, holder))) for i in self.graph.neighbours(holder))
        return tuple(Parcel(i, p.sealed, p.commitments) for i, p in packets if p is not None)

    def mark_delivered(self, holder: int) -> None:
        """Note that a client has its parcels."""
        self._delivered.add(holder)
