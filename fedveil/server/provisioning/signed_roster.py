"""The roster as it is handed out: who takes part, signed by the federation's authority.

It is a roster file as `fedveil.rosters` reads it, with a section ``signed`` beside the clients. The
signature (Ed25519, RFC 8032) is over a label, the federation's name, the serial, the time, the
number of places, and each client's name and public key in order of their names, every part after
its length in 4 bytes (big-endian), so that no two rosters have the same bytes. A client pins the
authority's public key with its first kit; the serial grows with every change, so that an old
roster cannot pass for a newer one.
"""

from __future__ import annotations

import base64
import binascii
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.rosters import parse_public_key, show_public_key
from fedveil.secagg.errors import RosterError
from fedveil.secagg.identity import Identity, Roster, verifies
from fedveil.server.provisioning.errors import KitError

__all__ = [
    "SignedRoster",
    "parse_signed_roster",
    "read_signed_roster",
    "read_trusted_roster",
    "sign_roster",
]

_LABEL = b"fedveil/federation-roster/1"
_FORMAT = "fedveil-roster-1"
_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class SignedRoster:
    """Who takes part in a federation, and that its authority says so.

    Parameters
    ----------
    federation : str
        Its name.
    serial : int
        Which version this is, from 1 on.
    issued : str
        When it was signed, UTC.
    places : int
        Parts that the data is divided among: Flower's ``num-partitions``.
    roster : Roster
        The clients.
    signature : bytes
        64 bytes.
    """

    federation: str
    serial: int
    issued: str
    places: int
    roster: Roster
    signature: bytes

    def check(self, authority: bytes) -> None:
        """Pass if `authority`, a public key of 32 bytes, signed this.

        Raises
        ------
        KitError
            If it did not.
        """
        statement = _statement(self.federation, self.serial, self.issued, self.places, self.roster)
        if not verifies(authority, self.signature, statement):
            raise KitError(
                "the roster is not what the federation's authority signed; take the one that was "
                "handed over"
            )

    def to_toml(self) -> bytes:
        """Return the file."""
        clients = {name: show_public_key(key) for name, key in sorted(self.roster.keys.items())}
        signed = {
            "federation": self.federation,
            "serial": self.serial,
            "issued": self.issued,
            "places": self.places,
            "signature": base64.b64encode(self.signature).decode("ascii"),
        }
        return tomli_w.dumps({"format": _FORMAT, "clients": clients, "signed": signed}).encode()


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    federation: str
    serial: int = Field(ge=1)
    issued: str
    places: int = Field(ge=1)
    signature: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["fedveil-roster-1"]
    clients: dict[str, str]
    signed: _Signed | None = None


def sign_roster(
    authority: Identity, serial: int, issued: str, places: int, roster: Roster
) -> SignedRoster:
    """Sign a roster; the federation is the authority's name."""
    statement = _statement(authority.name, serial, issued, places, roster)
    return SignedRoster(authority.name, serial, issued, places, roster, authority.sign(statement))


def read_signed_roster(path: Path) -> SignedRoster:
    """Read a roster's file; whether its signature is right is for `SignedRoster.check` to say.

    Raises
    ------
    KitError
        If it is not there, or `parse_signed_roster` refuses it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_signed_roster(content, str(path))


def read_trusted_roster(path: Path, authority: str, federation: str) -> SignedRoster:
    """Read a roster's file, and refuse one that the authority did not sign for this federation.

    Parameters
    ----------
    path : Path
        The file.
    authority : str
        Public key of the authority, as a kit names it.
    federation : str
        Name of the federation.

    Raises
    ------
    KitError
        If it is not there, no signed roster, or another one.
    """
    roster = read_signed_roster(path)
    try:
        roster.check(parse_public_key(authority))
    except KitError as error:
        raise KitError(f"{path}: {error}") from None
    if roster.federation != federation:
        raise KitError(
            f"{path}: is that of the federation {roster.federation}, not of {federation}"
        )
    return roster


def parse_signed_roster(content: bytes, source: str) -> SignedRoster:
    """Read a roster.

    Raises
    ------
    KitError
        If it is no roster, or bears no signature.
    """
    malformed = KitError(f"{source}: is no signed roster; take the one that was handed over")
    if len(content) > _MOST_BYTES:
        raise malformed
    try:
        found = _File.model_validate(tomllib.loads(content.decode("utf-8")))
        roster = Roster({name: parse_public_key(key) for name, key in found.clients.items()})
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError, RosterError):
        raise malformed from None
    if found.signed is None:
        raise KitError(
            f"{source}: bears no signature of the federation's authority; it was changed by hand. "
            "Take the one that was handed over"
        )
    signed = found.signed
    try:
        signature = base64.b64decode(signed.signature, validate=True)
    except (ValueError, binascii.Error):
        raise malformed from None
    return SignedRoster(
        signed.federation, signed.serial, signed.issued, signed.places, roster, signature
    )


def _statement(federation: str, serial: int, issued: str, places: int, roster: Roster) -> bytes:
    parts = [_LABEL, federation.encode(), str(serial).encode(), issued.encode()]
    parts.append(str(places).encode())
    for name, key in sorted(roster.keys.items()):
        parts += [name.encode(), key]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
