"""The floor of `serving.py`: PyTorch alone, in a process of its own.

It reads one JSON object a line from its standard input, runs a model on batches of some rows for
some time, and writes one JSON object with what came of it: batches a second, and percentiles of
their times in milliseconds. Of the two memory layouts that PyTorch has for images it takes the one
that is faster for this model and this number of rows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

_TRIAL_SECONDS = 0.2
_LAYOUTS = (torch.contiguous_format, torch.channels_last)

Run = Callable[[], Tensor]


def _run(path: str, rows: int, layout: torch.memory_format) -> Run:
    """Return what runs a batch in a layout."""
    module: nn.Module = torch.load(path, weights_only=False).eval()
    module = module.to(memory_format=layout)  # type: ignore[call-overload]
    inputs = torch.rand(rows, 1, 28, 28).contiguous(memory_format=layout)
    return lambda: module(inputs)


def _times(run: Run, seconds: float) -> list[float]:
    times: list[float] = []
    now = time.perf_counter()
    until = now + seconds
    while now < until:
        run()
        after = time.perf_counter()
        times.append(after - now)
        now = after
    return times


def _main() -> None:
    torch.set_num_threads(1)
    best: dict[tuple[str, int], Run] = {}
    with torch.inference_mode():
        for line in sys.stdin:
            asked = json.loads(line)
            path, rows, seconds = asked["model"], asked["rows"], asked["seconds"]
            if (path, rows) not in best:
                runs = [_run(path, rows, layout) for layout in _LAYOUTS]
                best[path, rows] = min(runs, key=lambda run: np.median(_times(run, _TRIAL_SECONDS)))
            times = _times(best[path, rows], seconds)
            p50, p99 = np.percentile(np.array(times) * 1e3, [50, 99])
            outcome = {"rate": len(times) / sum(times), "p50": float(p50), "p99": float(p99)}
            print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    _main()
