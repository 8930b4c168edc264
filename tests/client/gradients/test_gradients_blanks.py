"""Every pass has the same number of rows: no record bears on what another one adds."""

from __future__ import annotations

import pytest
import torch
from gradient_models import Case, clipped, crafted
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedveil.client.dp_training import clipped_sum
from fedveil.client.gradients.blanks import blanks, physical_rows, with_blanks
from fedveil.client.gradients.interface import EngineName
from fedveil.tasks.base import Examples
from fedveil.tasks.models import tanh_mlp

CLIP = 1.0


@given(st.floats(0.0, 1e6), st.integers(1, 10_000))
def test_passes_have_a_multiple_of_sixteen_rows_within_what_memory_holds(
    expected: float, most: int
) -> None:
    rows = physical_rows(expected, most)
    assert rows % 16 == 0
    assert 16 <= rows <= max(16, most)


def test_one_pass_holds_nearly_every_batch() -> None:
    assert physical_rows(256.0, 512) == 288
    assert physical_rows(3.0, 512) == 16
    assert physical_rows(4096.0, 500) == 496


def test_blank_rows_are_zeros_of_the_same_kind() -> None:
    values = torch.tensor([[1, 2], [3, 4], [5, 6]])
    for rows in (2, 4):
        tokens = with_blanks(values, torch.tensor([2, 0]), rows)
        assert tokens.tolist() == [[5, 6], [1, 2], [0, 0], [0, 0]][:rows]
        assert tokens.dtype == torch.int64
    assert blanks(values, 1).tolist() == [[0, 0]]


class _Task:
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)


def _sum(model: nn.Module, x: Tensor, y: Tensor, engine: EngineName) -> Tensor:
    parts = clipped_sum(model, _Task(), Examples(x, y), CLIP, engine)  # type: ignore[arg-type]
    return torch.cat([part.double().flatten() for part in parts])


@pytest.mark.parametrize("engine", ["fast", "opacus"])
def test_blank_rows_add_nothing(engine: EngineName) -> None:
    torch.manual_seed(3)
    model = tanh_mlp((784, 64, 10))
    x, y = torch.rand(21, 1, 28, 28), torch.randint(0, 10, (21,))
    case = Case(model, x, y)
    plain = torch.cat([p.double().flatten() for p in clipped(engine, case, CLIP)])
    torch.testing.assert_close(_sum(model, x, y, engine), plain, rtol=0.0, atol=2e-6)


@pytest.mark.parametrize("engine", ["fast", "opacus"])
@pytest.mark.parametrize("records", [2, 16, 17])
@pytest.mark.parametrize("size", [1e8, 1e12])
def test_huge_weights_do_not_make_a_record_move_more_than_its_clip_norm(
    engine: EngineName, records: int, size: float
) -> None:
    torch.manual_seed(0)
    model = crafted(size)
    x, y = torch.rand(records, 1, 28, 28), torch.randint(0, 10, (records,))
    whole = _sum(model, x, y, engine)
    for left_out in range(min(records, 3)):
        rest = torch.arange(records) != left_out
        moved = float((whole - _sum(model, x[rest], y[rest], engine)).norm())
        assert moved <= CLIP * (1.0 + 1e-4)
