"""The federation's authority: what signs certificates and rosters, kept apart from all kits."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedveil.rosters import create_identity, load_identity, show_public_key
from fedveil.secagg.errors import RosterError
from fedveil.secagg.identity import Identity, Roster
from fedveil.server.provisioning.certificates import (
    has_key,
    load_certificate,
    load_tls_key,
    new_tls_key,
    show_certificate,
    sign_authority,
)
from fedveil.server.provisioning.errors import KitError, ProvisionError
from fedveil.server.provisioning.layout import (
    AUTHORITY,
    AUTHORITY_CERTIFICATE,
    AUTHORITY_IDENTITY,
    AUTHORITY_KEY,
    ROSTER,
)
from fedveil.server.provisioning.signed_roster import (
    SignedRoster,
    read_signed_roster,
    sign_roster,
)
from fedveil.server.provisioning.writing import publish, replace, staging
from fedveil.vault.errors import KeyFileError

__all__ = ["Authority", "create_authority", "open_authority"]


@dataclass(frozen=True)
class Authority:
    """What signs.

    Parameters
    ----------
    folder : Path
        Where it is kept.
    certificate : Certificate
        What all parties trust.
    key : EllipticCurvePrivateKey
        Signs certificates.
    identity : Identity
        Signs rosters; its name is the federation's.
    """

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    identity: Identity

    @property
    def public_key(self) -> str:
        """What rosters are checked with, base64."""
        return show_public_key(self.identity.public_key)

    def renewed(self, days: int, now: datetime) -> Authority:
        """Return this authority with a new certificate of the same key, which is written first.

        Certificates that it signed before stay good.
        """
        certificate = sign_authority(self.key, self.identity.name, days, now)
        replace(self.folder / AUTHORITY_CERTIFICATE, show_certificate(certificate))
        return Authority(self.folder, certificate, self.key, self.identity)

    def roster(self, clients: Roster, places: int, now: datetime) -> SignedRoster:
        """Return the signed roster of these clients: the last one, or a new one with a new serial.

        The new one is written before it is returned, so that no serial stands for two rosters.

        Raises
        ------
        ProvisionError
            If the last one is damaged.
        """
        last = self._last_roster()
        if last is not None and (dict(last.roster.keys), last.places) == (
            dict(clients.keys),
            places,
        ):
            return last
        serial = 1 if last is None else last.serial + 1
        issued = now.isoformat(timespec="seconds")
        roster = sign_roster(self.identity, serial, issued, places, clients)
        replace(self.folder / ROSTER, roster.to_toml())
        return roster

    def _last_roster(self) -> SignedRoster | None:
        path = self.folder / ROSTER
        if not path.exists():
            return None
        try:
            last = read_signed_roster(path)
            last.check(self.identity.public_key)
        except KitError as error:
            raise ProvisionError(
                f"{path}: is damaged ({error}); restore it from a copy, so that no older roster "
                "can pass for a newer one"
            ) from None
        return last


def create_authority(kits: Path, federation: str, days: int, now: datetime) -> Authority:
    """Make the authority of a new federation.

    Raises
    ------
    ProvisionError
        If its folder is there already.
    """
    with staging(kits, AUTHORITY) as staged:
        key, shown = new_tls_key()
        certificate = sign_authority(key, federation, days, now)
        replace(staged / AUTHORITY_KEY, shown)
        replace(staged / AUTHORITY_CERTIFICATE, show_certificate(certificate))
        identity = create_identity(staged / AUTHORITY_IDENTITY, federation)
        publish(staged, kits / AUTHORITY)
    return Authority(kits / AUTHORITY, certificate, key, identity)


def open_authority(kits: Path, federation: str) -> Authority | None:
    """Return the authority of the kits; None where there are none yet.

    Raises
    ------
    ProvisionError
        If it is that of another federation, or a file is missing or refused.
    """
    folder = kits / AUTHORITY
    if not folder.exists():
        return None
    try:
        key = load_tls_key(folder / AUTHORITY_KEY)
        identity = load_identity(folder / AUTHORITY_IDENTITY)
    except (KeyFileError, RosterError) as error:
        raise ProvisionError(
            f"the authority in {folder} cannot be used: {error}; kits are changed where its keys "
            "are"
        ) from None
    certificate = load_certificate(folder / AUTHORITY_CERTIFICATE)
    if not has_key(certificate, key):
        raise ProvisionError(
            f"{folder}: the certificate {AUTHORITY_CERTIFICATE} is not that of {AUTHORITY_KEY}; "
            "restore them from a copy"
        )
    if identity.name != federation:
        raise ProvisionError(
            f"{kits}: holds the kits of the federation {identity.name}, and the file says "
            f"{federation}; name another folder with --out"
        )
    return Authority(folder, certificate, key, identity)
