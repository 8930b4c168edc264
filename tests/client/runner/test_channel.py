from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.client.runner.channel import (
    Channel,
    ChannelError,
    Done,
    Go,
    Ready,
    Refused,
    Take,
    Taken,
)

LINES = st.one_of(
    st.builds(Take, st.text()),
    st.builds(Go),
    st.builds(Ready),
    st.builds(Refused, st.text()),
    st.builds(Taken, st.binary(), st.text(), st.text(), st.text()),
    st.builds(Done, st.text(), st.booleans(), st.text()),
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, Channel(theirs)


@given(st.lists(LINES, max_size=8))
def test_what_is_sent_is_received(lines: list[Take | Go | Ready | Refused | Taken | Done]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender, receiver = Channel(ours), Channel(theirs)
        for line in lines:
            sender.send(line)
        assert [receiver.receive(5.0) for _ in lines] == lines
        assert receiver.receive(0.0) is None


def test_a_line_in_two_pieces_is_one(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.sendall(b'["Take", {"tok')
    assert channel.receive(0.01) is None
    ours.sendall(b'en": "a"}]\n["Ready", {}]\n')
    assert channel.receive(1.0) == Take("a")
    assert channel.receive(0.0) == Ready()


def test_the_end_of_the_other_side_is_told(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.close()
    with pytest.raises(EOFError):
        channel.receive(1.0)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"7\n",
        b"[]\n",
        b'["Open", {}]\n',
        b'["Take", {}]\n',
        b'["Take", {"token": "a", "more": 1}]\n',
        b'["Take", 7]\n',
        b"\xff\n",
        b'["Taken", {"envelope": 7, "what": "", "run": "", "bundle": ""}]\n',
        b"x" * (1 << 20) + b"x",
    ],
)
def test_what_is_no_line_of_ours_is_refused(
    ends: tuple[socket.socket, Channel], line: bytes
) -> None:
    ours, channel = ends
    sending = threading.Thread(target=ours.sendall, args=(line,))
    sending.start()
    with pytest.raises(ChannelError):
        channel.receive(10.0)
    sending.join(10.0)
