"""The same provider against a real server: OpenBao or HashiCorp Vault, where one is installed."""

import base64
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import hvac
import pytest
import requests

from fedveil.vault.errors import KekError, TamperedError
from fedveil.vault.kek.hashicorp import HashicorpKek

SECRET = bytes(range(32))
CONTEXT = b"context"
POLICY = """
path "transit/keys/fedveil" { capabilities = ["read"] }
path "transit/encrypt/fedveil" { capabilities = ["update"] }
path "transit/decrypt/fedveil" { capabilities = ["update"] }
"""


def binary() -> str:
    named = os.environ.get("FEDVEIL_VAULT_BINARY")
    found = named or shutil.which("bao") or shutil.which("vault")
    if not found:
        pytest.skip("no OpenBao or Vault: put bao or vault on PATH or set FEDVEIL_VAULT_BINARY")
    return found


@dataclass
class Server:
    url: str
    root: str
    admin: hvac.Client

    def kek(self, path: str = "fedveil", token: str | None = None) -> HashicorpKek:
        return HashicorpKek(self.url, token or self.root, path)

    def token(self, policy: str, ttl: str = "1h") -> str:
        self.admin.sys.create_or_update_policy("fedveil", policy)
        made = self.admin.auth.token.create(policies=["fedveil"], ttl=ttl)
        return str(made["auth"]["client_token"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    program = binary()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    root = secrets.token_hex(16)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VAULT_", "BAO_"))}
    environment["HOME"] = str(tmp_path)
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(
            [
                program,
                "server",
                "-dev",
                "-dev-no-store-token",
                f"-dev-root-token-id={root}",
                f"-dev-listen-address={address}",
            ],
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        admin = hvac.Client(url=f"http://{address}", token=root, timeout=15)
        wait_until_ready(admin, running, tmp_path / "log")
        admin.sys.enable_secrets_engine("transit")
        admin.secrets.transit.create_key("fedveil")
        yield Server(f"http://{address}", root, admin)
    finally:
        running.terminate()
        try:
            running.wait(timeout=30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait(timeout=30)


def wait_until_ready(admin: hvac.Client, running: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 60
    while True:
        assert running.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        try:
            if not admin.sys.is_sealed() and admin.is_authenticated():
                return
        except (requests.ConnectionError, hvac.exceptions.VaultError):
            pass
        time.sleep(0.1)


def test_a_real_server_wraps_and_refuses_as_the_double_does(server: Server) -> None:
    kek = server.kek(token=server.token(POLICY))
    wrapped = kek.wrap(SECRET, CONTEXT)
    assert wrapped.key_id == "transit/fedveil"
    assert wrapped.blob.startswith(b"vault:v1:")
    assert kek.unwrap(wrapped, CONTEXT) == SECRET
    with pytest.raises(TamperedError):
        kek.unwrap(wrapped, b"other")
    sealed = bytearray(base64.b64decode(wrapped.blob.removeprefix(b"vault:v1:")))
    for position in (0, 12, len(sealed) - 1):
        flipped = bytearray(sealed)
        flipped[position] ^= 1
        blob = b"vault:v1:" + base64.b64encode(flipped)
        with pytest.raises(TamperedError):
            kek.unwrap(replace(wrapped, blob=blob), CONTEXT)
    for blob in (b"vault:v1:!", b"vault:v9:" + wrapped.blob[9:], b"vault:v1:AAAA"):
        with pytest.raises(TamperedError):
            kek.unwrap(replace(wrapped, blob=blob), CONTEXT)


def test_rewrapping_after_a_rotation(server: Server) -> None:
    kek = server.kek()
    wrapped = kek.wrap(SECRET, CONTEXT)
    server.admin.secrets.transit.rotate_key("fedveil")
    again = kek.rewrap(wrapped, CONTEXT)
    assert again.blob.startswith(b"vault:v2:")
    assert kek.unwrap(again, CONTEXT) == SECRET
    server.admin.secrets.transit.update_key_configuration("fedveil", min_decryption_version=2)
    with pytest.raises(KekError, match="min_decryption_version"):
        kek.unwrap(wrapped, CONTEXT)
    assert kek.unwrap(again, CONTEXT) == SECRET


def test_a_mistyped_key_is_not_made(server: Server) -> None:
    with pytest.raises(KekError, match="there is no transit key 'transit/fedveli'"):
        server.kek("fedveli").wrap(SECRET, CONTEXT)
    assert server.admin.secrets.transit.list_keys()["data"]["keys"] == ["fedveil"]
    with pytest.raises(KekError, match="there is no transit key 'elsewhere/fedveil'"):
        server.kek("elsewhere/fedveil").wrap(SECRET, CONTEXT)


def test_another_mount_is_used(server: Server) -> None:
    server.admin.sys.enable_secrets_engine("transit", path="team/transit")
    server.admin.secrets.transit.create_key("fedveil", mount_point="team/transit")
    kek = server.kek("team/transit/fedveil")
    assert kek.unwrap(kek.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_a_key_of_another_type_is_refused(server: Server) -> None:
    server.admin.secrets.transit.create_key("signing", key_type="ed25519")
    with pytest.raises(KekError, match="is of type 'ed25519'"):
        server.kek("signing").wrap(SECRET, CONTEXT)


def test_tokens_that_may_not_or_no_longer_do_so(server: Server) -> None:
    wrapped = server.kek().wrap(SECRET, CONTEXT)
    only_encrypts = server.kek(token=server.token(POLICY.replace("decrypt", "nothing")))
    with pytest.raises(KekError, match="allow 'update' on transit/decrypt/fedveil"):
        only_encrypts.unwrap(wrapped, CONTEXT)
    assert server.kek().unwrap(only_encrypts.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
    short = server.token(POLICY)
    server.admin.auth.token.revoke(short)
    with pytest.raises(KekError, match="has expired or is not one of"):
        server.kek(token=short).unwrap(wrapped, CONTEXT)


def test_a_sealed_server_is_said(server: Server) -> None:
    wrapped = server.kek().wrap(SECRET, CONTEXT)
    server.admin.sys.seal()
    with pytest.raises(KekError, match="is sealed"):
        server.kek().unwrap(wrapped, CONTEXT)
