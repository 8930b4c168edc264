"""The messages of the protocol, in the order in which they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from fedveil.secagg.encoding import MOST_FIGURES, Encoding
from fedveil.secagg.identity import NAME_BYTES
from fedveil.secagg.parameters import Plan
from fedveil.secagg.shamir import SHARE_BYTES
from fedveil.secagg.transcript import DIGEST_BYTES, digest
from fedveil.secagg.wire import F64, U32, U64, Blob, Fixed, Nested, Record, Seq, Text, U32s

__all__ = [
    "FIGURES",
    "INTEGERS",
    "MOST_SLOTS",
    "UPDATE",
    "Advertisement",
    "ConfirmRequest",
    "Confirmation",
    "InputReply",
    "InputRequest",
    "KeysRequest",
    "Member",
    "Packet",
    "Parcel",
    "Refusal",
    "RoundHeader",
    "Settings",
    "SetupRequest",
    "Share",
    "SharesReply",
    "Signed",
    "UnmaskReply",
    "UnmaskRequest",
    "survivors_digest",
]

MOST_SLOTS = 1000
"""Most rounds that one set-up may serve."""

UPDATE = "update"
"""Purpose of a round that sums updates and figures."""

FIGURES = "figures"
"""Purpose of a round that sums figures alone."""

INTEGERS = "integers"
"""Purpose of a round that sums vectors of integers, as they are, and figures."""

_MOST_CLIENTS = 2**20
_MOST_NEIGHBOURS = 2**12
_DIGEST = Fixed(DIGEST_BYTES)
_KEY = Fixed(32)
_SIGNATURE = Fixed(64)
_NAME = Text(NAME_BYTES)
_INDICES = U32s(_MOST_CLIENTS)
_PER_SLOT = 2 * max(SHARE_BYTES, DIGEST_BYTES)


@dataclass(frozen=True)
class Settings(Record):
    """What a session sums, and how; public, chosen by the server, checked by every client.

    Parameters
    ----------
    run : str
        Which run.
    dimension, clip_norm, max_weight, max_clients, ring_bits
        As in `fedveil.secagg.encoding.Encoding`.
    slots : int
        Rounds and attempts that the set-up is for, R; each has keys of its own.
    """

    KIND: ClassVar[int] = 1
    LAYOUT: ClassVar = (Text(128), U64(), F64(), F64(), U32(), U32(), U32())

    run: str
    dimension: int
    clip_norm: float
    max_weight: float
    max_clients: int
    ring_bits: int
    slots: int

    def encoding(self, purpose: str = UPDATE) -> Encoding:
        """Return the encoding of a round; one for figures alone has no coordinates."""
        return Encoding(
            dimension=0 if purpose == FIGURES else self.dimension,
            clip_norm=self.clip_norm,
            max_weight=self.max_weight,
            max_clients=self.max_clients,
            ring_bits=self.ring_bits,
        )


@dataclass(frozen=True)
class SetupRequest(Record):
    """Server to client: begin a session. `nonce` is fresh."""

    KIND: ClassVar[int] = 2
    LAYOUT: ClassVar = (Nested(Settings), _KEY)

    settings: Settings
    nonce: bytes

    @property
    def setup_id(self) -> bytes:
        """What the advertisements sign, beside their own fields."""
        return digest("setup", self.encode())


@dataclass(frozen=True)
class Advertisement(Record):
    """Client to server, for the others: fresh keys, signed with the identity key.

    `channel_key` seals shares, `mask_keys` has one key a slot; all are X25519. `environment` is the
    hash of what the app is run with beside the messages.
    """

    KIND: ClassVar[int] = 3
    LAYOUT: ClassVar = (
        _DIGEST,
        _NAME,
        _KEY,
        _KEY,
        _DIGEST,
        _KEY,
        Seq(_KEY, MOST_SLOTS),
        _SIGNATURE,
    )

    setup_id: bytes
    name: str
    identity_key: bytes
    nonce: bytes
    environment: bytes
    channel_key: bytes
    mask_keys: tuple[bytes, ...]
    signature: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return digest(
            "advertisement",
            self.setup_id,
            self.name.encode(),
            self.identity_key,
            self.nonce,
            self.environment,
            self.channel_key,
            *self.mask_keys,
        )

    @property
    def digest(self) -> bytes:
        """The hash under which it stands in the transcript."""
        return digest("member", self.encode())


@dataclass(frozen=True)
class Member(Record):
    """A client of the set-up, and the hash of its advertisement."""

    KIND: ClassVar[int] = 4
    LAYOUT: ClassVar = (_NAME, _DIGEST)

    name: str
    digest: bytes


@dataclass(frozen=True)
class KeysRequest(Record):
    """Server to client: who takes part, and the neighbours' advertisements.

    A client's index is its place in `members`, which are sorted by name.
    """

    KIND: ClassVar[int] = 5
    LAYOUT: ClassVar = (
        _DIGEST,
        U32(),
        U32(),
        U32(),
        Seq(Nested(Member), _MOST_CLIENTS),
        Seq(Nested(Advertisement), _MOST_NEIGHBOURS),
    )

    setup_id: bytes
    neighbours: int
    threshold: int
    quorum: int
    members: tuple[Member, ...]
    advertisements: tuple[Advertisement, ...]

    @cached_property
    def plan(self) -> Plan:
        """The numbers, which must not contradict each other."""
        return Plan(len(self.members), self.neighbours, self.threshold, self.quorum)

    @cached_property
    def transcript(self) -> bytes:
        """Hash of the settings, the numbers and everybody's signed keys."""
        numbers = (self.neighbours, self.threshold, self.quorum)
        return digest(
            "transcript",
            self.setup_id,
            b"".join(n.to_bytes(4, "big") for n in numbers),
            *(part for m in self.members for part in (m.name.encode(), m.digest)),
        )


@dataclass(frozen=True)
class Packet(Record):
    """One neighbour's sealed shares of all slots, and the commitments to them."""

    KIND: ClassVar[int] = 6
    LAYOUT: ClassVar = (U32(), Blob(_PER_SLOT * MOST_SLOTS + 16), Blob(_PER_SLOT * MOST_SLOTS))

    holder: int
    sealed: bytes
    commitments: bytes


@dataclass(frozen=True)
class SharesReply(Record):
    """Client to server: its secrets, shared among the neighbours."""

    KIND: ClassVar[int] = 7
    LAYOUT: ClassVar = (_DIGEST, Seq(_DIGEST, MOST_SLOTS), Seq(Nested(Packet), _MOST_NEIGHBOURS))

    transcript: bytes
    seed_commitments: tuple[bytes, ...]
    packets: tuple[Packet, ...]


@dataclass(frozen=True)
class RoundHeader(Record):
    """What all participants of a round must agree on; its hash is the session id, sid.

    Parameters
    ----------
    transcript : bytes
        The set-up.
    slot : int
        Which of its keys, from 1; each is used once.
    round, attempt : int
        Which round, and which try at it.
    purpose : {"update", "figures", "integers"}
        What is summed.
    weight_key : str
        Figure that weighs an update; empty when every update weighs 1.
    content : bytes
        Hash of what goes with the request (the global model and the task's settings) and of what
        the app is asked to do with it.
    participants : tuple of int
        Indices, ascending.
    """

    KIND: ClassVar[int] = 8
    LAYOUT: ClassVar = (_DIGEST, U32(), U64(), U32(), Text(16), Text(256), _DIGEST, _INDICES)

    transcript: bytes
    slot: int
    round: int
    attempt: int
    purpose: str
    weight_key: str
    content: bytes
    participants: tuple[int, ...]

    @property
    def sid(self) -> bytes:
        """The session id."""
        return digest("sid", self.encode())


@dataclass(frozen=True)
class Parcel(Record):
    """A neighbour's packet, on its way to the holder."""

    KIND: ClassVar[int] = 9
    LAYOUT: ClassVar = (U32(), Blob(_PER_SLOT * MOST_SLOTS + 16), Blob(_PER_SLOT * MOST_SLOTS))

    owner: int
    sealed: bytes
    commitments: bytes


@dataclass(frozen=True)
class InputRequest(Record):
    """Server to client: train, and send the masked result. Parcels come with the first one."""

    KIND: ClassVar[int] = 10
    LAYOUT: ClassVar = (Nested(RoundHeader), Seq(Nested(Parcel), _MOST_NEIGHBOURS))

    header: RoundHeader
    parcels: tuple[Parcel, ...]


@dataclass(frozen=True)
class InputReply(Record):
    """Client to server, beside the masked vector: names of the figures, owners of bad parcels."""

    KIND: ClassVar[int] = 11
    LAYOUT: ClassVar = (_DIGEST, Seq(Text(128), MOST_FIGURES), U32s(_MOST_NEIGHBOURS))

    sid: bytes
    figures: tuple[str, ...]
    bad_parcels: tuple[int, ...]


@dataclass(frozen=True)
class ConfirmRequest(Record):
    """Server to client: whose vectors are in the sum."""

    KIND: ClassVar[int] = 12
    LAYOUT: ClassVar = (_DIGEST, _INDICES)

    sid: bytes
    survivors: tuple[int, ...]


@dataclass(frozen=True)
class Confirmation(Record):
    """Client to server, for the others: a signature over the survivors."""

    KIND: ClassVar[int] = 13
    LAYOUT: ClassVar = (_DIGEST, _SIGNATURE)

    sid: bytes
    signature: bytes


@dataclass(frozen=True)
class Signed(Record):
    """Who signed."""

    KIND: ClassVar[int] = 14
    LAYOUT: ClassVar = (U32(), _SIGNATURE)

    signer: int
    signature: bytes


@dataclass(frozen=True)
class UnmaskRequest(Record):
    """Server to client: enough signatures over one set of survivors."""

    KIND: ClassVar[int] = 15
    LAYOUT: ClassVar = (_DIGEST, Seq(Nested(Signed), _MOST_CLIENTS))

    sid: bytes
    signatures: tuple[Signed, ...]


@dataclass(frozen=True)
class Share(Record):
    """A share of a neighbour's secret."""

    KIND: ClassVar[int] = 16
    LAYOUT: ClassVar = (U32(), Fixed(SHARE_BYTES))

    owner: int
    value: bytes = field(repr=False)


@dataclass(frozen=True)
class UnmaskReply(Record):
    """Client to server: its own seed, and what it holds of its neighbours' secrets.

    `seed_shares` are of those who survived, `key_shares` of those who dropped out; nobody is in
    both.
    """

    KIND: ClassVar[int] = 17
    LAYOUT: ClassVar = (
        _DIGEST,
        _KEY,
        Seq(Nested(Share), _MOST_NEIGHBOURS),
        Seq(Nested(Share), _MOST_NEIGHBOURS),
    )

    sid: bytes
    seed: bytes = field(repr=False)
    seed_shares: tuple[Share, ...]
    key_shares: tuple[Share, ...]


@dataclass(frozen=True)
class Refusal(Record):
    """Client to server: why it does not answer, and which member it objects to, if any."""

    KIND: ClassVar[int] = 18
    LAYOUT: ClassVar = (Text(32), Text(512), _NAME)

    code: str
    reason: str
    member: str


def survivors_digest(sid: bytes, survivors: Sequence[int]) -> bytes:
    """Return what a confirmation signs."""
    return digest("survivors", sid, b"".join(i.to_bytes(4, "big") for i in survivors))
