"""What a client keeps between two messages of a session: secrets, each no longer than needed.

The memory is a mapping from names to bytes, which the caller keeps: Flower starts a process a
message. Every secret stands under a name of its own, so that forgetting it removes its bytes.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, TypeVar

from fedveil.secagg.errors import UnknownSessionError
from fedveil.secagg.messages import MOST_SLOTS, Settings, Share
from fedveil.secagg.transcript import DIGEST_BYTES
from fedveil.secagg.wire import U32, Blob, Fixed, Nested, Record, Seq, Text, U32s

__all__ = ["Memory", "Neighbour", "Opening", "Pending", "RoundState", "SetupState", "SlotSecrets"]

R = TypeVar("R", bound=Record)

_DIGEST = Fixed(DIGEST_BYTES)
_KEY_BYTES = 32
_KEY = Fixed(_KEY_BYTES)
_INDICES = U32s(2**20)


@dataclass(frozen=True)
class Pending(Record):
    """Between the two exchanges of a set-up: what was advertised."""

    KIND: ClassVar[int] = 64
    LAYOUT: ClassVar = (Nested(Settings), _DIGEST, Blob(64 * MOST_SLOTS), _KEY)

    settings: Settings
    setup_id: bytes
    advertisement: bytes
    channel_secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Neighbour(Record):
    """A neighbour's index, its side on the ring, and its public mask keys, one a slot."""

    KIND: ClassVar[int] = 65
    LAYOUT: ClassVar = (U32(), U32(), Blob(_KEY_BYTES * MOST_SLOTS))

    index: int
    side: int
    mask_keys: bytes

    def mask_key(self, slot: int) -> bytes:
        """Return the mask key of a slot."""
        return self.mask_keys[_KEY_BYTES * (slot - 1) : _KEY_BYTES * slot]


@dataclass(frozen=True)
class SetupState(Record):
    """The set-up; nothing of it is secret."""

    KIND: ClassVar[int] = 66
    LAYOUT: ClassVar = (
        Nested(Settings),
        _DIGEST,
        U32(),
        U32(),
        U32(),
        U32(),
        Seq(Text(64), 2**20),
        Seq(Nested(Neighbour), 2**12),
    )

    settings: Settings
    transcript: bytes
    threshold: int
    side_floor: int
    quorum: int
    index: int
    names: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Opening(Record):
    """The key that opens a neighbour's parcel."""

    KIND: ClassVar[int] = 67
    LAYOUT: ClassVar = (U32(), _KEY)

    owner: int
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class Openings(Record):
    """Keys of the parcels that are not opened yet."""

    KIND: ClassVar[int] = 68
    LAYOUT: ClassVar = (Seq(Nested(Opening), 2**12),)

    keys: tuple[Opening, ...]


@dataclass(frozen=True)
class SlotSecrets(Record):
    """A slot's own secrets: the private mask key and the self-mask's seed."""

    KIND: ClassVar[int] = 69
    LAYOUT: ClassVar = (_KEY, _KEY)

    mask_secret: bytes = field(repr=False)
    seed: bytes = field(repr=False)


@dataclass(frozen=True)
class HeldShares(Record):
    """What this client holds of its neighbours' secrets of one slot."""

    KIND: ClassVar[int] = 70
    LAYOUT: ClassVar = (Seq(Nested(Share), 2**12), Seq(Nested(Share), 2**12))

    seeds: tuple[Share, ...] = field(repr=False)
    keys: tuple[Share, ...] = field(repr=False)


@dataclass(frozen=True)
class RoundState(Record):
    """The round under way; `survivors` is empty until they are confirmed."""

    KIND: ClassVar[int] = 71
    LAYOUT: ClassVar = (_DIGEST, U32(), _INDICES, _INDICES)

    sid: bytes
    slot: int
    participants: tuple[int, ...]
    survivors: tuple[int, ...]


class Memory:
    """Typed access to the mapping.

    Parameters
    ----------
    store : MutableMapping of str to bytes
        Kept by the caller from message to message, as confidential as the secrets in it.
    """

    def __init__(self, store: MutableMapping[str, bytes]) -> None:
        self._store = store

    def begin(self, pending: Pending, slots: dict[int, SlotSecrets]) -> None:
        """Forget everything, and remember a new set-up's first half."""
        for name in list(self._store):
            del self._store[name]
        self._store["pending"] = pending.encode()
        for slot, secrets in slots.items():
            self._store[f"slot-{slot}"] = secrets.encode()

    def settle(self, setup: SetupState, openings: tuple[Opening, ...]) -> None:
        """Remember a complete set-up in the place of its first half."""
        del self._store["pending"]
        self._store["setup"] = setup.encode()
        self._store["openings"] = Openings(openings).encode()
        self._store["used"] = (0).to_bytes(4, "big")

    @property
    def pending(self) -> Pending:
        """The first half of a set-up."""
        return self._load("pending", Pending)

    @property
    def setup(self) -> SetupState:
        """The set-up."""
        if "setup" not in self._store:
            raise _unknown_session()
        return _decoded_setup(self._store["setup"])

    @property
    def used(self) -> int:
        """The last slot that was used."""
        return int.from_bytes(self._store.get("used", b""), "big")

    def slot(self, number: int) -> SlotSecrets:
        """Return the secrets of a slot."""
        return self._load(f"slot-{number}", SlotSecrets)

    def held(self, number: int) -> HeldShares:
        """Return what is held of the neighbours' secrets of a slot."""
        name = f"held-{number}"
        return self._load(name, HeldShares) if name in self._store else HeldShares((), ())

    def take_openings(self) -> dict[int, bytes]:
        """Return the keys of unopened parcels, by owner, and forget them."""
        if "openings" not in self._store:
            return {}
        openings = self._load("openings", Openings)
        del self._store["openings"]
        return {opening.owner: opening.key for opening in openings.keys}

    def hold(self, slot: int, held: HeldShares) -> None:
        """Remember a slot's shares."""
        self._store[f"held-{slot}"] = held.encode()

    def use(self, slot: int) -> None:
        """Mark a slot as used, and forget the secrets of those before it."""
        for number in range(self.used, slot):
            self.forget(number)
        self._store["used"] = slot.to_bytes(4, "big")

    def forget(self, slot: int) -> None:
        """Forget a slot's secrets, and the round that used it."""
        for name in (f"slot-{slot}", f"held-{slot}"):
            if name in self._store:
                del self._store[name]
        if "round" in self._store and self.round.slot == slot:
            del self._store["round"]
        if not any(name.startswith("slot-") for name in self._store):
            # Nothing is left that a parcel could be for.
            self._store.pop("openings", None)

    @property
    def round(self) -> RoundState:
        """The round under way."""
        return self._load("round", RoundState)

    def enter(self, state: RoundState) -> None:
        """Remember the state of the round under way."""
        self._store["round"] = state.encode()

    def _load(self, name: str, kind: type[R]) -> R:
        if name not in self._store:
            raise _unknown_session()
        return kind.decode(self._store[name])


# Nothing of it is secret, and every stage of every round asks for it.
@lru_cache(maxsize=128)
def _decoded_setup(data: bytes) -> SetupState:
    return SetupState.decode(data)


def _unknown_session() -> UnknownSessionError:
    return UnknownSessionError(
        "this client does not know the session, or no longer: it was started anew, or the session "
        "is over"
    )
