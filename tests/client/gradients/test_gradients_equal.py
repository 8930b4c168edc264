"""The fast engine against Opacus' hooks and against one record at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gradient_models import (
    Case,
    Model,
    Scaled,
    Transposed,
    apart,
    built_in,
    cases,
    clipped,
    one_at_a_time,
)
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from opacus.layers import DPLSTM
from torch import Tensor, nn

from fedveil.client.gradients.engine import chosen
from fedveil.client.local_training import TrainingError

RECORDS = 24
BUILT_IN = built_in(RECORDS)


@pytest.mark.parametrize("clip", [0.01, 1.0, 1e4])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_model_has_opacus_sums(name: str, clip: float) -> None:
    torch.manual_seed(5)
    case = BUILT_IN[name]()
    fast, opacus = clipped("fast", case, clip), clipped("opacus", case, clip)
    truth, _ = one_at_a_time(case, clip)
    assert apart(fast, opacus) <= 1e-6 * clip * RECORDS
    # What stands in float32 beside the truth is no farther off than Opacus' own sum.
    assert apart(fast, truth) <= 1e-6 * clip * RECORDS + apart(opacus, truth)


@settings(max_examples=40)
@given(cases(), st.sampled_from([0.01, 1.0, 100.0]))
def test_any_architecture_has_opacus_sums(case: Case, clip: float) -> None:
    assert chosen("auto", case.model) == "fast"
    # In single precision the sums of a model that divides by a tiny spread are rounding alone.
    case = case.double()
    fast, opacus = clipped("fast", case, clip), clipped("opacus", case, clip)
    assert apart(fast, opacus) <= 1e-11 * clip * len(case.inputs)


@settings(max_examples=20)
@given(cases(), st.sampled_from([0.01, 1.0, 100.0]))
def test_in_double_precision_the_sums_are_those_of_one_record_at_a_time(
    case: Case, clip: float
) -> None:
    truth, _ = one_at_a_time(case, clip)
    assert apart(clipped("fast", case.double(), clip), truth) <= 1e-11 * clip * len(case.inputs)


@settings(max_examples=40)
@given(cases(), st.integers(1, 6))
def test_a_batch_in_pieces_is_the_same_batch(case: Case, pieces: int) -> None:
    try:
        whole, parts = clipped("fast", case, 1.0), clipped("fast", case, 1.0, pieces)
    except ValueError:
        reject()  # torch normalises no single value
    assert apart(whole, parts) <= 1e-4 * len(case.inputs)


class Twice(nn.Module):
    """One layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))
        return logits


class Tied(nn.Module):
    """An embedding and an output layer with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.middle = nn.Linear(4, 4)
        self.output = nn.Linear(4, 7)
        self.output.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(torch.tanh(self.middle(self.embedding(x)))).mean(dim=1)
        return logits


class Residual(nn.Module):
    """Adds a branch's output to its input, and leaves one layer unused."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 3)
        self.never = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x += torch.tanh(x)
        self.never(x)
        logits: Tensor = self.second(x)
        return logits


class Frozen(Twice):
    """One whose first use of a layer needs no gradient of anything before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.requires_grad_(False)
        self.layer.bias.requires_grad_(True)


OTHERS: dict[str, Callable[[], Case]] = {
    "a layer used twice": lambda: vectors_for(Twice()),
    "weights tied": lambda: Case(Tied(), torch.randint(0, 7, (8, 6)), torch.randint(0, 7, (8,))),
    "a frozen weight, a trained bias, used twice": lambda: vectors_for(Frozen()),
    "a layer only functorch knows": lambda: vectors_for(
        nn.Sequential(nn.Linear(5, 4), Scaled(4), nn.Linear(4, 3))
    ),
    "Opacus' function for InstanceNorm": lambda: planes(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Tanh())
    ),
    "a convolution in three dimensions": lambda: planes(
        nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 3, (2, 3, 3)), nn.Tanh())
    ),
    "long sequences, narrow layers": lambda: Case(
        Model(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), torch.randn(1, 50, 3)),
        torch.randn(8, 50, 3),
        torch.randint(0, 3, (8,)),
    ),
    "short sequences, wide layers": lambda: Case(
        Model(nn.Sequential(nn.Linear(64, 96), nn.Tanh()), torch.randn(1, 3, 64)),
        torch.randn(8, 3, 64),
        torch.randint(0, 3, (8,)),
    ),
    "uneven padding": lambda: Case(
        Model(nn.Conv1d(2, 3, 4, padding="same", dilation=3), torch.randn(1, 2, 9)),
        torch.randn(8, 2, 9),
        torch.randint(0, 3, (8,)),
    ),
    "few places, many channels, in groups": lambda: Case(
        Model(nn.Sequential(nn.Conv2d(32, 64, 3, groups=2), nn.Tanh()), torch.randn(1, 32, 4, 4)),
        torch.randn(8, 32, 4, 4),
        torch.randint(0, 3, (8,)),
    ),
}


def vectors_for(model: nn.Module) -> Case:
    return Case(model, torch.randn(8, 5), torch.randint(0, 3, (8,)))


def planes(body: nn.Module) -> Case:
    return Case(
        Model(body, torch.randn(1, 2, 6, 6)), torch.randn(8, 2, 6, 6), torch.randint(0, 3, (8,))
    )


@pytest.mark.parametrize("clip", [0.05, 100.0])
@pytest.mark.parametrize("name", OTHERS)
def test_other_models_have_opacus_sums(name: str, clip: float) -> None:
    torch.manual_seed(6)
    case = OTHERS[name]()
    truth, _ = one_at_a_time(case, clip)
    fast = clipped("fast", case, clip)
    assert apart(fast, truth) <= 1e-6 * clip * 8
    assert apart(fast, clipped("opacus", case, clip)) <= 1e-6 * clip * 8


WRONG_IN_OPACUS: dict[str, Callable[[], Case]] = {
    "padding that is never trained": lambda: Case(
        Model(nn.Embedding(7, 4, padding_idx=0), torch.randint(0, 7, (1, 6))),
        torch.randint(0, 7, (8, 6)),
        torch.randint(0, 3, (8,)),
    ),
    "circular padding": lambda: planes(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")),
    "a norm without a bias": lambda: vectors_for(
        nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4, bias=False), nn.Linear(4, 3))
    ),
    "an activation in place": lambda: vectors_for(
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    ),
    "an addition in place, and a layer whose output nobody needs": lambda: vectors_for(Residual()),
}


@pytest.mark.parametrize("name", WRONG_IN_OPACUS)
def test_where_opacus_errs_the_sums_are_those_of_one_record_at_a_time(name: str) -> None:
    torch.manual_seed(7)
    case = WRONG_IN_OPACUS[name]()
    truth, _ = one_at_a_time(case, 0.3)
    assert apart(clipped("fast", case, 0.3), truth) <= 1e-6 * 0.3 * 8
    try:
        opacus = clipped("opacus", case, 0.3)
    except (RuntimeError, AttributeError):
        return
    assert apart(opacus, truth) > 1e-3


def test_a_recurrent_model_of_opacus_goes_to_opacus() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = DPLSTM(4, 5, batch_first=True)
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.lstm(x)[0][:, -1])
            return logits

    torch.manual_seed(9)
    case = Case(Recurrent(), torch.randn(8, 6, 4), torch.randint(0, 3, (8,)))
    truth, _ = one_at_a_time(case, 0.3)
    assert chosen("auto", case.model) == "opacus"
    assert apart(clipped("auto", case, 0.3), truth) <= 1e-6 * 0.3 * 8
    with pytest.raises(TrainingError, match='"fast" cannot train layer lstm'):
        clipped("fast", case, 0.3)


def test_a_transposed_convolutional_text_model_has_opacus_sums() -> None:
    torch.manual_seed(10)
    body = nn.Sequential(nn.Embedding(9, 6), Transposed(), nn.Conv1d(6, 8, 3, stride=2), nn.Tanh())
    tokens = torch.randint(0, 9, (8, 11))
    case = Case(Model(body, tokens[:1]), tokens, torch.randint(0, 3, (8,)))
    fast = clipped("fast", case, 0.3)
    assert apart(fast, clipped("opacus", case, 0.3)) <= 1e-6 * 0.3 * 8
