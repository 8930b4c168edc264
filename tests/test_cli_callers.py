"""`fedveil queries`, `fedveil audit-log` and the policy of `fedveil serve`, as they are typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedveil.audit_log.chain import ChainFile, head_path
from fedveil.cli import main
from fedveil.home import audit_heads_dir, default_budgets_file
from fedveil.server.inference.callers import Caller
from fedveil.server.inference.query_budget import QueryBudget


def fedveil(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedveil", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out + told.err


def test_budgets_are_shown_and_reset(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = fedveil(capsys, "queries", "list")
    assert code == 1
    assert "there is no such file of budgets; a service with --query-budget makes it" in told
    budget = QueryBudget(default_budgets_file(), "run-1", 5000)
    budget.take(Caller("token", "web-shop"), 1234)
    budget.take(Caller("address", "192.0.2.7"), 5)
    budget.close()
    code, told = fedveil(capsys, "queries", "list")
    assert code == 0
    rows = [line.split() for line in told.splitlines() if "run-1" in line]
    assert [row[3:6:2] for row in rows] == [["address:192.0.2.7", "5"], ["token:web-shop", "1,234"]]
    code, told = fedveil(capsys, "queries", "reset", "token:web-shop")
    assert (code, told) == (0, "token:web-shop may begin anew; 1,234 rows were used\n")
    code, told = fedveil(capsys, "queries", "reset", "web-shop")
    assert code == 1
    assert "knows of no caller web-shop" in told
    code, told = fedveil(capsys, "queries", "reset", "token:web-shop", "--run", "other")
    assert code == 1


def test_a_log_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "audit.log"
    chain = ChainFile(log, head_path(audit_heads_dir(), log))
    noted = chain.append([{"event": "x"}] * 3).sha256
    last = chain.append([{"event": "x"}] * 2).sha256
    code, told = fedveil(capsys, "audit-log", "verify", str(log), "--head", noted)
    assert code == 0
    assert f"lines 1 to 5 follow one another; the head is {last}" in told
    assert "it reaches line 5, the last that was noted" in told
    assert "line 3 is the head that you gave: up to it nothing was changed" in told
    assert "not known" not in told
    copy = tmp_path / "copy.log"
    lines = log.read_bytes().splitlines(keepends=True)
    copy.write_bytes(b"".join(lines[:4]))
    code, told = fedveil(capsys, "audit-log", "verify", str(copy))
    assert code == 0
    assert "whether lines were cut off at the end is not known: no head of it is kept" in told
    code, told = fedveil(capsys, "audit-log", "verify", str(copy), "--head", last)
    assert code == 1
    assert "no line has the hash" in told
    log.write_bytes(b"".join(lines[:4]))
    code, told = fedveil(capsys, "audit-log", "verify", str(log))
    assert code == 1
    assert "1 were cut off at the end" in told
    log.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    code, told = fedveil(capsys, "audit-log", "verify", str(log))
    assert code == 1
    assert "audit.log, line 3: has number 4 where 3 is due: 1 lines before it were removed" in told
    code, told = fedveil(capsys, "audit-log", "verify", str(log), "--head", "abc")
    assert code == 1
    assert "--head abc: a head has 64 characters" in told
    code, told = fedveil(capsys, "audit-log", "verify", str(tmp_path / "none"))
    assert code == 1
    assert "cannot be read (No such file or directory)" in told


def test_a_form_that_is_not_known_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = fedveil(capsys, "serve", str(tmp_path), "--outputs", "logit")
    assert code == 1
    assert "--outputs logit: is none of full, labels, top-K" in told
    assert "Traceback" not in told
