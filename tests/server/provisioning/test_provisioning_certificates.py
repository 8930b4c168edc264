"""What we sign and refuse, with OpenSSL as the oracle."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedveil.server.provisioning.certificates import (
    has_key,
    load_certificate,
    load_tls_key,
    new_tls_key,
    show_certificate,
    sign_authority,
    sign_server,
    trouble_with,
)
from fedveil.server.provisioning.errors import ProvisionError
from fedveil.vault.errors import KeyFileError

NOW = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC)
HOSTS = ("fl.example.org", "10.1.2.3")


def authority(days: int = 100) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, _ = new_tls_key()
    return sign_authority(key, "wards", days, NOW), key


def server(
    ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey], days: int = 30
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, _ = new_tls_key()
    return sign_server(*ca, key.public_key(), "coordinator", HOSTS, days, NOW), key


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1", "::1"])
def test_a_server_is_taken_for_its_hosts_and_for_the_machine_itself(host: str) -> None:
    ca = authority()
    certificate, _ = server(ca)
    assert trouble_with(certificate, ca[0], host, NOW) is None


@pytest.mark.parametrize("host", ["other.example.org", "10.1.2.4", "org", "a.fl.example.org"])
def test_a_server_is_not_taken_for_another_host(host: str) -> None:
    ca = authority()
    certificate, _ = server(ca)
    assert trouble_with(certificate, ca[0], host, NOW) == f"the certificate is not good for {host}"


def test_dates_are_told_apart() -> None:
    ca = authority()
    certificate, _ = server(ca)
    late = trouble_with(certificate, ca[0], HOSTS[0], NOW + timedelta(days=31))
    early = trouble_with(certificate, ca[0], HOSTS[0], NOW - timedelta(hours=2))
    assert late is not None
    assert late.startswith("the certificate expired on 2026-12-30")
    assert early is not None
    assert "is valid from 2026-11-30 11:00 UTC on only" in early


def test_a_server_of_another_authority_is_refused_even_under_the_same_name() -> None:
    certificate, _ = server(authority())
    trouble = trouble_with(certificate, authority()[0], HOSTS[0], NOW)
    assert trouble == "the certificate was not signed by the authority of this kit"


def test_a_server_cannot_sign_another_server() -> None:
    ca = authority()
    certificate, key = server(ca)
    forged = sign_server(certificate, key, new_tls_key()[0].public_key(), "x", HOSTS, 10, NOW)
    assert trouble_with(forged, ca[0], HOSTS[0], NOW) is not None
    assert trouble_with(forged, certificate, HOSTS[0], NOW) is not None


def test_a_server_never_outlives_its_authority() -> None:
    ca = authority(days=10)
    certificate, _ = server(ca, days=365)
    assert certificate.not_valid_after_utc == ca[0].not_valid_after_utc
    with pytest.raises(ProvisionError, match=r"expired on 2026-12-10.*--renew ca"):
        sign_server(*ca, ca[1].public_key(), "x", HOSTS, 10, NOW + timedelta(days=11))


def test_a_renewed_authority_keeps_what_it_signed_before() -> None:
    ca, key = authority()
    certificate, _ = server((ca, key))
    renewed = sign_authority(key, "wards", 1000, NOW)
    assert trouble_with(certificate, renewed, HOSTS[0], NOW) is None


def test_a_key_belongs_to_one_certificate() -> None:
    ca = authority()
    certificate, key = server(ca)
    assert has_key(certificate, key)
    assert not has_key(certificate, ca[1])


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    path.write_bytes(new_tls_key()[1])
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="mode 0640"):
        load_tls_key(path)
    path.chmod(0o600)
    load_tls_key(path)
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ProvisionError, match="holds no EC private key") as caught:
        load_tls_key(path)
    assert "AAAA" not in str(caught.value)


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    with pytest.raises(ProvisionError, match=r"ca\.pem: cannot be read"):
        load_certificate(path)
    path.write_text("nothing")
    with pytest.raises(ProvisionError, match="holds no certificate"):
        load_certificate(path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="OpenSSL's command is the oracle")
@pytest.mark.parametrize(
    ("host", "accepted"), [("fl.example.org", True), ("other.example.org", False)]
)
def test_openssl_agrees_under_its_strict_rules(tmp_path: Path, host: str, accepted: bool) -> None:
    ca = authority()
    certificate, _ = server(ca)
    for name, one in (("ca", ca[0]), ("server", certificate)):
        (tmp_path / f"{name}.pem").write_bytes(show_certificate(one))
    done = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
            *("-verify_hostname", host, "-attime", str(int(NOW.timestamp()))),
            *("-CAfile", "ca.pem", "server.pem"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode == 0) is accepted, done.stderr
