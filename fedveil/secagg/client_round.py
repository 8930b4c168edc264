"""One round on a client: accepted, masked, confirmed, unmasked, forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from fedveil.secagg.client_memory import HeldShares, Memory, RoundState, SetupState
from fedveil.secagg.encoding import Encoding, Floats
from fedveil.secagg.errors import BelowThresholdError, ProtocolError, UnknownSessionError
from fedveil.secagg.floors import Floors
from fedveil.secagg.identity import Identity, Roster, verifies
from fedveil.secagg.integers import encode_integers
from fedveil.secagg.masking import Mask, apply_masks, pair_mask, self_mask
from fedveil.secagg.messages import (
    FIGURES,
    INTEGERS,
    UPDATE,
    Confirmation,
    ConfirmRequest,
    InputReply,
    InputRequest,
    Parcel,
    RoundHeader,
    Share,
    UnmaskReply,
    UnmaskRequest,
    survivors_digest,
)
from fedveil.secagg.parameters import Plan
from fedveil.secagg.parcels import open_parcel
from fedveil.secagg.shamir import SHARE_BYTES
from fedveil.secagg.transcript import agree_all, kdf

__all__ = ["ClientRound", "RoundFacts"]


@dataclass(frozen=True)
class RoundFacts:
    """What a client knows of a round's sum, from what it checked itself.

    Parameters
    ----------
    participants : int
        Clients that are asked.
    quorum : int
        Least number of them in the sum; with fewer this client does not unmask.
    colluding : int
        Clients of the set-up that it takes to collude with the server, by its own floors.
    """

    participants: int
    quorum: int
    colluding: int


class ClientRound:
    """A round that this client takes part in.

    Use `ClientSession.begin` or `ClientSession.resume`.
    """

    def __init__(
        self,
        memory: Memory,
        identity: Identity,
        roster: Roster,
        setup: SetupState,
        state: RoundState,
    ) -> None:
        self._memory = memory
        self._identity = identity
        self._roster = roster
        self._setup = setup
        self._state = state
        self._bad_parcels: tuple[int, ...] = ()
        self._header: RoundHeader | None = None

    @classmethod
    def begin(
        cls, memory: Memory, identity: Identity, roster: Roster, data: bytes, content: bytes
    ) -> ClientRound:
        """Accept an `InputRequest`; see `ClientSession.begin`."""
        request = InputRequest.decode(data)
        header = request.header
        setup = memory.setup
        if header.transcript != setup.transcript:
            raise UnknownSessionError("a round of another set-up than this client's last")
        if not memory.used < header.slot <= setup.settings.slots:
            raise ProtocolError(
                f"slot {header.slot} of {setup.settings.slots} was used already, or there is none"
            )
        if header.purpose not in (UPDATE, FIGURES, INTEGERS):
            raise ProtocolError(f"a round to sum {header.purpose!r} is unknown")
        if header.content != content:
            raise ProtocolError("what came with the request is not what the others are told")
        _check_indices("participants", header.participants, setup, setup.index)
        if len(header.participants) < setup.quorum:
            raise BelowThresholdError(
                f"{len(header.participants)} participants, {setup.quorum} are needed"
            )
        # Before anything is computed: a slot serves one vector, whatever happens to it.
        memory.use(header.slot)
        state = RoundState(header.sid, header.slot, header.participants, ())
        memory.enter(state)
        round_ = cls(memory, identity, roster, setup, state)
        round_._header = header
        round_._open(request.parcels)
        round_._check_neighbours("participants", header.participants)
        return round_

    @property
    def header(self) -> RoundHeader:
        """The header of a round just begun."""
        if self._header is None:
            raise ProtocolError("the vector of this round was masked already")
        return self._header

    def facts(self, floors: Floors) -> RoundFacts:
        """Return what is sure of this round's sum, whatever the server says.

        Parameters
        ----------
        floors : Floors
            This client's own.
        """
        setup = self._setup
        plan = Plan(len(setup.names), len(setup.neighbours), setup.threshold, setup.quorum)
        return RoundFacts(
            participants=len(self.header.participants),
            quorum=plan.quorum,
            colluding=floors.colluding(plan),
        )

    @property
    def encoding(self) -> Encoding:
        """How this round's vector is encoded."""
        return self._setup.settings.encoding(self.header.purpose)

    def mask(
        self,
        update: Sequence[Floats],
        base: Sequence[Floats],
        weight: float,
        figures: Mapping[str, float],
    ) -> tuple[bytes, bytes]:
        """Encode and mask this client's input, once.

        Parameters
        ----------
        update, base, weight, figures
            As `Encoding.encode` takes them.

        Returns
        -------
        tuple of bytes
            The `InputReply`, and the masked vector.

        Raises
        ------
        EncodingError
            If the input cannot be encoded.
        ProtocolError
            If integers are summed in this round.
        """
        if self.header.purpose == INTEGERS:
            raise ProtocolError("integers are to be summed, and the app answers with an update")
        encoding, key = self.encoding, self._rounding_key()

        def write(vector: NDArray[np.unsignedinteger], tail: NDArray[np.uint64]) -> None:
            encoding.encode(update, base, weight, figures, vector, tail, key)

        return self._masked(write, figures)

    def mask_integers(
        self, values: NDArray[np.int64], figures: Mapping[str, float]
    ) -> tuple[bytes, bytes]:
        """Mask this client's integers, once.

        Parameters
        ----------
        values, figures
            As `fedveil.secagg.integers.encode_integers` takes them.

        Returns
        -------
        tuple of bytes
            The `InputReply`, and the masked vector.

        Raises
        ------
        EncodingError
            If they cannot be encoded.
        ProtocolError
            If something else is summed in this round.
        """
        if self.header.purpose != INTEGERS:
            raise ProtocolError(
                f"{self.header.purpose}s are to be summed, and the app answers with integers"
            )
        encoding = self.encoding

        def write(vector: NDArray[np.unsignedinteger], tail: NDArray[np.uint64]) -> None:
            encode_integers(encoding, values, figures, vector, tail)

        return self._masked(write, figures)

    def _masked(
        self,
        write: Callable[[NDArray[np.unsignedinteger], NDArray[np.uint64]], None],
        figures: Mapping[str, float],
    ) -> tuple[bytes, bytes]:
        encoding = self.encoding
        # A BytesIO gives out what was written into it without a copy, once the view is released.
        masked = BytesIO(bytes(encoding.vector_bytes))
        buffer = masked.getbuffer()
        vector, tail = encoding.views(buffer)
        write(vector, tail)
        apply_masks(self._masks(), vector, tail)
        del vector, tail
        buffer.release()
        self._header = None
        reply = InputReply(self._state.sid, tuple(sorted(figures)), self._bad_parcels)
        return reply.encode(), masked.getvalue()

    def confirm(self, data: bytes) -> bytes:
        """Answer a `ConfirmRequest` with a `Confirmation`, once.

        Raises
        ------
        SecAggError
            If it is of another round, was answered, or lists this client as dropped, strangers as
            survivors, fewer than the quorum, or too few of this client's neighbours.
        """
        request = ConfirmRequest.decode(data)
        self._check_sid(request.sid)
        if self._state.survivors:
            raise ProtocolError("the survivors of this round are confirmed already")
        _check_indices("survivors", request.survivors, self._setup, self._setup.index)
        if not set(request.survivors) <= set(self._state.participants):
            raise ProtocolError("a survivor took no part in the round")
        if len(request.survivors) < self._setup.quorum:
            raise BelowThresholdError(
                f"{len(request.survivors)} survivors, {self._setup.quorum} are needed"
            )
        self._check_neighbours("survivors", request.survivors)
        self._state = replace(self._state, survivors=request.survivors)
        self._memory.enter(self._state)
        signature = self._identity.sign(survivors_digest(request.sid, request.survivors))
        return Confirmation(request.sid, signature).encode()

    def unmask(self, data: bytes) -> bytes:
        """Answer an `UnmaskRequest` with an `UnmaskReply`, and forget the round's secrets.

        What is revealed follows from the survivors that this client itself signed: there is
        nothing in the request to choose.

        Raises
        ------
        SecAggError
            If it is of another round, comes before the survivors are confirmed, or fewer than the
            quorum of survivors signed the same.
        """
        request = UnmaskRequest.decode(data)
        self._check_sid(request.sid)
        if not self._state.survivors:
            raise ProtocolError("nothing is unmasked before the survivors are confirmed")
        self._check_signatures(request)
        slot, survivors = self._state.slot, set(self._state.survivors)
        dropped = set(self._state.participants) - survivors
        own, held = self._memory.slot(slot), self._memory.held(slot)
        reply = UnmaskReply(
            sid=request.sid,
            seed=own.seed,
            seed_shares=tuple(s for s in held.seeds if s.owner in survivors),
            key_shares=tuple(s for s in held.keys if s.owner in dropped),
        )
        self._memory.forget(slot)
        return reply.encode()

    def _rounding_key(self) -> bytes:
        """Return what the rounding follows from: a run that is repeated rounds alike.

        It must be secret: whoever knows how each client rounded can tell their parts of a sum
        apart where coordinates are smaller than a word.
        """
        return kdf(
            self._identity.secret,
            "rounding",
            self.header.content,
            self.header.round.to_bytes(8, "big"),
        )

    def _masks(self) -> list[Mask]:
        slot, sid, index = self._state.slot, self._state.sid, self._setup.index
        own, taking_part = self._memory.slot(slot), set(self._state.participants)
        around = [n for n in self._setup.neighbours if n.index in taking_part]
        shared = agree_all(own.mask_secret, (n.mask_key(slot) for n in around))
        pairs = zip(around, shared, strict=True)
        return [
            self_mask(own.seed, sid, index, 1),
            *(pair_mask(secret, sid, index, n.index) for n, secret in pairs),
        ]

    def _open(self, parcels: Sequence[Parcel]) -> None:
        """Open the parcels and keep what agrees with the commitments; name the owners of others."""
        keys = self._memory.take_openings() if parcels else {}
        if not keys:
            # None came, or they were opened when they came the first time.
            return
        setup, slots = self._setup, self._setup.settings.slots
        opened: dict[int, tuple[int, ...]] = {}
        bad = set()
        for parcel in parcels:
            owner, key = parcel.owner, keys.pop(parcel.owner, None)
            shares = (
                open_parcel(
                    key, setup.transcript, owner, setup.index, parcel.sealed, parcel.commitments
                )
                if key
                else None
            )
            if shares is None or len(shares) != 2 * slots:
                bad.add(owner)
            else:
                opened[owner] = shares
        self._bad_parcels = tuple(sorted(bad))
        for slot in range(self._state.slot, slots + 1):
            at = 2 * (slot - 1)
            seeds, mask_keys = (
                tuple(
                    Share(owner, shares[at + offset].to_bytes(SHARE_BYTES, "big"))
                    for owner, shares in sorted(opened.items())
                )
                for offset in (0, 1)
            )
            self._memory.hold(slot, HeldShares(seeds, mask_keys))

    def _check_neighbours(self, what: str, indices: Sequence[int]) -> None:
        """Refuse to be cut off: on a ring, a part without honest neighbours could be unmasked."""
        setup = self._setup
        if len(setup.neighbours) == len(setup.names) - 1:
            return
        # A parcel that opened shows that its owner lives in this set-up.
        live = {share.owner for share in self._memory.held(self._state.slot).seeds} & set(indices)
        if len(live) < setup.threshold:
            raise BelowThresholdError(
                f"{len(live)} neighbours are among the {what}, {setup.threshold} are needed"
            )
        for side in (0, 1):
            here = sum(n.index in live for n in setup.neighbours if n.side == side)
            if here < setup.side_floor:
                raise BelowThresholdError(
                    f"{here} neighbours on one side of the ring are among the {what}, "
                    f"{setup.side_floor} are needed"
                )

    def _check_sid(self, sid: bytes) -> None:
        # Not as it was when this object was made: another one may have answered since.
        self._state = self._memory.round
        if sid != self._state.sid:
            raise ProtocolError("a message of another round than the one under way")

    def _check_signatures(self, request: UnmaskRequest) -> None:
        survivors = self._state.survivors
        message = survivors_digest(request.sid, survivors)
        own = self._setup.index
        signers = {own}
        for signed in request.signatures:
            # More than the quorum says nothing more, and what this client signed it knows.
            if len(signers) == self._setup.quorum:
                break
            if signed.signer == own:
                continue
            if signed.signer not in survivors or signed.signer in signers:
                raise ProtocolError("a signature is by no survivor, or one survivor signs twice")
            key = self._roster.keys.get(self._setup.names[signed.signer], b"")
            if not verifies(key, signed.signature, message):
                raise ProtocolError(
                    f"{self._setup.names[signed.signer]} did not sign the survivors that this "
                    "client signed: the server tells clients different things"
                )
            signers.add(signed.signer)
        if len(signers) < self._setup.quorum:
            raise BelowThresholdError(
                f"{len(signers)} clients signed the survivors, {self._setup.quorum} are needed"
            )


def _check_indices(what: str, indices: Sequence[int], setup: SetupState, own: int) -> None:
    if list(indices) != sorted(set(indices)) or (indices and indices[-1] >= len(setup.names)):
        raise ProtocolError(f"the {what} are not ascending, or one is no member")
    if own not in indices:
        raise ProtocolError(f"the server does not count this client among the {what}")
