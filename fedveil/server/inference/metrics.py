"""What the service tells Prometheus of itself; never anything of an input."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from fedveil.server.inference.latencies import LatencyHistory
from fedveil.server.inference.workers import METRICS_VARIABLE

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """The figures of one service, in a registry of its own.

    Of several workers they are sums, which any of them tells: each keeps its own in a file of the
    folder that prometheus_client is told of by a variable. Of the rounds it is the oldest that one
    of them serves.

    Attributes
    ----------
    latencies : LatencyHistory
        The last minutes, for people.
    """

    def __init__(self) -> None:
        self.latencies = LatencyHistory()
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fedveil_requests",
            "Inference requests by protocol and how they ended.",
            ("protocol", "outcome"),
            registry=self._registry,
        )
        self._turned_away = Counter(
            "fedveil_turned_away",
            "Requests refused for token, scope or rate, before they were read.",
            ("reason",),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "fedveil_request_seconds",
            "Time from a whole request to its answer.",
            ("protocol",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        # To look a counter up by its labels takes longer than to count.
        self._counts = cache(self._counts_of)
        self._batch = Histogram(
            "fedveil_batch_rows", "Rows run at once.", buckets=_ROWS, registry=self._registry
        )
        self._queue = Gauge(
            "fedveil_queue_rows",
            "Rows that wait.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._round = Gauge(
            "fedveil_round",
            "Round that is served.",
            registry=self._registry,
            multiprocess_mode="livemin",
        )
        self._is_shared = METRICS_VARIABLE in os.environ
        self._read: Callable[[], None] = lambda: None
        self._swaps = Counter("fedveil_swaps", "Rounds that took over.", registry=self._registry)
        self._refused = Counter(
            "fedveil_refused_rounds", "Rounds that failed a check.", registry=self._registry
        )

    def turned_away(self, reason: str) -> None:
        """Count a caller that was refused before its request was read."""
        self._turned_away.labels(reason).inc()

    def request(self, protocol: str, outcome: str, seconds: float) -> None:
        """Count a request that was answered."""
        count, observe = self._counts(protocol, outcome)
        count()
        observe(seconds)
        self.latencies.add(seconds, answered=outcome == "ok")

    def _counts_of(
        self, protocol: str, outcome: str
    ) -> tuple[Callable[[], None], Callable[[float], None]]:
        return self._requests.labels(protocol, outcome).inc, self._seconds.labels(protocol).observe

    def batch(self, rows: int) -> None:
        """Count a batch that was run."""
        self._batch.observe(rows)
        if self._is_shared:
            self._read()

    def swapped(self) -> None:
        """Count a round that took over."""
        self._swaps.inc()
        self._read()

    def refused(self) -> None:
        """Count a round that was refused."""
        self._refused.inc()

    def read_when_asked(self, queue_rows: Callable[[], int], round_: Callable[[], int]) -> None:
        """Say where to read what is true only at the moment."""
        if not self._is_shared:
            self._queue.set_function(queue_rows)
            self._round.set_function(round_)
            return

        # Others cannot ask here, so that they are told now and then.
        def read() -> None:
            self._queue.set(queue_rows())
            self._round.set(round_())

        self._read = read
        read()

    def text(self) -> bytes:
        """Return everything in Prometheus' text format 0.0.4."""
        if not self._is_shared:
            return generate_latest(self._registry)
        self._read()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
