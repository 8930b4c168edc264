"""Workers, with small scripts in the place of services: started, replaced, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.listening import listen, reserve_port
from fedveil.server.inference.workers import Worker, Workers

READY = """
    import os, signal, sys, time
    status = int(sys.argv[1].split(",")[3])
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.write(status, b"r")
    time.sleep(60)
"""


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def workers(script: str, count: int = 2) -> Iterator[Workers]:
    with listen("127.0.0.1", 0) as listener:
        command = [sys.executable, "-c", textwrap.dedent(script)]
        made = Workers(command, count, listener.fileno())
        try:
            yield made
        finally:
            made.stop(5)


@contextmanager
def watched(made: Workers) -> Iterator[None]:
    ending = threading.Event()
    thread = threading.Thread(target=made.watch, args=(ending,))
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(30)


def test_a_worker_is_told_in_one_argument_who_it_is() -> None:
    worker = Worker(2, 3, 5, 7, 8081, speaks=False)
    assert Worker.parse(str(worker)) == worker
    for wrong in ("", "1,2", "1,2,3,4,5,x"):
        with pytest.raises(ServeError, match="--workers N"):
            Worker.parse(wrong)


def test_a_worker_that_is_killed_is_replaced_and_the_others_stay() -> None:
    with workers(READY) as made:
        assert made.start(threading.Event())
        killed, other = made.pids
        with watched(made):
            os.kill(killed, signal.SIGKILL)
            until(lambda: killed not in made.pids and len(made.pids) == 2)
            assert other in made.pids
        assert made.stop(5)
        assert made.pids == []


def test_one_that_keeps_dying_is_started_less_and_less_often(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    dies = f"""
        import os, sys, time
        with open({str(starts)!r}, "a") as file:
            file.write(f"{{time.monotonic()}}\\n")
        os.write(int(sys.argv[1].split(",")[3]), b"r")
    """
    with workers(dies, 1) as made:
        made.start(threading.Event())
        with watched(made):
            until(lambda: len(starts.read_text().splitlines()) >= 3)
    first, second, third = map(float, starts.read_text().split()[:3])
    assert second - first >= 0.5
    assert third - second >= 1.0


def test_what_keeps_a_worker_from_starting_ends_the_start_and_is_said_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with workers("import sys; sys.exit('error: no such run')", 3) as made:
        assert not made.start(threading.Event())
    assert capfd.readouterr().err.count("no such run") == 1
    with (
        workers("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 1) as made,
        pytest.raises(ServeError, match="worker 1 was killed by signal 9"),
    ):
        made.start(threading.Event())


def test_a_start_can_be_called_off() -> None:
    ending = threading.Event()
    with workers("import time; time.sleep(60)") as made:
        threading.Timer(0.3, ending.set).start()
        assert not made.start(ending)
        assert made.stop(5)


def test_signals_reach_all_of_them_and_a_bad_end_is_known(tmp_path: Path) -> None:
    script = f"""
        import os, pathlib, signal, sys, time
        number = sys.argv[1].split(",")[0]
        heard = pathlib.Path({str(tmp_path)!r}) / number
        signal.signal(signal.SIGHUP, lambda *_: heard.touch())
        signal.signal(signal.SIGTERM, lambda *_: os._exit(3 if number == "2" else 0))
        os.write(int(sys.argv[1].split(",")[3]), b"r")
        while True:
            time.sleep(0.1)
    """
    with workers(script) as made:
        assert made.start(threading.Event())
        made.send(signal.SIGHUP)
        until(lambda: {path.name for path in tmp_path.iterdir()} == {"1", "2"})
        assert not made.stop(5)


def test_workers_have_no_terminal_and_no_input() -> None:
    script = """
        import os, sys
        assert os.getsid(0) == os.getpid()
        assert sys.stdin.read() == ""
        os.write(int(sys.argv[1].split(",")[3]), b"r")
    """
    with workers(script, 1) as made:
        assert made.start(threading.Event())


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    worker = f"""
        import pathlib, sys, threading
        from fedveil.server.inference.workers import Worker
        worker = Worker.parse(sys.argv[1])
        ending = threading.Event()
        worker.is_ready()
        worker.end_with_parent(ending)
        if ending.wait(30):
            pathlib.Path({str(ended)!r}).touch()
    """
    parent = f"""
        import os, signal, sys, threading
        from fedveil.server.inference.listening import listen
        from fedveil.server.inference.workers import Workers
        command = [sys.executable, "-c", {textwrap.dedent(worker)!r}]
        listener = listen("127.0.0.1", 0)
        workers = Workers(command, 1, listener.fileno())
        assert workers.start(threading.Event())
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(parent)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    until(ended.exists)


def test_a_port_of_somebody_else_is_not_shared() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match="choose another --host or --port"):
            listen("127.0.0.1", port)
        with pytest.raises(ServeError, match="choose another --grpc-port"):
            reserve_port("127.0.0.1", port)
    with reserve_port("127.0.0.1", 0) as reserved:
        assert reserved.getsockname()[1] > 0
