"""New kits: private keys drawn into a folder aside, and what may be known of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from fedveil.rosters import create_identity, load_identity, show_public_key
from fedveil.server.inference.tokens import empty_tokens
from fedveil.server.provisioning.authority import Authority
from fedveil.server.provisioning.certificates import (
    load_tls_key,
    new_tls_key,
    show_certificate,
    sign_server,
)
from fedveil.server.provisioning.errors import ProvisionError
from fedveil.server.provisioning.federation_file import FederationFile
from fedveil.server.provisioning.kit_file import (
    ClientKit,
    CoordinatorKit,
    InferenceKit,
    read_any_kit,
)
from fedveil.server.provisioning.layout import (
    COORDINATOR,
    IDENTITY,
    MODEL_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    SIGNING_KEY,
    SUPERNODE_KEY,
    SUPERNODE_PUBLIC,
    TOKENS,
)
from fedveil.server.provisioning.parties import Party
from fedveil.server.provisioning.supernode_keys import (
    load_supernode_key,
    new_supernode_key,
)
from fedveil.server.provisioning.writing import replace
from fedveil.vault.keyfile import create_key
from fedveil.vault.signing import create_signing_key, load_signing_key

__all__ = ["Maker", "adopt"]


@dataclass(frozen=True)
class Maker:
    """Draws the keys of new parties.

    Parameters
    ----------
    file : FederationFile
        The federation.
    authority : Authority
        Signs the servers' certificates.
    now : datetime
        When they begin.
    """

    file: FederationFile
    authority: Authority
    now: datetime

    def client(self, name: str, place: int, folder: Path) -> Party:
        """Draw a client's keys, unless its owner did; return what may be known of them."""
        entry = self.file.clients[name]
        identity, supernode = entry.identity, entry.supernode_key
        if identity is None or supernode is None:
            identity = show_public_key(create_identity(folder / IDENTITY, name).public_key)
            private, supernode = new_supernode_key()
            replace(folder / SUPERNODE_KEY, private)
        replace(folder / SUPERNODE_PUBLIC, f"{supernode} {name}\n".encode())
        return Party(
            name=name, kind="client", place=place, identity=identity, supernode_key=supernode
        )

    def coordinator(self, folder: Path) -> Party:
        """Draw the coordinator's keys; return what may be known of them."""
        shown = self._server(COORDINATOR, folder)
        _make_key(folder)
        signer = create_signing_key(folder / SIGNING_KEY).verify_key.to_text()
        return Party(name=COORDINATOR, kind="coordinator", server_key=shown, signer=signer)

    def inference(self, name: str, folder: Path) -> Party:
        """Draw an inference service's keys; return what may be known of them."""
        shown = self._server(name, folder)
        _make_key(folder)
        replace(folder / TOKENS, empty_tokens())
        return Party(name=name, kind="inference", server_key=shown)

    def certificate(self, party: Party) -> bytes:
        """Return a new certificate of a server for the key that it has."""
        public = load_pem_public_key((party.server_key or "").encode())
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ProvisionError(f"the record of {party.name} names no EC key; restore it")
        hosts = (
            self.file.coordinator.hosts
            if party.name == COORDINATOR
            else self.file.inference[party.name].hosts
        )
        days = self.file.certificates.days
        authority = self.authority
        certificate = sign_server(
            authority.certificate, authority.key, public, party.name, hosts, days, self.now
        )
        return show_certificate(certificate)

    def _server(self, name: str, folder: Path) -> str:
        key, private = new_tls_key()
        replace(folder / SERVER_KEY, private)
        shown = _show(key)
        party = Party(name=name, kind="inference", server_key=shown)
        replace(folder / SERVER_CERTIFICATE, self.certificate(party))
        return shown


def _make_key(folder: Path) -> None:
    """Draw the key-encryption key of a kit."""
    (folder / MODEL_KEY).parent.mkdir(mode=0o700, exist_ok=True)
    create_key(folder / MODEL_KEY)


def adopt(folder: Path, file: FederationFile) -> Party:
    """Return what may be known of a kit that was made, and of which there is no record.

    That is what a crash leaves between the two.

    Parameters
    ----------
    folder : Path
        The kit.
    file : FederationFile
        Names the public keys of clients whose owners made their keys.

    Raises
    ------
    FedveilError
        If it is no kit, or a key of it is refused.
    """
    kit = read_any_kit(folder)
    if isinstance(kit, ClientKit):
        entry = file.clients.get(kit.name)
        identity, supernode = (
            (None, None) if entry is None else (entry.identity, entry.supernode_key)
        )
        if identity is None:
            identity = show_public_key(load_identity(folder / IDENTITY).public_key)
            supernode = load_supernode_key(folder / SUPERNODE_KEY)
        return Party(
            name=kit.name,
            kind="client",
            place=kit.place,
            identity=identity,
            supernode_key=supernode,
        )
    shown = _show(load_tls_key(folder / SERVER_KEY))
    if isinstance(kit, InferenceKit):
        return Party(name=kit.name, kind="inference", server_key=shown)
    assert isinstance(kit, CoordinatorKit)  # noqa: S101  # narrows the type
    signer = load_signing_key(folder / SIGNING_KEY).verify_key.to_text()
    return Party(name=kit.name, kind="coordinator", server_key=shown, signer=signer)


def _show(key: ec.EllipticCurvePrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode("ascii")
    )
