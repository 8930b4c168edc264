"""Sums of clipped gradients: against plain autograd, and against a server that chooses weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus import GradSampleModule
from tiny_task import TinyTask
from torch import Tensor, nn
from torch.nn import functional as f

from fedveil.client import gradient_sums
from fedveil.client.gradient_sums import (
    MOST_RECORDS,
    clipped_gradient,
    sum_of_clipped_gradients,
    unit_of,
)
from fedveil.client.local_training import TrainingError
from fedveil.client.vectors import slots_of
from fedveil.envelope import float_arrays
from fedveil.tasks.base import Examples

TASK = TinyTask()
EVERYBODY = np.arange(60)
SEEDS = np.arange(60, dtype=np.uint64) << np.uint64(32)


def mlp(scale: float = 1.0, *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * scale)
    return model


def summed(
    model: nn.Module,
    batch: NDArray[np.int64],
    clip_norm: float = 1.0,
    examples: Examples = TASK.examples,
) -> NDArray[np.float64]:
    return sum_of_clipped_gradients(model, TASK, examples, batch, clip_norm, SEEDS)


def in_units(vector: NDArray[np.float64], clip_norm: float = 1.0) -> NDArray[np.int64]:
    units = vector / unit_of(clip_norm)
    assert (units == np.rint(units)).all()
    return units.astype(np.int64)


def by_hand(model: nn.Module, x: Tensor, y: Tensor, clip_norm: float) -> NDArray[np.float64]:
    """Return one record's clipped gradient by autograd alone, in double precision."""
    double = copy.deepcopy(model).double()
    f.cross_entropy(double(x.double()), y).backward()  # type: ignore[no-untyped-call]
    whole = torch.cat([p.grad.flatten() for p in double.parameters() if p.grad is not None])
    return (whole * min(1.0, clip_norm / float(whole.norm()))).numpy()


@pytest.mark.parametrize("clip_norm", [1e-3, 0.3, 1.0, 50.0])
def test_it_is_what_autograd_says_record_by_record(clip_norm: float) -> None:
    model, batch = mlp(), np.array([3, 8, 31, 59])
    expected = sum(
        by_hand(model, TASK.examples.x[i : i + 1], TASK.examples.y[i : i + 1], clip_norm)
        for i in batch
    )
    found = summed(model, batch, clip_norm)
    # Gradients are of single precision; the integers are finer than that.
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * min(clip_norm, 5.0))


@given(st.floats(1e-30, 1e30), st.floats(1e-6, 1e6), st.integers(0, 59))
@settings(max_examples=80)
def test_no_record_passes_the_clip_norm(clip_norm: float, scale: float, record: int) -> None:
    x, y = TASK.examples.x[record : record + 1], TASK.examples.y[record : record + 1]
    found = clipped_gradient(mlp(scale), TASK, x, y, clip_norm)
    square = sum(int(value) ** 2 for part in found.values() for value in part)
    bound = clip_norm / unit_of(clip_norm)
    assert square <= bound * bound
    assert 2.0**32 <= bound < 2.0**33


def test_the_sum_is_exact_in_any_order() -> None:
    model = mlp()
    whole = in_units(summed(model, EVERYBODY))
    assert (in_units(summed(model, EVERYBODY[::-1].copy())) == whole).all()
    one_by_one = sum(in_units(summed(model, np.array([i]))) for i in EVERYBODY)
    assert (one_by_one == whole).all()
    # Up to MOST_RECORDS a sum of the largest gradients is exact in a double.
    assert MOST_RECORDS * 2.0**33 <= 2.0**53


# A server that chooses the weights -----------------------------------------------------------


def amplifier(scale: float) -> nn.Module:
    """Return a model whose last bits, by cancellation, are most of the gradient."""
    model = mlp(scale)
    with torch.no_grad():
        model[0].weight[8:] = model[0].weight[:8]
        model[0].bias[8:] = model[0].bias[:8]
        model[3].weight[:, 8:] = -model[3].weight[:, :8]
    return model


@pytest.mark.parametrize("build", [mlp, amplifier])
@pytest.mark.parametrize("scale", [1e6, 1e15])
def test_attack_huge_weights_tell_nothing_of_other_records(
    build: Callable[[float], nn.Module], scale: float
) -> None:
    """What a record adds must be the same to the last bit, whoever else is in the batch."""
    model = build(scale)
    for record in (0, 17, 59):
        alone = in_units(summed(model, np.array([record])))
        others = EVERYBODY[record != EVERYBODY]
        with_all = in_units(summed(model, EVERYBODY)) - in_units(summed(model, others))
        assert (with_all == alone).all()
        with_one = in_units(summed(model, np.array([0, record]))) - in_units(
            summed(model, np.array([0]))
        )
        assert record == 0 or (with_one == alone).all()


def test_attack_the_same_works_against_one_batched_pass() -> None:
    """The control: Opacus' per-record gradients of one pass do depend on the other records."""

    def gradient(model: nn.Module, records: list[int]) -> Tensor:
        wrapped = GradSampleModule(copy.deepcopy(model))
        x, y = TASK.examples.x[records], TASK.examples.y[records]
        f.cross_entropy(wrapped(x), y).backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad_sample[0].flatten() for p in wrapped.parameters()])

    model = mlp(1e6)
    pairs = [(gradient(model, [i]), gradient(model, [i, *range(40)])) for i in range(40, 60)]
    assert any(not torch.equal(alone, among) for alone, among in pairs)


def test_attack_a_record_moved_by_another_adds_the_same() -> None:
    """Taking away a record moves those behind it to other places in memory."""
    model = mlp(1e6)
    x, y = TASK.examples.x, TASK.examples.y
    without = Examples(x[1:], y[1:])
    before = summed(model, np.array([4]))
    # The same seed goes with the record.
    after = sum_of_clipped_gradients(model, TASK, without, np.array([3]), 1.0, SEEDS[1:])
    assert (before == after).all()


def test_attack_dropout_is_drawn_for_each_record_alone() -> None:
    model = mlp(1e6, dropout=0.5)
    alone = in_units(summed(model, np.array([7])))
    both = in_units(summed(model, np.array([5, 7]))) - in_units(summed(model, np.array([5])))
    assert (both == alone).all()
    other = sum_of_clipped_gradients(
        model, TASK, TASK.examples, np.array([7]), 1.0, SEEDS + np.uint64(2)
    )
    assert (in_units(other) != alone).any()


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e38])
def test_attack_weights_that_are_no_numbers_give_nothing(weight: float) -> None:
    model = mlp()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(weight)
    found = summed(model, EVERYBODY)
    assert np.isfinite(found).all()
    if not math.isfinite(weight):
        assert not found.any()


# Records and models that do not behave -------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_record_that_is_not_finite_adds_zero(value: float) -> None:
    x = TASK.examples.x.clone()
    x[9, 2] = value
    bad = Examples(x, TASK.examples.y)
    model, others = mlp(), EVERYBODY[EVERYBODY != 9]
    assert (summed(model, EVERYBODY, examples=bad) == summed(model, others)).all()


def test_attack_a_record_on_which_the_loss_fails_is_not_told_by_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether the client answers would tell, without noise, that the record is in the batch."""

    class Failing(TinyTask):
        @property
        def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
            # Refuses probabilities that are no numbers, as many losses do.
            return lambda outputs, y: f.binary_cross_entropy(
                torch.softmax(outputs, 1), f.one_hot(y, 3).float()
            )

    x = TASK.examples.x.clone()
    x[7, 0] = 1e4
    model = nn.Linear(5, 3)
    with torch.no_grad():
        # Weights for which this record's outputs are infinite, and no other one's.
        model.weight[:, 0] = 1e37
        model.weight[:, 1:] = 0.5
    examples = Examples(x, TASK.examples.y)
    with pytest.raises(RuntimeError):
        clipped_gradient(model, Failing(), x[7:8], examples.y[7:8], 1.0)
    batch = np.array([3, 7, 31])
    found = sum_of_clipped_gradients(model, Failing(), examples, batch, 1.0, SEEDS)
    without = sum_of_clipped_gradients(model, Failing(), examples, batch[[0, 2]], 1.0, SEEDS)
    assert (in_units(found) == in_units(without)).all()
    assert "add nothing to the round" in caplog.text


def test_an_empty_batch_is_a_sum_of_nothing() -> None:
    assert not summed(mlp(), np.array([], dtype=np.int64)).any()


def test_a_gradient_of_zero_stays_zero() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * 0.0

    assert not summed(Deaf(), EVERYBODY).any()


def test_more_records_than_add_up_exactly_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_sums, "MOST_RECORDS", 3)
    with pytest.raises(TrainingError, match="more than 3 records"):
        summed(mlp(), np.arange(4))
    summed(mlp(), np.arange(3))


class Counting(nn.Module):
    """Keeps a statistic of what it sees, as BatchNorm does, and has an array that stays."""

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.linear = nn.Linear(5, 3)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.last = nn.Linear(3, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:
        if self.counts:
            self.mean += x.mean(dim=0)
        return self.last(self.linear(x))  # type: ignore[no-any-return]


def test_a_statistic_of_records_in_a_buffer_is_refused() -> None:
    with pytest.raises(TrainingError, match="changed the buffer mean"):
        summed(Counting(counts=True), EVERYBODY)


def test_the_vector_lies_as_the_models_arrays_are_sent() -> None:
    model = Counting(counts=False)
    sent = ArrayRecord(model.state_dict())
    slots, size = slots_of(model)
    assert list(slots) == float_arrays(sent)
    assert size == sum(math.prod(sent[name].shape) for name in slots)
    found = summed(model, EVERYBODY)
    assert found.shape == (size,)
    still = {name for name, slot in slots.items() if not found[slot].any()}
    assert still == {"mean", "frozen", "unused"}


def test_torchs_own_stream_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    summed(mlp_of_now := mlp_without_seed(), EVERYBODY)
    assert mlp_of_now.training
    assert torch.equal(torch.rand(3), expected)


def mlp_without_seed() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return mlp(dropout=0.5)
