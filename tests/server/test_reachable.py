"""Whether an address is listened to, by whom, and whether it certainly is not."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from fedveil.server.provisioning.certificates import (
    new_tls_key,
    show_certificate,
    sign_authority,
    sign_server,
)
from fedveil.server.reachable import answers, refuses, tls_problem


def test_an_address_answers_or_refuses() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not answers("127.0.0.1", port)
        assert refuses("127.0.0.1", port)
        listener.listen()
        assert answers("127.0.0.1", port)
        assert not refuses("127.0.0.1", port)


def test_an_address_that_nobody_can_find_does_not_refuse() -> None:
    assert not answers("nowhere.invalid", 1)
    assert not refuses("nowhere.invalid", 1)


def authority(folder: Path, name: str) -> tuple[Path, bytes, bytes]:
    """Return an authority's file, and certificate and key of a server that it signed."""
    now = datetime.now(UTC)
    key, _ = new_tls_key()
    own = sign_authority(key, name, 10, now)
    server_key, pem = new_tls_key()
    server = sign_server(own, key, server_key.public_key(), "coordinator", ["127.0.0.1"], 5, now)
    path = folder / f"{name}.pem"
    path.write_bytes(show_certificate(own))
    return path, show_certificate(server), pem


@contextmanager
def served(context: ssl.SSLContext | None) -> Iterator[int]:
    """Answer one connection, over TLS or in clear; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20.0)

        def answer() -> None:
            with suppress(OSError):
                near, _ = listener.accept()
                with near:
                    near.settimeout(20.0)
                    if context is None:
                        near.recv(1024)
                        near.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    else:
                        context.wrap_socket(near, server_side=True).close()

        answering = threading.Thread(target=answer)
        answering.start()
        try:
            yield listener.getsockname()[1]
        finally:
            answering.join(30.0)


def test_who_answers_is_held_against_the_authority(tmp_path: Path) -> None:
    ours, certificate, key = authority(tmp_path, "ours")
    theirs, *_ = authority(tmp_path, "theirs")
    (tmp_path / "server.pem").write_bytes(certificate)
    (tmp_path / "server.key").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with served(context) as port:
        assert tls_problem("127.0.0.1", port, ours) == ""
    with served(context) as port:
        assert "certificate is not good for this kit" in tls_problem("127.0.0.1", port, theirs)
    with served(None) as port:
        assert tls_problem("127.0.0.1", port, ours) == "it does not speak TLS"


def test_nobody_there_is_nobody_wrong(tmp_path: Path) -> None:
    ours, *_ = authority(tmp_path, "ours")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        assert tls_problem("127.0.0.1", listener.getsockname()[1], ours) == ""
