"""What the service tells Prometheus of itself; never anything of an input."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """The figures of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fedveil_requests",
            "Inference requests by protocol and how they ended.",
            ("protocol", "outcome"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "fedveil_request_seconds",
            "Time from a whole request to its answer.",
            ("protocol",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch = Histogram(
            "fedveil_batch_rows", "Rows run at once.", buckets=_ROWS, registry=self._registry
        )
        self._queue = Gauge("fedveil_queue_rows", "Rows that wait.", registry=self._registry)
        self._round = Gauge("fedveil_round", "Round that is served.", registry=self._registry)
        self._swaps = Counter("fedveil_swaps", "Rounds that took over.", registry=self._registry)
        self._refused = Counter(
            "fedveil_refused_rounds", "Rounds that failed a check.", registry=self._registry
        )

    def request(self, protocol: str, outcome: str, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(protocol, outcome).inc()
        self._seconds.labels(protocol).observe(seconds)

    def batch(self, rows: int) -> None:
        """Count a batch that was run."""
        self._batch.observe(rows)

    def swapped(self) -> None:
        """Count a round that took over."""
        self._swaps.inc()

    def refused(self) -> None:
        """Count a round that was refused."""
        self._refused.inc()

    def read_when_asked(self, queue_rows: Callable[[], int], round_: Callable[[], int]) -> None:
        """Say where to read what is true only at the moment."""
        self._queue.set_function(queue_rows)
        self._round.set_function(round_)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
