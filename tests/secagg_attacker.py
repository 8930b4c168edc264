"""What an attacker on secure aggregation works with: messages rewritten, keys put under others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from secagg_party import Party, Play

from fedveil.secagg.encoding import DecodedSum
from fedveil.secagg.identity import Identity
from fedveil.secagg.masking import Mask, apply_masks, pair_mask, self_mask
from fedveil.secagg.messages import (
    Advertisement,
    Confirmation,
    ConfirmRequest,
    KeysRequest,
    Member,
    RoundHeader,
    Signed,
    UnmaskRequest,
    survivors_digest,
)
from fedveil.secagg.transcript import agree_all
from fedveil.secagg.wire import Record

R = TypeVar("R", bound=Record)


def rewrite(kind: type[R], data: bytes, **fields: object) -> bytes:
    """Return a message with other fields."""
    return replace(kind.decode(data), **fields).encode()


def flip(data: bytes, at: int = 0) -> bytes:
    """Return bytes of which one bit is another."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def sign_again(advertisement: Advertisement, identity: Identity, **fields: object) -> Advertisement:
    """Return an advertisement with other fields, signed by `identity`."""
    changed = replace(advertisement, **fields)
    return replace(changed, signature=identity.sign(changed.signed_bytes))


def advertise(party: Party) -> dict[str, bytes]:
    """Let everybody advertise, and return the `KeysRequest` for each."""
    request = party.server.request()
    for name in party.names:
        party.server.add_advertisement(party.client(name).advertise(request))
    return party.server.close_advertising()


def put_under(data: bytes, *lies: Advertisement) -> bytes:
    """Return a `KeysRequest` with these in the place of the true ones, consistent with itself."""
    request = KeysRequest.decode(data)
    false = {lie.name: lie for lie in lies}
    return replace(
        request,
        members=tuple(Member(m.name, false.get(m.name, m).digest) for m in request.members),
        advertisements=tuple(false.get(a.name, a) for a in request.advertisements),
    ).encode()


def shown(data: bytes, name: str) -> Advertisement:
    """Return the advertisement of `name` in a `KeysRequest`."""
    return next(a for a in KeysRequest.decode(data).advertisements if a.name == name)


def confirm(party: Party, name: str, sid: bytes, survivors: Sequence[int]) -> Signed:
    """Let a client sign survivors, and return the signature as others are shown it."""
    request = ConfirmRequest(sid, tuple(survivors)).encode()
    reply = party.client(name).resume().confirm(request)
    return Signed(party.names.index(name), Confirmation.decode(reply).signature)


def forge(party: Party, name: str, sid: bytes, survivors: Sequence[int]) -> Signed:
    """Sign survivors with the key of a colluding client."""
    signature = party.identities[name].sign(survivors_digest(sid, survivors))
    return Signed(party.names.index(name), signature)


def unmask(party: Party, name: str, sid: bytes, signatures: Iterable[Signed]) -> bytes:
    """Ask a client to unmask."""
    return party.client(name).resume().unmask(UnmaskRequest(sid, tuple(signatures)).encode())


def pair_masks_of(play: Play, index: int, secret: bytes, header: RoundHeader) -> list[Mask]:
    """Return the pairwise masks of a client, computed with its private mask key."""
    session = play.party.server
    return [
        pair_mask(agree(secret, session.mask_key(i, header.slot)), header.sid, index, i)
        for i in session.graph.neighbours(index)
        if i in header.participants
    ]


def take_off(play: Play, vector: bytes, masks: Iterable[Mask]) -> bytearray:
    """Return a vector with masks taken off."""
    left = bytearray(vector)
    words, tail = play.party.settings.encoding().views(left)
    apply_masks([Mask(mask.key, -mask.sign) for mask in masks], words, tail)
    return left


def read_single(play: Play, vector: bytes, index: int, seed: bytes, secret: bytes) -> DecodedSum:
    """Return what one client's masked vector says, by both of its secrets."""
    header = play.server.header
    masks = [self_mask(seed, header.sid, index, 1), *pair_masks_of(play, index, secret, header)]
    encoding = play.party.settings.encoding()
    words, tail = encoding.views(take_off(play, vector, masks))
    return encoding.decode(words, tail, 1, (), [(encoding.dimension,)])


def agree(private: bytes, public: bytes) -> bytes:
    """Return the shared secret of one pair of keys."""
    return agree_all(private, (public,))[0]
