"""What the authority remembers of each party: public halves, so that kits can be handed over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.server.provisioning.errors import ProvisionError
from fedveil.server.provisioning.layout import PARTIES
from fedveil.server.provisioning.writing import replace
from fedveil.settings import ConfigError, read_toml

__all__ = ["Kind", "Party", "read_parties", "write_party"]

Kind = Literal["coordinator", "client", "inference"]


class Party(BaseModel):
    """One party, as it was provisioned.

    Parameters
    ----------
    name, kind
        Who it is.
    place : int, optional
        A client's part of the data.
    identity, supernode_key : str, optional
        A client's public keys.
    server_key : str, optional
        Public key (PEM) of what a server shows, from which its certificate is renewed.
    signer : str, optional
        The coordinator's verify key.
    revoked : str, optional
        When it was revoked, UTC.
    files : dict
        SHA-256 of what was handed out, by path in the kit, for files that can be made anew.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["fedveil-party-1"] = "fedveil-party-1"
    name: str
    kind: Kind
    place: Annotated[int, Field(ge=0)] | None = None
    identity: str | None = None
    supernode_key: str | None = None
    server_key: str | None = None
    signer: str | None = None
    revoked: str | None = None
    files: dict[str, str] = {}


def read_parties(authority: Path) -> dict[str, Party]:
    """Return the parties by name, revoked ones included.

    Raises
    ------
    ProvisionError
        If a file cannot be read or is malformed.
    """
    found = (_read(path) for path in sorted((authority / PARTIES).glob("*.toml")))
    return {party.name: party for party in found}


def write_party(authority: Path, party: Party, files: Mapping[str, str]) -> Party:
    """Remember a party and what it has; return it as it is kept."""
    kept = party.model_copy(update={"files": dict(sorted(files.items()))})
    content = tomli_w.dumps(kept.model_dump(exclude_none=True)).encode()
    replace(authority / PARTIES / f"{party.name}.toml", content)
    return kept


def _read(path: Path) -> Party:
    try:
        party = Party.model_validate(read_toml(path))
    except ConfigError as error:
        raise ProvisionError(str(error)) from None
    except ValidationError:
        raise ProvisionError(
            f"{path}: is no record of a party that this Fedveil reads; restore it from a copy"
        ) from None
    if party.name != path.stem:
        raise ProvisionError(f"{path}: is the record of {party.name}; restore it from a copy")
    return party
