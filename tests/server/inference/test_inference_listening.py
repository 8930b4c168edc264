"""Sockets to listen on: who has the port already is told, and nobody is let in too early."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.listening import begin, check_free, listen, reserve_port

HOST = "127.0.0.1"


def test_nobody_gets_in_before_it_begins() -> None:
    with closing(listen(HOST, 0)) as listener:
        address = listener.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 10)
        begin(listener)
        socket.create_connection(address, 10).close()


def test_of_two_that_come_at_the_same_time_one_is_told() -> None:
    with closing(listen(HOST, 0)) as first:
        port = first.getsockname()[1]
        with closing(listen(HOST, port)) as second:
            begin(first)
            with pytest.raises(ServeError, match=f"{HOST}, port {port} .*choose another --host or"):
                begin(second)
        with pytest.raises(ServeError, match=r"Address already in use\); choose another --host or"):
            listen(HOST, port)


def test_a_port_for_grpc_is_free_or_told() -> None:
    with socket.create_server((HOST, 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        for ask in (check_free, reserve_port):
            # Even one that would share it: two services of different runs are no workers.
            with pytest.raises(ServeError, match=f"port {port} for gRPC .*another --grpc-port"):
                ask(HOST, port)
    check_free(HOST, port)
    with closing(reserve_port(HOST, port)) as kept:
        assert kept.getsockname()[1] == port


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "x" * 300])
def test_an_address_of_nobody_is_told(host: str) -> None:
    for ask in (listen, check_free, reserve_port):
        with pytest.raises(ServeError, match="cannot listen on"):
            ask(host, 0)
