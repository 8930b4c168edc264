"""TLS of both protocols: who is let in, what is refused, and how certificates are replaced."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from certificates import client_context, make_certificate, shown_certificate, write_key
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from served_grpc import call, over_grpc
from served_run import run_of

from fedveil.server.inference import oip_pb2 as pb
from fedveil.server.inference import tls as tls_module
from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.grpc_server import GrpcServer
from fedveil.server.inference.http_server import HttpServer
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.source import open_source
from fedveil.server.inference.tls import TlsFiles, read_tls, server_context


@dataclass(frozen=True)
class Served:
    """Both servers, with files of their own."""

    folder: Path
    http: HttpServer
    grpc: GrpcServer

    @property
    def ports(self) -> tuple[int, int]:
        return self.http.port, self.grpc.port

    def shown(self) -> list[str]:
        """Return what both show in new handshakes."""
        context = client_context(self.folder, "client")
        return [shown_certificate(port, context) for port in self.ports]

    def live(self, name: str | None, authority: str = "ca") -> list[bool]:
        """Return whether each protocol answers a client that shows a certificate, or none."""
        return [self._http(name, authority), self._grpc(name, authority)]

    def _http(self, name: str | None, authority: str) -> bool:
        context = client_context(self.folder, name, authority)
        try:
            reply = httpx.get(
                f"https://127.0.0.1:{self.http.port}/v2/health/live", verify=context, timeout=20
            )
        except httpx.TransportError:
            return False
        return reply.status_code == 200

    def _grpc(self, name: str | None, authority: str) -> bool:
        key, chain = (
            (None, None)
            if name is None
            else ((self.folder / f"{name}.{end}").read_bytes() for end in ("key", "pem"))
        )
        roots = (self.folder / f"{authority}.pem").read_bytes()
        credentials = grpc.ssl_channel_credentials(roots, key, chain)
        with grpc.secure_channel(f"127.0.0.1:{self.grpc.port}", credentials) as channel:
            try:
                return bool(call(channel, "ServerLive", pb.ServerLiveRequest()).live)
            except grpc.RpcError:
                return False


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceService]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(tmp_path_factory.mktemp("home")))
        path = tmp_path_factory.mktemp("runs") / "run"
        run_of(path, 1)
        found = InferenceService(open_source(path, None, None), Limits())
        yield found
        found.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of certificates, for copies."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = (make_certificate(folder, name, None) for name in ("ca", "other-ca"))
    for name in ("server", "next", "client"):
        make_certificate(folder, name, authority)
    make_certificate(folder, "expired", authority, hours=-1)
    make_certificate(folder, "stranger", other)
    make_certificate(folder, "self-signed", None)
    key = ec.generate_private_key(ec.SECP256R1())
    write_key(folder / "locked.key", key, serialization.BestAvailableEncryption(b"secret"))
    (folder / "empty.pem").touch()
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "tls"))


Serve = Callable[..., Served]


@pytest.fixture
def serve(service: InferenceService, folder: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(authority: str | None = None) -> Served:
            client = None if authority is None else folder / f"{authority}.pem"
            files = TlsFiles(folder / "server.pem", folder / "server.key", client)
            http = HttpServer(service, "127.0.0.1", 0, files)
            http.start()
            stack.callback(http.stop, 1)
            return Served(folder, http, stack.enter_context(over_grpc(service, files)))

        yield start


def test_a_client_needs_no_certificate_where_none_is_asked_for(serve: Serve) -> None:
    served = serve()
    assert served.live(None) == [True, True]
    # Who trusts another authority does not speak with it.
    assert served.live(None, "other-ca") == [False, False]


def test_only_clients_of_the_authority_are_let_in(serve: Serve) -> None:
    served = serve("ca")
    assert served.live("client") == [True, True]
    for name in (None, "stranger", "self-signed", "expired"):
        assert served.live(name) == [False, False], name


def test_nothing_is_answered_without_tls(serve: Serve) -> None:
    served = serve()
    for port in served.ports:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
            plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            received = b""
            try:
                while part := plain.recv(1024):
                    received += part
            except ConnectionError:
                pass
        assert b"HTTP/" not in received


def test_old_versions_of_tls_are_refused(serve: Serve) -> None:
    served = serve()
    for version, is_taken in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        context = client_context(served.folder)
        # OpenSSL itself would not even ask for the old one.
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        for port in served.ports:
            if is_taken:
                assert shown_certificate(port, context)
            else:
                # The server refuses, which is not that this client cannot ask.
                with pytest.raises(ssl.SSLError, match=r"alert protocol version|EOF occurred"):
                    shown_certificate(port, context)


def replace(folder: Path, name: str, source: str) -> None:
    for end in ("pem", "key"):
        shutil.copy2(folder / f"{source}.{end}", folder / f"{name}.{end}")


def test_a_new_certificate_is_used_once_it_is_read_anew(serve: Serve) -> None:
    served = serve("ca")
    old, new = ((served.folder / f"{name}.pem").read_text() for name in ("server", "next"))
    assert served.shown() == [old, old]
    replace(served.folder, "server", "next")
    assert served.shown() == [old, old]
    served.http.reload_certificate()
    served.grpc.reload_certificate()
    assert served.shown() == [new, new]
    assert served.live("client") == [True, True]
    assert served.live(None) == [False, False]


@pytest.mark.parametrize("broken", ["half", "shared", "gone", "empty", "locked"])
def test_a_broken_one_keeps_the_old(broken: str, serve: Serve) -> None:
    served = serve("ca")
    folder, old = served.folder, (served.folder / "server.pem").read_text()
    match broken:
        case "half":  # the certificate is new, the key is not
            shutil.copy2(folder / "next.pem", folder / "server.pem")
        case "shared":
            replace(folder, "server", "next")
            (folder / "server.key").chmod(0o640)
        case "gone":
            (folder / "server.key").unlink()
        case "empty":
            (folder / "server.pem").write_bytes(b"")
        case "locked":
            shutil.copy2(folder / "locked.key", folder / "server.key")
    for server in (served.http, served.grpc):
        with pytest.raises(ServeError):
            server.reload_certificate()
    assert served.shown() == [old, old]
    assert served.live("client") == [True, True]
    # And a good one still takes over later.
    replace(folder, "server", "next")
    for server in (served.http, served.grpc):
        server.reload_certificate()
    assert served.shown() == [(folder / "next.pem").read_text()] * 2


def test_another_authority_of_clients_is_read_anew_too(serve: Serve) -> None:
    served = serve("ca")
    assert served.live("stranger") == [False, False]
    good = (served.folder / "ca.pem").read_bytes()
    shutil.copy2(served.folder / "other-ca.pem", served.folder / "ca.pem")
    served.http.reload_certificate()
    served.grpc.reload_certificate()
    (served.folder / "ca.pem").write_bytes(good)
    assert served.live("stranger") == [True, True]
    assert served.live("client") == [False, False]


@pytest.mark.parametrize(
    ("certificate", "key", "authority", "says"),
    [
        ("nowhere.pem", "server.key", None, r"nowhere.pem: there is no such file"),
        (".", "server.key", None, "there is no such file"),
        ("server.pem", "nowhere.key", None, r"nowhere.key: there is no such file"),
        ("server.pem", "server.key", "nowhere.pem", r"nowhere.pem: there is no such file"),
        ("server.pem", "next.key", None, r"whose private key, without a passphrase, is in"),
        ("server.pem", "locked.key", None, r"whose private key, without a passphrase, is in"),
        ("empty.pem", "server.key", None, r"empty.pem: is no PEM certificate"),
        ("server.pem", "server.key", "empty.pem", r"empty.pem: holds no PEM certificate"),
        ("server.pem", "server.key", "server.key", r"server.key: holds no PEM certificate"),
    ],
)
def test_files_that_do_not_fit_are_named(
    certificate: str, key: str, authority: str | None, says: str, folder: Path
) -> None:
    files = TlsFiles(
        folder / certificate, folder / key, None if authority is None else folder / authority
    )
    for use in (server_context, read_tls):
        with pytest.raises(ServeError, match=says):
            use(files)


def test_a_key_that_others_may_read_is_refused(folder: Path) -> None:
    files = TlsFiles(folder / "server.pem", folder / "server.key")
    files.key.chmod(0o604)
    with pytest.raises(ServeError, match="has mode 0604, so that others may use the private key"):
        read_tls(files)


def test_contents_are_of_one_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are replaced between the check and the reading never make a mixed pair."""
    files = TlsFiles(folder / "server.pem", folder / "server.key")
    changes = 1

    def check(given: TlsFiles) -> ssl.SSLContext:
        nonlocal changes
        context = server_context(given)
        if changes:
            changes -= 1
            name = "next" if changes % 2 == 0 else "client"
            replace(folder, "server", name)
        return context

    monkeypatch.setattr(tls_module, "server_context", check)
    assert read_tls(files).certificate == (folder / "next.pem").read_bytes()
    changes = 10
    with pytest.raises(ServeError, match="changes while it is read"):
        read_tls(files)


def test_a_key_is_in_no_message(folder: Path) -> None:
    files = TlsFiles(folder / "server.pem", folder / "server.key")
    assert "PRIVATE KEY" not in repr(read_tls(files))
