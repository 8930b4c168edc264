"""However much is sent at once, the process grows by no more than what may wait."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from served_run import FEATURES, INFER, answer, run_of, some_rows

MIB = 2**20
QUEUE = 16 * MIB
ROWS = MIB // (4 * FEATURES)
CONNECTIONS = 120
FLOODS = 4
# Connections, the model, and what the allocators keep for themselves.
SLACK = 40 * MIB

SERVER = """
import sys, threading
from pathlib import Path
from served_run import serving
from fedveil.server.inference.devices import Acceleration
from fedveil.server.inference.oip import Limits

go = threading.Event()
go.set()
limits = Limits(queue_bytes=int(sys.argv[2]), deadline_seconds=60, read_seconds=60)
# A batch of one of several replicas is never run by the thread that reads requests.
two = Acceleration(replicas=2)
with serving(Path(sys.argv[1]), limits, acceleration=two) as (service, url):
    for module in service.holder.current.modules:
        module.register_forward_pre_hook(lambda *_: go.wait(60) and None)
    print(url, flush=True)
    for line in sys.stdin:
        go.clear() if line == "stop\\n" else go.set()
        print("done", flush=True)
"""


class Server:
    """A service in a process of its own, whose model can be stopped."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._told().rsplit(":", 1)[1])

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        assert self._told() == "done"

    def forget_the_peak(self) -> None:
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def memory(self, name: str) -> int:
        """Return ``VmRSS``, or ``VmHWM`` for the most since the peak was forgotten, in bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024

    def _told(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def server(run: Path) -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(run), str(QUEUE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield Server(process)
        _, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)


def request(seed: int) -> bytes:
    """Return a request of a mebibyte of raw numbers."""
    tensor = {
        "name": "input",
        "shape": [ROWS, FEATURES],
        "datatype": "FP32",
        "parameters": {"binary_data_size": MIB},
    }
    output = {"name": "output", "parameters": {"binary_data": True}}
    text = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    head = (
        f"POST {INFER} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(text) + MIB}\r\n"
        f"inference-header-content-length: {len(text)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + text + some_rows(ROWS, seed).tobytes()


async def ask(port: int, content: bytes, told: Counter[str]) -> bytes:
    """Send a request; count the status, or that the server hung up before it was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(content)
        reply = await reader.read()
    except ConnectionError:
        reply = b""
    finally:
        writer.close()
    told[reply[9:12].decode() or "cut off"] += 1
    return reply


async def flood(service: Server, told: Counter[str]) -> list[bytes]:
    """Send a request over each of many connections while the model stands still."""
    contents = [request(seed) for seed in range(4)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        asked = [
            group.create_task(ask(service.port, contents[number % 4], told))
            for number in range(CONNECTIONS)
        ]
        while told.total() < CONNECTIONS - QUEUE // MIB - 2:
            await asyncio.sleep(0.01)
        service.say("go")
    return [task.result() for task in asked]


def test_a_flood_of_large_requests_stays_within_what_may_wait(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    with server(tmp_path / "run") as service:
        asyncio.run(ask(service.port, request(0), Counter()))
        service.forget_the_peak()
        before = service.memory("VmRSS")
        told: Counter[str] = Counter()
        replies: list[bytes] = []
        for _ in range(FLOODS):
            service.say("stop")
            replies += asyncio.run(flood(service, told))
        grown = service.memory("VmHWM") - before
    assert FLOODS <= told["200"] < FLOODS * CONNECTIONS // 2
    assert told["503"] > 0
    assert told.keys() <= {"200", "503", "cut off"}
    assert grown < 2 * QUEUE + SLACK < told.total() * MIB / 4, grown / MIB
    wanted = {answer(1, some_rows(ROWS, seed)).tobytes() for seed in range(4)}
    size = ROWS * answer(1, some_rows(1)).nbytes
    answers = {reply[-size:] for reply in replies if reply.startswith(b"HTTP/1.1 200")}
    assert answers <= wanted
    assert np.frombuffer(answers.pop(), np.float32).any()
