"""Rounds that must never be served, and how each gets into a run's store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from served_run import weights

from fedveil.home import default_key_file, default_signing_key_file
from fedveil.server.run_folder import RunFolder
from fedveil.vault.kek.registry import open_kek
from fedveil.vault.signing import SigningKey, load_signing_key
from fedveil.vault.store import ModelStore

__all__ = ["DAMAGES", "FORGERIES", "Attack", "put", "seal", "set_back"]

Attack = Callable[[RunFolder, int, Path], Path]
"""Makes a bad file for the round after those of a run, in a folder of its own."""


def seal(
    folder: RunFolder, round_: int, room: Path, signing_key: SigningKey | None, **manifest: object
) -> Path:
    """Seal a round under the run's own model key, in an empty copy of its store."""
    copied = room / "copy"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(folder.store.directory, copied, ignore=shutil.ignore_patterns("*.fvlt"))
    fields = json.loads((copied / "store.json").read_text()) | manifest
    (copied / "store.json").write_text(json.dumps(fields))
    meta = folder.store.load(round_ - 1).header.meta
    kek = open_kek(f"file:{default_key_file()}")
    with ModelStore(copied, kek, marks=None, signing_key=signing_key) as store:
        store.save(round_, weights(round_), meta, None)
    return copied / folder.store.path(round_).name


def _good(folder: RunFolder, round_: int, room: Path) -> Path:
    return seal(folder, round_, room, load_signing_key(default_signing_key_file()))


def _flipped(at: int) -> Attack:
    def attack(folder: RunFolder, round_: int, room: Path) -> Path:
        path = _good(folder, round_, room)
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)
        return path

    return attack


def _truncated(folder: RunFolder, round_: int, room: Path) -> Path:
    path = _good(folder, round_, room)
    path.write_bytes(path.read_bytes()[:-1])
    return path


def _longer(folder: RunFolder, round_: int, room: Path) -> Path:
    path = _good(folder, round_, room)
    path.write_bytes(path.read_bytes() + b"\0")
    return path


def _empty(folder: RunFolder, round_: int, room: Path) -> Path:
    path = room / "empty"
    path.touch(mode=0o600)
    return path


def _another_round(folder: RunFolder, round_: int, room: Path) -> Path:
    return Path(shutil.copy(folder.store.path(round_ - 1), room / "another"))


def _link(folder: RunFolder, round_: int, room: Path) -> Path:
    path = room / "link"
    path.unlink(missing_ok=True)
    path.symlink_to(folder.store.path(round_ - 1))
    return path


def _folder(folder: RunFolder, round_: int, room: Path) -> Path:
    path = room / "folder"
    path.mkdir()
    return path


def _unsigned(folder: RunFolder, round_: int, room: Path) -> Path:
    return seal(folder, round_, room, None, verify_key=None)


def _signed_by_another(folder: RunFolder, round_: int, room: Path) -> Path:
    thief = SigningKey.generate()
    return seal(folder, round_, room, thief, verify_key=thief.verify_key.to_text())


def _under_another_key(folder: RunFolder, round_: int, room: Path) -> Path:
    shutil.rmtree(room / "other", ignore_errors=True)
    kek = open_kek(f"file:{default_key_file()}")
    own = load_signing_key(default_signing_key_file())
    meta = folder.store.load(round_ - 1).header.meta
    with ModelStore.create(
        room / "other", kek, folder.store.run, marks=None, signing_key=own
    ) as other:
        other.save(round_, weights(round_), meta, None)
        return other.path(round_)


DAMAGES: Mapping[str, Attack] = MappingProxyType(
    {
        "corrupt stream": _flipped(-20),
        "corrupt head": _flipped(40),
        "truncated": _truncated,
        "longer": _longer,
        "empty": _empty,
        "another round": _another_round,
        "link": _link,
        "folder": _folder,
    }
)
"""What a bad disk, or a stranger who can write to it, may leave there."""

FORGERIES: Mapping[str, Attack] = MappingProxyType(
    {
        "unsigned": _unsigned,
        "signed by another": _signed_by_another,
        "under another key": _under_another_key,
    }
)
"""What whoever stole some of the keys, but not all, can make."""


def put(folder: RunFolder, round_: int, attack: Attack, room: Path) -> Callable[[], None]:
    """Put a bad file into the place of a round, at once; return what takes it away again."""
    place = folder.store.path(round_)
    attack(folder, round_, room).rename(place)

    def take_away() -> None:
        place.rename(room / "taken")
        if (room / "taken").is_dir():
            (room / "taken").rmdir()

    return take_away


def set_back(folder: RunFolder, round_: int, room: Path) -> Callable[[], None]:
    """Take the newest round out of a store, as if an older copy had been put back."""
    place, aside = folder.store.path(round_), room / "aside"
    place.rename(aside)

    def put_back() -> None:
        aside.rename(place)

    return put_back
