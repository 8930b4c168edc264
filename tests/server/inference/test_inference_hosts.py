"""Which names a service without tokens answers under, and for whose pages."""

from __future__ import annotations

import pytest

from fedveil.server.inference.errors import ForbiddenError, MisdirectedError
from fedveil.server.inference.hosts import KnownHosts

EVERYWHERE = "0.0.0.0"  # noqa: S104  # a setting, nothing listens


@pytest.mark.parametrize(
    ("listening", "host"),
    [
        ("127.0.0.1", b"127.0.0.1:8080"),
        ("127.0.0.1", b"localhost:9"),
        ("127.0.0.1", b"LocalHost"),
        ("127.0.0.1", b"[::1]:8080"),
        ("localhost", b"127.0.0.1"),
        ("::1", b"[::1]"),
        ("192.0.2.7", b"192.0.2.7:8080"),
        ("model.example", b"MODEL.example:8080"),
        (EVERYWHERE, b"192.0.2.9:80"),
        (EVERYWHERE, b"[2001:db8::1]:80"),
        (EVERYWHERE, b"localhost"),
        (EVERYWHERE, b"known.example"),
    ],
)
def test_names_of_the_service(listening: str, host: bytes) -> None:
    known = KnownHosts(listening, ("known.example",))
    for _ in range(2):
        known.check({b"host": host})
    known.check({b"host": host, b"origin": b"http://" + host})
    known.check({b"host": host, b"origin": b"https://" + host.lower()})


@pytest.mark.parametrize(
    ("listening", "host"),
    [
        ("127.0.0.1", b"evil.example:8080"),
        ("127.0.0.1", b"127.0.0.1.evil.example"),
        ("127.0.0.1", b"localhost.evil.example"),
        ("127.0.0.1", b"evil.example:127.0.0.1"),
        ("127.0.0.1", b"192.0.2.7"),
        ("127.0.0.1", b""),
        ("127.0.0.1", b"[::1"),
        ("127.0.0.1", b"[127.0.0.1]x"),
        ("127.0.0.1", b"127.0.0.1@evil.example"),
        ("127.0.0.1", b"\xff"),
        ("192.0.2.7", b"localhost"),
        (EVERYWHERE, b"evil.example"),
        (EVERYWHERE, b"1.2.3.4.evil.example"),
        (EVERYWHERE, b""),
    ],
)
def test_other_names_are_refused_every_time(listening: str, host: bytes) -> None:
    known = KnownHosts(listening)
    for _ in range(3):
        with pytest.raises(MisdirectedError, match="no name of this service"):
            known.check({b"host": host})
    with pytest.raises(MisdirectedError):
        KnownHosts(listening).check({})


@pytest.mark.parametrize(
    "origin",
    [
        b"http://evil.example",
        b"null",
        b"",
        b"http://127.0.0.1:9999",
        b"http://127.0.0.1",
        b"http://127.0.0.1:80800",
        b"http://localhost:8080",
        b"http://127.0.0.1:8080.evil.example",
        b"http://127.0.0.1:8080/",
        b"file://",
    ],
)
def test_pages_of_other_places_are_refused(origin: bytes) -> None:
    with pytest.raises(ForbiddenError, match="a page of another site"):
        KnownHosts("127.0.0.1").check({b"host": b"127.0.0.1:8080", b"origin": origin})


def test_what_is_remembered_is_bounded() -> None:
    known = KnownHosts(EVERYWHERE)
    for port in range(5000):
        known.check({b"host": b"192.0.2.1:%d" % port})
    assert len(known._seen) <= 1024
