"""High-water marks: newest round and model key that were seen of a store, kept apart from it.

Everything in a store can be authentic and still be an old copy of it. Whoever puts back an old
backup, removes the newest rounds, or undoes an exchange of the model key, cannot change what is
remembered elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

from fedveil.vault.errors import HeaderError, RollbackError, StoreError, VaultError
from fedveil.vault.files import open_private, read_small, replace_file
from fedveil.vault.header import check_fingerprint, check_public_id, check_round

__all__ = ["MARK_FORMAT", "Mark", "MarkFile"]

MARK_FORMAT = "fedveil-mark-2"

_MOST_BYTES = 4096


@dataclass(frozen=True)
class Mark:
    """What was seen of a store.

    Parameters
    ----------
    round : int or None
        The newest round; None where there was none yet.
    header : str
        Fingerprint of its model's header, 64 hexadecimal characters; empty where there is none.
    model_keys : tuple of str
        Public names of the model keys that may be the current one: one, or two while it is
        being exchanged.

    Raises
    ------
    HeaderError
        If a value is not allowed.
    """

    round: int | None
    header: str
    model_keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.round is not None:
            check_round(self.round)
            check_fingerprint("header", self.header)
        elif self.header != "":
            raise HeaderError("a mark without a round has no header")
        if not 1 <= len(self.model_keys) <= 2:
            raise HeaderError("a mark names one or two model keys")
        for key_id in self.model_keys:
            check_public_id("model key", key_id)

    def is_older(self, round_: int) -> bool:
        """Return whether a round is newer than what was seen."""
        return self.round is None or self.round < round_


class MarkFile:
    """The mark of one store.

    Parameters
    ----------
    folder : Path
        Where marks are kept, apart from the stores; made with mode 0700 if it is not there.
    store : str
        Public name of the store.
    """

    def __init__(self, folder: Path, store: str) -> None:
        self._folder = folder
        self._store = store
        self._path = folder / f"{store}.json"

    def read(self) -> Mark | None:
        """Return the mark, or None when the store was not seen before.

        Read it before listing the rounds: a round is committed before its mark is raised.

        Raises
        ------
        StoreError
            If it cannot be read or is malformed.
        """
        try:
            with open_private(self._path) as (descriptor, _):
                content = read_small(descriptor, _MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read the mark {self._path}: {error.strerror}") from None
        except VaultError as error:
            raise StoreError(f"mark refused: {error}") from None
        malformed = StoreError(
            f"{self._path} is not a mark of the format {MARK_FORMAT} for the store {self._store}; "
            "restore it from a copy, or remove it to trust the store as it is"
        )
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError):
            raise malformed from None
        names = {"format", "store", "round", "header", "model_keys"}
        if not isinstance(fields, dict) or set(fields) != names:
            raise malformed
        if (fields["format"], fields["store"]) != (MARK_FORMAT, self._store):
            raise malformed
        if not isinstance(fields["model_keys"], list):
            raise malformed
        try:
            return Mark(fields["round"], fields["header"], tuple(fields["model_keys"]))
        except HeaderError:
            raise malformed from None

    def check(
        self,
        mark: Mark | None,
        directory: Path,
        saved: Sequence[int],
        fingerprint: Callable[[int], str],
    ) -> None:
        """Refuse a store that is older than its mark, or of another history.

        Parameters
        ----------
        mark : Mark or None
            What `read` returned before the rounds were listed.
        directory : Path
            The folder of the store, for the message.
        saved : sequence of int
            The committed rounds in order.
        fingerprint : callable
            Returns the fingerprint of a committed round's authenticated header.

        Raises
        ------
        RollbackError
            If the newest round is older than the mark, or the mark's round is another one now.
        """
        if mark is None or mark.round is None:
            return
        if not saved or saved[-1] < mark.round:
            newest = f"ends with round {saved[-1]}" if saved else "has no round"
            found = f"{directory} {newest}, but round {mark.round} was seen in it"
        elif mark.round in saved and fingerprint(mark.round) != mark.header:
            found = f"round {mark.round} of {directory} is not the one that was seen there"
        else:
            return
        raise RollbackError(
            f"{found}: an older copy of the store was put back, or rounds were removed; restore "
            f"the newest copy or, if it was you and you mean it, remove {self._path}"
        )

    def refuse_key(self, mark: Mark, directory: Path, key_id: str) -> NoReturn:
        """Refuse a store whose current model key the mark does not name.

        Raises
        ------
        RollbackError
            Always.
        """
        raise RollbackError(
            f"the model key of {directory} is {key_id}, but {' or '.join(mark.model_keys)} was "
            "seen: an older copy of the store was put back, or the model key was exchanged on "
            "another machine; restore the newest copy or, if it was you and you mean it, remove "
            f"{self._path}"
        )

    def raise_to(self, mark: Mark) -> None:
        """Remember a round that was seen, unless a later one is remembered already.

        The model keys count only where nothing is remembered; `accept_keys` changes them.

        Raises
        ------
        StoreError
            If the mark cannot be written, or the one there is malformed.
        """

        def change(there: Mark | None) -> Mark:
            if there is None:
                return mark
            if mark.round is None or not there.is_older(mark.round):
                return there
            return replace(mark, model_keys=there.model_keys)

        self._change(change)

    def accept_keys(self, *key_ids: str) -> None:
        """Remember which model keys may be the current one, instead of those remembered.

        Raises
        ------
        StoreError
            If the mark cannot be written, or the one there is malformed.
        """

        def change(there: Mark | None) -> Mark:
            return Mark(None, "", key_ids) if there is None else replace(there, model_keys=key_ids)

        self._change(change)

    def _change(self, change: Callable[[Mark | None], Mark]) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._folder):
                there = self.read()
                mark = change(there)
                if mark == there:
                    return
                fields = {"format": MARK_FORMAT, "store": self._store, **asdict(mark)}
                content = (json.dumps(fields, indent=2) + "\n").encode("ascii")
                replace_file(self._path, lambda sink: sink.write(memoryview(content)))
        except OSError as error:
            raise StoreError(
                f"cannot keep the mark of the newest round in {self._path}: {error.strerror}; make "
                "that folder writable, since without the mark an older copy of the store that is "
                "put back would not be noticed"
            ) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others from raising a mark, so that none is lowered."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
