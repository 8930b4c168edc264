"""The servers that `serving.py` measures, each on one processor, and what they are asked."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from serving_load import Load, Outcome
from torch import nn

from fedveil.server.records import RoundRecord
from fedveil.server.run_folder import NewRun, RunFolder
from fedveil.server.storage import default_spec
from fedveil.simulations.scenarios import find_scenario

__all__ = ["HERE", "Asker", "Bodies", "Talker", "fedveil", "mlserver", "new_run"]

HERE = Path(__file__).parent
MLSERVER = "1.7.1"

_START_SECONDS = 120.0
_INK = 0.19
_TOLERANCE = 1e-3

Floats = NDArray[np.float32]
Found = TypeVar("Found")


class Talker:
    """A process that answers each line of JSON with one.

    Parameters
    ----------
    script : str
        A file of this folder.
    processor : int
        Where it runs.
    arguments : str
        What it is started with.
    """

    def __init__(self, script: str, processor: int, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=partial(os.sched_setaffinity, 0, {processor}),
        )

    def ask_line(self, line: str) -> str:
        """Send a line and return the one that comes back."""
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("there are no pipes")
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{process.args} ended; its own words are above")
        return answer

    def ask(self, fields: Mapping[str, object]) -> Outcome:
        """Ask for something to be measured; return what came of it."""
        return Outcome(**json.loads(self.ask_line(json.dumps(fields))))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(_START_SECONDS)


@dataclass(frozen=True)
class Asker:
    """One server's model, and how it is asked for one row or many.

    Parameters
    ----------
    port : int
        Of the server.
    requests : Mapping of str to Path
        Files with whole requests, by what they hold: "one", "many".
    """

    port: int
    requests: Mapping[str, Path]

    def load(
        self, what: str, connections: int, seconds: float, warm_up: float
    ) -> dict[str, object]:
        """Return the load of so many connections, for `serving_load.py`."""
        return asdict(Load(self.port, str(self.requests[what]), connections, seconds, warm_up))


class Bodies:
    """Requests in files: pictures like those of MNIST, a fifth of whose pixels are not 0.

    Parameters
    ----------
    folder : Path
        Where the files go.
    many : int
        Rows of the large requests.
    """

    def __init__(self, folder: Path, many: int) -> None:
        self._folder = folder
        draws = np.random.default_rng(0)
        shape = (many, 1, 28, 28)
        pixels = draws.integers(1, 256, shape) * (draws.random(shape) < _INK)
        self._images: Floats = (pixels / 255).astype(np.float32)
        folder.mkdir()

    def asker(self, port: int, model: str, module: nn.Module, *, is_binary: bool) -> Asker:
        """Write the requests for a model; check that it answers them right."""
        requests = {}
        for what, rows in (("one", self._images[:1]), ("many", self._images)):
            body, headers = _binary(rows) if is_binary else _json(rows)
            path = f"/v2/models/{model}/infer"
            _check(port, path, body, headers, module, rows)
            headers = {**headers, "content-length": str(len(body))}
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            file = self._folder / f"{port}-{model}-{what}-{'binary' if is_binary else 'json'}"
            start = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
            file.write_bytes(f"{start}{head}\r\n".encode() + body)
            requests[what] = file
        return Asker(port, requests)


def environment() -> dict[str, str]:
    """Return the environment of every process: one thread for PyTorch."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def new_run(path: Path, kind: str, module: nn.Module) -> None:
    """Make a run of MNIST with one round in its encrypted store."""
    config = find_scenario("mnist").config([("task.options.model", kind)])
    new = NewRun(run=f"serving-{kind}", kek=default_spec(), data_dir=None, public_test=False)
    folder = RunFolder.create(path, config, new)
    record = RoundRecord(
        round=1,
        attempt=1,
        clients=10,
        failed=0,
        seconds=1.0,
        epsilon=1.0,
        test={"accuracy": 0.5},
    )
    folder.commit(record, {name: w.numpy() for name, w in module.state_dict().items()}, {})


@contextmanager
def fedveil(run: Path, processor: int) -> Iterator[int]:
    """Run ``fedveil serve`` on a run; yield its port."""
    command = [str(Path(sys.executable).with_name("fedveil")), "serve", str(run), "--port", "0"]
    log = run.with_suffix(".log")
    with _server(command, processor, log, environment()):
        found = _wait(log, lambda: re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()))
        yield int(found.group(1))


@contextmanager
def mlserver(folder: Path, models: Mapping[str, Path], processor: int) -> Iterator[int]:
    """Run MLServer with each model twice, without and with batching; yield its port.

    It runs in one process (``parallel_workers=0``), which is faster on one processor than to hand
    requests to another, and without compression, metrics and debugging. Batched models are named
    with "-batched" behind; of several sizes and times these were the fastest at 16 connections.
    """
    python = _mlserver_python()
    ports = _free_ports(3)
    settings = {
        "debug": False,
        "parallel_workers": 0,
        "gzip_enabled": False,
        "metrics_endpoint": None,
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
    }
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    for name, path in models.items():
        base = {
            "implementation": "serving_mlserver.TorchModel",
            "parameters": {"uri": str(path)},
        }
        batching = {"max_batch_size": 16, "max_batch_time": 0.002}
        for suffix, more in (("", {}), ("-batched", batching)):
            (folder / f"{name}{suffix}").mkdir()
            (folder / f"{name}{suffix}" / "model-settings.json").write_text(
                json.dumps({"name": f"{name}{suffix}", **base, **more})
            )
    env = {**environment(), "PYTHONPATH": str(HERE)}
    log = folder / "log"
    with _server([str(python.with_name("mlserver")), "start", str(folder)], processor, log, env):
        for name in models:
            for suffix in ("", "-batched"):
                path = f"/v2/models/{name}{suffix}/ready"
                _wait(log, lambda path=path: _is_ready(ports[0], path))
        yield ports[0]


def _mlserver_python() -> Path:
    """Make MLServer's environment, once; return its interpreter."""
    folder = user_cache_path("fedveil-benchmarks") / f"mlserver-{MLSERVER}"
    python = folder / "bin" / "python"
    made = folder / "made"
    if not made.exists():
        print(f"making {folder}, once ...", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        version = torch.__version__.partition("+")[0]
        wanted = [f"mlserver=={MLSERVER}", f"torch=={version}", "orjson", "uvloop"]
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--quiet", *wanted], check=True
        )
        made.touch()
    return python


@contextmanager
def _server(
    command: list[str], processor: int, log: Path, env: Mapping[str, str]
) -> Iterator[None]:
    with ExitStack() as stack:
        file = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=env,
            preexec_fn=partial(os.sched_setaffinity, 0, {processor}),
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(log: Path, look: Callable[[], Found | None]) -> Found:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    raise RuntimeError(f"a server does not start:\n{log.read_text()[-2000:]}")


def _is_ready(port: int, path: str) -> bool:
    try:
        return _request(port, "GET", path)[0] == 200
    except OSError:
        return False


def _request(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body or None, dict(headers or {}))
        response = connection.getresponse()
        return (
            response.status,
            response.read(),
            response.getheader("inference-header-content-length"),
        )
    finally:
        connection.close()


def _json(rows: Floats) -> tuple[bytes, dict[str, str]]:
    # The shortest numbers that are still the same float32: short texts are read faster.
    values = [float(str(value)) for value in rows.reshape(-1)]
    tensor = {"name": "input", "shape": list(rows.shape), "datatype": "FP32", "data": values}
    return json.dumps({"inputs": [tensor]}).encode(), {"content-type": "application/json"}


def _binary(rows: Floats) -> tuple[bytes, dict[str, str]]:
    raw = rows.tobytes()
    tensor = {
        "name": "input",
        "shape": list(rows.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    wanted = [{"name": "output", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    return head + raw, {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }


def _check(
    port: int,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    module: nn.Module,
    rows: Floats,
) -> None:
    status, answer, head = _request(port, "POST", path, body, headers)
    if status != 200:
        raise RuntimeError(f"{path}: {status} {answer[:500].decode(errors='replace')}")
    if head is None:
        found = np.array(json.loads(answer)["outputs"][0]["data"], np.float32)
    else:
        found = np.frombuffer(answer[int(head) :], np.float32)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(rows)).numpy()
    if not np.allclose(found.reshape(wanted.shape), wanted, atol=_TOLERANCE):
        raise RuntimeError(f"{path}: answers something else than the model")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
