"""The audit log: a chain that is whole or says where it is not, and nothing is done without it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from audit_place import Place

from fedveil.audit_log import chain as audit_chain
from fedveil.audit_log.chain import ChainFile, read_head
from fedveil.audit_log.errors import AuditError
from fedveil.audit_log.verify import verify_audit
from fedveil.server.inference import audit_log
from fedveil.server.inference.audit_log import AuditEvent, AuditLog
from fedveil.server.inference.errors import UnavailableError

START = AuditEvent("start", detail="run r")
STOP = AuditEvent("stop")


def event(number: int) -> AuditEvent:
    return AuditEvent("infer", "token:shop", "http", "3", number, "ok")


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_lines_name_the_line_before_them(place: Place) -> None:
    log = AuditLog(place.log, place.head, START)
    for number in range(1, 101):
        log.record(event(number))
    log.close(STOP)
    assert stat.S_IMODE(place.log.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in place.lines()]
    assert [line["number"] for line in lines] == list(range(1, 103))
    assert [line["event"] for line in lines] == ["start", *["infer"] * 100, "stop"]
    assert [line["rows"] for line in lines[1:-1]] == list(range(1, 101))
    before = "0" * 64
    for line, raw in zip(lines, place.lines(), strict=True):
        assert line["before"] == before
        before = hashlib.sha256(raw.rstrip(b"\n")).hexdigest()
    assert lines[1] == {
        "number": 2,
        "time": lines[1]["time"],
        "event": "infer",
        "caller": "token:shop",
        "protocol": "http",
        "version": "3",
        "rows": 1,
        "outcome": "ok",
        "before": lines[1]["before"],
    }
    found = verify_audit([place.log], before, read_head(place.head))
    assert (found.first, found.last, found.head, found.given) == (1, 102, before, 102)
    assert found.torn == 0


def test_a_chain_goes_on_after_a_restart_and_in_another_file(place: Place) -> None:
    for _ in range(3):
        AuditLog(place.log, place.head, START).close(STOP)
    assert verify_audit([place.log]).last == 6
    first = place.log.with_name("audit.1")
    place.log.rename(first)
    place.write(7)
    place.write(8)
    with pytest.raises(AuditError, match="has number 7, and is not the first line"):
        verify_audit([place.log])
    alone = verify_audit([place.log], after=verify_audit([first]).head)
    assert (alone.first, alone.last) == (7, 8)
    with pytest.raises(AuditError, match="not the one after the line that was given"):
        verify_audit([place.log], after="a" * 64)
    assert verify_audit([first, place.log], kept=read_head(place.head)).first == 1
    with pytest.raises(AuditError, match="give the files before it first"):
        verify_audit([place.log, first])


def test_a_service_does_not_go_on_with_a_log_that_was_changed_at_its_end(place: Place) -> None:
    place.write(*range(5))
    whole = place.lines()
    for damage in (
        whole[:3],
        [*whole[:4], whole[4].replace(b'"value":4', b'"value":5')],
        [*whole, whole[4]],
        [*whole, b"{}\n"],
    ):
        place.put(damage)
        with pytest.raises(AuditError, match=r"keep it, and begin another file|is no line of"):
            AuditLog(place.log, place.head, START)
        assert place.lines() == damage
    place.put(whole)
    place.head.unlink()
    with pytest.raises(AuditError, match="does not go on where"):
        place.write(6)
    place.head.write_bytes(b"{}")
    with pytest.raises(AuditError, match="is no head of an audit log"):
        place.write(6)


def test_processes_write_one_chain(place: Place) -> None:
    logs = [AuditLog(place.log, place.head, START) for _ in range(3)]

    def write(log: AuditLog) -> None:
        for number in range(1, 301):
            log.record(event(number))

    threads = [threading.Thread(target=write, args=(log,)) for log in logs for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for log in logs:
        log.close(STOP)
    assert verify_audit([place.log], kept=read_head(place.head)).last == 3 * (2 * 300 + 2)


def test_a_killed_process_leaves_a_chain_that_goes_on(place: Place) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from fedveil.server.inference.audit_log import AuditEvent, AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]), Path(sys.argv[2]), AuditEvent('start'))\n"
        "print(flush=True)\n"
        "while True:\n"
        "    time.sleep(len(log._waiting) / 1e6)\n"
        "    log.record(AuditEvent('infer', 'token:shop', rows=1))\n"
    )
    for _ in range(2):
        command = [sys.executable, "-c", program, str(place.log), str(place.head)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            size = place.log.stat().st_size
            wait_for(lambda size=size: place.log.stat().st_size > size)  # type: ignore[misc]
            os.kill(process.pid, signal.SIGKILL)
    AuditLog(place.log, place.head, START).close(STOP)
    assert verify_audit([place.log], kept=read_head(place.head)).last > 4


def fail_to_sync(monkeypatch: pytest.MonkeyPatch, *, fails: list[bool]) -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if fails[0]:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(audit_chain.os, "fsync", fsync)


def test_what_cannot_be_written_is_refused_until_it_can(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_log, "_RETRY_SECONDS", 0.02)
    fails = [False]
    fail_to_sync(monkeypatch, fails=fails)
    log = AuditLog(place.log, place.head, START)
    log.check()
    fails[0] = True
    log.record(event(1))
    wait_for(lambda: bool(log._failure))
    with pytest.raises(UnavailableError, match="audit log cannot be written"):
        log.check()
    log.record(event(2))
    fails[0] = False
    wait_for(lambda: not log._failure)
    log.check()
    log.close(STOP)
    assert [json.loads(line).get("rows") for line in place.lines()] == [None, 1, 2, None]
    assert verify_audit([place.log], kept=read_head(place.head)).last == 4
    told = [r.message for r in caplog.records if "No space left" in r.message]
    assert len(told) == 1


def test_a_log_that_cannot_be_written_at_the_start_is_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AuditError, match="cannot be written"):
        AuditLog(place.log.parent / "no" / "folder", place.head, START)
    place.log.mkdir()
    with pytest.raises(AuditError, match="cannot be written"):
        AuditLog(place.log, place.head, START)
    place.log.rmdir()
    place.log.symlink_to(place.log.with_name("elsewhere"))
    with pytest.raises(AuditError, match="cannot be written"):
        AuditLog(place.log, place.head, START)
    place.log.unlink()
    fail_to_sync(monkeypatch, fails=[True])
    with pytest.raises(AuditError, match="No space left"):
        AuditLog(place.log, place.head, START)
    # Nothing of it is left, and nothing claims that it was there.
    assert place.log.read_bytes() == b""


def test_a_log_that_is_behind_refuses(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "_MOST_WAITING", 5)
    go = threading.Event()
    append = ChainFile.append

    def slow(chain: ChainFile, events: list[dict[str, str | int]]) -> object:
        if events[0]["event"] != "start":
            assert go.wait(20)
        return append(chain, events)

    monkeypatch.setattr(ChainFile, "append", slow)
    log = AuditLog(place.log, place.head, START)
    log.record(event(1))
    wait_for(lambda: bool(log._pending))
    for number in range(5):
        log.check()
        log.record(event(number))
    with pytest.raises(UnavailableError, match="is behind"):
        log.check()
    go.set()
    log.close(STOP)
    assert verify_audit([place.log]).last == 8


def test_a_flood_of_refusals_is_counted_in_few_lines(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "_MOST_REFUSERS", 10)
    monkeypatch.setattr(audit_log, "_GATHER_SECONDS", 0.3)
    log = AuditLog(place.log, place.head, START)
    for number in range(10_000):
        caller = f"address:{number % 2}" if number < 9000 else f"address:x{number}"
        log.refuse(AuditEvent("refuse", caller, "http", outcome="unauthenticated"))
    log.close(STOP)
    lines = [json.loads(line) for line in place.lines()]
    told = {line["caller"]: 0 for line in lines if line["event"] == "refuse"}
    for line in lines:
        if line["event"] == "refuse":
            told[line["caller"]] += line.get("times", 1)
    assert sum(told.values()) == 10_000
    assert (told["address:0"], told["address:1"]) == (4500, 4500)
    assert len(lines) <= 2 + 2 * 11
