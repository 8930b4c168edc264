"""`fedveil audit-log` on a kit, as it is typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedveil.audit_log.trail import AuditTrail, trail
from fedveil.cli import main
from fedveil.home import home


def fedveil(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedveil", "audit-log", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_a_kit_is_verified_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = AuditTrail(tmp_path)
    audit.write("refuse", run="7", node="12", kind="policy")
    audit.write("join", run="7", client="client-0")
    audit.write("join", run="8", client="client-0")
    code, out, _ = fedveil(capsys, "verify", str(tmp_path))
    assert code == 0
    assert "lines 1 to 3 follow one another" in out
    assert "it reaches line 3, the last that was noted" in out
    _, out, _ = fedveil(capsys, "show", str(tmp_path), "--run", "7", "--event", "join")
    assert len(out.splitlines()) == 1
    _, out, _ = fedveil(capsys, "show", str(tmp_path), "--last", "1", "--json")
    assert json.loads(out)["run"] == "8"
    # A kit that was moved brings its head along.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert "noted" in fedveil(capsys, "verify", str(moved))[1]
    AuditTrail(moved).write("join", run="9")
    first = trail(moved)[0].rename(moved / "audit-1.jsonl")
    AuditTrail(moved).write("join", run="10")
    code, _, err = fedveil(capsys, "verify", str(moved))
    assert code == 1
    assert "give the files before it first" in err
    assert "lines 1 to 5" in fedveil(capsys, "verify", str(first), str(moved))[1]


def test_what_is_not_named_is_the_own_home(capsys: pytest.CaptureFixture[str]) -> None:
    AuditTrail(home()).write("join")
    assert fedveil(capsys, "verify")[0] == 0
    assert "join" in fedveil(capsys, "show")[1]


def test_a_torn_end_is_no_damage_and_a_cut_one_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = AuditTrail(tmp_path)
    audit.write("join", run="7")
    audit.write("refuse", run="7")
    log, _ = trail(tmp_path)
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"number":3,"ti')
    code, out, _ = fedveil(capsys, "verify", str(tmp_path))
    assert code == 0
    assert "15 bytes of an unfinished line stand at the end" in out
    log.write_bytes(whole[:-15])
    code, out, err = fedveil(capsys, "show", str(tmp_path))
    assert code == 1
    assert "join" in out, "what is there is shown all the same"
    assert "1 were cut off at the end" in err


def test_what_others_sent_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AuditTrail(tmp_path).write("refuse", detail="\x1b[2J[bold red]:smile:\nok\u202e")
    for option in ([], ["--json"]):
        _, out, _ = fedveil(capsys, "show", str(tmp_path), *option)
        assert len(out.splitlines()) == 1
        assert out.rstrip("\n").isprintable()
        assert "[bold red]:smile:" in out
