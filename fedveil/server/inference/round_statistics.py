"""What each round has computed and answered since the service started, as Triton counts it.

Source: Triton's statistics extension (``docs/protocol/extension_statistics.md``), and for what is
counted by request and what by batch its ``src/infer_stats.cc``.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

__all__ = ["Execution", "RoundStatistics"]

_NS = 1e9


@dataclass(frozen=True, slots=True)
class Execution:
    """One batch that a model has computed.

    Parameters
    ----------
    version : str
        Whose weights computed it.
    requests, rows : int
        How many were in it.
    waited_ns : int
        How long the requests waited, summed over them.
    run_ns : int
        How long the batch took from the queue to its outputs, with all copying.
    """

    version: str
    requests: int
    rows: int
    waited_ns: int
    run_ns: int


@dataclass(slots=True)
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns

    def read(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class _Counts:
    last_ms: int = 0
    rows: int = 0
    executions: int = 0
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    run: _Duration = field(default_factory=_Duration)
    batches: defaultdict[int, _Duration] = field(default_factory=lambda: defaultdict(_Duration))

    def read(self) -> dict[str, object]:
        # Joining a batch and copying it to and from a device are not told apart from running it.
        none = _Duration().read()
        return {
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.read(),
                "fail": self.fail.read(),
                "queue": self.queue.read(),
                "compute_input": none,
                "compute_infer": self.run.read(),
                "compute_output": none,
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": none,
                    "compute_infer": spent.read(),
                    "compute_output": none,
                }
                for size, spent in sorted(self.batches.items())
            ],
        }


class RoundStatistics:
    """Counts for each round that is in memory; those of a round that left are forgotten.

    Parameters
    ----------
    kept : callable
        Returns the versions that are in memory. No others are counted, whatever a request names.
    """

    def __init__(self, kept: Callable[[], Collection[str]]) -> None:
        self._kept = kept
        self._rounds: dict[str, _Counts] = {}
        self._counting = threading.Lock()

    def executed(self, batch: Execution) -> None:
        """Count a batch that was computed."""
        with self._counting:
            counts = self._of(batch.version)
            if counts is None:
                return
            counts.last_ms = time.time_ns() // 1_000_000
            counts.rows += batch.rows
            counts.executions += 1
            counts.queue.add(batch.requests, batch.waited_ns)
            # Every request of a batch has spent the time of the whole batch.
            counts.run.add(batch.requests, batch.requests * batch.run_ns)
            counts.batches[batch.rows].add(1, batch.run_ns)

    def answered(self, version: str, seconds: float, *, is_success: bool) -> None:
        """Count a request that was answered, or refused.

        Parameters
        ----------
        version : str
            The round that answered, or should have.
        seconds : float
            From the whole request to its answer.
        is_success : bool
            Which of both.
        """
        with self._counting:
            counts = self._of(version)
            if counts is not None:
                (counts.success if is_success else counts.fail).add(1, round(seconds * _NS))

    def read(self, version: str) -> dict[str, object]:
        """Return the counts of a round by Triton's names; zeros where it was not asked yet."""
        with self._counting:
            return (self._of(version) or _Counts()).read()

    def _of(self, version: str) -> _Counts | None:
        counts = self._rounds.get(version)
        if counts is None:
            kept = self._kept()
            if version not in kept:
                return None
            self._rounds = {name: c for name, c in self._rounds.items() if name in kept}
            counts = self._rounds[version] = _Counts()
        return counts
