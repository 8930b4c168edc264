"""A client's side of the protocol: what it answers, and what it refuses to answer."""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping, Sequence
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedveil.secagg.client_memory import (
    Memory,
    Neighbour,
    Opening,
    Pending,
    SetupState,
    SlotSecrets,
)
from fedveil.secagg.client_round import ClientRound
from fedveil.secagg.errors import FloorError, ProtocolError
from fedveil.secagg.floors import Floors
from fedveil.secagg.graph import graph_for
from fedveil.secagg.identity import Identity, Roster, verifies
from fedveil.secagg.messages import (
    MOST_SLOTS,
    Advertisement,
    KeysRequest,
    Packet,
    SetupRequest,
    SharesReply,
)
from fedveil.secagg.parcels import commitments_to, parcel_key, seal_parcel
from fedveil.secagg.shamir import split
from fedveil.secagg.transcript import DIGEST_BYTES, agree_all, commit_to_seed

__all__ = ["ClientSession"]


class ClientSession:
    """The state machine of one client.

    Parameters
    ----------
    identity : Identity
        Who this client is.
    roster : Roster
        Whom it knows; pinned here, never taken from the server.
    floors : Floors
        What it insists on.
    store : MutableMapping of str to bytes
        Its memory between two messages.
    environment : bytes
        Hash of what the app is run with beside the messages; all neighbours must have the same.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        floors: Floors,
        store: MutableMapping[str, bytes],
        environment: bytes = bytes(DIGEST_BYTES),
    ) -> None:
        roster.check(identity.name, identity.public_key)
        self._identity = identity
        self._roster = roster
        self._floors = floors
        self._memory = Memory(store)
        self._environment = environment

    def advertise(self, data: bytes) -> bytes:
        """Answer a `SetupRequest` with an `Advertisement`; whatever was before is forgotten.

        Raises
        ------
        SecAggError
            If the request is malformed or its settings are below the floors.
        """
        request = SetupRequest.decode(data)
        settings = request.settings
        if not 1 <= settings.slots <= MOST_SLOTS:
            raise ProtocolError(
                f"a set-up for {settings.slots} rounds; 1 .. {MOST_SLOTS} are known"
            )
        self._floors.check_settings(settings)
        channel, channel_key = _fresh_pair()
        pairs = [_fresh_pair() for _ in range(settings.slots)]
        unsigned = Advertisement(
            setup_id=request.setup_id,
            name=self._identity.name,
            identity_key=self._identity.public_key,
            nonce=secrets.token_bytes(32),
            environment=self._environment,
            channel_key=channel_key,
            mask_keys=tuple(public for _, public in pairs),
            signature=bytes(64),
        )
        signature = self._identity.sign(unsigned.signed_bytes)
        advertisement = replace(unsigned, signature=signature)
        self._memory.begin(
            Pending(settings, request.setup_id, advertisement.encode(), channel),
            {
                slot: SlotSecrets(private, secrets.token_bytes(32))
                for slot, (private, _) in enumerate(pairs, start=1)
            },
        )
        return advertisement.encode()

    def share(self, data: bytes) -> bytes:
        """Answer a `KeysRequest` with a `SharesReply`.

        Raises
        ------
        SecAggError
            If the members are not in the roster, a key is not the one that its owner signed, the
            neighbours are not those that the keys give, or the numbers are below the floors.
        """
        request = KeysRequest.decode(data)
        pending = self._memory.pending
        index = self._check_members(request, pending)
        plan = request.plan
        if plan.clients > pending.settings.max_clients:
            raise ProtocolError(
                f"{plan.clients} clients where the encoding has room for "
                f"{pending.settings.max_clients}"
            )
        self._floors.check_plan(plan)
        transcript = request.transcript
        graph = graph_for(plan, transcript)
        neighbours = self._check_neighbours(request, pending, graph.neighbours(index))
        secrets_ = agree_all(pending.channel_secret, (a.channel_key for a in neighbours.values()))
        shared = dict(zip(neighbours, secrets_, strict=True))
        reply = self._deal(pending.settings.slots, plan.threshold, transcript, index, shared)
        self._memory.settle(
            SetupState(
                settings=pending.settings,
                transcript=transcript,
                threshold=plan.threshold,
                side_floor=self._floors.side_floor(plan),
                quorum=plan.quorum,
                index=index,
                names=tuple(member.name for member in request.members),
                neighbours=tuple(
                    Neighbour(i, graph.side(index, i), b"".join(a.mask_keys))
                    for i, a in neighbours.items()
                ),
            ),
            tuple(Opening(i, parcel_key(s, transcript, i, index)) for i, s in shared.items()),
        )
        return reply.encode()

    def begin(self, data: bytes, content: bytes) -> ClientRound:
        """Accept an `InputRequest`, before training.

        Parameters
        ----------
        data : bytes
            The request.
        content : bytes
            Hash of what really came with it.

        Returns
        -------
        ClientRound
            The round, whose vector is still to be masked.

        Raises
        ------
        SecAggError
            If the slot was used, the participants are too few, or what came is not what all
            others are told.
        """
        return ClientRound.begin(self._memory, self._identity, self._roster, data, content)

    def resume(self) -> ClientRound:
        """Return the round under way, to confirm or unmask it.

        Raises
        ------
        UnknownSessionError
            If there is none.
        """
        memory = self._memory
        return ClientRound(memory, self._identity, self._roster, memory.setup, memory.round)

    def _check_members(self, request: KeysRequest, pending: Pending) -> int:
        if request.setup_id != pending.setup_id:
            raise ProtocolError("keys of another set-up than the one that was advertised for")
        names = [member.name for member in request.members]
        if names != sorted(set(names)):
            raise ProtocolError("the members are not sorted, or one is named twice")
        if self._identity.name not in names:
            raise ProtocolError("the server leaves this client out of its own set-up")
        own = Advertisement.decode(pending.advertisement)
        index = names.index(self._identity.name)
        if request.members[index].digest != own.digest:
            raise ProtocolError("the server shows the others other keys than this client's own")
        unknown = next((name for name in names if name not in self._roster.keys), None)
        if unknown is not None:
            self._roster.check(unknown, b"")
        if len(names) < self._floors.min_clients:
            raise FloorError(
                f"{len(names)} clients take part, this client insists on {self._floors.min_clients}"
            )
        return index

    def _check_neighbours(
        self, request: KeysRequest, pending: Pending, around: Sequence[int]
    ) -> dict[int, Advertisement]:
        """Return the neighbours' advertisements by index, each checked."""
        given = {a.name: a for a in request.advertisements}
        expected = {request.members[i].name: i for i in around}
        if len(given) != len(request.advertisements) or set(given) != set(expected):
            raise ProtocolError("the server's choice of neighbours is not the one of the keys")
        own = Advertisement.decode(pending.advertisement)
        seen = {own.channel_key, *own.mask_keys}
        for name, advertisement in given.items():
            self._roster.check(name, advertisement.identity_key)
            member = request.members[expected[name]]
            keys = (advertisement.channel_key, *advertisement.mask_keys)
            if advertisement.digest != member.digest or len(keys) != 1 + pending.settings.slots:
                raise ProtocolError(f"the keys of {name} are not those in the list of members")
            if advertisement.setup_id != request.setup_id or not verifies(
                advertisement.identity_key, advertisement.signature, advertisement.signed_bytes
            ):
                raise ProtocolError(f"the signature over the keys of {name} is wrong")
            if advertisement.environment != self._environment:
                raise ProtocolError(
                    f"the app of {name} is run with another configuration than this client's"
                )
            if len(set(keys)) != len(keys) or not seen.isdisjoint(keys):
                raise ProtocolError(f"a key of {name} is used twice")
            seen.update(keys)
        return {expected[name]: given[name] for name in sorted(given)}

    def _deal(
        self, slots: int, threshold: int, transcript: bytes, index: int, shared: dict[int, bytes]
    ) -> SharesReply:
        """Share the secrets of all slots among the neighbours, sealed and committed to."""
        dealt: dict[int, list[int]] = {holder: [] for holder in shared}
        seeds = []
        points = [holder + 1 for holder in shared]
        for slot in range(1, slots + 1):
            own = self._memory.slot(slot)
            seeds.append(commit_to_seed(transcript, slot, index, own.seed))
            for secret in (own.seed, own.mask_secret):
                for point, share in split(secret, threshold, points).items():
                    dealt[point - 1].append(share)
        packets = []
        for holder, secret in shared.items():
            key, shares = parcel_key(secret, transcript, index, holder), dealt[holder]
            sealed = seal_parcel(key, transcript, index, holder, shares)
            commitments = commitments_to(shares, transcript, index, holder)
            packets.append(Packet(holder, sealed, commitments))
        return SharesReply(transcript, tuple(seeds), tuple(packets))


def _fresh_pair() -> tuple[bytes, bytes]:
    private = X25519PrivateKey.generate()
    public: X25519PublicKey = private.public_key()
    return private.private_bytes_raw(), public.public_bytes_raw()
