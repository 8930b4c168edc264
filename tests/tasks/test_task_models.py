from __future__ import annotations

import copy

import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn

from fedveil.tasks.base import Task
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task

# Task, option "model", shape of an input, outputs, parameters counted by hand.
MODELS = [
    ("digits", "linear", (64,), 10, 64 * 10 + 10),
    ("digits", "mlp", (64,), 10, 64 * 32 + 32 + 32 * 10 + 10),
    ("breast-cancer", None, (30,), 1, 31),
    ("heart-disease", None, (13,), 1, 14),
    ("adult", "linear", (107,), 1, 108),
    ("adult", "mlp", (107,), 1, 107 * 32 + 32 + 33),
    ("mnist", "linear", (1, 28, 28), 10, 7850),
    ("mnist", "mlp", (1, 28, 28), 10, 784 * 256 + 256 + 256 * 128 + 128 + 1290),
    ("mnist", "cnn", (1, 28, 28), 10, 26_010),
    ("fashion-mnist", "cnn", (1, 28, 28), 10, 26_010),
    ("shakespeare", None, (80,), 97, 97 * 16 + 4160 + 16_448 + 97 * (64 * 5 + 1)),
]


def build(name: str, option: str | None) -> Task:
    scheme = PartitionSpec("natural" if name == "heart-disease" else "iid")
    options = {} if option is None else {"model": option}
    return create_task(name, seed=0, partition=scheme, options=options)


def batch(name: str, shape: tuple[int, ...], outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, *shape, generator=generator)
    if name == "shakespeare":
        x = (x * 97).long()
    y = torch.arange(6) % outputs if outputs > 1 else torch.arange(6.0) % 2
    return x, y


@pytest.mark.parametrize(("name", "option", "shape", "outputs", "parameters"), MODELS)
def test_a_model_is_small_and_valid_for_opacus(
    name: str, option: str | None, shape: tuple[int, ...], outputs: int, parameters: int
) -> None:
    task = build(name, option)
    model = task.model()
    assert ModuleValidator.validate(model, strict=False) == []
    assert sum(p.numel() for p in model.parameters()) == parameters
    x, y = batch(name, shape, outputs)
    predicted = model(x)
    assert predicted.shape == (6, outputs)
    assert torch.isfinite(task.loss(predicted, y))


@pytest.mark.parametrize(("name", "option", "shape", "outputs", "_parameters"), MODELS)
def test_gradients_of_single_records_add_up(
    name: str, option: str | None, shape: tuple[int, ...], outputs: int, _parameters: int
) -> None:
    task = build(name, option)
    model = task.model()
    x, y = batch(name, shape, outputs)
    task.loss(model(x), y).backward()  # type: ignore[no-untyped-call]  # torch
    expected = [p.grad for p in model.parameters()]
    assert all(g is not None for g in expected)
    wrapped = GradSampleModule(model, loss_reduction="mean")
    wrapped.zero_grad()
    task.loss(wrapped(x), y).backward()  # type: ignore[no-untyped-call]  # torch
    for parameter, gradient in zip(wrapped.parameters(), expected, strict=True):
        torch.testing.assert_close(
            parameter.grad_sample.mean(dim=0), gradient, atol=1e-6, rtol=1e-4
        )


def test_hidden_units_are_bounded() -> None:
    for name, option in (("digits", "mlp"), ("mnist", "mlp"), ("mnist", "cnn")):
        kinds = {type(layer) for layer in build(name, option).model().modules()}
        assert nn.Tanh in kinds
        assert nn.ReLU not in kinds


def test_every_character_of_the_window_counts() -> None:
    torch.manual_seed(2)
    model = build("shakespeare", None).model()
    x, _ = batch("shakespeare", (80,), 97)
    with torch.no_grad():
        for position in range(80):
            other = x.clone()
            other[:, position] = (other[:, position] + 1) % 97
            assert float((model(other) - model(x)).abs().max()) > 1e-4, position


def test_models_start_from_the_global_generator() -> None:
    task = build("digits", "linear")
    torch.manual_seed(5)
    first = [p.clone() for p in task.model().parameters()]
    again = list(task.model().parameters())
    torch.manual_seed(5)
    for one, other in zip(first, task.model().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.equal(first[0], again[0])


@pytest.mark.parametrize("option", ["linear", "mlp"])
def test_digits_takes_a_constant_off_its_pixels_and_nothing_else(option: str) -> None:
    task = build("digits", option)
    model, public = task.model(), task.public_test()
    assert isinstance(model, nn.Sequential)
    assert public is not None
    # Pixels are sixteenths, and so is what is left of them: nothing is rounded.
    expected = (public.x.double() - 5 / 16).float()
    assert torch.equal(model[0](public.x), expected)
    assert torch.equal(model(public.x), model[1:](expected))
    assert abs(float(public.x.mean()) - 5 / 16) < 0.01


def test_the_constant_is_no_weight_and_leaves_the_names_of_weights_alone() -> None:
    model = build("digits", "linear").model()
    assert isinstance(model, nn.Sequential)
    assert [*model.state_dict()] == [name for name, _ in model.named_parameters()]
    assert [*model.state_dict()] == ["1.weight", "1.bias"]
    assert list(model.buffers()) == []
    assert "middle=0.3125" in repr(model)
    assert torch.equal(copy.deepcopy(model)[0](torch.ones(1, 64)), torch.full((1, 64), 11 / 16))
