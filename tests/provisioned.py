"""Kits of a federation of three wards, made in a folder as the command makes them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from fedveil.config import Config
from fedveil.server.provisioning import Outcome, provision, read_federation
from fedveil.simulations.scenarios import find_scenario

NOW = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC)

FEDERATION = """\
format = "fedveil-federation-1"
name = "wards"

[coordinator]
hosts = ['127.0.0.1']

[clients.ward-a]
[clients.ward-b]
[clients.ward-c]
"""

PREDICTOR = """
[inference.predictor]
hosts = ["127.0.0.1", "predictor.example.org"]
grpc_port = 8444
"""


def digits(clients: int) -> Config:
    return find_scenario("digits").config([("federation.clients", clients)])


def make_kits(
    kits: Path,
    text: str = FEDERATION,
    *,
    revoke: Iterable[str] = (),
    renew: Iterable[str] = (),
    now: datetime = NOW,
) -> Outcome:
    """Provision a federation into a folder."""
    path = kits.parent / "federation.toml"
    path.write_text(text)
    return provision(
        read_federation(path), digits, kits, now=now, revoke=list(revoke), renew=list(renew)
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files under a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
