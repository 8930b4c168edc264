"""What Prometheus is told of a coordinator's runs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedveil.server.records import RoundRecord
from fedveil.server.run_metrics import CoordinatorMetrics, MetricsError, serve_metrics


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


def scraped(metrics: CoordinatorMetrics) -> dict[tuple[str, str], float]:
    port = free_port()
    with serve_metrics(metrics, port):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    return {
        (sample.name, sample.labels.get("run", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_runs_are_told_with_their_figures(tmp_path: Path) -> None:
    write_run(tmp_path, "one", record(1, 3, 0, 1.25), record(2, 2, 1, 2.5))
    write_run(tmp_path, "plain", record(1, 3, 0, None))
    write_run(tmp_path, "begun")
    found = scraped(CoordinatorMetrics(tmp_path, lambda: 3, 0.0))
    assert found == {
        ("fedveil_registered_clients", ""): 3,
        ("fedveil_run_rounds_total", "one"): 2,
        ("fedveil_run_rounds_total", "plain"): 1,
        ("fedveil_run_round_seconds_total", "one"): 3.0,
        ("fedveil_run_round_seconds_total", "plain"): 1.5,
        ("fedveil_run_replies_total", "one"): 5,
        ("fedveil_run_replies_total", "plain"): 3,
        ("fedveil_run_left_out_total", "one"): 1,
        ("fedveil_run_left_out_total", "plain"): 0,
        ("fedveil_run_epsilon", "one"): 2.5,
    }


def test_old_and_damaged_runs_do_not_hide_the_others(tmp_path: Path) -> None:
    os.utime(write_run(tmp_path, "old", record(1, 3, 0, 1.0)), (1000, 1000))
    write_run(tmp_path, "damaged", record(1, 3, 0, 1.0)).write_text("{")
    write_run(tmp_path, "new", record(1, 3, 0, 1.0))
    found = scraped(CoordinatorMetrics(tmp_path, lambda: 0, 2000.0))
    assert {run for _, run in found} == {"", "new"}


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        metrics = CoordinatorMetrics(tmp_path, lambda: 0, 0.0)
        with (
            pytest.raises(MetricsError, match=f"--metrics-port {port}"),
            serve_metrics(metrics, port),
        ):
            pass
