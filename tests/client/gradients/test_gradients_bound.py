"""No record adds more than the clip norm, whatever its values and the model's weights are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gradient_models import Case, Model, apart, cases, clipped, size
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as f

from fedveil.client.gradients.clipping import clip_factors
from fedveil.client.gradients.interface import EngineName, Precision
from fedveil.client.gradients.outer_products import OuterProducts
from fedveil.client.gradients.per_record import PerRecord, row_norms
from fedveil.client.gradients.products import Products, products
from fedveil.client.gradients.sparse_rows import sparse_rows
from fedveil.tasks.models import CharacterCnn, small_cnn, tanh_mlp

BOUND = 1.0 + 1e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@settings(max_examples=80)
@given(cases(), st.floats(1e-3, 1e3), st.integers(0, 5), st.sampled_from([1.0, 1e3, 1e6]))
def test_a_record_adds_at_most_the_clip_norm(
    precision: Precision, case: Case, clip: float, record: int, weights: float
) -> None:
    with torch.no_grad():
        for p in case.model.parameters():
            p *= weights
    alone = clipped("fast", case.only(torch.tensor([record])), clip, precision=precision)
    assert size(alone) <= clip * BOUND


@pytest.mark.parametrize("weights", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize(
    "make",
    [
        lambda: (tanh_mlp((784, 256, 128, 10)), torch.rand(6, 1, 28, 28)),
        lambda: (small_cnn(), torch.rand(6, 1, 28, 28)),
        lambda: (CharacterCnn(30, 32), torch.randint(0, 30, (6, 32))),
    ],
)
def test_so_it_is_with_a_servers_huge_weights(
    make: Callable[[], tuple[nn.Module, Tensor]], weights: float
) -> None:
    torch.manual_seed(1)
    model, inputs = make()
    with torch.no_grad():
        for p in model.parameters():
            p *= weights
    case = Case(model, inputs, torch.randint(0, 10, (6,)))
    for record in range(6):
        assert size(clipped("fast", case.only(torch.tensor([record])), 0.5)) <= 0.5 * BOUND


def sum_by_products(a: Tensor, g: Tensor, clip: float) -> Tensor:
    """Return what book-keeping adds for one record with these terms."""
    weight = nn.Parameter(torch.zeros(g.shape[3], a.shape[3]))
    part: Products | OuterProducts = Products(weight, None, a, g)
    if a.shape[1:3] == (1, 1):
        part = OuterProducts(weight, None, a[:, 0, 0], g[:, 0, 0])
    return part.weighted_sum(clip_factors(part.squared_norms(), clip))[weight]


@pytest.mark.parametrize("loud", [1e3, 1e6, 1e9, 1e12])
def test_gradients_that_cancel_over_positions_hide_no_rounding_beyond_the_clip_norm(
    loud: float,
) -> None:
    # Term after term is loud times the clip norm; exactly, they add up to nearly nothing, and
    # what float32 leaves of them is noise that a clip by the exact norm would let through.
    torch.manual_seed(2)
    a, g = torch.randn(1, 1, 40, 30), torch.randn(1, 1, 40, 20) * loud
    a, g = torch.cat([a, a], dim=2), torch.cat([g, -g], dim=2)
    order = torch.randperm(80)
    a, g = a[:, :, order], g[:, :, order]
    exact = (g.double().mT @ a.double()).norm()
    assert float(exact) < 1e-6 * loud
    assert size([sum_by_products(a, g, 1.0)]) <= BOUND
    if loud >= 1e9:
        assert float((g.mT @ a).norm()) > 10.0, "the attack is none: there is no rounding"


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1e-30, 1e18), (1e-22, 1e16), (1e19, 1e-19), (1e30, 1e-36), (1e38, 1.0)]
)
def test_factors_beyond_what_float32_can_square_hide_no_norm(inputs: float, outputs: float) -> None:
    a, g = torch.full((1, 1, 1, 1000), inputs), torch.full((1, 1, 1, 1000), outputs)
    total = sum_by_products(a, g, 1e-3)
    assert torch.isfinite(total).all()
    assert size([total]) <= 1e-3 * BOUND


@settings(max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**31), st.floats(-12, 12))
def test_norms_are_right_to_a_millionth(width: int, seed: int, exponent: float) -> None:
    generator = np.random.default_rng(seed)
    rows = (generator.standard_normal((3, width)) * 10.0**exponent).astype(np.float32)
    exact = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1))
    assert np.allclose(row_norms(torch.from_numpy(rows)).numpy(), exact, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", ["fast", "opacus"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_record_that_is_not_finite_adds_nothing(name: EngineName, poison: float) -> None:
    torch.manual_seed(3)
    inputs = torch.randn(8, 2, 7, 7)
    inputs[3, 1, 2, 2] = poison
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 5))
    case = Case(Model(body, inputs[:1]), inputs, torch.randint(0, 3, (8,)))
    kept = torch.arange(8) != 3
    assert apart(clipped(name, case, 0.3), clipped(name, case.only(kept), 0.3)) <= 1e-6


def test_nothing_but_poison_adds_up_to_zero() -> None:
    case = Case(nn.Linear(5, 3), torch.full((4, 5), math.nan), torch.zeros(4, dtype=torch.int64))
    assert size(clipped("fast", case, 1.0)) == 0.0


def contributions() -> dict[str, tuple[object, nn.Parameter]]:
    torch.manual_seed(4)
    weight, table = nn.Parameter(torch.zeros(6, 5)), nn.Parameter(torch.zeros(9, 4))
    bias = nn.Parameter(torch.zeros(6))
    a, g = torch.randn(7, 1, 3, 5), torch.randn(7, 1, 3, 6)
    made = Products(weight, bias, a, g)
    return {
        "products": (made, weight),
        "outer products": (OuterProducts(weight, bias, a[:, 0, 0], g[:, 0, 0]), weight),
        "bias": (OuterProducts(None, bias, a[:, 0, 0], g[:, 0, 0]), bias),
        "per record": (PerRecord(made.per_record()), weight),
        "rows": (
            sparse_rows(table, torch.randint(0, 9, (7, 5)), torch.randn(7, 5, 4), padding=2),
            table,
        ),
    }


@pytest.mark.parametrize("name", ["products", "outer products", "bias", "per record", "rows"])
def test_a_contribution_agrees_with_its_own_gradients(name: str) -> None:
    part, parameter = contributions()[name]
    weights = torch.rand(7, dtype=torch.float64)
    gradients = part.per_record()  # type: ignore[attr-defined]
    norms = sum(g.double().flatten(1).square().sum(dim=1) for g in gradients.values())
    assert torch.allclose(part.squared_norms(), norms, rtol=1e-6)  # type: ignore[attr-defined]
    expected = torch.einsum("n,n...->...", weights.float(), gradients[parameter])
    found = part.weighted_sum(weights)[parameter]  # type: ignore[attr-defined]
    assert torch.allclose(found, expected, atol=1e-5)
    dropped = torch.arange(7) == 4
    rest = part.without(dropped)  # type: ignore[attr-defined]
    assert float(rest.squared_norms()[4]) < 1e-29
    assert torch.equal(rest.squared_norms()[:4], part.squared_norms()[:4])  # type: ignore[attr-defined]


def test_ghost_norms_serve_wide_layers_at_few_positions_and_no_others() -> None:
    def kind(positions: int, width: int) -> type:
        weight = nn.Parameter(torch.zeros(width, width))
        a = torch.zeros(2, 1, positions, width)
        return type(products(weight, None, a, a))

    assert kind(1, 4) is Products
    assert kind(4, 256) is Products
    assert kind(200, 16) is PerRecord


def test_factors_are_those_of_opacus_and_zero_where_a_norm_says_nothing() -> None:
    norms = torch.tensor([0.0, 0.5, 2.0, math.inf, math.nan, 1e40], dtype=torch.float64)
    factors = clip_factors(norms.square(), 1.0)
    assert torch.allclose(
        factors, torch.tensor([1.0, 1.0, 1.0 / (2.0 + 1e-6), 0.0, 0.0, 0.0]).double(), atol=1e-12
    )


def test_a_tied_weights_two_gradients_are_clipped_as_one() -> None:
    # Each use alone is within the clip norm; together they are not.
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.one(x) + self.other(x)
            return logits

    case = Case(Sum(), torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), f.cross_entropy)
    weight = nn.Parameter(next(case.model.parameters()).detach().clone())
    loss = f.cross_entropy(2.0 * f.linear(case.inputs, weight), case.targets)
    gradient = size(list(torch.autograd.grad(loss, [weight])))
    assert size(clipped("fast", case, 0.75 * gradient)) == pytest.approx(0.75 * gradient, rel=1e-5)
