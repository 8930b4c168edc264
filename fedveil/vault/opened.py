"""A store that was opened: its keys, its marks, and how its files are reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from fedveil.vault.buffers import ReadAt
from fedveil.vault.checkpoint import Access, authenticate, open_from
from fedveil.vault.errors import SignatureError, StoreError, TamperedError, WrongKeyError
from fedveil.vault.head import Head
from fedveil.vault.header import Address, Header, Kind
from fedveil.vault.kek.interface import KekProvider
from fedveil.vault.keyfile import Key
from fedveil.vault.keyring import Keyring
from fedveil.vault.layout import Layout, refusals
from fedveil.vault.manifest import read_manifest
from fedveil.vault.marks import Mark, MarkFile
from fedveil.vault.parallel import usable_threads
from fedveil.vault.placed import Checkpoint, read_placed
from fedveil.vault.signing import VerifyKey

__all__ = ["OpenStore"]

Result = TypeVar("Result")


class OpenStore:
    """What reading and writing a store have in common.

    Parameters
    ----------
    directory : Path
        A folder made by `fedveil.vault.store.ModelStore.create`.
    kek : KekProvider
        A key-encryption key that opens it.
    marks : Path or None
        The folder that remembers newest round and model key of every store, apart from the
        stores; None to accept an older copy of the store without noticing.
    verify_key : VerifyKey or None
        Whose signature every round must have. None takes the store's own word for whose that is;
        a machine that only reads should know better.

    Raises
    ------
    StoreDestroyedError
        If the model key was destroyed.
    StoreError
        If there is no store, or it is malformed.
    SignatureError
        If the rounds are to be signed by another key than the one given, or not at all.
    WrongKeyError
        If the KEK does not open the store.
    TamperedError, KekError
        If the wrapped model key was changed, or the KEK cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        kek: KekProvider,
        *,
        marks: Path | None,
        verify_key: VerifyKey | None = None,
    ) -> None:
        self._manifest = read_manifest(directory)
        if verify_key is not None and verify_key != self._manifest.verify_key:
            named = self._manifest.verify_key
            says = "is not signed" if named is None else f"names the verify key {named.to_text()}"
            raise SignatureError(
                f"the model store {directory} {says}, but {verify_key.to_text()} is demanded: "
                "it is another store, or it was changed"
            )
        self._layout = Layout(directory)
        self._keyring = Keyring(directory, self._manifest.store, kek)
        self._marks = None if marks is None else MarkFile(marks, self._manifest.store)
        self._threads = usable_threads()

    @property
    def directory(self) -> Path:
        """The folder of the store."""
        return self._layout.directory

    @property
    def run(self) -> str:
        """The run that the store belongs to."""
        return self._manifest.run

    @property
    def store(self) -> str:
        """Public name of the store, 16 hexadecimal characters."""
        return self._manifest.store

    @property
    def verify_key(self) -> VerifyKey | None:
        """Whose signature every round has; None where rounds are not signed."""
        return self._manifest.verify_key

    def keks(self) -> tuple[tuple[str, str], ...]:
        """Return provider and name of every key-encryption key that opens the store.

        Errors are those of opening it.
        """
        self._keyring.reload()
        wraps = self._keyring.keys.current.wraps
        return tuple((wrapped.provider, wrapped.key_id) for wrapped in wraps)

    @property
    def opened_by(self) -> str:
        """Public name of the key-encryption key that it was opened with, as `keks` has it."""
        return self._keyring.opened_by

    def rounds(self) -> list[int]:
        """Return the rounds that are committed, in order.

        Raises
        ------
        StoreError
            If the folder cannot be read.
        """
        with self._reading():
            return self._layout.rounds()

    def path(self, round_: int) -> Path:
        """Return where the model file of a round lies, or would lie."""
        return self._layout.path("model", round_)

    def _newest(self, verify: Callable[[int], Header]) -> Header | None:
        """Return the verified header of the newest round, once it is checked against the mark."""
        # The mark first: a round is committed before its mark is raised.
        mark = None if self._marks is None else self._marks.read()
        saved = self.rounds()
        newest = verify(saved[-1]) if saved else None
        if self._marks is not None:
            self._check_mark(self._marks, mark, saved, newest)
            self._check_model_key(self._marks)
            if newest is None:
                self._marks.raise_to(self._mark(None, ""))
            elif mark is None or mark.is_older(newest.round):
                self._marks.raise_to(self._mark(newest.round, newest.fingerprint()))
        return newest

    def _check_mark(
        self, marks: MarkFile, mark: Mark | None, saved: Sequence[int], newest: Header | None
    ) -> None:
        def fingerprint(round_: int) -> str:
            header = newest if newest is not None and newest.round == round_ else None
            return (header or self._head(round_).header).fingerprint()

        marks.check(mark, self.directory, saved, fingerprint)

    def _check_model_key(self, marks: MarkFile) -> None:
        """Refuse a model key that is not the one last seen; which one is in hand counts."""
        mark = marks.read()
        if mark is None:
            # What is named now will be demanded from now on: not a key that is gone already.
            self._keyring.reload()
        while mark is not None and self._keyring.key.key_id not in mark.model_keys:
            # The key may be exchanged at this moment. The mark always names the current key, so
            # a key read while the mark stays the same must be in it.
            self._keyring.reload()
            again = marks.read()
            if again == mark and self._keyring.key.key_id not in mark.model_keys:
                marks.refuse_key(mark, self.directory, self._keyring.key.key_id)
            mark = again

    def _mark(self, round_: int | None, header: str) -> Mark:
        return Mark(round_, header, (self._keyring.key.key_id,))

    def _check_saved(self, round_: int) -> None:
        saved = self.rounds()
        if round_ not in saved:
            span = f"{len(saved)} between {saved[0]} and {saved[-1]}" if saved else "none yet"
            raise StoreError(f"{self.directory} has no round {round_}; it has {span}")

    def _head(self, round_: int) -> Head:
        return self._read("model", round_, authenticate)

    def _load(self, kind: Kind, round_: int) -> Checkpoint:
        return self._read(
            kind, round_, lambda read, size, access: Checkpoint(*open_from(read, size, access))
        )

    def _read(
        self, kind: Kind, round_: int, act: Callable[[ReadAt, int, Access], Result]
    ) -> Result:
        """Read a file, with the newest model key if the one in hand does not open it."""
        path = self._layout.path(kind, round_)

        def attempt() -> Result:
            access = self._access(kind, round_, self._keyring.key)
            return read_placed(path, lambda read, size: act(read, size, access))

        try:
            return attempt()
        except (WrongKeyError, TamperedError):
            if not self._keyring.reload():
                raise
        return attempt()

    def _access(self, kind: Kind, round_: int, key: Key) -> Access:
        address = Address(kind, self.store, self.run, round_)
        return Access(address, key, self.verify_key, self._threads)

    def _reading(self) -> AbstractContextManager[None]:
        return refusals(f"cannot read the model store {self.directory}")
