"""Passes in bfloat16: what is clipped is what was measured, and sums stay in float32."""

from __future__ import annotations

import pytest
import torch
from gradient_models import Case, apart, clipped, size
from opacus.layers import DPLSTM
from torch import nn

from fedveil.client.gradients.engine import chosen
from fedveil.client.local_training import TrainingError
from fedveil.tasks.models import CharacterCnn, small_cnn, tanh_mlp


@pytest.mark.parametrize("clip", [0.01, 1.0])
def test_a_clipped_record_is_as_long_as_the_clip_norm(clip: float) -> None:
    # The bound is tight: rounding in the passes is no excuse for noise that is too small.
    torch.manual_seed(3)
    case = Case(small_cnn(), torch.rand(4, 1, 28, 28), torch.randint(0, 10, (4,)))
    with torch.no_grad():
        for p in case.model.parameters():
            p *= 3.0
    for record in range(4):
        alone = clipped("fast", case.only(torch.tensor([record])), clip, precision="bf16")
        assert size(alone) == pytest.approx(clip, rel=1e-4)


@pytest.mark.parametrize("name", ["mlp", "cnn", "text"])
def test_sums_are_float32_and_near_those_of_float32(name: str) -> None:
    torch.manual_seed(8)
    model, inputs = {
        "mlp": lambda: (tanh_mlp((784, 64, 10)), torch.rand(16, 1, 28, 28)),
        "cnn": lambda: (small_cnn(), torch.rand(16, 1, 28, 28)),
        "text": lambda: (CharacterCnn(30, 32), torch.randint(0, 30, (16, 32))),
    }[name]()
    case = Case(model, inputs, torch.randint(0, 10, (16,)))
    half, whole = clipped("fast", case, 1.0, precision="bf16"), clipped("fast", case, 1.0)
    assert all(total.dtype == torch.float32 for total in half)
    # Near, and not the same: the passes were in bfloat16.
    assert 1e-5 * 16 < apart(half, whole) <= 0.05 * 16


def test_opacus_hooks_take_float32_alone() -> None:
    with pytest.raises(TrainingError, match=r'precision = "bf16" needs the fast engine'):
        chosen("opacus", nn.Linear(2, 2), "bf16")
    with pytest.raises(TrainingError, match="bf16"):
        chosen("auto", DPLSTM(2, 2), "bf16")
    assert chosen("auto", nn.Linear(2, 2), "bf16") == "fast"
