"""Who is kept out of a federation of kits, and the line that each reads: real processes, TLS on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deployed import free_ports, wait_for_port
from kits import Kits, kits

from fedveil.server.provisioning.certificates import (
    load_certificate,
    load_tls_key,
    show_certificate,
    sign_authority,
    sign_server,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS = ("ward-a", "ward-b", "ward-c")
NEVER_ADMITTED = 300.0
"""Seconds: a node that is not registered tries for a while, since a server may register it yet."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kits]:
    """Yield a federation whose SuperLink serves and has registered its clients."""
    with kits(tmp_path_factory.mktemp("federation"), CLIENTS) as made:
        made.start_server()
        made.wait_for("server", "is registered", len(CLIENTS))
        yield made


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Kits]:
    """Yield another federation, with an authority of its own and no server."""
    with kits(tmp_path, CLIENTS) as made:
        yield made


def refused(federation: Kits, *arguments: str) -> str:
    """Run a command that must give up by itself; return the last line that it says."""
    done = federation.command(*arguments, code=1, timeout=NEVER_ADMITTED)
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def dials(client: Path, own: str, instead: str) -> None:
    """Let a client's kit name another SuperLink."""
    toml = client / "kit.toml"
    text = toml.read_text()
    assert own in text
    toml.write_text(text.replace(own, instead))


def states(federation: Kits) -> dict[str, str]:
    told = federation.command("status", str(federation.kit("coordinator")), "--json").stdout
    return {party["name"]: party["state"] for party in json.loads(told)["parties"]}


def test_a_client_does_not_talk_to_the_server_of_another_authority(
    federation: Kits, others: Kits
) -> None:
    dials(others.kit("ward-a"), others.address, federation.address)
    told = refused(others, "client", str(others.kit("ward-a")))
    assert federation.address in told
    assert "not signed by this kit's authority" in told
    assert "compare ca.pem" in told

    coordinator = others.kit("coordinator")
    dials(coordinator, others.address, federation.address)
    told = refused(others, "run", str(coordinator))
    assert f"what answers at {federation.address} is not the SuperLink of this kit" in told
    assert set(states(federation).values()) == {"not seen yet"}


def test_a_client_without_tls_is_refused(federation: Kits) -> None:
    federation.start(
        "plain",
        *("flower-supernode", "--insecure", "--superlink", federation.address),
        *("--isolation", "process", "--port", str(free_ports(1)[0]), "--max-retries", "1"),
    )
    assert federation.wait_for_end("plain") == 1
    told = federation.log("plain")
    assert "Failed to initialize the connection to the SuperLink" in told
    assert "SuperNode ID:" not in told
    assert set(states(federation).values()) == {"not seen yet"}


def test_a_client_does_not_talk_to_a_server_without_tls(others: Kits) -> None:
    port = others.address.rpartition(":")[2]
    others.start("server", "fedveil", "server", "--insecure", "--host", "127.0.0.1", "--port", port)
    wait_for_port(int(port))
    told = refused(others, "client", str(others.kit("ward-a")))
    assert "does not speak TLS as this node does" in told


def test_a_client_without_a_server_says_so_and_waits(others: Kits) -> None:
    others.start_clients("ward-a")
    others.wait_for("ward-a", f"no SuperLink answers at {others.address}")
    others.start_server()
    others.wait_for("ward-a", "SuperNode ID:")


def test_a_server_whose_certificate_has_expired_is_not_started_and_not_talked_to(
    others: Kits,
) -> None:
    coordinator, authority = others.kit("coordinator"), others.kit("ca")
    (key,) = authority.glob("ca.key")
    past = datetime.now(UTC) - timedelta(days=30)
    expired = sign_server(
        load_certificate(coordinator / "ca.pem"),
        load_tls_key(key),
        load_tls_key(coordinator / "server.key").public_key(),
        "coordinator",
        ["127.0.0.1"],
        days=1,
        now=past,
    )
    (coordinator / "server.pem").write_bytes(show_certificate(expired))

    found = others.command("kit", "check", str(coordinator), code=1)
    shown = " ".join((found.stdout + found.stderr).split())
    assert f"the certificate expired on {past + timedelta(days=1):%Y-%m-%d}" in shown
    assert "--renew coordinator" in shown
    assert "the certificate expired on" in refused(others, "server", str(coordinator))

    # Flower's own command asks nothing of the kind. The clients do.
    others.start("superlink", str(coordinator / "bin" / "superlink"))
    wait_for_port(int(others.address.rpartition(":")[2]))
    told = refused(others, "client", str(others.kit("ward-a")))
    assert "the server's certificate has expired" in told


def test_a_client_whose_authority_has_expired_is_not_started(others: Kits) -> None:
    kit = others.kit("ward-a")
    past = datetime.now(UTC) - timedelta(days=30)
    expired = sign_authority(load_tls_key(others.kit("ca") / "ca.key"), "wards", 1, past)
    (kit / "ca.pem").write_bytes(show_certificate(expired))
    told = refused(others, "client", str(kit))
    assert f"expired on {past + timedelta(days=1):%Y-%m-%d}" in told
    assert "fedveil kit check" in told


def test_a_key_that_nobody_registered_and_one_that_was_revoked_are_refused(
    federation: Kits, others: Kits
) -> None:
    stranger = others.kit("ward-b")
    dials(stranger, others.address, federation.address)
    # It trusts the server: the key alone is wrong.
    shutil.copy(federation.kit("ward-b") / "ca.pem", stranger)
    federation.revoke("ward-c")
    federation.wait_for("server", "ward-c is no longer registered")
    revoked = federation.folder / "kits" / "revoked" / "ward-c"
    federation.start("stranger", "fedveil", "client", str(stranger))
    federation.start("revoked", "fedveil", "client", str(revoked))
    for name in ("stranger", "revoked"):
        assert federation.wait_for_end(name, NEVER_ADMITTED) == 1
        told = federation.log(name)
        assert "its key is not registered there, or was revoked" in told.splitlines()[-1]
        assert "Traceback" not in told
        assert "SuperNode ID:" not in told
    assert states(federation) == {"ward-a": "not seen yet", "ward-b": "not seen yet"}
