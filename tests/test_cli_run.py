"""`fedveil run` beside a server that is only just being started."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from fedveil import cli_run
from fedveil.cli_run_views import LogView
from fedveil.errors import FedveilError


def test_it_waits_for_a_superlink_that_is_about_to_listen() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

        def listen_later() -> None:
            time.sleep(0.5)
            listener.listen()

        later = threading.Thread(target=listen_later)
        later.start()
        cli_run._await_superlink(f"127.0.0.1:{port}", Path("kit"), LogView())
        later.join()


def test_it_says_what_to_start_where_none_ever_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_run, "_PATIENCE", 0.3)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(FedveilError, match=f"no SuperLink answers at 127.0.0.1:{port}") as why:
            cli_run._await_superlink(f"127.0.0.1:{port}", Path("kit"), LogView())
    assert "fedveil server kit" in str(why.value)
