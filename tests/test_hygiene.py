"""A crash leaves no copy of memory, and other processes of the same user cannot read it."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedveil import hygiene
from fedveil.hygiene import HygieneError, forbid_core_dumps

FORBID = "from fedveil.hygiene import forbid_core_dumps; forbid_core_dumps()\n"
# As a machine may be set up: without a limit, unless the test's own process has one.
UNLIMITED = """
import os, resource, sys
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
"""
LIMITS = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))\n"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_DUMPABLE is Linux's")


def python(code: str, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "crash",
    ["os.abort()", "os.execv(sys.executable, [sys.executable, '-c', 'import os; os.abort()'])"],
    ids=["itself", "a program that it starts"],
)
def test_a_crash_leaves_no_core(tmp_path: Path, crash: str) -> None:
    without, within = tmp_path / "without", tmp_path / "within"
    without.mkdir()
    within.mkdir()
    assert python(UNLIMITED + crash, without).returncode < 0
    assert python(UNLIMITED + FORBID + crash, within).returncode < 0
    assert list(within.iterdir()) == []
    if not list(without.iterdir()):
        pytest.skip("this machine leaves cores in no folder or not at all: nothing to compare with")


def test_the_limit_holds_for_good_and_for_what_is_started(tmp_path: Path) -> None:
    started = "import subprocess; subprocess.run([sys.executable, '-c', sys.argv[0]])"
    done = python(
        UNLIMITED + FORBID + FORBID + LIMITS + f"sys.argv[0] = {LIMITS!r}\n{started}", tmp_path
    )
    assert done.returncode == 0, done.stderr
    own, of_child = sorted(done.stdout.splitlines())
    assert own == of_child
    assert own in ("(0, 0)", "(1, 1)"), "no room for a core, and no way back up"


# Root may read all. Where the tests run as root, both sides give up every capability.
AS_ORDINARY_USER = """
import ctypes, os, sys
for capability in range(64):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


@contextmanager
def waiting(code: str) -> Iterator[int]:
    """Run code that prints a line and waits; yield its pid."""
    process = subprocess.Popen(
        ordinary(f"{code}\nprint('ready', flush=True)\ninput()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "SECRET": "in the environment"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.wait(timeout=10)


def ordinary(code: str) -> list[str]:
    return [sys.executable, "-c", AS_ORDINARY_USER, code]


def read(pid: int) -> str:
    """Look for the secret in the environment of a process; return the answer, or the error."""
    code = f"print(b'SECRET' in open('/proc/{pid}/environ', 'rb').read())"
    done = subprocess.run(ordinary(code), capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


@on_linux
def test_another_process_of_the_same_user_cannot_read_it() -> None:
    with waiting("pass") as pid:
        assert read(pid) == "True"
    with waiting(FORBID) as pid:
        assert "Permission denied" in read(pid)


@on_linux
def test_a_system_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def prctl(self, *arguments: int) -> int:
            ctypes.set_errno(1)
            return -1

    def no_limit(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(hygiene.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(hygiene.ctypes, "CDLL", lambda *_, **__: Refusing())
    with pytest.raises(HygieneError, match=r"prctl failed \(Operation not permitted\)"):
        forbid_core_dumps()
    monkeypatch.setattr(hygiene.resource, "setrlimit", no_limit)
    with pytest.raises(HygieneError, match="setrlimit failed"):
        forbid_core_dumps()


IMPORTED = "import fedveil.server.app, fedveil.client.app, fedveil.cli\n"
CONTEXT = """
from contextlib import suppress
from flwr.app import Context, Message, RecordDict
from fedveil.flower import set_identity
set_identity(1, 2)
context = Context(1, 1, {}, RecordDict(), {"nonsense": 1})
"""
SERVER_APP = "with suppress(Exception): fedveil.server.app.app(None, context)\n"
CLIENT_APP = """
with suppress(Exception):
    fedveil.client.app.app(Message(RecordDict(), dst_node_id=1, message_type="train"), context)
"""
COMMAND = "sys.argv = ['fedveil', 'scenarios']\nwith suppress(SystemExit): fedveil.cli.main()\n"


@pytest.mark.parametrize(
    ("code", "is_forbidden"),
    [("", False), (SERVER_APP, True), (CLIENT_APP, True), (COMMAND, True)],
    ids=["imported", "ServerApp", "ClientApp", "command"],
)
def test_apps_and_commands_forbid_it_and_imports_do_not(
    tmp_path: Path, code: str, is_forbidden: bool
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard in (0, 1):
        pytest.skip("core dumps are forbidden already where the tests run")
    shown = "import json; print(json.dumps(resource.getrlimit(resource.RLIMIT_CORE)))"
    done = python(UNLIMITED + IMPORTED + CONTEXT + code + shown, tmp_path)
    assert done.returncode == 0, done.stderr
    soft = json.loads(done.stdout.splitlines()[-1])[0]
    assert (soft in (0, 1)) is is_forbidden
