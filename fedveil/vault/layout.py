"""Where the files of a store lie, which of them count, and which are rubbish."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedveil.vault.errors import StoreError
from fedveil.vault.files import remove_temporaries, sync_folder
from fedveil.vault.header import Kind

__all__ = ["STATES_KEPT", "Layout", "refusals"]

STATES_KEPT = 2


@dataclass(frozen=True)
class Layout:
    """The folder of a store. All methods raise `OSError` when the folder refuses.

    Parameters
    ----------
    directory : Path
        The folder; the models lie in it, the strategy's states in ``state`` below it.
    """

    directory: Path

    def create(self) -> None:
        """Make the folders, mode 0700, where they are not there."""
        for folder in (self.directory, self._states):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                sync_folder(folder.parent)
        self._check_states()

    def path(self, kind: Kind, round_: int) -> Path:
        """Return where the file of a kind and a round lies."""
        folder = self.directory if kind == "model" else self._states
        return folder / f"round-{round_:06d}.fvlt"

    def rounds(self) -> list[int]:
        """Return the committed rounds in order: those that have a model."""
        return _rounds_in(self.directory)

    def states(self) -> list[int]:
        """Return the committed rounds that have a strategy state, in order."""
        committed = set(self.rounds())
        return [number for number in self._saved_states() if number in committed]

    def files(self) -> Iterator[tuple[Kind, int]]:
        """Yield kind and round of every file that counts."""
        for number in self.rounds():
            yield "model", number
        for number in self.states():
            yield "strategy-state", number

    def remove_leftovers(self) -> None:
        """Remove what interrupted saves have left: temporary files, and states on their own.

        Only the writer may do so.
        """
        self._check_states()
        for folder in (self.directory, self._states):
            remove_temporaries(folder)
        for number in set(self._saved_states()) - set(self.rounds()):
            self.path("strategy-state", number).unlink()
        sync_folder(self._states)

    def remove_old_states(self) -> None:
        """Remove the states of committed rounds, apart from the newest `STATES_KEPT`."""
        for number in self.states()[:-STATES_KEPT]:
            self.path("strategy-state", number).unlink()

    def remove_rounds(self, rounds: Iterable[int]) -> None:
        """Remove rounds with their states, in the order given."""
        self._check_states()
        for number in rounds:
            self.path("strategy-state", number).unlink(missing_ok=True)
            self.path("model", number).unlink()
        sync_folder(self.directory)

    @property
    def _states(self) -> Path:
        return self.directory / "state"

    def _saved_states(self) -> list[int]:
        self._check_states()
        return _rounds_in(self._states)

    def _check_states(self) -> None:
        # Through a symbolic link, this store would read and remove the files of another.
        if not stat.S_ISDIR(os.lstat(self._states).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{self._states} is not a folder of its own")


@contextmanager
def refusals(what: str, hint: str = "") -> Iterator[None]:
    """Turn the operating system's refusals into one line.

    Raises
    ------
    StoreError
        In the place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        line = f"{what}: {error.strerror}"
        raise StoreError(f"{line}; {hint}" if hint else line) from None


def _rounds_in(folder: Path) -> list[int]:
    found = (re.fullmatch(r"round-([0-9]{6})\.fvlt", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)
