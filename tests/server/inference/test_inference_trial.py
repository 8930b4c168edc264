"""A model whose rows influence each other is refused: strangers' rows share a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedveil.server.inference.buckets import ladder
from fedveil.server.inference.oip import Array, TensorSpec
from fedveil.server.inference.trial import Trial
from fedveil.tasks.models import CharacterCnn, linear, small_cnn, tanh_mlp

Function = Callable[[Tensor], Tensor]

FLOATS = TensorSpec("input", "FP32", (6,))
WEIGHT = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
PADDED = (1, *(size + 1 for size in ladder(64)[:-1]))


def fault(
    function: Function, given: TensorSpec = FLOATS, numbers: tuple[int, ...] = (1, 2, 16)
) -> str | None:
    def run(rows: Array) -> Array:
        with torch.no_grad():
            return function(torch.from_numpy(rows)).numpy()

    return Trial(given, 1e-3).fault(run, run, numbers)


def norm(*, training: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).train(training)


def _quantized(rows: Tensor) -> Tensor:
    scale = rows.abs().max().clamp(min=1e-9) / 127
    return (rows / scale).round() * scale @ WEIGHT


def _tail(rows: Tensor) -> Tensor:
    found = rows @ WEIGHT
    return torch.cat([found[:-1], found[-1:] + found[:1]]) if len(rows) > 1 else found


ATTACKS: dict[str, Function] = {
    "centred": lambda rows: (rows - rows.mean(0)) @ WEIGHT,
    "a ten-thousandth of the neighbours": lambda rows: (rows + 1e-4 * rows.mean(0)) @ WEIGHT,
    "softmax over the batch": lambda rows: (rows @ WEIGHT).softmax(0),
    "scale of the batch": _quantized,
    "last row mixed": _tail,
    "neighbour's answer": lambda rows: (rows @ WEIGHT).roll(1, 0),
    "another every time": lambda rows: nn.functional.dropout(rows @ WEIGHT, 0.5, training=True),
    "sorted": lambda rows: (rows @ WEIGHT).sort(0).values,
}


@pytest.mark.parametrize("numbers", [(1, 2, 16), PADDED], ids=["plain", "padded"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_that_mixes_rows_is_refused(name: str, numbers: tuple[int, ...]) -> None:
    found = fault(ATTACKS[name], numbers=numbers)
    assert found is not None
    assert "strangers' requests share batches" in found
    assert "\n" not in found


def test_batch_norm_is_refused_in_training_alone() -> None:
    assert fault(norm(training=False)) is None
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fault(norm(training=True))


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (linear(64, 10, 5 / 16), TensorSpec("input", "FP32", (64,))),
        (tanh_mlp([30, 16, 1]), TensorSpec("input", "FP32", (30,))),
        (small_cnn(), TensorSpec("input", "FP32", (1, 28, 28))),
        (CharacterCnn(80, 16), TensorSpec("input", "INT64", (16,), 80)),
        (nn.Flatten(), FLOATS),
        (lambda rows: (rows @ WEIGHT).argmax(1), FLOATS),
    ],
)
def test_a_model_whose_rows_are_their_own_is_served(model: Function, given: TensorSpec) -> None:
    assert fault(model, given, PADDED) is None


def test_codes_stay_in_range_and_show_a_mixture_too() -> None:
    given = TensorSpec("input", "INT64", (4,), 7)
    table = torch.eye(7)

    def embed(rows: Tensor) -> Tensor:
        assert int(rows.min()) >= 0
        assert int(rows.max()) < 7
        return table[rows].flatten(1)

    assert fault(embed, given) is None
    assert "strangers" in (fault(lambda rows: embed(rows).cumsum(0), given) or "")


def test_an_answer_that_is_no_row_each_is_refused() -> None:
    assert "gives shape () for one row" in (fault(lambda rows: rows.sum()) or "")
    assert "gives shape (6,) for one row" in (fault(lambda rows: rows.sum(0)) or "")
    assert "gives shape (1, 6) for 2 rows" in (fault(lambda rows: rows[:1]) or "")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_refused(value: float) -> None:
    assert "NaN or infinity" in (fault(lambda rows: rows * value) or "")
    # Beside other rows, where alone it is sound.
    assert "strangers" in (fault(lambda rows: rows if len(rows) < 16 else rows * value) or "")


def test_what_is_run_must_be_what_the_plain_model_gives() -> None:
    """As of a compiler that gets a padded batch wrong."""

    def wrong(rows: Array) -> Array:
        return rows * np.float32(1.01 if len(rows) == 5 else 1)

    trial = Trial(FLOATS, 1e-3)
    assert trial.fault(lambda rows: rows, lambda rows: rows, PADDED) is None
    assert "in a batch of 5 rows than alone" in (
        trial.fault(lambda rows: rows, wrong, PADDED) or ""
    )
