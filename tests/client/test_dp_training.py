"""DP-SGD against gradients computed one record at a time, and against its own noise's law."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from scipy import stats
from tiny_task import TinyTask
from torch import Tensor, nn

from fedveil.client.dp_training import SecureDPOptimizer, train_private
from fedveil.client.local_training import TrainingError
from fedveil.config import DpConfig, TrainingConfig
from fedveil.privacy.randomness import SecureGenerator
from fedveil.tasks.base import Examples

DP = DpConfig(noise_multiplier=1.0, clip_norm=1.0)
TRAINING = TrainingConfig(sampling_rate=1.0, local_steps=1, learning_rate=1.0, nominal_records=60)


def clipped_sum_by_hand(model: nn.Module, task: TinyTask, clip: float) -> list[Tensor]:
    """Add up clipped gradients, one backward pass a record."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for x, y in zip(task.examples.x, task.examples.y, strict=True):
        loss = task.loss(model(x[None]), y[None])
        gradient = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((g**2).sum() for g in gradient))  # type: ignore[arg-type]
        for t, g in zip(total, gradient, strict=True):
            t += g * min(1.0, clip / float(norm))
    return total


def one_step(model: nn.Module, task: TinyTask, clip: float, examples: Examples) -> nn.Module:
    """Take one noiseless step of rate 1 with denominator 1 through the DP optimiser."""
    wrapped = GradSampleModule(model)
    optimizer = SecureDPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1.0,
        noise=SecureGenerator(),
    )
    task.loss(wrapped(examples.x), examples.y).backward()
    optimizer.clip_and_accumulate()
    optimizer.add_noise()
    optimizer.scale_grad()
    optimizer.original_optimizer.step()
    wrapped.to_standard_module()
    return model


@pytest.mark.parametrize("clip", [0.1, 1.0, 100.0])
@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(5, 3),
        nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(1, 4), nn.Tanh(), nn.Linear(4, 3)),
    ],
)
def test_clipped_sum_equals_one_record_at_a_time(model: nn.Module, clip: float) -> None:
    task = TinyTask()
    task.examples = Examples(task.examples.x.double(), task.examples.y)
    before = copy.deepcopy(model).double()
    expected = clipped_sum_by_hand(before, task, clip)
    after = one_step(copy.deepcopy(before), task, clip, task.examples)
    for old, new, total in zip(before.parameters(), after.parameters(), expected, strict=True):
        # Opacus divides by the norm plus 1e-6.
        assert torch.allclose(old - new, total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_a_record_that_is_not_finite_adds_nothing(poison: float) -> None:
    task = TinyTask()
    model = nn.Linear(5, 3)
    bad = task.examples.x.clone()
    bad[7] = poison
    keep = torch.arange(60) != 7
    clean = Examples(task.examples.x[keep], task.examples.y[keep])
    with_poison = one_step(copy.deepcopy(model), task, 1.0, Examples(bad, task.examples.y))
    without = one_step(copy.deepcopy(model), task, 1.0, clean)
    moved = with_poison.weight - without.weight  # type: ignore[operator]
    assert torch.isfinite(moved).all()
    # A finite giant keeps its clipped share, which no record may exceed.
    assert float(moved.detach().norm()) <= 1.0 + 1e-4


@settings(max_examples=20)
@given(st.integers(0, 59), st.floats(0.1, 10.0), st.floats(1.0, 1e6))
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(
    record: int, clip: float, size: float
) -> None:
    task = TinyTask()
    model = nn.Linear(5, 3)
    wild = task.examples.x.clone()
    wild[record] *= size
    keep = torch.arange(60) != record
    there = one_step(copy.deepcopy(model), task, clip, Examples(wild, task.examples.y))
    gone = one_step(
        copy.deepcopy(model), task, clip, Examples(task.examples.x[keep], task.examples.y[keep])
    )
    pairs = zip(there.parameters(), gone.parameters(), strict=True)
    moved = math.sqrt(sum(float(((a - b).detach() ** 2).sum()) for a, b in pairs))
    assert moved <= clip * (1.0 + 1e-3) + 1e-4


def test_no_records_still_make_every_step_with_noise_of_the_right_size() -> None:
    task = TinyTask()
    empty = Examples(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    training = TRAINING.model_copy(update={"sampling_rate": 0.5, "local_steps": 1})
    dp = DP.model_copy(update={"noise_multiplier": 3.0, "clip_norm": 2.0})
    moves = []
    for repeat in range(400):
        model = nn.Linear(5, 3)
        before = model.weight.detach().clone()
        generator = SecureGenerator.from_seed("noise", repeat)
        assert train_private(model, task, empty, training, dp, generator) == 1
        moves.append((model.weight.detach() - before).flatten().numpy())
    # learning rate x noise multiplier x clip norm / (rate x nominal records)
    law = stats.norm(scale=1.0 * 3.0 * 2.0 / (0.5 * 60))
    assert stats.kstest(np.concatenate(moves), law.cdf).pvalue > 1e-3


def test_the_divisor_is_the_configured_constant_whatever_the_number_of_records() -> None:
    quiet = DP.model_copy(update={"noise_multiplier": 1e-9})
    moves = []
    for records in (30, 60):
        task = TinyTask(records)
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        expected = clipped_sum_by_hand(model, task, 1.0)[0]
        before = model.weight.detach().clone()
        train_private(model, task, task.examples, TRAINING, quiet, SecureGenerator())
        moves.append((before - model.weight.detach(), expected / 60.0))
    for moved, expected in moves:
        assert torch.allclose(moved, expected, atol=1e-5)


def test_a_batch_in_pieces_is_the_same_batch() -> None:
    task = TinyTask()
    quiet = DP.model_copy(update={"noise_multiplier": 1e-9})
    start = nn.Linear(5, 3)
    results = []
    for pieces in (512, 7):
        model = copy.deepcopy(start)
        training = TRAINING.model_copy(update={"max_physical_batch": pieces})
        train_private(model, task, task.examples, training, quiet, SecureGenerator())
        results.append(model.weight.detach())
    assert torch.allclose(results[0], results[1], atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "Adam", "RMSprop", "adamw", "adagrad"])
def test_any_optimizer_takes_the_noisy_gradient(name: str) -> None:
    task = TinyTask()
    options: dict[str, str | int | float | bool] = {"momentum": 0.9} if name == "sgd" else {}
    training = TRAINING.model_copy(
        update={"optimizer": name, "learning_rate": 0.1, "local_steps": 40}
        | {"optimizer_options": options, "sampling_rate": 0.5}
    )
    model = nn.Linear(5, 3)
    steps = train_private(model, task, task.examples, training, DP, SecureGenerator())
    assert steps == 40
    assert task.metrics(model(task.examples.x), task.examples.y)["accuracy"] > 0.6


class _Counts(nn.Module):
    """Keeps a running sum of what it has seen, as BatchNorm would, in a way no list knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += x.detach().sum(dim=0)
        return self.layer(x)


def test_a_buffer_that_remembers_records_never_leaves() -> None:
    task = TinyTask(model=_Counts)
    with pytest.raises(TrainingError, match="buffer seen"):
        train_private(task.model(), task, task.examples, TRAINING, DP, SecureGenerator())


def test_weights_that_blow_up_never_leave() -> None:
    task = TinyTask()
    training = TRAINING.model_copy(update={"learning_rate": 3e38, "nominal_records": 1})
    with pytest.raises(TrainingError, match="NaN or infinity"):
        train_private(nn.Linear(5, 3), task, task.examples, training, DP, SecureGenerator())


@pytest.mark.parametrize(
    ("training", "dp"),
    [
        (TRAINING.model_copy(update={"nominal_records": None}), DP),
        (TRAINING, DpConfig(target_epsilon=1.0)),
    ],
)
def test_open_constants_are_refused(training: TrainingConfig, dp: DpConfig) -> None:
    task = TinyTask()
    with pytest.raises(TrainingError, match="both fixed"):
        train_private(nn.Linear(5, 3), task, task.examples, training, dp, SecureGenerator())


def test_fedprox_pulls_towards_the_start() -> None:
    task = TinyTask()
    training = TRAINING.model_copy(update={"learning_rate": 0.2, "local_steps": 30})
    start = nn.Linear(5, 3)
    distance = []
    for mu in (0.0, 4.0):
        model = copy.deepcopy(start)
        generator = SecureGenerator.from_seed("prox")
        train_private(model, task, task.examples, training, DP, generator, proximal_mu=mu)
        distance.append(float((model.weight - start.weight).norm()))
    assert distance[1] < 0.6 * distance[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_training_on_cuda_learns() -> None:
    task = TinyTask()
    model = nn.Linear(5, 3).cuda()
    training = TRAINING.model_copy(update={"local_steps": 40})
    train_private(model, task, task.examples, training, DP, SecureGenerator())
    assert task.metrics(model(task.examples.x.cuda()).cpu(), task.examples.y)["accuracy"] > 0.6
