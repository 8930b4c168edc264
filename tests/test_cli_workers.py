"""`fedveil serve --workers`: rounds, metrics, a worker that is killed, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from served_run import INFER, answer, body, commit, run_of, some_rows
from test_cli_serve import FEDVEIL, serve


@pytest.mark.slow
def test_two_workers_serve_one_run_and_outlive_one_of_them(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    with serve(tmp_path / "run", "--workers", "2") as served:
        url = served.wait_for(r"serving digits, round 1 of run digits-run, on \w+: (http\S+)")
        pids = served.wait_for(r"2 workers, processes (\d+, \d+)").split(", ")
        commit(folder, 2)
        done = threading.Event()

        def ask(number: int) -> Counter[str]:
            """Ask over connections of its own; a killed worker takes only what it is at with it."""
            seen: Counter[str] = Counter()
            while not done.is_set():
                rows = some_rows(3, number)
                try:
                    reply = httpx.post(f"{url}{INFER}", json=body(rows), timeout=30)
                except httpx.TransportError:
                    seen["cut off"] += 1
                    continue
                assert reply.status_code == 200
                version = reply.json()["model_version"]
                found = np.array(reply.json()["outputs"][0]["data"], np.float32).reshape(3, -1)
                assert np.array_equal(found, answer(int(version), rows))
                seen[version] += 1
            return seen

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, number) for number in range(4)]
            time.sleep(0.5)
            os.kill(int(pids[0]), signal.SIGKILL)
            served.wait_for(rf"worker 1, process {pids[0]}, (ended by signal 9)")
            again = served.wait_for(r"worker 1 is process (\d+) now")
            assert again not in pids
            done.set()
            seen = sum((future.result(60) for future in asking), Counter())
        assert seen["cut off"] <= 4
        assert seen["2"] > 20
        text = httpx.get(f"{url}/metrics").text
        answered = re.search(r'requests_total{outcome="ok",protocol="http"} (\d+)', text)
        assert answered is not None
        # Sums over both, also of what the killed one had counted.
        assert int(answered[1]) >= seen["1"] + seen["2"]
        assert served.log.count("serving digits") == 1


@pytest.mark.slow
def test_workers_finish_what_they_are_answering(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    with serve(tmp_path / "run", "--workers", "2") as served:
        url = served.wait_for(r"serving digits, round 1 of run digits-run, on \w+: (http\S+)")
        served.wait_for(r"2 workers, processes (\d+)")
        started = threading.Barrier(5)

        def ask(number: int) -> tuple[int, str]:
            """Ask over one connection until the service closes it after an answer."""
            answered = 0
            with httpx.Client(base_url=url, timeout=30) as client:
                client.get("/v2/health/live")
                started.wait(30)
                while True:
                    reply = client.post(INFER, json=body(some_rows(2, number)))
                    assert reply.status_code == 200
                    answered += 1
                    if reply.headers.get("connection") == "close":
                        return answered, "closed"

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, number) for number in range(4)]
            started.wait(30)
            time.sleep(0.3)
            served.process.send_signal(signal.SIGTERM)
            assert all(future.result(60)[1] == "closed" for future in asking)
        assert served.process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/v2/health/live")


def test_workers_that_cannot_start_say_why_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [*FEDVEIL, "serve", str(tmp_path / "none"), "--port", "0", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "none" in done.stderr
    assert "Traceback" not in done.stderr
