"""Keeping a store: its one writer's lock, its keys, and which old rounds stay."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from fedveil.vault.header import Header
from fedveil.vault.kek.interface import KekProvider
from fedveil.vault.layout import refusals
from fedveil.vault.lock import WriterLock
from fedveil.vault.reader import StoreReader
from fedveil.vault.retention import KeepBest, rounds_to_remove
from fedveil.vault.rotation import finish_rotation, rotate
from fedveil.vault.signing import VerifyKey

__all__ = ["StoreKeeper"]


class StoreKeeper(StoreReader):
    """The encrypted rounds of one run, to be read and looked after.

    `claim`, or the first call that writes, takes the store's lock and keeps it until `close` or
    the end of the process, so that two runs never write into one store. Reading needs no lock.

    Parameters and errors are those of `StoreReader`.
    """

    def __init__(
        self,
        directory: Path,
        kek: KekProvider,
        *,
        marks: Path | None,
        verify_key: VerifyKey | None = None,
    ) -> None:
        super().__init__(directory, kek, marks=marks, verify_key=verify_key)
        self._lock = WriterLock(directory / ".lock")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def claim(self) -> None:
        """Take the store's lock now, before work whose result a second writer could not save.

        An exchange of the model key that was interrupted is finished.

        Raises
        ------
        StoreLockedError
            If another writer holds the store.
        RollbackError
            If the store is older than it was when last seen.
        StoreError
            If the folder cannot be written.
        VaultError
            If the newest round's header does not open.
        """
        self._claim()

    def close(self) -> None:
        """Let another writer have the store; a later call that writes takes the lock again."""
        self._lock.release()

    def gc(self, keep_last: int, keep_best: KeepBest | None = None) -> list[int]:
        """Remove rounds with their strategy states; the newest always stays.

        Parameters
        ----------
        keep_last : int
            How many of the newest rounds stay, at least 1.
        keep_best : KeepBest, optional
            Which rounds stay beside them.

        Returns
        -------
        list of int
            The rounds that were removed.

        Raises
        ------
        StoreError
            If the choice is not possible, or the folder refuses.
        VaultError
            As `claim` does, or if the header of a round does not open.
        """
        self.claim()
        metas = {number: self._head(number).header.meta for number in self.rounds()}
        removed = rounds_to_remove(metas, keep_last, keep_best)
        with refusals(f"cannot remove rounds from {self.directory}", "some may be removed already"):
            self._layout.remove_rounds(removed)
        return removed

    def add_kek(self, kek: KekProvider) -> None:
        """Let one more key-encryption key open the store.

        Raises
        ------
        KekError
            If it opens the store already or cannot be used, or there are too many.
        VaultError
            As `claim` does.
        """
        self.claim()
        with self._changing_keys():
            self._keyring.add_kek(kek)

    def retire_kek(self, key_id: str) -> None:
        """Let a key-encryption key open the store no longer.

        Whoever kept a copy of ``keys.json`` and holds this KEK still has the model key: exchange
        that, too (`rotate_model_key`), if they must not read later rounds.

        Raises
        ------
        StoreError
            If the KEK does not open the store, or is the last that does.
        VaultError
            As `claim` does.
        """
        self.claim()
        with self._changing_keys():
            self._keyring.retire_kek(key_id)

    def replace_kek(self, kek: KekProvider) -> None:
        """Put a key-encryption key in the place of the one that the store was opened with.

        Only ``keys.json`` is written. What `retire_kek` says of old copies of it holds here, too.

        Raises
        ------
        KekError
            If it opens the store already or cannot be used.
        VaultError
            As `claim` does.
        """
        self.claim()
        with self._changing_keys():
            self._keyring.replace_kek(kek)

    def rewrap_kek(self) -> None:
        """Wrap the model key anew under the newest version of the KEK given at opening.

        Errors are those of `claim` and `fedveil.vault.keyring.Keyring.rewrap`.
        """
        self.claim()
        with self._changing_keys():
            self._keyring.rewrap()

    def rotate_model_key(self, others: Collection[KekProvider] = ()) -> str:
        """Exchange the model key; weights are neither read nor written.

        A crash leaves a store that opens; the next writer finishes.

        Parameters
        ----------
        others : collection of KekProvider
            All key-encryption keys that open the store, apart from the one given at opening.

        Returns
        -------
        str
            Public name of the new model key.

        Raises
        ------
        StoreError
            If a KEK is missing, or a file cannot be written.
        VaultError
            As `claim` does, or if the head of a file does not open. Nothing was changed then.
        """
        self.claim()
        with self._changing_keys():
            rotate(self._keyring, self._layout, self._manifest, others, self._marks)
        return self._keyring.key.key_id

    def _claim(self) -> Header | None:
        """Take the lock and return the verified header of the newest round."""
        with refusals(f"cannot write to the model store {self.directory}"):
            taken = self._lock.acquire()
        try:
            if taken or self._keyring.stale:
                # Another writer may have exchanged the model key since the store was opened.
                with refusals(f"cannot write to the model store {self.directory}"):
                    self._keyring.settle()
            # First the mark: an exchange that somebody put back is not to be gone on with.
            newest = self._newest(lambda round_: self._head(round_).header)
            with self._changing_keys():
                finish_rotation(self._keyring, self._layout, self._manifest, self._marks)
        except BaseException:
            if taken:
                self._lock.release()
            raise
        return newest

    def _changing_keys(self) -> AbstractContextManager[None]:
        return refusals(
            f"cannot change the key list of {self.directory}",
            "the change may have been made or not; the rounds are unharmed, and the next call that "
            "writes goes on from what is there",
        )
