"""How folders and files of kits are written: aside first, then renamed; private; never half."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedveil.home import make_private
from fedveil.server.provisioning.errors import ProvisionError
from fedveil.server.provisioning.layout import KIT, LOCK, UPDATES
from fedveil.vault.errors import StoreLockedError
from fedveil.vault.files import replace_file, sync_folder
from fedveil.vault.lock import WriterLock

__all__ = [
    "KitFolder",
    "alone_in",
    "move_aside",
    "publish",
    "remove_leftovers",
    "replace",
    "staging",
    "writing_to",
]

_STAGED = ".new"
_EXECUTABLE = 0o700
_SCRIPTS = "bin"


@contextmanager
def alone_in(kits: Path) -> Iterator[None]:
    """Make the folder of all kits, and keep other runs out of it."""
    with writing_to(kits):
        make_private(kits)
        mode = stat.S_IMODE(kits.stat().st_mode)
        if mode & 0o077:
            raise ProvisionError(
                f"{kits}: has mode {mode:04o}, so that others may look into it or change it; if "
                f"nobody has, run: chmod 700 {kits}"
            )
        lock = WriterLock(kits / LOCK)
        try:
            lock.acquire()
        except StoreLockedError:
            raise ProvisionError(
                f"{kits}: another `fedveil provision` is at work there; wait until it is done"
            ) from None
        remove_leftovers(kits)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn the system's errors into one line that names the folder."""
    try:
        yield
    except OSError as error:
        raise ProvisionError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); what is there is "
            "whole, run the command again"
        ) from None


def replace(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, or 0700 among the scripts, whole or not at all."""
    make_private(path.parent)
    replace_file(path, lambda sink: sink.write(memoryview(content)))
    if path.parent.name == _SCRIPTS:
        path.chmod(_EXECUTABLE)


@contextmanager
def staging(kits: Path, name: str) -> Iterator[Path]:
    """Yield a new folder beside the kits to build one in; it goes if it was not published."""
    folder = kits / f".{name}.{secrets.token_hex(8)}{_STAGED}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def publish(staged: Path, folder: Path) -> None:
    """Give a folder that is complete its name, durably.

    Raises
    ------
    ProvisionError
        If something has that name already; it is left as it is.
    """
    if folder.exists() or folder.is_symlink():
        raise ProvisionError(f"{folder}: is there already and is left as it is; move it away")
    for inner in sorted(staged.rglob("*")):
        if inner.is_dir():
            sync_folder(inner)
    sync_folder(staged)
    staged.rename(folder)
    sync_folder(folder.parent)


def move_aside(folder: Path, to: Path) -> None:
    """Move a folder to another place, where nothing may be yet."""
    make_private(to.parent)
    publish(folder, to)


def remove_leftovers(kits: Path) -> None:
    """Remove what a crash left half-built. Only safe while no other writer is at work there."""
    for leftover in kits.glob(f".*{_STAGED}"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)


class KitFolder:
    """A party's kit, or, once it was handed over, the folder of new files for it.

    Parameters
    ----------
    kits : Path
        The folder of all kits.
    name : str
        The party.
    known : Mapping of str to str
        SHA-256 of the files that it has, by path in the kit, as far as they can be made anew.

    Attributes
    ----------
    is_here : bool
        Whether the kit itself is there.
    folder : Path
        What is written to.
    changed, removed : list of str
        What was done so far.
    files : dict
        `known` as it is now.
    """

    def __init__(self, kits: Path, name: str, known: Mapping[str, str]) -> None:
        self.is_here = (kits / name / KIT).is_file()
        self.folder = kits / name if self.is_here else kits / UPDATES / name
        self.changed: list[str] = []
        self.removed: list[str] = []
        self.files = dict(known)

    def put(self, path: str, content: bytes, *, is_tracked: bool = True) -> None:
        """Write a file unless the party has it already.

        Parameters
        ----------
        path : str
            Where, in the kit.
        content : bytes
            What.
        is_tracked : bool
            Whether the file is remembered in `files`. Of a kit that was handed over, what is not
            is always written.
        """
        digest = hashlib.sha256(content).hexdigest()
        has_it = self._has(path, content) if self.is_here else self.files.get(path) == digest
        if not has_it:
            replace(self.folder / path, content)
            self.changed.append(path)
        if is_tracked:
            self.files[path] = digest

    def remove(self, path: str) -> None:
        """Remove a file, or remember that the party is to remove it."""
        there = self.folder / path
        if there.exists():
            there.unlink()
            sync_folder(there.parent)
        self.files.pop(path, None)
        self.removed.append(path)

    def _has(self, path: str, content: bytes) -> bool:
        there = self.folder / path
        if not there.is_file() or there.is_symlink():
            return False
        if there.parent.name == _SCRIPTS and not there.stat().st_mode & stat.S_IXUSR:
            return False
        return there.read_bytes() == content
