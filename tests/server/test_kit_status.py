"""What the files of a kit say of its runs."""

from __future__ import annotations

from pathlib import Path

from test_run_metrics import record, write_run

from fedveil.audit_log.trail import AuditTrail
from fedveil.server.kit_status import (
    FolderStatus,
    RefusalSeen,
    events_of,
    folder_status,
    folders_by_run,
    refusals,
)


def test_how_far_a_run_is(tmp_path: Path) -> None:
    write_run(tmp_path, "one", record(1, 3, 0, 1.25), record(2, 2, 1, 2.5))
    (tmp_path / "one" / "config.toml").write_text("[federation]\nrounds = 5\n")
    assert folder_status(tmp_path / "one") == FolderStatus("one", 2, 5, 2, 1, 2.5)
    write_run(tmp_path, "begun")
    (tmp_path / "begun" / "config.toml").write_text("[federation]\nrounds = 5\n")
    assert folder_status(tmp_path / "begun") == FolderStatus("begun", rounds=5)


def test_a_damaged_folder_says_so_and_hides_no_other(tmp_path: Path) -> None:
    write_run(tmp_path, "bad", record(1, 3, 0, 1.25)).write_text("{")
    assert "metrics.jsonl: cannot be read" in folder_status(tmp_path / "bad").trouble


def test_the_last_refusals_are_told_and_nothing_else(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path)
    assert refusals(events_of(tmp_path), 5) == []
    trail.write("begin", run="7", folder="/runs/one")
    trail.write("refuse", run="7", node="12", kind="policy", detail="no")
    trail.write("round", run="7", round=1, clients="client-0")
    trail.write("drop", run="7", client="client-1 (ward-b)", kind="silent", detail="no answer")
    trail.write("task-end", run="7", message="train of run 7", outcome="ok")
    trail.write("task-end", run="7", message="train of run 7", outcome="refused", detail="budget")
    events = events_of(tmp_path)
    assert folders_by_run(events) == {"7": "/runs/one"}
    found = refusals(events, 5)
    assert [(one.who, one.kind, one.why) for one in found] == [
        ("node 12", "policy", "no"),
        ("client-1 (ward-b)", "silent", "no answer"),
        ("train of run 7", "refused", "budget"),
    ]
    assert refusals(events, 1) == found[-1:]
    assert isinstance(found[0], RefusalSeen)
