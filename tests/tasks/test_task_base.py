from __future__ import annotations

import pytest
import torch

from fedveil.tasks import base, errors
from fedveil.tasks.base import Examples
from fedveil.tasks.errors import TaskError


def test_the_error_is_one_class() -> None:
    assert base.TaskError is errors.TaskError


def test_examples_come_row_by_row() -> None:
    examples = Examples(torch.arange(6.0).reshape(3, 2), torch.tensor([5, 6, 7]))
    assert len(examples) == 3
    x, y = examples[1]
    assert (x.tolist(), int(y)) == ([2.0, 3.0], 6)
    with pytest.raises(TaskError, match="3 inputs do not match 2 targets"):
        Examples(torch.zeros(3), torch.zeros(2))


def test_examples_can_be_compared_and_hashed() -> None:
    examples = Examples(torch.zeros(3), torch.zeros(3))
    assert examples == examples
    assert examples != Examples(torch.zeros(3), torch.zeros(3))
    assert len({examples, examples}) == 1


def test_records_that_are_not_finite_are_counted_once() -> None:
    x, y = torch.zeros(5, 2, 3), torch.zeros(5)
    assert Examples(x, y).non_finite_records() == 0
    x[1, 0, 2] = float("nan")
    x[1, 1, 1] = float("inf")
    y[1] = y[4] = float("-inf")
    assert Examples(x, y).non_finite_records() == 2
    assert Examples(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4)).non_finite_records() == 0
    assert Examples(torch.zeros(0, 3), torch.zeros(0)).non_finite_records() == 0
