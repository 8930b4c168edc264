"""Rounds take over while thousands of requests are answered: none fails, none mixes rounds."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from served_load import Load
from served_run import commit, run_of, serving

from fedveil.server.inference.callers import Caller
from fedveil.server.inference.devices import Acceleration


@pytest.mark.parametrize(("replicas", "requests", "swaps"), [(1, 10_000, 20), (2, 2000, 8)])
def test_swaps_under_load_lose_nothing_and_mix_nothing(
    replicas: int, requests: int, swaps: int, tmp_path: Path
) -> None:
    folder = run_of(tmp_path / "run", 1)
    with serving(tmp_path / "run", acceleration=Acceleration(replicas=replicas)) as (service, url):
        service.watcher.start()
        last = 1 + swaps
        load = Load(url, 32, lambda load: load.count >= requests and str(last) in load.seen)
        for round_ in range(2, last + 1):
            share = requests * (round_ - 1) // (swaps + 1)
            load.wait_for(lambda share=share: load.count >= share)
            commit(folder, round_)
            load.wait_for(lambda round_=round_: str(round_) in load.seen)
        load.finish()
        told = httpx.get(f"{url}/metrics").text
    assert load.count >= requests
    assert len(load.seen) == last
    assert f"fedveil_swaps_total {swaps}.0" in told
    assert "fedveil_refused_rounds_total 0.0" in told
    assert f'fedveil_requests_total{{outcome="ok",protocol="http"}} {load.count}.0' in told


def test_after_a_roll_back_under_load_a_newer_round_takes_over(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    with serving(tmp_path / "run") as (service, url):
        commit(folder, 2)
        assert service.watcher.look()
        assert service.roll_back(Caller("token", "boss"), "http") == "1"
        service.watcher.start()
        load = Load(url, 8, lambda load: "3" in load.seen)
        load.wait_for(lambda: load.count >= 200)
        # The watcher has looked many times, and left the round that was put back alone.
        assert set(load.seen) == {"1"}
        commit(folder, 3)
        load.finish()
        assert [kept.round for kept in service.holder.kept] == [3, 1]
