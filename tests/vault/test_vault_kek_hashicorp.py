import base64
import json
import logging
import socket
import ssl
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transit_double import TransitDouble, transit_double

from fedveil.vault.errors import KekError, TamperedError, WrongKeyError
from fedveil.vault.kek import hashicorp
from fedveil.vault.kek.hashicorp import HashicorpKek, open_hashicorp
from fedveil.vault.kek.interface import WrappedKey

TOKEN = "good-token"  # noqa: S105 - of the double
SECRET = bytes(range(32))
CONTEXT = b"context"


@pytest.fixture
def server() -> Iterator[TransitDouble]:
    with transit_double() as running:
        yield running
        assert running.unexpected == []


def kek_of(server: TransitDouble, path: str = "fedveil", token: str = TOKEN) -> HashicorpKek:
    return HashicorpKek(server.url, token, path, server.namespace or "")


def refusal(server: TransitDouble, what: str = "wrap") -> str:
    kek = kek_of(server)
    wrapped = WrappedKey("vault", kek.key_id, b"vault:v1:AAAA", {})
    with pytest.raises(KekError) as caught:
        kek.wrap(SECRET, CONTEXT) if what == "wrap" else kek.unwrap(wrapped, CONTEXT)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100))
def test_what_is_wrapped_is_unwrapped(server: TransitDouble, secret: bytes, context: bytes) -> None:
    kek = kek_of(server)
    wrapped = kek.wrap(secret, context)
    assert (wrapped.provider, wrapped.key_id) == ("vault", "transit/fedveil")
    assert dict(wrapped.parameters) == {}
    assert kek_of(server).unwrap(wrapped, context) == secret


def test_each_request_is_the_documented_one(server: TransitDouble) -> None:
    kek = kek_of(server)
    kek.unwrap(kek.wrap(SECRET, CONTEXT), CONTEXT)
    assert server.requests == [
        "GET /v1/transit/keys/fedveil",
        "POST /v1/transit/encrypt/fedveil",
        "POST /v1/transit/decrypt/fedveil",
        "POST /v1/transit/decrypt/fedveil",
    ]


def test_another_context_does_not_open(server: TransitDouble) -> None:
    kek = kek_of(server)
    wrapped = kek.wrap(SECRET, CONTEXT)
    for act in (kek.unwrap, kek.rewrap):
        with pytest.raises(TamperedError, match="belongs to another store"):
            act(wrapped, b"other")


def test_flipped_bits_are_noticed(server: TransitDouble) -> None:
    kek = kek_of(server)
    wrapped = kek.wrap(SECRET, CONTEXT)
    sealed = base64.b64decode(wrapped.blob.removeprefix(b"vault:v1:"))
    for position in range(0, 8 * len(sealed), 7):
        flipped = bytearray(sealed)
        flipped[position // 8] ^= 1 << position % 8
        blob = b"vault:v1:" + base64.b64encode(flipped)
        with pytest.raises(TamperedError):
            kek.unwrap(replace(wrapped, blob=blob), CONTEXT)


@pytest.mark.parametrize(
    "blob", [b"x", b"vault:", b"\xff\xfe", b"vault:v1:\xff", b"vault:v1:!", b"vault:v9:AAAA"]
)
def test_a_blob_of_another_form_is_refused(server: TransitDouble, blob: bytes) -> None:
    with pytest.raises(TamperedError, match="was changed"):
        kek_of(server).unwrap(WrappedKey("vault", "transit/fedveil", blob, {}), CONTEXT)


def test_rewrapping_takes_the_newest_version(server: TransitDouble) -> None:
    kek = kek_of(server)
    wrapped = kek.wrap(SECRET, CONTEXT)
    server.rotate("fedveil")
    again = kek.rewrap(wrapped, CONTEXT)
    assert (wrapped.blob[:9], again.blob[:9]) == (b"vault:v1:", b"vault:v2:")
    assert kek.unwrap(again, CONTEXT) == SECRET
    server.least_version = 2
    with pytest.raises(KekError, match="min_decryption_version") as caught:
        kek.unwrap(wrapped, CONTEXT)
    assert not isinstance(caught.value, TamperedError)


def test_another_key_is_named_without_a_request(server: TransitDouble) -> None:
    wrapped = kek_of(server).wrap(SECRET, CONTEXT)
    server.keys["other"] = [bytes(32)]
    server.requests.clear()
    with pytest.raises(WrongKeyError, match="'transit/fedveil', not by 'transit/other'"):
        kek_of(server, "other").unwrap(wrapped, CONTEXT)
    assert server.requests == []


def test_a_forged_name_does_not_open_with_another_key(server: TransitDouble) -> None:
    wrapped = kek_of(server).wrap(SECRET, CONTEXT)
    server.keys["other"] = [bytes(32)]
    with pytest.raises(TamperedError):
        kek_of(server, "other").unwrap(replace(wrapped, key_id="transit/other"), CONTEXT)


def test_mount_and_namespace_are_used(server: TransitDouble) -> None:
    server.mount, server.namespace = "team/transit", "research/ml"
    kek = HashicorpKek(server.url, TOKEN, "team/transit/fedveil", "/research/ml/")
    assert kek.key_id == "research/ml/team/transit/fedveil"
    assert kek.unwrap(kek.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_a_mistyped_key_is_not_made(server: TransitDouble) -> None:
    with pytest.raises(KekError, match="there is no transit key 'transit/fedveli'"):
        kek_of(server, "fedveli").wrap(SECRET, CONTEXT)
    assert set(server.keys) == {"fedveil"}


def test_a_server_that_ignores_the_context_is_refused(server: TransitDouble) -> None:
    server.ignores_associated_data = True
    assert "ignores associated data" in refusal(server)


def test_a_token_that_may_only_encrypt_can_wrap(server: TransitDouble) -> None:
    server.denied = {"decrypt"}
    wrapped = kek_of(server).wrap(SECRET, CONTEXT)
    server.denied = set()
    assert kek_of(server).unwrap(wrapped, CONTEXT) == SECRET


@pytest.mark.parametrize("kind", ["rsa-4096", "chacha20-poly1305"])
def test_a_key_of_another_type_is_refused(server: TransitDouble, kind: str) -> None:
    server.kinds["fedveil"] = kind
    assert f"is of type '{kind}'" in refusal(server)


@pytest.mark.parametrize("what", ["wrap", "unwrap"])
def test_a_missing_key_mount_or_namespace_is_said(server: TransitDouble, what: str) -> None:
    server.keys = {}
    assert "there is no transit key" in refusal(server, what)
    server.mount = "elsewhere"
    assert "there is no transit key" in refusal(server, what)
    with pytest.raises(KekError, match="there is no transit key 'nowhere/transit/fedveil'"):
        HashicorpKek(server.url, TOKEN, "fedveil", "nowhere").wrap(SECRET, CONTEXT)


def test_a_denied_token_is_told_from_one_that_has_expired(server: TransitDouble) -> None:
    server.denied = {"keys", "decrypt"}
    assert "allow 'read' on transit/keys/fedveil" in refusal(server)
    assert "allow 'update' on transit/decrypt/fedveil" in refusal(server, "unwrap")
    server.denied = {"encrypt"}
    assert "allow 'update' on transit/encrypt/fedveil" in refusal(server)
    server.tokens = set()
    assert "has expired or is not one of" in refusal(server)


def test_a_sealed_server_is_said(server: TransitDouble) -> None:
    server.sealed = True
    assert "is sealed" in refusal(server)


def test_a_server_that_is_not_there_is_said() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(KekError, match=f"the server at {url} cannot be reached"):
            HashicorpKek(url, TOKEN, "fedveil").wrap(SECRET, CONTEXT)


def test_a_server_that_is_silent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashicorp, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(KekError, match=r"did not answer within 0.2 s"):
            HashicorpKek(url, TOKEN, "fedveil").wrap(SECRET, CONTEXT)


def self_signed(folder: Path) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .sign(key, SHA256())
    )
    path = folder / "certificate.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(private)
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path, folder / "key.pem")
    return path, tls


def test_a_certificate_has_to_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, tls = self_signed(tmp_path)
    with transit_double(tls) as server:
        assert server.url.startswith("https://")
        assert "is not trusted" in refusal(server)
        assert server.requests == []
        # hvac reads VAULT_CACERT when it is imported.
        monkeypatch.setattr("hvac.v1.VAULT_CACERT", str(certificate))
        kek = kek_of(server)
        assert kek.unwrap(kek.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
        monkeypatch.setattr("hvac.v1.VAULT_CACERT", str(tmp_path / "missing"))
        assert "check VAULT_ADDR, VAULT_CACERT" in refusal(server)


def test_a_server_without_tls_is_said(server: TransitDouble) -> None:
    server.url = server.url.replace("http:", "https:")
    assert "or it speaks no TLS" in refusal(server)


@pytest.mark.parametrize(
    "instead",
    [
        (200, "text/html", b"<html>"),
        (200, "application/json", b"[]"),
        (200, "application/json", b'{"data": null}'),
        (200, "application/json", b'{"data": {"type": "aes256-gcm96"}}'),
        (200, "application/json", b'{"data": {"type": "aes256-gcm96", "ciphertext": "x"}}'),
        (200, "application/json", b'{"data": {"plaintext": 5}}'),
        (200, "application/json", b'{"data": {"plaintext": "!"}}'),
        (204, "text/plain", b""),
        (400, "application/json", b"[]"),
        (400, "application/json", b'{"errors": [5]}'),
        (400, "application/json", b'{"errors": ["a\\nb\\u001b[2J' + b"x" * 500 + b'"]}'),
        (500, "application/json", b'{"errors": ["internal error"]}'),
        (502, "text/html", b"<html>\nbad gateway"),
    ],
)
@pytest.mark.parametrize("what", ["wrap", "unwrap"])
def test_what_is_no_answer_of_vault_is_one_line(
    server: TransitDouble, what: str, instead: tuple[int, str, bytes]
) -> None:
    server.instead = instead
    message = refusal(server, what)
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(server: TransitDouble, length: int) -> None:
    with pytest.raises(KekError, match=f"not {length}"):
        kek_of(server).wrap(bytes(length), CONTEXT)
    assert server.requests == []
    plaintext = base64.b64encode(bytes(length)).decode()
    content = json.dumps({"data": {"plaintext": plaintext}}).encode()
    server.instead = (200, "application/json", content)
    with pytest.raises(TamperedError, match=f"holds {length} bytes"):
        kek_of(server).unwrap(WrappedKey("vault", "transit/fedveil", b"vault:v1:", {}), CONTEXT)


def test_a_redirect_gets_neither_token_nor_secret(server: TransitDouble) -> None:
    with transit_double() as elsewhere:
        server.redirect = elsewhere.url
        assert "points to another one" in refusal(server)
        assert "points to another one" in refusal(server, "unwrap")
        assert elsewhere.requests == []


def test_no_proxy_of_the_environment_sees_the_secret(
    server: TransitDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transit_double() as proxy:
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, proxy.url)
        for variable in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(variable, raising=False)
        kek = kek_of(server)
        assert kek.unwrap(kek.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
        assert proxy.requests == []


def test_an_address_in_clear_is_refused() -> None:
    with pytest.raises(
        KekError, match=r"VAULT_ADDR is http://vault\.example\.org:8200: .* in clear"
    ):
        HashicorpKek("http://vault.example.org:8200", TOKEN, "fedveil")


@pytest.mark.parametrize(
    "path",
    ["", "/", "/x", "x/", "a//b", "..", "../sys/raw", "a/../b", "a b", "a?b", "a#b", "a%2fb", "é"],
)
def test_a_key_that_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(KekError, match="the key of vault: is not a path"):
        HashicorpKek("https://host", TOKEN, path)


def test_a_namespace_that_is_no_path_is_refused() -> None:
    with pytest.raises(KekError, match="the VAULT_NAMESPACE is not a path"):
        HashicorpKek("https://host", TOKEN, "fedveil", "a b")


@pytest.mark.parametrize("token", ["", "a b", "tok\nX-Evil: 1", "tokén"])
def test_a_token_that_is_none_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(KekError, match=r"^VAULT_TOKEN is empty or holds characters that no token"):
        HashicorpKek("https://host", token, "fedveil")


def test_the_settings_are_those_of_vault(
    server: TransitDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("VAULT_ADDR", "VAULT_TOKEN", "VAULT_NAMESPACE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(KekError, match="needs the environment variable VAULT_ADDR"):
        open_hashicorp("fedveil")
    monkeypatch.setenv("VAULT_ADDR", server.url)
    with pytest.raises(KekError, match="needs the environment variable VAULT_TOKEN"):
        open_hashicorp("fedveil")
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    monkeypatch.setenv("VAULT_NAMESPACE", "ml")
    server.namespace = "ml"
    kek = open_hashicorp("fedveil")
    assert kek.key_id == "ml/transit/fedveil"
    assert kek.unwrap(kek.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_nothing_shows_a_secret(server: TransitDouble, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        kek = kek_of(server)
        wrapped = kek.wrap(SECRET, CONTEXT)
        kek.unwrap(wrapped, CONTEXT)
        with pytest.raises(TamperedError) as caught:
            kek.unwrap(wrapped, b"other")
        server.tokens = set()
        with pytest.raises(KekError) as denied:
            kek.unwrap(wrapped, CONTEXT)
    shown = [repr(kek), repr(wrapped), caplog.text]
    shown += traceback.format_exception(caught.value) + traceback.format_exception(denied.value)
    for text in shown:
        assert TOKEN not in text
        assert base64.b64encode(SECRET).decode() not in text
        assert repr(SECRET) not in text
