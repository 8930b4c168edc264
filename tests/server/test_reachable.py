"""Whether an address is listened to, and whether it certainly is not."""

from __future__ import annotations

import socket

from fedveil.server.reachable import answers, refuses


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
