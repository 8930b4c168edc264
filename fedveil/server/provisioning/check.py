"""`fedveil kit check`: what is wrong with a kit, one finding a line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedveil import __version__
from fedveil.errors import FedveilError
from fedveil.server.provisioning.findings import (
    ClientLook,
    CoordinatorLook,
    Finding,
    InferenceLook,
    Look,
)
from fedveil.server.provisioning.kit_file import (
    AnyKit,
    ClientKit,
    CoordinatorKit,
    flower_version,
    read_any_kit,
)
from fedveil.server.provisioning.layout import FLOWER_CONFIG, FLOWER_HOME
from fedveil.server.provisioning.settle import settled_files

__all__ = ["check_kit"]

_STATE = frozenset({"runs", "run", "marks", FLOWER_HOME})
"""Folders that fill up in use; Fedveil looks at its own files there when it reads them."""


def check_kit(folder: Path, now: datetime | None = None) -> list[Finding]:
    """Return what is wrong with a kit, and what is to be seen to; empty where all is well.

    Looked at are the dates, names and chain of certificates, whether private keys belong to what is
    shown of them, who may read and change the files, the roster and its signature, the policy, and
    the versions.

    Parameters
    ----------
    folder : Path
        The kit.
    now : datetime, optional
        For the certificates. Default: the clock.

    Raises
    ------
    KitError
        If the folder is no kit.
    """
    kit = read_any_kit(folder)
    findings = [*_versions(kit), *_permissions(folder)]
    for look in _looks(folder, kit, now or datetime.now(UTC)):
        findings += _tried(look, folder)
    return [*findings, *_tried(lambda: _settled(folder, kit), folder)]


def _looks(folder: Path, kit: AnyKit, now: datetime) -> list[Look]:
    if isinstance(kit, CoordinatorKit):
        return CoordinatorLook(folder, kit, now).looks()
    if isinstance(kit, ClientKit):
        return ClientLook(folder, kit, now).looks()
    return InferenceLook(folder, kit, now).looks()


def _tried(look: Look, folder: Path) -> Iterator[Finding]:
    """Yield findings; an error is one, and ends this look alone."""
    try:
        yield from look()
    except FedveilError as error:
        yield Finding(True, str(error))
    except (OSError, UnicodeDecodeError) as error:
        where = getattr(error, "filename", None) or folder
        yield Finding(True, f"{where}: cannot be read ({getattr(error, 'strerror', error)})")


def _versions(kit: AnyKit) -> Iterator[Finding]:
    if kit.flower != flower_version():
        yield Finding(
            True,
            f"the kit is for Flower {kit.flower}, and {flower_version()} is installed; install "
            "the version that the federation uses, or make the kits anew with this one",
        )
    if kit.made_with != __version__:
        yield Finding(
            False,
            f"the kit was made with Fedveil {kit.made_with}, and {__version__} is installed; "
            "all parties must run the same version",
        )


def _permissions(folder: Path) -> Iterator[Finding]:
    for path in [folder, *sorted(folder.rglob("*"))]:
        inside = path.relative_to(folder).parts
        if inside and inside[0] in _STATE and path != folder / FLOWER_CONFIG:
            continue
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            yield Finding(True, f"{path}: is a symbolic link; put the file itself there")
            continue
        if status.st_uid not in (os.geteuid(), 0):
            yield Finding(True, f"{path}: belongs to user {status.st_uid}, not to you")
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode) and mode & 0o077:
            yield Finding(True, f"{path}: has mode {mode:04o}; run: chmod 700 {path}")
        elif not stat.S_ISDIR(status.st_mode) and mode & 0o077:
            yield Finding(True, f"{path}: has mode {mode:04o}; run: chmod go= {path}")


def _settled(folder: Path, kit: AnyKit) -> Iterator[Finding]:
    for name, content in settled_files(kit, folder).items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            yield Finding(
                False,
                f"{path}: names other paths than this machine's; run: fedveil kit settle {folder}",
            )
