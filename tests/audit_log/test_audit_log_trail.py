"""What runs write down: on the disk at once, by several processes, whole after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.audit_log.chain import read_head
from fedveil.audit_log.errors import AuditError
from fedveil.audit_log.trail import AuditTrail, TrailReader, in_parts, read_events, trail
from fedveil.audit_log.verify import Verified, verify_audit

WRITER = """
import sys
from pathlib import Path
from fedveil.audit_log.trail import AuditTrail
trail = AuditTrail(Path(sys.argv[1]))
print(flush=True)
for number in range(int(sys.argv[2])):
    trail.write("x", value=number)
"""


def verified(home: Path) -> Verified:
    log, head = trail(home)
    return verify_audit([log], kept=read_head(head))


def writer(home: Path, lines: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(home), str(lines)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_a_line_says_who_and_when(tmp_path: Path) -> None:
    AuditTrail(tmp_path).write("submit", run="7", empty="", round=3)
    (event,), _ = read_events(trail(tmp_path)[0])
    assert (
        event["user"]
        == f"{subprocess.check_output(['/usr/bin/id', '-un'], text=True).strip()} ({os.geteuid()})"
    )
    assert event["process"] == os.getpid()
    assert str(event["time"]).endswith("Z")
    assert (event["event"], event["run"], event["round"]) == ("submit", "7", 3)
    assert "empty" not in event


def test_the_environment_does_not_say_who_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USER", "LOGNAME", "SUDO_USER"):
        monkeypatch.setenv(name, "somebody-else")
    AuditTrail(tmp_path).write("submit")
    assert "somebody-else" not in trail(tmp_path)[0].read_text()


def test_two_processes_at_once_write_one_chain(tmp_path: Path) -> None:
    writers = [writer(tmp_path, 60) for _ in range(2)]
    assert [one.wait(60) for one in writers] == [0, 0]
    assert verified(tmp_path).last == 120
    events, _ = read_events(trail(tmp_path)[0])
    for one in writers:
        mine = [event["value"] for event in events if event["process"] == one.pid]
        assert mine == list(range(60))


def test_a_killed_process_loses_nothing_that_it_had_written(tmp_path: Path) -> None:
    log = trail(tmp_path)[0]
    for _ in range(3):
        with writer(tmp_path, 1_000_000) as process:
            assert process.stdout is not None
            process.stdout.readline()
            before = len(log.read_bytes()) if log.exists() else 0
            until = time.monotonic() + 20
            while not log.exists() or len(log.read_bytes()) < before + 2000:
                assert time.monotonic() < until
            os.kill(process.pid, signal.SIGKILL)
        found = verified(tmp_path)
        AuditTrail(tmp_path).write("after", seen=found.last)
    # Nothing is missing in each writer's own count.
    events, _ = read_events(log)
    for process_id in {event["process"] for event in events if event["event"] == "x"}:
        values = [event["value"] for event in events if event.get("process") == process_id]
        assert [v for v in values if isinstance(v, int)] == list(range(len(values)))
    assert verified(tmp_path).last == len(events)


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    audit = AuditTrail(tmp_path)
    trail(tmp_path)[0].mkdir()
    with pytest.raises(AuditError, match=r"cannot be written .*nothing is done without it"):
        audit.write("submit")


@pytest.mark.parametrize("attack", ["edit", "remove", "cut", "replace", "forget-head"])
def test_a_log_that_was_tampered_with_is_found_and_not_gone_on_with(
    tmp_path: Path, attack: str
) -> None:
    audit = AuditTrail(tmp_path)
    for number in range(5):
        audit.write("refuse", client=f"ward-{number}")
    log, head = trail(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    match attack:
        case "edit":
            lines[4] = lines[4].replace(b"ward-4", b"ward-0")
        case "remove":
            del lines[2]
        case "cut":
            del lines[4:]
        case "replace":
            AuditTrail(tmp_path / "other").write("begin")
            lines = trail(tmp_path / "other")[0].read_bytes().splitlines(keepends=True)
        case "forget-head":
            head.unlink()
    log.write_bytes(b"".join(lines))
    if attack != "forget-head":
        with pytest.raises(AuditError, match=r"audit\.jsonl, line \d: "):
            verified(tmp_path)
    with pytest.raises(AuditError, match=r"begin another file|was cut"):
        audit.write("submit")


def test_what_a_server_sent_does_not_fill_the_log(tmp_path: Path) -> None:
    worst = "\N{GRINNING FACE}" * 100_000
    audit = AuditTrail(tmp_path)
    for _ in range(2):
        audit.write("task", what=worst, detail=worst)
    assert verified(tmp_path).last == 2
    assert trail(tmp_path)[0].stat().st_size < 2 * 65_536
    assert not any(byte > 127 for byte in trail(tmp_path)[0].read_bytes())


@given(st.lists(st.text("abc-", min_size=1, max_size=900), max_size=20))
def test_names_in_parts_are_all_the_names(names: list[str]) -> None:
    parts = list(in_parts(names))
    assert [name for part in parts for name in part.split(", ")] == names
    assert all(len(part) <= 2000 for part in parts)


def test_a_reader_goes_on_where_it_was_also_in_another_file(tmp_path: Path) -> None:
    audit, log = AuditTrail(tmp_path), trail(tmp_path)[0]
    reader = TrailReader(log)
    assert reader.new_events() == []
    audit.write("one")
    audit.write("two")
    assert [event["event"] for event in reader.new_events()] == ["one", "two"]
    assert reader.new_events() == []
    with log.open("ab") as file:
        file.write(b'{"number":3')
    assert reader.new_events() == []
    audit.write("three")
    assert [event["event"] for event in reader.new_events()] == ["torn", "three"]
    log.rename(log.with_name("audit-1.jsonl"))
    assert reader.new_events() == []
    audit.write("four")
    assert [event["event"] for event in reader.new_events()] == ["four"]
    assert json.loads(log.read_text())["number"] == 5
