"""What is wrong with the files of one party's kit: findings, and who looks for them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic

from fedveil.client.policy_file import read_policy
from fedveil.rosters import load_identity
from fedveil.server.inference.tokens import read_tokens
from fedveil.server.provisioning.addresses import split_address
from fedveil.server.provisioning.certificates import (
    has_key,
    load_certificate,
    load_tls_key,
    trouble_with,
)
from fedveil.server.provisioning.errors import KitError
from fedveil.server.provisioning.kit_file import ClientKit, CoordinatorKit, InferenceKit, K
from fedveil.server.provisioning.layout import (
    APP,
    CA,
    IDENTITY,
    MODEL_KEY,
    POLICY,
    PUBLIC_SUFFIX,
    ROSTER,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    SIGNING_KEY,
    SUPERNODE_KEY,
    SUPERNODE_PUBLIC,
    SUPERNODES,
    TOKENS,
    public_key_file,
)
from fedveil.server.provisioning.settle import node_config
from fedveil.server.provisioning.signed_roster import SignedRoster, read_trusted_roster
from fedveil.server.provisioning.supernode_keys import load_supernode_key, parse_supernode_key
from fedveil.settings import flatten
from fedveil.vault.keyfile import load_key
from fedveil.vault.signing import load_signing_key

__all__ = ["ClientLook", "CoordinatorLook", "Finding", "InferenceLook", "Look"]

_SOON = timedelta(days=30)
_LOOPBACK = "127.0.0.1"

Look = Callable[[], Iterator["Finding"]]
"""Looks at one thing; an error that it raises is a finding, too."""


@dataclass(frozen=True)
class Finding:
    """One thing about a kit.

    Parameters
    ----------
    is_wrong : bool
        Whether the kit cannot be used as it is; otherwise it is something to see to.
    text : str
        One line that says where, what, and what to do.
    """

    is_wrong: bool
    text: str

    def __str__(self) -> str:
        return f"{'wrong' if self.is_wrong else 'note'}: {self.text}"


@dataclass(frozen=True)
class _PartyLook(Generic[K]):
    """Looks at a kit.

    Parameters
    ----------
    folder : Path
        The kit.
    kit : CoordinatorKit, ClientKit or InferenceKit
        What it says.
    now : datetime
        For the certificates.
    """

    folder: Path
    kit: K
    now: datetime

    def _server(self, address: str) -> Iterator[Finding]:
        """Whether a client that dials `address` would take this server's certificate."""
        host, _ = split_address(address)
        authority = load_certificate(self.folder / CA)
        certificate = load_certificate(self.folder / SERVER_CERTIFICATE)
        for name in (host, _LOOPBACK):
            trouble = trouble_with(certificate, authority, name, self.now)
            if trouble is not None:
                yield Finding(
                    True,
                    f"{self.folder / SERVER_CERTIFICATE}: {trouble}; make a new one with: fedveil "
                    f"provision FILE --renew {self.kit.name}",
                )
                break
        for one, what in ((certificate, self.kit.name), (authority, "ca")):
            left = one.not_valid_after_utc - self.now
            if timedelta() <= left < _SOON:
                yield Finding(
                    False,
                    f"a certificate ends on {one.not_valid_after_utc:%Y-%m-%d}; renew it with: "
                    f"fedveil provision FILE --renew {what}",
                )
        if not has_key(certificate, load_tls_key(self.folder / SERVER_KEY)):
            yield Finding(
                True,
                f"{self.folder / SERVER_KEY}: is not the key of {SERVER_CERTIFICATE}; restore "
                "both from one copy",
            )
        load_key(self.folder / MODEL_KEY)

    def _roster(self) -> SignedRoster:
        return read_trusted_roster(self.folder / ROSTER, self.kit.authority, self.kit.federation)


class CoordinatorLook(_PartyLook[CoordinatorKit]):
    """Looks at the coordinator's kit."""

    def looks(self) -> list[Look]:
        """Return what to look at."""
        return [lambda: self._server(self.kit.superlink_address), self._signer, self._registration]

    def _signer(self) -> Iterator[Finding]:
        shown = load_signing_key(self.folder / SIGNING_KEY).verify_key.to_text()
        if shown != self.kit.signer:
            yield Finding(
                True,
                f"{self.folder / SIGNING_KEY}: is the key of {shown}, and the kit names "
                f"{self.kit.signer}; restore it from a copy",
            )

    def _registration(self) -> Iterator[Finding]:
        """Whether those who are registered are those whom the roster lists."""
        roster = self._roster()
        registered = {
            path.name.removesuffix(PUBLIC_SUFFIX): path
            for path in sorted((self.folder / SUPERNODES).glob(f"*{PUBLIC_SUFFIX}"))
        }
        for name, path in registered.items():
            parse_supernode_key(path.read_text(encoding="utf-8"))
            if name not in roster.roster.keys:
                yield Finding(
                    True,
                    f"{path}: {name} is not in the roster (revoked?), so that it is not "
                    "registered; remove the file",
                )
        for name in roster.roster.keys:
            if name not in registered:
                yield Finding(
                    True,
                    f"{self.folder / public_key_file(name)}: is missing, so that {name} cannot "
                    "connect; take it from where the kits are made",
                )
        path = self.folder / APP / "pyproject.toml"
        try:
            settings = flatten(tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            raise KitError(f"{path}: is not TOML; take it from where the kits are made") from None
        clients = settings.get("tool.flwr.app.config.federation.clients")
        if clients != roster.places:
            yield Finding(
                True,
                f"{path}: says federation.clients = {clients}, and the roster {roster.places}; "
                "take both from where the kits are made",
            )


class ClientLook(_PartyLook[ClientKit]):
    """Looks at a client's kit."""

    def looks(self) -> list[Look]:
        """Return what to look at."""
        return [self._authority, self._supernode, self._own_identity, self._owners_files]

    def _authority(self) -> Iterator[Finding]:
        certificate = load_certificate(self.folder / CA)
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        path = self.folder / CA
        if self.now < begin:
            yield Finding(
                True,
                f"{path}: is valid from {begin:%Y-%m-%d %H:%M} UTC on only; is this machine's "
                "clock right?",
            )
        elif self.now > end:
            yield Finding(
                True, f"{path}: expired on {end:%Y-%m-%d}; ask the coordinator for a new one"
            )
        elif end - self.now < _SOON:
            yield Finding(
                False, f"{path}: ends on {end:%Y-%m-%d}; ask the coordinator for a new one"
            )

    def _supernode(self) -> Iterator[Finding]:
        path = self.folder / SUPERNODE_KEY
        if not path.exists():
            yield Finding(
                True, f"{path}: is missing; put the key there whose public half you handed in"
            )
            return
        shown = parse_supernode_key((self.folder / SUPERNODE_PUBLIC).read_text(encoding="utf-8"))
        if load_supernode_key(path) != shown:
            yield Finding(
                True,
                f"{path}: is not the key of {SUPERNODE_PUBLIC}, which the coordinator registers; "
                "restore it from a copy",
            )

    def _own_identity(self) -> Iterator[Finding]:
        path = self.folder / IDENTITY
        roster = self._roster()
        if not path.exists():
            yield Finding(
                True, f"{path}: is missing; put the identity there whose public key you handed in"
            )
            return
        identity = load_identity(path)
        if identity.name != self.kit.name:
            yield Finding(True, f"{path}: is that of {identity.name}, not of {self.kit.name}")
            return
        listed = roster.roster.keys.get(identity.name)
        if listed is None:
            yield Finding(
                True,
                f"{self.folder / ROSTER}: does not list {identity.name}; this client was revoked, "
                "or the roster is older than it",
            )
        elif listed != identity.public_key:
            yield Finding(
                True,
                f"{self.folder / ROSTER}: lists another key for {identity.name} than {IDENTITY} "
                "has; restore the identity from a copy",
            )

    def _owners_files(self) -> Iterator[Finding]:
        node_config(self.folder)
        policy = read_policy(self.folder / POLICY)
        if policy.expires is not None and policy.expires < self.now.date():
            yield Finding(
                False,
                f"{self.folder / POLICY}: expired on {policy.expires}, so that every run is "
                "refused",
            )


class InferenceLook(_PartyLook[InferenceKit]):
    """Looks at an inference service's kit."""

    def looks(self) -> list[Look]:
        """Return what to look at."""
        return [lambda: self._server(self.kit.address), self._service]

    def _service(self) -> Iterator[Finding]:
        path = self.folder / TOKENS
        if not read_tokens(path):
            yield Finding(
                False,
                f"{path}: has no token, so that nobody is let in; make one with: fedveil tokens "
                f"new CALLER --file {path}",
            )
        run = self.folder / self.kit.run
        if not run.is_dir():
            yield Finding(False, f"{run}: the run to be served is not there yet")
