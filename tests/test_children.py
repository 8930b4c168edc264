"""Child processes: what they print is logged, and none outlives its parent."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from kits import is_running

from fedveil.children import Child, ended_how, until_told_to_stop

LOG = logging.getLogger("test.children")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def environment() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONUNBUFFERED": "1"}


def wait_until(held: object, patience: float = 20.0) -> None:
    assert callable(held)
    deadline = time.monotonic() + patience
    while not held():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_lines_are_logged_at_the_level_that_they_name(caplog: pytest.LogCaptureFixture) -> None:
    code = r"""
    print("\x1b[92mINFO \x1b[0m:      begun")
    print("WARNING :   careful")
    print("11/30/2026 02:11:41:ERROR:bad")
    print("  of this kind")
    print()
    print("INFO : asked by [uvicorn.access] again")
    print("no level at all")
    """
    with caplog.at_level(logging.DEBUG, LOG.name):
        child = Child(python(code), environment(), LOG, quiet="[uvicorn.access]")
        wait_until(lambda: child.code is not None)
        last = child.last_lines()
    assert [(r.levelname, r.getMessage().strip()) for r in caplog.records] == [
        ("INFO", "begun"),
        ("WARNING", "careful"),
        ("ERROR", "bad"),
        ("ERROR", "of this kind"),
        ("DEBUG", "INFO : asked by [uvicorn.access] again"),
        ("ERROR", "no level at all"),
    ]
    assert child.has_said("careful")
    assert not child.has_said("uvicorn")
    assert last.endswith("no level at all")


def test_a_child_is_ended_and_tells_how() -> None:
    child = Child(python("import time; time.sleep(60)"), environment(), LOG)
    assert child.code is None
    assert ended_how(child.end()) == "was ended by SIGTERM"
    assert ended_how(child.end()) == "was ended by SIGTERM", "twice is once"
    assert ended_how(3) == "ended with code 3"
    assert ended_how(-250) == "was ended by signal 250"


def test_a_child_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedveil.children._PATIENCE", 0.5)
    code = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready")
    time.sleep(60)
    """
    child = Child(python(code), environment(), LOG)
    wait_until(lambda: child.has_said("ready"))
    assert ended_how(child.end()) == "was ended by SIGKILL"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_a_child_dies_with_its_parent_even_by_sigkill(tmp_path: Path) -> None:
    grandchild = """
    import os, sys, time
    from fedveil.children import die_with_parent
    die_with_parent(int(sys.argv[1]))
    open(sys.argv[2], "w").write(str(os.getpid()))
    time.sleep(60)
    """
    told = tmp_path / "pid"
    parent = subprocess.Popen(
        python(
            f"""
            import os, subprocess, sys, time
            code = {textwrap.dedent(grandchild)!r}
            command = [sys.executable, "-c", code, str(os.getpid()), {str(told)!r}]
            subprocess.Popen(command, start_new_session=True)
            time.sleep(60)
            """
        )
    )
    try:
        wait_until(lambda: told.exists() and told.read_text())
        pid = int(told.read_text())
        assert is_running(pid)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not is_running(pid))


def test_a_child_whose_parent_has_gone_already_ends_at_once() -> None:
    code = "from fedveil.children import die_with_parent; die_with_parent(1 << 30); print('alive')"
    done = subprocess.run(python(code), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_block_and_restores_what_was(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(number)
    cleaned = False
    with caplog.at_level(logging.INFO, LOG.name), until_told_to_stop(LOG):
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
            pytest.fail("the signal changed nothing")
        finally:
            # A second one does not interrupt what is cleaned up.
            os.kill(os.getpid(), number)
            cleaned = True
    assert cleaned
    assert signal.getsignal(number) is before
    assert f"told to stop by {number.name}" in caplog.text
