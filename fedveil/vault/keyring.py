"""The model key of a store in hand: unwrapped, exchanged, and its wrap list kept up to date."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from fedveil.vault.destroy import check_not_destroyed
from fedveil.vault.errors import KekError, StoreError, TamperedError, WrongKeyError
from fedveil.vault.files import sync_folder
from fedveil.vault.kek.interface import KekProvider, WrappedKey
from fedveil.vault.keyfile import Key
from fedveil.vault.keylist import KeyList, SealedKeyList, WrappedModelKey
from fedveil.vault.listfile import read_keys, write_keys

__all__ = ["Keyring", "create_keys"]

_CONTEXT = b"fedveil/vault/2/model-key"
_SECRET_BYTES = 32


def create_keys(directory: Path, store: str, kek: KekProvider) -> None:
    """Draw the model key of a new store and write its key list.

    Raises
    ------
    KekError
        If the KEK cannot be used.
    OSError
        If the list cannot be written.
    """
    key = Key.generate()
    write_keys(directory, KeyList(store, _wrap_for(store, key, [kek])), key)


class Keyring:
    """The model key of an open store.

    Parameters
    ----------
    directory : Path
        The folder of the store.
    store : str
        Its public name.
    kek : KekProvider
        A key-encryption key that opens it.

    Raises
    ------
    StoreDestroyedError
        If the model key was destroyed.
    StoreError
        If the key list is missing or malformed.
    WrongKeyError
        If the KEK does not open the store.
    TamperedError
        If the wrapped key was changed, or is that of another store, or the list was changed by
        somebody without the model key.
    KekError
        If the KEK cannot be used.
    """

    def __init__(self, directory: Path, store: str, kek: KekProvider) -> None:
        self._directory = directory
        self._store = store
        self._kek = kek
        listed = self._read()
        self._key = self._unwrap(listed.keys.current)
        self._check(listed, self._key)
        self._keys = listed.keys
        self._stale = False

    @property
    def key(self) -> Key:
        """The model key."""
        return self._key

    @property
    def keys(self) -> KeyList:
        """The key list as it was last read or written."""
        return self._keys

    @property
    def stale(self) -> bool:
        """Whether a write failed, so that the list on the disk may be the old one or the new."""
        return self._stale

    @property
    def opened_by(self) -> str:
        """Public name, in the list, of the KEK given at opening; errors are those of `Keyring`."""
        return self._opened_by(self._kek, self._keys.current)[0].key_id

    def reload(self) -> bool:
        """Read the key list again; return whether the model key is another one now.

        Errors are those of `Keyring`.
        """
        listed = self._read()
        is_other = listed.keys.current.key_id != self._key.key_id
        key = self._unwrap(listed.keys.current) if is_other else self._key
        self._check(listed, key)
        self._keys, self._key, self._stale = listed.keys, key, False
        return is_other

    def settle(self) -> None:
        """Read the list again, and see to it that it is on the disk; only the writer needs to.

        A list that was renamed and not yet forced there could be gone after a power failure, when
        the slots that it makes needless are.

        Errors are those of `Keyring`; also OSError if the disk refuses.
        """
        failed = self._stale
        self.reload()
        if failed or self._keys.clearing:
            self._stale = True
            sync_folder(self._directory)
            self._stale = False

    def add_kek(self, kek: KekProvider) -> None:
        """Let one more KEK open the store.

        Raises
        ------
        KekError
            If it opens the store already, cannot be used, or there are too many.
        OSError
            If the list cannot be written.
        """
        wrapped = _wrap(self._store, self._key, kek)
        self._change_wraps(lambda wraps: (*wraps, wrapped))

    def retire_kek(self, key_id: str) -> None:
        """Take a KEK out of the list.

        Raises
        ------
        StoreError
            If it is not in the list, or is the last one.
        OSError
            If the list cannot be written.
        """
        wraps = self._keys.current.wraps
        left = tuple(wrapped for wrapped in wraps if wrapped.key_id != key_id)
        if len(left) == len(wraps):
            raise StoreError(
                f"no key-encryption key {key_id!r:.80} opens {self._directory}; "
                f"these do: {_names(wraps)}"
            )
        if not left:
            raise StoreError(
                f"{key_id} is the last key-encryption key of {self._directory}, and without one "
                "nobody can read it; add another first, or destroy the store"
            )
        self._change_wraps(lambda _: left)

    def replace_kek(self, kek: KekProvider) -> None:
        """Put a KEK in the place of the one given at opening, which opens the store no longer.

        Raises
        ------
        KekError
            If it opens the store already or cannot be used.
        OSError
            If the list cannot be written.
        """
        old, key = self._opened_by(self._kek, self._keys.current)
        new = _wrap(self._store, key, kek)
        self._change_wraps(lambda wraps: tuple(new if each == old else each for each in wraps))
        self._kek = kek

    def rewrap(self) -> None:
        """Wrap the model key anew under the newest version of the KEK given at opening.

        Raises
        ------
        WrongKeyError, TamperedError, KekError
            As for `Keyring`.
        OSError
            If the list cannot be written.
        """
        current = self._keys.current
        old, _ = self._opened_by(self._kek, current)
        new = self._kek.rewrap(old, self._context(current.key_id))
        self._change_wraps(lambda wraps: tuple(new if each == old else each for each in wraps))

    def begin_exchange(self, others: Collection[KekProvider]) -> Key:
        """Draw a new model key, put it into the list as the upcoming one, and return it.

        Parameters
        ----------
        others : collection of KekProvider
            The KEKs of the list, apart from the one that opened the store.

        Raises
        ------
        StoreError
            If a KEK of the list is not given: it would not open the store any more.
        KekError
            If a KEK cannot be used.
        OSError
            If the list cannot be written.
        """
        current = self._keys.current
        keks = [self._kek, *others]
        opened = [self._opened_by(kek, current)[0] for kek in keks]
        lost = [wrapped for wrapped in current.wraps if wrapped not in opened]
        if lost:
            raise StoreError(
                f"a new model key of {self._directory} would lock out {_names(lost)}: give these "
                "key-encryption keys too, or retire them first"
            )
        key = Key.generate()
        upcoming = _wrap_for(self._store, key, keks)
        self._write(replace(self._keys, upcoming=upcoming), self._key)
        return key

    def upcoming_key(self) -> Key | None:
        """Return the key of an exchange that was begun and is not over; errors as `Keyring`."""
        upcoming = self._keys.upcoming
        return None if upcoming is None else self._unwrap(upcoming)

    def switch(self, key: Key) -> None:
        """Make the upcoming key the current one and drop the old one.

        Raises
        ------
        OSError
            If the list cannot be written.
        """
        upcoming = self._keys.upcoming
        if upcoming is None or upcoming.key_id != key.key_id:
            raise ValueError("the key is not the upcoming one")
        self._write(KeyList(self._store, upcoming, clearing=True), key)
        self._key = key

    def finish_exchange(self) -> None:
        """Note that no file has a slot of the old key any more.

        Raises
        ------
        OSError
            If the list cannot be written.
        """
        self._write(replace(self._keys, clearing=False), self._key)

    def _read(self) -> SealedKeyList:
        check_not_destroyed(self._directory)
        return read_keys(self._directory, self._store)

    def _check(self, listed: SealedKeyList, key: Key) -> None:
        try:
            listed.check(key)
        except TamperedError as error:
            raise TamperedError(
                f"the key list of {self._directory} is refused: {error}; restore it from a copy"
            ) from None

    def _write(self, keys: KeyList, key: Key) -> None:
        # Until it is written and on the disk, which list is there is not known.
        self._stale = True
        write_keys(self._directory, keys, key)
        self._keys, self._stale = keys, False

    def _change_wraps(
        self, change: Callable[[tuple[WrappedKey, ...]], tuple[WrappedKey, ...]]
    ) -> None:
        if self._keys.upcoming is not None:
            raise StoreError(
                f"the model key of {self._directory} is being exchanged; let a writer finish that "
                "first"
            )
        current = self._keys.current
        changed = replace(current, wraps=change(current.wraps))
        self._write(replace(self._keys, current=changed), self._key)

    def _context(self, key_id: str) -> bytes:
        return _context(self._store, key_id)

    def _unwrap(self, wrapped: WrappedModelKey) -> Key:
        return self._opened_by(self._kek, wrapped)[1]

    def _opened_by(self, kek: KekProvider, model_key: WrappedModelKey) -> tuple[WrappedKey, Key]:
        """Return what a KEK opens of the wrap list of a model key, and the model key."""
        candidates = [each for each in model_key.wraps if each.provider == kek.name]
        candidates.sort(key=lambda each: each.key_id != kek.key_id)
        tampered: TamperedError | None = None
        unusable: KekError | None = None
        refused = f"it is not opened by {kek.name}:{kek.key_id}"
        for wrapped in candidates:
            try:
                secret = kek.unwrap(wrapped, self._context(model_key.key_id))
            except WrongKeyError as error:
                refused = str(error)
                continue
            except TamperedError as error:
                tampered = error
                continue
            except KekError as error:
                unusable = unusable or error
                continue
            key = Key(secret) if len(secret) == _SECRET_BYTES else None
            if key is None or key.key_id != model_key.key_id:
                raise TamperedError(
                    f"the key list of {self._directory} names the model key {model_key.key_id}, "
                    f"but {_names([wrapped])} holds another; restore it from a copy"
                )
            return wrapped, key
        if tampered is not None:
            raise TamperedError(f"the key list of {self._directory} does not open: {tampered}")
        if unusable is not None:
            raise unusable
        raise WrongKeyError(
            f"the model store {self._directory} does not open: {refused}; these keys open it: "
            f"{_names(model_key.wraps)}"
        )


def _wrap_for(store: str, key: Key, keks: Collection[KekProvider]) -> WrappedModelKey:
    return WrappedModelKey(key.key_id, tuple(_wrap(store, key, kek) for kek in keks))


def _wrap(store: str, key: Key, kek: KekProvider) -> WrappedKey:
    return kek.wrap(key.secret, _context(store, key.key_id))


def _context(store: str, key_id: str) -> bytes:
    return _CONTEXT + store.encode("ascii") + key_id.encode("ascii")


def _names(wraps: Sequence[WrappedKey]) -> str:
    return ", ".join(f"{wrapped.provider}:{wrapped.key_id}" for wrapped in wraps)
