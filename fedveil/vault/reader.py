"""Reading a store: any number of readers, beside one writer, without a lock."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fedveil.vault.buffers import Shadow
from fedveil.vault.checkpoint import open_into, open_some
from fedveil.vault.checks import RoundCheck, check_rounds, check_state
from fedveil.vault.errors import StoreError
from fedveil.vault.header import Header
from fedveil.vault.opened import OpenStore
from fedveil.vault.placed import Checkpoint
from fedveil.vault.slots import slot_owner
from fedveil.vault.tensors import Array

__all__ = ["Checkpoint", "RoundInfo", "StoreReader"]


@dataclass(frozen=True)
class RoundInfo:
    """What a round says about itself, authenticated, and how it is kept.

    Attributes
    ----------
    header : Header
        The header of its model.
    signed : bool
        Whether the coordinator's signature was asked for and found.
    model_keys : tuple of str
        Public names of the model keys that its wrap slots are for; two during a rotation.
    file_bytes : int
        Length of the model's file.
    has_state : bool
        Whether a strategy state is kept for it.
    """

    header: Header
    signed: bool
    model_keys: tuple[str, ...]
    file_bytes: int
    has_state: bool


class StoreReader(OpenStore):
    """The encrypted rounds of one run, to be read.

    Parameters and errors are those of `OpenStore`.
    """

    def check_mark(self) -> int | None:
        """Refuse a store that is older than when last seen; what is there is remembered then.

        Returns
        -------
        int or None
            The newest round, its header verified; None when the store is empty and no round was
            ever seen in it.

        Raises
        ------
        RollbackError
            If the newest round is older than the newest that was seen, or not the same, or the
            model key is not the one that was seen.
        VaultError
            As `load` does.
        """
        header = self._newest(lambda round_: self._head(round_).header)
        return None if header is None else header.round

    def newest(self) -> int:
        """Return the newest round, which is remembered from now on.

        Its header is verified; its weights are when it is loaded.

        Raises
        ------
        StoreError
            If there is no round yet.
        VaultError
            As `check_mark` does.
        """
        newest = self.check_mark()
        if newest is None:
            raise StoreError(f"{self.directory} has no round yet")
        return newest

    def latest(self) -> Checkpoint:
        """Return the model after the newest round; errors are those of `load` and `newest`.

        A damaged newest round is an error, never a silent step back to an older one.
        """
        found: list[Checkpoint] = []

        def load(round_: int) -> Header:
            found.append(self.load(round_))
            return found[0].header

        if self._newest(load) is None:
            raise StoreError(f"{self.directory} has no round yet")
        return found[0]

    def latest_into(self, live: Mapping[str, Array], shadow: Shadow | None = None) -> Header:
        """Load the model after the newest round into arrays that are in use.

        It is remembered from now on, unless anything fails. Parameters are those of `load_into`,
        errors those of `load_into` and `newest`.
        """
        header = self._newest(lambda round_: self.load_into(round_, live, shadow))
        if header is None:
            raise StoreError(f"{self.directory} has no round yet")
        return header

    def load(self, round_: int) -> Checkpoint:
        """Return the model after a round, every byte of it verified.

        Raises
        ------
        StoreError
            If there is no such round, the file cannot be read, or it belongs to another store,
            run, round or kind than its place says.
        VaultError
            If it does not open: the errors of `fedveil.vault.checkpoint.open_from`.
        """
        self._check_saved(round_)
        return self._load("model", round_)

    def load_state(self, round_: int) -> Checkpoint:
        """Return the strategy's state that was saved with a round; errors are those of `load`."""
        with self._reading():
            kept = self._layout.states()
        if round_ not in kept:
            raise StoreError(
                f"{self.directory} keeps no strategy state of round {round_}; it keeps those of: "
                + (", ".join(map(str, kept)) or "none")
            )
        model, state = self._head(round_).header, self._load("strategy-state", round_)
        check_state(self._layout, model, state.header)
        return state

    def load_into(
        self, round_: int, live: Mapping[str, Array], shadow: Shadow | None = None
    ) -> Header:
        """Load the model after a round into arrays that are in use.

        They change only when every byte is verified, and are as they were when anything fails.

        Parameters
        ----------
        round_ : int
            The round.
        live : Mapping[str, ndarray]
            Writable arrays of the model's names, shapes and types.
        shadow : Shadow, optional
            Memory for the plaintext until then; keep one from load to load to save time.

        Raises
        ------
        TensorError
            If the arrays are not those of the model.
        VaultError
            As `load` does.
        """
        self._check_saved(round_)
        memory = Shadow() if shadow is None else shadow
        return self._read(
            "model",
            round_,
            lambda read, size, access: open_into(live, memory, read, size, access),
        )

    def load_tensors(self, round_: int, names: Collection[str]) -> Checkpoint:
        """Return some arrays of a round, reading no more than they need.

        The header is verified as by `load`. Each array is whole and was written by a holder of
        the model key; that the coordinator signed it can be told only by `load`, which reads all.

        Parameters
        ----------
        round_ : int
            The round.
        names : collection of str
            The arrays.

        Raises
        ------
        TensorError
            If there is no array of a name.
        VaultError
            As `load` does.
        """
        self._check_saved(round_)
        return self._read(
            "model",
            round_,
            lambda read, size, access: Checkpoint(*open_some(names, read, size, access)),
        )

    def show(self, round_: int) -> RoundInfo:
        """Return what a round says about itself; errors are those of `load`.

        The header is verified, and the length of the file; the weights are not decrypted.
        """
        self._check_saved(round_)
        with self._reading():
            has_state = round_ in self._layout.states()
        head = self._head(round_)
        return RoundInfo(
            head.header,
            self.verify_key is not None,
            tuple(owner for slot in head.slots if (owner := slot_owner(slot)) is not None),
            head.file_bytes,
            has_state,
        )

    def verify(self) -> list[RoundCheck]:
        """Decrypt and check every round, oldest first; what is wrong is reported, not raised.

        A round is also wrong when it does not follow from the one before it.

        Raises
        ------
        StoreError
            If the folder itself cannot be read.
        """
        return check_rounds(self._layout, lambda kind, round_: self._load(kind, round_).header)
