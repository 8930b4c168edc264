"""What many tests share: a tiny task, a place for keys, the data sets where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as f

from fedveil.tasks.base import Examples, Task

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


class TinyTask(Task):
    """Three Gaussian blobs in five dimensions; a linear model."""

    name: ClassVar[str] = "tiny"
    nominal_records: ClassVar[int] = 60

    def __init__(self, records: int = 60, model: Callable[[], nn.Module] | None = None) -> None:
        generator = torch.Generator().manual_seed(3)
        y = torch.arange(records) % 3
        x = torch.randn(records, 5, generator=generator) + 2.0 * f.one_hot(y, 5)
        self.examples = Examples(x, y)
        self._model = model or (lambda: nn.Linear(5, 3))

    def model(self) -> nn.Module:
        return self._model()

    def load(self, partition: int, num_partitions: int) -> tuple[Examples, Examples]:
        part = slice(partition, None, num_partitions)
        mine = Examples(self.examples.x[part], self.examples.y[part])
        return mine, mine

    def public_test(self) -> Examples | None:
        return self.examples

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return f.cross_entropy

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        right = (outputs.argmax(dim=1) == targets).double().mean()
        return {"accuracy": float(right), "loss": float(f.cross_entropy(outputs, targets))}


@pytest.fixture
def tiny_task() -> TinyTask:
    return TinyTask()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test's keys and runs away from the user's."""
    monkeypatch.setenv("FEDVEIL_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def data_dir() -> Callable[[str], Path]:
    """Return a function from a data set's name to its directory, or skip."""

    def find(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"the data set {name} is not in ../shared/data")
        return DATA / name

    return find
