"""A run whose rounds answer in whole numbers, so that every answer can be compared exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedveil.config import Config
from fedveil.server.inference.devices import AS_TRAINED, Acceleration
from fedveil.server.inference.http_server import HttpServer
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.policy import OPEN, PolicyOptions
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.source import open_source
from fedveil.server.inference.tokens import TokenFile
from fedveil.server.records import RoundRecord
from fedveil.server.run_folder import NewRun, RunFolder
from fedveil.server.storage import default_spec
from fedveil.simulations.scenarios import find_scenario

FEATURES, CLASSES = 64, 10
INFER = "/v2/models/digits/infer"

Floats = NDArray[np.float32]


def config() -> Config:
    return find_scenario("digits").config([])


def new_run(path: Path) -> RunFolder:
    new = NewRun(run="digits-run", kek=default_spec(), data_dir=None, public_test=True)
    return RunFolder.create(path, config(), new)


def weights(round_: int) -> dict[str, Floats]:
    """Return small whole numbers: no order of summation can round them."""
    draws = np.random.default_rng(round_)
    return {
        "1.weight": draws.integers(-8, 9, (CLASSES, FEATURES)).astype(np.float32),
        "1.bias": draws.integers(-8, 9, CLASSES).astype(np.float32),
    }


def answer(round_: int, rows: NDArray[np.number]) -> Floats:
    """Return what a round must answer; nothing is rounded where the rows are whole sixteenths.

    The model takes 5/16 off each pixel.
    """
    w = weights(round_)
    return ((rows.astype(np.float64) - 5 / 16) @ w["1.weight"].T + w["1.bias"]).astype(np.float32)


def some_rows(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).integers(0, 17, (count, FEATURES)).astype(np.float32)


def commit(folder: RunFolder, round_: int, arrays: dict[str, Floats] | None = None) -> None:
    record = RoundRecord(
        round=round_,
        attempt=1,
        clients=10,
        failed=0,
        seconds=1.0,
        epsilon=round_ / 4,
        test={"accuracy": 0.5},
    )
    folder.commit(record, weights(round_) if arrays is None else arrays, {})


def run_of(path: Path, *rounds: int) -> RunFolder:
    folder = new_run(path)
    for round_ in rounds:
        commit(folder, round_)
    return folder


@contextmanager
def serving(
    path: Path,
    limits: Limits | None = None,
    tokens: TokenFile | None = None,
    acceleration: Acceleration = AS_TRAINED,
    policy: PolicyOptions = OPEN,
) -> Iterator[tuple[InferenceService, str]]:
    """Serve a run in this process; yield the service and its address."""
    before = set(threading.enumerate())
    service = InferenceService(
        open_source(path, None, None), limits or Limits(), tokens, 0.02, acceleration, policy
    )
    http = HttpServer(service, "127.0.0.1", 0)
    http.start()
    try:
        yield service, f"http://127.0.0.1:{http.port}"
    finally:
        http.stop(5)
        service.close()
    left = [t for t in set(threading.enumerate()) - before if t.name.startswith("fedveil-")]
    for thread in left:
        thread.join(5)
    assert not [thread.name for thread in left if thread.is_alive()]


def body(rows: Floats, **more: object) -> dict[str, object]:
    tensor = {
        "name": "input",
        "shape": list(rows.shape),
        "datatype": "FP32",
        "data": rows.tolist(),
    }
    return {"inputs": [tensor], **more}
