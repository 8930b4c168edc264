from __future__ import annotations

import pytest

from fedveil.client.runner import pace as module
from fedveil.client.runner.pace import Pace


def test_the_pause_grows_with_the_quiet_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    pace = Pace(0.05, 3.0)
    pauses = []
    for quiet in (0.0, 0.1, 1.0, 8.0, 1000.0):
        clock[0] = 100.0 + quiet
        pauses.append(pace.pause())
    assert pauses == pytest.approx([0.05, 0.05, 0.25, 2.0, 3.0])
    pace.came()
    assert pace.pause() == 0.05
