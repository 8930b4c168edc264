"""Prometheus metrics of a coordinator: who is registered, and how its runs go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedveil.errors import FedveilError
from fedveil.server.records import RoundRecord
from fedveil.server.run_watch import RunLostError, committed_rounds

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
    registered : callable
        Returns how many clients are registered at the SuperLink.
    since : float
        Seconds since the epoch.
    """

    def __init__(self, runs: Path, registered: Callable[[], int], since: float) -> None:
        self._runs = runs
        self._registered = registered
        self._since = since

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of now."""
        registered = GaugeMetricFamily(
            "fedveil_registered_clients", "Clients that the SuperLink admits."
        )
        registered.add_metric([], self._registered())
        yield registered
        rounds = _counter("fedveil_run_rounds", "Committed rounds.")
        seconds = _counter("fedveil_run_round_seconds", "Seconds that committed rounds took.")
        replies = _counter("fedveil_run_replies", "Updates that went into the model.")
        left_out = _counter("fedveil_run_left_out", "Clients that were asked and left out.")
        epsilon = GaugeMetricFamily(
            "fedveil_run_epsilon",
            "Largest epsilon of any client so far, at the run's delta.",
            labels=["run"],
        )
        for name, records in self._recent():
            rounds.add_metric([name], records[-1].round)
            seconds.add_metric([name], sum(record.seconds for record in records))
            replies.add_metric([name], sum(record.clients for record in records))
            left_out.add_metric([name], sum(record.failed for record in records))
            if records[-1].epsilon is not None:
                epsilon.add_metric([name], records[-1].epsilon)
        yield from (rounds, seconds, replies, left_out, epsilon)

    def _recent(self) -> Iterator[tuple[str, list[RoundRecord]]]:
        for path in sorted(self._runs.glob("*/metrics.jsonl")):
            try:
                if path.stat().st_mtime < self._since:
                    continue
                records = committed_rounds(path.parent)
            except (OSError, RunLostError):
                # One damaged folder must not hide the others; `fedveil status` names it.
                continue
            if records:
                yield path.parent.name, records


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


def _counter(name: str, about: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, about, labels=["run"])
