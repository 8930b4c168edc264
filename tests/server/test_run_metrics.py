"""What Prometheus is told of a coordinator's runs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedveil.audit_log.trail import AuditTrail
from fedveil.server.records import RoundRecord
from fedveil.server.run_metrics import CoordinatorMetrics, MetricsError, serve_metrics
from fedveil.server.stage_log import add_stages
from fedveil.strategies.failures import Failure, FailureKind
from fedveil.strategies.stage_clock import Stage

LABELS = ("run", "stage", "reason", "outcome")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_run(runs: Path, name: str, *records: RoundRecord) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    path = folder / "metrics.jsonl"
    path.write_text("".join(record.model_dump_json() + "\n" for record in records))
    return path


def record(round_: int, clients: int, failed: int, epsilon: float | None) -> RoundRecord:
    return RoundRecord(
        round=round_, attempt=1, clients=clients, failed=failed, seconds=1.5, epsilon=epsilon
    )


def scraped(metrics: CoordinatorMetrics) -> dict[tuple[str, ...], float]:
    port = free_port()
    with serve_metrics(metrics, port):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    return {
        (sample.name, *(sample.labels[k] for k in LABELS if k in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.value or "reason" not in sample.labels
    }


def metrics_of(runs: Path, registered: int = 0, since: float = 0.0) -> CoordinatorMetrics:
    return CoordinatorMetrics(runs, runs / "audit.jsonl", lambda: registered, since)


def test_runs_are_told_with_their_figures(tmp_path: Path) -> None:
    write_run(tmp_path, "one", record(1, 3, 0, 1.25), record(2, 2, 1, 2.5))
    write_run(tmp_path, "plain", record(1, 3, 0, None))
    write_run(tmp_path, "begun")
    for number, left_out in enumerate(([], [Failure(FailureKind.SILENT, "gone")]), start=1):
        stages = {Stage.INPUT: 1.0, Stage.COMMIT: 0.25}
        add_stages(tmp_path / "one", (number, 1), stages, left_out, is_committed=True)
    refused = [Failure(FailureKind.POLICY, "no"), Failure(FailureKind.SILENT, "gone")]
    add_stages(tmp_path / "one", (3, 1), {Stage.INPUT: 2.0}, refused, is_committed=False)
    found = scraped(metrics_of(tmp_path, registered=3))
    assert found == {
        ("fedveil_registered_clients",): 3,
        ("fedveil_runs_begun_total",): 0,
        ("fedveil_run_rounds_total", "one"): 2,
        ("fedveil_run_rounds_total", "plain"): 1,
        ("fedveil_run_round_seconds_total", "one"): 3.0,
        ("fedveil_run_round_seconds_total", "plain"): 1.5,
        ("fedveil_run_replies_total", "one"): 5,
        ("fedveil_run_replies_total", "plain"): 3,
        ("fedveil_run_left_out_total", "one", "silent"): 2,
        ("fedveil_run_left_out_total", "one", "policy"): 1,
        ("fedveil_run_stage_seconds_total", "one", "input"): 4.0,
        ("fedveil_run_stage_seconds_total", "one", "commit"): 0.5,
        ("fedveil_run_attempts_failed_total", "one"): 1,
        ("fedveil_run_attempts_failed_total", "plain"): 0,
        ("fedveil_run_clients", "one"): 3,
        ("fedveil_run_clients", "plain"): 3,
        ("fedveil_run_epsilon", "one"): 2.5,
    }


def test_old_and_damaged_runs_do_not_hide_the_others(tmp_path: Path) -> None:
    os.utime(write_run(tmp_path, "old", record(1, 3, 0, 1.0)), (1000, 1000))
    write_run(tmp_path, "damaged", record(1, 3, 0, 1.0)).write_text("{")
    write_run(tmp_path, "new", record(1, 3, 0, 1.0))
    found = scraped(metrics_of(tmp_path, since=2000.0))
    assert {labels[0] for _, *labels in found if labels} == {"new"}


def test_those_of_whom_a_crash_took_the_notes_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path, "one", record(1, 3, 0, None), record(2, 1, 2, None))
    with (tmp_path / "one" / "stages.jsonl").open("w") as file:
        file.write('{"round":2,"attempt":1,"is_comm')
    found = scraped(metrics_of(tmp_path))
    assert found["fedveil_run_left_out_total", "one", "other"] == 2


def test_events_are_counted_from_the_start_of_the_server_on(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path)

    def refuse(kind: str, times: int) -> None:
        for _ in range(times):
            trail.write("refuse", node="7", kind=kind)

    refuse("policy", 5)
    metrics = metrics_of(tmp_path)
    refuse("policy", 2)
    trail.write("begin")
    trail.write("end", outcome="failed", detail="anything")
    assert scraped(metrics)["fedveil_join_refused_total", "policy"] == 2
    refuse("place", 1)
    # Whatever stands in the log, it makes no series of its own.
    for number in range(50):
        refuse(f"mine-{number}", 1)
        trail.write("end", outcome=f"mine-{number}")
    found = scraped(metrics)
    assert {n: v for n, v in found.items() if len(n) > 1 or "begun" in n[0]} == {
        ("fedveil_runs_begun_total",): 1,
        ("fedveil_runs_ended_total", "failed"): 1,
        ("fedveil_runs_ended_total", "other"): 50,
        ("fedveil_join_refused_total", "policy"): 2,
        ("fedveil_join_refused_total", "place"): 1,
        ("fedveil_join_refused_total", "other"): 50,
    }


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        metrics = metrics_of(tmp_path)
        with (
            pytest.raises(MetricsError, match=f"--metrics-port {port}"),
            serve_metrics(metrics, port),
        ):
            pass
