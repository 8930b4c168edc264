from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.tasks.breast_cancer import BreastCancer
from fedveil.tasks.digits import Digits
from fedveil.tasks.errors import TaskError
from fedveil.tasks.partition import PartitionSpec

MANY = Digits(seed=0, partition=PartitionSpec("iid"))
BINARY = BreastCancer(seed=0, partition=PartitionSpec("iid"))
NAN = float("nan")


def test_metrics_of_many_classes() -> None:
    # Classes 0, 0, 0, 1; answers 0, 0, 2, 1: recall 2/3 and 1.
    logits = torch.tensor([[4.0, 0, 0], [4, 0, 0], [0, 0, 4], [0, 4, 0]], requires_grad=True)
    found = MANY.metrics(logits, torch.tensor([0, 0, 0, 1]))
    right, wrong = -math.log(math.exp(4) / (math.exp(4) + 2)), math.log(math.exp(4) + 2)
    assert found == pytest.approx(
        {"accuracy": 0.75, "balanced_accuracy": 5 / 6, "loss": (3 * right + wrong) / 4}
    )
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_metrics_of_yes_or_no(shape: tuple[int, ...]) -> None:
    logits = torch.tensor([3.0, -1.0, 1.0, -2.0]).reshape(shape)
    found = BINARY.metrics(logits, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    loss = np.mean([math.log1p(math.exp(v)) for v in (-3.0, 1.0, 1.0, -2.0)])
    # Of the four (positive, negative) pairs, 3 > 1, 3 > -2 and -1 > -2 are in order.
    assert found == pytest.approx(
        {"accuracy": 0.5, "balanced_accuracy": 0.5, "loss": loss, "auc": 0.75}
    )
    assert all(type(value) is float for value in found.values())


def test_an_answer_is_yes_above_a_logit_of_zero() -> None:
    found = BINARY.metrics(torch.tensor([0.01, -0.01]), torch.tensor([1.0, 0.0]))
    assert found["accuracy"] == 1.0


def test_balanced_accuracy_is_that_of_classes_present() -> None:
    found = BINARY.metrics(torch.tensor([1.0, -1.0, 2.0]), torch.ones(3))
    assert found["accuracy"] == found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert "auc" not in found


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.zeros(0, 1), torch.zeros(0), "no metrics of 0 outputs"),
        (torch.zeros(3, 1), torch.zeros(2), "no metrics of 3 outputs and 2 targets"),
        (torch.tensor([[1.0], [NAN], [2.0]]), torch.ones(3), "outputs are NaN"),
    ],
)
def test_metrics_that_cannot_be_had_say_why(
    outputs: torch.Tensor, targets: torch.Tensor, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        BINARY.metrics(outputs, targets)


@given(st.integers(1, 20), st.integers(0, 1000))
def test_a_loss_is_the_mean_over_records(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    many = torch.randn(n, 10, generator=generator)
    digit = torch.randint(0, 10, (n,), generator=generator)
    one_by_one = [MANY.loss(many[i : i + 1], digit[i : i + 1]) for i in range(n)]
    torch.testing.assert_close(MANY.loss(many, digit), torch.stack(one_by_one).mean())
    logit, answer = many[:, :1], (digit % 2).float()
    one_by_one = [BINARY.loss(logit[i : i + 1], answer[i : i + 1]) for i in range(n)]
    torch.testing.assert_close(BINARY.loss(logit, answer), torch.stack(one_by_one).mean())
    torch.testing.assert_close(BINARY.loss(logit, answer), BINARY.loss(logit[:, 0], answer))
