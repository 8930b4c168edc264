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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedveil.server.inference import audit_chain, audit_log
from fedveil.server.inference.audit_chain import ChainFile, head_path, read_head
from fedveil.server.inference.audit_log import AuditEvent, AuditLog
from fedveil.server.inference.audit_verify import verify_audit
from fedveil.server.inference.errors import AuditError, UnavailableError

START = AuditEvent("start", detail="run r")
STOP = AuditEvent("stop")


def event(number: int) -> AuditEvent:
    return AuditEvent("infer", "token:shop", "http", "3", number, "ok")


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


class Place:
    """A log and its head, in two folders."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "audit.log"
        self.head = head_path(folder / "heads", self.log)
        self.chain = ChainFile(self.log, self.head)

    def write(self, *numbers: int) -> str:
        return self.chain.append([{"event": "x", "value": number} for number in numbers]).sha256

    def lines(self) -> list[bytes]:
        return self.log.read_bytes().splitlines(keepends=True)

    def put(self, lines: list[bytes]) -> None:
        self.log.write_bytes(b"".join(lines))


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


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_a_log_is_found_and_named(data: st.DataObject, place: Place) -> None:
    if not place.log.exists():
        place.write(*range(8))
        place.log.with_suffix(".copy").write_bytes(place.log.read_bytes())
    whole = place.log.with_suffix(".copy").read_bytes().splitlines(keepends=True)
    head = hashlib.sha256(whole[-1].rstrip(b"\n")).hexdigest()
    lines = list(whole)
    attack = data.draw(st.sampled_from(["edit", "remove", "swap", "repeat", "insert", "cut"]))
    at = data.draw(st.integers(0, len(lines) - 1))
    last = at == len(lines) - 1
    match attack:
        case "edit":
            spot = data.draw(st.integers(0, len(lines[at]) - 2))
            new = data.draw(st.integers(32, 126).filter(lambda c: c != lines[at][spot]))
            lines[at] = lines[at][:spot] + bytes([new]) + lines[at][spot + 1 :]
        case "remove":
            del lines[at]
        case "swap":
            other = data.draw(st.integers(0, len(lines) - 1).filter(lambda n: n != at))
            lines[at], lines[other] = lines[other], lines[at]
            last = False
        case "repeat" | "insert":
            lines.insert(at, lines[at] if attack == "repeat" else lines[at].replace(b"x", b"y"))
            last = False
        case "cut":
            del lines[at:]
            last = True
    place.put(lines)
    # What is done at the end alone takes a head to find, whichever is at hand.
    for given_head, kept in ((head, None), (None, read_head(place.head))):
        with pytest.raises(AuditError):
            verify_audit([place.log], given_head, kept)
    if last and attack in ("remove", "cut") and lines:
        assert verify_audit([place.log]).last == len(lines)
    elif not last:
        with pytest.raises(AuditError, match=r"audit\.log, line \d+: "):
            verify_audit([place.log])


def test_the_line_that_was_touched_is_named(place: Place) -> None:
    place.write(*range(6))
    whole = place.lines()
    for damage, named in (
        ([*whole[:2], whole[2].replace(b'"value":2', b'"value":9'), *whole[3:]], "line 3: was cha"),
        ([*whole[:2], *whole[4:]], "line 3: has number 5 where 3 is due: 2 lines before it were r"),
        ([*whole[:2], whole[3], whole[2], *whole[4:]], "line 3: has number 4 where 3 is due: 1"),
        ([*whole[:3], whole[1], *whole[3:]], "line 4: has number 2 where 4 is due: lines were mo"),
        ([*whole[:3], b"{}\n", *whole[3:]], "line 4: is no line of an audit log"),
        ([*whole[:5], whole[5][:-20]], "line 6: is torn"),
        ([*whole[:2], whole[2].replace(b'er":3', b'er":4'), *whole[3:]], "line 3: was changed: it"),
    ):
        place.put(damage)
        with pytest.raises(AuditError, match=named):
            verify_audit([place.log])
    place.put([*whole[:5], whole[5].replace(b'"value":5', b'"value":9')])
    assert verify_audit([place.log]).last == 6
    with pytest.raises(AuditError, match="line 6: was changed: it is not line 6 as the service"):
        verify_audit([place.log], kept=read_head(place.head))
    place.put(whole[:4])
    with pytest.raises(AuditError, match="noted line 6: 2 were cut off at the end"):
        verify_audit([place.log], kept=read_head(place.head))


def test_a_head_noted_before_proves_what_was_up_to_it(place: Place) -> None:
    noted = place.write(1, 2, 3)
    place.write(4, 5)
    assert verify_audit([place.log], noted).given == 3
    place.put(place.lines()[:4])
    assert verify_audit([place.log], noted).given == 3
    place.put(place.lines()[:2])
    with pytest.raises(AuditError, match="no line has the hash"):
        verify_audit([place.log], noted)


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


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not-noted"])
def test_a_torn_line_is_taken_out_and_kept(place: Place, noted: bool) -> None:
    place.write(1, 2)
    if not noted:
        # A crash after the lines and before the head: it still names line 2.
        before = place.head.read_bytes()
        place.write(3)
        place.head.write_bytes(before)
    with place.log.open("ab") as file:
        file.write(b'{"number":4,"time":"')
    place.write(9)
    events = [json.loads(line) for line in place.lines()]
    assert events[-2]["event"] == "torn"
    assert (events[-2]["bytes"], events[-2]["piece"]) == (20, '{"number":4,"time":"')
    found = verify_audit([place.log], kept=read_head(place.head))
    assert (found.last, found.torn) == (4 if noted else 5, 1)


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


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_log_that_others_may_write_is_refused(mode: int, place: Place) -> None:
    """A line that somebody adds behind the last one goes on with the chain."""
    place.log.touch()
    place.log.chmod(mode)
    with pytest.raises(AuditError, match=f"has mode {mode:04o}.*chmod 600"):
        ChainFile(place.log, place.head).append([{"event": "start"}])


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
