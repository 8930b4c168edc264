"""Identities and rosters as files: who one is, and whom one knows."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

import tomli_w

from fedveil.home import make_private
from fedveil.secagg.errors import RosterError
from fedveil.secagg.identity import Identity, Roster
from fedveil.settings import ConfigError, read_toml
from fedveil.vault.errors import KeyFileMissingError
from fedveil.vault.files import create_file, replace_file
from fedveil.vault.keyfile import read_secret_file

__all__ = [
    "create_identity",
    "load_identity",
    "parse_public_key",
    "read_roster",
    "show_public_key",
    "write_roster",
]

_IDENTITY_FORMAT = "fedveil-identity-1"
_ROSTER_FORMAT = "fedveil-roster-1"
_MOST_BYTES = 4096


def create_identity(path: Path, name: str) -> Identity:
    """Draw a new identity and keep it in a new file of mode 0600.

    Raises
    ------
    RosterError
        If the name is malformed, something is at the path already, or it cannot be written.
    """
    identity = Identity.generate(name)
    fields = {
        "format": _IDENTITY_FORMAT,
        "name": name,
        "private_key": base64.b64encode(identity.secret).decode("ascii"),
    }
    content = (json.dumps(fields, indent=2) + "\n").encode()
    _make_folder(path.parent)
    try:
        create_file(path, lambda sink: sink.write(memoryview(content)))
    except FileExistsError:
        raise RosterError(
            f"{path} exists already and is left as it is; name another --out, or move it away"
        ) from None
    except OSError as error:
        raise RosterError(f"{path}: cannot be written ({error.strerror})") from None
    return identity


def load_identity(path: Path) -> Identity:
    """Read an identity file.

    Raises
    ------
    KeyFileError
        If it is a symbolic link, belongs to another user, or group or others may use it.
    RosterError
        If there is none, or it is malformed.
    """
    try:
        content = read_secret_file(path, _MOST_BYTES)
    except KeyFileMissingError:
        raise RosterError(
            f"there is no identity at {path}; make one with `fedveil keys new-identity NAME`"
        ) from None
    # No message shows what was read, nor is the parser's error chained: either may hold the key.
    malformed = RosterError(f"{path} is not an identity file of the format {_IDENTITY_FORMAT}")
    try:
        fields = json.loads(content)
        if set(fields) != {"format", "name", "private_key"}:
            raise malformed
        if fields["format"] != _IDENTITY_FORMAT:
            raise malformed
        return Identity(str(fields["name"]), base64.b64decode(fields["private_key"], validate=True))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise malformed from None


def read_roster(path: Path) -> Roster:
    """Read a roster file.

    Raises
    ------
    RosterError
        If it cannot be read or is malformed.
    """
    if not path.exists():
        raise RosterError(
            f"there is no roster at {path}; add the other clients with `fedveil roster add`"
        )
    try:
        tree = read_toml(path)
    except ConfigError as error:
        raise RosterError(f"roster {error}") from None
    clients = tree.get("clients", {})
    if tree.get("format") != _ROSTER_FORMAT or not isinstance(clients, dict):
        raise RosterError(f"{path} is not a roster of the format {_ROSTER_FORMAT}")
    try:
        return Roster({name: parse_public_key(str(key)) for name, key in clients.items()})
    except RosterError as error:
        raise RosterError(f"roster {path}: {error}") from None


def write_roster(path: Path, roster: Roster) -> None:
    """Write a roster file, whole or not at all.

    Raises
    ------
    RosterError
        If it cannot be written.
    """
    clients = {name: show_public_key(key) for name, key in sorted(roster.keys.items())}
    text = tomli_w.dumps({"format": _ROSTER_FORMAT, "clients": clients}).encode()
    _make_folder(path.parent)
    try:
        replace_file(path, lambda sink: sink.write(memoryview(text)))
    except OSError as error:
        raise RosterError(f"{path}: cannot be written ({error.strerror})") from None


def _make_folder(folder: Path) -> None:
    try:
        make_private(folder)
    except OSError as error:
        raise RosterError(
            f"{folder}: cannot be made ({error.strerror}); set FEDVEIL_HOME, or name another file"
        ) from None


def show_public_key(key: bytes) -> str:
    """Return a public key as people pass it on: base64."""
    return base64.b64encode(key).decode("ascii")


def parse_public_key(text: str) -> bytes:
    """Return the public key that a text shows.

    Raises
    ------
    RosterError
        If it shows none.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != 32:
        raise RosterError(
            f"{text!r:.60} is no public key; it is 44 characters of base64, as `fedveil keys "
            "new-identity` prints it"
        )
    return key
