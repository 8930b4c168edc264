"""The names of the files in a kit, and in the authority's folder beside the kits.

A kit is a ``$FEDVEIL_HOME``: where `fedveil.home` has a default for a file, it lies there.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "APP",
    "AUTHORITY",
    "AUTHORITY_CERTIFICATE",
    "AUTHORITY_IDENTITY",
    "AUTHORITY_KEY",
    "CA",
    "CONNECTION",
    "COORDINATOR",
    "DEPLOY",
    "FLOWER_CONFIG",
    "FLOWER_HOME",
    "IDENTITY",
    "KIT",
    "LEDGER",
    "LOCK",
    "MODEL_KEY",
    "NODE",
    "PARTIES",
    "POLICY",
    "PUBLIC_SUFFIX",
    "RESERVED",
    "REVOKED",
    "ROSTER",
    "SERVER_CERTIFICATE",
    "SERVER_KEY",
    "SIGNING_KEY",
    "SUPERNODES",
    "SUPERNODE_KEY",
    "SUPERNODE_PUBLIC",
    "TOKENS",
    "UPDATES",
    "public_key_file",
    "service_key_file",
    "unit_file",
]

# In the folder of all kits.
AUTHORITY: Final = "ca"
COORDINATOR: Final = "coordinator"
REVOKED: Final = "revoked"
UPDATES: Final = "updates"
LOCK: Final = ".lock"
RESERVED: Final = frozenset({AUTHORITY, COORDINATOR, REVOKED, UPDATES})

# In the authority's folder.
AUTHORITY_KEY: Final = "ca.key"
AUTHORITY_CERTIFICATE: Final = "ca.pem"
AUTHORITY_IDENTITY: Final = "authority.json"
PARTIES: Final = "parties"

# In a kit.
KIT: Final = "kit.toml"
CA: Final = "ca.pem"
ROSTER: Final = "roster.toml"
SERVER_CERTIFICATE: Final = "server.pem"
SERVER_KEY: Final = "server.key"
SUPERNODES: Final = "supernodes"
PUBLIC_SUFFIX: Final = ".pub"
APP: Final = "app"
FLOWER_HOME: Final = "flwr"
FLOWER_CONFIG: Final = f"{FLOWER_HOME}/config.toml"
MODEL_KEY: Final = "keys/model.key"
SIGNING_KEY: Final = "keys/signing.key"
SUPERNODE_KEY: Final = "supernode.key"
SUPERNODE_PUBLIC: Final = "supernode.pub"
IDENTITY: Final = "identity.json"
POLICY: Final = "policy.toml"
NODE: Final = "node.toml"
LEDGER: Final = "ledger.db"
TOKENS: Final = "tokens.json"
DEPLOY: Final = "deploy"

CONNECTION: Final = "federation"
"""The SuperLink's name in the coordinator's Flower configuration."""


def public_key_file(client: str) -> str:
    """Return where the coordinator's kit keeps a client's SuperNode key, its public half."""
    return f"{SUPERNODES}/{client}{PUBLIC_SUFFIX}"


def service_key_file(service: str) -> str:
    """Return where the coordinator's kit keeps the key-encryption key of an inference service."""
    return f"keys/{service}.key"


def unit_file(federation: str, party: str) -> str:
    """Return where a kit keeps its systemd unit."""
    return f"{DEPLOY}/fedveil-{federation}-{party}.service"
