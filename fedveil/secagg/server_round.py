"""One round on the server: vectors in, survivors fixed, masks out, one sum."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fedveil.secagg.encoding import DecodedSum, check_names
from fedveil.secagg.errors import BelowThresholdError, ProtocolError, ShareError
from fedveil.secagg.identity import verifies
from fedveil.secagg.integers import decode_integers
from fedveil.secagg.masking import Mask, apply_masks, pair_mask, self_mask
from fedveil.secagg.messages import (
    INTEGERS,
    Confirmation,
    ConfirmRequest,
    InputReply,
    InputRequest,
    RoundHeader,
    Share,
    Signed,
    UnmaskReply,
    UnmaskRequest,
    survivors_digest,
)
from fedveil.secagg.shamir import combine
from fedveil.secagg.transcript import agree_all, commit_to_seed, commit_to_share

if TYPE_CHECKING:
    from fedveil.secagg.server_session import ServerSession

__all__ = ["ServerRound"]


@dataclasses.dataclass
class _Group:
    """The running sum of the vectors whose figures have the same names."""

    buffer: bytearray
    vector: NDArray[np.unsignedinteger]
    tail: NDArray[np.uint64]
    members: list[int] = dataclasses.field(default_factory=list)


class ServerRound:
    """A round of a set-up, in four steps; each is closed before the next begins.

    Use `ServerSession.open_round`.
    """

    def __init__(self, session: ServerSession, header: RoundHeader) -> None:
        self._session = session
        self.header = header
        self._sid = header.sid
        self._encoding = session.settings.encoding(header.purpose)
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._participants = set(header.participants)
        self._answered: set[int] = set()
        self._figures: tuple[str, ...] = ()
        self._survivors: tuple[int, ...] = ()
        self._survivors_digest = b""
        self._signatures: dict[int, bytes] = {}
        self._signatures_sent = False
        self._seeds: dict[int, bytes] = {}
        self._shares: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
        self._unmasked: set[int] = set()
        self.faults: dict[str, str] = {}
        """Who did what an honest client would not have done, by name."""
        self.dishonest: set[str] = set()
        """Whose own commitments prove it: others' accusations do not count here."""
        self.lost: set[str] = set()
        """Of whom a secret could not be put together, through whosever fault."""

    def requests(self) -> dict[str, bytes]:
        """Return the `InputRequest` for each participant."""
        session = self._session
        return {
            session.names[i]: InputRequest(self.header, session.parcels_for(i)).encode()
            for i in self.header.participants
        }

    def add_input(self, name: str, data: bytes, vector: bytes) -> None:
        """Add a participant's masked vector to the sum.

        Raises
        ------
        SecAggError
            If it is malformed, of another round, a second one, or comes after the survivors are
            fixed.
        """
        reply = InputReply.decode(data)
        index = self._participant(name, reply.sid)
        if self._survivors:
            raise ProtocolError(f"the vector of {name} comes after the survivors were fixed")
        if index in self._answered:
            raise ProtocolError(f"{name} sends a second vector")
        check_names(reply.figures)
        words, tail = self._encoding.views(vector)
        if reply.figures not in self._groups:
            self._groups[reply.figures] = _Group(*self._encoding.empty())
        group = self._groups[reply.figures]
        np.add(group.vector, words, out=group.vector)
        np.add(group.tail, tail, out=group.tail)
        group.members.append(index)
        self._answered.add(index)
        self._session.mark_delivered(index)
        for owner in reply.bad_parcels:
            if owner < len(self._session.names):
                owner_name = self._session.names[owner]
                self.faults.setdefault(
                    owner_name,
                    f"its shares for {name} do not agree with its commitments, says {name}",
                )

    def close_input(self) -> dict[str, bytes]:
        """Fix the survivors and return the `ConfirmRequest` for each of them.

        Raises
        ------
        BelowThresholdError
            If they are fewer than the quorum; nothing can be unmasked then.
        """
        names = max(self._groups, key=lambda n: len(self._groups[n].members), default=None)
        members = sorted(self._groups[names].members) if names is not None else []
        for other, group in self._groups.items():
            for index in group.members if other != names else ():
                self.faults[self._session.names[index]] = (
                    f"its figures are {list(other)}, the others' are {list(names or ())}"
                )
        quorum = self._session.plan.quorum
        if names is None or len(members) < quorum:
            raise BelowThresholdError(f"{len(members)} vectors came, {quorum} are needed")
        self._figures, self._survivors = names, tuple(members)
        self._survivors_digest = survivors_digest(self._sid, self._survivors)
        request = ConfirmRequest(self._sid, self._survivors).encode()
        return {self._session.names[i]: request for i in self._survivors}

    def add_confirmation(self, name: str, data: bytes) -> None:
        """Take a survivor's `Confirmation`.

        Raises
        ------
        SecAggError
            If it is malformed, of another round, not by a survivor, or wrongly signed.
        """
        confirmation = Confirmation.decode(data)
        index = self._participant(name, confirmation.sid)
        if index not in self._survivors or index in self._signatures or self._signatures_sent:
            raise ProtocolError(f"a confirmation of {name} is not wanted, or not any more")
        key = self._session.identity_key(index)
        if not verifies(key, confirmation.signature, self._survivors_digest):
            raise ProtocolError(f"the signature of {name} over the survivors is wrong")
        self._signatures[index] = confirmation.signature

    def close_confirm(self) -> dict[str, bytes]:
        """Return the `UnmaskRequest` for each client that confirmed.

        Raises
        ------
        BelowThresholdError
            If they are fewer than the quorum.
        """
        quorum = self._session.plan.quorum
        if len(self._signatures) < quorum:
            raise BelowThresholdError(
                f"{len(self._signatures)} clients confirmed the survivors, {quorum} are needed"
            )
        self._signatures_sent = True
        chosen = sorted(self._signatures)[:quorum]
        signatures = tuple(Signed(i, self._signatures[i]) for i in chosen)
        request = UnmaskRequest(self._sid, signatures).encode()
        return {self._session.names[i]: request for i in sorted(self._signatures)}

    def add_unmasking(self, name: str, data: bytes) -> None:
        """Take a client's `UnmaskReply`; what does not agree with a commitment is left out.

        Raises
        ------
        SecAggError
            If it is malformed, of another round, or not wanted.
        """
        reply = UnmaskReply.decode(data)
        index = self._participant(name, reply.sid)
        if not self._signatures_sent or index not in self._signatures or index in self._unmasked:
            raise ProtocolError(f"an unmasking by {name} is not wanted")
        self._unmasked.add(index)
        session, slot = self._session, self.header.slot
        if commit_to_seed(session.transcript, slot, index, reply.seed) == session.seed_commitment(
            index, slot
        ):
            self._seeds[index] = reply.seed
        else:
            self.faults[name] = "its seed is not the one that it committed to"
        for kind, shares in (("seed", reply.seed_shares), ("key", reply.key_shares)):
            for share in shares:
                self._take_share(kind, share, index)

    def finish(self, shapes: Sequence[tuple[int, ...]]) -> DecodedSum:
        """Take the masks off and return what the sum says.

        Parameters
        ----------
        shapes : sequence of tuple of int
            Shapes of the arrays, in the order in which they were encoded; integers have none.

        Raises
        ------
        BelowThresholdError
            If too few shares came to give a secret that is needed; more may still come.
        ProtocolError
            If the sum was unmasked already, or the survivors are not confirmed.
        ImpossibleSumError
            If honest clients cannot have produced the sum.
        """
        if not self._signatures_sent:
            raise ProtocolError("nothing can be unmasked before the survivors are confirmed")
        masks = self._masks()
        group = self._groups.pop(self._figures, None)
        if group is None:
            raise ProtocolError("the sum of this round was unmasked already")
        apply_masks(masks, group.vector, group.tail)
        clients, names = len(self._survivors), self._figures
        if self.header.purpose == INTEGERS:
            return decode_integers(self._encoding, group.vector, group.tail, clients, names)
        return self._encoding.decode(group.vector, group.tail, clients, names, shapes)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in the sum, once fixed."""
        return tuple(self._session.names[i] for i in self._survivors)

    def _masks(self) -> list[Mask]:
        """Return the masks that are left in the sum, each with the sign that takes it off."""
        masks = [self_mask(self._seed_of(index), self._sid, index, -1) for index in self._survivors]
        slot, survivors = self.header.slot, set(self._survivors)
        for gone in sorted(self._participants - survivors):
            around = [i for i in self._session.graph.neighbours(gone) if i in survivors]
            if not around:
                continue
            keys = (self._session.mask_key(index, slot) for index in around)
            shared = agree_all(self._key_of(gone), keys)
            # Between two clients the one adds what the other takes away: this is the other's.
            masks += [
                pair_mask(secret, self._sid, gone, index)
                for index, secret in zip(around, shared, strict=True)
            ]
        return masks

    def _seed_of(self, index: int) -> bytes:
        seed = self._seeds.get(index)
        if seed is None:
            seed = self._combine("seed", index)
            slot, transcript = self.header.slot, self._session.transcript
            if commit_to_seed(transcript, slot, index, seed) != self._session.seed_commitment(
                index, slot
            ):
                raise self._dishonest_dealer(index, "seed")
        return seed

    def _key_of(self, index: int) -> bytes:
        secret = self._combine("key", index)
        public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        if public != self._session.mask_key(index, self.header.slot):
            raise self._dishonest_dealer(index, "key")
        return secret

    def _combine(self, kind: str, owner: int) -> bytes:
        shares, threshold = self._shares[(kind, owner)], self._session.plan.threshold
        if len(shares) < threshold:
            self.lost.add(self._session.names[owner])
            raise BelowThresholdError(
                f"{len(shares)} shares of {self._session.names[owner]}'s {kind} came, {threshold} "
                "are needed"
            )
        try:
            return combine({holder + 1: value for holder, value in shares.items()}, threshold)
        except ShareError:
            raise self._dishonest_dealer(owner, kind) from None

    def _dishonest_dealer(self, owner: int, kind: str) -> BelowThresholdError:
        name = self._session.names[owner]
        self.faults[name] = f"the shares of its {kind} that it committed to do not give it"
        self.dishonest.add(name)
        return BelowThresholdError(f"the {kind} of {name} is lost: it dealt wrong shares")

    def _take_share(self, kind: str, share: Share, holder: int) -> None:
        value = int.from_bytes(share.value, "big")
        transcript, slot = self._session.transcript, self.header.slot
        expected = self._session.share_commitment(share.owner, holder, slot, kind)
        found = commit_to_share(transcript, slot, kind, share.owner, holder, value)
        if expected is None or found != expected:
            name = self._session.names[holder]
            self.faults[name] = f"a share that it gives of a neighbour's {kind} is false"
            return
        self._shares[(kind, share.owner)][holder] = value

    def _participant(self, name: str, sid: bytes) -> int:
        index = self._session.index(name)
        if sid != self._sid or index not in self._participants:
            raise ProtocolError(f"a message of {name} is of another round")
        return index
