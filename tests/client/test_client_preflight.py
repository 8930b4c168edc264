"""A client finds what is wrong with model, loss or data by trying them, before it trains."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from tiny_task import TinyTask
from torch import Tensor, nn

from fedveil.client import dp_training
from fedveil.client.dp_training import SecureDPOptimizer
from fedveil.client.preflight import client_checks
from fedveil.config import Config, parse_config
from fedveil.privacy.preflight import PreflightError
from fedveil.tasks.base import Examples


def settings(**dp: object) -> Config:
    tree = {
        "task": {"name": "tiny"},
        "training": {"nominal_records": 60},
        "dp": {"noise_multiplier": 2.0, "clip_norm": 0.5, **dp},
    }
    return parse_config(tree, "test")


def check_all(task: TinyTask, config: Config | None = None) -> list[str]:
    checks = client_checks(config or settings(), task, task.examples, task.model())
    for check in checks:
        check.run()
    return [check.title for check in checks]


def test_sound_training_passes_every_check() -> None:
    assert len(check_all(TinyTask())) == 7
    assert len(check_all(TinyTask(model=_with_dropout))) == 7
    assert len(check_all(TinyTask(records=0))) == 7


def test_without_privacy_only_the_data_are_looked_at() -> None:
    config = parse_config({"task": {"name": "tiny"}, "dp": {"unit": "none"}}, "test")
    assert len(check_all(TinyTask(), config)) == 1


def test_checks_leave_the_model_as_it_was() -> None:
    task, model = TinyTask(), nn.Linear(5, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for check in client_checks(settings(), task, task.examples, model):
        check.run()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert not hasattr(model.weight, "grad_sample")


def _with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


def _with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def test_batch_norm_is_refused() -> None:
    with pytest.raises(PreflightError, match="per-record gradients"):
        check_all(TinyTask(model=_with_batch_norm))


def test_data_that_are_not_finite_are_refused() -> None:
    task = TinyTask()
    x = task.examples.x.clone()
    x[3, 1] = float("nan")
    task.examples = Examples(x, task.examples.y)
    with pytest.raises(PreflightError, match="NaN or infinity"):
        check_all(task)


class _Doubled(nn.Module):
    """Uses one layer twice in a way that hides half of its gradient from a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + nn.functional.linear(x, self.layer.weight)


def test_a_layer_whose_gradient_is_only_half_seen_is_refused() -> None:
    with pytest.raises(PreflightError, match="per-record gradients are wrong"):
        check_all(TinyTask(model=_Doubled), settings(clip_norm=100.0))


@pytest.mark.parametrize("engine", ["opacus", "fast"])
def test_clipping_at_another_norm_is_found(
    engine: Literal["opacus", "fast"], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loose(SecureDPOptimizer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.max_grad_norm = 100.0

    monkeypatch.setattr(dp_training, "SecureDPOptimizer", Loose)
    asked = settings()
    asked = asked.model_copy(
        update={"training": asked.training.model_copy(update={"engine": engine})}
    )
    with pytest.raises(PreflightError, match=r"clipped at another norm"):
        check_all(TinyTask(), asked)


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_too_little_noise_is_measured(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    class Quiet(SecureDPOptimizer):
        def add_noise(self) -> None:
            self.noise_multiplier *= factor
            super().add_noise()

    monkeypatch.setattr(dp_training, "SecureDPOptimizer", Quiet)
    with pytest.raises(PreflightError, match="standard deviation"):
        # Eighteen parameters would be too few to tell.
        check_all(TinyTask(model=lambda: nn.Sequential(nn.Linear(5, 200), nn.Linear(200, 3))))
