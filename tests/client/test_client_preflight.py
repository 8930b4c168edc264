"""A client finds what is wrong with model, loss or data by trying them, before it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from tiny_task import TinyTask
from torch import Tensor, nn

from fedveil.client import dp_training, preflight
from fedveil.client.dp_training import SecureDPOptimizer
from fedveil.client.preflight import check_delta_of, client_checks
from fedveil.config import Config, parse_config
from fedveil.errors import FedveilError
from fedveil.privacy.preflight import PreflightError
from fedveil.privacy.skellam import mechanism
from fedveil.settings import ConfigError, Tree, apply_override
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


SHARED = {"dp__noise": "distributed", "training__local_steps": 1, "training__nominal_records": 60}
CLIENT = {"dp__unit": "client", "dp__noise": "distributed"}
MODES: dict[str, tuple[dict[str, object], int]] = {
    "record/distributed": (SHARED, 7),
    "client/distributed": (CLIENT, 4),
    "client/central": ({**CLIENT, "dp__noise": "central"}, 3),
}


def moded(mode: str, **changes: object) -> Config:
    tree: Tree = {"task": {"name": "tiny"}, "dp": {"noise_multiplier": 2.0, "clip_norm": 0.5}}
    for key, value in {**MODES[mode][0], **changes}.items():
        tree = apply_override(tree, key.replace("__", "."), value)
    return parse_config(tree, "test")


@pytest.mark.parametrize("mode", MODES)
def test_sound_training_passes_the_checks_of_each_mode(mode: str) -> None:
    checks = MODES[mode][1]
    assert len(check_all(TinyTask(), moded(mode))) == checks
    assert len(check_all(TinyTask(model=_with_dropout), moded(mode))) == checks
    assert len(check_all(TinyTask(records=0), moded(mode))) == checks
    if mode.startswith("client/"):
        assert len(check_all(TinyTask(), moded(mode, dp__adaptive={}))) == checks


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_is_refused_in_each_mode(mode: str) -> None:
    says = "per-record gradients" if mode.startswith("record/") else "changed the buffer 1.running"
    with pytest.raises(FedveilError, match=says):
        check_all(TinyTask(model=_with_batch_norm), moded(mode))


@pytest.mark.parametrize("mode", MODES)
def test_data_that_are_not_finite_are_refused_in_each_mode(mode: str) -> None:
    task = TinyTask()
    x = task.examples.x.clone()
    x[3, 1] = float("inf")
    task.examples = Examples(x, task.examples.y)
    with pytest.raises(PreflightError, match="NaN or infinity"):
        check_all(task, moded(mode))


def test_clipping_at_another_norm_is_found_in_the_sum_of_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = preflight.clipped_gradient
    monkeypatch.setattr(
        preflight, "clipped_gradient", lambda *given: exact(*given[:-1], 100.0 * given[-1])
    )
    with pytest.raises(PreflightError, match="clipped at another norm"):
        check_all(TinyTask(), moded("record/distributed"))


def test_attack_a_check_that_fails_tells_no_figure_of_the_records() -> None:
    """Its words leave the client when it joins, and nothing is charged for that."""
    # Where single precision ends the sum is not what it should be, and the server chose where.
    asked = moded("record/distributed")
    small = asked.model_copy(update={"dp": asked.dp.model_copy(update={"clip_norm": 1e-44})})
    said = set()
    for shift in (0.0, 2.0):
        task = TinyTask()
        task.examples = Examples(task.examples.x + shift, task.examples.y)
        with pytest.raises(PreflightError, match=r"far from what dp\.clip_norm = 1e-44") as caught:
            check_all(task, small)
        said.add(str(caught.value))
    assert len(said) == 1
    for clip_norm in (1e-44, 1e13):
        with pytest.raises(ConfigError, match=r"dp\.clip_norm"):
            moded("record/distributed", dp__clip_norm=clip_norm)


def test_a_task_that_fails_on_everything_is_found_before_training() -> None:
    """In a round its failures would be contributions of zero."""

    class Failing(TinyTask):
        @property
        def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
            return nn.functional.binary_cross_entropy

    for mode in MODES:
        with pytest.raises((RuntimeError, ValueError)):
            check_all(Failing(), moded(mode))


@pytest.mark.parametrize("mode", ["record/distributed", "client/distributed"])
@pytest.mark.parametrize("factor", [0.0, 0.25])
def test_too_small_a_share_of_the_noise_is_measured(
    monkeypatch: pytest.MonkeyPatch, mode: str, factor: float
) -> None:
    full = mechanism.draw_skellam
    monkeypatch.setattr(
        mechanism,
        "draw_skellam",
        lambda size, variance, generator: full(size, max(factor * variance, 1e-9), generator),
    )
    big = TinyTask(model=lambda: nn.Sequential(nn.Linear(5, 200), nn.Linear(200, 3)))
    with pytest.raises(PreflightError, match="standard deviation"):
        check_all(big, moded(mode))


@pytest.mark.parametrize(
    ("mode", "least", "says"),
    [
        ("record/distributed", 1.0 / 600, "600 records of all clients"),
        ("client/distributed", 0.1, "10 clients"),
        ("client/central", 0.1, "10 clients"),
    ],
)
def test_delta_is_held_against_the_units_of_the_mode(mode: str, least: float, says: str) -> None:
    check_delta_of(moded(mode, dp__delta=0.99 * least))
    with pytest.raises(PreflightError, match=says):
        check_delta_of(moded(mode, dp__delta=least))


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
