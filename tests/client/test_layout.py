"""Layouts: another order in memory while a network computes, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedveil.client.layout import channels_last
from fedveil.tasks.models import small_cnn, tanh_mlp


def strides(model: nn.Module) -> list[tuple[int, ...]]:
    return [p.stride() for p in model.parameters()]


def test_convolutions_compute_the_same_and_come_back_as_they_were() -> None:
    torch.manual_seed(0)
    model, inputs = small_cnn().double(), torch.rand(5, 1, 28, 28, dtype=torch.float64)
    before, own = strides(model), dict(model.named_parameters())
    expected = model(inputs)
    expected.sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    with channels_last(model):
        assert own["3.weight"].is_contiguous(memory_format=torch.channels_last)
        assert not own["3.weight"].is_contiguous()
        found = model(inputs)
        found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-12)
    assert strides(model) == before
    assert all(own[name] is p for name, p in model.named_parameters())


def test_they_come_back_after_an_error_too() -> None:
    model = small_cnn()
    before = strides(model)
    with pytest.raises(ZeroDivisionError), channels_last(model):
        raise ZeroDivisionError
    assert strides(model) == before


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        (small_cnn(), "bf16"),
        (tanh_mlp((784, 8, 10)), "fp32"),
        (nn.Conv3d(2, 2, 3), "fp32"),
        (small_cnn().to("meta"), "fp32"),
    ],
)
def test_all_else_is_left_as_it_is(model: nn.Module, precision: str) -> None:
    before = strides(model)
    with channels_last(model, precision):
        assert strides(model) == before
