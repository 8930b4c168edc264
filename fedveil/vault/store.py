"""A folder of encrypted checkpoints, one a round: one writer, any number of readers.

::

    store.json               which run, which key (no secret)
    round-000007.fvlt        the model after round 7; its rename commits the round
    state/round-000007.fvlt  the strategy's state after round 7, written before the model
    .lock                    held by the writer

A round exists when its model file has its name, and is never changed afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedveil.vault.checkpoint import seal_to
from fedveil.vault.errors import StoreError, VaultError
from fedveil.vault.files import replace_file
from fedveil.vault.header import Kind, MetaValue
from fedveil.vault.keyfile import Key
from fedveil.vault.layout import Layout
from fedveil.vault.lock import WriterLock
from fedveil.vault.manifest import Manifest, read_manifest, write_manifest
from fedveil.vault.placed import Checkpoint, read_placed
from fedveil.vault.tensors import Array

__all__ = ["Checkpoint", "ModelStore", "RoundCheck"]


@dataclass(frozen=True)
class RoundCheck:
    """Whether a round can be opened.

    Attributes
    ----------
    round : int
        The round.
    has_state : bool
        Whether a strategy state is kept for it, which is then checked too.
    problem : str or None
        One line on what is wrong; None when all is well.
    """

    round: int
    has_state: bool
    problem: str | None


class ModelStore:
    """The encrypted rounds of one run.

    `claim`, or the first save, takes the store's lock and keeps it until `close` or the end of
    the process, so that two runs never write into one store. Reading needs no lock.

    Parameters
    ----------
    directory : Path
        A folder made by `ModelStore.create`.
    key : Key
        The key it was created with.

    Raises
    ------
    StoreError
        If there is no store, its description is malformed, or its key is another one.
    """

    def __init__(self, directory: Path, key: Key) -> None:
        manifest = read_manifest(directory)
        if manifest.key_id != key.key_id:
            raise StoreError(
                f"the model store {directory} is encrypted under key {manifest.key_id}, but the "
                f"key given is {key.key_id}; use the key file that the run was started with"
            )
        self._run = manifest.run
        self._key = key
        self._layout = Layout(directory)
        self._lock = WriterLock(directory / ".lock")

    @classmethod
    def create(cls, directory: Path, key: Key, run: str) -> ModelStore:
        """Make a new, empty store for a run and open it.

        Parameters
        ----------
        directory : Path
            Made with mode 0700 if it is not there.
        key : Key
            What every round will be encrypted under.
        run : str
            Name of the run, 1 to 128 printable characters.

        Raises
        ------
        StoreError
            If there is a store already, or it cannot be written.
        HeaderError
            If the name of the run is not allowed.
        """
        manifest = Manifest(run, key.key_id)
        with _refusals(f"cannot make a model store in {directory}"):
            Layout(directory).create()
            write_manifest(directory, manifest)
        return cls(directory, key)

    @property
    def directory(self) -> Path:
        """The folder of the store."""
        return self._layout.directory

    @property
    def run(self) -> str:
        """The run that the store belongs to."""
        return self._run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def claim(self) -> None:
        """Take the store's lock now, before work whose result a second writer could not save.

        Raises
        ------
        StoreLockedError
            If another writer holds the store.
        StoreError
            If the folder cannot be written.
        """
        with _refusals(f"cannot write to the model store {self.directory}"):
            self._lock.acquire()

    def close(self) -> None:
        """Let another writer have the store; a later save takes the lock again."""
        self._lock.release()

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
        StoreLockedError
            If another writer holds the store.
        StoreError
            If the round is not a later one, or the disk refuses.
        HeaderError, TensorError
            If `meta` or the arrays cannot be stored.
        """
        saved = self._begin(round_)
        try:
            if strategy_state is not None:
                self._write("strategy-state", round_, strategy_state, {})
            self._write("model", round_, tensors, meta)
        except OSError as error:
            raise StoreError(
                f"cannot save round {round_} in {self.directory}: {error.strerror}; "
                + self._after_failure(round_, len(saved))
            ) from None
        hint = f"round {round_} itself is saved"
        with _refusals(f"cannot remove an old strategy state in {self.directory}", hint):
            self._layout.remove_old_states()

    def rounds(self) -> list[int]:
        """Return the rounds that are committed, in order.

        Raises
        ------
        StoreError
            If the folder cannot be read.
        """
        with _refusals(f"cannot read the model store {self.directory}"):
            return self._layout.rounds()

    def load(self, round_: int) -> Checkpoint:
        """Return the model after a round, every byte of it verified.

        Raises
        ------
        StoreError
            If there is no such round, the file cannot be read, or it belongs to another run,
            round or kind than its place says.
        VaultError
            If it does not open: the errors of `fedveil.vault.checkpoint.open_from`.
        """
        if round_ not in self.rounds():
            raise StoreError(f"{self.directory} has no round {round_}; it has {self._span()}")
        return self._read("model", round_)

    def load_state(self, round_: int) -> Checkpoint:
        """Return the strategy's state after a committed round; errors are those of `load`."""
        kept = self._states()
        if round_ not in kept:
            raise StoreError(
                f"{self.directory} keeps no strategy state of round {round_}; it keeps those of: "
                + (", ".join(map(str, kept)) or "none")
            )
        return self._read("strategy-state", round_)

    def path(self, round_: int) -> Path:
        """Return where the model file of a round lies, or would lie."""
        return self._layout.path("model", round_)

    def latest(self) -> Checkpoint:
        """Return the model after the newest round; errors are those of `load`.

        A damaged newest round is an error, never a silent step back to an older one.
        """
        saved = self.rounds()
        if not saved:
            raise StoreError(f"{self.directory} has no round yet")
        return self.load(saved[-1])

    def verify(self) -> list[RoundCheck]:
        """Decrypt and check every round, oldest first; what is wrong is reported, not raised.

        Raises
        ------
        StoreError
            If the folder itself cannot be read.
        """
        states = self._states()
        return [self._check(number, number in states) for number in self.rounds()]

    def _check(self, round_: int, has_state: bool) -> RoundCheck:
        kinds: list[Kind] = ["model", "strategy-state"] if has_state else ["model"]
        problems = []
        for kind in kinds:
            try:
                self._read(kind, round_)
            except VaultError as error:
                problems.append(str(error))
        return RoundCheck(round_, has_state, "; ".join(problems) or None)

    def _begin(self, round_: int) -> list[int]:
        """Take the lock, clean up, and return the rounds saved so far."""
        self.claim()
        with _refusals(f"cannot write to the model store {self.directory}"):
            saved = self._layout.rounds()
            if saved and round_ <= saved[-1]:
                raise StoreError(
                    f"round {round_} cannot be saved in {self.directory}: round {saved[-1]} is "
                    "there already, and saved rounds are never replaced"
                )
            self._layout.remove_leftovers()
        return saved

    def _after_failure(self, round_: int, saved: int) -> str:
        if os.path.lexists(self.path(round_)):
            return "the round is there, but a power failure may still undo it"
        return f"the {saved} rounds saved before it are unharmed"

    def _states(self) -> list[int]:
        with _refusals(f"cannot read the model store {self.directory}"):
            return self._layout.states()

    def _span(self) -> str:
        saved = self.rounds()
        return f"{len(saved)} between {saved[0]} and {saved[-1]}" if saved else "none yet"

    def _read(self, kind: Kind, round_: int) -> Checkpoint:
        path = self._layout.path(kind, round_)
        return read_placed(path, self._key, self._run, kind, round_)

    def _write(
        self,
        kind: Kind,
        round_: int,
        tensors: Mapping[str, Array],
        meta: Mapping[str, MetaValue],
    ) -> None:
        replace_file(
            self._layout.path(kind, round_),
            lambda sink: seal_to(sink, self._key, kind, self._run, round_, tensors, meta),
        )


@contextmanager
def _refusals(what: str, hint: str = "") -> Iterator[None]:
    """Turn the operating system's refusals into one line."""
    try:
        yield
    except OSError as error:
        line = f"{what}: {error.strerror}"
        raise StoreError(f"{line}; {hint}" if hint else line) from None
