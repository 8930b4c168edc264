"""A folder of encrypted checkpoints, one a round: one writer, any number of readers.

::

    store.json               which run, whose signature (no secret)
    keys.json                the model key, encrypted under every key-encryption key
    round-000007.fvlt        the model after round 7; its rename commits the round
    state/round-000007.fvlt  the strategy's state after round 7, written before the model
    .lock                    held by the writer
    destroyed.json           where the model key was destroyed

A round exists when its model file has its name. It is never replaced; only the wrap slots of its
data key are written over when the model key is exchanged.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from fedveil.vault.checks import RoundCheck
from fedveil.vault.errors import SignatureError, StoreError
from fedveil.vault.files import replace_file
from fedveil.vault.header import Address, Header, Kind, MetaValue
from fedveil.vault.keeper import StoreKeeper
from fedveil.vault.kek.interface import KekProvider
from fedveil.vault.keyring import create_keys
from fedveil.vault.layout import Layout, refusals
from fedveil.vault.lock import WriterLock
from fedveil.vault.manifest import MANIFEST_NAME, Manifest, write_manifest
from fedveil.vault.reader import Checkpoint, RoundInfo
from fedveil.vault.sealing import seal_to
from fedveil.vault.signing import SigningKey, VerifyKey
from fedveil.vault.tensors import Array

__all__ = ["Checkpoint", "ModelStore", "RoundCheck", "RoundInfo"]


class ModelStore(StoreKeeper):
    """The encrypted rounds of one run, to be read and written.

    `claim`, or the first call that writes, takes the store's lock and keeps it until `close` or
    the end of the process, so that two runs never write into one store. Reading needs no lock.

    Parameters
    ----------
    directory, kek, marks, verify_key
        As for `StoreReader`.
    signing_key : SigningKey or None
        The coordinator's. A signed store can be read, but not saved to, without it.

    Raises
    ------
    SignatureError
        If the store's rounds are not signed with this key.
    VaultError
        As `StoreReader` does.
    """

    def __init__(
        self,
        directory: Path,
        kek: KekProvider,
        *,
        marks: Path | None,
        signing_key: SigningKey | None = None,
        verify_key: VerifyKey | None = None,
    ) -> None:
        own = None if signing_key is None else signing_key.verify_key
        if own is not None and verify_key not in (None, own):
            raise SignatureError("the signing key and the verify key given are not of one pair")
        super().__init__(directory, kek, marks=marks, verify_key=own or verify_key)
        self._signing_key = signing_key

    @classmethod
    def create(
        cls,
        directory: Path,
        kek: KekProvider,
        run: str,
        *,
        marks: Path | None,
        signing_key: SigningKey | None,
    ) -> ModelStore:
        """Make a new, empty store for a run and open it.

        Parameters
        ----------
        directory : Path
            Made with mode 0700 if it is not there.
        kek : KekProvider
            The first key-encryption key that opens it.
        run : str
            Name of the run, 1 to 128 printable characters.
        marks : Path or None
            As for `StoreReader`.
        signing_key : SigningKey or None
            What every round will be signed with; None for a store without signatures.

        Raises
        ------
        StoreError
            If there is a store already, or it cannot be written.
        HeaderError
            If the name of the run is not allowed.
        KekError
            If the KEK cannot be used.
        """
        verify_key = None if signing_key is None else signing_key.verify_key
        manifest = Manifest(run, secrets.token_hex(8), verify_key)
        lock = WriterLock(directory / ".lock")
        with refusals(f"cannot make a model store in {directory}"):
            Layout(directory).create()
            lock.acquire()
            try:
                # What is there without a description is left of a creation that was cut off.
                if not os.path.lexists(directory / MANIFEST_NAME):
                    create_keys(directory, manifest.store, kek)
                write_manifest(directory, manifest)
            finally:
                lock.release()
        return cls(directory, kek, marks=marks, signing_key=signing_key)

    def save(
        self,
        round_: int,
        tensors: Mapping[str, Array],
        meta: Mapping[str, MetaValue],
        strategy_state: Mapping[str, Array] | None,
    ) -> None:
        """Commit a round: the model, and the strategy's state that belongs to it.

        When this returns, both are on the disk. When it raises, the round does not exist and all
        earlier ones stand, unless the message says otherwise. Older strategy states are removed:
        the newest two stay.

        Parameters
        ----------
        round_ : int
            A round after all that are saved.
        tensors : Mapping[str, ndarray]
            The model, as `fedveil.vault.tensors.TensorFile` takes it.
        meta : Mapping[str, str | int | float | bool]
            Put into the header of the model, in clear.
        strategy_state : Mapping[str, ndarray] or None
            What the strategy needs to go on from here, if anything.

        Raises
        ------
        SignatureError
            If the store is signed, and no signing key was given.
        StoreError
            If the round is not a later one, or the disk refuses.
        HeaderError, TensorError
            If `meta` or the arrays cannot be stored.
        VaultError
            As `claim` does.
        """
        newest = self._begin(round_)
        previous = "" if newest is None else newest.fingerprint()
        try:
            state = ""
            if strategy_state is not None:
                sealed = self._write("strategy-state", round_, strategy_state, {}, previous, "")
                state = sealed.fingerprint()
            header = self._write("model", round_, tensors, meta, previous, state)
        except OSError as error:
            raise StoreError(
                f"cannot save round {round_} in {self.directory}: {error.strerror}; "
                + self._after_failure(round_)
            ) from None
        hint = f"round {round_} itself is saved"
        with refusals(f"cannot remove an old strategy state in {self.directory}", hint):
            self._layout.remove_old_states()
        if self._marks is not None:
            try:
                self._marks.raise_to(self._mark(round_, header.fingerprint()))
            except StoreError as error:
                raise StoreError(f"{error}; {hint}") from None

    def _begin(self, round_: int) -> Header | None:
        """Take the lock, clean up, and return the header of the newest round."""
        if self.verify_key is not None and self._signing_key is None:
            raise SignatureError(
                f"the rounds of {self.directory} are signed: saving needs the signing key of "
                f"{self.verify_key.to_text()}"
            )
        newest = self._claim()
        if newest is not None and round_ <= newest.round:
            raise StoreError(
                f"round {round_} cannot be saved in {self.directory}: round {newest.round} is "
                "there already, and saved rounds are never replaced"
            )
        with refusals(f"cannot write to the model store {self.directory}"):
            self._layout.remove_leftovers()
        return newest

    def _after_failure(self, round_: int) -> str:
        if os.path.lexists(self.path(round_)):
            return "the round is there, but a power failure may still undo it"
        return "the rounds saved before it are unharmed"

    def _write(
        self,
        kind: Kind,
        round_: int,
        tensors: Mapping[str, Array],
        meta: Mapping[str, MetaValue],
        previous: str,
        state: str,
    ) -> Header:
        sealed: list[Header] = []
        replace_file(
            self._layout.path(kind, round_),
            lambda sink: sealed.append(
                seal_to(
                    sink,
                    Address(kind, self.store, self.run, round_),
                    tensors,
                    meta,
                    model_key=self._keyring.key,
                    signing_key=self._signing_key,
                    previous=previous,
                    state=state,
                    threads=self._threads,
                )
            ),
        )
        return sealed[0]
