"""Prometheus metrics of a coordinator: who is registered, and how its runs go on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedveil.errors import FedveilError
from fedveil.server.audit_tally import AuditTally
from fedveil.server.records import RoundRecord
from fedveil.server.run_watch import RunLostError, committed_rounds
from fedveil.server.stage_log import StageRecord, read_stages
from fedveil.strategies.failures import FailureKind

__all__ = ["CoordinatorMetrics", "MetricsError", "serve_metrics"]

_ONLY_HERE = "127.0.0.1"


class MetricsError(FedveilError):
    """The metrics cannot be served."""


class CoordinatorMetrics(Collector):
    """What Prometheus reads, made anew each time from what is on the disk.

    A run appears with its first committed round; runs that committed nothing since `since` are
    left out, so that a long life of the folder does not become a long answer.

    Parameters
    ----------
    runs : Path
        Folder of the run folders.
    audit_log : Path
        The coordinator's audit log.
    registered : callable
        Returns how many clients are registered at the SuperLink.
    since : float
        Seconds since the epoch.
    """

    def __init__(
        self, runs: Path, audit_log: Path, registered: Callable[[], int], since: float
    ) -> None:
        self._runs = runs
        self._tally = AuditTally(audit_log)
        self._registered = registered
        self._since = since

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of now."""
        self._tally.read()
        registered = GaugeMetricFamily(
            "fedveil_registered_clients", "Clients that the SuperLink admits."
        )
        registered.add_metric([], self._registered())
        yield registered
        yield from self._of_all_runs()
        yield from self._of_each_run()

    def _of_all_runs(self) -> Iterator[Metric]:
        begun = CounterMetricFamily("fedveil_runs_begun", "Runs that began or went on.")
        begun.add_metric([], self._tally.begun)
        ended = CounterMetricFamily(
            "fedveil_runs_ended", "Runs that ended by themselves, by how.", labels=["outcome"]
        )
        for outcome, count in sorted(self._tally.ended.items()):
            ended.add_metric([outcome], count)
        refused = CounterMetricFamily(
            "fedveil_join_refused", "Nodes that do not serve a run, by why.", labels=["reason"]
        )
        for kind in FailureKind:
            refused.add_metric([kind], self._tally.refused[kind])
        yield from (begun, ended, refused)

    def _of_each_run(self) -> Iterator[Metric]:
        rounds = _counter("fedveil_run_rounds", "Committed rounds.")
        seconds = _counter("fedveil_run_round_seconds", "Seconds that committed rounds took.")
        stages = _counter(
            "fedveil_run_stage_seconds", "Seconds of each stage, of failed attempts too.", "stage"
        )
        failed = _counter("fedveil_run_attempts_failed", "Attempts at rounds that came to nothing.")
        replies = _counter("fedveil_run_replies", "Updates that went into the model.")
        left_out = _counter(
            "fedveil_run_left_out", "Clients that were asked and left out, by why.", "reason"
        )
        asked = _gauge("fedveil_run_clients", "Clients asked in the last round.")
        seen = _gauge("fedveil_run_clients_seen", "Clients that joined since the server began.")
        epsilon = _gauge(
            "fedveil_run_epsilon", "Largest epsilon of any client so far, at the run's delta."
        )
        for name, records, attempts in self._recent():
            last = records[-1]
            rounds.add_metric([name], last.round)
            seconds.add_metric([name], sum(record.seconds for record in records))
            replies.add_metric([name], sum(record.clients for record in records))
            failed.add_metric([name], sum(not attempt.is_committed for attempt in attempts))
            for stage, taken in _stage_seconds(attempts).items():
                stages.add_metric([name, stage], taken)
            for kind, count in _left_out(records, attempts).items():
                left_out.add_metric([name, kind], count)
            asked.add_metric([name], last.clients + last.failed)
            if name in self._tally.seen:
                seen.add_metric([name], len(self._tally.seen[name]))
            if last.epsilon is not None:
                epsilon.add_metric([name], last.epsilon)
        yield from (rounds, seconds, stages, failed, replies, left_out, asked, seen, epsilon)

    def _recent(self) -> Iterator[tuple[str, list[RoundRecord], list[StageRecord]]]:
        for path in sorted(self._runs.glob("*/metrics.jsonl")):
            try:
                if path.stat().st_mtime < self._since:
                    continue
                records = committed_rounds(path.parent)
            except (OSError, RunLostError):
                # One damaged folder must not hide the others; `fedveil status` names it.
                continue
            if records:
                yield path.parent.name, records, read_stages(path.parent)


@contextmanager
def serve_metrics(metrics: CoordinatorMetrics, port: int) -> Iterator[None]:
    """Serve metrics under http://127.0.0.1:PORT/metrics, to this machine alone.

    Raises
    ------
    MetricsError
        If the port cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, addr=_ONLY_HERE, registry=registry)
    except OSError as error:
        raise MetricsError(
            f"--metrics-port {port}: cannot listen there ({error.strerror}); choose another"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _stage_seconds(attempts: list[StageRecord]) -> dict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for attempt in attempts:
        for stage, taken in attempt.seconds.items():
            seconds[stage] += taken
    return seconds


def _left_out(records: list[RoundRecord], attempts: list[StageRecord]) -> Counter[str]:
    """Return how many were left out by kind; each kind is there, so that a rise is seen."""
    found: Counter[str] = Counter(dict.fromkeys(FailureKind, 0))
    for attempt in attempts:
        found.update(attempt.left_out)
    # Of a round whose notes a crash has taken, the number alone is known.
    noted = sum(sum(a.left_out.values()) for a in attempts if a.is_committed)
    found[FailureKind.OTHER] += max(0, sum(record.failed for record in records) - noted)
    return found


def _counter(name: str, about: str, *by: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, about, labels=["run", *by])


def _gauge(name: str, about: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, labels=["run"])
